"""How does a change of weights become words that can be added, and a sum of words the mean change?

Every number is rounded to the nearest of evenly spaced steps between the tensor's public bound ``clip`` and its negative, and
becomes a digit from 0 to 2 z, z standing for no change. A word of 64 bits holds m digits in base R, the largest base for which m
digits fit: R^m <= 2^64. With z the largest for which W 2 z < R, W the largest sum of weights, no digit of a sum of weighted words
ever overflows into the next, so the sum of the words, modulo 2^64 like any masked sum, *is* the words of the sums. A number takes
64 / m bits whatever W is, and W costs log2(W) bits of its resolution.

The first word of a payload is the sender's weight. The weights' sum is what the digits' sums are divided by, and a check: with a
mask left on it, it is a weight that is possible at all with a chance of W / 2^64.
"""

import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Final

import numpy as np
from numpy.typing import NDArray

from hushtune_common.adapter import AdapterState, Float32
from hushtune_common.aggregation import DIGITS, radix, reach
from hushtune_common.errors import BudgetTooSmall, MalformedUpdate
from hushtune_common.messages import Digest, TensorSpec
from hushtune_common.secagg.messages import joined

Words = NDArray[np.uint64]
"""A payload, masked or not, or a sum of them."""
_STRETCH: Final = 1 << 15


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorGrid:
    """One tensor: its numbers change by at most ``clip``, larger changes count as that, and ``digits`` of them share a word."""

    name: str
    shape: tuple[int, ...]
    clip: float
    digits: int

    def __post_init__(self) -> None:
        """Check the ranges."""
        if not (isfinite(self.clip) and 1e-30 <= self.clip <= 1e30) or self.digits not in DIGITS:
            raise ValueError(f"{self.name}: clip from 1e-30 to 1e30 and 2 to 16 digits, got {self.clip} and {self.digits}")
        if not self.shape or min(self.shape) < 1:
            raise ValueError(f"{self.name}: impossible shape {self.shape}")

    @property
    def count(self) -> int:
        """Number of elements."""
        total = 1
        for extent in self.shape:
            total *= extent
        return total

    @property
    def words(self) -> int:
        """Number of words."""
        return -(-self.count // self.digits)


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoded:
    """A payload, and how many of its numbers were beyond the bound."""

    words: Words
    clipped: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Mean:
    """The weighted mean, and the sum of the weights."""

    state: AdapterState
    weight: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """The layout of a payload, equal for everybody: the tensors in order, and the largest sum of weights.

    Laws: the mean of equal changes is that change within half a step; the mean of the decoded sum lies within half a step of the
    weighted mean of all changes within their bounds; the sum of words is that of digits whenever the weights sum to at most
    ``weight_max``; equal changes give equal words on every machine.
    """

    tensors: tuple[TensorGrid, ...]
    weight_max: int

    def __post_init__(self) -> None:
        """Refuse a grid on which nothing could move."""
        if not self.tensors or len({t.name for t in self.tensors}) != len(self.tensors) or self.weight_max < 1:
            raise ValueError("a grid needs tensors, each once, and weights of at least 1")
        for tensor in self.tensors:
            if self.reach(tensor.digits) < 1:
                raise ValueError(
                    f"{tensor.name}: {tensor.digits} digits per word leave no step for weights up to {self.weight_max}"
                )

    @property
    def words(self) -> int:
        """Words of a payload: the weight, then each tensor's."""
        return 1 + sum(t.words for t in self.tensors)

    @property
    def digest(self) -> Digest:
        """What everybody agrees on."""
        parts = (joined(t.name.encode(), struct.pack(f"<{len(t.shape)}QdQ", *t.shape, t.clip, t.digits)) for t in self.tensors)
        return Digest.of(joined(b"hushtune/secagg/1/grid", struct.pack("<Q", self.weight_max), *parts))

    def reach(self, digits: int) -> int:
        """Return z, the code of a change by ``clip``."""
        return reach(digits, weight_max=self.weight_max)

    def step(self, tensor: TensorGrid) -> float:
        """Return the distance of neighbouring values; a rounded value is at most half of it off."""
        return tensor.clip / self.reach(tensor.digits)

    def encode(self, returned: AdapterState, *, shipped: AdapterState, weight: int = 1) -> Encoded:
        """Return ``returned - shipped`` as words, counting ``weight`` times.

        ``ValueError`` names a tensor that is missing or not finite, or an impossible weight.
        """
        if not 1 <= weight <= self.weight_max:
            raise ValueError(f"a weight is from 1 to {self.weight_max}, got {weight}")
        words: Words = np.empty(self.words, dtype="<u8")
        words[0] = weight
        clipped = 0
        for tensor, own in self._spans(words):
            row, start = _row(returned, tensor), _row(shipped, tensor)
            clipped += self._encode(tensor, row, start, weight=weight, out=own)
        return Encoded(words=words, clipped=clipped)

    def decode(self, total: Words, *, shipped: AdapterState) -> Mean:
        """Return ``shipped`` plus the weighted mean of what was added up in ``total``.

        ``MalformedUpdate`` for words that no sum of payloads can be, such as a sum from which a mask was not taken off.
        """
        if total.shape != (self.words,):
            raise MalformedUpdate(f"a sum has {self.words} words, got {total.shape}")
        weight = int(total[0])
        if not 1 <= weight <= self.weight_max:
            raise MalformedUpdate(f"the weights add up to {weight}, at most {self.weight_max} is possible")
        tensors: dict[str, Float32] = {}
        for tensor, own in self._spans(total):
            row = np.empty(tensor.count, dtype=np.float32)
            self._decode(tensor, own, _row(shipped, tensor), weight=weight, out=row)
            tensors[tensor.name] = row.reshape(tensor.shape)
        return Mean(state=AdapterState(tensors), weight=weight)

    def _spans(self, words: Words) -> Iterator[tuple[TensorGrid, Words]]:
        at = 1
        for tensor in self.tensors:
            yield tensor, words[at : at + tensor.words]
            at += tensor.words

    def _encode(self, tensor: TensorGrid, returned: Float32, shipped: Float32, *, weight: int, out: Words) -> int:
        """Write one tensor's words; digit j of word w is element j * words + w, so that runs are contiguous."""
        base, rounding = np.uint64(radix(tensor.digits)), _Rounding(tensor, code_max=self.reach(tensor.digits))
        for start in range(0, out.size, _STRETCH):
            sums = out[start : start + _STRETCH]
            sums[:] = 0
            for digit in reversed(range(tensor.digits)):
                first = digit * out.size + start
                taken = slice(first, max(first, min(first + sums.size, returned.size)))
                sums *= base
                if taken.start < taken.stop:
                    codes = rounding.codes(returned[taken], shipped[taken])
                    sums[: codes.size] += codes if weight == 1 else codes * np.uint64(weight)
        return rounding.clipped

    def _decode(self, tensor: TensorGrid, words: Words, shipped: Float32, *, weight: int, out: Float32) -> None:
        base, code_max = np.uint64(radix(tensor.digits)), self.reach(tensor.digits)
        step = self.step(tensor) / weight
        for start in range(0, words.size, _STRETCH):
            left = words[start : start + _STRETCH].copy()
            for digit in range(tensor.digits):
                above = left // base  # faster than divmod by far: numpy turns a division by one number into a product
                sums, left = left - above * base, above
                first = digit * words.size + start
                size = max(0, min(first + sums.size, out.size) - first)
                if sums[:size].max(initial=0) > 2 * code_max * weight or sums[size:].any():
                    raise MalformedUpdate(f"{tensor.name}: the sum has digits beyond what its payloads can add up to")
                change = (sums[:size].astype(np.float64) - code_max * weight) * step
                out[first : first + size] = shipped[first : first + size] + change
            if left.any():
                raise MalformedUpdate(f"{tensor.name}: the sum has digits beyond the last")


def digits_within(budget_bytes: int, *, schema: Sequence[TensorSpec], weight_max: int) -> int:
    """Return the fewest digits per word with which a payload has at most ``budget_bytes`` (`BudgetTooSmall` otherwise)."""
    least = 0
    for digits in DIGITS:
        least = 8 * (1 + sum(-(-spec.count // digits) for spec in schema))
        if least <= budget_bytes and reach(digits, weight_max=weight_max) >= 1:
            return digits
    raise BudgetTooSmall(least_bytes=least, budget_bytes=budget_bytes)


def grid_of(schema: Sequence[TensorSpec], *, clips: Mapping[str, float], digits: int, weight_max: int) -> Grid:
    """Return the grid of an adapter's schema with one width for all tensors."""
    tensors = (TensorGrid(name=s.name, shape=s.shape, clip=clips[s.name], digits=digits) for s in schema)
    return Grid(tensors=tuple(tensors), weight_max=weight_max)


def clips_of(shipped: AdapterState, *, share: float) -> dict[str, float]:
    """Return bounds from what everybody has: ``share`` of each shipped tensor's root mean square, where that is not zero."""
    levels = {name: float(np.sqrt(np.mean(np.square(t, dtype=np.float64)))) for name, t in shipped.tensors.items()}
    return {name: share * (level or 1.0) for name, level in levels.items()}


def _row(state: AdapterState, tensor: TensorGrid) -> Float32:
    found = state.tensors.get(tensor.name)
    if found is None or found.shape != tensor.shape:
        raise ValueError(f"{tensor.name}: missing, or of another shape than {tensor.shape}")
    return found.reshape(-1)


class _Rounding:
    """Changes to codes, one stretch after the other in the same room; counts those beyond the bound."""

    def __init__(self, tensor: TensorGrid, *, code_max: int) -> None:
        """Take the tensor, and the code of a change by its bound."""
        self.clipped = 0
        self._name = tensor.name
        self._scale = np.float32(code_max / tensor.clip)
        self._reach = np.float32(code_max)
        self._scaled = np.empty(_STRETCH, dtype=np.float32)
        self._codes = np.empty(_STRETCH, dtype=np.int32)

    def codes(self, returned: Float32, shipped: Float32) -> NDArray[np.uint32]:
        """Return the codes of a stretch, good until the next call; ``ValueError`` for values that are not finite."""
        scaled, codes = self._scaled[: returned.size], self._codes[: returned.size]
        with np.errstate(over="ignore", invalid="ignore"):  # what overflows is refused below, with a better message
            np.subtract(returned, shipped, out=scaled)
            np.multiply(scaled, self._scale, out=scaled)
        np.rint(scaled, out=scaled)
        low, high = float(scaled.min()), float(scaled.max())
        if not (isfinite(low) and isfinite(high)):
            raise ValueError(f"{self._name}: holds values that are not finite, or changes beyond float32")
        if low < -self._reach or high > self._reach:
            self.clipped += int(np.count_nonzero(np.abs(scaled) > self._reach))
            np.clip(scaled, -self._reach, self._reach, out=scaled)
        np.add(scaled, self._reach, out=scaled)
        np.copyto(codes, scaled, casting="unsafe")
        return codes.view(np.uint32)
