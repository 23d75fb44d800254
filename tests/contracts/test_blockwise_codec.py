"""Does the codec of blockwise integers obey its laws, for any adapter and against any bytes?"""

import tracemalloc
from collections import Counter
from math import ceil, log2

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from hushtune_common.adapter import AdapterState, Float32
from hushtune_common.codec import container
from hushtune_common.codec.blockwise import BlockwiseCodec
from hushtune_common.codec.container import Contents
from hushtune_common.codec.packing import pack_codes, packed_size, unpack_codes
from hushtune_common.codec.pipeline import budget_bytes, codec_id, make_codec
from hushtune_common.codec.shipped import state_digest
from hushtune_common.codec.stages import WIDTHS, BlockQuantiser, EntropyCoder, split_planes
from hushtune_common.config import CodecConfig
from hushtune_common.errors import BudgetTooSmall, MalformedUpdate
from hushtune_common.messages import Digest, TensorSpec

WIDEST = CodecConfig(kind="blockwise", bits=8, block_size=64)
CONFIGS = [
    WIDEST,
    CodecConfig(kind="blockwise", bits=8, block_size=16, level=1),
    CodecConfig(kind="blockwise", bits=7, block_size=4096),
    CodecConfig(kind="blockwise", bits=3, block_size=64),
]
ASKED = [(config, bits) for config in CONFIGS for bits in WIDTHS if bits <= config.bits]
SHAPES = {"layers.3.b": (5, 13), "layers.3.a": (67,), "layers.0.norm": (1,)}
asked = st.sampled_from(ASKED)
every_asked = pytest.mark.parametrize(
    ("config", "bits"), ASKED, ids=[f"{bits}-of-{c.bits:g}-b{c.block_size}" for c, bits in ASKED]
)


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


def codec_of(config: CodecConfig, shipped: AdapterState = SHIPPED) -> BlockwiseCodec:
    found = make_codec(config, shipped=shipped)
    assert isinstance(found, BlockwiseCodec)
    return found


def signed(body: bytes) -> bytes:
    """Return what a hostile client can always make: any body with the right digest."""
    return body + Digest.of(body).value


@settings(max_examples=120)
@given(asked, states, states)
def test_every_element_comes_back_within_half_a_step_of_its_block(
    asked: tuple[CodecConfig, int], shipped: AdapterState, returned: AdapterState
):
    config, bits = asked
    codec = codec_of(config, shipped)
    blob = codec.encode_at(returned, bits=bits)
    decoded, bound = codec.decode(blob, specs(returned)), codec.bound(blob)
    for name, tensor in returned.tensors.items():
        error = np.abs(decoded.tensors[name].astype(np.float64) - tensor)
        assert (error <= bound[name]).all()
        assert (error <= half_steps(tensor, shipped.tensors[name], bits=bits, block_size=config.block_size)).all()


def half_steps(returned: Float32, shipped: Float32, *, bits: int, block_size: int) -> np.ndarray[tuple[int, ...]]:
    """Return absmax / (2 Q) of every element's block by a plain loop, with 1 % for the scale and float32 rounding on top."""
    flat, start = returned.astype(np.float64).ravel(), shipped.astype(np.float64).ravel()
    bounds = np.empty_like(flat)
    for first in range(0, flat.size, block_size):
        block = slice(first, first + block_size)
        bounds[block] = 1.01 * np.abs(flat[block] - start[block]).max() / (2**bits - 2) + 1e-35
    return (bounds + 3e-7 * (np.abs(flat) + np.abs(start))).reshape(returned.shape)


@every_asked
def test_names_shapes_and_the_expected_order_survive(config: CodecConfig, bits: int):
    codec = codec_of(config)
    for expected in (specs(RETURNED), specs(RETURNED)[::-1]):
        decoded = codec.decode(codec.encode_at(RETURNED, bits=bits), expected)
        assert [(n, t.shape) for n, t in decoded.tensors.items()] == [(s.name, s.shape) for s in expected]


@every_asked
def test_equal_states_give_equal_bytes_in_any_order_of_the_mapping(config: CodecConfig, bits: int):
    turned = AdapterState(dict(reversed(list(RETURNED.tensors.items()))))
    assert codec_of(config).encode_at(RETURNED, bits=bits) == codec_of(config).encode_at(turned, bits=bits)


