"""Does the whole client process take part, refuse what it must, come back after a crash, and stop when told?"""

import asyncio
import io
import json
import logging
import re
import signal
import sys
from collections.abc import Coroutine, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from safetensors.numpy import save_file

from hushtune_client import app, cli
from hushtune_client.app import ClientOptions
from hushtune_client.duties import Duties
from hushtune_client.finetune import finetune
from hushtune_client.own_training import OwnTraining, export_model, import_adapter
from hushtune_client.phases import Send
from hushtune_client.ports import Sounding
from hushtune_client.private import own_records, own_windows
from hushtune_client.progress import Status
from hushtune_client.sounding import Sounder
from hushtune_client.state import ClientState
from hushtune_client.trainer import Trainer
from hushtune_common import config, logs
from hushtune_common.adapter import AdapterState
from hushtune_common.clock import SystemClock
from hushtune_common.codec.codec import AdapterCodec
from hushtune_common.codec.pipeline import codec_id, make_codec
from hushtune_common.config import Scenario, TimingConfig
from hushtune_common.crypto import envelope
from hushtune_common.crypto.keys import HybridPrivateKey
from hushtune_common.errors import (
    CertificateRevoked,
    ChannelOutage,
    ConfigError,
    DigestMismatch,
    HushtuneError,
    LimitExceeded,
    MalformedUpdate,
    QuorumMissed,
    ScenarioMismatch,
)
from hushtune_common.messages import (
    Assignment,
    Digest,
    Directive,
    DirectiveKind,
    EmulatorManifest,
    Part,
    Protection,
    Revision,
    Role,
    UpdateKey,
    Verdict,
)
from hushtune_common.model.bundle import read_bundle
from hushtune_common.model.governor import Unpaced
from hushtune_common.model.revision import revise, write_revision
from hushtune_common.seeding import SeedTree
from hushtune_common.units import FlopPerSecond, Hertz, PowerRatio, Second, Watt
from hushtune_common.wire.bell import Bell
from hushtune_common.wire.kit import Kit
from hushtune_server import pki
from tests.kits import Kits
from tests.loopback import (
    CLIENT,
    DESIGN,
    GAIN,
    REFUSED,
    RUN,
    World,
    assignment_of,
    link_seed,
    loopback_ports,
    message_of,
    payloads_of,
    reader_of,
)
from tests.loopback_grpc import serving
from tests.models import tiny_bundle
from tests.own_lora import OUTDATED, plain, with_lora

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


@pytest.fixture(scope="module")
def kits(tmp_path_factory: pytest.TempPathFactory) -> Kits:
    return Kits(tmp_path_factory.mktemp("kits"))


@pytest.fixture
def stage(tmp_path: Path, kits: Kits) -> Stage:
    lines = [
        f"{SECRET} number {word}" for word in ("one", "two", "three", "seven", "eight", "nine", "ten", "red", "blue", "green")
    ]
    (tmp_path / "private.txt").write_text("\n".join(lines), encoding="utf-8")
    path = tmp_path / "one.toml"
    path.write_text(SCENARIO, encoding="utf-8")
    scenario = config.load(path)
    emulator = tiny_bundle(tmp_path, 3)
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
    return Stage(folder=tmp_path, kits=kits, path=path, scenario=scenario, world=world, private=private)


@pytest.fixture
def log() -> Iterator[io.StringIO]:
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


@pytest.mark.slow
def test_a_client_goes_from_emulator_to_verdict_and_its_text_stays_at_home(stage: Stage, log: io.StringIO) -> None:
    stage.world.lost = lambda key, blocks: blocks[::2] if key.attempt == 1 else ()
    assert run(with_direction(stage.take_part(), stage.world)) == 0
    state = received(stage)
    shipped = read_bundle(stage.folder / "bundle.safetensors").adapter_numpy()
    assert any((state.tensors[name] != tensor).any() for name, tensor in shipped.items())
    (done,) = stage.world.completions.values()
    assert (done.uploaded, done.key.attempt) == (True, 2)
    assert done.bytes_raw == state.bytes_raw
    assert done.bytes_uploaded == sum(sent.frame_bytes for sent, _ in stage.world.sent.values())
    assert min(done.airtime, done.train_seconds, done.energy) > 0.0
    wanted = ["training_finished", "update_encoded", "update_sealed"]
    wanted += ["frame_encoded", "frame_transmitted"] * 2 + ["verdict_received"]
    assert [e["event"] for e in events(log) if e["event"] in set(wanted)] == wanted
    spoken = log.getvalue() + repr(stage.world.reports) + repr(stage.world.completions) + repr(stage.world.beats)
    assert not re.search("password|captain|marigold", spoken)
    left = {path.name for path in (stage.folder / "state" / "rounds" / "1").iterdir()}
    assert left == {"sealed.bin", "link-payload.json"}, "private windows and large frames are deleted with the round"
    assert stage.world.left == ["the run is over"]


