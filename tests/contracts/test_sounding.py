"""Does a client notice that its channel changed, tell, and send nothing before it was assigned for the new one?"""

import asyncio
from collections.abc import AsyncGenerator, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from hushtune_client.duties import Duties
from hushtune_client.phases import AssignmentReceived, Event, RoundOpened, Send, Training, TrainingStarted
from hushtune_client.ports import Ports, Progress, Sounding
from hushtune_client.progress import Status
from hushtune_client.sounding import Sounder
from hushtune_client.state import ClientState
from hushtune_client.trainer import Trainer
from hushtune_common.clock import SystemClock
from hushtune_common.config import Scenario, parse
from hushtune_common.errors import SecrecyUnavailable
from hushtune_common.link.secrecy import tap_gain_bound
from hushtune_common.messages import Assignment, Channel, Digest, Part, UpdateKey
from hushtune_common.seeding import SeedTree
from hushtune_common.units import Decibel, Hertz, PowerRatio, Second, Watt, from_db
from hushtune_common.wire.bell import Bell
from tests.fakes import FakeClock
from tests.loopback import CLIENT, GAIN, RUN, LoopbackAir, World, assignment_of, link_seed, loopback_ports

NEAR, AWAY = {"x_m": 60.0, "y_m": 0.0}, {"x_m": -60.0, "y_m": 0.0}
TAP_SIDE = {"x_m": 440.0, "y_m": 0.0}


def scenario_of(*, reallocate: bool = True, moves: dict[float, dict[str, float]] | None = None) -> Scenario:
    told = [{"client": CLIENT, "after_s": at, "position": place} for at, place in (moves or {}).items()]
    return parse(
        {
            "name": "moving",
            "seed": 1,
            "model": {"source": "random:blocks=6"},
            "data": {"private": "txt:a", "public": "txt:b"},
            "clients": [{"id": CLIENT, "position": NEAR}],
            "air": {"moves": told},
            "coordinator": {"allocator": {"reallocate": reallocate}},
        }
    )


@dataclass(slots=True)
class Place:
    """A client in the middle of training, and the world that it measures."""

    scenario: Scenario
    world: World
    state: ClientState
    sounder: Sounder
    clock: FakeClock

    def sound(self, at: float, *, db: float = 0.0) -> None:
        """Let the air say from now on that the gain is ``db`` above the first."""
        self.world.sounding = Sounding(gain_main=PowerRatio(GAIN * from_db(Decibel(db))), at=Second(at))

    async def assign(self, assignment: Assignment) -> None:
        """Let the coordinator assign anew."""
        await self.state.record(AssignmentReceived(assignment=assignment))
        self.sounder.assigned_anew()

    @property
    def told(self) -> list[float]:
        return [channel.at for _, _, channel in self.world.channels]


def first_assignment(scenario: Scenario) -> Assignment:
    bound = tap_gain_bound(scenario, scenario.clients[0])
    return replace(assignment_of(), channel=Channel(at=Second(0.0), gain_main=GAIN, gain_tap=bound))


def for_channel(channel: Channel) -> Assignment:
    return replace(assignment_of(), bandwidth=Hertz(1e6), power=Watt(2e-5), channel=channel)


def sounder_of(scenario: Scenario, state: ClientState, clock: FakeClock, ports: Ports) -> Sounder:
    async def note(event: Event) -> None:
        await state.record(event)

    return Sounder(
        scenario=scenario,
        device=scenario.clients[0],
        ports=ports,
        state=state,
        status=Status(),
        clock=clock,
        note=note,
        turn=asyncio.Lock(),
        bell=Bell(),
    )


@asynccontextmanager
async def training(folder: Path, scenario: Scenario) -> AsyncGenerator[Place]:
    state = ClientState.open(folder / "state", client=CLIENT, attempts_max=3)
    world, clock = World(), FakeClock()
    try:
        if not state.restarted:
            await state.join(RUN)
            for event in (RoundOpened(round_id=1), AssignmentReceived(assignment=first_assignment(scenario))):
                await state.record(event)
            await state.record(TrainingStarted(round_id=1))
        yield Place(scenario, world, state, sounder_of(scenario, state, clock, loopback_ports(world, folder=folder)), clock)
    finally:
        await state.close()


async def breathe() -> None:
    """Let everything happen that needs nobody else."""
    for _ in range(50):
        await asyncio.sleep(0)


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(work, 20.0))


@pytest.mark.parametrize("db", [0.0, 0.9, -0.9])
def test_a_channel_that_hardly_changed_is_good_enough_and_nobody_is_told(tmp_path: Path, db: float) -> None:
    async def work() -> None:
        async with training(tmp_path, scenario_of()) as place:
            place.sound(7.0, db=db)
            first = first_assignment(place.scenario)
            assert await place.sounder.settled(first) == first
            assert place.told == []

    run(work())


@pytest.mark.parametrize("db", [1.1, -1.1, -30.0])
def test_a_changed_channel_is_told_and_nothing_goes_on_before_an_assignment_for_it(tmp_path: Path, db: float) -> None:
    async def work() -> None:
        async with training(tmp_path, scenario_of()) as place:
            place.sound(7.0, db=db)
            waiting = asyncio.create_task(place.sounder.settled(first_assignment(place.scenario)))
            await place.world.until(lambda: bool(place.world.channels))
            await place.assign(replace(first_assignment(place.scenario), bandwidth=Hertz(2e6)))  # one that crossed the word
            await breathe()
            assert not waiting.done()
            newer = for_channel(place.world.channels[0][2])
            await place.assign(newer)
            assert await waiting == newer
            assert place.told == [7.0]

    run(work())


