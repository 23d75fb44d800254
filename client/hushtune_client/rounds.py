"""Where is this client in its round, and what does it have to do next?

::

    Idle --opened--> Reported --assigned, granted--> Assigned --started--> Training --sealed--> Uploading(first part, 1)
    Reported --assigned, refused by the gate--> Completed
    Uploading(part, n) --blocks missing--> Uploading(part, n + 1) --all of it received--> Uploading(next part, n + 2)
    Uploading --last part received, or attempts spent--> Completed
    Assigned, Training --assigned anew--> the same, with what is new --assigned anew, refused--> Completed
    Assigned, Training --channel moved--> the same, which is sealed only once it was assigned anew for that channel
    Reported ... Uploading --failed--> Completed              any of a round --closed--> Closed --verdict--> Idle | Finished

The assignment says which parts there are and in which order; attempts count through all of them.

``advance`` is pure: a state and an event give the next state and the commands to carry out. The journal holds the events, so a
restart folds them again and asks ``resume`` what was left undone. Events that come late, twice or for another round change
nothing.
"""

from dataclasses import replace
from typing import assert_never

from hushtune_client.phases import (
    NOTHING,
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
    SumHeard,
    Tally,
    Terms,
    Train,
    Training,
    TrainingStarted,
    UpdateSealed,
    Uploading,
    VerdictReached,
    Watch,
)
from hushtune_common.messages import (
    Assignment,
    Channel,
    ClientId,
    Completion,
    Directive,
    DirectiveKind,
    GateDecision,
    Part,
    UpdateKey,
)
from hushtune_common.units import Joule, Second

Step = tuple[State, tuple[Command, ...]]
"""The next state, and what to do now."""


def event_of(directive: Directive, *, client: ClientId) -> Event:
    """Return what a directive means to ``client``. Raises ``ValueError`` for an assignment without content."""
    match directive.kind:
        case DirectiveKind.ROUND_OPENED:
            return RoundOpened(round_id=directive.round_id)
        case DirectiveKind.ASSIGNED:
            if directive.assignment is None or directive.assignment.client != client:
                raise ValueError(f"directive {directive.seq} assigns nothing to {client}")
            return AssignmentReceived(assignment=directive.assignment)
        case DirectiveKind.ROUND_CLOSED:
            return RoundClosed(
                round_id=directive.round_id,
                accepted=client in directive.accepted,
                failed=directive.failed_reason,
                last=directive.last,
            )
        case DirectiveKind.DRAIN:
            return Drained()
        case DirectiveKind.SUM:
            return SumHeard(round_id=directive.round_id)
        case DirectiveKind.CONCLUDE:
            raise ValueError(f"directive {directive.seq} is for the owner, not for {client}")


def advance(state: State, event: Event, *, terms: Terms) -> Step:
    """Return the next state and what to do now. Late, repeated and foreign events return the same state and nothing to do."""
    match event:
        case RoundOpened():
            return _opened(state, event)
        case AssignmentReceived():
            return _assigned(state, event, terms=terms)
        case TrainingStarted():
            if isinstance(state, Assigned) and state.round_id == event.round_id:
                return Training(assignment=state.assignment, moved=state.moved), (Watch(round_id=state.round_id),)
            return state, ()
        case ChannelMoved():
            return _moved(state, event)
        case UpdateSealed():
            return _sealed(state, event, terms=terms)
        case FrameAnswered():
            return _answered(state, event, terms=terms)
        case RoundFailed():
            return _failed(state, event, terms=terms)
        case RoundClosed():
            return _closed(state, event)
        case VerdictReached():
            if isinstance(state, Closed) and state.round_id == event.round_id:
                return _after(state.round_id, last=state.last)
            return state, ()
        case SumHeard():
            return state, ()
        case Drained():
            return _drained(state)
        case _:
            assert_never(event)


