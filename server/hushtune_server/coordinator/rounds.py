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

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import assert_never

from hushtune_common.errors import QuorumMissed
from hushtune_common.messages import Assignment, ClientId, DirectiveKind
from hushtune_common.secagg.relay import RelayState
from hushtune_common.units import Second
from hushtune_server.coordinator.adding import deals_closed, met, on_sum, vows_closed
from hushtune_server.coordinator.clearance import cleared, quiet_at
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
from hushtune_server.coordinator.outbox import post
from hushtune_server.coordinator.phases import (
    Answer,
    Assigned,
    Closed,
    Concluding,
    Effect,
    Failed,
    Gathering,
    Open,
    Phase,
    Roster,
    Round,
    Rules,
    Settling,
    Solve,
    Solving,
    State,
    is_member,
    is_over,
)
from hushtune_server.coordinator.reallocation import free_band, given_up_on, reconsidered, shared_again, shifted, waiting
from hushtune_server.coordinator.stragglers import Close, Fail, RoundView, Wait
from hushtune_server.coordinator.sums import Sum

Step = tuple[State, tuple[Effect, ...]]


def advance(state: State, event: Event, *, rules: Rules) -> Step:
    """Return the next state and its effects; the same state object when the event changes nothing."""
    at = Second(max(state.at, event.at))
    taken = _take_in(state, event, at=at, rules=rules)
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


def unsolved(state: State, *, rules: Rules) -> Solve | None:
    """Return what a restarted coordinator has to solve (again), given the state and nothing else."""
    match state.phase:
        case Solving():
            reports = state.phase.round.reports
            return Solve(round_id=state.round_id, reports=tuple(reports[c] for c in sorted(reports)), curve=state.curve)
        case Assigned() | Settling():
            return _to_solve_again(state, state.phase.round, rules=rules)
        case _:
            return None


def _to_solve_again(state: State, round_: Round, *, rules: Rules) -> Solve | None:
    left = waiting(round_, state.roster, rules=rules)
    if not round_.ordered or not left:
        return None
    band = free_band(round_, others_than=round_.ordered.gone | {*left}, rules=rules)
    reports = tuple(round_.reports[c] for c in sorted(left))
    return Solve(round_id=state.round_id, reports=reports, order=round_.orders, band=band, curve=state.curve)


def awaited(round_: Round, roster: Roster, *, rules: Rules) -> frozenset[ClientId]:
    """Return the clients whose update may still be accepted: granted, not judged, and either uploaded or alive and at work."""
    granted = round_.grantees()
    return frozenset(c for c in rules.clients if c in granted and not round_.settled(c) and _at_work(round_, roster, c))


def _stands_still(state: State) -> bool:
    """Whether time alone can change nothing."""
    return is_over(state) or (isinstance(state.phase, Gathering) and state.phase.since is None)


def _effects(before: State, after: State, *, rules: Rules) -> tuple[Effect, ...]:
    posts = tuple(p for p in after.outbox if p.directive.seq >= before.next_seq)
    solve = None if _asked(after) == _asked(before) else unsolved(after, rules=rules)
    return posts if solve is None else (*posts, solve)


def _asked(state: State) -> tuple[int, int] | None:
    """Return which solution is being waited for: of which round, and the how many-th after its first."""
    match state.phase:
        case Solving():
            return state.round_id, 0
        case Assigned() | Settling():
            return (state.round_id, state.phase.round.orders) if state.phase.round.ordered else None
        case _:
            return None


# --- taking in what happened: facts only ------------------------------------------------------------------------------


def _take_in(state: State, event: Event, *, at: Second, rules: Rules) -> State:
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
            return _solved(state, event, at=at, rules=rules)
        case SolvingFailed():
            return _unsolved(state, event, at=at, rules=rules)
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


