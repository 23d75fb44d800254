"""Do all codecs obey the laws that `AdapterCodec` states, for any adapter?"""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from hushtune_common.adapter import AdapterState, Float32
from hushtune_common.codec.codec import AdapterCodec
from hushtune_common.codec.rotation import signs
from hushtune_common.codec.sensitivity import Sensitivity, TensorSensitivity
from hushtune_common.errors import BudgetTooSmall, MalformedUpdate
from hushtune_common.messages import TensorSpec
from tests.codecs import (
    KINDS,
    SHAPES,
    Kind,
    codec_of,
    dense,
    largest_errors,
    normal,
    plus,
    same_bits,
    signed,
    specs,
    uneven,
    zeros,
)

SHIPPED = normal(1)
RETURNED = plus(SHIPPED, normal(2, scale=1e-3))
kinds = st.sampled_from(KINDS)
every_kind = pytest.mark.parametrize("kind", KINDS)


def values(shape: tuple[int, ...], largest: float = 2.0**99) -> st.SearchStrategy[Float32]:
    """Any finite numbers, and mostly few different ones: zeros, subnormals, sizes of weights, the largest."""
    finite = st.floats(-largest, largest, width=32)
    fill = st.sampled_from([0.0, -0.0, 1e-45, -1e-40, 3e-5, -1.0, largest])
    return hnp.arrays(np.float32, shape, elements=finite, fill=fill)


states = st.builds(
    lambda *tensors: AdapterState(dict(zip(SHAPES, tensors, strict=True))),  # type: ignore[misc]  # builds() is untyped here
    *(values(shape) for shape in SHAPES.values()),
)
budgets = st.floats(0.0, 1.0).map(lambda share: share**3)
"""Shares of what a codec grants at most, the small ones likelier."""


def granted(codec: AdapterCodec, state: AdapterState, share: float) -> bytes:
    """Encode with a share of the most bytes, or with as few as it takes."""
    budget = round(share * codec.bytes_max)
    try:
        return codec.encode(state, budget_bytes=budget)
    except BudgetTooSmall as refused:
        return codec.encode(state, budget_bytes=refused.least_bytes)


@settings(max_examples=150)
@given(kinds, states, states, budgets)
def test_every_element_of_any_adapter_comes_back_finite_and_within_the_bound(
    kind: Kind, shipped: AdapterState, returned: AdapterState, share: float
):
    codec = codec_of(kind, shipped=shipped)
    blob = granted(codec, returned, share)
    decoded, bound = codec.decode(blob, specs(returned)), codec.bound(blob)
    assert all(error <= bound[name] for name, error in largest_errors(decoded, returned).items())


@settings(max_examples=100)
@given(st.integers(0, 1 << 16), st.floats(-149, 60), st.floats(0, 12), budgets)
def test_the_bound_holds_for_changes_of_any_size_seen_through_any_sensitivity(
    seed: int, octave: float, spread: float, share: float
):
    rng = np.random.default_rng(seed)
    change = {n: (2.0**octave * t * np.exp2(spread * rng.standard_normal(t.shape))) for n, t in normal(seed).tensors.items()}
    returned = plus(SHIPPED, AdapterState({n: np.clip(c, -(2.0**70), 2.0**70).astype(np.float32) for n, c in change.items()}))
    codec = codec_of("rate_distortion", shipped=SHIPPED, sensitivity=uneven(SHIPPED, seed=seed), bits=20.0)
    blob = granted(codec, returned, share)
    bound = codec.bound(blob)
    assert all(e <= bound[n] for n, e in largest_errors(codec.decode(blob, specs(returned)), returned).items())


@settings(max_examples=100)
@given(kinds, states, st.integers(0, 6000))
def test_a_blob_fits_its_budget_or_the_least_that_suffices_is_told_to_the_byte(kind: Kind, returned: AdapterState, budget: int):
    codec = codec_of(kind, shipped=SHIPPED)
    try:
        assert len(codec.encode(returned, budget_bytes=budget)) <= budget
    except BudgetTooSmall as refused:
        least = refused.least_bytes
        assert budget < least == len(codec.encode(returned, budget_bytes=least))
        with pytest.raises(BudgetTooSmall) as again:
            codec.encode(returned, budget_bytes=least - 1)
        assert again.value.least_bytes == least


