"""Do a client and its coordinator hear each other in order, once, in process and over gRPC alike?"""

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from hushtune_client.ports import Sounding
from hushtune_client.telemetry import device_report
from hushtune_common.config import ClientConfig, Position, TimingConfig
from hushtune_common.errors import Replayed, ScenarioMismatch, StaleRound
from hushtune_common.messages import Beat, ClientId, ClientReport, Completion, Digest, Directive, DirectiveKind, Protection
from hushtune_common.secagg.messages import PARCEL_BYTES, Advertisement, Deal, Opening, Roster, Survivors, Vow
from hushtune_common.units import Joule, PowerRatio, Second
from tests.kits import Kits
from tests.loopback import CLIENT, GAIN, REFUSED, RUN, World, assignment_of
from tests.ports_stage import FRAME, KEY, WAYS, Open, kept, run, transmission, ways_to

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


@pytest.fixture(params=WAYS)
def ports_to(request: pytest.FixtureRequest, kits: Kits, tmp_path: Path) -> Open:
    return ways_to(tmp_path, kits=kits, way=request.param)


def report(round_id: int = 1, samples: int = 100) -> ClientReport:
    device = ClientConfig(id=CLIENT, position=Position(x_m=1.0, y_m=2.0))
    gains = {"gain_main": GAIN, "gain_tap": GAIN}
    return device_report(device, round_id=round_id, **gains, sample_count=samples, expected_bits=1000, train_flops=1e12)


def opened(seq: int, round_id: int = 1) -> Directive:
    return Directive(seq=seq, kind=DirectiveKind.ROUND_OPENED, round_id=round_id)


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


def test_sounding_tells_the_gain_of_the_round(ports_to: Open) -> None:
    async def work() -> None:
        async with ports_to(World()) as ports:
            assert await ports.air.sound(2) == Sounding(gain_main=PowerRatio(GAIN * 2), at=Second(0.0))

    run(work())
