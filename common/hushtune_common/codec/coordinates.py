"""In which coordinates is a tensor's change coded? Weighed by what the loss minds, along its directions, and turned."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hushtune_common.adapter import Float32
from hushtune_common.codec.kernels import kernel
from hushtune_common.codec.reflectors import Reflectors
from hushtune_common.codec.rotation import signs, turn, turn_back
from hushtune_common.codec.sensitivity import TensorSensitivity

Float64 = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Coordinates:
    """The coordinates of one tensor, a matrix of R rows and C columns.

    Law: `back` of `forth` is what went in, but for float32 rounding; the squared length of what `forth` returns is what the loss
    minds about the change.
    """

    shape: tuple[int, ...]
    columns: Float32
    """Sensitivity of each column (C,)."""
    row_roots: Float32
    column_roots: Float32
    row_signs: Float32
    reflectors: Reflectors | None

    @staticmethod
    def of(shape: tuple[int, ...], found: TensorSensitivity) -> "Coordinates":
        """Return the coordinates of a tensor of ``shape`` with this sensitivity."""
        return Coordinates(
            shape=shape,
            columns=found.columns,
            row_roots=np.sqrt(found.rows),
            column_roots=np.sqrt(found.columns),
            row_signs=signs(found.rows.size),
            reflectors=Reflectors.along(found.directions) if found.directions.size else None,
        )

    @property
    def rows(self) -> int:
        """R."""
        return self.row_roots.size

    @property
    def size(self) -> int:
        """Numbers of the tensor."""
        return self.rows * self.columns.size

    def forth(self, change: Float32, *, out: Float32) -> None:
        """Write the ``change`` of the tensor in these coordinates to ``out`` (R * C,), in the order of `turn`."""
        matrix = change.reshape(self.rows, -1)
        if self.reflectors is not None:
            with np.errstate(over="ignore", invalid="ignore"):  # the caller refuses what is not finite
                matrix = self.reflectors.forth(matrix)
        turn(matrix, row_scale=self.row_roots * self.row_signs, column_scale=self.column_roots, out=out)

    def back(self, turned: Float32, *, scale: float) -> Float32:
        """Return the change, in the tensor's shape, that is ``scale`` times ``turned`` in these coordinates."""
        matrix = np.empty((self.rows, self.columns.size), dtype=np.float32)
        with np.errstate(over="ignore", under="ignore"):
            column_scale = (scale / self.column_roots.astype(np.float64)).astype(np.float32)
        turn_back(turned, row_scale=self.row_signs / self.row_roots, column_scale=column_scale, out=matrix)
        if self.reflectors is not None:
            with np.errstate(over="ignore", invalid="ignore"):  # the caller refuses what is not finite
                self.reflectors.back(matrix)
        return matrix.reshape(self.shape)

    def variances(self, turned: Float32) -> Float64:
        """Return the mean square of each column (C,) of what `forth` wrote."""
        sums = np.zeros(self.columns.size)
        _sums_of_squares(turned, self.rows, sums)
        return sums / self.rows


@kernel
def _sums_of_squares(turned: Float32, rows: int, sums: Float64) -> None:
    columns = sums.size
    for first in range(0, rows, 64):
        run = min(64, rows - first)
        for j in range(columns):
            at = first * columns + j * run
            total = 0.0
            for i in range(at, at + run):
                total += np.float64(turned[i]) * np.float64(turned[i])
            sums[j] += total
