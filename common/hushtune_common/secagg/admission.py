"""Which rosters and which survivors does nobody who is careful work with?"""

from hushtune_common.aggregation import withstood
from hushtune_common.errors import LimitExceeded, QuorumMissed, UntrustedSigner
from hushtune_common.messages import ClientId
from hushtune_common.secagg.graph import Graph
from hushtune_common.secagg.messages import Roster, Terms, Verify


def colluders_max(terms: Terms, *, members: int) -> int:
    """Return how many of so many members may collude with coordinator and owner, whoever they are."""
    return withstood(members, share=terms.share, degree=terms.degree)


def require_roster(roster: Roster, *, terms: Terms, verify: Verify) -> None:
    """Raise unless the roster is as large as was agreed on, withstands as many colluders, and all its keys are their owners'.

    `QuorumMissed`, `LimitExceeded`, or `UntrustedSigner` naming the member.
    """
    count = len(roster.members)
    if count < terms.members_min:
        raise QuorumMissed(f"the roster has {count} members, at least {terms.members_min} were agreed on")
    if count > terms.members_max:
        raise LimitExceeded(f"the roster has {count} members, at most {terms.members_max} were agreed on")
    most = colluders_max(terms, members=count)
    if most < terms.colluders:
        raise QuorumMissed(f"{count} members withstand {most} colluders, {terms.colluders} were agreed on")
    for said in roster.advertisements:
        if not verify(said.member, said.statement(terms), said.proof):
            raise UntrustedSigner(f"{said.member}: did not sign the keys that the roster has")


def require_quorum(among: frozenset[ClientId], *, roster: Roster, terms: Terms, what: str) -> None:
    """Raise `QuorumMissed` unless enough of the roster are ``among`` those that ``what`` says."""
    needed = terms.threshold(len(roster.members))
    if len(among) < needed:
        raise QuorumMissed(f"{len(among)} of {len(roster.members)} members {what}, {needed} are needed")


def require_joined(survivors: frozenset[ClientId], *, graph: Graph, terms: Terms) -> None:
    """Raise `QuorumMissed` when colluders could take the survivors apart, into groups whose sums would be open."""
    cut = graph.cut(survivors)
    if cut <= terms.colluders:
        raise QuorumMissed(f"{cut} colluders would take the survivors apart, {terms.colluders} were agreed on")
