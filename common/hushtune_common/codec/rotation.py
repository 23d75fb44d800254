"""How is a change of weights spread out, so that what is left out of it hurts nobody in particular? By turning rows among each
other.

Runs of up to 64 rows are multiplied by a Hadamard matrix with random signs: every number of the result is a sum of as many
weights and nearly normal, whatever the weights were. A coder that zeroes the small ones then makes an error that resembles
noise. Without the turn it would zero small weights, which all point where training went, and the model would mind that a
hundred times more.

Letters in shapes: R rows, C columns. Rows are cut into runs of 64; a shorter last run is cut into powers of two (39 = 32 + 4 +
2 + 1), each with a Hadamard matrix of its own. Turned numbers lie run by run, and within a run column by column, so that the
numbers of a run and column are neighbours.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from hushtune_common.adapter import Float32
from hushtune_common.codec.kernels import kernel

RUN: Final = 64
"""Rows that are turned among each other."""
_STRIP: Final = 32
"""Columns at a time: a run of a strip stays in the first-level cache."""

Float64 = NDArray[np.float64]


def signs(rows: int) -> Float32:
    """Return the sign of each row (R,), the same for everybody: a bit of its number after SplitMix64 (Steele et al. 2014)."""
    with np.errstate(over="ignore"):
        z = (np.arange(rows, dtype=np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.where((z >> np.uint64(63)) > 0, np.float32(-1.0), np.float32(1.0))


def turn(matrix: Float32, *, row_scale: Float32, column_scale: Float32, out: Float32) -> None:
    """Write ``matrix`` (R, C), scaled by row and column and turned, to ``out`` (R * C,), run by run."""
    _turn(matrix, row_scale, column_scale, out)


def turn_back(turned: Float32, *, row_scale: Float32, column_scale: Float32, out: Float32) -> None:
    """Write to ``out`` (R, C) the matrix whose turned numbers are given, scaled by row and column after turning back."""
    _turn_back(turned, row_scale, column_scale, out)


@kernel
def _hadamard(tile: Float32, rows: int, columns: int) -> None:
    """Multiply the first ``rows`` rows of a tile by Hadamard matrices of the largest powers of two that fit, orthonormal."""
    start = 0
    while start < rows:
        size = 1
        while 2 * size <= rows - start:
            size *= 2
        half = 1
        while half < size:
            for low in range(start, start + size, 2 * half):
                for i in range(low, low + half):
                    for j in range(columns):
                        a, b = tile[i, j], tile[i + half, j]
                        tile[i, j] = a + b
                        tile[i + half, j] = a - b
            half *= 2
        scale = np.float32(1.0 / np.sqrt(np.float64(size)))
        for i in range(start, start + size):
            for j in range(columns):
                tile[i, j] *= scale
        start += size


@kernel
def _turn(matrix: Float32, row_scale: Float32, column_scale: Float32, out: Float32) -> None:
    rows_all, columns_all = matrix.shape
    tile = np.empty((64, 32), dtype=np.float32)
    for first in range(0, rows_all, 64):
        rows = min(64, rows_all - first)
        for left in range(0, columns_all, 32):
            columns = min(32, columns_all - left)
            for i in range(rows):
                scale = row_scale[first + i]
                for j in range(columns):
                    tile[i, j] = matrix[first + i, left + j] * column_scale[left + j] * scale
            _hadamard(tile, rows, columns)
            at = first * columns_all + left * rows
            for j in range(columns):
                for i in range(rows):
                    out[at + j * rows + i] = tile[i, j]


@kernel
def _turn_back(turned: Float32, row_scale: Float32, column_scale: Float32, out: Float32) -> None:
    rows_all, columns_all = out.shape
    tile = np.empty((64, 32), dtype=np.float32)
    for first in range(0, rows_all, 64):
        rows = min(64, rows_all - first)
        for left in range(0, columns_all, 32):
            columns = min(32, columns_all - left)
            at = first * columns_all + left * rows
            for j in range(columns):
                for i in range(rows):
                    tile[i, j] = turned[at + j * rows + i]
            _hadamard(tile, rows, columns)
            for i in range(rows):
                scale = row_scale[first + i]
                for j in range(columns):
                    out[first + i, left + j] = tile[i, j] * column_scale[left + j] * scale
