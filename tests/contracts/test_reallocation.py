"""Does the band of a client that goes, or has another channel, before it has transmitted reach the others, and never too much?"""

import asyncio
import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hushtune_common.errors import LimitExceeded
from hushtune_common.messages import (
    Assignment,
    Channel,
    ClientId,
    Completion,
    GateDecision,
    Planned,
    RunId,
    Settlement,
    UpdateKey,
)
from hushtune_common.store.journal import Journal
from hushtune_common.units import Hertz, Joule, PowerRatio, Second
from hushtune_server.coordinator.desk import Desk
from hushtune_server.coordinator.events import (
    OWNER,
    ChannelChanged,
    Completed,
    Died,
    Event,
    Joined,
    Left,
    Member,
    Reported,
    Sending,
    Settled,
    Solution,
    Solved,
    SolvingFailed,
    from_body,
    kind_of,
    to_body,
)
from hushtune_server.coordinator.phases import Assigned, Closed, Occasion, Round, Rules, Settling, Solve, State
from hushtune_server.coordinator.record import occasion_of
from hushtune_server.coordinator.rounds import advance, fold, unsolved
from hushtune_server.coordinator.stragglers import Quorum
from tests.fakes import BAND, FakeClock, FixedSolver, assignment_of, report_of

CLIENTS = C1, C2, C3, C4 = tuple(ClientId(f"c{k}") for k in range(1, 5))
RUN = RunId("run-1")
RULES = Rules(
    run=RUN,
    clients=CLIENTS,
    rounds=1,
    policy=Quorum(share=0.25, wait_after_s=Second(500.0), judging_s=Second(0.0)),
    round_s=Second(900.0),
    report_s=Second(300.0),
    start_wait_s=Second(30.0),
    tick_s=Second(45.0),
    band=Hertz(4 * BAND),
)
PLANNED = Planned(wait_s=0.0, train_s=1.0, airtime_s=6.0, plug_in_s=0.0, compute_j=1.0, radio_j=0.6, update_bits=6e6)
AT = Second(0.0)


def solved(bands: dict[ClientId, float], *, order: int, deferred: tuple[ClientId, ...] = ()) -> Solved:
    given_ = (assignment_of(c, 1, granted=c not in deferred) for c in bands)
    assignments = tuple(replace(a, bandwidth=Hertz(bands[a.client]), planned=PLANNED) for a in given_)
    solution = Solution(assignments=assignments, method="m", violation=0.0, gap=None, solve_s=AT)
    return Solved(at=AT, round_id=1, solution=solution, order=order)


def died(client: ClientId) -> Event:
    return Died(at=AT, member=Member(client), silent_s=Second(30.0))


def joined(*members: str) -> list[Event]:
    return [Joined(at=AT, member=Member(m)) for m in members]


def sending(client: ClientId) -> Event:
    return Sending(at=AT, round_id=1, client=client)


def completed(client: ClientId, *, uploaded: bool) -> Event:
    spent = Second(1.0)
    key = UpdateKey(run=RUN, round_id=1, client=client, attempt=1)
    reason = "" if uploaded else "trainer failed"
    word = Completion(
        key=key,
        uploaded=uploaded,
        reason=reason,
        bytes_raw=1,
        bytes_uploaded=1,
        airtime=spent,
        train_seconds=spent,
        energy=Joule(1.0),
    )
    return Completed(at=AT, completion=word)


def changed(client: ClientId, at: float = 5.0, *, round_id: int = 1) -> Event:
    channel = Channel(at=Second(at), gain_main=PowerRatio(1e-11), gain_tap=PowerRatio(1e-12))
    return ChannelChanged(at=AT, round_id=round_id, client=client, channel=channel)


def settled(client: ClientId) -> Event:
    key = UpdateKey(run=RUN, round_id=1, client=client, attempt=1)
    return Settled(at=AT, settlement=Settlement(key=key, accepted=True))


EQUAL = dict.fromkeys(CLIENTS, float(BAND))
START: list[Event] = [
    *joined(OWNER, *CLIENTS),
    *(Reported(at=AT, report=report_of(c, 1)) for c in CLIENTS),
    solved(EQUAL, order=0),
]


def after(*events: Event, rules: Rules = RULES) -> State:
    return fold([*START, *events], rules=rules)


def round_of(state: State) -> Round:
    assert isinstance(state.phase, Assigned | Settling | Closed)
    return state.phase.round


