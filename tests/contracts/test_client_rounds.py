"""Does a client's round go on correctly after every event, whatever is late, repeated or lost?"""

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hushtune_client.phases import (
    Abandon,
    AskVerdict,
    Assigned,
    AssignmentReceived,
    ChannelMoved,
    Closed,
    Command,
    Completed,
    Conclude,
    Drained,
    Event,
    Finished,
    FrameAnswered,
    Idle,
    Measure,
    Reported,
    Retune,
    RoundClosed,
    RoundFailed,
    RoundOpened,
    Send,
    State,
    Stop,
    Terms,
    Train,
    Training,
    TrainingStarted,
    UpdateSealed,
    Uploading,
    VerdictReached,
    Watch,
)
from hushtune_client.rounds import advance, event_of, resume
from hushtune_common.messages import Channel, ClientId, Directive, DirectiveKind, Part, Protection
from hushtune_common.units import FlopPerSecond, Hertz, Joule, PowerRatio, Second
from tests.loopback import CLIENT, REFUSED, RUN, assignment_of

TERMS = Terms(run=RUN, client=CLIENT, attempts_max=3)
OPENED = RoundOpened(round_id=1)
ASSIGNED = AssignmentReceived(assignment=assignment_of())
STARTED = TrainingStarted(round_id=1)
SEALED = UpdateSealed(round_id=1, bytes_raw=1000, train_seconds=Second(5.0), energy=Joule(20.0))
CLOSED = RoundClosed(round_id=1, accepted=True, failed="", last=False)


def answered(attempt: int, *missing: int, round_id: int = 1, part: Part = Part.PAYLOAD) -> FrameAnswered:
    return FrameAnswered(
        round_id=round_id,
        part=part,
        attempt=attempt,
        frame_bytes=100,
        airtime=Second(2.0),
        energy=Joule(0.5),
        missing=missing,
    )


def play(*events: Event, state: State | None = None) -> tuple[State, list[Command]]:
    """Fold the events; return the last state and every command on the way."""
    commands: list[Command] = []
    state = state or Idle()
    for event in events:
        state, now = advance(state, event, terms=TERMS)
        commands.extend(now)
    return state, commands


def test_a_round_without_trouble_goes_from_report_to_verdict() -> None:
    state, commands = play(OPENED, ASSIGNED, STARTED, SEALED, answered(1), CLOSED, VerdictReached(round_id=1))
    assert state == Idle(closed_round=1)
    assert [type(c) for c in commands] == [Measure, Train, Watch, Send, Conclude, AskVerdict]


def test_the_completion_adds_up_what_all_attempts_cost() -> None:
    state, _ = play(OPENED, ASSIGNED, STARTED, SEALED, answered(1, 3, 4), answered(2))
    assert isinstance(state, Completed)
    done = state.completion
    assert (done.uploaded, done.key.attempt, done.bytes_raw, done.bytes_uploaded) == (True, 2, 1000, 200)
    assert (done.airtime, done.train_seconds, done.energy) == (4.0, 5.0, 21.0)


def test_only_the_missing_blocks_are_sent_again() -> None:
    _, commands = play(OPENED, ASSIGNED, SEALED, answered(1, 7, 9))
    assert commands[-1] == Send(assignment=ASSIGNED.assignment, part=Part.PAYLOAD, attempt=2, only=(7, 9))


KEYED = AssignmentReceived(assignment=assignment_of(protection=Protection.KEY))


def sends(commands: list[Command]) -> list[tuple[Part, int, tuple[int, ...] | None]]:
    return [(c.part, c.attempt, c.only) for c in commands if isinstance(c, Send)]


def test_the_key_goes_before_what_it_opens_and_attempts_count_through_both() -> None:
    key = Part.KEY
    state, commands = play(OPENED, KEYED, SEALED, answered(1, 0, part=key), answered(2, part=key), answered(3))
    assert sends(commands) == [(key, 1, None), (key, 2, (0,)), (Part.PAYLOAD, 3, None)]
    assert isinstance(state, Completed)
    assert (state.completion.uploaded, state.completion.key.attempt, state.completion.bytes_uploaded) == (True, 3, 300)


def test_encryption_alone_sends_the_update_and_no_key() -> None:
    alone = AssignmentReceived(assignment=assignment_of(protection=Protection.CRYPTO_ONLY))
    state, commands = play(OPENED, alone, SEALED, answered(1))
    assert sends(commands) == [(Part.PAYLOAD, 1, None)]
    assert isinstance(state, Completed)
    assert state.completion.uploaded


