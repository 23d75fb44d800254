"""Does a run go on as its state diagram says, whatever arrives and whenever?"""

import json
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hushtune_common.errors import ConfigError
from hushtune_common.messages import ClientId, Completion, DirectiveKind, RunId, Settlement, UpdateKey
from hushtune_common.units import Joule, Second
from hushtune_server.coordinator.events import (
    OWNER,
    Completed,
    Concluded,
    Died,
    Event,
    Joined,
    Left,
    Member,
    Reported,
    Settled,
    Solved,
    SolvingFailed,
    Ticked,
    from_body,
    kind_of,
    to_body,
)
from hushtune_server.coordinator.phases import Closed, Concluding, Failed, Rules, Solve, State
from hushtune_server.coordinator.rounds import advance, fold
from hushtune_server.coordinator.stragglers import Quorum
from tests.fakes import FixedSolver, report_of

C1, C2, C3 = ClientId("c1"), ClientId("c2"), ClientId("c3")
RUN = RunId("run-1")
RULES = Rules(
    run=RUN,
    clients=(C1, C2, C3),
    rounds=1,
    policy=Quorum(share=0.6, wait_after_s=Second(20.0), judging_s=Second(0.0)),
    round_s=Second(900.0),
    report_s=Second(300.0),
    start_wait_s=Second(30.0),
    tick_s=Second(45.0),
)
THREE = replace(RULES, rounds=3)


def joined(*members: str, at: float = 0.0) -> list[Event]:
    return [Joined(at=Second(at), member=Member(m)) for m in members]


def reported(*clients: ClientId, round_id: int = 1, at: float = 1.0) -> list[Event]:
    return [Reported(at=Second(at), report=report_of(c, round_id)) for c in clients]


def solved(*clients: ClientId, round_id: int = 1, at: float = 2.0, deferred: frozenset[ClientId] = frozenset()) -> Event:
    solution = FixedSolver(deferred=deferred).solve(round_id, [report_of(c, round_id) for c in clients])
    return Solved(at=Second(at), round_id=round_id, solution=solution)


def key_of(client: ClientId, *, round_id: int = 1, run: RunId = RUN) -> UpdateKey:
    return UpdateKey(run=run, round_id=round_id, client=client, attempt=1)


def completed(client: ClientId, *, uploaded: bool = True, round_id: int = 1, at: float = 100.0) -> Event:
    completion = Completion(
        key=key_of(client, round_id=round_id),
        uploaded=uploaded,
        reason="" if uploaded else "trainer failed",
        bytes_raw=1000,
        bytes_uploaded=500,
        airtime=Second(1.0),
        train_seconds=Second(60.0),
        energy=Joule(10.0),
    )
    return Completed(at=Second(at), completion=completion)


def settled(client: ClientId, *, accepted: bool = True, round_id: int = 1, at: float = 110.0) -> Event:
    return Settled(at=Second(at), settlement=Settlement(key=key_of(client, round_id=round_id), accepted=accepted))


def concluded(*, round_id: int = 1, last: bool = False, at: float = 115.0) -> Event:
    return Concluded(at=Second(at), round_id=round_id, last=last, reason="flat" if last else "")


def ticked(at: float) -> Event:
    return Ticked(at=Second(at))


def gathered() -> list[Event]:
    return joined(OWNER, C1, C2, C3)


def assigned(*, deferred: frozenset[ClientId] = frozenset()) -> list[Event]:
    return [*gathered(), *reported(C1, C2, C3), solved(C1, C2, C3, deferred=deferred)]


def state_after(*events: Event, rules: Rules = RULES) -> State:
    return fold(events, rules=rules)


def missing_of(state: State) -> dict[ClientId, str]:
    assert isinstance(state.phase, Closed | Failed)
    return dict(state.phase.missing)


# --- the diagram ------------------------------------------------------------------------------------------------------


