"""Does every bound on what a peer can make us hold refuse the one that is too many, by the name of its setting?"""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs

from hushtune_common.clock import SystemClock
from hushtune_common.config import LimitsConfig, Scenario
from hushtune_common.errors import LimitExceeded
from hushtune_common.messages import Caller, Channel, ClientId, Digest, Role, RunId
from hushtune_common.seeding import SeedTree
from hushtune_common.store.blobs import BlobName, BlobStore
from hushtune_common.store.journal import Journal
from hushtune_common.units import PowerRatio, Second
from hushtune_common.wire.interceptors import Gatekeeper
from hushtune_server.air.abstract import AbstractMedium
from hushtune_server.air.fading import Geography
from hushtune_server.air.sky import Sky
from hushtune_server.coordinator.desk import Desk
from hushtune_server.coordinator.events import OWNER, ChannelChanged, Joined, Left, Member, Reported, Solved
from hushtune_server.coordinator.phases import Rules, State
from hushtune_server.coordinator.rounds import advance
from hushtune_server.testbed.transport.crowd import scenario_of
from tests import radio
from tests.fakes import FakeClock, FixedSolver, report_of

C1 = ClientId("c1")


def limited(**limits: int) -> Scenario:
    return structs.replace(radio.scenario(), limits=LimitsConfig(**limits))


class Context:
    """A call of a client, as its servicer sees it; it ends as it is told."""

    def __init__(self, name: str) -> None:
        self._caller = Caller(role=Role.CLIENT, name=name)

    def auth_context(self) -> dict[str, list[bytes]]:
        return {"peer_uri": [self._caller.uri.encode()]}


async def held(gatekeeper: Gatekeeper, name: str, *, end: asyncio.Event) -> None:
    """Have one call of a client under way until ``end``."""
    with gatekeeper._admitted(Context(name)):  # pyright: ignore[reportPrivateUsage] - what the wrapped handlers enter
        await end.wait()


async def is_let_in(gatekeeper: Gatekeeper, name: str) -> bool:
    """Whether a call of a client gets as far as its servicer; what else it is refused for is raised."""
    call = asyncio.create_task(held(gatekeeper, name, end=asyncio.Event()))
    await asyncio.sleep(0)
    if call.done():
        call.result()
    call.cancel()
    await asyncio.wait({call})
    return True


def test_a_caller_with_too_many_calls_is_refused_and_others_are_not() -> None:
    async def story() -> None:
        gatekeeper, end = Gatekeeper(calls_max=3), asyncio.Event()
        calls = [asyncio.create_task(held(gatekeeper, "c1", end=end)) for _ in range(3)]
        await asyncio.sleep(0)

        with pytest.raises(LimitExceeded, match=r"limits\.calls_max"):
            await is_let_in(gatekeeper, "c1")
        assert await is_let_in(gatekeeper, "c2")

        end.set()
        await asyncio.gather(*calls)
        assert await is_let_in(gatekeeper, "c1")

    asyncio.run(story())


class Memory:
    """A journal that counts."""

    def __init__(self) -> None:
        self.count = 0

    async def append(self, kind: str, body: object, *, key: str | None = None) -> None:
        self.count += 1


def desk_of(scenario: Scenario, log: Memory) -> Desk:
    rules = Rules.of(scenario, run=RunId("run-1"))
    return Desk(
        State(),
        rules=rules,
        log=log,  # type: ignore[arg-type]
        solver=FixedSolver(),
        clock=FakeClock(),
        idle_s=Second(30.0),
        observe=lambda before, after, event: None,
    )


def test_a_member_that_comes_and_goes_all_the_time_stops_growing_the_journal() -> None:
    log = Memory()

    async def story() -> None:
        desk = desk_of(limited(joins_max=5), log)
        for _ in range(5):
            await desk.join(Member("c1"))
            await desk.leave(Member("c1"), "for a moment")
        before = log.count
        for _ in range(20):
            with pytest.raises(LimitExceeded, match=r"limits\.joins_max"):
                await desk.join(Member("c1"))
        assert log.count == before
        await desk.join(Member("c2"))

    asyncio.run(story())
    assert log.count == 2 * 5 + 1