def resume(state: State) -> tuple[Command, ...]:
    """Return the commands that a restarted process repeats; each is idempotent towards its peer."""
    match state:
        case Idle():
            return ()
        case Reported():
            return (Measure(round_id=state.round_id),)
        case Assigned():
            return (Train(assignment=state.assignment),)
        case Training():
            return (Train(assignment=state.assignment), Watch(round_id=state.round_id))
        case Uploading():
            return (Send(assignment=state.assignment, part=state.part, attempt=state.attempt, only=state.only),)
        case Completed():
            return (Conclude(completion=state.completion),)
        case Closed():
            return (AskVerdict(round_id=state.round_id),)
        case Finished():
            return (Stop(),)
        case _:
            assert_never(state)


def _opened(state: State, event: RoundOpened) -> Step:
    newer = Reported(round_id=event.round_id), (Measure(round_id=event.round_id),)
    match state:
        case Idle():
            return newer if event.round_id > state.closed_round else (state, ())
        case Finished():
            return state, ()
        case Closed():
            # The verdict of the round before is no reason to miss this one; it stays readable at the owner.
            return newer if event.round_id > state.round_id else (state, ())
        case Reported() | Assigned() | Training() | Uploading() | Completed():
            if event.round_id <= state.round_id:
                return state, ()
            return newer[0], (Abandon(round_id=state.round_id), *newer[1])
        case _:
            assert_never(state)


def _assigned(state: State, event: AssignmentReceived, *, terms: Terms) -> Step:
    assignment = event.assignment
    if not isinstance(state, Reported | Assigned | Training) or state.round_id != assignment.round_id:
        return state, ()
    if not isinstance(state, Reported):
        return _assigned_anew(state, assignment, terms=terms)
    if assignment.gate.decision is GateDecision.GRANTED:
        return Assigned(assignment=assignment), (Train(assignment=assignment),)
    return _refused(assignment, terms=terms)


def _assigned_anew(state: Assigned | Training, assignment: Assignment, *, terms: Terms) -> Step:
    """Take a newer assignment of the round; training goes on, or ends because the grant was withdrawn."""
    if assignment == state.assignment:
        return state, ()
    if assignment.gate.decision is GateDecision.GRANTED:
        if not _is_for(assignment, state.assignment.channel):
            return state, ()
        moved = None if _is_for(assignment, state.moved) else state.moved
        return replace(state, assignment=assignment, moved=moved), (Retune(assignment=assignment),)
    completed, commands = _refused(assignment, terms=terms)
    return completed, (Abandon(round_id=state.round_id), *commands)


def _is_for(assignment: Assignment, channel: Channel | None) -> bool:
    """Whether an assignment was made for ``channel`` or a newer one."""
    return channel is None or (assignment.channel is not None and assignment.channel.at >= channel.at)


def _moved(state: State, event: ChannelMoved) -> Step:
    if not isinstance(state, Assigned | Training) or state.round_id != event.round_id:
        return state, ()
    known = state.moved or state.assignment.channel
    if known is not None and event.channel.at <= known.at:
        return state, ()
    return replace(state, moved=event.channel), ()


def _refused(assignment: Assignment, *, terms: Terms) -> Step:
    reason = f"gate {assignment.gate.decision}: {assignment.gate.reason}"
    return _conclude(terms, round_id=assignment.round_id, attempt=1, uploaded=False, reason=reason, tally=NOTHING)


def _sealed(state: State, event: UpdateSealed, *, terms: Terms) -> Step:
    if not isinstance(state, Assigned | Training) or state.round_id != event.round_id:
        return state, ()
    if not _is_for(event.assignment or state.assignment, state.moved):
        return _failed(state, RoundFailed(round_id=state.round_id, reason="sealed for a channel that is no more"), terms=terms)
    tally = replace(NOTHING, bytes_raw=event.bytes_raw, train_seconds=event.train_seconds, energy=event.energy)
    assignment = event.assignment or state.assignment
    sending = Uploading(assignment=assignment, part=assignment.parts[0], attempt=1, only=None, tally=tally)
    return sending, resume(sending)