def test_a_round_goes_through_every_phase() -> None:
    story = [*assigned(), completed(C1), *(settled(c) for c in (C1, C2, C3)), concluded()]
    names = [State().name]
    state = State()
    for event in story:
        state, _ = advance(state, event, rules=THREE)
        names.append(state.name)

    assert list(dict.fromkeys(names)) == ["gathering", "open", "solving", "assigned", "settling", "concluding", "closed"]


def test_solving_is_asked_for_once_with_all_reports() -> None:
    before = state_after(*gathered(), *reported(C1, C2))

    _, effects = advance(before, reported(C3)[0], rules=RULES)

    assert effects == (Solve(round_id=1, reports=tuple(report_of(c, 1) for c in (C1, C2, C3))),)


def test_every_client_is_sent_its_own_assignment() -> None:
    state = state_after(*assigned())

    sent = [d.assignment.client for c in (C1, C2, C3) for d in state.posted(Member(c), after=1) if d.assignment]

    assert sent == [C1, C2, C3]
    assert [d.kind for d in state.posted(OWNER, after=0)] == [DirectiveKind.ROUND_OPENED]


def test_a_round_closes_at_once_when_everybody_is_settled() -> None:
    state = state_after(*assigned(), settled(C1), settled(C2), settled(C3, accepted=False))

    assert isinstance(state.phase, Closed)
    assert state.phase.accepted == (C1, C2)
    assert missing_of(state) == {C3: "refused by the owner"}


# --- from round to round ----------------------------------------------------------------------------------------------


def settled_by_all(round_id: int = 1) -> list[Event]:
    return [settled(c, round_id=round_id) for c in (C1, C2, C3)]


def round_of(round_id: int) -> list[Event]:
    """A round from its reports to its judgements."""
    return [
        *reported(C1, C2, C3, round_id=round_id),
        solved(C1, C2, C3, round_id=round_id),
        *settled_by_all(round_id),
    ]


def test_before_the_next_round_the_owner_alone_is_told_to_conclude_this_one() -> None:
    state = state_after(*assigned(), *settled_by_all(), rules=THREE)

    assert isinstance(state.phase, Concluding)
    said = state.posted(OWNER, after=0)[-1]
    assert (said.kind, said.round_id, said.accepted) == (DirectiveKind.CONCLUDE, 1, (C1, C2, C3))
    assert said not in state.posted(Member(C1), after=0)
    assert advance(state, ticked(500.0), rules=THREE)[0].name == "concluding"


def test_the_next_round_opens_once_the_owner_has_concluded_and_the_last_one_is_closed_without_asking() -> None:
    first = [*gathered(), *round_of(1), concluded(), ticked(116.0)]
    state = state_after(*first, rules=THREE)
    assert (state.round_id, state.name) == (2, "open")

    rest = [*round_of(2), concluded(round_id=2), ticked(117.0), *round_of(3), ticked(5000.0)]
    state = state_after(*first, *rest, rules=THREE)

    assert (state.round_id, state.name) == (3, "closed")
    assert [d.last for d in state.posted(OWNER, after=0) if d.kind is DirectiveKind.ROUND_CLOSED] == [False, True]
    assert [d for d in state.posted(OWNER, after=0) if d.kind is DirectiveKind.CONCLUDE] == []


def test_a_run_that_the_owner_stops_ends_like_any_other_and_says_why() -> None:
    stopped = state_after(*gathered(), *round_of(1), concluded(last=True), rules=THREE)

    assert isinstance(stopped.phase, Closed)
    assert (stopped.phase.last, stopped.phase.stopped) == (True, "flat")
    for member in (OWNER, Member(C1)):
        last = stopped.posted(member, after=0)[-1]
        assert (last.kind, last.last, last.failed_reason) == (DirectiveKind.ROUND_CLOSED, True, "")
    assert advance(stopped, ticked(5000.0), rules=THREE)[0] is stopped