def _solved(state: State, event: Solved, *, at: Second, rules: Rules) -> State:
    if _asked(state) != (event.round_id, event.order):
        return state
    if isinstance(state.phase, Assigned | Settling):
        answered = _noted(state.phase.round, event, at=at)
        shared = shared_again(answered, state.roster, {a.client: a for a in event.solution.assignments}, rules=rules)
        return _told_anew(state, state.phase, shared)
    if not isinstance(state.phase, Solving):
        return state
    assignments = event.solution.assignments
    held: Mapping[ClientId, float] = {a.client: a.bandwidth for a in assignments if a.protection is not None}
    answered = _noted(state.phase.round, event, at=at)
    solved = replace(answered, solution=event.solution, held=held, curve=state.curve)
    assigned = _assign(replace(state, phase=Assigned(round=solved)), assignments)
    try:
        return met(assigned, at=at, rules=rules)
    except QuorumMissed as missed:
        return _fail(assigned, str(missed), at=at, rules=rules)


def _unsolved(state: State, event: SolvingFailed, *, at: Second, rules: Rules) -> State:
    if _asked(state) != (event.round_id, event.order):
        return state
    if isinstance(state.phase, Assigned | Settling):
        return _told_anew(state, state.phase, given_up_on(_noted(state.phase.round, event, at=at), reason=event.reason))
    return _fail(state, f"no allocation: {event.reason}", at=at, rules=rules)


def _noted(round_: Round, event: Solved | SolvingFailed, *, at: Second) -> Round:
    """Return the round with the answer written down, for the record only."""
    solved = isinstance(event, Solved)
    answer = Answer(
        at=at,
        order=event.order,
        occasion=round_.ordered,
        clients=tuple(a.client for a in event.solution.assignments) if solved else (),
        certificate=replace(event.solution, assignments=()) if solved else None,
        failed="" if solved else event.reason,
    )
    return replace(round_, answers=(*round_.answers, answer))


def _told_anew(state: State, phase: Assigned | Settling, round_: Round) -> State:
    """Return the state with a round that was shared out again; whom it changes is told."""
    before = phase.round.solution
    told = () if before is None else before.assignments
    changed = () if round_.solution is None else tuple(a for a in round_.solution.assignments if a not in told)
    # Only a client's newest assignment is kept for it: the older ones would grow without bound, and mean nothing any more.
    renewed = {Member(a.client) for a in changed}
    outbox = tuple(p for p in state.outbox if p.directive.kind is not DirectiveKind.ASSIGNED or p.to not in renewed)
    return _assign(replace(state, phase=replace(phase, round=round_), outbox=outbox), changed)


def _assign(state: State, assignments: Iterable[Assignment]) -> State:
    for assignment in assignments:
        state = post(state, DirectiveKind.ASSIGNED, to=Member(assignment.client), assignment=assignment)
    return state


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
    return _close(state, phase, at=at, last=last, stopped=event.reason if event.last else "")


# --- moving on: what follows from the facts and the time --------------------------------------------------------------


def _move_on(state: State, *, at: Second, ticked: bool, rules: Rules) -> State:
    phase = state.phase
    if isinstance(phase, Open | Solving | Assigned | Settling | Concluding) and not state.roster.alive(OWNER):
        return _fail(state, f"the owner is gone ({state.roster.gone.get(OWNER, 'never joined')})", at=at, rules=rules)
    match phase:
        case Gathering():
            return _gather(state, phase, at=at, rules=rules)
        case Open():
            return _collect(state, phase.round, at=at, rules=rules)
        case Solving():
            if at - phase.round.opened_at < rules.round_s:
                return state
            return _fail(state, f"no allocation within {rules.round_s:g} s", at=at, rules=rules)
        case Assigned() | Settling():
            round_ = reconsidered(phase.round, state.roster, rules=rules)
            if round_ is not phase.round:
                state = replace(state, phase=replace(phase, round=round_))
            try:
                state = deals_closed(state, at=at, rules=rules)
            except QuorumMissed as missed:
                return _fail(state, str(missed), at=at, rules=rules)
            return _settle(state, _round_of(state.phase) or round_, at=at, rules=rules)
        case Concluding():
            if at - phase.since < rules.round_s:
                return vows_closed(state, at=at, rules=rules)
            return _fail(state, f"the owner did not conclude the round within {rules.round_s:g} s", at=at, rules=rules)
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
        return _fail(state, f"the owner told no measured utility within {rules.round_s:g} s", at=at, rules=rules)
    owner = "the owner and " if roster.alive(OWNER) else "no owner and "
    reason = f"{owner}{len(present)} of {len(rules.clients)} clients came within {rules.round_s:g} s, {rules.needed} are needed"
    return _fail(state, reason, at=at, rules=rules)


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
        return _fail(state, f"{rules.needed} clients are needed, {len(able)} are left", at=at, rules=rules)
    late = at - round_.opened_at >= rules.report_s
    if len(ready) < len(able) and not late:
        return state
    if len(ready) < rules.needed:
        reason = f"{rules.needed} reports are needed, {len(ready)} came within {rules.report_s:g} s"
        return _fail(state, reason, at=at, rules=rules)
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
            return _fail(state, decision.reason, at=at, rules=rules)
        case Close():
            return _conclude(state, round_, decision.accepted, at=at, rules=rules)
        case _:
            assert_never(decision)