def _answered(state: State, event: FrameAnswered, *, terms: Terms) -> Step:
    if not isinstance(state, Uploading):
        return state, ()
    if (state.round_id, state.part, state.attempt) != (event.round_id, event.part, event.attempt):
        return state, ()
    tally = replace(
        state.tally,
        bytes_uploaded=state.tally.bytes_uploaded + event.frame_bytes,
        airtime=Second(state.tally.airtime + event.airtime),
        energy=Joule(state.tally.energy + event.energy),
    )
    part = state.part if event.missing else _part_after(state)
    if part is None:
        return _conclude(terms, round_id=state.round_id, attempt=state.attempt, uploaded=True, reason="", tally=tally)
    if state.attempt >= terms.attempts_max:
        lacking = f"{len(event.missing)} blocks of the {part} missing" if event.missing else f"the {part} not sent"
        reason = f"channel outage: {lacking} after {state.attempt} attempts"
        return _conclude(terms, round_id=state.round_id, attempt=state.attempt, uploaded=False, reason=reason, tally=tally)
    again = replace(state, part=part, attempt=state.attempt + 1, only=event.missing or None, tally=tally)
    return again, resume(again)


def _part_after(state: Uploading) -> Part | None:
    """Return what is to be sent once the current part is whole; nothing after the last one."""
    parts = state.assignment.parts
    following = parts[parts.index(state.part) + 1 :]
    return following[0] if following else None


def _failed(state: State, event: RoundFailed, *, terms: Terms) -> Step:
    if not isinstance(state, Reported | Assigned | Training | Uploading) or state.round_id != event.round_id:
        return state, ()
    attempt, tally = (state.attempt, state.tally) if isinstance(state, Uploading) else (1, NOTHING)
    return _conclude(terms, round_id=state.round_id, attempt=attempt, uploaded=False, reason=event.reason, tally=tally)


def _conclude(terms: Terms, *, round_id: int, attempt: int, uploaded: bool, reason: str, tally: Tally) -> Step:
    key = UpdateKey(run=terms.run, round_id=round_id, client=terms.client, attempt=attempt)
    completion = Completion(
        key=key,
        uploaded=uploaded,
        reason=reason,
        bytes_raw=tally.bytes_raw,
        bytes_uploaded=tally.bytes_uploaded,
        airtime=tally.airtime,
        train_seconds=tally.train_seconds,
        energy=tally.energy,
    )
    return Completed(completion=completion), (Conclude(completion=completion),)


def _closed(state: State, event: RoundClosed) -> Step:
    match state:
        case Idle():
            if event.round_id <= state.closed_round:
                return state, ()
            return _after(event.round_id, last=event.last)
        case Closed() | Finished():
            return state, ()
        case Reported() | Assigned() | Training() | Uploading() | Completed():
            if event.round_id != state.round_id:
                return state, ()
        case _:
            assert_never(state)
    abandoned = () if isinstance(state, Completed) else (Abandon(round_id=event.round_id),)
    uploaded = isinstance(state, Completed) and state.completion.uploaded
    if (uploaded or event.accepted) and not event.failed:
        return Closed(round_id=event.round_id, last=event.last), (*abandoned, AskVerdict(round_id=event.round_id))
    # The owner judges what was sent in full, in a round that came to an end.
    after, commands = _after(event.round_id, last=event.last)
    return after, (*abandoned, *commands)


def _drained(state: State) -> Step:
    match state:
        case Closed():
            return replace(state, last=True), ()
        case Finished():
            return state, ()
        case Idle():
            return _after(state.closed_round, last=True)
        case Reported() | Assigned() | Training() | Uploading() | Completed():
            return Finished(round_id=state.round_id), (Abandon(round_id=state.round_id), Stop())
        case _:
            assert_never(state)


def _after(round_id: int, *, last: bool) -> Step:
    return (Finished(round_id=round_id), (Stop(),)) if last else (Idle(closed_round=round_id), ())
