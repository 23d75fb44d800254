"""Where the bits come from that hide a message: the operating system, or, for a repeatable experiment, a marked substitute.

Simulation noise is a ``NoiseRng`` and has no ``draw``; secret bits come from a ``SecretRng``, which is no numpy generator. So
neither can stand in for the other without a type checker, or the first call, objecting.
"""

import os
from typing import Literal, Protocol

from hushtune_common.seeding import SeedTree


class SecretRng(Protocol):
    """A source of bits that are to be uniform and unknown to a listener.

    Laws: ``draw(n)`` returns ``n`` bytes, also for ``n = 0``; no call returns bytes of another call again; ``secret`` never
    changes, and is true only if nobody can repeat the draws.
    """

    @property
    def secret(self) -> bool:
        """Whether a leakage bound may rest on these bits."""
        ...

    def draw(self, count: int) -> bytes:
        """Return ``count`` fresh bytes."""
        ...


class OsRandomness:
    """The operating system's generator. Cryptographic, so the uniformity that a bound asks for holds computationally."""

    @property
    def secret(self) -> bool:
        """True: nobody can repeat the draws."""
        return True

    def draw(self, count: int) -> bytes:
        """Return ``count`` fresh bytes."""
        return os.urandom(count)


class SeededRandomness:
    """Reproducible, not secret: whoever knows the scenario's seed knows every bit. For experiments that must repeat exactly.

    Equal nodes of the seed tree give equal draws, so the node must name whatever may happen only once (such as an attempt).
    """

    def __init__(self, seeds: SeedTree) -> None:
        """Begin the stream of this node."""
        self._stream = seeds.generator()

    @property
    def secret(self) -> bool:
        """False: the draws repeat with the scenario."""
        return False

    def draw(self, count: int) -> bytes:
        """Return the next ``count`` bytes of the stream."""
        return self._stream.bytes(count)


def secret_rng(kind: Literal["os", "seeded"], *, seeds: SeedTree) -> SecretRng:
    """Return the source that a scenario names; ``seeds`` matter to the seeded one only."""
    return OsRandomness() if kind == "os" else SeededRandomness(seeds)