def test_an_owner_that_never_concludes_fails_the_run_and_names_itself() -> None:
    state = state_after(*assigned(), *settled_by_all(), ticked(110.0 + THREE.round_s), rules=THREE)

    assert isinstance(state.phase, Failed)
    assert state.phase.reason == "the owner did not conclude the round within 900 s"


def test_a_completion_that_comes_while_the_owner_concludes_is_noted_and_changes_nothing_else() -> None:
    state = state_after(*assigned(), *settled_by_all(), completed(C1), concluded(), rules=THREE)

    assert isinstance(state.phase, Closed)
    assert list(state.phase.round.completions) == [C1]
    assert state.phase.accepted == (C1, C2, C3)


# --- who is waited for ------------------------------------------------------------------------------------------------


def test_a_start_waits_for_latecomers_once_a_quorum_is_there() -> None:
    quorum = joined(OWNER, C1, C2)

    assert state_after(*quorum, ticked(29.9)).name == "gathering"
    assert state_after(*quorum, ticked(30.0)).name == "open"


def test_nothing_starts_without_the_owner() -> None:
    assert state_after(*joined(C1, C2, C3), ticked(899.0)).name == "gathering"
    assert isinstance(state_after(*joined(C1, C2, C3), ticked(900.0)).phase, Failed)


def test_an_empty_gathering_waits_for_ever() -> None:
    state = State()

    assert advance(state, ticked(1e6), rules=RULES) == (state, ())


def test_reports_are_waited_for_until_their_deadline() -> None:
    two = [*gathered(), *reported(C1, C2)]

    assert state_after(*two, ticked(299.0)).name == "open"
    assert state_after(*two, ticked(300.0)).name == "solving"


def test_a_dead_client_is_not_waited_for() -> None:
    died = Died(at=Second(50.0), member=Member(C3), silent_s=Second(30.0))
    state = state_after(*assigned(), died, settled(C1), settled(C2))

    assert isinstance(state.phase, Closed)
    assert missing_of(state) == {C3: "died: silent for 30.0 s"}


def test_a_client_that_died_after_its_upload_is_still_judged() -> None:
    gone = Left(at=Second(105.0), member=Member(C3), reason="power cut")
    state = state_after(*assigned(), completed(C3), gone, settled(C1), settled(C2))

    assert state.name == "settling"
    assert advance(state, settled(C3), rules=RULES)[0].name == "closed"


def test_a_client_that_came_back_is_waited_for_again() -> None:
    died = Died(at=Second(50.0), member=Member(C3), silent_s=Second(30.0))
    state = state_after(*assigned(), died, *joined(C3, at=60.0), settled(C1), settled(C2))

    assert state.name == "settling"


def test_a_client_that_the_gate_refused_is_not_waited_for() -> None:
    state = state_after(*assigned(deferred=frozenset({C2})), settled(C1), settled(C3))

    assert isinstance(state.phase, Closed)
    assert missing_of(state) == {C2: "gate deferred: fixed"}


def test_a_client_whose_trainer_failed_is_not_waited_for() -> None:
    state = state_after(*assigned(), completed(C2, uploaded=False), settled(C1), settled(C3))

    assert isinstance(state.phase, Closed)
    assert missing_of(state) == {C2: "trainer failed"}


def test_a_quorum_waits_a_while_for_the_straggler() -> None:
    two = [*assigned(), settled(C1, at=100.0), settled(C2, at=110.0)]

    assert state_after(*two, ticked(129.9)).name == "settling"
    assert state_after(*two, ticked(130.0)).name == "closed"


# --- failures ---------------------------------------------------------------------------------------------------------


def test_a_round_fails_when_its_quorum_is_out_of_reach() -> None:
    state = state_after(*assigned(deferred=frozenset({C1, C2})))

    assert isinstance(state.phase, Failed)
    assert "at most 1 can deliver" in state.phase.reason


def test_a_round_without_quorum_fails_at_its_end() -> None:
    state = state_after(*assigned(), settled(C1), ticked(900.0))

    assert isinstance(state.phase, Failed)
    assert missing_of(state) == {
        C1: "accepted, but the round failed",
        C2: "not through in time",
        C3: "not through in time",
    }