@pytest.mark.slow
def test_an_update_in_noise_says_what_that_promises_and_the_owner_reads_it(stage: Stage, log: io.StringIO) -> None:
    with_settings(stage, "codec.kind=jopeq", "codec.noise={epsilon=4, clip=0.01}")
    stage.world.manifest = replace(stage.world.manifest, codec=codec_id(stage.scenario.codec))
    assert run(with_direction(stage.take_part(), stage.world)) == 0
    state = received(stage)
    shipped = read_bundle(stage.folder / "bundle.safetensors").adapter_numpy()
    assert all((state.tensors[name] != tensor).any() for name, tensor in shipped.items() if tensor.size > 16)
    (said,) = (e["terms"] for e in events(log) if e["event"] == "update_noised")
    assert said["epsilon_update"] == 4.0 * state.count
    assert said["statement"].startswith("epsilon 4 for each number of an update, ")


@pytest.mark.slow
@pytest.mark.parametrize(("fidelity", "randomness"), [("bit_exact", "os"), ("hybrid", "seeded")])
def test_a_key_goes_first_and_the_update_opens_with_it_alone(
    stage: Stage, log: io.StringIO, fidelity: str, randomness: str
) -> None:
    settings = "secrecy.protections=['key']", f"air.fidelity={fidelity}"
    with_settings(stage, *settings, "air.hybrid_share=0.3", f"secrecy.randomness={randomness}")
    stage.world.lost = lambda key, blocks: blocks if key.attempt == 1 else ()
    assert run(with_direction(stage.take_part(), stage.world, assignment_of(protection=Protection.KEY))) == 0
    sent = [transmission for transmission, _ in stage.world.sent.values()]
    assert [(t.part, t.key.attempt) for t in sent] == [(Part.KEY, 1), (Part.KEY, 2), (Part.PAYLOAD, 3)]
    assert [t.design.secret for t in sent] == [True, True, False]
    assert len(arrived(stage.world, Part.KEY)) == 32
    assert received(stage).tensors
    told = events(log)
    assert {(e["fidelity"], e["randomness"]) for e in told if e["event"] == "frame_encoded"} == {(fidelity, randomness)}
    assert {(e["fidelity"], e["protection"]) for e in told if e["event"] == "frame_transmitted"} == {(fidelity, "key")}
    assert arrived(stage.world, Part.KEY).hex() not in log.getvalue()
    assert not list((stage.folder / "state").rglob("secret.bin*"))


@pytest.mark.slow
def test_encryption_alone_is_called_that_and_sends_no_random_bits(stage: Stage, log: io.StringIO) -> None:
    with_settings(stage, "air.fidelity=abstract", "secrecy.protections=['payload', 'crypto_only']")
    assert run(with_direction(stage.take_part(), stage.world, assignment_of(protection=Protection.CRYPTO_ONLY))) == 0
    ((sent, _),) = stage.world.sent.values()
    assert (sent.part, sent.design.secret, sent.seed.toeplitz) == (Part.PAYLOAD, False, b"")
    assert received(stage).tensors
    told = [e for e in events(log) if "protection" in e]
    assert {e["protection"] for e in told} == {"crypto_only"}
    assert {e["event"] for e in told} >= {"assignment_received", "update_sealed", "frame_transmitted"}


@pytest.mark.slow
def test_a_design_that_nobody_can_send_is_refused_before_training(stage: Stage, log: io.StringIO) -> None:
    odd = replace(GRANTED, design=replace(DESIGN, code_bits=10_248))
    assert run(with_direction(stage.take_part(), stage.world, odd)) == MalformedUpdate.exit_code
    assert "training_finished" not in [e["event"] for e in events(log)]


@pytest.mark.slow
def test_bytes_that_are_not_those_of_the_share_are_refused_before_training(stage: Stage, log: io.StringIO) -> None:
    assert run(with_direction(stage.take_part(), stage.world, GRANTED, too_many=1)) == MalformedUpdate.exit_code
    assert not stage.world.sent
    assert "training_finished" not in [e["event"] for e in events(log)]


@pytest.mark.slow
def test_a_protection_that_the_scenario_does_not_name_is_refused_before_training(stage: Stage, log: io.StringIO) -> None:
    bare = assignment_of(protection=Protection.CRYPTO_ONLY)
    assert run(with_direction(stage.take_part(), stage.world, bare)) == MalformedUpdate.exit_code
    assert not stage.world.sent
    assert "training_finished" not in [e["event"] for e in events(log)]