def assigned(state: State, client: ClientId) -> Assignment:
    found = round_of(state).assignment(client)
    assert found is not None
    return found


def test_those_at_work_are_solved_for_again_with_the_band_that_is_free() -> None:
    before = after(sending(C1))
    _, effects = advance(before, died(C4), rules=RULES)
    (order,) = effects
    assert isinstance(order, Solve)
    assert (order.order, [r.client for r in order.reports]) == (1, [C2, C3])
    assert order.band == pytest.approx(3 * BAND)


def test_the_new_assignments_go_to_whom_they_change_and_the_gone_client_finds_its_withdrawal() -> None:
    state = after(sending(C1), died(C4), solved({C2: 1.5 * BAND, C3: 1.5 * BAND}, order=1))
    told = {c: [d.assignment for d in state.posted(Member(c), after=5) if d.assignment] for c in CLIENTS}
    assert told[C1] == []
    assert [a.bandwidth for c in (C2, C3) for a in told[c]] == pytest.approx([1.5 * BAND] * 2)
    (withdrawal,) = told[C4]
    assert (withdrawal.gate.decision, withdrawal.protection) == (GateDecision.DEFERRED, None)


def test_a_client_that_comes_back_before_the_new_solution_keeps_its_assignment() -> None:
    state = after(died(C4), *joined(C4))
    assert unsolved(state, rules=RULES) is None
    answer = solved({C1: 2 * BAND, C2: BAND, C3: BAND}, order=1)
    assert advance(state, answer, rules=RULES) == (state, ())
    again, effects = advance(state, died(C4), rules=RULES)
    assert [e.order for e in effects if isinstance(e, Solve)] == [2]
    assert advance(again, answer, rules=RULES) == (again, ())


def test_what_is_solved_beyond_the_free_band_is_narrowed_at_the_same_power_density() -> None:
    state = after(sending(C1), died(C4), solved({C2: 3 * BAND, C3: BAND}, order=1))
    wide = assigned(state, C2)
    assert wide.bandwidth == pytest.approx(2 * BAND)
    assert wide.power / wide.bandwidth == pytest.approx(0.1 / (3 * BAND))
    assert wide.planned is not None
    assert wide.planned.airtime_s == pytest.approx(6.0 * 3 / 2)
    assert wide.design == assignment_of(C2, 1, granted=True).design


def test_band_that_a_new_assignment_gives_up_is_not_given_out_before_its_client_is_through() -> None:
    shifted = after(died(C4), solved({C1: 0.5 * BAND, C2: 2.5 * BAND, C3: BAND}, order=1))
    assert assigned(shifted, C1).bandwidth == 0.5 * BAND
    assert assigned(shifted, C2).bandwidth == pytest.approx(2 * BAND)
    assert round_of(shifted).held[C1] == BAND


def test_who_began_to_transmit_while_the_solver_worked_keeps_what_it_has() -> None:
    state = after(died(C4), sending(C2), solved({C1: BAND, C2: 2 * BAND, C3: BAND}, order=1))
    assert assigned(state, C2).bandwidth == BAND


def test_a_client_that_the_new_solution_would_refuse_keeps_its_grant() -> None:
    state = after(died(C4), solved({C1: 2 * BAND, C2: BAND, C3: BAND}, order=1, deferred=(C3,)))
    assert assigned(state, C3).gate.decision is GateDecision.GRANTED


def test_a_client_whose_training_failed_leaves_its_band_and_is_told_nothing() -> None:
    state = after(completed(C4, uploaded=False))
    order = unsolved(state, rules=RULES)
    assert order is not None
    assert order.band == pytest.approx(4 * BAND)
    done, _ = advance(state, solved({C1: 2 * BAND, C2: BAND, C3: BAND}, order=1), rules=RULES)
    assert round_of(done).withdrawn == frozenset()
    assert not [d for d in done.posted(Member(C4), after=5) if d.assignment]


def test_an_update_that_was_on_its_way_all_the_same_still_counts() -> None:
    gone = [died(C4), solved({C1: 2 * BAND, C2: BAND, C3: BAND}, order=1), *joined(C4), sending(C4)]
    state = after(*gone, settled(C4))
    assert C4 in round_of(state).accepted_at


