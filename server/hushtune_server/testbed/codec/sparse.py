"""How are only the largest changes written: which numbers they are, and their values?

The largest of the whole adapter, not of each tensor, so that the energy kept is as large as any choice of so many numbers
allows. Places are written as the gaps between them in Rice codes with a parameter per tensor (Rice 1979): gaps between places
that are drawn at random are geometric, for which that is within a few per cent of the entropy. Values are float16. Top-k as
such: Aji and Heafield 2017; what their method sends later, ours has no later round to send in.
"""

import struct
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hushtune_server.testbed.codec.peer import Float32, Tensors, from_halves, halves, joined, parted, unzipped, zipped

Places = NDArray[np.int64]
_HEAD = "<IB"
"""How many places, and the Rice parameter."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TopK:
    """The ``share`` of all numbers with the largest change; the others are taken as unchanged."""

    share: float

    def __post_init__(self) -> None:
        """Check the range."""
        if not 0.0 < self.share <= 1.0:
            raise ValueError(f"the share of numbers that are written is above 0 and at most 1, got {self.share}")

    @property
    def name(self) -> str:
        """What stands in tables."""
        return f"top {100 * self.share:g} %"

    @property
    def says(self) -> str:
        """What it does."""
        return f"the {100 * self.share:g} % largest changes as float16 with zstandard, their places as Rice-coded gaps"

    def encode(self, returned: Tensors, *, shipped: Tensors) -> bytes:
        """Return the file."""
        changes = {name: (returned[name] - shipped[name]).reshape(-1) for name in sorted(shipped)}
        kept = largest(changes, count=max(1, round(self.share * sum(c.size for c in changes.values()))))
        parts = [part for name, places in kept.items() for part in (coded(places), zipped(halves(changes[name][places])))]
        return joined(parts)

    def decode(self, blob: bytes, *, shipped: Tensors) -> dict[str, Float32]:
        """Return the adapter."""
        parts, names = parted(blob), sorted(shipped)
        found = {name: shipped[name].copy() for name in names}
        for k, name in enumerate(names):
            found[name].reshape(-1)[decoded(parts[2 * k])] += from_halves(unzipped(parts[2 * k + 1]))
        return {name: found[name] for name in shipped}


def largest(changes: Tensors, *, count: int) -> dict[str, Places]:
    """Return the places of the ``count`` largest magnitudes by tensor, increasing; of equal ones the first."""
    magnitudes = np.abs(np.concatenate([*changes.values()]))
    least = np.partition(magnitudes, magnitudes.size - count)[magnitudes.size - count]
    above = np.flatnonzero(magnitudes > least)
    equal = np.flatnonzero(magnitudes == least)[: count - above.size]
    chosen = np.sort(np.concatenate([above, equal]))
    starts = np.cumsum([0, *(c.size for c in changes.values())])
    cuts = np.searchsorted(chosen, starts)
    return {name: chosen[cuts[k] : cuts[k + 1]] - starts[k] for k, name in enumerate(changes)}


def coded(places: Places) -> bytes:
    """Return increasing places as Rice codes: how many, the parameter b, gaps over 2^b in unary, then their low b bits."""
    gaps = np.diff(places, prepend=-1) - 1
    b = _parameter(gaps)
    ends = np.cumsum((gaps >> b) + 1)
    unary = np.zeros(int(ends[-1]) if ends.size else 0, dtype=np.uint8)
    unary[ends - 1] = 1
    low = ((gaps[:, None] >> np.arange(b)) & 1).astype(np.uint8)
    bits = np.concatenate([unary, low.reshape(-1)])
    return struct.pack(_HEAD, places.size, b) + np.packbits(bits).tobytes()


def decoded(data: bytes) -> Places:
    """Undo `coded`."""
    count, b = struct.unpack_from(_HEAD, data)
    bits = np.unpackbits(np.frombuffer(data, dtype=np.uint8, offset=struct.calcsize(_HEAD)))
    ends = np.flatnonzero(bits)[:count]
    high = np.diff(ends, prepend=-1) - 1
    start = int(ends[-1]) + 1 if count else 0
    low = bits[start : start + count * b].reshape(count, b).astype(np.int64) @ (1 << np.arange(b, dtype=np.int64))
    return np.cumsum((high << b) + low + 1) - 1


def _parameter(gaps: Places) -> int:
    """Return the Rice parameter that takes the fewest bits."""
    if not gaps.size:
        return 0
    guess = int(np.log2(max(1.0, float(gaps.mean()))))
    return min(range(max(0, guess - 2), guess + 3), key=lambda b: int((gaps >> b).sum()) + b * gaps.size)