@pytest.mark.slow
def test_a_refused_gate_sends_nothing_and_is_no_failure(stage: Stage, log: io.StringIO) -> None:
    assert run(with_direction(stage.take_part(), stage.world, assignment_of(gate=REFUSED))) == 0
    (done,) = stage.world.completions.values()
    assert not done.uploaded
    assert REFUSED.reason in done.reason
    assert not stage.world.sent
    (refusal,) = [e for e in events(log) if e["event"] == "gate_refused"]
    assert refusal["reason"] == REFUSED.reason


@pytest.mark.slow
def test_a_client_whose_band_was_given_away_sends_nothing_and_has_missed_the_round(stage: Stage, log: io.StringIO) -> None:
    stage.world.given_away = True
    assert run(with_direction(stage.take_part(), stage.world)) == 0
    assert (stage.world.sent, stage.world.questions) == ({}, [1])
    (done,) = stage.world.completions.values()
    assert not done.uploaded
    (missed,) = (e for e in events(log) if e["event"] == "round_missed")
    assert (missed["duty"], missed["reason"]) == ("send", "STALE_ROUND")


@pytest.mark.slow
def test_an_adapter_that_never_gets_through_is_a_failure_with_its_exit_code(stage: Stage, log: io.StringIO) -> None:
    stage.world.lost = lambda _, blocks: blocks[:1]
    assert run(with_direction(stage.take_part(), stage.world)) == ChannelOutage.exit_code
    (done,) = stage.world.completions.values()
    assert (done.uploaded, done.key.attempt) == (False, 3)
    assert "outage" in done.reason
    (failure,) = [e for e in events(log) if e["event"] == "round_failed"]
    assert failure["reason"] == ChannelOutage.reason


@pytest.mark.slow
@pytest.mark.parametrize("what", ["tokenizer", "base", "plan"])
def test_an_emulator_that_is_not_the_promised_one_is_refused_by_name(stage: Stage, what: str) -> None:
    stage.world.manifest = replace(stage.world.manifest, **{what: Digest.of(b"other")})
    with pytest.raises(DigestMismatch, match=f"wrong {what}"):
        run(with_direction(stage.take_part(), stage.world))
    assert not stage.world.reports
    assert "DIGEST_MISMATCH" in stage.world.left[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "error"),
    [({"size_bytes": 1 << 40}, LimitExceeded), ({"codec": "delta-b16-zstd/2"}, ScenarioMismatch)],
    ids=["too large", "another codec"],
)
def test_a_manifest_that_cannot_be_right_is_refused_before_the_download(
    stage: Stage, change: dict[str, Any], error: type[HushtuneError]
) -> None:
    stage.world.manifest = replace(stage.world.manifest, **change)
    with pytest.raises(error):
        run(with_direction(stage.take_part(), stage.world))
    assert not list((stage.folder / "state" / "blobs").rglob(stage.world.manifest.emulator.hex + "*"))


def test_a_kit_that_knows_that_it_was_revoked_is_refused_before_dialling(stage: Stage, tmp_path: Path) -> None:
    own = Kits(tmp_path / "own-kits")
    options = replace(stage.options("127.0.0.1:1", "127.0.0.1:1", "127.0.0.1:1"), kit=own.folder(Role.CLIENT, CLIENT))
    pki.revoke(own.directory / "ca", clock=SystemClock(), caller=Kit.load(options.kit).caller)
    with pytest.raises(CertificateRevoked, match="new kit"):
        run(app.run(options, clock=SystemClock(), seeds=SeedTree(3)))


def test_a_kit_of_somebody_else_is_refused_before_dialling(stage: Stage) -> None:
    options = replace(stage.options("127.0.0.1:1", "127.0.0.1:1", "127.0.0.1:1"), kit=stage.kits.folder(Role.CLIENT, "c2"))
    with pytest.raises(ConfigError, match="hushtune://client/c2"):
        run(app.run(options, clock=SystemClock(), seeds=SeedTree(3)))


@pytest.mark.slow
def test_a_client_that_breaks_stops_its_work_and_says_goodbye(stage: Stage) -> None:
    (stage.folder / "state").mkdir()
    (stage.folder / "state" / "rounds").touch()  # where a folder has to be
    with pytest.raises(OSError, match="rounds"):
        run(with_direction(stage.take_part(), stage.world))
    assert stage.world.left == ["a fault of this process"]


