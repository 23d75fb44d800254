"""Does the low-rank stage obey the laws of codecs, find what is of low rank, and never harm more than the codec behind it?"""

import struct
from typing import Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hushtune_common.adapter import AdapterState, Float32
from hushtune_common.codec import container
from hushtune_common.codec.coordinates import Coordinates
from hushtune_common.codec.factors import Spectrum, half_octave, scale, unweighed, weighed
from hushtune_common.codec.low_rank import LEFT_OUT, LowRankCodec
from hushtune_common.codec.pipeline import budget_bytes, codec_id, make_codec
from hushtune_common.codec.sensitivity import Sensitivity
from hushtune_common.codec.shipped import state_digest
from hushtune_common.config import CodecConfig, parse
from hushtune_common.errors import BudgetTooSmall, ConfigError, MalformedUpdate
from hushtune_common.messages import Digest
from hushtune_server.testbed.codec.low_rank import leading
from tests.codecs import SCENARIO, SHAPES, largest_errors, least_share, normal, plus, signed, specs, uneven, zeros

Behind = Literal["rate_distortion", "blockwise"]
BEHIND: tuple[Behind, ...] = ("rate_distortion", "blockwise")
every_kind = pytest.mark.parametrize("kind", BEHIND)
SHIPPED = normal(1)
WIDE = {"layers.0.up": (96, 64), "layers.0.norm": (64,), "layers.1.down": (64, 128)}


def codec_of(
    kind: Behind, shipped: AdapterState = SHIPPED, *, sensitivity: Sensitivity | None = None, rank: int = 4, bits: float = 8.0
):
    found = make_codec(CodecConfig(kind=kind, rank=rank, bits=bits), shipped=shipped, sensitivity=sensitivity)
    assert isinstance(found, LowRankCodec)
    return found


def lora(seed: int, *, rank: int = 3, noise: float = 0.0) -> AdapterState:
    """Return a change of low rank in every matrix, and noise."""
    rng = np.random.default_rng(seed)
    found: dict[str, Float32] = {}
    for name, shape in WIDE.items():
        thin = [rng.standard_normal((size, rank)) for size in shape] if len(shape) == 2 else []
        change = thin[0] @ thin[1].T if thin else rng.standard_normal(shape)
        found[name] = (1e-3 * (change + noise * rng.standard_normal(shape))).astype(np.float32)
    return AdapterState(found)


def harm(wanted: AdapterState, decoded: AdapterState, sensitivity: Sensitivity) -> float:
    """Return what the loss minds, by the formula of `TensorSensitivity` in float64."""
    total = 0.0
    for name, tensor in wanted.tensors.items():
        own = sensitivity.tensors[name]
        coordinates = Coordinates.of(tensor.shape, own)
        error = (decoded.tensors[name].astype(np.float64) - tensor).reshape(own.rows.size, -1)
        if coordinates.reflectors is not None:
            v, t = (m.astype(np.float64) for m in (coordinates.reflectors.vectors, coordinates.reflectors.factor))
            error = error - ((error @ v) @ t) @ v.T
        total += float(own.rows.astype(np.float64) @ np.square(error) @ own.columns.astype(np.float64))
    return total


@every_kind
def test_a_change_of_low_rank_comes_back_many_times_better_in_the_same_bytes(kind: Behind):
    shipped = normal(1, shapes=WIDE)
    returned = plus(shipped, lora(2))
    codec, alone = codec_of(kind, shipped), make_codec(CodecConfig(kind=kind, bits=8.0), shipped=shipped)
    budget = 2 * 1024 + 3 * 96 * 64 // 8
    blob = codec.encode(returned, budget_bytes=budget)
    assert len(blob) <= budget
    assert codec.is_factored(blob)
    flat = Sensitivity.flat(specs(shipped))
    harms = [harm(returned, c.decode(c.encode(returned, budget_bytes=budget), specs(shipped)), flat) for c in (codec, alone)]
    assert harms[0] < 0.2 * harms[1]


@every_kind
@pytest.mark.parametrize("noise", [0.0, 0.3, 3.0, 100.0])
@pytest.mark.parametrize("bits", [0.6, 2.5, 5.0, 8.0])
def test_it_never_harms_more_than_the_codec_behind_it(kind: Behind, noise: float, bits: float):
    shipped = normal(1, shapes=WIDE)
    returned, sensitivity = plus(shipped, lora(3, noise=noise)), uneven(shipped)
    alone = make_codec(CodecConfig(kind=kind, bits=9.0), shipped=shipped, sensitivity=sensitivity)
    codec = codec_of(kind, shipped, sensitivity=sensitivity, bits=9.0)
    budget = round(bits * shipped.count / 8)
    try:
        before = harm(returned, alone.decode(alone.encode(returned, budget_bytes=budget), specs(shipped)), sensitivity)
    except BudgetTooSmall:
        before = float("inf")
    second = codec._label.overhead  # pyright: ignore[reportPrivateUsage]  # its own header is all that it may cost
    try:
        after = harm(returned, codec.decode(codec.encode(returned, budget_bytes=budget + second), specs(shipped)), sensitivity)
    except BudgetTooSmall:
        after = float("inf")
    assert after <= before * (1.0 + 1e-6)


