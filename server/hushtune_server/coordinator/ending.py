"""How does a round end: with whom, without whom and why?"""

from collections.abc import Mapping
from dataclasses import replace

from hushtune_common.messages import ClientId, DirectiveKind
from hushtune_common.units import Second
from hushtune_server.coordinator.clearance import quiet_at
from hushtune_server.coordinator.events import (
    OWNER,
    Member,
)
from hushtune_server.coordinator.outbox import post
from hushtune_server.coordinator.phases import (
    Closed,
    Concluding,
    Failed,
    Gathering,
    Phase,
    Roster,
    Round,
    Rules,
    State,
)


def awaited(round_: Round, roster: Roster, *, rules: Rules) -> frozenset[ClientId]:
    """Return the clients whose update may still be accepted: granted, not judged, and either uploaded or alive and at work."""
    granted = round_.grantees()
    return frozenset(c for c in rules.clients if c in granted and not round_.settled(c) and _at_work(round_, roster, c))


def conclude(state: State, round_: Round, accepted: frozenset[ClientId], *, at: Second, rules: Rules) -> State:
    """Accept no more. Before the run goes on, the owner has to be through with this round.

    A last round is closed at once, but where updates are only added: then nothing is known of the sum yet.
    """
    in_order = tuple(c for c in rules.clients if c in accepted)
    missing = {c: _why_missing(c, round_, state.roster) for c in rules.clients if c not in accepted}
    concluding = Concluding(round=round_, since=at, accepted=in_order, missing=missing)
    if state.round_id >= rules.rounds and round_.sum is None:
        return close(state, concluding, at=at, last=True)
    state = replace(state, phase=concluding, quiet_at=quiet_at(round_, rules=rules))
    return post(state, DirectiveKind.CONCLUDE, to=OWNER, accepted=in_order)


def close(state: State, phase: Concluding, *, at: Second, last: bool, stopped: str = "") -> State:
    """Close a round that nothing more is awaited for, and tell everybody; ``last``: no round follows."""
    closed = Closed(round=phase.round, closed_at=at, accepted=phase.accepted, missing=phase.missing, last=last, stopped=stopped)
    return post(replace(state, phase=closed), DirectiveKind.ROUND_CLOSED, accepted=phase.accepted, last=last)


def fail(state: State, reason: str, *, at: Second, rules: Rules) -> State:
    """End the run, because this round has no result, and tell everybody."""
    round_ = round_of(state.phase)
    missing: Mapping[ClientId, str] = {c: _why_missing(c, round_, state.roster) for c in rules.clients}
    failed = replace(state, phase=Failed(round=round_, failed_at=at, reason=reason, missing=missing))
    return post(failed, DirectiveKind.ROUND_CLOSED, failed_reason=reason, last=True)


def round_of(phase: Phase) -> Round | None:
    """Return the round in progress, none while members gather."""
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