@pytest.mark.parametrize("size", [1, 2, 5, 9, 17, 40])
@every_kind
def test_the_least_is_exact_also_where_all_bits_take_less_than_silence(kind: Kind, size: int):
    shipped, returned = (AdapterState({"w": np.full(size, value, np.float32)}) for value in (1.0, -1e7))
    codec = codec_of(kind, shipped=shipped, bits=32.0)
    with pytest.raises(BudgetTooSmall) as refused:
        codec.encode(returned, budget_bytes=0)
    least = refused.value.least_bytes
    assert len(codec.encode(returned, budget_bytes=least)) <= least
    for less in range(1, 30):
        with pytest.raises(BudgetTooSmall):
            codec.encode(returned, budget_bytes=least - less)


@pytest.mark.parametrize("bits", [2.0, 4.0, 32.0])
@settings(max_examples=30)
@given(kinds, states)
def test_the_most_bytes_are_always_enough(bits: float, kind: Kind, returned: AdapterState):
    codec = codec_of(kind, shipped=SHIPPED, bits=bits)
    for budget in (codec.bytes_max, 1 << 40):
        assert len(codec.encode(returned, budget_bytes=budget)) <= codec.bytes_max


@settings(max_examples=30)
@given(states, st.floats(0.01, 2.0))
def test_turned_changes_fit_also_into_a_hundredth_of_a_bit(returned: AdapterState, bits: float):
    codec = codec_of("rate_distortion", shipped=SHIPPED, bits=bits)
    assert len(codec.encode(returned, budget_bytes=codec.bytes_max)) <= codec.bytes_max


@settings(max_examples=40)
@given(kinds, states, budgets)
def test_equal_states_and_budgets_give_equal_bytes_in_any_order_of_the_mapping(kind: Kind, returned: AdapterState, share: float):
    codec = codec_of(kind, shipped=SHIPPED)
    turned_back = codec_of(kind, shipped=AdapterState(dict(reversed(list(SHIPPED.tensors.items())))))
    again = AdapterState({n: t.copy() for n, t in reversed(list(returned.tensors.items()))})
    assert granted(codec, returned, share) == granted(codec, again, share) == granted(turned_back, again, share)


@every_kind
def test_names_shapes_and_the_expected_order_survive(kind: Kind):
    codec = codec_of(kind, shipped=SHIPPED)
    blob = codec.encode(RETURNED, budget_bytes=codec.bytes_max)
    for expected in (specs(RETURNED), specs(RETURNED)[::-1]):
        decoded = codec.decode(blob, expected)
        assert [(n, t.shape) for n, t in decoded.tensors.items()] == [(s.name, s.shape) for s in expected]
        assert all(t.dtype == np.float32 and t.flags.c_contiguous for t in decoded.tensors.values())


@settings(max_examples=60)
@given(states, states)
def test_without_loss_every_bit_comes_back(shipped: AdapterState, returned: AdapterState):
    for kind in ("lossless", "rate_distortion"):  # the second, when its budget holds all bits
        codec = codec_of(kind, shipped=shipped, bits=32.0)
        blob = codec.encode(returned, budget_bytes=codec.bytes_max)
        assert all(same_bits(codec.decode(blob, specs(returned)).tensors[n], t) for n, t in returned.tensors.items())
        assert set(codec.bound(blob).values()) == {0.0}


@settings(max_examples=40)
@given(kinds, states, budgets)
def test_an_untouched_adapter_comes_back_as_it_was_at_any_budget(kind: Kind, shipped: AdapterState, share: float):
    codec = codec_of(kind, shipped=shipped)
    decoded = codec.decode(granted(codec, shipped, share), specs(shipped))
    assert all((decoded.tensors[n] == t).all() for n, t in shipped.tensors.items())


def test_an_untouched_adapter_takes_a_few_bytes_per_tensor():
    shapes = {f"layers.{i}": (64, 576) for i in range(4)}
    shipped = normal(4, shapes=shapes)
    codec = codec_of("rate_distortion", shipped=shipped)
    assert len(codec.encode(shipped, budget_bytes=10_000)) < 200
    exact = codec_of("lossless", shipped=shipped)  # says per number that its distance is 0: what its exponent takes
    assert len(exact.encode(shipped, budget_bytes=exact.bytes_max)) < 0.4 * shipped.count


