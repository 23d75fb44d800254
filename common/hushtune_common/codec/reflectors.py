"""How is a matrix seen along a few given directions, and otherwise as it was? Through reflections that carry axes to them.

K orthonormal directions of C coordinates make K Householder reflections, ``Q = I - V T V'`` in the compact form of Schreiber
and Van Loan (1989): the axes of the ``pivots`` go to the directions, up to sign, and all others stay close to where they were.
Multiplying by Q takes two thin products, forth and back.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from hushtune_common.adapter import Float32

Float64 = NDArray[np.float64]
_ROWS: Final = 64


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Reflectors:
    """An orthogonal change of coordinates: ``vectors`` V (C, K) and the upper triangle ``factor`` T (K, K)."""

    vectors: Float32
    factor: Float32
    pivots: tuple[int, ...]
    """The coordinates along the directions, in their order."""

    @staticmethod
    def along(directions: Float32) -> "Reflectors":
        """Return the reflections to orthonormal ``directions`` (K, C), K at most C."""
        count, size = directions.shape
        vectors, factor, pivots = np.zeros((size, count)), np.zeros((count, count)), list[int]()
        for k in range(count):
            seen = directions[k].astype(np.float64)
            seen = seen - vectors[:, :k] @ (factor[:k, :k].T @ (vectors[:, :k].T @ seen))
            seen[pivots] = 0.0  # it has nothing along earlier directions but rounding
            pivot = int(np.argmax(np.abs(seen)))
            vector = seen / np.linalg.norm(seen)
            vector[pivot] += 1.0 if vector[pivot] >= 0.0 else -1.0
            weight = 2.0 / float(vector @ vector)
            factor[:k, k] = -weight * (factor[:k, :k] @ (vectors[:, :k].T @ vector))
            factor[k, k], vectors[:, k] = weight, vector
            pivots.append(pivot)
        return Reflectors(vectors=vectors.astype(np.float32), factor=factor.astype(np.float32), pivots=tuple(pivots))

    def forth(self, matrix: Float32) -> Float32:
        """Return ``matrix @ Q``: (R, C) in the new coordinates."""
        out = np.empty_like(matrix)
        self._reflect(matrix, self.vectors @ self.factor, out=out)
        return out

    def back(self, matrix: Float32) -> None:
        """Turn the matrix to ``matrix @ Q'``, in its place: undo `forth`."""
        self._reflect(matrix, self.vectors @ self.factor.T, out=matrix)

    def _reflect(self, matrix: Float32, weighed: Float32, *, out: Float32) -> None:
        """Write ``matrix - matrix @ weighed @ V'`` to ``out``; so few rows at a time that they stay in the cache."""
        for first in range(0, len(matrix), _ROWS):
            rows = matrix[first : first + _ROWS]
            np.subtract(rows, (rows @ weighed) @ self.vectors.T, out=out[first : first + _ROWS])

    def variances(self, covariance: Float64) -> Float64:
        """Return the diagonal of ``Q' covariance Q`` (C,)."""
        v, t = self.vectors.astype(np.float64), self.factor.astype(np.float64)
        seen = covariance @ v  # (C, K)
        vt = v @ t
        # diag(A) - 2 diag(A V T V') + diag(V T' V' A V T V')
        return (
            np.diag(covariance)
            - 2.0 * np.einsum("ck,ck->c", seen @ t, v)
            + np.einsum("ck,kl,cl->c", v, vt.T @ (covariance @ vt), v)
        )
