"""Does the private codec obey the laws of codecs, and tell of an adapter only what its noisy codes tell?"""

import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hushtune_common.adapter import AdapterState
from hushtune_common.codec import container, jopeq
from hushtune_common.codec.container import Contents
from hushtune_common.codec.jopeq import JopeqCodec
from hushtune_common.codec.pipeline import budget_bytes, codec_id, make_codec
from hushtune_common.codec.shipped import state_digest
from hushtune_common.config import CodecConfig, NoiseConfig, parse
from hushtune_common.errors import BudgetTooSmall, ConfigError, MalformedUpdate
from hushtune_common.messages import Digest, TensorSpec
from tests.codecs import SCENARIO, least_share

SHAPES = {"layers.3.b": (40, 13), "layers.3.a": (67,), "layers.0.norm": (1,)}
CONFIGS = [
    CodecConfig(kind="jopeq", noise=NoiseConfig(epsilon=4.0, clip=1e-3)),
    CodecConfig(kind="jopeq", bits=8.0, noise=NoiseConfig(epsilon=0.1, clip=0.5)),
    CodecConfig(kind="jopeq", bits=14.0, noise=NoiseConfig(epsilon=0.2, clip=1.0, block=64)),
    CodecConfig(kind="jopeq", bits=16.0, noise=NoiseConfig(epsilon=3000.0, clip=1.0)),
]
every_config = pytest.mark.parametrize("config", CONFIGS, ids=codec_id)


def adapter(seed: int, scale: float = 1.0) -> AdapterState:
    rng = np.random.default_rng(seed)
    return AdapterState({n: (scale * rng.standard_normal(s)).astype(np.float32) for n, s in SHAPES.items()})


def plus(state: AdapterState, delta: AdapterState) -> AdapterState:
    return AdapterState({n: t + delta.tensors[n] for n, t in state.tensors.items()})


SHIPPED = adapter(1)
RETURNED = plus(SHIPPED, adapter(2, scale=1e-3))
SPECS = tuple(TensorSpec(name=n, shape=s, dtype="F32", block=0) for n, s in SHAPES.items())


def codec_of(config: CodecConfig) -> JopeqCodec:
    found = make_codec(config, shipped=SHIPPED)
    assert isinstance(found, JopeqCodec)
    return found


@every_config
def test_every_element_comes_back_within_the_bound_of_the_clipped_one(config: CodecConfig):
    codec = codec_of(config)
    for scale in (0.0, 1e-3, 10.0):
        returned = plus(SHIPPED, adapter(3, scale=scale))
        blob = codec.encode(returned, budget_bytes=codec.bytes_max)
        decoded, bound, clipped = codec.decode(blob, SPECS[::-1]), codec.bound(blob), codec.clipped(returned)
        assert list(decoded.tensors) == [s.name for s in SPECS[::-1]]
        for name, tensor in clipped.tensors.items():
            assert decoded.tensors[name].shape == tensor.shape
            assert np.abs(decoded.tensors[name].astype(np.float64) - tensor).max() <= bound[name]


@every_config
def test_what_is_clipped_has_the_promised_sum_of_magnitudes_and_what_is_within_stays(config: CodecConfig):
    noise, codec = config.noise, codec_of(config)
    assert noise is not None
    far = codec.clipped(plus(SHIPPED, adapter(5, scale=1e3)))
    for name, tensor in far.tensors.items():
        change = (tensor.astype(np.float64) - SHIPPED.tensors[name]).ravel()
        sums = np.add.reduceat(np.abs(change), np.arange(0, change.size, noise.block))
        assert (sums <= noise.clip + noise.block * 5e-7).all()
    near = plus(SHIPPED, adapter(6, scale=1e-3 * noise.clip / noise.block))
    assert all(np.allclose(codec.clipped(near).tensors[n], t, rtol=0, atol=5e-7) for n, t in near.tensors.items())


@every_config
def test_no_two_blobs_of_one_adapter_share_their_seed_or_their_noise(config: CodecConfig):
    codec = codec_of(config)
    blobs = [codec.encode(RETURNED, budget_bytes=codec.bytes_max) for _ in range(20)]
    heads = {bytes(sections(codec, blob)[0][4:20]) for blob in blobs}
    assert len(heads) == len({bytes(sections(codec, blob)[1]) for blob in blobs}) == 20


