"""What is the allocator asked, and what follows from its answer?

A question has a number: 0 for the first solution of a round, then one for each time that it is shared out anew. An answer to a
question that is no longer asked changes nothing.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace

from hushtune_common.errors import QuorumMissed
from hushtune_common.messages import Assignment, ClientId, DirectiveKind
from hushtune_common.units import Second
from hushtune_server.coordinator.adding import met
from hushtune_server.coordinator.ending import fail
from hushtune_server.coordinator.events import (
    Member,
    Solved,
    SolvingFailed,
)
from hushtune_server.coordinator.outbox import post
from hushtune_server.coordinator.phases import (
    Answer,
    Assigned,
    Round,
    Rules,
    Settling,
    Solve,
    Solving,
    State,
)
from hushtune_server.coordinator.reallocation import free_band, given_up_on, shared_again, waiting


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


def asked(state: State) -> tuple[int, int] | None:
    """Return which solution is being waited for: of which round, and the how many-th after its first."""
    match state.phase:
        case Solving():
            return state.round_id, 0
        case Assigned() | Settling():
            return (state.round_id, state.phase.round.orders) if state.phase.round.ordered else None
        case _:
            return None


def solved(state: State, event: Solved, *, at: Second, rules: Rules) -> State:
    """Take the allocator's answer: assign, or assign anew."""
    if asked(state) != (event.round_id, event.order):
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
        return fail(assigned, str(missed), at=at, rules=rules)


def not_solved(state: State, event: SolvingFailed, *, at: Second, rules: Rules) -> State:
    """Take that the allocator has no answer: everybody keeps what they have, or the round fails."""
    if asked(state) != (event.round_id, event.order):
        return state
    if isinstance(state.phase, Assigned | Settling):
        return _told_anew(state, state.phase, given_up_on(_noted(state.phase.round, event, at=at), reason=event.reason))
    return fail(state, f"no allocation: {event.reason}", at=at, rules=rules)


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
