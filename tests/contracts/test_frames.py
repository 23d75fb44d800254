"""Do frames and receptions survive the journey, and is everything else refused?"""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hushtune_common.errors import MalformedUpdate
from hushtune_common.link.channel import BLOCKS_MAX, Assembly, Frame, Reception, cut
from hushtune_common.link.fidelity import Fidelity
from hushtune_common.messages import Listener
from tests.radio import qpsk_design, random_update

DESIGN = qpsk_design(snr_tap_db=3.0, codewords=1)  # 40 payload bytes per block


def reception(
    update: bytes, heard: list[bool], *, only: list[int] | None = None, listener: Listener = Listener.MAIN
) -> Reception:
    frame = cut(update, design=DESIGN, only=only)
    levels = np.linspace(-3.0, 4.0, frame.count, dtype=np.float32)
    return Reception.of(frame, listener=listener, heard=np.array(heard), snr_db=levels)


@given(size=st.integers(1, 700), seed=st.integers(0, 5))
def test_a_frame_survives_its_blob(size: int, seed: int) -> None:
    frame = cut(random_update(size, seed=seed), design=DESIGN)
    again = Frame.from_bytes(frame.to_bytes())
    assert again.to_bytes() == frame.to_bytes()
    assert (again.update_bytes, again.block_bytes, again.fidelity) == (size, 40, Fidelity.ABSTRACT)
    assert frame.count == -(-size // 40)


@given(data=st.data(), size=st.integers(1, 700))
def test_a_reception_survives_its_blob_and_holds_only_what_was_heard(data: st.DataObject, size: int) -> None:
    count = -(-size // 40)
    heard = data.draw(st.lists(st.booleans(), min_size=count, max_size=count))
    got = reception(random_update(size), heard, listener=Listener.TAP)
    again = Reception.from_bytes(got.to_bytes())
    assert again.to_bytes() == got.to_bytes()
    assert again.listener is Listener.TAP
    assert len(again.blocks) == sum(heard)


@given(data=st.data(), size=st.integers(1, 700))
def test_blocks_heard_over_two_attempts_give_the_update_back(data: st.DataObject, size: int) -> None:
    update = random_update(size)
    count = -(-size // 40)
    first = data.draw(st.lists(st.booleans(), min_size=count, max_size=count))
    assembly = Assembly(size, 40)
    assert assembly.add(reception(update, first)) == sum(first)
    assert assembly.missing == tuple(i for i, h in enumerate(first) if not h)
    if assembly.missing:
        with pytest.raises(ValueError, match="missing"):
            assembly.data()
        assembly.add(reception(update, [True] * len(assembly.missing), only=list(assembly.missing)))
    assert assembly.data() == update


@given(position=st.integers(0, 10_000), bit=st.integers(0, 7))
def test_a_flipped_bit_is_refused_or_loses_its_block_but_never_changes_the_update(position: int, bit: int) -> None:
    update = random_update(400)
    blob = bytearray(reception(update, [True] * 10).to_bytes())
    blob[position % len(blob)] ^= 1 << bit
    assembly = Assembly(400, 40)
    try:
        assembly.add(Reception.from_bytes(bytes(blob)))
    except MalformedUpdate:
        return
    known = assembly.known
    partial = assembly.partial()
    assert all(partial[40 * i : 40 * i + 40] == update[40 * i : 40 * i + 40] for i in np.flatnonzero(known))


@given(blob=st.binary(max_size=200))
def test_arbitrary_bytes_are_refused(blob: bytes) -> None:
    for parse in (Frame.from_bytes, Reception.from_bytes):
        with pytest.raises(MalformedUpdate):
            parse(blob)
        with pytest.raises(MalformedUpdate):
            parse((b"HTFR\x01\x01" if parse is Frame.from_bytes else b"HTRX\x01\x01") + b"\xff" * 30 + blob)


@given(cut_at=st.integers(0, 500))
def test_a_truncated_or_longer_blob_is_refused(cut_at: int) -> None:
    blob = reception(random_update(400), [True, False] * 5).to_bytes()
    for wrong in (blob[: min(cut_at, len(blob) - 1)], blob + b"\0"):
        with pytest.raises(MalformedUpdate):
            Reception.from_bytes(wrong)


def test_a_reception_of_another_update_is_refused() -> None:
    with pytest.raises(MalformedUpdate, match="does not belong"):
        Assembly(401, 40).add(reception(random_update(400), [True] * 10))


@pytest.mark.parametrize("only", [[], [-1], [10]])
def test_blocks_outside_the_update_cannot_be_cut(only: list[int]) -> None:
    with pytest.raises(ValueError, match="cannot cut"):
        cut(random_update(400), design=DESIGN, only=only)


def test_an_empty_update_cannot_be_cut() -> None:
    with pytest.raises(ValueError, match="cannot cut"):
        cut(b"", design=DESIGN)


def test_only_the_asked_blocks_are_cut_once_and_in_order() -> None:
    frame = cut(random_update(400), design=DESIGN, only=[7, 2, 7])
    assert frame.indices.tolist() == [2, 7]


def test_the_number_of_blocks_is_bounded_whatever_a_header_says() -> None:
    frame = cut(random_update(400), design=DESIGN)
    blob = bytearray(frame.to_bytes())
    blob[6:14] = (40 * (BLOCKS_MAX + 1)).to_bytes(8, "little")
    with pytest.raises(MalformedUpdate, match="at most"):
        Frame.from_bytes(bytes(blob))


@pytest.mark.slow
def test_an_update_of_28_megabytes_is_cut_parsed_and_assembled_exactly() -> None:
    update = random_update(28_000_000)
    design = qpsk_design(codewords=1)
    frame = Frame.from_bytes(cut(update, design=design).to_bytes())
    got = Reception.of(
        frame, listener=Listener.MAIN, heard=np.ones(frame.count, np.bool_), snr_db=np.zeros(frame.count, np.float32)
    )
    assembly = Assembly(len(update), design.payload_bytes)
    assembly.add(Reception.from_bytes(got.to_bytes()))
    assert assembly.data() == update