@pytest.mark.parametrize(
    "events",
    [
        (sending(C4), died(C4)),
        (completed(C4, uploaded=True), died(C4)),
        (settled(C4), died(C4)),
        (sending(C1), sending(C2), sending(C3), died(C4)),
        (died(C4), SolvingFailed(at=AT, round_id=1, reason="no", order=1)),
    ],
    ids=["it transmits", "it is through", "it was judged", "everybody transmits", "no solution"],
)
def test_where_nothing_can_be_shared_again_nothing_is_ordered(events: tuple[Event, ...]) -> None:
    state = after(*events)
    assert unsolved(state, rules=RULES) is None
    assert not round_of(state).withdrawn


def test_re_allocation_can_be_switched_off() -> None:
    state = after(died(C4), rules=replace(RULES, band=None))
    assert unsolved(state, rules=replace(RULES, band=None)) is None


# --- a channel that changed -------------------------------------------------------------------------------------------


def test_a_changed_channel_is_solved_for_with_all_band_that_those_who_transmit_leave() -> None:
    before = after(sending(C1))
    state, effects = advance(before, changed(C2), rules=RULES)
    (order,) = effects
    assert isinstance(order, Solve)
    gains = {r.client: r.gain_main for r in order.reports}
    assert (order.order, gains) == (1, {C2: 1e-11, C3: 1e-9, C4: 1e-9})
    assert order.band == pytest.approx(3 * BAND)
    assert round_of(state).held == {**EQUAL, C2: 0.0}


def test_whose_channel_changed_gets_less_at_once_and_the_others_the_rest() -> None:
    state = after(changed(C2), solved({C1: BAND, C2: 0.5 * BAND, C3: 1.5 * BAND, C4: BAND}, order=1))
    assert [assigned(state, c).bandwidth / BAND for c in CLIENTS] == pytest.approx([1.0, 0.5, 1.5, 1.0])
    assert round_of(state).changed == frozenset()


def test_whose_channel_changed_is_served_before_those_who_hold_something() -> None:
    state = after(changed(C2), solved({C1: 2 * BAND, C2: BAND, C3: 0.5 * BAND, C4: 0.5 * BAND}, order=1))
    assert assigned(state, C2).bandwidth == pytest.approx(BAND)
    assert assigned(state, C1).bandwidth == pytest.approx(BAND)


def test_a_new_channel_that_carries_nothing_defers_its_client_with_the_solvers_reason() -> None:
    state = after(changed(C2), solved({C1: 2 * BAND, C2: BAND, C3: BAND, C4: BAND}, order=1, deferred=(C2,)))
    assert assigned(state, C2).gate.reason == "fixed"
    assert not round_of(state).granted(C2)
    assert assigned(state, C1).bandwidth == pytest.approx(2 * BAND)
    assert C2 not in round_of(state).withdrawn


def test_without_a_new_solution_a_changed_channel_is_refused_and_the_others_keep_what_they_have() -> None:
    failed = SolvingFailed(at=AT, round_id=1, reason="numbers", order=1)
    state = after(changed(C2), failed)
    assert "numbers" in assigned(state, C2).gate.reason
    assert not round_of(state).granted(C2)
    assert [d.assignment for d in state.posted(Member(C2), after=5)] == [assigned(state, C2)]
    assert assigned(state, C1).bandwidth == BAND


def test_an_answer_for_a_channel_that_changed_again_is_not_taken() -> None:
    state = after(changed(C2), changed(C2, 6.0))
    stale = solved({C1: BAND, C2: BAND, C3: BAND, C4: BAND}, order=1)
    assert advance(state, stale, rules=RULES) == (state, ())
    order = unsolved(state, rules=RULES)
    assert order is not None
    assert order.order == 2


@pytest.mark.parametrize(
    "late",
    [changed(C2, 5.0), changed(C2, 4.0), changed(ClientId("c9")), changed(C1, 9.0), changed(C3, 9.0, round_id=2)],
    ids=["told twice", "older", "nobody's", "of one that transmits", "of another round"],
)
def test_late_or_foreign_word_of_a_channel_changes_nothing(late: Event) -> None:
    state = after(sending(C1), changed(C2))
    assert advance(state, late, rules=RULES) == (state, ())


def test_nothing_is_ordered_for_a_changed_channel_where_re_allocation_is_off() -> None:
    off = replace(RULES, band=None)
    state = after(rules=off)
    assert advance(state, changed(C2), rules=off) == (state, ())


def test_a_channel_may_change_so_often_and_no_more() -> None:
    state = after(*(changed(C2, 1.0 + n) for n in range(RULES.changes_max)))
    assert advance(state, changed(C2, 1e9), rules=RULES) == (state, ())


