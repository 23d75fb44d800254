"""Which Gaussian numbers disturb codeword ``w``: white noise that is a function of (key, w, position) and of nothing else.

Philox4x32 with ten rounds (Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011) turns the
counter (group, w, key.high) under the key ``key.low`` into four 32-bit words; the Box-Muller transform turns each pair of words
into two normals. No state is carried from one sample to the next, so codewords may be drawn in any order, in any chunks and on
any thread. Only conversions, additions, multiplications and square roots are used, unfused, which IEEE 754 rounds alike on every
processor.

Accuracy: radius and angle come from 32 bits each, so tails end at 6.76 standard deviations (beyond which one sample in 7e10
should lie). Polynomials and rounding displace a sample by at most 5e-7 of its pair's radius (or of one deviation, if larger) and,
because the uniform number of 32 bits is rounded to 24 near 1, by 3e-8 over the radius in the very middle of the plane.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from hushtune_common.link.kernels import kernel
from hushtune_common.seeding import SeedTree

GROUPS: Final = 128
"""Counters per tile."""
TILE: Final = 4 * GROUPS
"""Samples per tile: group ``g`` of tile ``t`` gives samples ``512 t + 128 k + g``, k = 0..3, so stores are contiguous."""

_MULTIPLIERS: Final = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL: Final = (np.uint64(0x9E3779B9), np.uint64(0xBB67AE85))
_LOW: Final = np.uint64(0xFFFFFFFF)
_HALF_WORD: Final = np.uint64(32)
_ROUNDS: Final = 10

_ULP: Final = np.float32(2.0**-32)
_HALF: Final = np.float32(0.5)
_ONE: Final = np.float32(1.0)
_ROOT_HALF_BITS: Final = np.int32(0x3F3504F3)  # the float32 next to sqrt(1/2), read as an integer
_EXPONENT: Final = np.int32(23)
_OCTAVE: Final = np.float32(-2.0 * np.log(2.0))
# Minimax polynomials (weighted least squares, reweighted to equal ripple): -2 ln(1 + f) / f for 1 + f from sqrt(1/2) to sqrt(2),
# then sin(pi t / 4) / t and cos(pi t / 4) in t**2 for t from -1 to 1.
_LOG: Final = tuple(
    np.float32(c) for c in (-1.99999984, 1.00000689, -0.66671216, 0.49943121, -0.39768471, 0.34424852, -0.32676292, 0.20757432)
)
_SIN: Final = tuple(np.float32(c) for c in (0.78539816, -0.0807454348, 0.00249000713, -3.59545078e-5))
_COS: Final = tuple(np.float32(c) for c in (0.99999997, -0.308424254, 0.0158499153, -0.000318880508))


@dataclass(frozen=True, slots=True)
class NoiseKey:
    """What one listener's noise is keyed by: 128 bits as two unsigned 64-bit integers. Not a secret."""

    high: int
    low: int

    def __post_init__(self) -> None:
        """Check the range."""
        if not (0 <= self.high < 1 << 64 and 0 <= self.low < 1 << 64):
            raise ValueError("a noise key is two unsigned 64-bit integers")

    @staticmethod
    def of(seeds: SeedTree) -> "NoiseKey":
        """Return the key of a node of the seed tree; equal nodes give equal noise."""
        high, low = seeds.generator().integers(0, 1 << 64, size=2, dtype=np.uint64)
        return NoiseKey(int(high), int(low))

    @property
    def words(self) -> tuple[np.uint64, np.uint64]:
        """The key as compiled code takes it."""
        return np.uint64(self.high), np.uint64(self.low)


