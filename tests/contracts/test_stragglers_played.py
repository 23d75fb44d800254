"""Who is waited for, and who is not, when a round is played with one client that is slow and one that falls silent?"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

import pytest
from msgspec import structs

from hushtune_common.config import StragglersConfig
from hushtune_common.messages import Beat, ClientId, Completion, RunId, Settlement, UpdateKey
from hushtune_common.units import Joule, Second
from hushtune_server.coordinator.events import OWNER, Died, Event, Member
from hushtune_server.coordinator.phases import Closed, Failed, Rules, State
from hushtune_server.coordinator.rounds import fold
from hushtune_server.coordinator.service import Desk
from hushtune_server.testbed.transport.crowd import scenario_of
from tests.contracts.test_room import Log
from tests.fakes import FakeClock, FixedSolver, report_of

IDLE_S = 30.0
"""The default."""
ROUND_S = 600.0
RUN = RunId("run-1")
QUICK, SLOW, SILENT = ("c1", "c2", "c3"), "c4", "c5"
EVERYBODY = (*QUICK, SLOW, SILENT)


@dataclass
class Play:
    """A coordinator on a clock of its own, with members that beat as long as they live."""

    kind: str
    options: dict[str, float]
    log: Log = field(default_factory=Log)
    clock: FakeClock = field(default_factory=FakeClock)
    seen: list[tuple[float, Event, State]] = field(default_factory=list[tuple[float, Event, State]])
    beating: set[str] = field(default_factory=set[str])
    tasks: list["asyncio.Task[Any]"] = field(default_factory=list["asyncio.Task[Any]"])

    def __post_init__(self) -> None:
        scenario = scenario_of(clients=5, rounds=1, idle_s=IDLE_S, round_s=ROUND_S)
        stragglers = StragglersConfig(kind=self.kind, **self.options)  # type: ignore[arg-type]
        coordinator = structs.replace(scenario.coordinator, stragglers=stragglers)
        self.rules = Rules.of(structs.replace(scenario, coordinator=coordinator), run=RUN)
        self.desk = Desk(
            State(),
            rules=self.rules,
            log=self.log,
            solver=FixedSolver(),
            clock=self.clock,
            idle_s=Second(IDLE_S),
            observe=lambda before, after, event: self.seen.append((self.desk.now(), event, after)),
        )

    async def until(self, second: float) -> None:
        """Let the clock come to ``second``, in small steps, with everybody acting."""
        while self.clock.monotonic() < second:
            self.clock.advance(0.5)
            await self.settle()

    async def settle(self) -> None:
        for _ in range(25):
            await asyncio.sleep(0)

    async def begin(self) -> None:
        """Everybody joins and reports at second 0; the solution is there soon after."""
        self.tasks.append(asyncio.create_task(self.desk.run()))
        for name in (OWNER, *EVERYBODY):
            await self.desk.join(Member(name))
            self.beating.add(name)
            self.tasks.append(asyncio.create_task(self._follow(Member(name))))
        for name in EVERYBODY:
            await self.desk.report(report_of(ClientId(name), 1))
        while self.desk.state.name != "assigned":
            await asyncio.sleep(0.001)  # the solver works in a thread
            await self.until(self.clock.monotonic() + 0.5)

    async def _follow(self, member: Member) -> None:
        async with aclosing(self.desk.follow(member, self._beats(member))) as directives:
            async for _ in directives:
                pass

    async def _beats(self, member: Member) -> AsyncGenerator[Beat]:
        while True:
            if member in self.beating:
                yield Beat(last_seen_seq=0, phase="training", progress=0)
            await self.clock.sleep(IDLE_S / 6)

    async def deliver(self, name: str) -> None:
        """Upload and be accepted, each word said twice, as a network may."""
        key = UpdateKey(run=RUN, round_id=1, client=ClientId(name), attempt=1)
        done = Completion(
            key=key,
            uploaded=True,
            reason="",
            bytes_raw=10,
            bytes_uploaded=5,
            airtime=Second(1.0),
            train_seconds=Second(9.0),
            energy=Joule(1.0),
        )
        for _ in range(2):
            await self.desk.complete(done)
        for _ in range(2):
            await self.desk.settle(Settlement(key=key, accepted=True))

    def ended(self) -> tuple[float, str, list[str]]:
        """When the round was over, how, and with whom."""
        for at, _, after in self.seen:
            if isinstance(after.phase, Closed | Failed):
                return at, after.name, sorted(after.phase.accepted) if isinstance(after.phase, Closed) else []
        raise AssertionError(f"still {self.desk.state.name}")

    async def close(self) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)


def played(kind: str, story: Callable[[Play], Awaitable[None]], **options: float) -> None:
    async def run() -> None:
        play = Play(kind, options)
        try:
            await play.begin()
            await story(play)
            assert fold(play.log.kept, rules=play.rules) == play.desk.state
        finally:
            await play.close()

    asyncio.run(run())


async def three_deliver(play: Play) -> float:
    """``c5`` falls silent, the quick ones are accepted ten seconds later; return when the last of them was."""
    play.beating.discard(SILENT)
    await play.until(play.clock.monotonic() + 10.0)
    for name in QUICK:
        await play.deliver(name)
    return play.clock.monotonic()


def test_a_quorum_closes_its_wait_after_the_third_and_leaves_the_slow_one_out() -> None:
    async def story(play: Play) -> None:
        at = await three_deliver(play)
        await play.until(at + 30.0)
        assert play.desk.state.name == "settling"
        await play.until(at + 42.0)
        when, how, who = play.ended()
        assert (how, who) == ("closed", [*QUICK])
        assert at + 40.0 <= when <= at + 41.5
        before, count = play.desk.state, len(play.log.kept)
        await play.deliver(SLOW)
        assert (play.desk.state, len(play.log.kept)) == (before, count), "too late: it changes nothing"

    played("quorum", story, share=0.6, wait_after_s=40.0)


def test_a_deadline_waits_for_the_slow_one_as_long_as_the_round_lasts() -> None:
    async def story(play: Play) -> None:
        await three_deliver(play)
        await play.until(ROUND_S - 60.0)
        assert not [e for _, e, _ in play.seen if isinstance(e, Died) and e.member == SLOW], "slow is not dead"
        await play.deliver(SLOW)
        _, how, who = play.ended()
        assert (how, who) == ("closed", [*QUICK, SLOW]), "nobody else is waited for: the silent one is dead"

    played("deadline", story)


def test_a_deadline_takes_whoever_is_there_at_the_end() -> None:
    async def story(play: Play) -> None:
        await three_deliver(play)
        await play.until(ROUND_S + 5.0)
        when, how, who = play.ended()
        assert (how, who) == ("closed", [*QUICK])
        assert ROUND_S <= when <= ROUND_S + 2.0

    played("deadline", story)


def test_everyone_fails_as_soon_as_one_is_dead_and_says_who() -> None:
    async def story(play: Play) -> None:
        silent_since = play.clock.monotonic()
        await three_deliver(play)
        await play.until(silent_since + IDLE_S + 2.0)
        (died_at,) = [at for at, e, _ in play.seen if isinstance(e, Died)]
        assert IDLE_S - 6.0 <= died_at - silent_since <= IDLE_S + 1.5, "noticed within idle_s, and a look"
        phase = play.desk.state.phase
        assert isinstance(phase, Failed)
        assert phase.missing[ClientId(SILENT)].startswith("died")
        assert SLOW not in play.desk.state.roster.gone

    played("everyone", story)


@pytest.mark.parametrize("gap", [1, 2])
def test_who_misses_a_beat_or_two_is_not_dead(gap: int) -> None:
    async def story(play: Play) -> None:
        for _ in range(12):
            play.beating.discard(SLOW)
            await play.until(play.clock.monotonic() + gap * IDLE_S / 6)
            play.beating.add(SLOW)
            await play.until(play.clock.monotonic() + IDLE_S / 6)
        assert not [e for _, e, _ in play.seen if isinstance(e, Died)]

    played("deadline", story)
