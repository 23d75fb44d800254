"""What does an event add to what is known? Facts only; what follows from them and from the time is ``rounds``'s to say."""

from dataclasses import replace
from typing import assert_never

from hushtune_common.units import Second
from hushtune_server.coordinator.adding import on_sum
from hushtune_server.coordinator.clearance import cleared
from hushtune_server.coordinator.ending import close
from hushtune_server.coordinator.events import (
    OWNER,
    Announced,
    ChannelChanged,
    Completed,
    Concluded,
    Dealt,
    Died,
    Event,
    Joined,
    Left,
    Member,
    Reported,
    Sending,
    Settled,
    Solved,
    SolvingFailed,
    Ticked,
    Vowed,
)
from hushtune_server.coordinator.phases import (
    Assigned,
    Concluding,
    Gathering,
    Open,
    Roster,
    Round,
    Rules,
    Settling,
    Solving,
    State,
    is_member,
)
from hushtune_server.coordinator.reallocation import shifted
from hushtune_server.coordinator.solving import not_solved, solved


def taken_in(state: State, event: Event, *, at: Second, rules: Rules) -> State:
    """Return what is known after an event; the very same state when that is nothing new."""
    match event:
        case Joined():
            return _told_layout(_told_worth(_joined(state, event.member, at=at, rules=rules), event), event)
        case Left():
            return _gone(state, event.member, reason=f"left: {event.reason}")
        case Died():
            return _gone(state, event.member, reason=f"died: silent for {event.silent_s:.1f} s")
        case Reported():
            return _reported(state, event, rules=rules)
        case ChannelChanged():
            return _channel_changed(state, event, rules=rules)
        case Solved():
            return solved(state, event, at=at, rules=rules)
        case SolvingFailed():
            return not_solved(state, event, at=at, rules=rules)
        case Sending():
            return cleared(state, event, at=at, rules=rules)
        case Dealt() | Vowed() | Announced():
            return on_sum(state, event, at=at)
        case Completed():
            return _completed(state, event, rules=rules)
        case Settled():
            return _settled(state, event, at=at, rules=rules)
        case Concluded():
            return _concluded(state, event, at=at, rules=rules)
        case Ticked():
            return state
        case _:
            assert_never(event)


def _joined(state: State, member: Member, *, at: Second, rules: Rules) -> State:
    roster, count = state.roster, state.roster.joins.get(member, 0)
    if roster.alive(member) or not is_member(member, rules=rules) or count >= rules.joins_max:
        return state
    gone = {m: reason for m, reason in roster.gone.items() if m != member}
    joins = {**roster.joins, member: count + 1}
    state = replace(state, roster=Roster(joined_at={**roster.joined_at, member: at}, gone=gone, joins=joins))
    if isinstance(state.phase, Gathering) and state.phase.since is None:
        return replace(state, phase=Gathering(since=at))
    return state


def _told_worth(state: State, event: Joined) -> State:
    """Return the state with the owner's word on what updates are worth; the newest counts, and silence takes nothing back."""
    if event.member != OWNER or event.curve is None or event.curve == state.curve:
        return state
    return replace(state, curve=event.curve)


def _told_layout(state: State, event: Joined) -> State:
    """Return the state with the owner's word on how numbers are laid out; the first counts, for the whole run."""
    if event.member != OWNER or event.layout is None or state.layout is not None:
        return state
    return replace(state, layout=event.layout)


def _gone(state: State, member: Member, *, reason: str) -> State:
    if not state.roster.alive(member):
        return state
    return replace(state, roster=replace(state.roster, gone={**state.roster.gone, member: reason}))


def _reported(state: State, event: Reported, *, rules: Rules) -> State:
    report, phase = event.report, state.phase
    if not isinstance(phase, Open) or report.round_id != state.round_id:
        return state
    if report.client in phase.round.reports or report.client not in rules.clients:
        return state
    round_ = replace(phase.round, reports={**phase.round.reports, report.client: report})
    if round_.sum is not None:
        if event.advertisement is None or event.advertisement.member != report.client:
            return state
        round_ = replace(round_, sum=round_.sum.advertised(event.advertisement))
    return replace(state, phase=Open(round=round_))


def _channel_changed(state: State, event: ChannelChanged, *, rules: Rules) -> State:
    phase = state.phase
    if not isinstance(phase, Assigned | Settling) or event.round_id != state.round_id:
        return state
    round_ = shifted(phase.round, event.client, event.channel, rules=rules)
    return state if round_ is phase.round else replace(state, phase=replace(phase, round=round_))


def _completed(state: State, event: Completed, *, rules: Rules) -> State:
    completion, phase = event.completion, state.phase
    key = completion.key
    if (key.run, key.round_id) != (rules.run, state.round_id):
        return state
    # A round ends with its last judgement, and the word of the client that it was about may come a moment later: for the record.
    if not isinstance(phase, Open | Solving | Assigned | Settling | Concluding):
        return state
    round_ = phase.round
    if key.client in round_.completions or key.client not in rules.clients:
        return state
    if completion.uploaded and not round_.granted(key.client):
        return state
    return _with_round(state, replace(round_, completions={**round_.completions, key.client: completion}))


def _settled(state: State, event: Settled, *, at: Second, rules: Rules) -> State:
    key, phase = event.settlement.key, state.phase
    if not isinstance(phase, Assigned | Settling) or (key.run, key.round_id) != (rules.run, state.round_id):
        return state
    round_ = phase.round
    if round_.settled(key.client) or not round_.granted(key.client):
        return state
    if event.settlement.accepted:
        return _with_round(state, replace(round_, accepted_at={**round_.accepted_at, key.client: at}))
    return _with_round(state, replace(round_, refused=round_.refused | {key.client}))


def _with_round(state: State, round_: Round) -> State:
    """Put a changed round back; an assigned round starts to settle with the first word on any update."""
    match state.phase:
        case Open():
            return replace(state, phase=Open(round=round_))
        case Solving():
            return replace(state, phase=Solving(round=round_))
        case Concluding():
            return replace(state, phase=replace(state.phase, round=round_))
        case _:
            return replace(state, phase=Settling(round=round_))


def _concluded(state: State, event: Concluded, *, at: Second, rules: Rules) -> State:
    phase = state.phase
    if not isinstance(phase, Concluding) or event.round_id != state.round_id:
        return state
    last = event.last or state.round_id >= rules.rounds
    return close(state, phase, at=at, last=last, stopped=event.reason if event.last else "")
