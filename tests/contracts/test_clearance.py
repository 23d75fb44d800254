"""Is nobody told that it may transmit on a band that others may have, and is a client that was told so safe from losing it?"""

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from hushtune_common.errors import StaleRound
from hushtune_common.messages import ClientId
from hushtune_common.store.journal import Journal
from hushtune_common.units import Hertz, Second
from hushtune_server.coordinator.clearance import refusal
from hushtune_server.coordinator.desk import Desk
from hushtune_server.coordinator.events import Died, Event, Joined, Member, Sending, Solution, Solved
from hushtune_server.coordinator.phases import Assigned, Concluding, Open, Rules, Settling, Solving, State
from hushtune_server.coordinator.rounds import fold, unsolved
from tests.contracts.test_rounds import C1, C2, C3, THREE, assigned, completed, concluded, reported, settled, ticked
from tests.fakes import BAND, FakeClock, FixedSolver, assignment_of

RULES = replace(THREE, band=Hertz(3 * BAND), answer_s=Second(30.0))


def asks(client: ClientId, *, at: float = 50.0, round_id: int = 1) -> Event:
    return Sending(at=Second(at), round_id=round_id, client=client, asked=True)


def died(client: ClientId, *, at: float = 60.0) -> Event:
    return Died(at=Second(at), member=Member(client), silent_s=Second(30.0))


def shared_again(*clients: ClientId, at: float = 61.0) -> Event:
    solution = Solution(
        assignments=tuple(assignment_of(c, 1, granted=True) for c in clients),
        method="m",
        violation=0.0,
        gap=None,
        solve_s=Second(0.1),
    )
    return Solved(at=Second(at), round_id=1, solution=solution, order=1)


def unseen(before: State, after_: State, event: Event) -> None:
    """Watch nothing."""


def after(*events: Event, rules: Rules = RULES) -> State:
    return fold([*assigned(), *events], rules=rules)


def test_who_was_granted_may_begin_and_nobody_can_take_its_band_any_more() -> None:
    state = after(asks(C3), died(C3))
    assert refusal(state, C3, 1) == ""
    assert unsolved(state, rules=RULES) is None
    assert isinstance(state.phase, Assigned)
    assert C3 in state.phase.round.sending


def test_whose_band_others_have_by_now_may_not_begin_and_is_told_why() -> None:
    state = after(died(C3), shared_again(C1, C2), Joined(at=Second(70.0), member=Member(C3)), asks(C3, at=71.0))
    assert "given to others" in refusal(state, C3, 1)
    assert isinstance(state.phase, Assigned)
    assert C3 not in state.phase.round.sending


def test_who_asks_before_others_have_its_band_keeps_it_although_it_was_taken_for_dead() -> None:
    state = after(died(C3), asks(C3, at=60.5), shared_again(C1, C2))
    assert refusal(state, C3, 1) == ""
    assert isinstance(state.phase, Assigned)
    assert not state.phase.round.withdrawn


@pytest.mark.parametrize(
    ("events", "round_id"),
    [
        ([], 2),
        ([completed(C3, uploaded=False)], 1),
        ([settled(C1, at=100.0), settled(C2, at=101.0), ticked(130.0)], 1),
        ([settled(C1, at=100.0), settled(C2, at=101.0), ticked(130.0), concluded(at=131.0), ticked(132.0)], 1),
    ],
    ids=["a round to come", "it gave up", "the round takes nothing more", "another round"],
)
def test_who_is_too_early_or_too_late_may_not_begin(events: list[Event], round_id: int) -> None:
    assert refusal(after(*events), C3, round_id)


def test_what_was_judged_may_be_said_again_until_the_round_is_another() -> None:
    judged = [settled(C1, at=100.0), settled(C2, at=101.0), ticked(130.0)]
    assert refusal(after(*judged), C1, 1) == ""
    assert refusal(after(*judged, concluded(at=131.0), ticked(132.0)), C1, 1)


def test_a_question_that_is_repeated_is_written_down_once_per_answer() -> None:
    once = after(asks(C3, at=50.0))
    assert after(asks(C3, at=50.0), asks(C3, at=60.0), asks(C3, at=79.0)) == once
    phase = after(asks(C3, at=50.0), asks(C3, at=80.0)).phase
    assert isinstance(phase, Assigned)
    assert phase.round.cleared[C3] == 80.0


def test_the_next_round_assigns_nothing_while_somebody_may_still_begin_with_the_band_of_this_one() -> None:
    closing = [
        settled(C1, at=100.0),
        settled(C2, at=101.0),
        asks(C3, at=115.0),
        ticked(122.0),
        concluded(at=123.0),
        ticked(124.0),
    ]
    reports = reported(C1, C2, C3, round_id=2, at=125.0)

    waiting = after(*closing, *reports, ticked(174.9))

    assert isinstance(waiting.phase, Open)
    assert isinstance(after(*closing, *reports, ticked(175.1)).phase, Solving)  # two answers' time after the last yes


def test_the_next_round_waits_for_nobody_who_is_through() -> None:
    closing = [asks(C1, at=90.0), settled(C1, at=100.0), asks(C2, at=95.0), settled(C2, at=101.0), ticked(122.0)]
    state = after(*closing)
    assert isinstance(state.phase, Concluding)
    assert state.quiet_at == 0.0


def test_over_the_desk_a_refusal_is_a_stale_round_and_a_yes_is_durable(tmp_path: Path) -> None:
    async def ask(state: State) -> State:
        journal = Journal.open(tmp_path / "journal.sqlite", schema="test")
        clock, solver = FakeClock(start=80.0), FixedSolver()
        desk = Desk(state, rules=RULES, log=journal, solver=solver, clock=clock, idle_s=Second(30.0), observe=unseen)
        try:
            await desk.ask_to_send(C3, 1)
        finally:
            await journal.close()
        return desk.state

    told = asyncio.run(ask(after()))
    assert isinstance(told.phase, Assigned | Settling)
    assert told.phase.round.sending == {C3}
    with pytest.raises(StaleRound, match="given to others"):
        asyncio.run(ask(after(died(C3), shared_again(C1, C2))))
    journal = Journal.open(tmp_path / "journal.sqlite", schema="test")
    assert [event.kind for event in journal.events()] == ["sending"]
    asyncio.run(journal.close())
