"""How faithfully the air treats bits, and what a result of that fidelity may claim.

Hash blocks travel in one of two forms: *coded*, as bits of the wiretap code that a channel disturbs and a receiver decodes, or
*bare*, as the bytes themselves with a drawn fate. The fidelity says which blocks of a frame take which form; nothing else in the
processes depends on it.
"""

from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from hushtune_common.seeding import SeedTree


class Fidelity(StrEnum):
    """The label that every result carries."""

    BIT_EXACT = "bit_exact"
    ABSTRACT = "abstract"
    HYBRID = "hybrid"

    @property
    def code(self) -> int:
        """The byte that stands for this label in blobs; never reused."""
        return {Fidelity.ABSTRACT: 1, Fidelity.BIT_EXACT: 2, Fidelity.HYBRID: 3}[self]

    @property
    def claim(self) -> str:
        """What a result of this fidelity does and does not say, in a sentence."""
        return {
            Fidelity.BIT_EXACT: (
                "bit_exact: every bit was encoded, modulated, disturbed by simulated noise and decoded from soft values; the "
                "radio itself is simulated"
            ),
            Fidelity.ABSTRACT: (
                "abstract: block errors are drawn from measured tables; bytes are handed over as they are; nothing is claimed "
                "about actual bits on air, only about time, errors and the leakage bound of the design"
            ),
            Fidelity.HYBRID: (
                "hybrid: a random share of the hash blocks travelled bit by bit, the others had their errors drawn from measured "
                "tables; what is said about bits on air holds for the sample"
            ),
        }[self]

    @staticmethod
    def from_code(code: int) -> "Fidelity":
        """Return the label of a byte; ``ValueError`` when unknown."""
        for fidelity in Fidelity:
            if fidelity.code == code:
                return fidelity
        raise ValueError(f"unknown fidelity code {code}")


def coded_blocks(fidelity: Fidelity, *, count: int, share: float, seeds: SeedTree) -> NDArray[np.bool_]:
    """Return which of ``count`` hash blocks travel as coded bits, (count,): all, none, or a random ``share`` (at least one)."""
    match fidelity:
        case Fidelity.BIT_EXACT:
            return np.ones(count, dtype=np.bool_)
        case Fidelity.ABSTRACT:
            return np.zeros(count, dtype=np.bool_)
        case Fidelity.HYBRID:
            rng = seeds.generator()
            flags = rng.random(count) < share
            flags[int(rng.integers(count))] = True
            return flags
