"""Which singular components is a matrix made of?

Worked out on one thread, whatever the process uses otherwise: the bits then do not depend on how many cores there are, and on
busy cores threads that wait for each other cost many times what they save.

Letters in shapes: M rows, N columns, K = min(M, N), R components that stay.
"""

from collections.abc import Generator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray

from hushtune_common.adapter import Float32

Floats = NDArray[np.float64]


def decomposed(matrix: Float32) -> tuple[Floats, Floats, Floats]:
    """Return U (M, K), the singular values (K,) from the largest, and V^T (K, N), in float64.

    Signs are fixed: the entry of largest magnitude of each column of U is positive.
    """
    with _one_thread():
        u, s, vt = torch.linalg.svd(torch.from_numpy(matrix.astype(np.float64)), full_matrices=False)
    left, values, right = u.numpy(), s.numpy(), vt.numpy()
    signs = np.where(left[np.abs(left).argmax(axis=0), np.arange(len(values))] < 0, -1.0, 1.0)
    return left * signs, values, signs[:, None] * right


def factors(matrix: Float32, *, components: Sequence[int]) -> tuple[Float32, Float32]:
    """Return (M, R) and (R, N) whose product holds the singular ``components`` of a matrix, counted from the largest.

    The singular values are shared evenly between the two. ``IndexError`` for a component that the matrix has not.
    """
    u, s, vt = decomposed(matrix)
    chosen = np.asarray(components)
    root = np.sqrt(s[chosen])
    return (u[:, chosen] * root).astype(np.float32), (root[:, None] * vt[chosen]).astype(np.float32)


def product(left: Float32, right: Float32) -> Float32:
    """Return left (M, R) times right (R, N)."""
    with _one_thread():
        return (torch.from_numpy(left) @ torch.from_numpy(right)).numpy()


@contextmanager
def _one_thread() -> Generator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
