"""Blockwise integers: how frozen matrices are stored with fewer bits.

Letters in shapes: R rows, C columns, K scales of a row.
"""

import numpy as np
from numpy.typing import NDArray

from hushtune_common.adapter import Float32
from hushtune_common.model.slots import Quant

TOP = {8: 127, 4: 7}
"""Largest code; codes are symmetric, so that zero stays zero."""

_HALF_MAX = 65504.0


def code_columns(columns: int, *, quant: Quant) -> int:
    """Return how many bytes the codes of a row take."""
    return columns if quant.bits == 8 else -(-columns // 2)


def scale_columns(columns: int, *, quant: Quant) -> int:
    """Return how many scales a row has."""
    return -(-columns // quant.block)


def quantised(matrix: Float32, *, quant: Quant) -> tuple[NDArray[np.int16], NDArray[np.float16]]:
    """Return codes (R, bytes) and scales (R, K) of a matrix (R, C): each scale is the largest magnitude of its block over `TOP`.

    Eight-bit codes are signed bytes; four-bit codes are stored plus 8, the earlier one in the lower half of a byte.
    Law: every weight comes back within half a scale, and half a unit in the last place of the scale times its code; beyond
    `TOP` times the largest float16 magnitudes are cut off. ``ValueError`` for values that are not finite.
    """
    if not np.isfinite(matrix).all():
        raise ValueError("only finite values have codes")
    rows, columns = matrix.shape
    count = scale_columns(columns, quant=quant)
    padded = np.zeros((rows, count * quant.block), dtype=np.float32)
    padded[:, :columns] = matrix
    blocks = padded.reshape(rows, count, quant.block)
    scales = np.minimum(np.abs(blocks).max(axis=2) / TOP[quant.bits], _HALF_MAX).astype(np.float16)
    divisors = np.where(scales > 0, scales, 1).astype(np.float32)[:, :, None]
    codes = np.clip(np.rint(blocks / divisors), -TOP[quant.bits], TOP[quant.bits]).astype(np.int16)
    codes = codes.reshape(rows, -1)[:, :columns]
    return (codes if quant.bits == 8 else _packed(codes)), scales


def dequantised(codes: NDArray[np.integer], scales: NDArray[np.floating], *, columns: int, quant: Quant) -> Float32:
    """Return the matrix (R, C) that codes and scales stand for."""
    plain = codes if quant.bits == 8 else _unpacked(codes)[:, :columns]
    spread = np.repeat(scales.astype(np.float32), quant.block, axis=1)[:, :columns]
    return plain.astype(np.float32) * spread


def _packed(codes: NDArray[np.int16]) -> NDArray[np.int16]:
    if codes.shape[1] % 2:
        codes = np.pad(codes, ((0, 0), (0, 1)))
    return (codes[:, 0::2] + 8) | ((codes[:, 1::2] + 8) << 4)


def _unpacked(packed: NDArray[np.integer]) -> NDArray[np.int16]:
    both = np.empty((packed.shape[0], 2 * packed.shape[1]), dtype=np.int16)
    wide = packed.astype(np.int16)
    both[:, 0::2] = (wide & 15) - 8
    both[:, 1::2] = (wide >> 4) - 8
    return both