def test_a_failure_is_told_to_everybody_as_the_last_word() -> None:
    state = state_after(*assigned(), ticked(900.0))

    for member in (OWNER, Member(C1)):
        last = state.posted(member, after=0)[-1]
        assert (last.kind, last.last) == (DirectiveKind.ROUND_CLOSED, True)
        assert last.failed_reason


@pytest.mark.parametrize("phase_events", [gathered(), assigned(), [*assigned(), completed(C1)], [*assigned(), *settled_by_all()]])
def test_a_round_without_its_owner_fails(phase_events: list[Event]) -> None:
    state = state_after(*phase_events, Died(at=Second(120.0), member=OWNER, silent_s=Second(30.0)), rules=THREE)

    assert isinstance(state.phase, Failed)
    assert state.phase.reason == "the owner is gone (died: silent for 30.0 s)"


def test_a_round_that_cannot_be_solved_fails() -> None:
    infeasible = SolvingFailed(at=Second(2.0), round_id=1, reason="no power is enough")
    state = state_after(*gathered(), *reported(C1, C2, C3), infeasible)

    assert isinstance(state.phase, Failed)
    assert state.phase.reason == "no allocation: no power is enough"


# --- what changes nothing ---------------------------------------------------------------------------------------------

NOTHING: list[tuple[str, list[Event], Event]] = [
    ("a repeated join", gathered(), joined(C1)[0]),
    ("a stranger's join", [], joined("c9")[0]),
    ("a repeated report", [*gathered(), *reported(C1)], reported(C1, at=9.0)[0]),
    ("a late report", assigned(), reported(C1)[0]),
    ("a report for another round", gathered(), reported(C1, round_id=2)[0]),
    ("a repeated solution", assigned(), solved(C1, C2, C3)),
    ("a repeated completion", [*assigned(), completed(C1)], completed(C1, uploaded=False)),
    ("a completion of another round", assigned(), completed(C1, round_id=2)),
    ("an upload that was not granted", assigned(deferred=frozenset({C1})), completed(C1)),
    ("a second judgement", [*assigned(), settled(C1, accepted=False)], settled(C1)),
    ("a judgement of another round", assigned(), settled(C1, round_id=2)),
    ("a judgement of a client without grant", assigned(deferred=frozenset({C1})), settled(C1)),
    ("a judgement after the end", [*assigned(), settled(C1), settled(C2), settled(C3, accepted=False)], settled(C3)),
    ("a conclusion that nobody asked for", assigned(), concluded()),
    ("a conclusion of a last round", [*assigned(), *settled_by_all()], concluded(last=True)),
    ("a tick that is not due", assigned(), ticked(3.0)),
    ("the death of a stranger", gathered(), Died(at=Second(3.0), member=Member("c9"), silent_s=Second(30.0))),
]


@pytest.mark.parametrize(("before", "event"), [c[1:] for c in NOTHING], ids=[c[0] for c in NOTHING])
def test_what_is_late_repeated_or_foreign_changes_nothing(before: list[Event], event: Event) -> None:
    state = state_after(*before)

    after, effects = advance(state, event, rules=RULES)

    assert after is state
    assert effects == ()


def test_an_event_of_another_run_changes_nothing() -> None:
    state = state_after(*assigned())
    foreign = Settled(at=Second(9.0), settlement=Settlement(key=key_of(C1, run=RunId("other")), accepted=True))

    assert advance(state, foreign, rules=RULES)[0] is state


# --- laws over arbitrary stories --------------------------------------------------------------------------------------


def member_events() -> st.SearchStrategy[Event]:
    at, members = st.just(Second(0.0)), st.sampled_from([OWNER, Member(C1), Member(C2), Member(C3), Member("c9")])
    return st.one_of(
        st.builds(Joined, at=at, member=members),
        st.builds(Left, at=at, member=members, reason=st.just("bye")),
        st.builds(Died, at=at, member=members, silent_s=st.just(Second(30.0))),
    )


