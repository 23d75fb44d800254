"""Is the sum of payloads the payload of the sum, in how many bits, and how exact is the mean?"""

from math import log2
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from hushtune_common.adapter import AdapterState
from hushtune_common.aggregation import DIGITS, REACH_MAX, digits_for, radix
from hushtune_common.errors import BudgetTooSmall, MalformedUpdate
from hushtune_common.messages import TensorSpec
from hushtune_common.secagg.grid import Grid, TensorGrid, clips_of, digits_within, grid_of
from hushtune_common.secagg.messages import Terms, upload_bytes
from tests.secagg import terms_for

CLIP = 0.01


def grid_for(shape: tuple[int, ...], *, digits: int, weight_max: int, clip: float = CLIP) -> Grid:
    return Grid(tensors=(TensorGrid(name="w", shape=shape, clip=clip, digits=digits),), weight_max=weight_max)


Floats = NDArray[np.floating[Any]]


def state_of(values: Floats) -> AdapterState:
    return AdapterState({"w": values.astype(np.float32)})


@pytest.mark.parametrize("digits", DIGITS)
def test_the_base_is_the_largest_whose_digits_fit_a_word(digits: int):
    assert radix(digits) ** digits <= 2**64 < (radix(digits) + 1) ** digits


def test_words_are_numbers_in_the_base_weight_first():
    # Sixteen digits in base 16: codes 0 to 14 for one sender.
    grid = grid_for((17,), digits=16, weight_max=1)
    change = np.linspace(-7.0, 7.0, 17)
    codes = [round(v) + 7 for v in change.tolist()]
    words = grid.encode(state_of(change * CLIP / 7), shipped=state_of(np.zeros(17)))
    # Digit j of word w is element 2 j + w of the two words.
    expected = [1, *(sum(c * 16**j for j, c in enumerate(codes[w::2])) for w in range(2))]
    assert [int(w) for w in words.words] == expected


def drawn(rng: np.random.Generator, shape: tuple[int, ...], senders: int) -> list[Floats]:
    return [(CLIP * rng.uniform(-1.2, 1.2, shape)).astype(np.float32) for _ in range(senders)]


@given(
    st.integers(0, 2**32),
    st.sampled_from(DIGITS),
    st.lists(st.integers(1, 3), min_size=1, max_size=4),
    st.sampled_from([(1,), (7,), (16, 3), (5, 7, 2)]),
)
def test_the_mean_is_within_half_a_step_of_the_mean_of_what_was_bounded(
    seed: int, digits: int, weights: list[int], shape: tuple[int, ...]
):
    if (radix(digits) - 1) // sum(weights) < 2:
        return
    rng = np.random.default_rng(seed)
    shipped, changes = rng.standard_normal(shape).astype(np.float32), drawn(rng, shape, len(weights))
    grid = grid_for(shape, digits=digits, weight_max=sum(weights))
    payloads = [
        grid.encode(state_of(shipped + c), shipped=state_of(shipped), weight=w) for c, w in zip(changes, weights, strict=True)
    ]

    mean = grid.decode(sum((p.words for p in payloads), np.zeros(grid.words, dtype=np.uint64)), shipped=state_of(shipped))

    moved = [np.clip((shipped + c).astype(np.float64) - shipped, -CLIP, CLIP) for c in changes]
    wanted = shipped + sum(w * m for w, m in zip(weights, moved, strict=True)) / sum(weights)
    assert mean.weight == sum(weights)
    assert np.abs(mean.state.tensors["w"] - wanted).max() <= 0.5 * grid.step(grid.tensors[0]) + 1e-6


@pytest.mark.parametrize("digits", DIGITS)
@pytest.mark.parametrize("weights", [[1], [1, 1, 1], [3, 1], [1] * 7])
def test_nothing_overflows_when_everybody_is_at_the_bound(digits: int, weights: list[int]):
    grid = grid_for((40,), digits=digits, weight_max=sum(weights))
    zero = state_of(np.zeros(40))
    for sign in (1.0, -1.0):
        at_bound = state_of(np.full(40, 100.0 * sign * CLIP))
        payloads = [grid.encode(at_bound, shipped=zero, weight=w) for w in weights]
        total = sum((p.words for p in payloads), np.zeros(grid.words, dtype=np.uint64))
        np.testing.assert_allclose(grid.decode(total, shipped=zero).state.tensors["w"], sign * CLIP, rtol=1e-6)
        assert [p.clipped for p in payloads] == [40] * len(weights)


def test_no_change_is_no_change_bit_for_bit():
    shipped = state_of(np.random.default_rng(1).standard_normal(1000))
    grid = grid_for((1000,), digits=5, weight_max=4)
    total = 4 * grid.encode(shipped, shipped=shipped).words
    np.testing.assert_array_equal(grid.decode(total, shipped=shipped).state.tensors["w"], shipped.tensors["w"])