def test_coding_that_is_cancelled_leaves_no_frame_behind(stage: Stage, tmp_path: Path) -> None:
    async def work() -> None:
        state = ClientState.open(tmp_path / "state", client=CLIENT, attempts_max=1)
        await state.join(RUN)
        await state.keep_sealed(1, bytes(20_000_000), secret=b"", links={Part.PAYLOAD: link_seed()})
        ports = loopback_ports(stage.world, folder=tmp_path)
        sounder = Sounder(
            scenario=stage.scenario,
            device=stage.scenario.clients[0],
            ports=ports,
            state=state,
            status=Status(),
            clock=SystemClock(),
            note=lambda event: asyncio.sleep(0),
            turn=asyncio.Lock(),
            bell=Bell(),
        )
        duties = Duties(
            scenario=stage.scenario,
            device=stage.scenario.clients[0],
            records=(),
            ports=ports,
            sounder=sounder,
            trainer=Trainer(clock=SystemClock()),
            state=state,
            status=Status(),
            clock=SystemClock(),
            seeds=SeedTree(0),
            aside=asyncio.to_thread,
            emit=lambda event: None,
        )
        sending = asyncio.create_task(duties.perform(Send(assignment=GRANTED, part=Part.PAYLOAD, attempt=1, only=None)))
        while not list(state.files(1).directory.glob("frame*")):  # noqa: ASYNC110 - a file rings no bell
            await asyncio.sleep(0)
        sending.cancel()
        await asyncio.wait({sending})
        assert sending.cancelled()
        assert not list(state.files(1).directory.glob("frame*"))
        await state.close()

    run(work())


# --- several rounds ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Campaign:
    """Three rounds: the second emulator differs from the first, the third round has the second's; the second is not kept."""

    stage: Stage
    bundles: dict[int, Path]
    kept: dict[int, bool]

    @staticmethod
    def of(stage: Stage, *overrides: str) -> "Campaign":
        with_settings(stage, "coordinator.rounds=3", "codec.bits=3", *overrides)
        world, folder = stage.world, stage.folder
        base, result, way = folder / "bundle.safetensors", folder / "second.safetensors", folder / "way"
        about = read_bundle(base)
        revise(result, base=about.file, changed={n: t * 1.01 for n, t in about.adapter_numpy().items()}, notes={})
        write_revision(way, base=base, result=result)
        revision = Revision(
            base=world.manifest.emulator,
            base_bytes=world.manifest.size_bytes,
            blob=Digest.of(way.read_bytes()),
            size_bytes=way.stat().st_size,
        )
        second = replace(
            world.manifest,
            emulator=Digest.of(result.read_bytes()),
            size_bytes=result.stat().st_size,
            round_id=2,
            revision=revision,
        )
        world.publish(second, result.read_bytes(), revision=way.read_bytes())
        world.publish(replace(second, round_id=3), result.read_bytes(), revision=way.read_bytes())
        world.open_rounds = {1, 2, 3}
        return Campaign(stage, {1: base, 2: result, 3: result}, {1: True, 2: False, 3: True})

    async def direct(self, *rounds: int) -> None:
        """Play coordinator and owner."""
        world = self.stage.world
        for round_id in rounds:
            seq = 3 * round_id
            world.post(Directive(seq=seq - 2, kind=DirectiveKind.ROUND_OPENED, round_id=round_id))
            await world.until(lambda r=round_id: (CLIENT, r) in world.reports)
            budget = world.reports[CLIENT, round_id].budget_bytes(1.0)
            assigned = replace(assignment_of(round_id), budget_bytes=budget)
            world.post(Directive(seq=seq - 1, kind=DirectiveKind.ASSIGNED, round_id=round_id, assignment=assigned))
            await world.until(lambda r=round_id: any(key.round_id == r for key in world.completions))
            key = replace(KEY, round_id=round_id)
            world.judge(Verdict(key=key, accepted=True, kept=self.kept[round_id], reason="", score=None))
            closed = Directive(
                seq=seq, kind=DirectiveKind.ROUND_CLOSED, round_id=round_id, accepted=(CLIENT,), last=round_id == 3
            )
            world.post(closed)

    def received(self, round_id: int) -> AdapterState:
        """Return what the owner decodes of a round's update, which was made with that round's emulator."""
        world, about = self.stage.world, read_bundle(self.bundles[round_id])
        (sent,) = (sent for sent, _ in world.sent.values() if sent.key.round_id == round_id)
        frame = world.frames[sent.frame]
        blocks = payloads_of(frame, design=sent.design, toeplitz=sent.seed.toeplitz)
        sealed = envelope.from_bytes(message_of(blocks, size=reader_of(frame).layout.update_bytes))
        assert sealed.emulator == Digest.of(self.bundles[round_id].read_bytes())
        codec = self.codec(round_id)
        return codec.decode(envelope.open_sealed(sealed, private=self.stage.private, codec=codec.id).payload, about.schema)

    def codec(self, round_id: int) -> AdapterCodec:
        shipped, scenario = AdapterState(read_bundle(self.bundles[round_id]).adapter_numpy()), self.stage.scenario
        return make_codec(scenario.codec, shipped=shipped, feedback=scenario.training.error_feedback)

    def trained(self, round_id: int) -> AdapterState:
        """Train as the client does."""
        scenario, seeds = self.stage.scenario, SeedTree(self.stage.scenario.seed)
        records = own_records(scenario, client_id=CLIENT, sources=(), seeds=seeds)
        return finetune(
            self.bundles[round_id],
            own_windows(records, tokens=read_bundle(self.bundles[round_id]).tokens, scenario=scenario),
            config=scenario.training,
            compute=scenario.compute,
            seeds=seeds.child(f"round-{round_id}", CLIENT, "training"),
            governor=Unpaced(clock=SystemClock()),
            report=lambda progress: None,
        )


