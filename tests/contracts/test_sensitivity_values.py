"""Is a sensitivity what a file can hold, and refused when it is not that of the adapter at hand?"""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hushtune_common.adapter import Float32
from hushtune_common.codec.sensitivity import DIRECTIONS, Sensitivity, TensorSensitivity
from hushtune_common.errors import MalformedUpdate
from hushtune_common.messages import TensorSpec
from tests.codecs import normal, specs, uneven

STATE = normal(1)
SCHEMA = specs(STATE)
NAME = "layers.3.matrix"


def arrays() -> dict[str, Float32]:
    return {n: a.copy() for n, a in uneven(STATE).to_arrays().items()}


def test_arrays_make_the_same_sensitivity_again_in_any_order():
    found = uneven(STATE)
    for stored in (found.to_arrays(), dict(reversed(list(found.to_arrays().items())))):
        again = Sensitivity.from_arrays(stored, SCHEMA)
        assert again.digest == found.digest
        assert {n: a.tobytes() for n, a in again.to_arrays().items()} == {n: a.tobytes() for n, a in found.to_arrays().items()}
    again.require_matches(SCHEMA)


def test_every_value_counts_for_the_digest():
    found = {uneven(STATE).digest, Sensitivity.flat(SCHEMA).digest}
    for name in arrays():
        other = arrays()
        other[name].reshape(-1)[-1] *= np.float32(1.0 + 2.0**-20)
        found.add(Sensitivity.from_arrays(other, SCHEMA).digest)
    assert len(found) == 2 + len(arrays())


@pytest.mark.parametrize("name", sorted(arrays()))
def test_arrays_without_one_or_with_one_more_or_of_other_sizes_are_malformed(name: str):
    less, more, longer = arrays(), arrays(), arrays()
    if not name.endswith("directions"):  # without directions it is another sensitivity of the same adapter
        del less[name]
        with pytest.raises(MalformedUpdate, match="sensitivity of this adapter"):
            Sensitivity.from_arrays(less, SCHEMA)
    more[name + "s"] = more[name]
    longer[name] = np.concatenate([longer[name], longer[name]], axis=-1)
    for wrong in (more, longer):
        with pytest.raises(MalformedUpdate, match="sensitivity of this adapter"):
            Sensitivity.from_arrays(wrong, SCHEMA)


@pytest.mark.parametrize("bad", [0.0, -1.0, 2.0**-25, 2.0**25, float("nan"), float("inf")])
@pytest.mark.parametrize("part", ["rows", "columns"])
def test_values_that_are_no_sensitivity_are_malformed(part: str, bad: float):
    wrong = arrays()
    wrong[f"{NAME}/{part}"][3] = bad
    with pytest.raises(MalformedUpdate, match=part):
        Sensitivity.from_arrays(wrong, SCHEMA)


@pytest.mark.parametrize(
    "directions",
    [
        np.eye(3, 12, dtype=np.float32),  # of another number of columns
        np.eye(14, 13, dtype=np.float32),  # more than there are columns
        2.0 * np.eye(2, 13, dtype=np.float32),  # not of length one
        np.ones((2, 13), np.float32) / np.float32(13**0.5),  # not at right angles
        np.full((1, 13), np.nan, np.float32),
        np.eye(1, 13, dtype=np.float32)[0],  # no matrix
    ],
)
def test_directions_that_are_not_orthonormal_are_malformed(directions: Float32):
    wrong = arrays() | {f"{NAME}/directions": directions}
    with pytest.raises(MalformedUpdate, match="directions"):
        Sensitivity.from_arrays(wrong, SCHEMA)


def test_a_sensitivity_is_made_of_float32_only():
    with pytest.raises(ValueError, match="float32"):
        TensorSensitivity(rows=np.ones(3), columns=np.ones(3, np.float32))  # type: ignore[arg-type]  # what a file may hold


@pytest.mark.parametrize("change", ["another name", "one less", "other rows"])
def test_the_sensitivity_of_another_adapter_names_the_tensor(change: str):
    flat = dict(Sensitivity.flat(SCHEMA).tensors)
    found = flat.pop(NAME)
    if change == "another name":
        flat["layers.9.matrix"] = found
    elif change == "other rows":
        flat[NAME] = TensorSensitivity(rows=found.rows[:-1], columns=found.columns)
    with pytest.raises(ValueError, match=r"layers.*: the sensitivity is not one of this adapter"):
        Sensitivity(flat).require_matches(SCHEMA)


@given(st.integers(0, 1000), st.integers(1, 30), st.integers(1, 12), st.floats(-60, 60))
def test_any_moments_make_a_sensitivity_within_the_limits(seed: int, rows: int, columns: int, octave: float):
    rng = np.random.default_rng(seed)
    draws = rng.standard_normal((columns + 2, columns)) * np.exp2(rng.uniform(-10, 10, columns))
    covariance = (2.0**octave * draws.T @ draws).astype(np.float32)
    power = (np.exp2(rng.uniform(-20, 20, rows)) * rng.integers(0, 2, rows)).astype(np.float32)
    zero = (np.zeros((columns, columns), np.float32), np.zeros(rows, np.float32))
    found = Sensitivity.of_moments({"a": (covariance, power), "b": zero})
    schema = [TensorSpec(name=n, shape=(rows, columns), dtype="F32", block=0) for n in ("a", "b")]
    found.require_matches(schema)
    again = Sensitivity.from_arrays(found.to_arrays(), schema)  # limits and right angles are checked
    assert again.digest == found.digest
    assert len(found.tensors["a"].directions) == (min(DIRECTIONS, columns) if columns > 1 else 0)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_moments_that_are_not_finite_name_their_tensor(bad: float):
    covariance, power = np.eye(3, dtype=np.float32), np.ones(2, np.float32)
    wrong = power.copy()
    wrong[1] = bad
    with pytest.raises(ValueError, match=r"^second: "):
        Sensitivity.of_moments({"first": (covariance, power), "second": (covariance, wrong)})


def test_only_ratios_of_moments_matter():
    rng = np.random.default_rng(2)
    moments = {
        n: (np.cov(rng.standard_normal((6, 30))).astype(np.float32), rng.uniform(1, 2, 4).astype(np.float32)) for n in ("a", "b")
    }
    louder = {n: (c, np.float32(64.0) * p) for n, (c, p) in moments.items()}
    for name, found in Sensitivity.of_moments(moments).tensors.items():
        other = Sensitivity.of_moments(louder).tensors[name]
        np.testing.assert_allclose(other.rows, found.rows, rtol=1e-5)
        np.testing.assert_allclose(other.columns, found.columns, rtol=1e-5)
