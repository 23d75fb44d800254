"""Are singular components what they should be, and the same on any number of threads?"""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from hushtune_common.model.decompose import decomposed, factors, product


def matrix_of(rows: int, columns: int, *, rank: int | None = None) -> NDArray[np.float32]:
    rng = np.random.default_rng(rows + 1000 * columns)
    whole = rng.standard_normal((rows, columns))
    return (whole if rank is None else whole[:, :rank] @ rng.standard_normal((rank, columns))).astype(np.float32)


@given(st.integers(1, 12), st.integers(1, 12))
def test_components_are_orthonormal_descending_and_make_up_the_matrix(rows: int, columns: int) -> None:
    matrix = matrix_of(rows, columns)
    u, s, vt = decomposed(matrix)
    count = min(rows, columns)
    assert np.allclose(u.T @ u, np.eye(count), atol=1e-12)
    assert np.allclose(vt @ vt.T, np.eye(count), atol=1e-12)
    assert np.all(np.diff(s) <= 0)
    assert np.allclose((u * s) @ vt, matrix, atol=1e-12)
    assert np.allclose(s, np.linalg.svd(matrix.astype(np.float64), compute_uv=False), atol=1e-12)


def test_the_largest_entry_of_every_left_vector_is_positive() -> None:
    u, _, _ = decomposed(matrix_of(9, 7))
    assert np.all(np.take_along_axis(u, np.abs(u).argmax(axis=0)[None], axis=0) > 0)


@pytest.mark.parametrize("components", [(0,), (1, 3), (0, 1, 2, 3, 4)])
def test_what_is_lost_is_the_energy_of_the_components_that_go(components: tuple[int, ...]) -> None:
    matrix = matrix_of(5, 8)
    left, right = factors(matrix, components=components)
    values = np.linalg.svd(matrix.astype(np.float64), compute_uv=False)
    lost = np.delete(values, components)
    assert np.linalg.norm(matrix - left.astype(np.float64) @ right) == pytest.approx(np.linalg.norm(lost), rel=1e-5, abs=1e-5)
    assert np.allclose(np.linalg.norm(left, axis=0), np.linalg.norm(right, axis=1), rtol=1e-5)


def test_a_matrix_of_zeros_or_of_low_rank_has_finite_factors() -> None:
    for matrix in (np.zeros((4, 6), np.float32), matrix_of(6, 6, rank=2)):
        left, right = factors(matrix, components=range(4))
        assert np.isfinite(left).all()
        assert np.allclose(product(left, right), matrix, atol=1e-5)


def test_the_bits_do_not_depend_on_how_many_threads_the_process_has() -> None:
    matrix, before = matrix_of(160, 200), torch.get_num_threads()
    found: list[bytes] = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            left, right = factors(matrix, components=range(100))
            found.append(left.tobytes() + right.tobytes() + product(left, right).tobytes())
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert found[0] == found[1] == found[2]
