"""Does the whole client process take part, with each protection, and say what it did?"""

import asyncio
import io
import json
import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from hushtune_client import cli
from hushtune_client.finetune import finetune
from hushtune_client.private import own_records, own_windows
from hushtune_common.adapter import AdapterState
from hushtune_common.clock import SystemClock
from hushtune_common.codec.codec import AdapterCodec
from hushtune_common.codec.pipeline import codec_id, make_codec
from hushtune_common.crypto import envelope
from hushtune_common.errors import ChannelOutage
from hushtune_common.messages import Digest, Directive, DirectiveKind, Part, Protection, Revision, Role, Verdict
from hushtune_common.model.bundle import read_bundle
from hushtune_common.model.governor import Unpaced
from hushtune_common.model.revision import revise, write_revision
from hushtune_common.seeding import SeedTree
from tests.client_stage import (
    KEY,
    SCENARIO,
    Stage,
    arrived,
    events,
    logged,
    received,
    run,
    stage_in,
    with_direction,
    with_settings,
)
from tests.kits import Kits
from tests.loopback import CLIENT, REFUSED, assignment_of, message_of, payloads_of, reader_of
from tests.loopback_grpc import serving


@pytest.fixture(scope="module")
def kits(tmp_path_factory: pytest.TempPathFactory) -> Kits:
    return Kits(tmp_path_factory.mktemp("kits"))


@pytest.fixture
def stage(tmp_path: Path, kits: Kits) -> Stage:
    return stage_in(tmp_path, kits=kits)


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    with logged() as stream:
        yield stream


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


def farthest(state: AdapterState, start: AdapterState) -> float:
    """Return the largest change of a number."""
    return max(float(np.abs(t.astype(np.float64) - start.tensors[n]).max()) for n, t in state.tensors.items())


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
def test_what_earlier_updates_owe_moves_no_weight_further_than_the_gate_takes_or_training_went(
    stage: Stage, log: io.StringIO
) -> None:
    campaign = Campaign.of(stage, "codec.bits=1", "owner.gate.reach_max=0.1")

    async def work() -> None:
        directing = asyncio.create_task(campaign.direct(1, 2, 3))
        assert await stage.take_part() == 0
        await directing

    run(work())
    for round_id in (1, 2, 3):
        shipped = AdapterState(read_bundle(campaign.bundles[round_id]).adapter_numpy())
        received, trained = (campaign.received(round_id), campaign.trained(round_id))
        assert farthest(received, shipped) <= farthest(trained, shipped) * (1.0 + 1e-5)
    cut_off = [(e["round_id"], e["weights"] > 0, e["owed"]) for e in events(log) if e["event"] == "change_cut_off"]
    assert cut_off == [(2, True, True), (3, True, False)]


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
