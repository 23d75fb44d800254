"""Does every codec obey its laws, for any adapter and against any bytes?"""

import tracemalloc
from collections import Counter
from math import log2
from typing import Literal

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from hushtune_common.adapter import AdapterState, Float32
from hushtune_common.codec import container
from hushtune_common.codec.codec import AdapterCodec
from hushtune_common.codec.pipeline import DeltaCodec, codec_id, state_digest
from hushtune_common.codec.stages import BlockQuantiser, EntropyCoder, pack_codes, split_planes, unpack_codes
from hushtune_common.config import CodecConfig
from hushtune_common.errors import MalformedUpdate
from hushtune_common.messages import Digest, TensorSpec

CONFIGS = [
    CodecConfig(bits=8, block_size=64),
    CodecConfig(bits=4, block_size=64),
    CodecConfig(bits=4, block_size=16, level=1),
    CodecConfig(bits=8, block_size=4096),
]
SHAPES = {"layers.3.b": (5, 13), "layers.3.a": (67,), "layers.0.norm": (1,)}
configs = st.sampled_from(CONFIGS)


def values(shape: tuple[int, ...], largest: float = 2.0**100) -> st.SearchStrategy[Float32]:
    finite = st.floats(-largest, largest, width=32)
    return hnp.arrays(np.float32, shape, elements=finite, fill=st.sampled_from([0.0, 1e-40, 3e-5]))


states = st.builds(
    lambda *tensors: AdapterState(dict(zip(SHAPES, tensors, strict=True))),  # type: ignore[misc]  # builds() is untyped here
    *(values(shape) for shape in SHAPES.values()),
)


def specs(state: AdapterState) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(name=n, shape=t.shape, dtype="F32", block=0) for n, t in state.tensors.items())


def small_adapter(seed: int, scale: float = 1.0) -> AdapterState:
    rng = np.random.default_rng(seed)
    return AdapterState({n: (scale * rng.standard_normal(s)).astype(np.float32) for n, s in SHAPES.items()})


def plus(state: AdapterState, delta: AdapterState) -> AdapterState:
    return AdapterState({n: t + delta.tensors[n] for n, t in state.tensors.items()})


SHIPPED = small_adapter(1)
RETURNED = plus(SHIPPED, small_adapter(2, scale=1e-3))


def codec_of(config: CodecConfig, shipped: AdapterState = SHIPPED) -> AdapterCodec:
    return DeltaCodec(shipped=shipped, config=config)


def signed(body: bytes) -> bytes:
    """Return what a hostile client can always make: any body with the right digest."""
    return body + Digest.of(body).value


@settings(max_examples=60)
@given(configs, states, states)
def test_every_element_comes_back_within_half_a_step_of_its_block(
    config: CodecConfig, shipped: AdapterState, returned: AdapterState
):
    codec = codec_of(config, shipped)
    decoded = codec.decode(codec.encode(returned), specs(returned))
    for name, tensor in returned.tensors.items():
        error = np.abs(decoded.tensors[name].astype(np.float64) - tensor)
        assert (error <= codec.bound(returned).tensors[name]).all()
        assert (error <= half_steps(tensor, shipped.tensors[name], config)).all()


def half_steps(returned: Float32, shipped: Float32, config: CodecConfig) -> np.ndarray[tuple[int, ...]]:
    """Return absmax / (2 Q) of every element's block by a plain loop, with 1 % for the scale and float32 rounding on top."""
    flat, start = returned.astype(np.float64).ravel(), shipped.astype(np.float64).ravel()
    bounds = np.empty_like(flat)
    for first in range(0, flat.size, config.block_size):
        block = slice(first, first + config.block_size)
        bounds[block] = 1.01 * np.abs(flat[block] - start[block]).max() / (2**config.bits - 2) + 1e-35
    return (bounds + 3e-7 * (np.abs(flat) + np.abs(start))).reshape(returned.shape)