@every_kind
def test_a_change_against_another_adapter_is_malformed(kind: Kind):
    other = codec_of(kind, shipped=plus(SHIPPED, normal(9, scale=1e-6)))
    with pytest.raises(MalformedUpdate, match="made against"):
        codec_of(kind, shipped=SHIPPED).decode(other.encode(RETURNED, budget_bytes=other.bytes_max), specs(RETURNED))


def test_a_change_seen_through_another_sensitivity_is_malformed():
    ours, flat = (codec_of("rate_distortion", shipped=SHIPPED, sensitivity=s) for s in (uneven(SHIPPED), None))
    slightly = dict(uneven(SHIPPED).tensors)
    first = slightly["layers.3.matrix"]
    rows = np.nextafter(first.rows, np.float32(0))
    slightly["layers.3.matrix"] = TensorSensitivity(rows=rows, columns=first.columns, directions=first.directions)
    near = codec_of("rate_distortion", shipped=SHIPPED, sensitivity=Sensitivity(slightly))
    for budget in (1000, 1 << 20):
        for theirs in (flat, near):
            with pytest.raises(MalformedUpdate, match="made against"):
                ours.decode(theirs.encode(RETURNED, budget_bytes=budget), specs(RETURNED))


@every_kind
def test_another_codecs_bytes_are_malformed(kind: Kind):
    ours = codec_of(kind, shipped=SHIPPED)
    for other in KINDS:
        theirs = codec_of(other, shipped=SHIPPED)
        blob = theirs.encode(RETURNED, budget_bytes=theirs.bytes_max)
        if other != kind:
            with pytest.raises(MalformedUpdate):
                ours.decode(blob, specs(RETURNED))
            with pytest.raises(MalformedUpdate):
                ours.bound(blob)


@settings(max_examples=150)
@given(kinds, budgets, st.data())
def test_damaged_bytes_are_malformed(kind: Kind, share: float, data: st.DataObject):
    codec = codec_of(kind, shipped=SHIPPED)
    blob = granted(codec, RETURNED, share)
    at = data.draw(st.integers(0, len(blob) - 1))
    damage = data.draw(st.binary(min_size=0, max_size=4))
    ways = [blob[:at], blob[:at] + damage + blob[at:], blob[:at] + damage + blob[at + 1 :], blob + damage]
    damaged = data.draw(st.sampled_from(ways))
    if damaged != blob:
        with pytest.raises(MalformedUpdate):
            codec.decode(damaged, specs(RETURNED))
        with pytest.raises(MalformedUpdate):
            codec.bound(damaged)


@given(kinds, st.binary(max_size=600))
def test_arbitrary_bytes_are_malformed(kind: Kind, blob: bytes):
    codec = codec_of(kind, shipped=SHIPPED)
    for attempt in (blob, signed(blob)):
        with pytest.raises(MalformedUpdate):
            codec.decode(attempt, specs(RETURNED))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@every_kind
def test_values_that_are_not_finite_name_their_tensor(kind: Kind, bad: float):
    tensors = {n: t.copy() for n, t in RETURNED.tensors.items()}
    tensors["layers.0.norm"][66] = bad
    for budget in (1 << 12, 1 << 20):
        with pytest.raises(ValueError, match=r"layers\.0\.norm: "):
            codec_of(kind, shipped=SHIPPED).encode(AdapterState(tensors), budget_bytes=budget)
        with pytest.raises(ValueError, match=r"layers\.0\.norm: "):
            codec_of(kind, shipped=AdapterState(tensors))


