"""How does a run go on after an event? A pure state machine; the journal of its events is the run.

::

    Gathering --owner and all clients, or a quorum and a wait--> Open --all reported, or deadline with quorum--> Solving
    Solving --solved--> Assigned --first completion or judgement--> Settling --straggler policy--> Concluding, or the last: Closed
    Concluding --the owner has averaged and, unless it wants no further round, published--> Closed --> Gathering ...
    where updates are only added: every round concludes, the last one as well
    any but Closed --quorum out of reach, round_s over, owner gone, infeasible--> Failed

Laws: late, repeated, stale and foreign events return the very same state and no effects; the fold of the events that changed
something is the live state; directives are numbered without gaps; a client is accepted at most once per round, and only if it
was granted an upload in that round; a phase that is over never changes; the bands that clients hold add up to no more than the
total; nobody is assigned for a channel that is no longer its newest. Who shares the band of somebody that went, or whose channel
changed, is ``reallocation``'s to say; who may begin to transmit, ``clearance``'s.
"""

from collections.abc import Iterable
from dataclasses import replace
from typing import assert_never

from hushtune_common.errors import QuorumMissed
from hushtune_common.messages import DirectiveKind
from hushtune_common.secagg.relay import RelayState
from hushtune_common.units import Second
from hushtune_server.coordinator.adding import deals_closed, vows_closed
from hushtune_server.coordinator.ending import awaited, conclude, fail, round_of
from hushtune_server.coordinator.events import (
    OWNER,
    Event,
    Member,
    Ticked,
)
from hushtune_server.coordinator.facts import taken_in
from hushtune_server.coordinator.outbox import post
from hushtune_server.coordinator.phases import (
    Assigned,
    Closed,
    Concluding,
    Effect,
    Failed,
    Gathering,
    Open,
    Round,
    Rules,
    Settling,
    Solving,
    State,
    is_over,
)
from hushtune_server.coordinator.reallocation import reconsidered
from hushtune_server.coordinator.solving import asked, unsolved
from hushtune_server.coordinator.stragglers import Close, Fail, RoundView, Wait
from hushtune_server.coordinator.sums import Sum

Step = tuple[State, tuple[Effect, ...]]


def advance(state: State, event: Event, *, rules: Rules) -> Step:
    """Return the next state and its effects; the same state object when the event changes nothing."""
    at = Second(max(state.at, event.at))
    taken = taken_in(state, event, at=at, rules=rules)
    ticked = isinstance(event, Ticked)
    if taken is state and (not ticked or _stands_still(state)):
        return state, ()
    moved = _move_on(taken, at=at, ticked=ticked, rules=rules)
    if moved is state and at - state.at < rules.tick_s:
        return state, ()
    after = replace(moved, at=at)
    return after, _effects(state, after, rules=rules)


def fold(events: Iterable[Event], *, rules: Rules) -> State:
    """Return the state that the events lead to."""
    state = State()
    for event in events:
        state, _ = advance(state, event, rules=rules)
    return state


def _stands_still(state: State) -> bool:
    """Whether time alone can change nothing."""
    return is_over(state) or (isinstance(state.phase, Gathering) and state.phase.since is None)


def _effects(before: State, after: State, *, rules: Rules) -> tuple[Effect, ...]:
    posts = tuple(p for p in after.outbox if p.directive.seq >= before.next_seq)
    solve = None if asked(after) == asked(before) else unsolved(after, rules=rules)
    return posts if solve is None else (*posts, solve)


# --- moving on: what follows from the facts and the time --------------------------------------------------------------