@pytest.mark.parametrize("config", CONFIGS, ids=codec_id)
def test_names_shapes_and_the_expected_order_survive(config: CodecConfig):
    codec = codec_of(config)
    for expected in (specs(RETURNED), specs(RETURNED)[::-1]):
        decoded = codec.decode(codec.encode(RETURNED), expected)
        assert [(n, t.shape) for n, t in decoded.tensors.items()] == [(s.name, s.shape) for s in expected]


@pytest.mark.parametrize("config", CONFIGS, ids=codec_id)
def test_equal_states_give_equal_bytes_in_any_order_of_the_mapping(config: CodecConfig):
    turned = AdapterState(dict(reversed(list(RETURNED.tensors.items()))))
    assert codec_of(config).encode(RETURNED) == codec_of(config).encode(turned)


@given(configs, states)
def test_an_untouched_adapter_comes_back_bit_for_bit(config: CodecConfig, shipped: AdapterState):
    codec = codec_of(config, shipped)
    decoded = codec.decode(codec.encode(shipped), specs(shipped))
    assert all((decoded.tensors[n] == t).all() for n, t in shipped.tensors.items())


@pytest.mark.parametrize("config", CONFIGS, ids=codec_id)
def test_incompressible_noise_stays_within_the_largest_size(config: CodecConfig):
    rng = np.random.default_rng(5)
    shipped = AdapterState({"w": np.zeros(200_001, np.float32)})
    noise = AdapterState({"w": rng.uniform(-1.0, 1.0, 200_001).astype(np.float32)})
    codec = codec_of(config, shipped)
    assert len(codec.encode(noise)) <= codec.bytes_max


@pytest.mark.parametrize("bits", [4, 8])
def test_the_size_is_close_to_the_entropy_of_the_codes(bits: Literal[4, 8]):
    rng = np.random.default_rng(6)
    shipped = AdapterState({"w": np.zeros(1 << 18, np.float32)})
    returned = AdapterState({"w": (1e-4 * rng.laplace(size=1 << 18)).astype(np.float32)})
    _, codes = BlockQuantiser(bits=bits, block_size=64).quantise(returned.tensors["w"], shipped.tensors["w"])
    counts = Counter(codes.tolist()).values()
    entropy_bytes = sum(c * log2(codes.size / c) for c in counts) / 8
    encoded = len(codec_of(CodecConfig(bits=bits), shipped).encode(returned))
    scales_bytes = 2 * codes.size / 64
    assert entropy_bytes < encoded < 1.02 * entropy_bytes + scales_bytes


@settings(max_examples=150)
@given(configs, st.data())
def test_damaged_bytes_are_malformed(config: CodecConfig, data: st.DataObject):
    codec = codec_of(config)
    blob = codec.encode(RETURNED)
    at = data.draw(st.integers(0, len(blob) - 1))
    damage = data.draw(st.binary(min_size=0, max_size=4))
    damaged = data.draw(
        st.sampled_from([blob[:at], blob[:at] + damage + blob[at:], blob[:at] + damage + blob[at + 1 :], blob + damage])
    )
    if damaged != blob:
        with pytest.raises(MalformedUpdate):
            codec.decode(damaged, specs(RETURNED))


@given(configs, st.binary(max_size=600))
def test_arbitrary_bytes_are_malformed(config: CodecConfig, blob: bytes):
    for attempt in (blob, signed(blob)):
        with pytest.raises(MalformedUpdate):
            codec_of(config).decode(attempt, specs(RETURNED))