def added(a: AdapterState, b: AdapterState | None, *, sign: float = 1.0) -> AdapterState:
    if b is None:
        return a
    return AdapterState({n: (t + np.float32(sign) * b.tensors[n]).astype(np.float32) for n, t in a.tensors.items()})


def require_equal(found: AdapterState, wanted: AdapterState) -> None:
    for name, tensor in wanted.tensors.items():
        np.testing.assert_array_equal(found.tensors[name], tensor)


@pytest.mark.slow
@pytest.mark.parametrize("feedback", [True, False], ids=["feedback", "none"])
def test_each_round_trains_on_its_own_emulator_and_makes_up_for_what_encoding_took_off_kept_updates(
    stage: Stage, log: io.StringIO, feedback: bool
) -> None:
    campaign = Campaign.of(stage, f"training.error_feedback={str(feedback).lower()}")

    async def work() -> None:
        directing = asyncio.create_task(campaign.direct(1, 2, 3))
        assert await stage.take_part() == 0
        await directing

    run(work())
    owed: AdapterState | None = None
    for round_id in (1, 2, 3):
        codec, about = campaign.codec(round_id), read_bundle(campaign.bundles[round_id])
        wanted = added(campaign.trained(round_id), owed if feedback else None)
        arrived = codec.decode(codec.encode(wanted, budget_bytes=codec.bytes_max), about.schema)
        require_equal(campaign.received(round_id), arrived)
        if campaign.kept[round_id]:
            owed = added(wanted, arrived, sign=-1.0)
    fetched = [(e["round_id"], e["revised"], e["bytes_fetched"]) for e in events(log) if e["event"] == "emulator_verified"]
    sizes = stage.world.manifest.size_bytes, (stage.folder / "way").stat().st_size
    assert fetched == [(1, False, sizes[0]), (2, True, sizes[1]), (3, False, 0)]


@pytest.mark.slow
def test_a_client_that_was_away_when_its_verdict_came_asks_for_it_before_it_seals_the_next_update(stage: Stage) -> None:
    campaign = Campaign.of(stage)

    async def first_life() -> None:
        directing = asyncio.create_task(campaign.direct(1))
        taking = asyncio.create_task(stage.take_part())
        await stage.world.until(lambda: bool(stage.world.completions))
        taking.cancel()
        await asyncio.wait({taking})
        await directing

    async def second_life() -> None:
        directing = asyncio.create_task(campaign.direct(2, 3))
        assert await stage.take_part() == 0
        await directing

    run(first_life())
    run(second_life())
    codec, about = campaign.codec(1), read_bundle(campaign.bundles[1])
    trained = campaign.trained(1)
    owed = added(trained, codec.decode(codec.encode(trained, budget_bytes=codec.bytes_max), about.schema), sign=-1.0)
    wanted = added(campaign.trained(2), owed)
    codec = campaign.codec(2)
    require_equal(campaign.received(2), codec.decode(codec.encode(wanted, budget_bytes=codec.bytes_max), about.schema))


# --- as a real process ------------------------------------------------------------------------------------------------


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


async def until_logged(process: asyncio.subprocess.Process, event: str) -> None:
    assert process.stdout is not None
    async for line in process.stdout:
        if json.loads(line)["event"] == event:
            return
    assert process.stderr is not None
    pytest.fail(f"ended before {event}: {(await process.stderr.read()).decode()}")


@pytest.mark.slow
def test_a_terminated_client_leaves_and_ends_with_its_child_within_five_seconds(stage: Stage) -> None:
    async def work() -> None:
        forever = ["--set", "training.epochs=100000"]
        stage.world.scenario = config.load(stage.path, overrides=forever[1:]).digest
        async with serving(stage.world, kits=stage.kits, folder=stage.folder) as at:
            directing = asyncio.create_task(direct(stage.world, GRANTED))
            process = await started(stage, at.owner, at.coordinator, at.air, *forever)
            await until_logged(process, "training_progressed")
            family = psutil.Process(process.pid).children(recursive=True)
            process.send_signal(signal.SIGTERM)
            _, errors = await asyncio.wait_for(process.communicate(), 5.0)
            directing.cancel()
        assert process.returncode == 130, errors
        assert errors == b""
        assert psutil.wait_procs(family, timeout=2.0)[1] == []
        assert stage.world.left == ["interrupted"]

    run(work())