ROOMY = [(digits, senders) for digits in DIGITS for senders in (3, 10, 50) if (radix(digits) - 1) // senders >= 2]
"""Widths that leave a step at all for so many senders."""


@pytest.mark.parametrize(("digits", "senders"), ROOMY)
def test_a_masked_payload_is_hardly_longer_than_codes_of_fixed_width(digits: int, senders: int):
    count = 100_000
    grid = grid_for((count,), digits=digits, weight_max=senders)
    terms: Terms = terms_for(words=grid.words)
    assert upload_bytes(terms) / (count * 64 / digits / 8) <= 1.01
    # Against the least number of bits in which the sum of one number can be written, where that leaves more than a few steps.
    least_bits = log2(senders * 2 * grid.reach(digits) + 1)
    if 100 <= grid.reach(digits) < REACH_MAX:
        assert upload_bytes(terms) / (count * least_bits / 8) <= 1.01


@pytest.mark.parametrize("bits", range(2, 17))
@pytest.mark.parametrize("senders", [1, 3, 10, 50])
def test_the_width_for_so_many_bits_leaves_them_to_each_sender(bits: int, senders: int):
    digits = digits_for(bits, weight_max=senders)
    wanted = 2 ** (bits - 1) - 1
    assert (radix(digits) - 1) // senders // 2 >= wanted
    assert digits == max(DIGITS) or (radix(digits + 1) - 1) // senders // 2 < wanted
    assert min(REACH_MAX, (radix(digits) - 1) // senders // 2) >= wanted


@pytest.mark.parametrize(("bits", "senders"), [(24, 1), (23, 1000), (1, 1)])
def test_no_width_is_found_where_there_is_none(bits: int, senders: int):
    with pytest.raises(ValueError, match="no word holds"):
        digits_for(bits, weight_max=senders)


SCHEMA = (TensorSpec(name="w", shape=(1000,), dtype="F32", block=0), TensorSpec(name="v", shape=(10, 7), dtype="F32", block=1))


def test_a_budget_is_kept_and_used():
    for budget in range(800, 4000, 97):
        digits = digits_within(budget, schema=SCHEMA, weight_max=3)
        sizes = {
            d: 8 * grid_of(SCHEMA, clips={"w": 1.0, "v": 1.0}, digits=d, weight_max=3).words
            for d in (digits, digits - 1)
            if d >= 2
        }
        assert sizes[digits] <= budget
        assert sizes.get(digits - 1, budget + 1) > budget


def test_a_budget_below_the_coarsest_grid_is_refused():
    with pytest.raises(BudgetTooSmall):
        digits_within(400, schema=SCHEMA, weight_max=3)


def test_bounds_follow_what_was_shipped():
    shipped = AdapterState({"w": np.full(10, 2.0, dtype=np.float32), "v": np.zeros(3, dtype=np.float32)})
    assert clips_of(shipped, share=0.1) == pytest.approx({"w": 0.2, "v": 0.1})


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3e38])
def test_what_is_not_finite_is_named(value: float):
    grid = grid_for((3,), digits=5, weight_max=3)
    with pytest.raises(ValueError, match="w: holds values"):
        grid.encode(state_of(np.array([0.0, value, 0.0])), shipped=state_of(np.zeros(3)))


def test_an_adapter_of_another_shape_is_named():
    grid = grid_for((3,), digits=5, weight_max=3)
    with pytest.raises(ValueError, match="w: missing, or of another shape"):
        grid.encode(state_of(np.zeros(4)), shipped=state_of(np.zeros(3)))


@pytest.mark.parametrize("weight", [0, 4, -1])
def test_an_impossible_weight_is_refused(weight: int):
    with pytest.raises(ValueError, match="weight"):
        grid_for((3,), digits=5, weight_max=3).encode(state_of(np.zeros(3)), shipped=state_of(np.zeros(3)), weight=weight)


@pytest.mark.parametrize("digits", DIGITS)
def test_words_with_a_mask_left_on_them_are_no_sum(digits: int):
    grid, shipped = grid_for((90,), digits=digits, weight_max=3), state_of(np.zeros(90))
    total = 3 * grid.encode(shipped, shipped=shipped).words
    mask = np.random.default_rng(2).integers(0, 2**64, grid.words, dtype=np.uint64)
    with pytest.raises(MalformedUpdate, match="weights add up"):
        grid.decode(total + mask, shipped=shipped)


@pytest.mark.parametrize("digits", [6, 8, 16])
def test_sums_that_no_codes_have_are_refused(digits: int):
    grid, shipped = grid_for((90,), digits=digits, weight_max=3), state_of(np.zeros(90))
    total = 3 * grid.encode(shipped, shipped=shipped).words
    total[1:] = 2**64 - 1
    with pytest.raises(MalformedUpdate, match="digits beyond"):
        grid.decode(total, shipped=shipped)


def test_padding_stays_empty():
    grid, shipped = grid_for((4,), digits=3, weight_max=3), state_of(np.zeros(4))
    total = grid.encode(shipped, shipped=shipped).words
    total[2] += np.uint64(radix(3) ** 2)
    with pytest.raises(MalformedUpdate, match="digits beyond"):
        grid.decode(total, shipped=shipped)


def test_grids_that_differ_have_other_digests():
    grids = [grid_for((3,), digits=d, weight_max=w, clip=c) for d in (4, 5) for w in (3, 4) for c in (0.1, 0.2)]
    assert len({g.digest for g in grids}) == len(grids)


def test_a_grid_without_a_step_is_refused():
    with pytest.raises(ValueError, match="leave no step"):
        grid_for((3,), digits=16, weight_max=10)
