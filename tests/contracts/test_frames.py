"""Do frames and receptions survive the journey chunk by chunk, and is everything else refused?"""

import struct
import zlib
from collections.abc import Callable
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from hushtune_common.errors import MalformedUpdate
from hushtune_common.link.fidelity import Fidelity
from hushtune_common.link.frame import FrameChunk, FrameReader, chunk_blocks, frame_layout, frame_parts
from hushtune_common.link.modular import BlockCode
from hushtune_common.link.randomness import OsRandomness
from hushtune_common.link.reception import Reception, bare_payloads
from hushtune_common.link.wiretap import open_design
from hushtune_common.messages import BLOCKS_MAX, Listener, Part, SecrecyDesign
from tests.radio import POINTS, frame_bytes, link_seed, qpsk_design, random_update, reader

Flags = NDArray[np.bool_]

DESIGN = qpsk_design(snr_tap_db=3.0, codewords=1)
PAYLOAD = 40
"""Payload bytes of a hash block of ``DESIGN``."""
CHUNK = 256
"""Hash blocks of a chunk of ``DESIGN``."""
HEAD = 31
"""Bytes of a frame before its indices."""
fidelities = st.sampled_from(list(Fidelity))


@cache
def code_of(design: SecrecyDesign) -> BlockCode:
    return BlockCode(design, toeplitz=link_seed(design).toeplitz)


def soft_of(chunk: FrameChunk, design: SecrecyDesign) -> NDArray[np.int8]:
    """What a listener without noise would have."""
    bits = np.unpackbits(chunk.rows, axis=1, bitorder="little")
    return (127 - 254 * bits.astype(np.int16)).astype(np.int8).reshape(-1, design.codewords, design.code_bits)


def heard(chunk: FrameChunk, *, fate: Flags | None = None, listener: Listener = Listener.MAIN) -> Reception:
    flags = np.ones(chunk.count, dtype=np.bool_) if fate is None else fate | chunk.coded
    levels = np.linspace(-3.0, 4.0, chunk.count, dtype=np.float32)
    return Reception.of(chunk, listener=listener, heard=flags, snr_db=levels, gain_log2=3, soft=soft_of(chunk, DESIGN))


def payloads_in(got: Reception) -> dict[int, bytes]:
    """Every payload that a listener without noise gets out of a reception."""
    decoded = code_of(DESIGN).decode(got.soft, iterations=2)
    indices, payloads = bare_payloads(got)
    coded = zip(got.coded_indices[decoded.sound], decoded.payloads[decoded.sound], strict=True)
    return {int(i): p.tobytes() for i, p in [*coded, *zip(indices, payloads, strict=True)]}


