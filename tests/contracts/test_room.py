"""Does everybody wait for room on a full disk, and go on as if nothing had been, when there is some?"""

import asyncio
import resource
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from errno import ENOSPC
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2

from hushtune_client.app import Conductor
from hushtune_client.phases import Conclude
from hushtune_client.progress import Status
from hushtune_client.state import ClientState
from hushtune_common.errors import StorageFull
from hushtune_common.messages import ClientId, RunId
from hushtune_common.seeding import SeedTree
from hushtune_common.store.journal import Event as Entry
from hushtune_common.store.room import Room
from hushtune_common.units import Second
from hushtune_common.wire import faults
from hushtune_server.coordinator.events import OWNER, Event, Member, from_body
from hushtune_server.coordinator.phases import Rules, State
from hushtune_server.coordinator.rounds import fold
from hushtune_server.coordinator.service import Desk
from hushtune_server.testbed.transport.crowd import scenario_of
from tests.fakes import FakeClock, FixedSolver, report_of
from tests.owner_stage import World, stage

FULL = StorageFull("the disk is full", retry_after_s=4.0)


def test_room_is_waited_for_as_told_and_no_longer_than_it_is_of_use() -> None:
    async def story() -> None:
        clock = FakeClock(autojump=True)
        room = Room(clock=clock, within_s=10.0, rng=SeedTree(0).generator())
        for waits in (1, 2, 3):
            await room.wait(FULL)
            assert 4.0 * waits <= clock.monotonic() <= 5.0 * waits
        with pytest.raises(StorageFull):
            await room.wait(FULL)
        room.found()
        await room.wait(FULL)

    asyncio.run(story())


@pytest.mark.parametrize(("told", "waits"), [(7.5, 7.5), (None, 5.0), (0.0, 0.1), (1e9, 60.0)])
def test_when_to_come_back_is_the_peers_word_within_bounds(told: float | None, waits: float) -> None:
    status = status_pb2.Status(code=grpc.StatusCode.RESOURCE_EXHAUSTED.value[0], message="full")
    details: list[Any] = [error_details_pb2.ErrorInfo(reason="STORAGE_FULL", domain="hushtune")]
    if told is not None:
        delay = duration_pb2.Duration(seconds=int(told), nanos=int(told % 1 * 1e9))
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    for detail in details:
        packed = any_pb2.Any()
        packed.Pack(detail)
        status.details.append(packed)
    trailer = grpc.aio.Metadata(("grpc-status-details-bin", status.SerializeToString()))
    call = grpc.aio.AioRpcError(grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.aio.Metadata(), trailer, details="full")
    found = faults.from_rpc_error(call)
    assert isinstance(found, StorageFull)
    assert found.retry_after_s == pytest.approx(waits)


class Log:
    """A journal whose disk is full at times."""

    def __init__(self) -> None:
        self.kept: list[Event] = []
        self.full = False

    async def append(self, kind: str, body: Mapping[str, object], *, key: str | None = None) -> Entry:
        if self.full:
            raise StorageFull("the journal cannot be written")
        self.kept.append(from_body(kind, body))
        return Entry(seq=len(self.kept), kind=kind, key=key, body=dict(body))

    def events(self, after: int = 0) -> list[Entry]:
        return []


async def turns(clock: FakeClock, *, seconds: float = 30.0) -> None:
    """Let time pass in small steps, and everybody act."""
    for _ in range(int(seconds)):
        clock.advance(1.0)
        for _ in range(20):
            await asyncio.sleep(0)
        await asyncio.sleep(0.001)  # the solver works in a thread


