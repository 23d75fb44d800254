"""How are numbers written as 4-bit normal floats, as bitsandbytes lays them out?

Dettmers et al. 2023 (QLoRA, section 3): sixteen levels at quantiles of the normal distribution, one of them zero, the largest
magnitude of every block of 64 as its scale, and the scales once more as 8-bit numbers, in blocks of 256, after their mean was
taken off (double quantisation). The 8-bit numbers are the dynamic ones of Dettmers et al. 2022 (8-bit optimizers, section 2).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from hushtune_server.testbed.codec.peer import Bytes, Float32, in_blocks, packed_codes, unpacked_codes

BLOCK = 64
SCALES_BLOCK = 256
_OFFSET = 0.9677083
"""Probability of the outermost quantile, as published with the code of the paper."""
_DECADES = 7


@cache
def levels() -> Float32:
    """Return the 16 levels, increasing from -1 to 1: 7 quantiles below zero, zero, 8 above it, over the largest."""
    above = ndtri(np.linspace(_OFFSET, 0.5, 9)[:-1])
    below = -ndtri(np.linspace(_OFFSET, 0.5, 8)[:-1])
    return np.sort(np.concatenate([below, [0.0], above]) / above.max()).astype(np.float32)


@cache
def dynamic_levels() -> Float32:
    """Return the 256 levels of the signed dynamic 8-bit type, increasing: zero, one, and 127 on each side.

    The further a decade is from 1 (there are 7, from 1 down to 1e-7), the fewer levels it has: 64, 32, ..., 1, at the middles of
    as many equal parts of [0.1, 1].
    """
    edges = [np.linspace(0.1, 1.0, (1 << k) + 1) * 10.0 ** (k - _DECADES + 1) for k in range(_DECADES)]
    middles = np.concatenate([(e[:-1] + e[1:]) / 2.0 for e in edges])
    return np.sort(np.concatenate([-middles, middles, [0.0, 1.0]])).astype(np.float32)


@dataclass(frozen=True, slots=True)
class NormalFloat:
    """Normal floats with doubly quantised scales: 4.127 bits per number."""

    def encode(self, change: Float32) -> Sequence[bytes]:
        """Return the mean scale, the scales' scales, the scales, and the codes."""
        blocks = in_blocks(change, size=BLOCK)
        scales = np.abs(blocks).max(axis=1)
        mean = np.float32(scales.mean(dtype=np.float64))
        rows = in_blocks(scales - mean, size=SCALES_BLOCK)
        outer = np.abs(rows).max(axis=1)
        inner = _nearest(_over(rows, outer), dynamic_levels()).reshape(-1)[: scales.size]
        codes = _nearest(_over(blocks, scales), levels())
        return [mean.tobytes(), outer.tobytes(), inner.tobytes(), packed_codes(codes, bits=4)]

    def decode(self, parts: Sequence[bytes], *, shape: tuple[int, ...]) -> Float32:
        """Return the tensor."""
        mean, outer = (np.frombuffer(p, dtype=np.float32) for p in parts[:2])
        inner = dynamic_levels()[np.frombuffer(parts[2], dtype=np.uint8)]
        scales = inner * np.repeat(outer, SCALES_BLOCK)[: inner.size] + mean[0]
        blocks = levels()[unpacked_codes(parts[3], bits=4)].reshape(-1, BLOCK) * scales[:, None]
        return blocks.reshape(-1)[: int(np.prod(shape))].reshape(shape)


def _over(rows: Float32, largest: Float32) -> Float32:
    """Return rows by their largest magnitude; rows of zeros stay."""
    divisors: Float32 = np.where(largest > 0.0, largest, np.float32(1.0))
    return rows / divisors[:, None]


def _nearest(values: Float32, table: NDArray[np.float32]) -> Bytes:
    """Return which level of an increasing table is nearest to each value."""
    return np.searchsorted((table[:-1] + table[1:]) / 2.0, values).astype(np.uint8)
