"""A client process of one scenario with scripted counterparts, for its contract tests."""

import asyncio
import io
import json
import logging
import sys
from collections.abc import Coroutine, Generator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hushtune_client import app
from hushtune_client.app import ClientOptions
from hushtune_client.own_training import OwnTraining
from hushtune_common import config, logs
from hushtune_common.adapter import AdapterState
from hushtune_common.clock import SystemClock
from hushtune_common.codec.pipeline import codec_id, make_codec
from hushtune_common.config import Scenario, TimingConfig
from hushtune_common.crypto import envelope
from hushtune_common.crypto.keys import HybridPrivateKey
from hushtune_common.messages import (
    Assignment,
    Digest,
    Directive,
    DirectiveKind,
    EmulatorManifest,
    Part,
    Role,
    UpdateKey,
    Verdict,
)
from hushtune_common.model.bundle import read_bundle
from hushtune_common.seeding import SeedTree
from tests.kits import Kits
from tests.loopback import CLIENT, RUN, World, assignment_of, message_of, payloads_of, reader_of
from tests.loopback_grpc import serving
from tests.models import tiny_bundle

SCENARIO = """
name = "one-client"
seed = 3
[model]
source = "random:blocks=6,hidden=32,heads=4,seed=1"
[data]
private = "txt:private.txt"
public = "txt:private.txt"
window_tokens = 17
train_windows = 12
[training]
learning_rate = 1e-2
[timing]
connect_s = 10
idle_s = 3
round_s = 60
[limits]
attempts_max = 3
[[clients]]
id = "c1"
position = { x_m = -60.0, y_m = 40.0 }
"""
SECRET = "the password of the captain is marigold"
KEY = UpdateKey(run=RUN, round_id=1, client=CLIENT, attempt=1)
GRANTED = assignment_of()


@dataclass(slots=True)
class Stage:
    """A scenario on disk, a scripted world that fits it, and the owner's key."""

    folder: Path
    kits: Kits
    path: Path
    scenario: Scenario
    world: World
    private: HybridPrivateKey
    own: OwnTraining | None = None

    def options(self, owner: str, coordinator: str, air: str) -> ClientOptions:
        return ClientOptions(
            scenario=self.scenario,
            client_id=CLIENT,
            kit=self.kits.folder(Role.CLIENT, CLIENT),
            state_dir=self.folder / "state",
            owner=owner,
            coordinator=coordinator,
            air=air,
            data=(),
            own=self.own,
        )

    async def take_part(self) -> int:
        """Run the client in this process against the world."""
        async with serving(self.world, kits=self.kits, folder=self.folder) as at:
            options = self.options(at.owner, at.coordinator, at.air)
            return await app.run(options, clock=SystemClock(), seeds=SeedTree(self.scenario.seed))


def stage_in(folder: Path, *, kits: Kits) -> Stage:
    """Write a scenario of one client, its text and an emulator into ``folder``."""
    lines = [
        f"{SECRET} number {word}" for word in ("one", "two", "three", "seven", "eight", "nine", "ten", "red", "blue", "green")
    ]
    (folder / "private.txt").write_text("\n".join(lines), encoding="utf-8")
    path = folder / "one.toml"
    path.write_text(SCENARIO, encoding="utf-8")
    scenario = config.load(path)
    emulator = tiny_bundle(folder, 3)
    bundle = read_bundle(emulator)
    private = HybridPrivateKey.generate()
    manifest = EmulatorManifest(
        emulator=Digest.of(emulator.read_bytes()),
        size_bytes=emulator.stat().st_size,
        base=bundle.base_digest,
        plan=bundle.plan.digest,
        tokenizer=bundle.tokens.digest,
        adapter=bundle.schema,
        sealing_key=private.public.to_bytes(),
        codec=codec_id(scenario.codec),
    )
    timing = TimingConfig(connect_s=10.0, idle_s=3.0, round_s=60.0)
    world = World(emulator=emulator.read_bytes(), manifest=manifest, scenario=scenario.digest, timing=timing)
    return Stage(folder=folder, kits=kits, path=path, scenario=scenario, world=world, private=private)