def normals(key: NoiseKey, *, first: int, rows: int, length: int) -> NDArray[np.float32]:
    """Return (rows, length) standard normals: row ``r`` is the noise of codeword ``first + r``, the same for every ``length``.

    ``ValueError`` unless the codewords lie in 0 .. 2**32 - 1.
    """
    check_codewords(first, rows)
    out = np.empty((rows, -(-length // TILE) * TILE), dtype=np.float32)
    _fill_rows(out, *key.words, np.uint64(first))
    return out[:, :length]


def check_codewords(first: int, count: int) -> None:
    """Raise ``ValueError`` unless codewords ``first .. first + count - 1`` have numbers of 32 bits, as the counter does."""
    if first < 0 or first + count > 1 << 32:
        raise ValueError(f"codewords {first} to {first + count} do not fit a counter of 32 bits")


@kernel
def fill(out: NDArray[np.float32], words: NDArray[np.uint32], high: np.uint64, low: np.uint64, codeword: np.uint64) -> None:
    """Write one codeword's normals to ``out`` (whole tiles); ``words`` is scratch of ``TILE`` words."""
    for tile in range(out.size // TILE):
        _random_words(words, high, low, codeword, np.uint64(tile * GROUPS))
        box_muller(out[tile * TILE : (tile + 1) * TILE], words)


@kernel
def _fill_rows(out: NDArray[np.float32], high: np.uint64, low: np.uint64, first: np.uint64) -> None:
    words = np.empty(TILE, dtype=np.uint32)
    for row in range(out.shape[0]):
        fill(out[row], words, high, low, first + np.uint64(row))


@kernel
def _random_words(words: NDArray[np.uint32], high: np.uint64, low: np.uint64, codeword: np.uint64, start: np.uint64) -> None:
    for g in range(GROUPS):
        x0, x1, x2, x3 = start + np.uint64(g), codeword, high & _LOW, high >> _HALF_WORD
        k0, k1 = low & _LOW, low >> _HALF_WORD
        for _ in range(_ROUNDS):  # only the lower half of each word counts; masking before the product keeps that so
            p0 = _MULTIPLIERS[0] * (x0 & _LOW)
            p1 = _MULTIPLIERS[1] * (x2 & _LOW)
            x0, x1, x2, x3 = (p1 >> _HALF_WORD) ^ x1 ^ k0, p1, (p0 >> _HALF_WORD) ^ x3 ^ k1, p0
            k0, k1 = k0 + _WEYL[0], k1 + _WEYL[1]
        words[g] = x0
        words[GROUPS + g] = x1
        words[2 * GROUPS + g] = x2
        words[3 * GROUPS + g] = x3


@kernel
def box_muller(out: NDArray[np.float32], words: NDArray[np.uint32]) -> None:
    """Turn a tile of words into a tile of normals: quarters 0 and 1 of the words give quarters 0 and 1, so do 2 and 3."""
    for pair in range(2):
        start = 2 * pair * GROUPS
        for g in range(GROUPS):
            radius = _radius(words[start + g])
            x, y = _direction(words[start + GROUPS + g])
            out[start + g] = radius * x
            out[start + GROUPS + g] = radius * y


@kernel
def _radius(word: np.uint32) -> np.float32:
    """Return sqrt(-2 ln u), u = (word + 1/2) / 2**32: exponent and mantissa are taken apart so that it is exact near u = 1."""
    bits = np.float32((np.float32(word) + _HALF) * _ULP).view(np.int32)
    exponent = np.int32(np.int32(bits - _ROOT_HALF_BITS) >> _EXPONENT)
    f = np.int32(bits - np.int32(exponent << _EXPONENT)).view(np.float32) - _ONE
    q = _LOG[7]
    for k in range(6, -1, -1):
        q = q * f + _LOG[k]
    return np.sqrt(max(np.float32(exponent) * _OCTAVE + f * q, np.float32(0.0)))


@kernel
def _direction(word: np.uint32) -> tuple[np.float32, np.float32]:
    """Return a point of the unit circle: 30 bits give the angle within +-45 degrees, two bits mirror it into the quadrants."""
    t = np.float32(np.int32(word << np.uint32(2))) * np.float32(2.0**-31)
    t2 = t * t
    x = ((_COS[3] * t2 + _COS[2]) * t2 + _COS[1]) * t2 + _COS[0]
    y = (((_SIN[3] * t2 + _SIN[2]) * t2 + _SIN[1]) * t2 + _SIN[0]) * t
    x = -x if word & np.uint32(0x80000000) else x
    return (y, x) if word & np.uint32(0x40000000) else (x, y)
