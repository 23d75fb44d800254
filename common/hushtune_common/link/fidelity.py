"""How faithfully the air treats bits, and what a result of that fidelity may claim.

This is the seam for other fidelities: each adds its label and claim here, its blob layout beside ``channel``, a ``Medium`` in the
air and an ``Attack`` in the eavesdropper, and its word to the scenario's ``air.fidelity``. Nothing else knows which one runs.
"""

from enum import StrEnum


class Fidelity(StrEnum):
    """The label that every result carries."""

    ABSTRACT = "abstract"

    @property
    def code(self) -> int:
        """The byte that stands for this label in blobs; never reused."""
        return {Fidelity.ABSTRACT: 1}[self]

    @property
    def claim(self) -> str:
        """What a result of this fidelity does and does not say, in a sentence."""
        return {
            Fidelity.ABSTRACT: (
                "abstract: block errors are drawn from measured tables, continued where they end; bytes are handed over as they "
                "are; nothing is claimed about actual bits on air, only about time, errors and the leakage bound of the design"
            )
        }[self]

    @staticmethod
    def from_code(code: int) -> "Fidelity":
        """Return the label of a byte; ``ValueError`` when unknown."""
        for fidelity in Fidelity:
            if fidelity.code == code:
                return fidelity
        raise ValueError(f"unknown fidelity code {code}")