def test_changes_that_leave_float32_name_their_tensor():
    start, beyond = (AdapterState({"w": np.full((64, 10), v, np.float32)}) for v in (0.0, 2.0**101))
    with pytest.raises(ValueError, match=r"^w: .*2\*\*100"):
        codec_of("rate_distortion", shipped=start).encode(beyond, budget_bytes=1000)
    most = TensorSensitivity(rows=np.full(64, 2.0**24, np.float32), columns=np.full(10, 2.0**24, np.float32))
    weighed = codec_of("rate_distortion", shipped=start, sensitivity=Sensitivity({"w": most}))
    largest = AdapterState({"w": np.float32(2.0**99) * signs(64)[:, None] * np.ones((1, 10), np.float32)})
    with pytest.raises(ValueError, match=r"^w: .*sensitivity"):
        weighed.encode(largest, budget_bytes=1000)


@every_kind
def test_an_adapter_or_a_sensitivity_of_other_tensors_is_our_own_mistake(kind: Kind):
    one, other = AdapterState({"w": np.zeros(70, np.float32)}), AdapterState({"w": np.zeros(71, np.float32)})
    with pytest.raises(ValueError, match="w: "):
        codec_of(kind, shipped=one).encode(other, budget_bytes=1 << 20)
    with pytest.raises(ValueError, match="expected"):
        codec_of(kind, shipped=one).decode(b"", specs(other))
    with pytest.raises(ValueError, match="w: "):
        codec_of(kind, shipped=one, sensitivity=Sensitivity.flat(specs(other)))


SHAPES_OF_A_BLOCK = {"q": (576, 576), "k": (192, 576), "up": (1536, 576), "down": (576, 1536), "norm": (576,)}
TRAINED = normal(5, scale=1e-4, shapes=SHAPES_OF_A_BLOCK)
"""The changes of one block of a small model, 2.3 million numbers."""


@pytest.mark.slow
@pytest.mark.parametrize("scale", [1.0, 1e-8, 1e8], ids=["as trained", "tiny", "huge"])
def test_the_budget_is_filled_to_one_percent_at_any_precision_and_for_changes_of_any_size(scale: float):
    change = AdapterState({n: t * np.float32(scale) for n, t in TRAINED.tensors.items()})
    codec = codec_of("rate_distortion", shipped=zeros(change), sensitivity=uneven(change), bits=20.0)
    for bits in (0.1, 0.4, 3.2, 13.0):
        budget = round(bits * change.count / 8)
        assert 0.99 * budget <= len(codec.encode(change, budget_bytes=budget)) <= budget


@pytest.mark.slow
def test_what_the_loss_minds_shrinks_with_every_byte_more():
    # Below 0.1 bits it first grows: few numbers stand for many, so that an average stays what it was.
    change = AdapterState({n: TRAINED.tensors[n] for n in ("k", "norm")})
    sensitivity = uneven(change)
    codec = codec_of("rate_distortion", shipped=zeros(change), sensitivity=sensitivity, bits=20.0)
    minded: list[float] = []
    for bits in (0.1, 0.2, 0.5, 1.5, 3.0, 6.0, 10.0):
        decoded = codec.decode(codec.encode(change, budget_bytes=round(bits * change.count / 8)), specs(change))
        minded.append(sum(weighed(decoded.tensors[n] - t, sensitivity, n) for n, t in change.tensors.items()))
    assert all(later < earlier for earlier, later in pairwise(minded))
    assert minded[-1] < 1e-4 * minded[0]


def weighed(error: Float32, sensitivity: Sensitivity, name: str) -> float:
    """Return what the loss minds, without the codec's own coordinates."""
    found, wide = sensitivity.tensors[name], error.astype(np.float64).reshape(error.shape[0], -1)
    if found.directions.size:
        basis = dense(found.directions)
        wide = wide @ basis
    return float((found.rows[:, None] * found.columns * wide**2).sum())


def test_a_schema_is_not_taken_from_the_bytes():
    spec = TensorSpec(name="w", shape=(7,), dtype="F32", block=0)
    for kind in KINDS:
        codec = codec_of(kind, shipped=AdapterState({"w": np.zeros(7, np.float32)}))
        blob = codec.encode(AdapterState({"w": np.ones(7, np.float32)}), budget_bytes=codec.bytes_max)
        assert codec.decode(blob, (spec,)).tensors["w"].shape == (7,)
        with pytest.raises(ValueError, match="expected"):
            codec.decode(blob, (TensorSpec(name="w", shape=(8,), dtype="F32", block=0),))