@st.composite
def round_events(draw: st.DrawFn) -> Event:
    client, round_id, flag = draw(st.sampled_from([C1, C2, C3])), draw(st.integers(1, 3)), draw(st.booleans())
    return draw(
        st.sampled_from(
            [
                reported(client, round_id=round_id)[0],
                solved(C1, C2, C3, round_id=round_id, deferred=frozenset({client} if flag else ())),
                completed(client, uploaded=flag, round_id=round_id),
                settled(client, accepted=flag, round_id=round_id),
                concluded(round_id=round_id, last=flag and client == C1),
                ticked(0.0),
            ]
        )
    )


def stories() -> st.SearchStrategy[list[Event]]:
    """Mostly sensible stories with arbitrary events strewn in, in rising time."""

    def timed(steps: list[tuple[Event, float]]) -> list[Event]:
        now, told = 0.0, list[Event]()
        for event, pause in steps:
            now += pause
            told.append(replace(event, at=Second(now)))
        return told

    usual = [*assigned(), *settled_by_all(), concluded(), ticked(0.0), *round_of(2)]
    step = st.one_of(member_events(), round_events(), st.sampled_from(usual))
    pauses = st.sampled_from([0.0, 0.1, 1.0, 31.0, 301.0])
    free = st.lists(st.tuples(step, pauses), max_size=40)
    led = st.integers(0, len(usual)).flatmap(lambda n: free.map(lambda rest: [*((e, 0.1) for e in usual[:n]), *rest]))
    return st.one_of(free, led).map(timed)


@settings(max_examples=150, deadline=None)
@given(stories())
def test_the_fold_of_what_changed_something_is_the_live_state(story: list[Event]) -> None:
    live, kept = State(), list[Event]()
    for event in story:
        after, _ = advance(live, event, rules=THREE)
        if after is not live:
            kept.append(from_body(kind_of(event), json.loads(json.dumps(to_body(event), allow_nan=False))))
        live = after

    assert fold(kept, rules=THREE) == live


@settings(max_examples=150, deadline=None)
@given(stories())
def test_an_event_told_twice_counts_once(story: list[Event]) -> None:
    state = State()
    for event in story:
        state, _ = advance(state, event, rules=THREE)
        again, effects = advance(state, event, rules=THREE)
        if not isinstance(event, Ticked):
            assert again is state
            assert effects == ()


@settings(max_examples=150, deadline=None)
@given(stories())
def test_directives_are_numbered_without_gaps_and_what_is_over_stays_over(story: list[Event]) -> None:
    state, numbers = State(), list[int]()
    for event in story:
        after, effects = advance(state, event, rules=THREE)
        numbers += [e.directive.seq for e in effects if not isinstance(e, Solve)]
        if isinstance(state.phase, Failed) or (isinstance(state.phase, Closed) and after.round_id == state.round_id):
            assert after.phase is state.phase
        state = after

    assert numbers == list(range(1, state.next_seq))


@settings(max_examples=150, deadline=None)
@given(stories())
def test_only_those_granted_in_this_round_are_ever_accepted(story: list[Event]) -> None:
    state = State()
    for event in story:
        state, _ = advance(state, event, rules=THREE)
        if isinstance(state.phase, Closed):
            assert len(set(state.phase.accepted)) == len(state.phase.accepted) >= THREE.needed
            assert all(state.phase.round.granted(c) for c in state.phase.accepted)


# --- the journal's form -----------------------------------------------------------------------------------------------


def test_an_unknown_kind_of_event_is_refused() -> None:
    with pytest.raises(ConfigError, match="unknown kind"):
        from_body("teleported", {})


def test_a_damaged_event_is_refused() -> None:
    with pytest.raises(ConfigError, match="damaged 'joined'"):
        from_body("joined", {"at": "soon", "member": "c1"})
