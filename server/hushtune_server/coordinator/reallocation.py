"""When somebody goes before it has transmitted, who gets its band?

The others that have not begun to transmit, by a new solution. Which of two assignments a client transmits with is up to the
moment at which the second reaches it, so a client *holds* the widest band that it was ever assigned in the round, and only band
that nobody holds is given out: however directives and transmissions cross, the bands in use never add up to more than the total.
(A client that is cut off for so long that it is taken for dead, and begins to transmit unheard, is not covered.)
"""

from collections.abc import Mapping
from dataclasses import replace

from hushtune_common.messages import Assignment, ClientId, Gate, GateDecision
from hushtune_common.units import Hertz, Second, Watt
from hushtune_server.coordinator.phases import Roster, Round, Rules

GIVEN_AWAY = "it was gone before it had transmitted, and its band was given to others"
_WHOLE = 1.0 - 1e-12
"""Sums of shares that add up to the whole stay below it in spite of rounding."""


def departed(round_: Round, roster: Roster, *, rules: Rules) -> frozenset[ClientId]:
    """Return the clients that had band, are gone or gave up before they transmitted, and were not yet dealt with."""
    return frozenset(c for c in rules.clients if c not in round_.reviewed and _idle(round_, c) and _given_up(round_, roster, c))


def waiting(round_: Round, roster: Roster, *, rules: Rules) -> tuple[ClientId, ...]:
    """Return the clients that can still take a new assignment: at work, and not known to transmit."""
    return tuple(c for c in rules.clients if _idle(round_, c) and c not in round_.completions and roster.alive(c))


def free_band(round_: Round, *, others_than: frozenset[ClientId], rules: Rules) -> Hertz:
    """Return the band that nobody holds, ``others_than`` not counted among the holders."""
    holders = (c for c in round_.held if c not in others_than and _may_transmit(round_, c))
    total = 0.0 if rules.band is None else rules.band
    return Hertz(max(0.0, _WHOLE * total - sum(round_.held[c] for c in holders)))


def reconsidered(round_: Round, roster: Roster, *, rules: Rules) -> Round:
    """Return the round with an order for a new solution when it takes one; the same round when nothing changes.

    An order whose occasion is gone, because the client came back in time, is dropped.
    """
    if rules.band is None:
        return round_
    gone, left = departed(round_, roster, rules=rules), waiting(round_, roster, rules=rules)
    wanted = gone if left and free_band(round_, others_than=gone | {*left}, rules=rules) > 0.0 else frozenset[ClientId]()
    if wanted == round_.ordered:
        return round_
    return replace(round_, ordered=wanted, orders=round_.orders + bool(wanted))


def shared_again(round_: Round, roster: Roster, answer: Mapping[ClientId, Assignment], *, rules: Rules) -> Round:
    """Return the round after a new solution: its bands where they fit, and no assignment for those that it was for.

    What a client gets beyond what it holds is scaled to the free band, at the same power density, so that its coding point and
    its secrecy design stay as solved. A client that the new solution would refuse keeps what it has.
    """
    solution = round_.solution
    if solution is None:
        raise ValueError("nothing was solved yet")
    new = {c: a for c in waiting(round_, roster, rules=rules) if (a := answer.get(c)) is not None and _granted(a)}
    wished = {c: max(0.0, a.bandwidth - round_.held[c]) for c, a in new.items()}
    free = free_band(round_, others_than=round_.ordered, rules=rules)
    share = min(1.0, free / sum(wished.values())) if any(wished.values()) else 1.0
    new = {c: _narrowed(a, Hertz(round_.held[c] + share * wished[c])) for c, a in new.items()}
    withdrawn = frozenset(c for c in round_.ordered if c not in round_.completions)
    assignments = tuple(_withdrawn(a) if a.client in withdrawn else new.get(a.client, a) for a in solution.assignments)
    return replace(
        round_,
        solution=replace(solution, assignments=assignments),
        held={**round_.held, **{c: max(a.bandwidth, round_.held[c]) for c, a in new.items()}},
        withdrawn=round_.withdrawn | withdrawn,
        reviewed=round_.reviewed | round_.ordered,
        ordered=frozenset(),
    )


def given_up_on(round_: Round) -> Round:
    """Return the round when there is no new solution: everybody keeps what they have."""
    return replace(round_, reviewed=round_.reviewed | round_.ordered, ordered=frozenset())


def _idle(round_: Round, client: ClientId) -> bool:
    """Whether a client was granted an upload and has, for all that is known, not begun it."""
    out = round_.sending | round_.withdrawn
    return round_.granted(client) and client not in out and not round_.settled(client)


def _given_up(round_: Round, roster: Roster, client: ClientId) -> bool:
    completion = round_.completions.get(client)
    return not roster.alive(client) if completion is None else not completion.uploaded


def _may_transmit(round_: Round, client: ClientId) -> bool:
    if client in round_.completions or round_.settled(client):
        return False
    return client not in round_.withdrawn or client in round_.sending


def _granted(assignment: Assignment) -> bool:
    return assignment.gate.decision is GateDecision.GRANTED


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


def _withdrawn(assignment: Assignment) -> Assignment:
    gate: Gate = replace(assignment.gate, decision=GateDecision.DEFERRED, reason=GIVEN_AWAY)
    return replace(assignment, gate=gate, protection=None, design=None, carrier=None, planned=None, secrecy_rate_bps=0.0)