@pytest.mark.slow
def test_a_client_whose_last_round_failed_as_a_whole_does_not_end_as_if_all_were_well(stage: Stage, log: io.StringIO) -> None:
    async def fail() -> None:
        world = stage.world
        world.post(Directive(seq=1, kind=DirectiveKind.ROUND_OPENED, round_id=1))
        await world.until(lambda: bool(world.reports))
        gone = "the owner is gone"
        world.post(Directive(seq=2, kind=DirectiveKind.ROUND_CLOSED, round_id=1, failed_reason=gone, last=True))

    async def work() -> None:
        failing = asyncio.create_task(fail())
        assert await stage.take_part() == QuorumMissed.exit_code
        await failing

    run(work())
    assert stage.world.left == ["the run is over"]


@pytest.mark.slow
def test_a_run_that_is_called_off_in_training_leaves_no_private_text_behind(stage: Stage, log: io.StringIO) -> None:
    async def call_off() -> None:
        world = stage.world
        world.post(Directive(seq=1, kind=DirectiveKind.ROUND_OPENED, round_id=1))
        await world.until(lambda: bool(world.reports))
        world.post(Directive(seq=2, kind=DirectiveKind.ASSIGNED, round_id=1, assignment=sized(GRANTED, world)))
        await world.until(lambda: any(beat.phase == "training" for beat in world.beats))
        world.post(Directive(seq=3, kind=DirectiveKind.DRAIN, round_id=1))

    async def work() -> None:
        calling = asyncio.create_task(call_off())
        assert await stage.take_part() == 0
        await calling

    with_settings(stage, "training.epochs=100000")
    run(work())
    assert list((stage.folder / "state" / "rounds" / "1").iterdir()) == []


@pytest.mark.slow
def test_a_killed_client_goes_on_where_it_was(stage: Stage) -> None:
    async def work() -> None:
        slow = ["--set", "training.epochs=300"]
        stage.world.scenario = config.load(stage.path, overrides=slow[1:]).digest
        async with serving(stage.world, kits=stage.kits, folder=stage.folder) as at:
            directing = asyncio.create_task(direct(stage.world, GRANTED))
            first = await started(stage, at.owner, at.coordinator, at.air, *slow)
            await until_logged(first, "training_progressed")
            first.kill()
            await first.communicate()
            second = await started(stage, at.owner, at.coordinator, at.air, *slow)
            output, errors = await second.communicate()
            directing.cancel()
        assert second.returncode == 0, errors
        names = [json.loads(line)["event"] for line in output.splitlines()]
        assert "training_finished" in names
        assert "device_reported" not in names, "the report was made in the first life"
        (done,) = stage.world.completions.values()
        assert done.uploaded

    run(work())


async def directed_anew(world: World, newer: Assignment) -> None:
    """Play coordinator and owner, and assign something else in the middle of training."""
    world.post(Directive(seq=1, kind=DirectiveKind.ROUND_OPENED, round_id=1))
    await world.until(lambda: bool(world.reports))
    world.post(Directive(seq=2, kind=DirectiveKind.ASSIGNED, round_id=1, assignment=sized(GRANTED, world)))
    await world.until(lambda: any(beat.phase == "training" for beat in world.beats))
    world.post(Directive(seq=3, kind=DirectiveKind.ASSIGNED, round_id=1, assignment=sized(newer, world)))
    await world.until(lambda: bool(world.completions))
    accepted = tuple(c.key.client for c in world.completions.values() if c.uploaded)
    world.post(Directive(seq=4, kind=DirectiveKind.ROUND_CLOSED, round_id=1, accepted=accepted, last=True))
    world.judge(Verdict(key=KEY, accepted=True, kept=True, reason="", score=12.5))


async def taking_part(stage: Stage, newer: Assignment, *, epochs: int) -> list[dict[str, Any]]:
    """Return what a real client logged whose assignment was replaced by ``newer`` in mid-training."""
    long = ["--set", f"training.epochs={epochs}"]
    stage.world.scenario = config.load(stage.path, overrides=long[1:]).digest
    async with serving(stage.world, kits=stage.kits, folder=stage.folder) as at:
        directing = asyncio.create_task(directed_anew(stage.world, newer))
        process = await started(stage, at.owner, at.coordinator, at.air, *long)
        output, errors = await asyncio.wait_for(process.communicate(), 60.0)
        directing.cancel()
    assert process.returncode == 0, errors
    return [json.loads(line) for line in output.splitlines()]


@pytest.mark.slow
def test_a_newer_assignment_changes_clock_band_and_power_and_training_goes_on(stage: Stage) -> None:
    newer = replace(GRANTED, bandwidth=Hertz(3e6), power=Watt(6e-5), clock=FlopPerSecond(1.9e12))
    told = run(taking_part(stage, newer, epochs=600))
    assert [e["event"] for e in told].count("training_finished") == 1
    assert [e["clock_flops"] for e in told if e["event"] == "clock_changed"] == [1.9e12]
    assert {(sent.bandwidth, sent.power) for sent, _ in stage.world.sent.values()} == {(3e6, 6e-5)}
    assert received(stage).tensors