def sections(codec: JopeqCodec, blob: bytes) -> list[bytes]:
    label = container.Label(codec=codec.id, shipped=state_digest(SHIPPED), sections=3)
    return [bytes(s) for s in container.read(blob, label=label, bytes_max=codec.bytes_max).sections]


@every_config
def test_grid_and_bytes_granted_follow_from_what_is_public(config: CodecConfig):
    codec = codec_of(config)
    least = min(b for b in range(1, codec.bytes_max) if fits(codec, b))
    for budget in (least, (least + codec.bytes_max) // 2, codec.bytes_max, 10 * codec.bytes_max):
        steps = codec.noise_for(budget).steps
        for state in (SHIPPED, RETURNED, plus(SHIPPED, adapter(4, scale=1e3))):
            blob = codec.encode(state, budget_bytes=budget)
            assert len(blob) <= budget
            assert struct.unpack_from("<I", sections(codec, blob)[0]) == (steps,)
    with pytest.raises(BudgetTooSmall, match=f"at least {least} bytes"):
        codec.encode(RETURNED, budget_bytes=least - 1)


def fits(codec: JopeqCodec, budget: int) -> bool:
    try:
        codec.noise_for(budget)
    except BudgetTooSmall:
        return False
    return True


@every_config
@pytest.mark.parametrize("count", [1, 70, 100_000])
def test_the_least_share_that_the_coordinator_grants_always_suffices(config: CodecConfig, count: int):
    shipped = AdapterState({"w": np.zeros(count, np.float32)})
    spec = (TensorSpec(name="w", shape=(count,), dtype="F32", block=0),)
    share = least_share(config)
    granted = budget_bytes(spec, config=config, share=share)
    at_the_ends = AdapterState({"w": np.where(np.arange(count) % 2, 1e3, -1e3).astype(np.float32)})
    assert len(make_codec(config, shipped=shipped).encode(at_the_ends, budget_bytes=granted)) <= granted


def test_codes_that_do_not_fit_are_cut_off_until_they_do():
    codec = codec_of(CONFIGS[1])
    noise, rng = codec.noise_for(codec.bytes_max), np.random.default_rng(7)
    codes = rng.integers(-60, 61, sum(s.count for s in SPECS)).astype(np.int32)
    blob = codec._written(codes, noise=noise, seed=bytes(16), bytes_max=400)  # pyright: ignore[reportPrivateUsage]
    assert len(blob) <= 400
    codec.decode(blob, SPECS)


def test_the_mean_of_many_updates_comes_close_to_the_true_change():
    codec = codec_of(CONFIGS[0])
    returned = plus(SHIPPED, adapter(8, scale=2e-4))
    true = codec.clipped(returned)
    total = {n: np.zeros(t.shape) for n, t in SHIPPED.tensors.items()}
    for _ in range(400):
        decoded = codec.decode(codec.encode(returned, budget_bytes=codec.bytes_max), SPECS)
        total = {n: total[n] + decoded.tensors[n] for n in total}
    deviation = np.sqrt(codec.noise_for(codec.bytes_max).variance / 400)
    error = np.concatenate([(total[n] / 400 - true.tensors[n]).ravel() for n in total])
    assert np.abs(error).max() < 6.0 * deviation
    assert np.sqrt(np.square(error).mean()) == pytest.approx(deviation, rel=0.2)


def test_values_that_are_not_finite_and_other_tensors_are_named():
    codec = codec_of(CONFIGS[0])
    broken = AdapterState({**RETURNED.tensors, "layers.3.a": np.full(67, np.nan, np.float32)})
    with pytest.raises(ValueError, match=r"layers\.3\.a: holds values"):
        codec.encode(broken, budget_bytes=codec.bytes_max)
    with pytest.raises(ValueError, match="not the same tensor"):
        codec.encode(AdapterState({"x": np.zeros(3, np.float32)}), budget_bytes=codec.bytes_max)


BLOBS = {codec_id(c): codec_of(c).encode(RETURNED, budget_bytes=codec_of(c).bytes_max) for c in CONFIGS}


@settings(max_examples=60)
@given(st.sampled_from(CONFIGS), st.data())
def test_damaged_bytes_are_malformed(config: CodecConfig, data: st.DataObject):
    codec = codec_of(config)
    blob = bytearray(BLOBS[codec_id(config)])
    place = data.draw(st.integers(0, len(blob) - 1))
    blob[place] ^= data.draw(st.integers(1, 255))
    with pytest.raises(MalformedUpdate):
        codec.decode(bytes(blob), SPECS)
    with pytest.raises(MalformedUpdate):
        codec.bound(bytes(blob[:place]))


@settings(max_examples=150)
@given(st.sampled_from(CONFIGS), st.data())
def test_forged_bytes_with_a_right_digest_are_malformed_or_a_finite_adapter(config: CodecConfig, data: st.DataObject):
    codec = codec_of(config)
    body = bytearray(BLOBS[codec_id(config)][:-32])
    for _ in range(data.draw(st.integers(1, 3))):
        body[data.draw(st.integers(0, min(300, len(body) - 1)))] = data.draw(st.integers(0, 255))
    blob = bytes(body) + Digest.of(bytes(body)).value
    try:
        decoded = codec.decode(blob, SPECS)
    except MalformedUpdate:
        return
    assert all(np.isfinite(t).all() for t in decoded.tensors.values())
    assert codec.bound(blob).keys() == decoded.tensors.keys()


@pytest.mark.parametrize(
    ("place", "value", "problem"),
    [
        (0, struct.pack("<I", 0), "grid"),
        (0, struct.pack("<I", 2**31), "grid"),
        (20, b"\x40", "grid"),
        (21, b"", "ends too early"),
    ],
)
def test_heads_that_no_encoder_writes_are_malformed(place: int, value: bytes, problem: str):
    codec = codec_of(CONFIGS[0])
    head, highs, lows = sections(codec, codec.encode(RETURNED, budget_bytes=codec.bytes_max))
    forged = head[:place] + (value + head[place + len(value) :] if value else b"")
    label = container.Label(codec=codec.id, shipped=state_digest(SHIPPED), sections=3)
    with pytest.raises(MalformedUpdate, match=problem):
        codec.decode(container.write(label, Contents(form=0, sections=[forged, highs, lows])), SPECS)
    with pytest.raises(MalformedUpdate, match="form 1"):
        codec.decode(container.write(label, Contents(form=1, sections=[head, highs, lows])), SPECS)


def test_another_promise_is_another_format():
    codec = codec_of(CONFIGS[0])
    other = codec_of(CodecConfig(kind="jopeq", noise=NoiseConfig(epsilon=4.0, clip=2e-3)))
    assert codec.id != other.id
    with pytest.raises(MalformedUpdate, match=r"not a jopeq-eps4-clip0\.002"):
        other.decode(codec.encode(RETURNED, budget_bytes=codec.bytes_max), SPECS)


@pytest.mark.parametrize(
    ("codec", "field", "problem"),
    [
        ({"kind": "jopeq"}, "codec", "noise: needs a table"),
        ({"noise": {}}, "codec", "noise: is for jopeq, not rate_distortion"),
        ({"kind": "jopeq", "noise": {"epsilon": 0.1}}, "codec", "bits: at least 5.8"),
        ({"kind": "jopeq", "noise": {"epsilon": 0.1, "block": 1000}}, "codec.noise", "take smaller blocks"),
        ({"kind": "jopeq", "noise": {"clip": 0.0}}, "codec.noise.clip", "> 0.0"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(codec: dict[str, object], field: str, problem: str):
    with pytest.raises(ConfigError, match=problem) as caught:
        parse({**SCENARIO} | {"codec": codec})
    assert caught.value.field == field


def test_error_feedback_would_undo_the_noise():
    tree = {**SCENARIO} | {"codec": {"kind": "jopeq", "noise": {}}, "coordinator": {"rounds": 2}}
    with pytest.raises(ConfigError, match="take the noise"):
        parse(tree)
    parse(tree | {"training": {"error_feedback": False}})


def test_the_module_counts_what_a_head_has_beside_its_table():
    codec = codec_of(CONFIGS[0])
    head = sections(codec, codec.encode(RETURNED, budget_bytes=codec.bytes_max))[0]
    assert jopeq._overhead(codec._label) - codec._label.overhead == 21 < len(head)  # pyright: ignore[reportPrivateUsage]
