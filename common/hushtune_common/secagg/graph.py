"""Who masks with whom, and who holds whose shares? Everybody with everybody, or neighbours on a ring.

A ring of even degree k joins each member with the k / 2 next ones on either side (Harary 1962: no graph of that degree is harder
to take apart). The order on the ring comes from the digest of the roster, hence from everybody's fresh keys. Bell and others (CCS
2020) draw such rings at random and show that a degree logarithmic in the number of members nearly always suffices; here nothing
is left to chance, since `Graph.cut` says of the survivors of a round how many would have to collude to take them apart.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

from hushtune_common.messages import ClientId, Digest


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

    def cut(self, among: frozenset[ClientId]) -> int:
        """Return how many of ``among`` have to be taken out before two of the others have no path left, or only one is left.

        Two gaps on the ring do it, each as long as a member's reach to one side; who is not ``among`` is in a gap for nothing.
        """
        most, count, half = max(0, len(among) - 1), len(self.ring), self.degree // 2
        if self.degree == count - 1:
            return most
        here = [name in among for name in self.ring]
        before = [0]
        for there in (*here, *here):
            before.append(before[-1] + there)
        least = most
        for first in range(count):
            for second in range(first + half + 1, first + count - half):
                between = before[second] - before[first + half], before[first + count] - before[second + half]
                if min(between) > 0:
                    least = min(least, before[first + count] - before[first] - sum(between))
        return least