def test_a_tap_that_may_hear_better_is_told_however_little_it_is(tmp_path: Path) -> None:
    moved = {5.0: {"x_m": 60.5, "y_m": 0.0}}

    async def work() -> None:
        async with training(tmp_path, scenario_of(moves=moved)) as place:
            place.sound(7.0)
            waiting = asyncio.create_task(place.sounder.settled(first_assignment(place.scenario)))
            await place.world.until(lambda: bool(place.world.channels))
            told = place.world.channels[0][2]
            assert 1.0 < told.gain_tap / tap_gain_bound(place.scenario, place.scenario.clients[0]) < from_db(Decibel(1.0))
            await place.assign(for_channel(told))
            await waiting

    run(work())


def test_what_was_told_before_a_restart_is_told_again_and_waited_for_after_it(tmp_path: Path) -> None:
    scenario = scenario_of()

    async def first_life() -> None:
        async with training(tmp_path, scenario) as place:
            place.sound(7.0, db=-5.0)
            waiting = asyncio.create_task(place.sounder.settled(first_assignment(scenario)))
            await place.world.until(lambda: bool(place.world.channels))
            waiting.cancel()

    async def second_life() -> None:
        async with training(tmp_path, scenario) as place:
            place.sound(9.0)  # as good as it was at first: but the band may be another's by now
            waiting = asyncio.create_task(place.sounder.settled(first_assignment(scenario)))
            await place.world.until(lambda: bool(place.world.channels))
            await breathe()
            assert (place.told, waiting.done()) == ([9.0], False)
            await place.assign(for_channel(place.world.channels[-1][2]))
            assert (await waiting).bandwidth == 1e6

    run(first_life())
    run(second_life())


def test_the_channel_is_watched_at_the_scenarios_pace_until_training_is_over(tmp_path: Path) -> None:
    async def work() -> None:
        async with training(tmp_path, scenario_of()) as place:
            watching = asyncio.create_task(place.sounder.watch(1))
            place.sound(7.0, db=-5.0)
            await asyncio.sleep(0)
            place.clock.advance(place.scenario.air.sounding_s)
            await place.world.until(lambda: bool(place.world.channels))
            assert isinstance(place.state.current, Training)
            await place.assign(for_channel(place.world.channels[0][2]))
            assert (await place.sounder.settled(first_assignment(place.scenario))).bandwidth == 1e6
            place.sound(9.0, db=5.0)
            await asyncio.sleep(0)
            place.clock.advance(place.scenario.air.sounding_s)
            await watching
            assert place.told == [7.0]

    run(work())


def test_without_re_allocation_nobody_is_told(tmp_path: Path) -> None:
    async def work() -> None:
        async with training(tmp_path, scenario_of(reallocate=False)) as place:
            place.sound(7.0, db=-30.0)
            await place.sounder.watch(1)
            assert await place.sounder.settled(first_assignment(place.scenario)) == first_assignment(place.scenario)
            assert place.told == []

    run(work())


class WanderingAir(LoopbackAir):
    """Lets time pass while a frame is uploaded."""

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self.world = world

    async def write_frame(self, key: UpdateKey, frame: Path, *, progress: Progress | None = None) -> Digest:
        digest = await super().write_frame(key, frame, progress=progress)
        self.world.sounding = Sounding(gain_main=GAIN, at=Second(60.0))
        return digest


@pytest.mark.parametrize(
    ("place", "claimed_at", "secret"),
    [(TAP_SIDE, 0.0, False), (AWAY, 0.0, True), (TAP_SIDE, 1e9, False)],
    ids=["towards the tap", "away from it", "towards the tap, assigned for where it will stand"],
)
def test_who_goes_towards_the_tap_after_sealing_does_not_transmit(
    tmp_path: Path, place: dict[str, float], claimed_at: float, secret: bool
) -> None:
    scenario = scenario_of(moves={50.0: place, 1000.0: AWAY})

    async def work() -> None:
        async with training(tmp_path, scenario) as here:
            bound = tap_gain_bound(scenario, scenario.clients[0])
            claimed = Channel(at=Second(claimed_at), gain_main=GAIN, gain_tap=bound)
            granted = replace(assignment_of(), power=Watt(1e-6), channel=claimed)
            await here.state.keep_sealed(1, b"sealed" * 100, secret=b"", links={Part.PAYLOAD: link_seed()})
            ports = replace(loopback_ports(here.world, folder=tmp_path), air=WanderingAir(here.world))
            sounder = sounder_of(scenario, here.state, here.clock, ports)
            duties = Duties(
                scenario=scenario,
                device=scenario.clients[0],
                records=(),
                ports=ports,
                trainer=Trainer(clock=SystemClock()),
                state=here.state,
                status=Status(),
                clock=SystemClock(),
                seeds=SeedTree(0),
                aside=asyncio.to_thread,
                sounder=sounder,
                emit=lambda event: None,
            )
            send = Send(assignment=granted, part=Part.PAYLOAD, attempt=1, only=None)
            if secret:
                await duties.perform(send)
            else:
                with pytest.raises(SecrecyUnavailable, match="stands elsewhere"):
                    await duties.perform(send)
            assert bool(here.world.sent) is secret

    run(work())