@given(asked, states)
def test_an_untouched_adapter_comes_back_bit_for_bit(asked: tuple[CodecConfig, int], shipped: AdapterState):
    config, bits = asked
    codec = codec_of(config, shipped)
    decoded = codec.decode(codec.encode_at(shipped, bits=bits), specs(shipped))
    assert all((decoded.tensors[n] == t).all() for n, t in shipped.tensors.items())


@every_asked
def test_incompressible_noise_stays_within_the_size_foretold_for_its_bits(config: CodecConfig, bits: int):
    rng = np.random.default_rng(5)
    noise = AdapterState({"w": rng.uniform(-1.0, 1.0, 60_001).astype(np.float32)})
    codec = codec_of(config, AdapterState({"w": np.zeros(60_001, np.float32)}))
    encoded = len(codec.encode_at(noise, bits=bits))
    # Q codes on each side of zero: of uniform ones, that is what no coder can save.
    incompressible = 60_001 * log2(2**bits - 2) / 8
    assert incompressible <= encoded <= 1.01 * (60_001 * bits / 8 + 2 * (60_001 // config.block_size + 1)) + 400


def test_a_full_share_is_the_most_and_shares_grow_by_what_they_grant():
    grants = [budget_bytes(specs(SHIPPED), config=WIDEST, share=share) for share in (0.25, 0.5, 1.0)]
    assert grants[-1] == codec_of(WIDEST).bytes_max
    assert [2 * grants[0], 2 * grants[1]] == pytest.approx(grants[1:], abs=2)
    with pytest.raises(ValueError, match="share"):
        budget_bytes(specs(SHIPPED), config=WIDEST, share=0.0)


@given(st.integers(0, 2000), states)
def test_a_blob_fits_its_budget_or_the_least_is_told(budget: int, returned: AdapterState):
    codec = codec_of(WIDEST)
    least = min(len(codec.encode_at(returned, bits=bits)) for bits in WIDTHS)
    if least <= budget:
        assert len(codec.encode(returned, budget_bytes=budget)) <= budget
        return
    with pytest.raises(BudgetTooSmall) as refused:
        codec.encode(returned, budget_bytes=budget)
    assert refused.value.least_bytes == least


def test_the_widest_codes_that_fit_are_taken():
    codec = codec_of(WIDEST)
    sizes = {bits: len(codec.encode_at(RETURNED, bits=bits)) for bits in WIDTHS}
    for size in sizes.values():
        widest = max(b for b, s in sizes.items() if s <= size)
        assert codec.encode(RETURNED, budget_bytes=size) == codec.encode_at(RETURNED, bits=widest)


@pytest.mark.parametrize("bits", WIDTHS)
def test_the_size_is_close_to_the_entropy_of_the_codes(bits: int):
    rng = np.random.default_rng(6)
    shipped = AdapterState({"w": np.zeros(1 << 18, np.float32)})
    returned = AdapterState({"w": (1e-4 * rng.laplace(size=1 << 18)).astype(np.float32)})
    _, codes = BlockQuantiser(bits=bits, block_size=64).quantise(returned.tensors["w"], shipped.tensors["w"])
    counts = Counter(codes.tolist()).values()
    entropy_bytes = sum(c * log2(codes.size / c) for c in counts) / 8
    encoded = len(codec_of(WIDEST, shipped).encode_at(returned, bits=bits))
    scales_bytes = 2 * codes.size / 64
    # Below 1 bit per code chance repetitions are taken for matches, and cost.
    assert entropy_bytes < encoded < (1.02 if bits > 2 else 1.15) * entropy_bytes + scales_bytes


def test_weights_that_training_left_alone_cost_next_to_nothing():
    shipped = AdapterState({"w": np.zeros(1 << 18, np.float32)})
    rng, returned = np.random.default_rng(6), np.zeros(1 << 18, np.float32)
    returned[: 1 << 13] = rng.standard_normal(1 << 13)
    for bits in WIDTHS:
        encoded = len(codec_of(WIDEST, shipped).encode_at(AdapterState({"w": returned}), bits=bits))
        assert encoded < 1.1 * packed_size(1 << 13, bits=bits) + 2 * (1 << 13) / 64 + 1000


@settings(max_examples=150)
@given(asked, st.data())
def test_damaged_bytes_are_malformed(asked: tuple[CodecConfig, int], data: st.DataObject):
    codec = codec_of(asked[0])
    blob = codec.encode_at(RETURNED, bits=asked[1])
    at = data.draw(st.integers(0, len(blob) - 1))
    damage = data.draw(st.binary(min_size=0, max_size=4))
    damaged = data.draw(
        st.sampled_from([blob[:at], blob[:at] + damage + blob[at:], blob[:at] + damage + blob[at + 1 :], blob + damage])
    )
    if damaged != blob:
        with pytest.raises(MalformedUpdate):
            codec.decode(damaged, specs(RETURNED))


@given(st.sampled_from(CONFIGS), st.binary(max_size=600))
def test_arbitrary_bytes_are_malformed(config: CodecConfig, blob: bytes):
    for attempt in (blob, signed(blob)):
        with pytest.raises(MalformedUpdate):
            codec_of(config).decode(attempt, specs(RETURNED))


@settings(max_examples=200)
@given(asked, st.data())
def test_forged_bytes_with_a_right_digest_are_malformed_or_a_finite_adapter(asked: tuple[CodecConfig, int], data: st.DataObject):
    codec = codec_of(asked[0])
    body = bytearray(codec.encode_at(RETURNED, bits=asked[1])[:-32])
    for _ in range(data.draw(st.integers(1, 3))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    try:
        decoded = codec.decode(signed(bytes(body)), specs(RETURNED))
    except MalformedUpdate:
        return
    assert [t.shape for t in decoded.tensors.values()] == list(SHAPES.values())
    assert all(np.isfinite(t).all() for t in decoded.tensors.values())


ONE = AdapterState({"w": np.full(70, 2.0, np.float32)})
LABEL = container.Label(codec=codec_id(WIDEST), shipped=state_digest(ONE), sections=2)
CODER = EntropyCoder(level=3)


def forged(*, scales: list[int], codes: list[int], bits: int = 8) -> bytes:
    scale_frame = CODER.compress(split_planes(np.array(scales, dtype=np.uint16)))
    code_frame = CODER.compress(pack_codes(np.array(codes, dtype=np.int8), bits=bits))
    return container.write(LABEL, Contents(form=bits, sections=[scale_frame, code_frame]))


def test_a_container_made_by_hand_decodes():
    for bits in (3, 8):
        decoded = codec_of(WIDEST, ONE).decode(forged(scales=[0x3F80, 0x4000], codes=[3] * 70, bits=bits), specs(ONE))
        assert decoded.tensors["w"].tolist() == [5.0] * 64 + [8.0] * 6


@pytest.mark.parametrize("bits", range(2, 8))
def test_the_one_pattern_that_no_code_has_is_malformed_at_every_width(bits: int):
    for at in (0, 69):  # among the planes, and among the last bits
        codes = [0] * 70
        codes[at] = -(2 ** (bits - 1))
        with pytest.raises(MalformedUpdate, match=r"^w: a code is below"):
            codec_of(WIDEST, ONE).decode(forged(scales=[0x3F80, 0x3F80], codes=codes, bits=bits), specs(ONE))


@pytest.mark.parametrize("bits", [0, 1, 9, 255])
def test_bits_that_no_code_has_are_refused_before_anything_is_unpacked(bits: int):
    codec = codec_of(WIDEST, ONE)
    with pytest.raises(MalformedUpdate, match=f"^{bits} bits per weight, expected 2 to 8"):
        codec.decode(container.write(LABEL, Contents(form=bits, sections=[b"", b""])), specs(ONE))
    with pytest.raises(ValueError, match="bits"):
        codec.encode_at(ONE, bits=bits)


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
        codec_of(WIDEST, ONE).decode(forged(scales=scales, codes=codes), specs(ONE))


def test_a_decompression_bomb_is_refused_before_it_is_unpacked():
    bombs = [zstandard.ZstdCompressor(write_content_size=announced).compress(bytes(1 << 25)) for announced in (True, False)]
    for bomb in bombs:
        blob = container.write(LABEL, Contents(form=8, sections=[CODER.compress(np.zeros(4, np.uint8)), bomb]))
        codec = codec_of(WIDEST, AdapterState({"w": np.full(70, 2.0, np.float32)}))
        tracemalloc.start()
        with pytest.raises(MalformedUpdate):
            codec.decode(blob, specs(ONE))
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 1 << 20


@given(st.sampled_from(WIDTHS), st.data())
def test_packed_codes_fill_their_bits_and_come_back(bits: int, data: st.DataObject):
    code_max = 2 ** (bits - 1) - 1
    codes = data.draw(hnp.arrays(np.int8, st.integers(0, 100), elements=st.integers(-code_max, code_max)))
    packed = pack_codes(codes, bits=bits)
    assert packed.size == packed_size(codes.size, bits=bits) == ceil(codes.size * bits / 8)
    assert unpack_codes(packed, codes.size, bits=bits).tolist() == codes.tolist()


def test_nine_codes_packed_by_hand():
    codes = np.array([0, -1, 1, -2, 2, -3, 3, 1, -3], dtype=np.int8)  # folded: 0 1 2 3 4 5 6 2, and 5 after the last group
    planes = [0b001_000_10, 0b011_010_01, 0b101_100_01]  # two whole codes each, then two bits of 6 + 8 * 2 = 0b010110
    assert pack_codes(codes, bits=3).tolist() == [*planes, 5]
    eight = np.array([1, -1, 0, 1, -1, 0, 1, 1], dtype=np.int8)  # folded: 2 1, 0 2, 1 0, 2 2: four runs of two
    assert pack_codes(eight, bits=2).tolist() == [0b10_01_00_10, 0b10_00_10_01]


@given(st.sampled_from(WIDTHS), st.data())
def test_all_bytes_are_the_packing_of_some_codes_or_malformed(bits: int, data: st.DataObject):
    count = data.draw(st.integers(0, 40))
    size = packed_size(count, bits=bits)
    packed = np.frombuffer(data.draw(st.binary(min_size=size, max_size=size)), dtype=np.uint8)
    try:
        codes = unpack_codes(packed, count, bits=bits)
    except MalformedUpdate:
        assert packed[-1] >> (count * bits % 8)
        return
    assert pack_codes(codes, bits=bits).tolist() == packed.tolist()


@pytest.mark.parametrize(("bits", "count"), [(2, 3), (3, 7), (4, 1), (5, 3), (6, 1), (7, 7)])
def test_the_bits_after_the_last_code_must_be_empty(bits: int, count: int):
    packed = pack_codes(np.array([1, -1, 1, 0, 1, -1, 1][:count], dtype=np.int8), bits=bits)
    assert unpack_codes(packed, count, bits=bits).tolist() == [1, -1, 1, 0, 1, -1, 1][:count]
    packed[-1] |= 1 << 7
    with pytest.raises(MalformedUpdate, match="padding"):
        unpack_codes(packed, count, bits=bits)


def test_a_delta_against_another_adapter_is_malformed():
    other = codec_of(WIDEST, plus(SHIPPED, small_adapter(9, scale=1e-6)))
    with pytest.raises(MalformedUpdate, match="made against"):
        codec_of(WIDEST).decode(other.encode_at(RETURNED, bits=8), specs(RETURNED))


def test_another_codecs_bytes_are_malformed():
    ours, theirs = codec_of(CONFIGS[0]), codec_of(CONFIGS[1])
    assert ours.id == codec_of(CONFIGS[3]).id == "delta-b64-zstd/2"  # the most bits are no part of the format
    with pytest.raises(MalformedUpdate):
        ours.decode(theirs.encode_at(RETURNED, bits=4), specs(RETURNED))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf"), 3e38])
def test_values_that_cannot_be_encoded_name_their_tensor(bad: float):
    tensors = {n: t.copy() for n, t in RETURNED.tensors.items()}
    tensors["layers.3.a"][66] = bad
    with pytest.raises(ValueError, match=r"layers\.3\.a: "):
        codec_of(WIDEST).encode_at(AdapterState(tensors), bits=2)


def test_an_adapter_of_other_shapes_is_our_own_mistake():
    with pytest.raises(ValueError, match="w: "):
        codec_of(WIDEST, ONE).encode_at(AdapterState({"w": np.zeros(71, np.float32)}), bits=8)
    with pytest.raises(ValueError, match="expected"):
        codec_of(WIDEST, ONE).decode(b"", specs(RETURNED))
