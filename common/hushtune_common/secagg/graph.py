"""Who masks with whom, and who holds whose shares? Everybody with everybody, or neighbours on a ring.

A ring of even degree k joins each member with the k / 2 next ones on either side. Its vertex connectivity is k (Harary 1962): it
falls apart only when at least k members are taken out. The order on the ring comes from the digest of the roster, hence from
everybody's fresh keys. Bell, Bonawitz, Gascon, Lepoint and Raykova (CCS 2020) draw such rings at random and show that a degree
logarithmic in the number of members suffices; here the degree is set, and `colluders_max` says what it is good for without any
assumption on who colludes.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

from hushtune_common.messages import ClientId, Digest
from hushtune_common.secagg.messages import Terms


@dataclass(frozen=True, slots=True, kw_only=True)
class Graph:
    """The members in the order of the ring, and how far a member's neighbours reach on it; complete where that is all round.

    Laws: neighbourhood is mutual; nobody is a neighbour of itself; everybody has equally many.
    """

    ring: tuple[ClientId, ...]
    degree: int

    @staticmethod
    def of(members: Iterable[ClientId], *, roster: Digest, degree: int) -> "Graph":
        """Return the graph on ``members``, of which ``degree`` neighbours each are wanted (0: all)."""
        ring = sorted(members, key=lambda name: hashlib.sha256(roster.value + name.encode()).digest())
        most = len(ring) - 1
        return Graph(ring=tuple(ring), degree=most if degree == 0 else min(degree, most))

    def neighbours(self, member: ClientId) -> frozenset[ClientId]:
        """Return those that ``member`` masks with and that hold its shares; ``ValueError`` for a stranger."""
        at, count = self.ring.index(member), len(self.ring)
        if self.degree == count - 1:
            return frozenset(self.ring) - {member}
        half = self.degree // 2
        return frozenset(self.ring[(at + step) % count] for step in range(-half, half + 1) if step)

    def holders(self, member: ClientId) -> frozenset[ClientId]:
        """Return who holds shares of ``member``'s secrets: its neighbours and itself."""
        return self.neighbours(member) | {member}

    def connected(self, among: frozenset[ClientId]) -> bool:
        """Return whether the graph without all others is in one piece."""
        reached: frozenset[ClientId] = frozenset()
        fresh = frozenset(sorted(among)[:1])
        while fresh:
            reached |= fresh
            fresh = frozenset(near for name in fresh for near in self.neighbours(name)) & among - reached
        return reached == among


def colluders_max(terms: Terms, *, members: int) -> int:
    """Return how many members may collude with coordinator and owner, whoever they are, without reading less than sums of two.

    The least of three, each in the worst case: nobody's two secrets open (2 t > holders + colluders, as Bonawitz et al. 2017 ask
    for); two of a quorum of survivors are honest; and the honest survivors stay joined by masks that nobody else knows (colluders
    and dropped together fewer than the degree, unless everybody masks with everybody). Negative when a ring does not even cover
    coordinator and owner alone.
    """
    most = members - 1
    degree = most if terms.degree == 0 else min(terms.degree, most)
    quorum = terms.threshold(members)
    secrets = 2 * terms.threshold(degree + 1) - (degree + 1) - 1
    joined = most if degree == most else degree - 1 - (members - quorum)
    return min(secrets, quorum - 2, joined)