@every_kind
def test_noise_is_not_taken_for_a_change_of_low_rank(kind: Behind):
    shipped = normal(1, shapes=WIDE)
    codec = codec_of(kind, shipped)
    blob = codec.encode(plus(shipped, lora(4, noise=100.0)), budget_bytes=codec.bytes_max)
    assert not codec.is_factored(blob)


def test_what_would_be_left_out_counts_more_than_noise_of_the_same_length():
    shipped = normal(1, shapes=WIDE)
    returned, budget = plus(shipped, lora(3, rank=12)), 2600
    codec = codec_of("rate_distortion", shipped, rank=10)
    alone = make_codec(CodecConfig(bits=8.0), shipped=shipped)
    change = {n: returned.tensors[n] - t for n, t in shipped.tensors.items() if t.ndim == 2}
    cut = {n: (lambda s: (s.left * s.values) @ s.right.T)(Spectrum.of(c, most=10)) for n, c in change.items()}
    left_out = sum(float(np.square(change[n] - c).sum()) for n, c in cut.items())
    plain = harm(
        returned, alone.decode(alone.encode(returned, budget_bytes=budget), specs(shipped)), Sensitivity.flat(specs(shipped))
    )
    assert left_out < plain < LEFT_OUT * left_out
    assert not codec.is_factored(codec.encode(returned, budget_bytes=budget))