def blocks_in(update: bytes) -> dict[int, bytes]:
    return {i // PAYLOAD: update[i : i + PAYLOAD].ljust(PAYLOAD, b"\0") for i in range(0, len(update), PAYLOAD)}


@given(size=st.integers(1, 700), seed=st.integers(0, 5), fidelity=fidelities, part=st.sampled_from(list(Part)))
def test_a_frame_gives_back_every_block_with_the_last_one_filled_with_zeros(
    size: int, seed: int, fidelity: Fidelity, part: Part
) -> None:
    update = random_update(size, seed=seed)
    frame = reader(frame_bytes(update, DESIGN, fidelity=fidelity, part=part))
    assert (frame.layout.fidelity, frame.layout.part, frame.layout.update_bytes) == (fidelity, part, size)
    assert frame.chunk_count(DESIGN) == 1
    assert payloads_in(heard(frame.chunk(0, design=DESIGN))) == blocks_in(update)


@given(data=st.data(), fidelity=fidelities)
def test_only_the_asked_blocks_travel_once_and_in_order(data: st.DataObject, fidelity: Fidelity) -> None:
    update = random_update(400)
    only = data.draw(st.lists(st.integers(0, 9), min_size=1, max_size=15))
    chunk = reader(frame_bytes(update, DESIGN, fidelity=fidelity, only=only)).chunk(0, design=DESIGN)
    assert chunk.indices.tolist() == sorted(set(only))
    assert payloads_in(heard(chunk)) == {i: blocks_in(update)[i] for i in only}


def test_a_bare_row_is_the_payload_with_its_checksum() -> None:
    update = random_update(100)
    rows = reader(frame_bytes(update, DESIGN)).chunk(0, design=DESIGN).bare
    assert [row.tobytes() for row in rows] == [b + zlib.crc32(b).to_bytes(4, "big") for b in blocks_in(update).values()]


@pytest.mark.parametrize("fidelity", list(Fidelity))
def test_chunks_in_any_order_make_up_the_frame(fidelity: Fidelity) -> None:
    update = random_update(PAYLOAD * (2 * CHUNK + 3) - 1)
    frame = reader(frame_bytes(update, DESIGN, fidelity=fidelity))
    assert frame.chunk_count(DESIGN) == 3
    chunks = {n: frame.chunk(n, design=DESIGN) for n in (2, 0, 1)}
    assert [chunks[n].start for n in range(3)] == [0, CHUNK, 2 * CHUNK]
    assert [chunks[n].coded_start for n in range(3)] == [int(frame.layout.coded[: n * CHUNK].sum()) for n in range(3)]
    together = {i: payload for chunk in chunks.values() for i, payload in payloads_in(heard(chunk)).items()}
    assert together == blocks_in(update)


@pytest.mark.parametrize("fidelity", list(Fidelity))
def test_a_chunk_is_read_without_the_rest_of_the_frame(fidelity: Fidelity) -> None:
    blob = frame_bytes(random_update(PAYLOAD * 5 * CHUNK), DESIGN, fidelity=fidelity)
    asked: list[tuple[int, int]] = []

    def read(offset: int, size: int) -> bytes:
        asked.append((offset, size))
        return blob[offset : offset + size]

    frame = FrameReader(read, len(blob))
    assert max(offset + size for offset, size in asked) == frame.layout.rows_offset
    asked.clear()
    chunk = frame.chunk(3, design=DESIGN)
    assert sum(size for _, size in asked) == chunk.rows.nbytes + chunk.bare.nbytes
    assert chunk.count == CHUNK


@pytest.mark.parametrize("codewords", [1, 4, 16, 64, 512])
def test_soft_values_of_a_chunk_stay_within_one_message_unless_one_block_is_more(codewords: int) -> None:
    design = open_design(POINTS["qpsk-0.825"], codewords=codewords)
    blocks, each = chunk_blocks(design), codewords * design.code_bits
    assert blocks >= 1
    assert blocks * each <= 2.5 * 2**20 or blocks == 1
    assert (blocks + 1) * each > 2.5 * 2**20


@pytest.mark.parametrize("fidelity", list(Fidelity))
def test_the_size_of_a_frame_is_known_before_it_is_written(fidelity: Fidelity) -> None:
    blob = frame_bytes(random_update(1001), DESIGN, fidelity=fidelity, only=[3, 7, 25])
    coded = reader(blob).layout.coded
    layout = frame_layout(1001, part=Part.PAYLOAD, design=DESIGN, fidelity=fidelity, coded=coded, only=[3, 7, 25])
    assert layout.size == len(blob)


def test_sending_a_block_again_sends_other_bits() -> None:
    update = random_update(400)
    first, again = (reader(frame_bytes(update, DESIGN, fidelity=Fidelity.BIT_EXACT, seed=s)) for s in (0, 1))
    rows = [frame.chunk(0, design=DESIGN).rows for frame in (first, again)]
    assert (rows[0] != rows[1]).any(axis=1).all()


def parts(update: bytes, *, fidelity: Fidelity, coded: list[bool], only: list[int] | None = None) -> object:
    return frame_parts(
        update,
        part=Part.PAYLOAD,
        design=DESIGN,
        code=code_of(DESIGN),
        fidelity=fidelity,
        coded=np.array(coded, dtype=np.bool_),
        only=only,
        randomness=OsRandomness(),
    )


@pytest.mark.parametrize("only", [[], [-1], [10], [0, 10]])
def test_blocks_outside_the_update_are_refused_before_anything_is_written(only: list[int]) -> None:
    with pytest.raises(ValueError, match="cannot send"):
        parts(random_update(400), fidelity=Fidelity.ABSTRACT, coded=[False] * len(only), only=only)


def test_an_empty_update_cannot_be_sent() -> None:
    with pytest.raises(ValueError, match="cannot send"):
        parts(b"", fidelity=Fidelity.ABSTRACT, coded=[])


@pytest.mark.parametrize(
    ("fidelity", "coded"),
    [(Fidelity.BIT_EXACT, [True, False]), (Fidelity.ABSTRACT, [False, True]), (Fidelity.HYBRID, [True] * 3)],
)
def test_forms_that_contradict_the_fidelity_or_the_number_of_blocks_are_refused(fidelity: Fidelity, coded: list[bool]) -> None:
    with pytest.raises(ValueError, match="coded"):
        parts(random_update(80), fidelity=fidelity, coded=coded)


@given(position=st.integers(0, 10_000), change=st.integers(1, 255), fidelity=fidelities)
def test_any_change_before_the_rows_is_refused(position: int, change: int, fidelity: Fidelity) -> None:
    blob = bytearray(frame_bytes(random_update(400), DESIGN, fidelity=fidelity))
    blob[position % reader(bytes(blob)).layout.rows_offset] ^= change
    with pytest.raises(MalformedUpdate):
        reader(bytes(blob))


@given(cut_at=st.integers(0, 20_000), fidelity=fidelities)
def test_a_truncated_or_longer_frame_is_refused(cut_at: int, fidelity: Fidelity) -> None:
    blob = frame_bytes(random_update(400), DESIGN, fidelity=fidelity)
    for wrong in (blob[: cut_at % len(blob)], blob + b"\0"):
        with pytest.raises(MalformedUpdate):
            reader(wrong)


@given(blob=st.binary(max_size=200))
def test_arbitrary_bytes_are_refused(blob: bytes) -> None:
    for start in (b"", b"HTFR\x02", b"HTFR\x02\x02\x00" + b"\xff" * 24):
        with pytest.raises(MalformedUpdate):
            reader(start + blob)
    for start in (b"", b"HTRX\x03", b"HTRX\x03\x00\x01\x00\x00" + b"\xff" * 36):
        with pytest.raises(MalformedUpdate):
            Reception.from_bytes(start + blob)


def sealed(head: bytes) -> bytes:
    """What a hostile sender writes: a checksum that holds."""
    return head + zlib.crc32(head).to_bytes(4, "little")


small, wide = st.integers(0, 12), st.integers(0, 2**32 - 1)


@given(
    codes=st.tuples(st.integers(0, 5), st.integers(0, 3)),
    sizes=st.tuples(st.integers(0, 2**64 - 1) | small, small | wide, small | wide, small, small),
    lists=st.binary(min_size=50, max_size=50),
    data=st.data(),
)
def test_a_hostile_head_gives_a_frame_within_its_file_or_is_refused(
    codes: tuple[int, int], sizes: tuple[int, ...], lists: bytes, data: st.DataObject
) -> None:
    count, coded = sizes[3], sizes[4]
    rising = struct.pack(f"<{count}I", *range(count)) if data.draw(st.booleans()) else lists[: 4 * count]
    head = struct.pack("<4sBBBQIIII", b"HTFR", 2, *codes, *sizes) + rising + lists[: -(-count // 8)]
    rows = coded * sizes[2] + (count - coded) * (sizes[1] + 4)
    blob = sealed(head) + bytes(max(0, min(rows, 1000)))
    try:
        frame = reader(blob)
    except MalformedUpdate:
        return
    assert frame.layout.size == len(blob)
    assert frame.layout.indices.max() < -(-sizes[0] // sizes[1]) <= BLOCKS_MAX


@pytest.mark.parametrize("fidelity", list(Fidelity))
def test_a_flipped_bit_under_a_mended_checksum_gives_another_frame_within_its_file_or_is_refused(fidelity: Fidelity) -> None:
    blob = frame_bytes(random_update(400), DESIGN, fidelity=fidelity)
    end = reader(blob).layout.rows_offset
    for bit in range(8 * (end - 4)):
        head = bytearray(blob[: end - 4])
        head[bit // 8] ^= 1 << bit % 8
        try:
            frame = reader(sealed(bytes(head)) + blob[end:])
        except MalformedUpdate:
            continue
        assert frame.layout.size == len(blob)
        assert frame.layout.head() == sealed(bytes(head))


def test_marks_that_contradict_the_number_of_coded_blocks_are_refused() -> None:
    lists = struct.pack("<2IB", 0, 1, 0b01)
    for coded in (0, 2):  # rows are of one size in both forms, so the size of the file says nothing
        head = struct.pack("<4sBBBQIIII", b"HTFR", 2, Fidelity.HYBRID.code, 0, 80, PAYLOAD, PAYLOAD + 4, 2, coded)
        with pytest.raises(MalformedUpdate, match="1 marked"):
            reader(sealed(head + lists) + bytes(88))


def test_the_number_of_blocks_is_bounded_whatever_a_head_says() -> None:
    head = struct.pack("<4sBBBQIIII", b"HTFR", 2, 1, 0, PAYLOAD * (BLOCKS_MAX + 1), PAYLOAD, 1280, 1, 0)
    with pytest.raises(MalformedUpdate, match="at most"):
        reader(sealed(head + bytes(5)) + bytes(PAYLOAD + 4))


@pytest.mark.parametrize(("count", "coded"), [(BLOCKS_MAX, BLOCKS_MAX), (BLOCKS_MAX + 8, 0), (1, 3), (2**32 - 1, 2**32 - 1)])
def test_a_head_that_announces_too_much_is_refused_before_more_is_read(count: int, coded: int) -> None:
    asked: list[int] = []
    head = struct.pack("<4sBBBQIIII", b"HTFR", 2, 1, 0, 2**62, 1, 1, count, coded)

    def read(offset: int, size: int) -> bytes:
        asked.append(size)
        return head

    consistent = HEAD + 4 * count + count // 8 + 4 + 5 * count
    with pytest.raises(MalformedUpdate):
        FrameReader(read, consistent if count > BLOCKS_MAX else 10**6)
    assert asked == [HEAD]


def test_a_frame_that_shrinks_under_its_reader_is_refused() -> None:
    blob = frame_bytes(random_update(400), DESIGN)
    frame = FrameReader(lambda offset, size: blob[: len(blob) - 1][offset : offset + size], len(blob))
    with pytest.raises(MalformedUpdate, match="ends within"):
        frame.chunk(0, design=DESIGN)


def test_a_frame_of_another_design_is_refused() -> None:
    frame = reader(frame_bytes(random_update(400), DESIGN))
    for other in (qpsk_design(), open_design(POINTS["qpsk-0.5"], codewords=1)):
        with pytest.raises(MalformedUpdate, match="not of a design"):
            frame.chunk(0, design=other)


@pytest.mark.parametrize("number", [-1, 1])
def test_there_is_no_chunk_outside_the_frame(number: int) -> None:
    with pytest.raises(IndexError):
        reader(frame_bytes(random_update(400), DESIGN)).chunk(number, design=DESIGN)


@given(data=st.data(), size=st.integers(1, 700), fidelity=fidelities)
def test_a_reception_survives_its_blob_and_holds_only_what_was_heard(data: st.DataObject, size: int, fidelity: Fidelity) -> None:
    update = random_update(size)
    chunk = reader(frame_bytes(update, DESIGN, fidelity=fidelity)).chunk(0, design=DESIGN)
    fate = np.array(data.draw(st.lists(st.booleans(), min_size=chunk.count, max_size=chunk.count)))
    sent = heard(chunk, fate=fate, listener=Listener.TAP)
    blob = sent.to_bytes()
    again = Reception.from_bytes(blob)
    assert again.to_bytes() == blob
    assert (again.listener, again.fidelity, again.part, again.chunk) == (Listener.TAP, fidelity, Part.PAYLOAD, 0)
    assert np.array_equal(again.snr_db, sent.snr_db)
    assert again.gain_log2 == sent.gain_log2 == 3
    expected = {i for i in range(chunk.count) if fate[i] or chunk.coded[i]}
    assert payloads_in(again) == {i: blocks_in(update)[i] for i in expected}


def mixed() -> Reception:
    """Ten blocks, some of them coded, all heard."""
    return heard(reader(frame_bytes(random_update(400), DESIGN, fidelity=Fidelity.HYBRID)).chunk(0, design=DESIGN))


def test_rows_of_a_reception_are_views_of_its_blob() -> None:
    blob = mixed().to_bytes()
    again = Reception.from_bytes(blob)
    assert 0 < len(again.soft) < 10
    assert all(np.shares_memory(rows, np.frombuffer(blob, dtype=np.uint8)) for rows in (again.soft, again.bare))


@given(position=st.integers(0, 100_000), change=st.integers(1, 255))
def test_a_changed_byte_is_refused_or_loses_its_block_but_never_changes_the_update(position: int, change: int) -> None:
    blob = bytearray(mixed().to_bytes())
    blob[position % (len(blob) if position % 2 else 700)] ^= change
    try:
        got = Reception.from_bytes(bytes(blob))
    except MalformedUpdate:
        return
    found = payloads_in(got)
    assert found.items() <= blocks_in(random_update(400)).items()
    assert len(found) >= 9


@given(position=st.integers(0, 10_000), change=st.integers(1, 255))
def test_any_change_before_the_rows_of_a_reception_is_refused(position: int, change: int) -> None:
    sent = mixed()
    blob = bytearray(sent.to_bytes())
    blob[position % (len(blob) - sent.bare.nbytes - sent.soft.nbytes)] ^= change
    with pytest.raises(MalformedUpdate):
        Reception.from_bytes(bytes(blob))


@given(cut_at=st.integers(0, 200_000))
def test_a_truncated_or_longer_reception_is_refused(cut_at: int) -> None:
    blob = mixed().to_bytes()
    for wrong in (blob[: cut_at % len(blob)], blob + b"\0"):
        with pytest.raises(MalformedUpdate, match=r"announced|at least"):
            Reception.from_bytes(wrong)


@given(
    codes=st.tuples(st.integers(0, 2), st.integers(0, 4), st.integers(0, 2), st.integers(0, 70)),
    update_bytes=st.integers(0, 2**64 - 1) | small,
    sizes=st.tuples(small | wide, wide, small, small, small, small | wide, small | wide),
    lists=st.binary(min_size=110, max_size=110),
)
def test_a_hostile_head_gives_a_reception_within_its_blob_or_is_refused(
    codes: tuple[int, int, int, int], update_bytes: int, sizes: tuple[int, ...], lists: bytes
) -> None:
    block_bytes, _, count, coded, bare, codewords, code_bits = sizes
    heads = struct.pack(f"<{count}I", *range(count)) + lists[: 4 * count] + lists[-2 * -(-count // 8) :][: 2 * -(-count // 8)]
    rows = bare * (block_bytes + 4) + coded * codewords * code_bits
    blob = sealed(struct.pack("<4sBBBBBQIIIIIII", b"HTRX", 3, *codes, update_bytes, *sizes) + heads) + bytes(min(rows, 5000))
    try:
        got = Reception.from_bytes(blob)
    except MalformedUpdate:
        return
    assert got.to_bytes() == blob


@pytest.mark.parametrize("other", [qpsk_design(), open_design(POINTS["qpsk-0.5"], codewords=1)])
def test_a_reception_of_another_design_is_refused(other: SecrecyDesign) -> None:
    got = mixed()
    got.require_design(DESIGN)
    with pytest.raises(MalformedUpdate, match="not of a design"):
        got.require_design(other)


SPOILERS: dict[str, Callable[[Reception], Reception]] = {
    "a coded block unheard": lambda r: replace(r, heard=np.arange(10) != r.coded.argmax(), bare=r.bare[1:]),
    "a fate too few": lambda r: replace(r, heard=r.heard[1:]),
    "no numbers": lambda r: replace(r, snr_db=r.snr_db * np.float32(np.nan)),
    "soft values too few": lambda r: replace(r, soft=r.soft[1:]),
    "flat soft values": lambda r: replace(r, soft=r.soft[:, 0]),
    "rows too few": lambda r: replace(r, bare=r.bare[1:]),
    "falling indices": lambda r: replace(r, indices=r.indices[::-1]),
    "another fidelity": lambda r: replace(r, fidelity=Fidelity.BIT_EXACT),
    "an impossible gain": lambda r: replace(r, gain_log2=64),
    "an impossible chunk": lambda r: replace(r, chunk=-1),
    "a smaller update": lambda r: replace(r, update_bytes=10),
}


@pytest.mark.parametrize("spoiler", SPOILERS)
def test_a_reception_whose_pieces_contradict_each_other_cannot_be_made(spoiler: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        SPOILERS[spoiler](mixed())


@pytest.mark.slow
def test_an_update_of_28_megabytes_is_written_read_and_heard_exactly() -> None:
    update, design = random_update(28_000_000), qpsk_design(codewords=1)
    frame = reader(frame_bytes(update, design))
    found = bytearray(frame.layout.count * design.payload_bytes)
    for number in range(frame.chunk_count(design)):
        chunk = frame.chunk(number, design=design)
        soft = np.empty((0, design.codewords, design.code_bits), dtype=np.int8)
        levels, fates = np.zeros(chunk.count, np.float32), np.ones(chunk.count, np.bool_)
        sent = Reception.of(chunk, listener=Listener.MAIN, heard=fates, snr_db=levels, gain_log2=0, soft=soft)
        indices, payloads = bare_payloads(Reception.from_bytes(sent.to_bytes()))
        at = int(indices[0]) * design.payload_bytes
        found[at : at + payloads.size] = payloads.tobytes()
    assert bytes(found[: len(update)]) == update