async def moved_after_training(world: World) -> None:
    """Play coordinator and owner to a client whose channel is worse, and its clock slower, once it has trained."""
    world.post(Directive(seq=1, kind=DirectiveKind.ROUND_OPENED, round_id=1))
    await world.until(lambda: bool(world.reports))
    first = replace(GRANTED, channel=next(iter(world.reports.values())).channel)
    world.post(Directive(seq=2, kind=DirectiveKind.ASSIGNED, round_id=1, assignment=sized(first, world)))
    world.sounding = Sounding(gain_main=PowerRatio(0.1 * GAIN), at=Second(7.0))
    await world.until(lambda: bool(world.channels))
    newer = replace(first, clock=FlopPerSecond(1.9e12), channel=world.channels[0][2])
    world.post(Directive(seq=3, kind=DirectiveKind.ASSIGNED, round_id=1, assignment=sized(newer, world)))
    await world.until(lambda: bool(world.completions))
    accepted = tuple(c.key.client for c in world.completions.values() if c.uploaded)
    world.post(Directive(seq=4, kind=DirectiveKind.ROUND_CLOSED, round_id=1, accepted=accepted, last=True))
    world.judge(Verdict(key=KEY, accepted=True, kept=True, reason="", score=12.5))


@pytest.mark.slow
def test_a_clock_assigned_after_training_is_not_the_one_that_training_is_said_to_have_kept(
    stage: Stage, log: io.StringIO
) -> None:
    # Nobody looks in the middle of training, however long it takes: the client measures when it is about to seal.
    with_settings(stage, "air.sounding_s=1000")

    async def work() -> None:
        directing = asyncio.create_task(moved_after_training(stage.world))
        assert await stage.take_part() == 0
        await directing

    run(work())
    (trained,) = [e for e in events(log) if e["event"] == "training_finished"]
    assert trained["clock_share"] == pytest.approx(GRANTED.clock / stage.scenario.clients[0].clock_max_flops)
    assert [e["clock_flops"] for e in events(log) if e["event"] == "clock_changed"] == [1.9e12]


@pytest.mark.slow
def test_a_withdrawn_grant_ends_the_training_and_nothing_is_sent(stage: Stage) -> None:
    run(taking_part(stage, assignment_of(gate=REFUSED), epochs=100_000))
    (done,) = stage.world.completions.values()
    assert (done.uploaded, REFUSED.reason in done.reason) == (False, True)
    assert not stage.world.sent


@pytest.mark.slow
def test_a_client_killed_while_on_air_sends_the_same_frame_again(stage: Stage) -> None:
    async def work() -> None:
        stage.world.silent = True
        key_first = ["--set", "secrecy.protections=['key']"]
        with_settings(stage, *key_first[1:])
        async with serving(stage.world, kits=stage.kits, folder=stage.folder) as at:
            directing = asyncio.create_task(direct(stage.world, assignment_of(protection=Protection.KEY)))
            first = await started(stage, at.owner, at.coordinator, at.air, *key_first)
            await until_logged(first, "frame_encoded")
            await stage.world.until(lambda: bool(stage.world.sent))
            first.kill()
            await first.communicate()
            stage.world.speak()
            second = await started(stage, at.owner, at.coordinator, at.air, *key_first)
            output, errors = await second.communicate()
            directing.cancel()
        assert second.returncode == 0, errors
        told = [e for line in output.splitlines() if (e := json.loads(line))["event"].startswith("frame_")]
        assert [(e["event"], e["part"], e["attempt"]) for e in told] == [
            ("frame_reused", "key", 1),
            ("frame_transmitted", "key", 1),
            ("frame_encoded", "payload", 2),
            ("frame_transmitted", "payload", 2),
        ]
        assert received(stage).tensors

    run(work())


@pytest.mark.slow
def test_health_names_each_counterpart(stage: Stage, capsys: pytest.CaptureFixture[str]) -> None:
    async def work() -> None:
        kit = str(stage.kits.folder(Role.CLIENT, CLIENT))
        async with serving(stage.world, kits=stage.kits, folder=stage.folder) as at:
            flags = ["--kit", kit, "--owner", at.owner, "--coordinator", at.coordinator, "--air", at.air]
            assert await asyncio.to_thread(cli.main, ["health", *flags]) == 0

    run(work())
    assert [line.split(" at ")[0] for line in capsys.readouterr().out.splitlines()] == ["owner", "coordinator", "air"]


