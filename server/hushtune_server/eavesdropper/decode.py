"""What does the tap hold after listening: blocks, bytes, and what those bytes look like."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.special import chdtrc

from hushtune_common.link.channel import Assembly, Reception

MARKERS: Final = {
    "zstandard frame": b"\x28\xb5\x2f\xfd",
    "safetensors header": b'{"__metadata__"',
    "tensor name": b"self_attn",
    "tensor offsets": b'"data_offsets"',
}
"""Byte strings that an update in the clear would contain."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Guess:
    """The tap's best guess of one update: ``data`` with zeros where nothing was heard, ``known`` flags per byte of it."""

    data: bytes
    known: NDArray[np.bool_]

    @property
    def bytes_known(self) -> int:
        """Bytes that were heard with a valid checksum."""
        return int(self.known.sum())

    @property
    def heard(self) -> bytes:
        """The known bytes, joined."""
        return np.frombuffer(self.data, dtype=np.uint8)[self.known].tobytes()


@dataclass(frozen=True, slots=True, kw_only=True)
class Proportion:
    """A share ``count / of`` with its Wilson 95 % interval."""

    count: int
    of: int

    def __post_init__(self) -> None:
        """Check the range."""
        if not 0 <= self.count <= self.of or self.of < 1:
            raise ValueError(f"{self.count} of {self.of} is not a share")

    @property
    def share(self) -> float:
        """The point estimate."""
        return self.count / self.of

    @property
    def interval(self) -> tuple[float, float]:
        """The interval of Wilson (1927), which holds near 0 and 1 as well."""
        z = 1.959963984540054
        n, p = self.of, self.share
        centre = (p + z * z / (2 * n)) / (1 + z * z / n)
        half = z * sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
        return (0.0 if self.count == 0 else centre - half, 1.0 if self.count == self.of else centre + half)


def best_guess(receptions: Sequence[Reception]) -> tuple[Guess, int]:
    """Return what all receptions of one update together give, and how many heard blocks had a valid checksum.

    ``ValueError`` without receptions; ``MalformedUpdate`` when they are of different updates.
    """
    if not receptions:
        raise ValueError("nothing was received")
    first = receptions[0]
    assembly = Assembly(first.update_bytes, first.block_bytes)
    sound = sum(assembly.add(reception) for reception in receptions)
    known = np.repeat(assembly.known, first.block_bytes)[: first.update_bytes]
    return Guess(data=assembly.partial(), known=known), sound


def markers_in(data: bytes) -> tuple[str, ...]:
    """Return the names of the plain-text markers that ``data`` contains."""
    return tuple(name for name, marker in MARKERS.items() if marker in data)


def uniformity(data: bytes) -> float | None:
    """Return the p-value of a chi-square test that bytes are uniform; None when there are too few (below 1280).

    Sealed bytes look uniform; a value near 0 means structure, for a tap an invitation.
    """
    if len(data) < 1280:
        return None
    counts = np.bincount(np.frombuffer(data, dtype=np.uint8), minlength=256)
    expected = len(data) / 256.0
    return float(chdtrc(255.0, float(((counts - expected) ** 2 / expected).sum())))
