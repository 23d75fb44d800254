"""Which thin factors make up most of what the loss minds about a change? Those of its weighed singular value decomposition.

In coordinates weighed by the sensitivity the harm of an error is its squared length, so that no product of rank r does less harm
than that of the r largest singular values (Eckart and Young 1936). A factor's error in component k harms in proportion to the
singular value of k, if each factor has the root of it: that is the sensitivity that the factors are coded with. It is told in
half octaves, of which both sides make the same number.

Letters in shapes: R rows, C columns, r components.
"""

from dataclasses import dataclass
from math import log2
from typing import Final

import numpy as np
from numpy.typing import NDArray

from hushtune_common.adapter import Float32
from hushtune_common.codec.coordinates import Coordinates
from hushtune_common.seeding import SeedTree

Float64 = NDArray[np.float64]

_MORE: Final = 8
_PASSES: Final = 1
_LEAST: Final = 2.0**-40
"""Components whose squares are this far below the largest are rounding."""
HALF_OCTAVE_MAX: Final = 240


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Spectrum:
    """The largest components of a matrix: ``left`` (R, r), ``values`` (r,), falling, ``right`` (C, r)."""

    left: Float32
    values: Float64
    right: Float32

    @staticmethod
    def of(matrix: Float32, *, most: int) -> "Spectrum":
        """Return at most so many components of a finite matrix that is not zero, none that is rounding only.

        By subspace iteration (Halko, Martinsson and Tropp 2011) from a fixed start; exact where the rank is at most ``most``.
        """
        unit, width = float(np.abs(matrix).max()), min(most + _MORE, *matrix.shape)
        matrix = (matrix.astype(np.float64) / unit).astype(np.float32)
        start = SeedTree(0).child("codec", "factors").generator().standard_normal((matrix.shape[1], width), dtype=np.float32)
        found = _orthonormal(matrix @ start)
        for _ in range(_PASSES):
            found = _orthonormal(matrix @ _orthonormal(matrix.T @ found))
        squares, axes = _axes(across := found.T @ matrix)
        count = min(most, int(np.count_nonzero(squares > _LEAST * squares[0])))
        values, axes = np.sqrt(squares[:count]), axes[:, :count]
        return Spectrum(
            left=(found @ axes).astype(np.float32), values=values * unit, right=(across.T @ (axes / values)).astype(np.float32)
        )

    def factors(self, halves: tuple[int, ...]) -> tuple[Float32, Float32]:
        """Return the factors (R, r) and (C, r) of the first components, the right one with columns as long as `scale` says."""
        roots = np.sqrt(np.array([scale(half) for half in halves]))
        count = len(halves)
        left = self.left[:, :count] * (self.values[:count] / roots)
        return left.astype(np.float32), (self.right[:, :count] * roots).astype(np.float32)


def _axes(wide: Float32) -> tuple[Float64, Float64]:
    """Return squared singular values of a wide matrix (r, C), falling, and its left singular vectors (r, r).

    From its square, in double precision: many times faster than the decomposition, and blurred only far below what counts.
    """
    exact = wide.astype(np.float64)
    squares, axes = np.linalg.eigh(exact @ exact.T)
    return np.maximum(squares[::-1], 0.0), axes[:, ::-1]


def _orthonormal(columns: Float32) -> Float32:
    """Return orthonormal columns with the span of those given, but for directions that are rounding only."""
    for _ in range(2):
        squares, axes = _axes(columns.T)
        kept = squares > _LEAST * squares[0]
        columns = (columns @ (axes[:, kept] / np.sqrt(squares[kept]))).astype(np.float32)
    return columns


def half_octave(value: float) -> int:
    """Return a positive number in half octaves."""
    return max(-HALF_OCTAVE_MAX, min(HALF_OCTAVE_MAX, round(2.0 * log2(value))))


def scale(half: int) -> float:
    """Return the number of so many half octaves, bit for bit the same for everybody."""
    return 2.0 ** (half // 2) * (1.4142135623730951 if half % 2 else 1.0)


def weighed(change: Float32, coordinates: Coordinates) -> Float32:
    """Return a change in coordinates (R, C) in which its squared length is what the loss minds."""
    matrix = change.reshape(coordinates.rows, -1)
    if coordinates.reflectors is not None:
        matrix = coordinates.reflectors.forth(matrix)
    with np.errstate(over="ignore", invalid="ignore"):
        return matrix * coordinates.row_roots[:, None] * coordinates.column_roots


def unweighed(matrix: Float64, coordinates: Coordinates) -> Float32:
    """Undo `weighed`, in the tensor's shape; what is beyond float32 is not finite."""
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        plain = (matrix / coordinates.row_roots.astype(np.float64)[:, None] / coordinates.column_roots).astype(np.float32)
        if coordinates.reflectors is not None:
            coordinates.reflectors.back(plain)
    return plain.reshape(coordinates.shape)