def _conclude(state: State, round_: Round, accepted: frozenset[ClientId], *, at: Second, rules: Rules) -> State:
    """Accept no more. Before the run goes on, the owner has to be through with this round.

    A last round is closed at once, but where updates are only added: then nothing is known of the sum yet.
    """
    in_order = tuple(c for c in rules.clients if c in accepted)
    missing = {c: _why_missing(c, round_, state.roster) for c in rules.clients if c not in accepted}
    concluding = Concluding(round=round_, since=at, accepted=in_order, missing=missing)
    if state.round_id >= rules.rounds and round_.sum is None:
        return _close(state, concluding, at=at, last=True)
    state = replace(state, phase=concluding, quiet_at=quiet_at(round_, rules=rules))
    return post(state, DirectiveKind.CONCLUDE, to=OWNER, accepted=in_order)


def _close(state: State, phase: Concluding, *, at: Second, last: bool, stopped: str = "") -> State:
    closed = Closed(round=phase.round, closed_at=at, accepted=phase.accepted, missing=phase.missing, last=last, stopped=stopped)
    return post(replace(state, phase=closed), DirectiveKind.ROUND_CLOSED, accepted=phase.accepted, last=last)


def _fail(state: State, reason: str, *, at: Second, rules: Rules) -> State:
    round_ = _round_of(state.phase)
    missing: Mapping[ClientId, str] = {c: _why_missing(c, round_, state.roster) for c in rules.clients}
    failed = replace(state, phase=Failed(round=round_, failed_at=at, reason=reason, missing=missing))
    return post(failed, DirectiveKind.ROUND_CLOSED, failed_reason=reason, last=True)


def _round_of(phase: Phase) -> Round | None:
    return None if isinstance(phase, Gathering) else phase.round


def _at_work(round_: Round, roster: Roster, client: ClientId) -> bool:
    """Whether an update is on its way: uploaded and not judged yet, or still being made by a living client."""
    completion = round_.completions.get(client)
    return roster.alive(client) if completion is None else completion.uploaded


def _why_missing(client: ClientId, round_: Round | None, roster: Roster) -> str:
    completion = None if round_ is None else round_.completions.get(client)
    assignment = None if round_ is None else round_.assignment(client)
    if round_ is not None and client in round_.accepted_at:
        return "accepted, but the round failed"
    if round_ is not None and client in round_.refused:
        return "refused by the owner"
    if assignment is not None and not (round_ is not None and round_.granted(client)):
        return f"gate {assignment.gate.decision}: {assignment.gate.reason}"
    if completion is not None:
        return "uploaded, not judged in time" if completion.uploaded else completion.reason
    if Member(client) in roster.gone:
        return roster.gone[Member(client)]
    if Member(client) not in roster.joined_at:
        return "never joined"
    return "no report in time" if assignment is None else "not through in time"