def unseen(before: State, after_: State, event: Event) -> None:
    """Watch nothing."""


def test_the_last_change_that_counts_may_be_told_twice_and_one_more_is_refused_by_name(tmp_path: Path) -> None:
    state = after(*(changed(C2, 1.0 + n) for n in range(RULES.changes_max)))
    known = round_of(state).reports[C2].channel

    async def tell(channel: Channel) -> None:
        journal = Journal.open(tmp_path / "journal.sqlite", schema="test")
        solver, clock, idle_s = FixedSolver(), FakeClock(start=10.0), Second(30.0)
        desk = Desk(state, rules=RULES, log=journal, solver=solver, clock=clock, idle_s=idle_s, observe=unseen)
        try:
            await desk.change_channel(C2, 1, channel)
        finally:
            await journal.close()

    asyncio.run(tell(known))
    with pytest.raises(LimitExceeded, match="reallocate_db"):
        asyncio.run(tell(replace(known, at=Second(1e9))))


def test_every_solution_of_a_round_is_noted_with_its_occasion() -> None:
    shares = dict.fromkeys((C1, C2, C3), float(BAND))
    events = [died(C4), solved(shares, order=1), changed(C2), SolvingFailed(at=AT, round_id=1, reason="no", order=2)]
    answers = round_of(after(*events)).answers
    assert [a.occasion for a in answers] == [Occasion(), Occasion(gone=frozenset({C4})), Occasion(changed=frozenset({C2}))]
    assert [occasion_of(a) for a in answers] == ["first", "after departure of c4", "after channel change of c2"]
    assert [(a.certificate is None, a.failed) for a in answers] == [(False, ""), (False, ""), (True, "no")]


# --- laws over arbitrary stories --------------------------------------------------------------------------------------


@st.composite
def stories(draw: st.DrawFn) -> list[Event]:
    told = list(START)
    for _ in range(draw(st.integers(0, 25))):
        client = draw(st.sampled_from(CLIENTS))
        bands = {c: BAND * draw(st.floats(0.1, 4.0)) for c in draw(st.sets(st.sampled_from(CLIENTS), min_size=1))}
        told.append(
            draw(
                st.sampled_from(
                    [
                        died(client),
                        Left(at=AT, member=Member(client), reason="bye"),
                        joined(client)[0],
                        sending(client),
                        completed(client, uploaded=draw(st.booleans())),
                        settled(client),
                        changed(client, float(draw(st.integers(0, 30)))),
                        solved(bands, order=draw(st.integers(0, 4)), deferred=tuple(draw(st.sets(st.sampled_from(CLIENTS))))),
                        SolvingFailed(at=AT, round_id=1, reason="no", order=draw(st.integers(1, 4))),
                    ]
                )
            )
        )
    return told


@settings(max_examples=200, deadline=None)
@given(stories())
def test_the_bands_that_clients_may_use_never_exceed_the_total(story: list[Event]) -> None:
    state, widest, out = State(), dict[ClientId, float](), set[ClientId]()
    for event in story:
        before, (state, effects) = state, advance(state, event, rules=RULES)
        if isinstance(event, ChannelChanged) and state is not before:
            widest[event.client] = 0.0  # it has put away what it was assigned
        for assignment in (e.directive.assignment for e in effects if not isinstance(e, Solve)):
            if assignment is not None and assignment.protection is None:
                out.add(assignment.client)  # gone before it transmitted, or refused for its new channel
            elif assignment is not None:
                widest[assignment.client] = max(assignment.bandwidth, widest.get(assignment.client, 0.0))
        if isinstance(event, Completed):
            out.add(event.completion.key.client)
        if isinstance(event, Settled):
            out.add(event.settlement.key.client)
        assert sum(band for c, band in widest.items() if c not in out) <= 4 * BAND * (1 + 1e-9)


@settings(max_examples=200, deadline=None)
@given(stories())
def test_words_told_twice_count_once_and_a_replay_ends_in_the_same_state(story: list[Event]) -> None:
    live, kept = State(), list[Event]()
    for event in story:
        moved, _ = advance(live, event, rules=RULES)
        if moved is not live:
            kept.append(from_body(kind_of(event), json.loads(json.dumps(to_body(event), allow_nan=False))))
        live = moved
        assert advance(live, event, rules=RULES)[0] is live
        assert len(live.outbox) <= len(CLIENTS) + 2
    assert fold(kept, rules=RULES) == live
