"""Do the gateway over gRPC and the stand-in in process keep the same laws of the client's three ports?"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hushtune_client.gateway import Addresses, Manners, open_ports
from hushtune_client.ports import Ports, Sounding
from hushtune_client.telemetry import device_report
from hushtune_common.clock import SystemClock
from hushtune_common.config import ClientConfig, Position, TimingConfig
from hushtune_common.errors import DigestMismatch, MalformedUpdate, PeerLost, Replayed, ScenarioMismatch, StaleRound
from hushtune_common.link.fidelity import Fidelity
from hushtune_common.link.frame import frame_parts
from hushtune_common.link.modular import BlockCode
from hushtune_common.link.randomness import OsRandomness
from hushtune_common.messages import (
    Beat,
    ClientId,
    ClientReport,
    Completion,
    Digest,
    Directive,
    DirectiveKind,
    EmulatorManifest,
    Part,
    Protection,
    Revision,
    Role,
    Transmission,
    UpdateKey,
    Verdict,
)
from hushtune_common.metrics.board import Board
from hushtune_common.model.bundle import read_bundle
from hushtune_common.model.revision import revise, write_revision
from hushtune_common.secagg.messages import PARCEL_BYTES, Advertisement, Deal, Opening, Roster, Survivors, Vow
from hushtune_common.seeding import SeedTree
from hushtune_common.store.blobs import BlobStore
from hushtune_common.units import Hertz, Joule, PowerRatio, Second, Watt
from tests.kits import Kits
from tests.loopback import (
    CLIENT,
    DESIGN,
    GAIN,
    REFUSED,
    RUN,
    SCENARIO,
    World,
    assignment_of,
    link_seed,
    loopback_ports,
    manifest_of,
)
from tests.loopback_grpc import grpc_ports
from tests.models import tiny_bundle

Open = Callable[..., AbstractAsyncContextManager[Ports]]
KEY = UpdateKey(run=RUN, round_id=1, client=CLIENT, attempt=1)
UPDATE = bytes(range(256)) * 20


def frame_of(update: bytes, *, part: Part = Part.PAYLOAD) -> bytes:
    count = -(-len(update) // DESIGN.payload_bytes)
    seed = link_seed()
    pieces = frame_parts(
        update,
        part=part,
        design=DESIGN,
        code=BlockCode(DESIGN, toeplitz=seed.toeplitz),
        fidelity=Fidelity.ABSTRACT,
        coded=np.zeros(count, dtype=np.bool_),
        randomness=OsRandomness(),
    )
    return b"".join(pieces)


FRAME = frame_of(UPDATE)
COMPLETION = Completion(
    key=KEY,
    uploaded=True,
    reason="",
    bytes_raw=100,
    bytes_uploaded=50,
    airtime=Second(1.5),
    train_seconds=Second(2.5),
    energy=Joule(3.5),
)


@pytest.fixture(scope="module")
def kits(tmp_path_factory: pytest.TempPathFactory) -> Kits:
    return Kits(tmp_path_factory.mktemp("kits"))


@pytest.fixture(params=["in process", "over gRPC", "over gRPC, watched"])
def ports_to(request: pytest.FixtureRequest, kits: Kits, tmp_path: Path) -> Open:
    @asynccontextmanager
    async def in_process(world: World, scenario: Digest = SCENARIO) -> AsyncGenerator[Ports]:
        yield loopback_ports(world, folder=tmp_path, scenario=scenario)

    def over_grpc(world: World, scenario: Digest = SCENARIO) -> AbstractAsyncContextManager[Ports]:
        watch = Board(role="client", clients=[CLIENT]).watch if request.param == "over gRPC, watched" else None
        return grpc_ports(world, kits=kits, folder=tmp_path, scenario=scenario, watch=watch)

    return in_process if request.param == "in process" else over_grpc


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(work, 30.0))


def report(round_id: int = 1, samples: int = 100) -> ClientReport:
    device = ClientConfig(id=CLIENT, position=Position(x_m=1.0, y_m=2.0))
    gains = {"gain_main": GAIN, "gain_tap": GAIN}
    return device_report(device, round_id=round_id, **gains, sample_count=samples, expected_bits=1000, train_flops=1e12)


async def at_once() -> None:
    """Let a transmission begin."""


def transmission(attempt: int = 1, frame: bytes = FRAME, part: Part = Part.PAYLOAD) -> Transmission:
    return Transmission(
        key=replace(KEY, attempt=attempt),
        part=part,
        frame=Digest.of(frame),
        frame_bytes=len(frame),
        design=DESIGN,
        seed=link_seed(),
        power=Watt(0.1),
        bandwidth=Hertz(1e6),
    )


def opened(seq: int, round_id: int = 1) -> Directive:
    return Directive(seq=seq, kind=DirectiveKind.ROUND_OPENED, round_id=round_id)


# --- owner ------------------------------------------------------------------------------------------------------------


def test_the_manifest_arrives_as_it_was_published(ports_to: Open) -> None:
    async def work() -> None:
        world = World()
        async with ports_to(world) as ports:
            assert await ports.owner.manifest(RUN, 1) == world.manifest

    run(work())


def test_an_owner_of_another_scenario_gives_no_manifest(ports_to: Open) -> None:
    async def work() -> None:
        async with ports_to(World(), scenario=Digest.of(b"other")) as ports:
            with pytest.raises(ScenarioMismatch):
                await ports.owner.manifest(RUN, 1)

    run(work())


def test_an_emulator_is_fetched_as_promised_and_fetching_again_gives_the_same(ports_to: Open) -> None:
    async def work() -> None:
        world, seen = World(), list[tuple[int, int]]()
        async with ports_to(world) as ports:
            first = await ports.owner.fetch(world.manifest, progress=lambda done, total: seen.append((done, total)))
            assert Digest.of(first.path.read_bytes()) == world.manifest.emulator
            again = await ports.owner.fetch(world.manifest)
            assert again.path.read_bytes() == first.path.read_bytes()
            assert (first.bytes_fetched, again.bytes_fetched) == (world.manifest.size_bytes, 0)
        assert seen[-1] == (world.manifest.size_bytes, world.manifest.size_bytes)
        assert seen == sorted(seen)

    run(work())


def test_the_emulator_of_a_round_is_waited_for(ports_to: Open) -> None:
    async def work() -> None:
        world = World()
        later = replace(manifest_of(b"later"), round_id=2)
        async with ports_to(world) as ports:
            waiting = asyncio.create_task(ports.owner.manifest(RUN, 2))
            assert (await ports.owner.manifest(RUN, 1)).round_id == 1
            world.publish(later, b"later")
            assert await waiting == later

    run(work())


def revised_world(folder: Path, *, damage: Callable[[bytes], bytes] = bytes) -> tuple[World, EmulatorManifest]:
    """Return a world with two emulators, and the manifest of the second, which names the way to it from the first."""
    base, result, way = tiny_bundle(folder, 2, 3), folder / "result", folder / "way"
    bundle = read_bundle(base)
    revise(result, base=bundle.file, changed={n: t + 0.125 for n, t in bundle.adapter_numpy().items()}, notes={})
    write_revision(way, base=base, result=result)
    revision = damage(way.read_bytes())
    first = manifest_of(base.read_bytes())
    known = Revision(base=first.emulator, base_bytes=first.size_bytes, blob=Digest.of(revision), size_bytes=len(revision))
    second = replace(manifest_of(result.read_bytes()), round_id=2, revision=known)
    world = World(emulator=base.read_bytes(), manifest=first)
    world.publish(second, result.read_bytes(), revision=revision)
    return world, second


def test_of_a_later_emulator_only_what_changed_is_fetched(ports_to: Open, tmp_path: Path) -> None:
    async def work() -> None:
        world, second = revised_world(tmp_path)
        async with ports_to(world) as ports:
            await ports.owner.fetch(world.manifest)
            later = await ports.owner.fetch(second)
            assert Digest.of(later.path.read_bytes()) == second.emulator
            assert second.revision is not None
            assert (later.revised, later.bytes_fetched) == (True, second.revision.size_bytes)
            assert later.bytes_fetched < second.size_bytes

    run(work())


def test_a_newcomer_fetches_the_whole(ports_to: Open, tmp_path: Path) -> None:
    async def work() -> None:
        world, second = revised_world(tmp_path)
        async with ports_to(world) as ports:
            later = await ports.owner.fetch(second)
            assert Digest.of(later.path.read_bytes()) == second.emulator
            assert (later.revised, later.bytes_fetched) == (False, second.size_bytes)

    run(work())


def test_an_emulator_with_other_content_is_refused(ports_to: Open) -> None:
    async def work() -> None:
        world = World()
        world.tampered = bytes(len(world.emulator))
        async with ports_to(world) as ports:
            with pytest.raises(DigestMismatch):
                await ports.owner.fetch(world.manifest)

    run(work())


def test_a_verdict_is_waited_for_and_is_the_callers_own(ports_to: Open) -> None:
    async def work() -> None:
        world = World()
        foreign = Verdict(key=replace(KEY, client="c2"), accepted=False, kept=False, reason="no", score=None)
        own = Verdict(key=KEY, accepted=True, kept=True, reason="better", score=12.5)
        async with ports_to(world) as ports:
            waiting = asyncio.create_task(ports.owner.verdict(RUN, 1))
            world.judge(foreign)
            world.judge(own)
            assert await waiting == own

    run(work())


# --- coordinator ------------------------------------------------------------------------------------------------------


def test_joining_tells_the_run_and_the_servers_timing(ports_to: Open) -> None:
    async def work() -> None:
        world = World(timing=TimingConfig(connect_s=7.0, idle_s=5.0, round_s=50.0))
        async with ports_to(world) as ports:
            welcome = await ports.coordinator.join()
            assert (welcome.run, welcome.timing) == (RUN, world.timing)

    run(work())


def test_a_client_of_another_scenario_cannot_join(ports_to: Open) -> None:
    async def work() -> None:
        async with ports_to(World(), scenario=Digest.of(b"other")) as ports:
            with pytest.raises(ScenarioMismatch):
                await ports.coordinator.join()

    run(work())


def test_directives_arrive_in_order_and_only_above_what_was_seen(ports_to: Open) -> None:
    async def work() -> None:
        world = World()
        for seq in (1, 2, 3):
            world.post(opened(seq, round_id=seq))
        async with ports_to(world) as ports:
            seen = 1

            def beat() -> Beat:
                return Beat(last_seen_seq=seen, phase="testing", progress=0)

            async for directive in ports.coordinator.follow(beat):
                assert directive == opened(seen + 1, round_id=seen + 1)
                seen = directive.seq
                if seen == 3:
                    world.post(opened(4, round_id=4))
                if seen == 4:
                    break

    run(work())


@pytest.mark.slow
def test_no_directive_is_missed_or_repeated_when_streams_are_cut(ports_to: Open) -> None:
    async def work() -> None:
        world = World(cuts_streams=True)
        for seq in (1, 2, 3):
            world.post(opened(seq, round_id=seq))
        async with ports_to(world) as ports:
            received = list[int]()

            def beat() -> Beat:
                return Beat(last_seen_seq=received[-1] if received else 0, phase="testing", progress=0)

            async for directive in ports.coordinator.follow(beat):
                received.append(directive.seq)
                if len(received) == 3:
                    break
        assert received == [1, 2, 3]

    run(work())


def test_a_directive_is_acknowledged_by_the_next_beat_at_once(ports_to: Open) -> None:
    async def work() -> None:
        world, seen = World(timing=TimingConfig(connect_s=10.0, idle_s=600.0, round_s=600.0)), 0
        world.post(opened(1))
        async with ports_to(world) as ports:
            await ports.coordinator.join()

            def beat() -> Beat:
                return Beat(last_seen_seq=seen, phase="", progress=0)

            async def follow() -> None:
                nonlocal seen
                async for directive in ports.coordinator.follow(beat):
                    seen = directive.seq

            following = asyncio.create_task(follow())
            # The pace would bring the next beat after 100 s.
            await world.until(lambda: any(beat.last_seen_seq == 1 for beat in world.beats))
            following.cancel()
            await asyncio.wait({following})

    run(work())


def test_an_assignment_arrives_whole_also_one_without_power(ports_to: Open) -> None:
    async def work() -> None:
        world = World()
        assignments = [*(assignment_of(protection=p) for p in Protection), assignment_of(gate=REFUSED)]
        for seq, assigned in enumerate(assignments, start=1):
            world.post(Directive(seq=seq, kind=DirectiveKind.ASSIGNED, round_id=1, assignment=assigned))
        async with ports_to(world) as ports:
            received = list[Directive]()
            async for directive in ports.coordinator.follow(lambda: Beat(last_seen_seq=0, phase="", progress=0)):
                received.append(directive)
                if len(received) == len(assignments):
                    break
        assert received == world.directives

    run(work())


def test_repeating_a_report_or_a_completion_changes_nothing(ports_to: Open) -> None:
    async def work() -> None:
        world = World()
        async with ports_to(world) as ports:
            for _ in range(2):
                await ports.coordinator.report(report())
                await ports.coordinator.complete(COMPLETION)
            assert world.reports == {(CLIENT, 1): report()}
            assert world.completions == {KEY: COMPLETION}
            with pytest.raises(Replayed):
                await ports.coordinator.report(report(samples=7))

    run(work())


KEYS = Advertisement(member=CLIENT, channel_key=bytes(32), mask_key=bytes(32), commitment=Digest(bytes(32)), proof=b"signed")
DEAL = Deal(dealer=CLIENT, roster=Digest(bytes(32)), parcels=((ClientId("c2"), bytes(PARCEL_BYTES)),))
VOW = Vow(member=CLIENT, proof=b"we are these")
OPENING = Opening(member=CLIENT, survivors=Digest(bytes(32)), seeds=((CLIENT, bytes(33)),), keys=())


def test_repeating_a_word_on_a_sum_changes_nothing_and_another_one_is_refused(ports_to: Open) -> None:
    async def work() -> None:
        world = World()
        async with ports_to(world) as ports:
            for _ in range(2):
                await ports.coordinator.report(report(), advertisement=KEYS)
                await ports.coordinator.deal(1, DEAL)
                await ports.coordinator.vow(1, VOW)
                await ports.owner.open(RUN, 1, OPENING)
            with pytest.raises(Replayed):
                await ports.coordinator.vow(1, replace(VOW, proof=b"others"))
        at = (CLIENT, 1)
        said = world.advertisements[at], world.deals[at], world.vows[at], world.openings[at]
        assert said == (KEYS, DEAL, VOW, OPENING)

    run(work())


def test_a_word_on_a_sum_arrives_as_it_was_told(ports_to: Open) -> None:
    async def work() -> None:
        world, words = World(), (Roster(advertisements=(KEYS,)), Survivors(view=Digest(bytes(32)), members=(CLIENT,)))
        for seq, word in enumerate(words, start=1):
            world.post(Directive(seq=seq, kind=DirectiveKind.SUM, round_id=1, sum=word))
        async with ports_to(world) as ports:
            beat = Beat(last_seen_seq=0, phase="waiting", progress=0)
            directives = ports.coordinator.follow(lambda: beat)
            heard = [(await anext(directives)).sum for _ in words]
            await directives.aclose()  # type: ignore[attr-defined]  # both are generators
        assert tuple(heard) == words

    run(work())


def test_a_report_for_a_round_that_is_not_open_is_stale(ports_to: Open) -> None:
    async def work() -> None:
        async with ports_to(World()) as ports:
            with pytest.raises(StaleRound):
                await ports.coordinator.report(report(round_id=2))

    run(work())


def test_whether_to_send_is_asked_until_there_is_an_answer(ports_to: Open) -> None:
    async def ask() -> None:
        world = World(keeps_quiet=True)
        async with ports_to(world) as ports:
            asking = asyncio.create_task(ports.coordinator.ask_to_send(1))
            await world.until(lambda: bool(world.questions))
            assert not asking.done()
            world.answer()
            await asking
            assert set(world.questions) == {1}

    run(ask())


def test_who_may_not_send_any_more_hears_so(ports_to: Open) -> None:
    async def ask() -> None:
        async with ports_to(World(given_away=True)) as ports:
            with pytest.raises(StaleRound, match="given to others"):
                await ports.coordinator.ask_to_send(1)

    run(ask())


def test_nothing_is_on_air_before_it_was_cleared(ports_to: Open, tmp_path: Path) -> None:
    async def refused() -> None:
        raise StaleRound("its band was given to others")

    async def send() -> None:
        world = World()
        async with ports_to(world) as ports:
            await ports.air.write_frame(KEY, kept(tmp_path, FRAME))
            with pytest.raises(StaleRound, match="given to others"):
                await ports.air.transmit(transmission(), cleared=refused)
            assert not world.sent

    run(send())


def test_leaving_tells_why(ports_to: Open) -> None:
    async def work() -> None:
        world = World()
        async with ports_to(world) as ports:
            await ports.coordinator.leave("done")
        assert world.left == ["done"]

    run(work())


# --- air --------------------------------------------------------------------------------------------------------------


def test_sounding_tells_the_gain_of_the_round(ports_to: Open) -> None:
    async def work() -> None:
        async with ports_to(World()) as ports:
            assert await ports.air.sound(2) == Sounding(gain_main=PowerRatio(GAIN * 2), at=Second(0.0))

    run(work())


def kept(folder: Path, frame: bytes) -> Path:
    path = folder / "frame.bin"
    path.write_bytes(frame)
    return path


def test_a_frame_is_written_under_its_digest_and_carried_once(ports_to: Open, tmp_path: Path) -> None:
    async def work() -> None:
        world = World(lost=lambda key, sent: sent[:1] if key.attempt == 1 else ())
        async with ports_to(world) as ports:
            assert await ports.air.write_frame(KEY, kept(tmp_path, FRAME)) == Digest.of(FRAME)
            first = await ports.air.transmit(transmission(), cleared=at_once)
            assert first.missing == (0,)
            assert first.airtime > 0.0
            assert await ports.air.transmit(transmission(), cleared=at_once) == first
            assert world.sent[KEY][0] == transmission()
        assert world.frames == {Digest.of(FRAME): FRAME}

    run(work())


def test_a_frame_larger_than_one_message_arrives_whole_and_tells_its_progress(ports_to: Open, tmp_path: Path) -> None:
    frame = frame_of(SeedTree(0).generator().bytes(5 << 20))

    async def work() -> None:
        world, seen = World(), list[tuple[int, int]]()
        async with ports_to(world) as ports:
            path = kept(tmp_path, frame)
            digest = await ports.air.write_frame(KEY, path, progress=lambda done, total: seen.append((done, total)))
            assert await ports.air.write_frame(KEY, path) == digest
            await ports.air.transmit(transmission(frame=frame), cleared=at_once)
        assert world.frames == {digest: frame}
        assert seen == sorted(seen)
        assert seen[-1] == (len(frame), len(frame))

    run(work())


def test_each_part_is_sent_as_what_it_is(ports_to: Open, tmp_path: Path) -> None:
    frame = frame_of(bytes(32), part=Part.KEY)

    async def work() -> None:
        world = World()
        async with ports_to(world) as ports:
            await ports.air.write_frame(KEY, kept(tmp_path, frame))
            with pytest.raises(MalformedUpdate):
                await ports.air.transmit(transmission(frame=frame, part=Part.PAYLOAD), cleared=at_once)
            await ports.air.transmit(transmission(frame=frame, part=Part.KEY), cleared=at_once)
            assert [sent.part for sent, _ in world.sent.values()] == [Part.KEY]

    run(work())


def test_a_frame_that_was_not_written_cannot_be_sent(ports_to: Open) -> None:
    async def work() -> None:
        async with ports_to(World()) as ports:
            with pytest.raises(MalformedUpdate):
                await ports.air.transmit(transmission(), cleared=at_once)

    run(work())


# --- only over gRPC ---------------------------------------------------------------------------------------------------


def cut_short(revision: bytes) -> bytes:
    return revision[:-1]


def other_values(revision: bytes) -> bytes:
    """Return what is a revision as far as anybody can tell, of another emulator."""
    return revision.replace(b'"notes":{}', b'"notes":{"a":"b"}').replace(
        (n := int.from_bytes(revision[20:28], "little")).to_bytes(8, "little"), (n + 7).to_bytes(8, "little"), 1
    )


@pytest.mark.parametrize("damage", [cut_short, other_values], ids=["not readable", "leads elsewhere"])
def test_a_way_that_does_not_lead_there_is_told_and_the_whole_is_fetched(
    kits: Kits, tmp_path: Path, damage: Callable[[bytes], bytes]
) -> None:
    async def work() -> None:
        world, second = revised_world(tmp_path, damage=damage)
        seen = list[int]()
        async with grpc_ports(world, kits=kits, folder=tmp_path) as ports:
            await ports.owner.fetch(world.manifest)
            later = await ports.owner.fetch(second, progress=lambda done, total: seen.append(done))
            assert Digest.of(later.path.read_bytes()) == second.emulator
            assert (later.revised, later.bytes_fetched) == (False, second.size_bytes)
            assert "MALFORMED" in later.problem or "DIGEST_MISMATCH" in later.problem
        assert seen == sorted(seen)
        held = [path for path in (tmp_path / "client").rglob("*") if path.is_file()]
        assert held == [later.path], "neither the emulator before, nor what was of no use"

    run(work())


def test_a_counterpart_that_does_not_answer_is_named_with_its_address(kits: Kits, tmp_path: Path) -> None:
    async def work() -> None:
        timing = TimingConfig(connect_s=0.5, idle_s=1.0, round_s=5.0)
        manners = Manners(timing=timing, attempts_max=2, clock=SystemClock(), seeds=SeedTree(0))
        nowhere = Addresses(owner="127.0.0.1:1", coordinator="127.0.0.1:1", air="127.0.0.1:1")
        store = BlobStore(tmp_path / "blobs", quota_bytes=1)
        with pytest.raises(PeerLost, match=r"owner .*127\.0\.0\.1:1"):
            async with open_ports(nowhere, kit=kits.kit(Role.CLIENT, CLIENT), manners=manners, scenario=SCENARIO, store=store):
                pytest.fail("nobody is there")

    run(work())