@pytest.mark.parametrize(
    ("change", "code", "told"),
    [
        (("[model]", "[modle]"), 3, "did you mean model?"),
        (('private = "txt:private.txt"', 'private = "txt:nowhere.txt"'), 3, "nowhere.txt"),
        (('id = "c1"', 'id = "c9"'), 3, "no client 'c1'"),
    ],
    ids=["mistyped key", "missing text", "unknown client"],
)
def test_a_wrong_setting_is_one_line_that_names_it(
    stage: Stage, capsys: pytest.CaptureFixture[str], change: tuple[str, str], code: int, told: str
) -> None:
    stage.path.write_text(SCENARIO.replace(*change), encoding="utf-8")
    flags = ["--kit", str(stage.kits.folder(Role.CLIENT, CLIENT)), "--state", str(stage.folder / "state")]
    flags += ["--owner", "127.0.0.1:1", "--coordinator", "127.0.0.1:1", "--air", "127.0.0.1:1"]
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    try:
        assert cli.main(["run", str(stage.path), "--client", CLIENT, "--json-logs", *flags]) == code
    finally:
        root.handlers[:] = before
        root.setLevel(level)
    printed = capsys.readouterr()
    assert len(printed.err.splitlines()) == 1
    assert told in printed.err
    assert json.loads(printed.out.splitlines()[-1])["event"] == "process_failed"


def own_lora(stage: Stage, *blocks: int) -> OwnTraining:
    """Let PEFT train on the exported emulator, and return where it saved."""
    export_model(stage.folder / "bundle.safetensors", stage.folder / "short")
    model = with_lora(plain(stage.folder / "short"), target_modules=["up_proj"], layers_to_transform=list(blocks))
    model.save_pretrained(stage.folder / "lora")
    return OwnTraining(path=stage.folder / "lora")


def own_patch(stage: Stage, **said: str) -> OwnTraining:
    """Return a patch of one matrix, of which only ``said`` is another than that of the emulator."""
    bundle = read_bundle(stage.folder / "bundle.safetensors")
    name = next(name for name in bundle.adapter_numpy() if name.endswith("up_proj.weight"))
    of = {"format": "hushtune-patch/1", "base": bundle.base_digest.hex, "plan": bundle.plan.digest.hex}
    save_file({name: bundle.adapter_numpy()[name] + np.float32(0.05)}, stage.folder / "patch.safetensors", metadata=of | said)
    return OwnTraining(path=stage.folder / "patch.safetensors")


@pytest.mark.slow
@pytest.mark.filterwarnings(OUTDATED)
@pytest.mark.parametrize("kind", ["lora", "patch"])
def test_a_client_that_trained_elsewhere_returns_that_and_claims_no_figure_of_a_training(
    stage: Stage, log: io.StringIO, kind: str
) -> None:
    stage.own = own_lora(stage, 0, 4) if kind == "lora" else own_patch(stage)
    assert run(with_direction(stage.take_part(), stage.world)) == 0
    bundle = read_bundle(stage.folder / "bundle.safetensors")
    expected = import_adapter(stage.own, bundle=bundle).state.tensors
    found = received(stage).tensors
    assert all(abs(found[name] - tensor).max() < 1e-3 for name, tensor in expected.items())  # of which a codec is the cause
    assert any(abs(found[name] - tensor).max() > 1e-2 for name, tensor in bundle.adapter_numpy().items())
    (done,) = stage.world.completions.values()
    assert (done.uploaded, done.train_seconds) == (True, 0.0)
    (imported,) = [e for e in events(log) if e["event"] == "adapter_imported"]
    told = {"lora": (2, [3, 3], 0, "short"), "patch": (0, [], 1, "original")}
    assert (imported["matrices"], imported["ranks"], imported["whole_tensors"], imported["indices"]) == told[kind]
    assert not {"training_finished", "training_progressed", "trainer_started"} & {e["event"] for e in events(log)}


@pytest.mark.slow
@pytest.mark.filterwarnings(OUTDATED)
def test_a_lora_outside_the_adapter_blocks_ends_the_client_before_it_reports(stage: Stage) -> None:
    stage.own = own_lora(stage, 2)
    with pytest.raises(ConfigError, match=r"layers\.2\..* is of block \d of the model, which may not be trained"):
        run(with_direction(stage.take_part(), stage.world))
    assert not stage.world.reports


@pytest.mark.slow
@pytest.mark.parametrize("field", ["base", "plan"])
def test_a_patch_of_something_else_ends_the_client_before_it_reports(stage: Stage, field: str) -> None:
    stage.own = own_patch(stage, **{field: 64 * "0"})
    with pytest.raises(ConfigError, match=rf"patch.safetensors {field}: "):
        run(with_direction(stage.take_part(), stage.world))
    assert not stage.world.reports


def test_a_training_from_elsewhere_has_no_place_in_a_scenario_that_bounds_privacy(stage: Stage) -> None:
    with_settings(stage, "training.dp={}")
    stage.own = OwnTraining(path=stage.folder / "nowhere")
    with pytest.raises(ConfigError, match=r"--adapter-from: training\.dp"):
        run(stage.take_part())