def test_an_answer_about_another_part_changes_nothing() -> None:
    state, _ = play(OPENED, KEYED, SEALED)
    assert play(answered(1), state=state) == (state, [])


def test_a_key_that_takes_every_attempt_leaves_none_for_the_update() -> None:
    key = Part.KEY
    state, commands = play(OPENED, KEYED, SEALED, answered(1, 0, part=key), answered(2, 0, part=key), answered(3, part=key))
    assert [part for part, _, _ in sends(commands)] == [key] * 3
    assert isinstance(state, Completed)
    assert (state.completion.uploaded, state.completion.reason) == (
        False,
        "channel outage: the payload not sent after 3 attempts",
    )


def test_after_the_last_attempt_the_client_gives_up_and_says_so() -> None:
    state, commands = play(OPENED, ASSIGNED, SEALED, answered(1, 7), answered(2, 7), answered(3, 7))
    assert isinstance(state, Completed)
    assert not state.completion.uploaded
    assert state.completion.reason == "channel outage: 1 blocks of the payload missing after 3 attempts"
    assert sum(isinstance(c, Send) for c in commands) == TERMS.attempts_max


def test_a_refused_gate_trains_nothing_and_gives_the_gates_reason() -> None:
    state, commands = play(OPENED, AssignmentReceived(assignment=assignment_of(gate=REFUSED)))
    assert [type(c) for c in commands] == [Measure, Conclude]
    assert isinstance(state, Completed)
    assert REFUSED.reason in state.completion.reason
    assert play(CLOSED, state=state) == (Closed(round_id=1, last=False), [AskVerdict(round_id=1)])


def test_nobody_asks_for_a_verdict_on_what_was_not_sent() -> None:
    refused, _ = play(OPENED, AssignmentReceived(assignment=assignment_of(gate=REFUSED)))
    assert play(replace(CLOSED, accepted=False), state=refused) == (Idle(closed_round=1), [])


def test_nobody_asks_for_a_verdict_on_a_failed_round() -> None:
    sent, _ = play(OPENED, ASSIGNED, SEALED, answered(1))
    closed = RoundClosed(round_id=1, accepted=False, failed="the owner is gone", last=True)
    assert play(closed, state=sent) == (Finished(round_id=1), [Stop()])


@pytest.mark.parametrize("done", [(), (ASSIGNED,), (ASSIGNED, STARTED), (ASSIGNED, STARTED, SEALED)], ids=len)
def test_a_round_that_closes_early_is_abandoned(done: tuple[Event, ...]) -> None:
    state, commands = play(OPENED, *done, replace(CLOSED, accepted=False))
    assert state == Idle(closed_round=1)
    assert commands[-1] == Abandon(round_id=1)


@pytest.mark.parametrize("done", [(), (ASSIGNED,), (ASSIGNED, STARTED), (ASSIGNED, STARTED, SEALED)], ids=len)
def test_a_fault_ends_in_a_completion_with_its_reason(done: tuple[Event, ...]) -> None:
    state, commands = play(OPENED, *done, RoundFailed(round_id=1, reason="TRAINER_FAILED: died"))
    assert isinstance(state, Completed)
    assert (state.completion.uploaded, state.completion.reason) == (False, "TRAINER_FAILED: died")
    assert isinstance(commands[-1], Conclude)


def test_the_last_round_ends_the_process_after_its_verdict() -> None:
    last = replace(CLOSED, last=True)
    state, commands = play(OPENED, ASSIGNED, SEALED, answered(1), last)
    assert state == Closed(round_id=1, last=True)
    assert play(VerdictReached(round_id=1), state=state) == (Finished(round_id=1), [Stop()])
    assert Stop() not in commands


def test_a_run_that_fails_before_its_first_round_ends_the_process() -> None:
    closed = RoundClosed(round_id=1, accepted=False, failed="too few clients", last=True)
    assert play(closed) == (Finished(round_id=1), [Stop()])


def test_draining_stops_the_work_but_not_an_awaited_verdict() -> None:
    training, _ = play(OPENED, ASSIGNED, STARTED)
    assert play(Drained(), state=training) == (Finished(round_id=1), [Abandon(round_id=1), Stop()])
    closed, _ = play(OPENED, ASSIGNED, SEALED, answered(1), CLOSED)
    assert play(Drained(), state=closed) == (Closed(round_id=1, last=True), [])


def test_a_newer_round_replaces_one_whose_end_was_missed() -> None:
    state, commands = play(OPENED, ASSIGNED, STARTED, RoundOpened(round_id=2))
    assert state == Reported(round_id=2)
    assert commands[-2:] == [Abandon(round_id=1), Measure(round_id=2)]


