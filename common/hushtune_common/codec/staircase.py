"""How are numbers rounded to a shifted grid, hidden in whole steps of noise, and shown again? As `GridNoise` says.

All that is random and private is a whole number, drawn by comparing 62 bits with a table of whole numbers. So likelihoods are
exact ratios of whole numbers, and no last place of a floating-point sum gives anything away (Mironov 2012).
"""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal, localcontext
from typing import Final

import numpy as np
from numpy.typing import NDArray

from hushtune_common.adapter import Float32
from hushtune_common.codec.kernels import kernel
from hushtune_common.noise import GridNoise

Codes = NDArray[np.int32]
Float64 = NDArray[np.float64]
Words = NDArray[np.uint64]
Dither = NDArray[np.uint32]

SEED_BYTES: Final = 16
_DRAW_BITS: Final = 62
_CHUNK: Final = 1 << 18
_INSIDE: Final = 1.0 - 2.0**-20
"""Blocks are clipped to so much less than promised that no rounding in double precision leads out again."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class NoiseTables:
    """The distribution of the noise, in whole numbers: 2**62 times the chance that it is at most g, rounded down.

    ``both`` begins at g = -most, ``further`` at g = 0, for the part of the noise beyond most: how far it goes on has the same
    distribution again, in one direction. Both end with 2**62 at most, which stands for most and all beyond.
    """

    both: Words
    further: Words

    @staticmethod
    def of(noise: GridNoise) -> "NoiseTables":
        """Work the tables out, with 50 digits."""
        whole = 1 << _DRAW_BITS
        with localcontext() as context:
            context.prec = 50
            fall, powers = (-Decimal(noise.decay)).exp(), [Decimal(whole)]
            for _ in range(noise.noise_most):
                powers.append(powers[-1] * fall)
            below = [int(p / (1 + fall)) for p in powers[1:]]  # of -1, -2, ... and less; also of 1, 2, ... and more
            beyond = [int(p) for p in powers[1:]]
        both = [*below[::-1], *(whole - chance for chance in below), whole]
        return NoiseTables(
            both=np.array(both, dtype=np.uint64), further=np.array([*(whole - c for c in beyond), whole], dtype=np.uint64)
        )

    def drawn(self, count: int) -> Codes:
        """Return independent noise (count,) from the operating system."""
        most = self.further.size - 1
        found = _looked_up(self.both, count) - np.int32(most)
        going = np.flatnonzero(np.abs(found) == most)
        while going.size:
            more = _looked_up(self.further, going.size)
            found[going] += np.sign(found[going]) * more
            going = going[more == most]
        return found


def fresh_seed() -> bytes:
    """Return the seed of a blob's dither, which the blob tells; it is drawn anew for every blob."""
    return secrets.token_bytes(SEED_BYTES)


def dithers(seed: bytes, counts: Sequence[int]) -> "list[Dither]":
    """Return the dither of tensors of so many numbers, in 2^-32 of a step, the same for everybody who has the seed (Philox)."""
    total = sum(counts)
    words = np.random.Philox(key=int.from_bytes(seed, "little")).random_raw(-(-total // 2))
    flat = np.atleast_1d(words).astype("<u8").view("<u4").astype(np.uint32)[:total]
    return np.split(flat, np.cumsum(np.array(counts, dtype=np.int64))[:-1])


def clipped(change: Float64, *, noise: GridNoise) -> Float64:
    """Return a change (N,) whose blocks have the promised sum of magnitudes at most; larger ones are scaled down."""
    out = np.empty_like(change)
    _clip(change, noise.promise.block, noise.promise.clip * _INSIDE, out)
    return out


def hidden(change: Float64, dither: Dither, *, noise: GridNoise, tables: NoiseTables) -> Codes:
    """Return the codes of a `clipped` change (N,): rounded, hidden in noise, and cut off where the alphabet ends."""
    codes: Codes = np.empty(change.size, dtype=np.int32)
    for first in range(0, change.size, _CHUNK):
        part = slice(first, min(first + _CHUNK, change.size))
        noisy = rounded(change[part], dither[part], noise=noise) + tables.drawn(part.stop - part.start)
        codes[part] = np.clip(noisy, -noise.code_most, noise.code_most)
    return codes


def _looked_up(table: Words, count: int) -> Codes:
    """Return places in a table, each as often as it says."""
    random = np.frombuffer(secrets.token_bytes(8 * count), dtype=np.uint64)
    found: Codes = np.empty(count, dtype=np.int32)
    _look_up(random, table, found)
    return found


def rounded(change: Float64, dither: Dither, *, noise: GridNoise) -> Codes:
    """Return the codes before any noise: what must not be sent. Here so that it can be checked how far apart two may lie."""
    codes: Codes = np.empty(change.size, dtype=np.int32)
    _round(change, dither, 1.0 / noise.step, codes)
    return codes


def shown(codes: Codes, dither: Dither, shipped: Float32, *, noise: GridNoise) -> Float32:
    """Return the numbers (N,) that codes stand for, on top of the shipped ones; what is beyond float32 becomes infinite."""
    out = np.empty(codes.size, dtype=np.float32)
    with np.errstate(over="ignore"):
        _show(codes, dither, shipped, noise.step, out)
    return out


@kernel
def _clip(change: Float64, block: int, limit: float, out: Float64) -> None:
    for first in range(0, change.size, block):
        stop = min(first + block, change.size)
        norm = 0.0
        for i in range(first, stop):
            norm += abs(change[i])
        factor = limit / norm if norm > limit else 1.0
        for i in range(first, stop):
            out[i] = change[i] * factor


@kernel
def _shift(dither: np.uint32) -> float:
    """Return the dither in steps, above -1/2 and below 1/2."""
    return (np.float64(dither) + 0.5) * 2.0**-32 - 0.5


@kernel
def _round(change: Float64, dither: Dither, inverse: float, codes: Codes) -> None:
    for i in range(change.size):
        codes[i] = np.int64(np.floor(change[i] * inverse - _shift(dither[i]) + 0.5))


@kernel
def _look_up(random: Words, table: Words, found: Codes) -> None:
    for i in range(random.size):
        drawn = random[i] >> np.uint64(2)
        low, high = 0, table.size - 1
        while low < high:  # the first that is more than what was drawn
            middle = (low + high) // 2
            if table[middle] > drawn:
                high = middle
            else:
                low = middle + 1
        found[i] = low


@kernel
def _show(codes: Codes, dither: Dither, shipped: Float32, step: float, out: Float32) -> None:
    for i in range(codes.size):
        out[i] = np.float32(np.float64(shipped[i]) + (codes[i] + _shift(dither[i])) * step)
