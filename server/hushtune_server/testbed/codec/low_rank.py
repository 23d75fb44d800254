"""How are changes of matrices written as two thin factors, as a low-rank adapter has them?

The product of the factors is the truncated singular value decomposition, the nearest matrix of its rank (Eckart and Young 1936):
what LoRA (Hu et al. 2022) would send if training had found the best factors of what full blocks learned.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hushtune_server.testbed.codec.peer import Float32, from_halves, halves


@dataclass(frozen=True, slots=True, kw_only=True)
class LowRank:
    """Factors of ``rank`` columns in float16; tensors that are no matrix, or that factors would not make smaller, in float16."""

    rank: int

    def __post_init__(self) -> None:
        """Check the range."""
        if self.rank < 1:
            raise ValueError(f"a rank is at least 1, got {self.rank}")

    def encode(self, change: Float32) -> Sequence[bytes]:
        """Return the left factor (M, r) and the right one (r, N); of a tensor that is written whole, nothing and the tensor."""
        if not self._factored(change.shape):
            return [b"", halves(change)]
        left = leading(change, rank=self.rank)
        return [halves(left), halves(left.T @ change)]

    def decode(self, parts: Sequence[bytes], *, shape: tuple[int, ...]) -> Float32:
        """Return the tensor."""
        right = from_halves(parts[1])
        if not parts[0]:
            return right.reshape(shape)
        return from_halves(parts[0]).reshape(-1, self.rank) @ right.reshape(self.rank, -1)

    def _factored(self, shape: tuple[int, ...]) -> bool:
        return len(shape) == 2 and self.rank * sum(shape) < shape[0] * shape[1]


def leading(matrix: Float32, *, rank: int) -> Float32:
    """Return the first ``rank`` left singular vectors of a matrix (M, N) as columns (M, rank).

    From the eigenvectors of the smaller of the two squares, in double precision, which is many times faster than the
    decomposition itself and blurs only singular values below 1e-8 of the largest.
    """
    exact = matrix.astype(np.float64)
    if matrix.shape[0] <= matrix.shape[1]:
        return np.linalg.eigh(exact @ exact.T)[1][:, : -rank - 1 : -1].astype(np.float32)
    right = np.linalg.eigh(exact.T @ exact)[1][:, : -rank - 1 : -1]
    return np.linalg.qr(exact @ right)[0].astype(np.float32)