def _move_on(state: State, *, at: Second, ticked: bool, rules: Rules) -> State:
    phase = state.phase
    if isinstance(phase, Open | Solving | Assigned | Settling | Concluding) and not state.roster.alive(OWNER):
        return fail(state, f"the owner is gone ({state.roster.gone.get(OWNER, 'never joined')})", at=at, rules=rules)
    match phase:
        case Gathering():
            return _gather(state, phase, at=at, rules=rules)
        case Open():
            return _collect(state, phase.round, at=at, rules=rules)
        case Solving():
            if at - phase.round.opened_at < rules.round_s:
                return state
            return fail(state, f"no allocation within {rules.round_s:g} s", at=at, rules=rules)
        case Assigned() | Settling():
            round_ = reconsidered(phase.round, state.roster, rules=rules)
            if round_ is not phase.round:
                state = replace(state, phase=replace(phase, round=round_))
            try:
                state = deals_closed(state, at=at, rules=rules)
            except QuorumMissed as missed:
                return fail(state, str(missed), at=at, rules=rules)
            return _settle(state, round_of(state.phase) or round_, at=at, rules=rules)
        case Concluding():
            if at - phase.since < rules.round_s:
                return vows_closed(state, at=at, rules=rules)
            return fail(state, f"the owner did not conclude the round within {rules.round_s:g} s", at=at, rules=rules)
        case Closed():
            # The next tick, not the closing event, begins the next round: the end of this one can be seen and recorded.
            if not ticked or is_over(state):
                return state
            gathering = Gathering(since=at)
            return _gather(replace(state, phase=gathering, round_id=state.round_id + 1), gathering, at=at, rules=rules)
        case Failed():
            return state
        case _:
            assert_never(phase)


def _gather(state: State, phase: Gathering, *, at: Second, rules: Rules) -> State:
    since, roster = phase.since, state.roster
    if since is None:
        return state
    present = sorted(roster.joined_at[Member(c)] for c in rules.clients if roster.alive(c))
    told = (state.curve is not None or not rules.measured) and (state.layout is not None or rules.sums is None)
    if roster.alive(OWNER) and len(present) >= rules.needed and told:
        # Who never came is waited for once, before the first round; who has gone is welcome back, but not waited for.
        expected = state.round_id == 1 and any(c not in roster.joined_at for c in rules.clients)
        ready_at = max(since, roster.joined_at[OWNER], present[rules.needed - 1])
        if not expected or at >= ready_at + rules.start_wait_s:
            return _open(state, at=at, rules=rules)
    if at - since < rules.round_s:
        return state
    if roster.alive(OWNER) and rules.measured and state.curve is None:
        return fail(state, f"the owner told no measured utility within {rules.round_s:g} s", at=at, rules=rules)
    owner = "the owner and " if roster.alive(OWNER) else "no owner and "
    reason = f"{owner}{len(present)} of {len(rules.clients)} clients came within {rules.round_s:g} s, {rules.needed} are needed"
    return fail(state, reason, at=at, rules=rules)


def _open(state: State, *, at: Second, rules: Rules) -> State:
    kept = tuple(
        p for p in state.outbox if p.directive.kind is DirectiveKind.ROUND_CLOSED and p.directive.round_id == state.round_id - 1
    )
    begun = None
    if rules.sums is not None and state.layout is not None:
        begun = Sum(terms=rules.sums.terms(state.layout, round_id=state.round_id), relay=RelayState(), since=at)
    return post(replace(state, phase=Open(round=Round(opened_at=at, sum=begun)), outbox=kept), DirectiveKind.ROUND_OPENED)


def _collect(state: State, round_: Round, *, at: Second, rules: Rules) -> State:
    able = [c for c in rules.clients if state.roster.alive(c) and c not in round_.completions]
    ready = {c: round_.reports[c] for c in able if c in round_.reports}
    if len(able) < rules.needed:
        return fail(state, f"{rules.needed} clients are needed, {len(able)} are left", at=at, rules=rules)
    late = at - round_.opened_at >= rules.report_s
    if len(ready) < len(able) and not late:
        return state
    if len(ready) < rules.needed:
        reason = f"{rules.needed} reports are needed, {len(ready)} came within {rules.report_s:g} s"
        return fail(state, reason, at=at, rules=rules)
    if at < state.quiet_at:
        return state  # somebody may still begin with band of the round before
    return replace(state, phase=Solving(round=replace(round_, reports=ready)))


def _settle(state: State, round_: Round, *, at: Second, rules: Rules) -> State:
    waited_for = awaited(round_, state.roster, rules=rules)
    view = RoundView(
        of=len(rules.clients),
        arrived={c: Second(t - round_.opened_at) for c, t in round_.accepted_at.items()},
        waiting=waited_for,
        limit_s=rules.round_s,
        delivered=waited_for & round_.completions.keys(),
    )
    decision = rules.policy.decide(view, Second(at - round_.opened_at))
    match decision:
        case Wait():
            return state
        case Fail():
            return fail(state, decision.reason, at=at, rules=rules)
        case Close():
            return conclude(state, round_, decision.accepted, at=at, rules=rules)
        case _:
            assert_never(decision)