def test_a_coordinator_without_room_says_so_forgets_nothing_and_goes_on() -> None:
    async def story() -> None:
        log, clock = Log(), FakeClock()
        rules = Rules.of(scenario_of(clients=2, rounds=1, idle_s=100.0), run=RunId("run-1"))
        told: list[tuple[str, str]] = []
        desk = Desk(
            State(),
            rules=rules,
            log=log,
            solver=FixedSolver(),
            clock=clock,
            idle_s=Second(100.0),
            observe=lambda before, after, event: told.append((before.name, after.name)),
        )
        running = asyncio.create_task(desk.run())
        for member in (OWNER, Member("c1"), Member("c2")):
            await desk.join(member)
        await desk.report(report_of(ClientId("c1"), 1))
        log.full = True
        before = desk.state
        with pytest.raises(StorageFull):
            await desk.report(report_of(ClientId("c2"), 1))
        assert desk.state == before
        log.full = False
        await desk.report(report_of(ClientId("c2"), 1))
        log.full = True
        await turns(clock)
        assert (desk.state.name, running.done()) == ("solving", False), "the solution waits for room"
        log.full = False
        await turns(clock)
        assert desk.state.name == "assigned"
        assert fold(log.kept, rules=rules) == desk.state
        running.cancel()

    asyncio.run(story())


@contextmanager
def little_room(most: int) -> Generator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


class Tidying(FakeClock):
    """A person makes room at the third look."""

    def __init__(self) -> None:
        super().__init__(autojump=True)
        self.sleeps = 0
        self.limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    async def sleep(self, seconds: float) -> None:
        self.sleeps += 1
        if self.sleeps == 3:
            resource.setrlimit(resource.RLIMIT_FSIZE, self.limits)
        await super().sleep(seconds)


def test_a_client_whose_disk_is_full_remembers_the_event_when_there_is_room(tmp_path: Path) -> None:
    async def life(clock: Tidying, *, full: bool) -> RunId:
        def room() -> Room:
            return Room(clock=clock, within_s=100.0)

        state = ClientState.open(tmp_path, client=ClientId("c1"), attempts_max=1, room=room)
        try:
            if full:
                with little_room((tmp_path / "journal.sqlite-wal").stat().st_size):
                    await state.join(RunId("run-1"))
            return state.terms.run
        finally:
            await state.close()

    clock = Tidying()
    assert asyncio.run(life(clock, full=True)) == asyncio.run(life(clock, full=False)) == "run-1"
    assert clock.sleeps == 3


class Cramped:
    """Work that finds the disk full the first times."""

    def __init__(self, *, times: int) -> None:
        self.times = times
        self.tries = 0

    async def perform(self, command: object) -> None:
        self.tries += 1
        if self.tries <= self.times:
            raise FULL


@pytest.mark.parametrize(("times", "tries"), [(0, 1), (2, 3), (10**6, 4)])
def test_a_client_does_its_work_again_when_there_is_room(tmp_path: Path, times: int, tries: int) -> None:
    async def story() -> None:
        clock, work = FakeClock(autojump=True), Cramped(times=times)

        def room() -> Room:
            return Room(clock=clock, within_s=10.0)

        state = ClientState.open(tmp_path, client=ClientId("c1"), attempts_max=1)
        conductor = Conductor(None, state=state, status=Status(), clock=clock, room=room)  # type: ignore[arg-type]
        conductor._duties = work  # type: ignore[assignment]
        command = Conclude(completion=None)  # type: ignore[arg-type]
        try:
            await conductor._perform(command, round_id=1)  # pyright: ignore[reportPrivateUsage] - a round around it says no more
        finally:
            await state.close()
        assert work.tries == tries

    asyncio.run(story())


@pytest.mark.parametrize("fault", [OSError(ENOSPC, "No space left on device"), StorageFull("full")])
def test_an_update_that_the_owner_has_no_room_for_is_judged_when_there_is(
    tmp_path: Path, fault: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge, tries = World.judge, 0

    def cramped(*given: Any, **about: Any) -> Any:
        nonlocal tries
        tries += 1
        if tries < 4:
            raise fault
        return judge(*given, **about)

    monkeypatch.setattr(World, "judge", cramped)

    async def play() -> None:
        async with stage(tmp_path) as (world, owner):
            world.hear("c1")
            await world.until(lambda: len(world.settled) == 1)
            world.close("c1")
            assert (await owner.verdict("c1")).accepted
            assert tries == 4

    asyncio.run(play())