@every_kind
@settings(max_examples=60)
@given(st.integers(0, 1000), st.floats(0.02, 1.0), st.sampled_from([0.0, 1e-42, 1e-20, 1e-3, 1.0, 1e15, 1e28]))
def test_every_element_comes_back_within_the_bound_in_the_order_asked_for(kind: Behind, seed: int, share: float, size: float):
    change = {
        n: np.outer(np.arange(t.shape[0]), np.ones(t.size // t.shape[0])).reshape(t.shape) for n, t in SHIPPED.tensors.items()
    }
    rough = normal(seed, scale=0.01).tensors
    returned = AdapterState({n: (SHIPPED.tensors[n] + size * (c + rough[n])).astype(np.float32) for n, c in change.items()})
    codec = codec_of(kind, sensitivity=uneven(SHIPPED, seed=seed))
    try:
        blob = codec.encode(returned, budget_bytes=round(share * codec.bytes_max))
    except BudgetTooSmall as refused:
        blob = codec.encode(returned, budget_bytes=refused.least_bytes)
    decoded, bound = codec.decode(blob, specs(SHIPPED)[::-1]), codec.bound(blob)
    assert list(decoded.tensors) == list(SHAPES)[::-1]
    assert all(error <= bound[name] for name, error in largest_errors(decoded, returned).items())


@every_kind
def test_equal_states_give_equal_bytes_and_an_untouched_adapter_comes_back(kind: Behind):
    returned = plus(SHIPPED, normal(2, scale=1e-3))
    turned = AdapterState(dict(reversed(list(returned.tensors.items()))))
    blobs = {codec_of(kind).encode(state, budget_bytes=700) for state in (returned, turned)}
    assert len(blobs) == 1
    codec = codec_of(kind)
    decoded = codec.decode(codec.encode(SHIPPED, budget_bytes=codec.bytes_max), specs(SHIPPED))
    assert all((decoded.tensors[n] == t).all() for n, t in SHIPPED.tensors.items())


@every_kind
@pytest.mark.parametrize("bits", [2.5, 4.0, 8.0])
@pytest.mark.parametrize("shapes", [{"w": (3, 2)}, {"w": (9, 9), "v": (4,)}, WIDE])
def test_the_least_share_and_the_most_bytes_always_suffice(kind: Behind, bits: float, shapes: dict[str, tuple[int, ...]]):
    shipped, config = normal(1, shapes=shapes), CodecConfig(kind=kind, rank=4, bits=bits)
    codec = make_codec(config, shipped=shipped)
    share = least_share(config) or 1.0
    least = budget_bytes(specs(shipped), config=config, share=share)
    for budget in (least, codec.bytes_max, 1 << 40):
        assert len(codec.encode(normal(2, shapes=shapes), budget_bytes=budget)) <= min(budget, codec.bytes_max)


def test_components_are_those_of_the_decomposition_and_as_good_as_a_peers():
    rng = np.random.default_rng(5)
    axes = [np.linalg.qr(rng.standard_normal((size, 60)))[0] for size in (80, 60)]
    matrix = (axes[0] * 0.8 ** np.arange(60) @ axes[1].T).astype(np.float32)
    found = Spectrum.of(matrix, most=8)
    assert found.values == pytest.approx(0.8 ** np.arange(8), rel=1e-3)
    ours = matrix - (found.left * found.values) @ found.right.T
    left = leading(matrix, rank=8)
    assert np.square(ours).sum() <= 1.001 * np.square(matrix - left @ (left.T @ matrix)).sum()
    thin = Spectrum.of((rng.standard_normal((30, 3)) @ rng.standard_normal((3, 40))).astype(np.float32), most=8)
    assert thin.values.size == 3


def test_an_error_in_a_factor_harms_as_much_as_its_sensitivity_says():
    rng = np.random.default_rng(6)
    found = Spectrum.of(rng.standard_normal((50, 40)).astype(np.float32), most=5)
    halves = tuple(half_octave(value) for value in found.values)
    left, right = found.factors(halves)
    whole = left @ right.T
    for k, half in enumerate(halves):
        error = np.zeros_like(left)
        error[:, k] = 1e-3 * rng.standard_normal(len(error))
        assert np.square((left + error) @ right.T - whole).sum() == pytest.approx(scale(half) * np.square(error).sum(), rel=1e-3)
        other = np.zeros_like(right)
        other[:, k] = 1e-3 * rng.standard_normal(len(other))
        # The left factor has what the size in half octaves leaves over: at most a quarter of an octave, squared.
        assert np.square(left @ (right + other).T - whole).sum() == pytest.approx(scale(half) * np.square(other).sum(), rel=0.45)


def test_weighing_is_undone_and_its_length_is_what_the_loss_minds():
    state = normal(7)
    sensitivity = uneven(state)
    for name, tensor in state.tensors.items():
        coordinates = Coordinates.of(tensor.shape, sensitivity.tensors[name])
        matrix = weighed(tensor, coordinates)
        assert np.allclose(unweighed(matrix.astype(np.float64), coordinates), tensor, atol=1e-5)
        one = {name: sensitivity.tensors[name]}
        wanted = harm(AdapterState({name: tensor}), zeros(AdapterState({name: tensor})), Sensitivity(one))
        assert np.square(matrix, dtype=np.float64).sum() == pytest.approx(wanted, rel=1e-4)


BLOBS = {kind: codec_of(kind).encode(plus(SHIPPED, normal(8, scale=1e-3)), budget_bytes=900) for kind in BEHIND}
THIN = normal(1, shapes=WIDE)
FACTORED = {kind: codec_of(kind, THIN).encode(plus(THIN, lora(2)), budget_bytes=3000) for kind in BEHIND}


@settings(max_examples=150)
@given(st.sampled_from(BEHIND), st.booleans(), st.data())
def test_damaged_and_forged_bytes_are_malformed_or_a_finite_adapter(kind: Behind, thin: bool, data: st.DataObject):
    shipped = THIN if thin else SHIPPED
    codec = codec_of(kind, shipped)
    body = bytearray((FACTORED if thin else BLOBS)[kind][:-32])
    for _ in range(data.draw(st.integers(1, 3))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    with pytest.raises(MalformedUpdate):
        codec.decode(bytes(body), specs(shipped))
    try:
        decoded = codec.decode(signed(bytes(body)), specs(shipped))
    except MalformedUpdate:
        return
    assert all(np.isfinite(t).all() for t in decoded.tensors.values())
    assert codec.bound(signed(bytes(body))).keys() == decoded.tensors.keys()


def test_both_forms_are_among_the_blobs_that_are_damaged():
    forms = {codec_of(k, THIN).is_factored(FACTORED[k]) for k in BEHIND}, {codec_of(k).is_factored(BLOBS[k]) for k in BEHIND}
    assert forms == ({True}, {False})


@pytest.mark.parametrize(
    ("head", "problem"),
    [
        (struct.pack("<H", 60_000), "60000 components, at most 3"),
        (struct.pack("<H3h", 3, 0, 0, 999), "out of range"),
        (b"", "ends too early"),
    ],
)
def test_heads_that_no_encoder_writes_are_malformed(head: bytes, problem: str):
    codec = codec_of("rate_distortion")
    base = Digest.of(state_digest(SHIPPED).value + Sensitivity.flat(specs(SHIPPED)).digest.value)
    label = container.Label(codec=codec.id, shipped=base, sections=2)
    inner = container.read(BLOBS["rate_distortion"], label=label, bytes_max=codec.bytes_max).sections[1]
    for form, said in ((1, problem), (0, "a head that means nothing" if head else ""), (7, "form 7")):
        if not said:
            continue
        blob = container.write(label, container.Contents(form=form, sections=[head, inner]))
        with pytest.raises(MalformedUpdate, match=said):
            codec.decode(blob, specs(SHIPPED))


def test_the_rank_is_a_part_of_the_format_and_kinds_without_a_use_for_it_refuse_it():
    assert codec_id(CodecConfig(rank=8)) == "low-rank8+delta-turned-ans/1"
    for codec in ({"kind": "lossless"}, {"kind": "jopeq", "noise": {}}):
        with pytest.raises(ConfigError, match="rank: is for rate_distortion and blockwise"):
            parse({**SCENARIO} | {"codec": {**codec, "rank": 8}})