@contextmanager
def logged() -> Generator[io.StringIO]:
    """Yield what a client logs meanwhile, as JSON lines."""
    stream, root = io.StringIO(), logging.getLogger()
    before, level = list(root.handlers), root.level
    logs.configure(clock=SystemClock(), stream=stream, json_lines=True, role="client")
    yield stream
    root.handlers[:] = before
    root.setLevel(level)


def events(log: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.getvalue().splitlines()]


def run(work: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(asyncio.wait_for(work, 60.0))


def sized(assignment: Assignment, world: World, *, too_many: int = 0) -> Assignment:
    """Return the assignment with the bytes that an honest coordinator grants, or ``too_many`` more."""
    (report,) = world.reports.values()
    return replace(assignment, budget_bytes=report.budget_bytes(assignment.adapter_share) + too_many)


async def direct(world: World, assigned: Assignment, *, too_many: int = 0) -> None:
    """Play coordinator and owner for one round, which is the last."""
    world.post(Directive(seq=1, kind=DirectiveKind.ROUND_OPENED, round_id=1))
    await world.until(lambda: bool(world.reports))
    world.post(Directive(seq=2, kind=DirectiveKind.ASSIGNED, round_id=1, assignment=sized(assigned, world, too_many=too_many)))
    await world.until(lambda: bool(world.completions))
    accepted = tuple(c.key.client for c in world.completions.values() if c.uploaded)
    world.post(Directive(seq=3, kind=DirectiveKind.ROUND_CLOSED, round_id=1, accepted=accepted, last=True))
    world.judge(Verdict(key=KEY, accepted=True, kept=True, reason="", score=12.5))


async def with_direction(
    work: Coroutine[Any, Any, Any], world: World, assigned: Assignment = GRANTED, *, too_many: int = 0
) -> Any:
    directing = asyncio.create_task(direct(world, assigned, too_many=too_many))
    try:
        return await work
    finally:
        directing.cancel()


def arrived(world: World, part: Part) -> bytes:
    """Return what the owner can make of all frames of a part on air."""
    payloads: dict[int, bytes] = {}
    size = 0
    for sent, outcome in world.sent.values():
        if sent.part is part:
            frame = world.frames[sent.frame]
            carried = payloads_of(frame, design=sent.design, toeplitz=sent.seed.toeplitz)
            payloads |= {index: payload for index, payload in carried.items() if index not in outcome.missing}
            size = reader_of(frame).layout.update_bytes
    return message_of(payloads, size=size)


def received(stage: Stage) -> AdapterState:
    """Return the adapter that the owner opens, with whatever the update needs; every transmission's tag holds."""
    sent = [sent for sent, _ in stage.world.sent.values()]
    assert all(0.0 < each.power <= stage.scenario.clients[0].power_max_w for each in sent)
    sealed = envelope.from_bytes(arrived(stage.world, Part.PAYLOAD))
    assert sealed.key == KEY
    secret = arrived(stage.world, Part.KEY) if envelope.needs_secret(sealed) else b""
    bundle = read_bundle(stage.folder / "bundle.safetensors")
    codec = make_codec(stage.scenario.codec, shipped=AdapterState(bundle.adapter_numpy()))
    opening = envelope.open_sealed(sealed, private=stage.private, codec=codec.id, secret=secret)
    assert all(envelope.link_holds(opening.link_key, part=t.part, design=t.design, seed=t.seed) for t in sent)
    return codec.decode(opening.payload, bundle.schema)


def with_settings(stage: Stage, *overrides: str) -> None:
    """Let client and world read the scenario with other settings."""
    stage.scenario = config.load(stage.path, overrides=overrides)
    stage.world.scenario = stage.scenario.digest


async def started(stage: Stage, owner: str, coordinator: str, air: str, *extra: str) -> asyncio.subprocess.Process:
    state, kit = str(stage.folder / "state"), str(stage.kits.folder(Role.CLIENT, CLIENT))
    arguments = ["run", str(stage.path), "--client", CLIENT, "--kit", kit, "--state", state, "--json-logs", *extra]
    arguments += ["--owner", owner, "--coordinator", coordinator, "--air", air]
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "hushtune_client",
        *arguments,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
