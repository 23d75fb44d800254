"""Is the aggregate the weighted mean of what it is given?"""

from math import fsum

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from hushtune_common.adapter import AdapterState, Float32
from hushtune_server.owner.aggregate import mean


def two_tensors(values: Float32) -> AdapterState:
    return AdapterState({"b": values, "a": -values[:1]})


states = st.builds(
    two_tensors,
    hnp.arrays(np.float32, 5, elements=st.floats(-(2.0**60), 2.0**60, width=32)),
)
weights = st.floats(2.0**-10, 2.0**10)
weighted = st.lists(st.tuples(states, weights), min_size=1, max_size=5)


@given(weighted)
def test_every_element_is_the_weighted_mean_to_float32(given_states: list[tuple[AdapterState, float]]):
    result = mean(given_states)
    total = fsum(w for _, w in given_states)
    for name, tensor in result.tensors.items():
        for k, element in enumerate(tensor.tolist()):
            values = [float(s.tensors[name][k]) for s, _ in given_states]
            exact = fsum(v * w for v, (_, w) in zip(values, given_states, strict=True)) / total
            assert element == pytest.approx(exact, rel=2**-23, abs=2**-45 * max(map(abs, values)))
            assert min(values) <= element <= max(values)


@given(states, st.lists(weights, min_size=1, max_size=4))
def test_the_mean_of_equal_states_is_that_state_bit_for_bit(state: AdapterState, shares: list[float]):
    result = mean([(state, w) for w in shares])
    assert list(result.tensors) == ["b", "a"]
    assert all((result.tensors[n] == t).all() for n, t in state.tensors.items())


@given(weighted)
def test_only_the_ratios_of_weights_matter(given_states: list[tuple[AdapterState, float]]):
    one = mean(given_states)
    other = mean([(s, 8.0 * w) for s, w in given_states])
    assert all((other.tensors[n] == t).all() for n, t in one.tensors.items())


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan"), float("inf")])
def test_impossible_weights_are_refused(weight: float):
    state = AdapterState({"w": np.ones(2, np.float32)})
    with pytest.raises(ValueError, match="weights"):
        mean([(state, 1.0), (state, weight)])


def test_nothing_and_other_tensors_have_no_mean():
    with pytest.raises(ValueError, match="at least one"):
        mean([])
    one, two = (AdapterState({"w": np.ones(n, np.float32)}) for n in (2, 3))
    with pytest.raises(ValueError, match="w: "):
        mean([(one, 1.0), (two, 1.0)])