@settings(max_examples=200)
@given(configs, st.data())
def test_forged_bytes_with_a_right_digest_are_malformed_or_a_finite_adapter(config: CodecConfig, data: st.DataObject):
    codec = codec_of(config)
    body = bytearray(codec.encode(RETURNED)[:-32])
    for _ in range(data.draw(st.integers(1, 3))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    try:
        decoded = codec.decode(signed(bytes(body)), specs(RETURNED))
    except MalformedUpdate:
        return
    assert [t.shape for t in decoded.tensors.values()] == list(SHAPES.values())
    assert all(np.isfinite(t).all() for t in decoded.tensors.values())


CONFIG = CodecConfig(bits=8, block_size=64)
ONE = AdapterState({"w": np.full(70, 2.0, np.float32)})
LABEL = container.Label(codec=codec_id(CONFIG), shipped=state_digest(ONE), sections=2)
CODER = EntropyCoder(level=3)


def forged(*, scales: list[int], codes: list[int]) -> bytes:
    scale_frame = CODER.compress(split_planes(np.array(scales, dtype=np.uint16)))
    return container.write(LABEL, [scale_frame, CODER.compress(np.array(codes, dtype=np.int8).view(np.uint8))])


def test_a_container_made_by_hand_decodes():
    decoded = codec_of(CONFIG, ONE).decode(forged(scales=[0x3F80, 0x4000], codes=[3] * 70), specs(ONE))
    assert decoded.tensors["w"].tolist() == [5.0] * 64 + [8.0] * 6


@pytest.mark.parametrize(
    ("scales", "codes"),
    [
        ([0x7F00, 0x3F80], [127] * 70),  # overflows float32
        ([0x7F80, 0x3F80], [0] * 70),  # an infinite scale
        ([0x7FC0, 0x3F80], [0] * 70),  # a scale that is no number
        ([0xBF80, 0x3F80], [1] * 70),  # a negative scale
        ([0x3F80, 0x3F80], [-128] * 70),  # a code that quantising never gives
        ([0x3F80], [1] * 70),  # a scale too few
        ([0x3F80, 0x3F80], [1] * 71),  # a code too many
    ],
)
def test_contents_that_no_encoder_makes_are_malformed(scales: list[int], codes: list[int]):
    with pytest.raises(MalformedUpdate, match=r"^w: "):
        codec_of(CONFIG, ONE).decode(forged(scales=scales, codes=codes), specs(ONE))


def test_a_decompression_bomb_is_refused_before_it_is_unpacked():
    bombs = [zstandard.ZstdCompressor(write_content_size=announced).compress(bytes(1 << 25)) for announced in (True, False)]
    for bomb in bombs:
        blob = container.write(LABEL, [CODER.compress(np.zeros(4, np.uint8)), bomb])
        codec = codec_of(CONFIG, AdapterState({"w": np.full(70, 2.0, np.float32)}))
        tracemalloc.start()
        with pytest.raises(MalformedUpdate):
            codec.decode(blob, specs(ONE))
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 1 << 20


def test_the_half_byte_after_an_odd_number_of_codes_must_be_empty():
    packed = pack_codes(np.array([1, -7, 7], dtype=np.int8), bits=4)
    assert unpack_codes(packed, 3, bits=4).tolist() == [1, -7, 7]
    with pytest.raises(MalformedUpdate):
        unpack_codes(packed + np.array([0, 1], dtype=np.uint8), 3, bits=4)


def test_a_delta_against_another_adapter_is_malformed():
    other = codec_of(CONFIG, plus(SHIPPED, small_adapter(9, scale=1e-6)))
    with pytest.raises(MalformedUpdate, match="made against"):
        codec_of(CONFIG).decode(other.encode(RETURNED), specs(RETURNED))


def test_another_codecs_bytes_are_malformed():
    ours, theirs = codec_of(CONFIGS[1]), codec_of(CONFIGS[2])
    assert ours.id == "delta-int4-b64-zstd/1"
    with pytest.raises(MalformedUpdate):
        ours.decode(theirs.encode(RETURNED), specs(RETURNED))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf"), 3e38])
def test_values_that_cannot_be_encoded_name_their_tensor(bad: float):
    tensors = {n: t.copy() for n, t in RETURNED.tensors.items()}
    tensors["layers.3.a"][66] = bad
    with pytest.raises(ValueError, match=r"layers\.3\.a: "):
        codec_of(CONFIG).encode(AdapterState(tensors))


def test_an_adapter_of_other_shapes_is_our_own_mistake():
    with pytest.raises(ValueError, match="w: "):
        codec_of(CONFIG, ONE).encode(AdapterState({"w": np.zeros(71, np.float32)}))
    with pytest.raises(ValueError, match="expected"):
        codec_of(CONFIG, ONE).decode(b"", specs(RETURNED))
