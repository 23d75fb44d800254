"""When somebody goes before it has transmitted, or has another channel by then, who gets which band?

All that have not begun to transmit share anew, by a new solution. Which of two assignments a client transmits with is up to the
moment at which the second reaches it, so a client *holds* the widest band that it was ever assigned in the round, and only band
that nobody holds is given out: however directives and transmissions cross, the bands in use never add up to more than the total.
A client that tells of another channel promises to send nothing before it is assigned for that one, so it holds nothing till then.
Who is cut off cannot ask whether it may begin (``clearance``), and once heard again may be told that its band is given away.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

from hushtune_common.messages import Assignment, Channel, ClientId, Gate, GateDecision
from hushtune_common.units import Hertz, Second, Watt
from hushtune_server.coordinator.phases import NO_OCCASION, Occasion, Roster, Round, Rules

GIVEN_AWAY = "it was gone before it had transmitted, and its band was given to others"
CHANGED = "its channel is another one than it was assigned for"
_WHOLE = 1.0 - 1e-12
"""Sums of shares that add up to the whole stay below it in spite of rounding."""


def departed(round_: Round, roster: Roster, *, rules: Rules) -> frozenset[ClientId]:
    """Return the clients that had band, are gone or gave up before they transmitted, and were not yet dealt with."""
    idle = _idle(round_)
    return frozenset(c for c in rules.clients if c in idle and c not in round_.reviewed and _given_up(round_, roster, c))


def waiting(round_: Round, roster: Roster, *, rules: Rules) -> tuple[ClientId, ...]:
    """Return the clients that can still take a new assignment: at work, and not known to transmit."""
    idle = _idle(round_)
    return tuple(c for c in rules.clients if c in idle and c not in round_.completions and roster.alive(c))


def free_band(round_: Round, *, others_than: frozenset[ClientId], rules: Rules) -> Hertz:
    """Return the band that nobody holds, ``others_than`` not counted among the holders."""
    holders = (c for c in round_.held if c not in others_than and _may_transmit(round_, c))
    total = 0.0 if rules.band is None else rules.band
    return Hertz(max(0.0, _WHOLE * total - sum(round_.held[c] for c in holders)))


def shifted(round_: Round, client: ClientId, channel: Channel, *, rules: Rules) -> Round:
    """Return the round with a client's new channel, or the same round for word that is late or about a client past caring.

    By telling, the client has put its assignment away: what it held is free, and nothing asked before is of use to it.
    """
    if rules.band is None or client not in _idle(round_) or client in round_.completions:
        return round_
    report, count = round_.reports[client], round_.changes.get(client, 0)
    if channel.at <= report.sounded_at or count >= rules.changes_max:
        return round_
    return replace(
        round_,
        reports={**round_.reports, client: report.on(channel)},
        held={**round_.held, client: 0.0},
        changed=round_.changed | {client},
        changes={**round_.changes, client: count + 1},
        ordered=NO_OCCASION,
    )


def reconsidered(round_: Round, roster: Roster, *, rules: Rules) -> Round:
    """Return the round with an order for a new solution when it takes one; the same round when nothing changes.

    An order whose occasion is gone, because the client came back in time, is dropped.
    """
    if rules.band is None:
        return round_
    gone, left = departed(round_, roster, rules=rules), frozenset(waiting(round_, roster, rules=rules))
    possible = bool(left) and free_band(round_, others_than=gone | left, rules=rules) > 0.0
    wanted = Occasion(gone=gone, changed=round_.changed & left) if possible else NO_OCCASION
    if wanted == round_.ordered:
        return round_
    return replace(round_, ordered=wanted, orders=round_.orders + bool(wanted))


def shared_again(round_: Round, roster: Roster, answer: Mapping[ClientId, Assignment], *, rules: Rules) -> Round:
    """Return the round after a new solution: its bands where they fit, and no assignment for those that it was for.

    Whose channel changed comes first, since it holds nothing, and is refused where the solution does so. What the others get
    beyond what they hold is scaled to the band left free, at the same power density, so that coding point and secrecy design stay
    as solved; one that the new solution would refuse keeps what it has.
    """
    able, occasion = waiting(round_, roster, rules=rules), round_.ordered
    moved = [c for c in able if c in occasion.changed]
    free = free_band(round_, others_than=occasion.gone, rules=rules)
    new = _fitted(round_, answer, moved, free=free)
    free = Hertz(max(0.0, free - sum(a.bandwidth for a in new.values())))
    new |= _fitted(round_, answer, [c for c in able if c not in moved], free=free)
    withdrawn = frozenset(c for c in occasion.gone if c not in round_.completions)
    refused = {c: _refusal(answer.get(c)) for c in moved if c not in new}
    return replace(
        _dealt_with(round_, withdrawn={**dict.fromkeys(withdrawn, GIVEN_AWAY), **refused}, new=new),
        held={**round_.held, **{c: max(a.bandwidth, round_.held[c]) for c, a in new.items()}},
        withdrawn=round_.withdrawn | withdrawn,
    )


def given_up_on(round_: Round, *, reason: str) -> Round:
    """Return the round when there is no new solution: everybody keeps what they have, but for those whose channel changed."""
    moved = [c for c in round_.ordered.changed if c in _idle(round_) and c not in round_.completions]
    return _dealt_with(round_, withdrawn=dict.fromkeys(moved, f"{CHANGED}, and nothing was found for the new one: {reason}"))


def _dealt_with(
    round_: Round, *, withdrawn: Mapping[ClientId, str | Assignment], new: Mapping[ClientId, Assignment] = MappingProxyType({})
) -> Round:
    """Return the round with the occasion of its order dealt with: assignments withdrawn for a reason, and new ones."""
    solution = round_.solution
    if solution is None:
        raise ValueError("nothing was solved yet")

    def renewed(a: Assignment) -> Assignment:
        why = withdrawn.get(a.client)
        if why is None:
            return new.get(a.client, a)
        return _withdrawn(a, why) if isinstance(why, str) else why

    return replace(
        round_,
        solution=replace(solution, assignments=tuple(renewed(a) for a in solution.assignments)),
        reviewed=round_.reviewed | round_.ordered.gone,
        changed=round_.changed - round_.ordered.changed,
        ordered=NO_OCCASION,
    )


def _fitted(
    round_: Round, answer: Mapping[ClientId, Assignment], clients: Sequence[ClientId], *, free: Hertz
) -> dict[ClientId, Assignment]:
    """Return the assignments of those whom the answer grants one, what they get beyond what they hold scaled to ``free``."""
    granted = {c: a for c in clients if (a := answer.get(c)) is not None and a.gate.decision is GateDecision.GRANTED}
    wished = {c: max(0.0, a.bandwidth - round_.held[c]) for c, a in granted.items()}
    part = min(1.0, free / sum(wished.values())) if any(wished.values()) else 1.0
    bands = {c: Hertz(round_.held[c] + part * wished[c]) for c in granted}
    return {c: _narrowed(a, bands[c]) for c, a in granted.items() if bands[c] > 0.0}


def _refusal(answer: Assignment | None) -> Assignment | str:
    """Return what a client is told whose new channel carries nothing."""
    if answer is None or answer.gate.decision is GateDecision.GRANTED:
        return f"{CHANGED}, and no band is free"
    return answer


def _idle(round_: Round) -> frozenset[ClientId]:
    """Return the clients that were granted an upload and have, for all that is known, not begun it."""
    return round_.grantees() - round_.sending - round_.withdrawn - round_.refused - round_.accepted_at.keys()


def _given_up(round_: Round, roster: Roster, client: ClientId) -> bool:
    completion = round_.completions.get(client)
    return not roster.alive(client) if completion is None else not completion.uploaded


def _may_transmit(round_: Round, client: ClientId) -> bool:
    if client in round_.completions or round_.settled(client):
        return False
    return client not in round_.withdrawn or client in round_.sending


def _narrowed(assignment: Assignment, bandwidth: Hertz) -> Assignment:
    """Return the assignment with at most ``bandwidth`` and the same power density, so with the same SNRs."""
    part = bandwidth / assignment.bandwidth
    if part >= 1.0:
        return assignment
    planned = assignment.planned
    return replace(
        assignment,
        bandwidth=bandwidth,
        power=Watt(assignment.power * part),
        secrecy_rate_bps=assignment.secrecy_rate_bps * part,
        planned=None if planned is None else replace(planned, airtime_s=Second(planned.airtime_s / part)),
    )


def _withdrawn(assignment: Assignment, reason: str) -> Assignment:
    gate: Gate = replace(assignment.gate, decision=GateDecision.DEFERRED, reason=reason)
    return replace(assignment, gate=gate, protection=None, design=None, carrier=None, planned=None, secrecy_rate_bps=0.0)