def test_the_machine_itself_lets_nobody_in_once_too_often() -> None:
    rules = Rules.of(limited(joins_max=2), run=RunId("run-1"))
    state, member, at = State(), Member("c1"), Second(0.0)
    for _ in range(2):
        state, _ = advance(state, Joined(at=at, member=member), rules=rules)
        state, _ = advance(state, Left(at=at, member=member, reason=""), rules=rules)

    assert advance(state, Joined(at=at, member=member), rules=rules) == (state, ())


def test_a_channel_that_changes_all_the_time_is_believed_so_often_and_not_more() -> None:
    scenario = structs.replace(scenario_of(clients=2, rounds=1, idle_s=30.0), limits=LimitsConfig(channel_changes_max=4))
    rules = Rules.of(scenario, run=RunId("run-1"))
    state, at = State(), Second(0.0)
    events: list[Any] = [Joined(at=at, member=member) for member in (OWNER, Member("c1"), Member("c2"))]
    reports = tuple(report_of(ClientId(c), 1) for c in ("c1", "c2"))
    events += [Reported(at=at, report=report) for report in reports]
    events.append(Solved(at=at, round_id=1, solution=FixedSolver().solve(1, reports)))
    for n in range(10):
        channel = Channel(at=Second(1.0 + n), gain_main=PowerRatio(1e-9), gain_tap=PowerRatio(0.0))
        events.append(ChannelChanged(at=at, round_id=1, client=C1, channel=channel))
    for event in events:
        state, _ = advance(state, event, rules=rules)

    assert state.phase.round.changes == {C1: 4}  # type: ignore[union-attr]


@pytest.fixture
def sky_of(tmp_path: Path) -> Callable[[Scenario], Sky]:
    def made(scenario: Scenario) -> Sky:
        seeds = SeedTree(1)
        return Sky(
            scenario,
            medium=AbstractMedium(scenario),
            geography=Geography(scenario, seeds),
            store=BlobStore(tmp_path / "blobs", quota_bytes=1 << 20),
            journal=Journal.open(tmp_path / "journal.sqlite", schema="test"),
            clock=SystemClock(),
            seeds=seeds,
        )

    return made


def frame_of(run: str, *, round_id: str = "1", attempt: str = "1") -> BlobName:
    return BlobName(prefix=f"frames/{run}/{round_id}/c1/{attempt}", digest=Digest.of(run.encode()), size=1)


def test_a_client_that_makes_up_runs_leaves_no_more_folders_than_it_may(sky_of: Callable[[Scenario], Sky]) -> None:
    async def story() -> None:
        sky = sky_of(limited(runs_max=3))
        caller = Caller(role=Role.CLIENT, name="c1")
        for run in ("a", "b", "c", "a"):
            sky.client_writes(caller, frame_of(run))
        with pytest.raises(LimitExceeded, match=r"limits\.runs_max"):
            sky.client_writes(caller, frame_of("d"))
        sky.client_writes(Caller(role=Role.CLIENT, name="c2"), frame_of("d"))

    asyncio.run(story())


@pytest.mark.parametrize(
    ("place", "what"),
    [
        ({"round_id": "2"}, "round 2"),
        ({"round_id": "0"}, "round 0"),
        ({"attempt": "9"}, "attempt 9"),
        ({"attempt": "x"}, "attempt x"),
    ],
)
def test_a_frame_of_a_round_or_an_attempt_that_never_comes_is_refused_before_its_bytes(
    place: dict[str, str], what: str, sky_of: Callable[[Scenario], Sky]
) -> None:
    async def story() -> None:
        sky = sky_of(limited(attempts_max=8))
        with pytest.raises(LimitExceeded, match=what):
            sky.client_writes(Caller(role=Role.CLIENT, name="c1"), frame_of("run-1", **place))

    asyncio.run(story())