def test_an_assignment_for_somebody_else_is_not_an_event() -> None:
    foreign = assignment_of(client=ClientId("c2"))
    with pytest.raises(ValueError, match="assigns nothing to c1"):
        event_of(Directive(seq=1, kind=DirectiveKind.ASSIGNED, round_id=1, assignment=foreign), client=CLIENT)


def test_what_the_owner_alone_is_told_is_no_event_of_a_client() -> None:
    with pytest.raises(ValueError, match="for the owner"):
        event_of(Directive(seq=1, kind=DirectiveKind.CONCLUDE, round_id=1), client=CLIENT)


NARROW = AssignmentReceived(assignment=replace(ASSIGNED.assignment, bandwidth=Hertz(1e6), clock=FlopPerSecond(1e12)))
WITHDRAWN = AssignmentReceived(assignment=assignment_of(gate=REFUSED))


@pytest.mark.parametrize("done", [(), (STARTED,)], ids=["assigned", "training"])
def test_a_newer_assignment_changes_the_clock_and_what_is_sent_but_not_the_training(done: tuple[Event, ...]) -> None:
    state, commands = play(OPENED, ASSIGNED, *done, NARROW, SEALED)
    assert [type(c) for c in commands if not isinstance(c, Watch)] == [Measure, Train, Retune, Send]
    assert isinstance(state, Uploading)
    assert state.assignment == NARROW.assignment


def test_what_was_sealed_for_an_older_assignment_is_sent_with_it() -> None:
    state, _ = play(OPENED, ASSIGNED, STARTED, NARROW, replace(SEALED, assignment=ASSIGNED.assignment))
    assert isinstance(state, Uploading)
    assert state.assignment == ASSIGNED.assignment


@pytest.mark.parametrize("newer", [NARROW, WITHDRAWN], ids=["changed", "withdrawn"])
def test_once_uploading_the_assignment_stays(newer: AssignmentReceived) -> None:
    state, _ = play(OPENED, ASSIGNED, STARTED, SEALED)
    assert play(newer, state=state) == (state, [])


def test_a_withdrawn_grant_ends_the_training_with_the_reason() -> None:
    state, commands = play(OPENED, ASSIGNED, STARTED, WITHDRAWN)
    assert [type(c) for c in commands[3:]] == [Abandon, Conclude]
    assert isinstance(state, Completed)
    assert REFUSED.reason in state.completion.reason


def at(seconds: float) -> Channel:
    return Channel(at=Second(seconds), gain_main=PowerRatio(1e-10), gain_tap=PowerRatio(1e-12))


def assigned_for(seconds: float, *, bandwidth: float = 1e6) -> AssignmentReceived:
    return AssignmentReceived(assignment=replace(assignment_of(), bandwidth=Hertz(bandwidth), channel=at(seconds)))


MOVED = ChannelMoved(round_id=1, channel=at(5.0))


@pytest.mark.parametrize("done", [(), (STARTED,)], ids=["assigned", "training"])
def test_after_the_channel_moved_only_an_assignment_for_it_can_be_sent(done: tuple[Event, ...]) -> None:
    waiting, _ = play(OPENED, assigned_for(1.0), *done, MOVED, assigned_for(2.0))
    spoiled, _ = play(SEALED, state=waiting)
    assert isinstance(spoiled, Completed)
    assert "channel" in spoiled.completion.reason
    sent, commands = play(assigned_for(5.0), SEALED, state=waiting)
    assert isinstance(sent, Uploading)
    assert sent.assignment.channel == MOVED.channel
    assert [type(c) for c in commands] == [Retune, Send]


def test_an_assignment_for_an_older_channel_does_not_replace_a_newer_one() -> None:
    state, _ = play(OPENED, assigned_for(5.0))
    assert play(assigned_for(1.0, bandwidth=2e6), state=state) == (state, [])


def test_word_of_an_older_channel_changes_nothing() -> None:
    state, _ = play(OPENED, assigned_for(5.0), STARTED)
    assert play(MOVED, ChannelMoved(round_id=2, channel=at(9.0)), state=state) == (state, [])


# --- laws over any order of events ------------------------------------------------------------------------------------

_rounds = st.integers(1, 3)
_protections = st.sampled_from(Protection)
_blocks = st.sets(st.integers(0, 5), max_size=3).map(lambda found: tuple(sorted(found)))
_events: st.SearchStrategy[Event] = st.one_of(
    st.builds(RoundOpened, round_id=_rounds),
    st.tuples(_rounds, _protections).map(lambda rp: AssignmentReceived(assignment=assignment_of(rp[0], protection=rp[1]))),
    _rounds.map(lambda r: AssignmentReceived(assignment=assignment_of(r, gate=REFUSED))),
    st.tuples(_rounds, st.floats(1e5, 1e7)).map(
        lambda drawn: AssignmentReceived(assignment=replace(assignment_of(drawn[0]), bandwidth=Hertz(drawn[1])))
    ),
    st.builds(TrainingStarted, round_id=_rounds),
    st.tuples(_rounds, st.integers(0, 5)).map(lambda drawn: ChannelMoved(round_id=drawn[0], channel=at(float(drawn[1])))),
    st.integers(0, 5).map(lambda seconds: assigned_for(float(seconds))),
    _rounds.map(lambda r: replace(SEALED, round_id=r)),
    st.tuples(st.integers(1, 4), _blocks, _rounds, st.sampled_from(Part)).map(
        lambda drawn: answered(drawn[0], *drawn[1], round_id=drawn[2], part=drawn[3])
    ),
    st.builds(RoundFailed, round_id=_rounds, reason=st.just("lost")),
    st.builds(RoundClosed, round_id=_rounds, accepted=st.booleans(), failed=st.sampled_from(["", "no"]), last=st.booleans()),
    st.builds(VerdictReached, round_id=_rounds),
    st.just(Drained()),
)


def current_round(state: State) -> int:
    return state.closed_round if isinstance(state, Idle) else state.round_id


@given(st.lists(_events, max_size=40))
def test_an_event_that_comes_twice_changes_nothing_the_second_time(events: list[Event]) -> None:
    state: State = Idle()
    for event in events:
        state, _ = advance(state, event, terms=TERMS)
        assert advance(state, event, terms=TERMS) == (state, ())


@given(st.lists(_events, max_size=40))
def test_rounds_never_go_back_and_attempts_stay_within_their_limit(events: list[Event]) -> None:
    state: State = Idle()
    for event in events:
        before = current_round(state)
        state, commands = advance(state, event, terms=TERMS)
        assert current_round(state) >= before
        assert all(c.attempt <= TERMS.attempts_max for c in commands if isinstance(c, Send))


@given(st.lists(_events, max_size=40))
def test_parts_are_sent_in_order_and_attempts_rise_one_by_one(events: list[Event]) -> None:
    _, commands = play(*events)
    for round_id in {c.assignment.round_id for c in commands if isinstance(c, Send)}:
        sent = [c for c in commands if isinstance(c, Send) and c.assignment.round_id == round_id]
        parts = sent[0].assignment.parts
        assert [c.attempt for c in sent] == list(range(1, len(sent) + 1))
        order = [parts.index(c.part) for c in sent]
        assert order == sorted(order)
        assert sent[0].only is None
        assert all((after.part == before.part) == (after.only is not None) for before, after in pairwise(sent))


@given(st.lists(_events, max_size=40))
def test_nothing_is_sent_with_an_assignment_for_a_channel_older_than_the_newest_told(events: list[Event]) -> None:
    state, newest = play(OPENED)[0], dict[int, float]()
    for event in events:
        before = state
        state, commands = advance(state, event, terms=TERMS)
        if isinstance(event, ChannelMoved) and state != before:
            newest[event.round_id] = event.channel.at
        for sent in (c.assignment for c in commands if isinstance(c, Send)):
            assert sent.round_id not in newest or (sent.channel is not None and sent.channel.at >= newest[sent.round_id])


@given(st.lists(_events, max_size=40))
def test_each_round_is_concluded_at_most_once_and_never_without_a_report(events: list[Event]) -> None:
    _, commands = play(*events)
    concluded = [c.completion.key.round_id for c in commands if isinstance(c, Conclude)]
    measured = [c.round_id for c in commands if isinstance(c, Measure)]
    assert len(concluded) == len(set(concluded))
    assert set(concluded) <= set(measured)


@given(st.lists(_events, max_size=40))
def test_a_restart_repeats_exactly_the_work_that_was_left(events: list[Event]) -> None:
    state, _ = play(*events)
    expected: dict[type[State], list[type[Command]]] = {
        Idle: [],
        Reported: [Measure],
        Assigned: [Train],
        Training: [Train, Watch],
        Uploading: [Send],
        Completed: [Conclude],
        Closed: [AskVerdict],
        Finished: [Stop],
    }
    assert [type(c) for c in resume(state)] == expected[type(state)]


@given(st.lists(_events, max_size=30))
def test_once_finished_nothing_moves(events: list[Event]) -> None:
    finished = Finished(round_id=3)
    assert play(*events, state=finished) == (finished, [])
