"""Does the owner put an update together over attempts, say what is missing, and hold bounds?"""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hushtune_common.errors import LimitExceeded, MalformedUpdate, NotYours
from hushtune_common.link.channel import Frame, Reception, cut
from hushtune_common.messages import ClientId, Listener
from hushtune_server.owner.reception import UpdateReception
from tests.radio import qpsk_design, random_update, transmission

DESIGN = qpsk_design(snr_tap_db=3.0, codewords=1)
UPDATE = random_update(1234)
COUNT = -(-1234 // DESIGN.payload_bytes)


def expect(*, update_bytes_max: int = 10_000, attempts_max: int = 3) -> UpdateReception:
    return UpdateReception(client=ClientId("c1"), round_id=1, update_bytes_max=update_bytes_max, attempts_max=attempts_max)


def heard(frame: Frame, lost: set[int], *, listener: Listener = Listener.MAIN) -> bytes:
    flags = np.array([int(i) not in lost for i in frame.indices])
    return Reception.of(frame, listener=listener, heard=flags, snr_db=np.zeros(frame.count, np.float32)).to_bytes()


@given(lost=st.sets(st.integers(0, COUNT - 1), max_size=COUNT))
def test_a_retransmission_of_what_is_missing_completes_the_update(lost: set[int]) -> None:
    owner, frame = expect(), cut(UPDATE, design=DESIGN)
    receipt = owner.take(heard(frame, lost), transmission=transmission(frame, DESIGN))
    assert receipt.missing == tuple(sorted(lost))
    if lost:
        assert not owner.whole
        again = cut(UPDATE, design=DESIGN, only=receipt.missing)
        receipt = owner.take(heard(again, set()), transmission=transmission(again, DESIGN, attempt=2))
    assert receipt.missing == ()
    assert owner.whole
    assert owner.data() == UPDATE


def test_taking_an_attempt_twice_gives_the_same_receipt() -> None:
    owner, frame = expect(), cut(UPDATE, design=DESIGN)
    order = transmission(frame, DESIGN)
    first = owner.take(heard(frame, {3}), transmission=order)
    assert owner.take(heard(frame, set()), transmission=order) == first
    assert owner.attempts == 1


def test_a_block_with_a_wrong_checksum_counts_as_missing() -> None:
    owner, frame = expect(), cut(UPDATE, design=DESIGN)
    blob = bytearray(heard(frame, set()))
    blob[-1] ^= 1
    assert owner.take(bytes(blob), transmission=transmission(frame, DESIGN)).missing == (COUNT - 1,)


def test_too_large_an_update_is_refused_before_room_is_made() -> None:
    frame = cut(UPDATE, design=DESIGN)
    with pytest.raises(LimitExceeded, match="1234 bytes"):
        expect(update_bytes_max=1000).take(heard(frame, set()), transmission=transmission(frame, DESIGN))


def test_too_many_attempts_are_refused() -> None:
    frame = cut(UPDATE, design=DESIGN)
    with pytest.raises(LimitExceeded, match="attempt 4"):
        expect().take(heard(frame, set()), transmission=transmission(frame, DESIGN, attempt=4))


def test_the_update_of_another_client_is_refused() -> None:
    frame = cut(UPDATE, design=DESIGN)
    with pytest.raises(NotYours):
        expect().take(heard(frame, set()), transmission=transmission(frame, DESIGN, client="c2"))


def test_a_reception_of_the_tap_or_of_another_design_is_refused() -> None:
    frame = cut(UPDATE, design=DESIGN)
    with pytest.raises(MalformedUpdate, match="other listener"):
        expect().take(heard(frame, set(), listener=Listener.TAP), transmission=transmission(frame, DESIGN))
    with pytest.raises(MalformedUpdate, match="design carries"):
        expect().take(heard(frame, set()), transmission=transmission(frame, qpsk_design()))


def test_an_incomplete_update_is_not_handed_out() -> None:
    owner = expect()
    with pytest.raises(ValueError, match="nothing"):
        owner.data()
    frame = cut(UPDATE, design=DESIGN)
    owner.take(heard(frame, {0}), transmission=transmission(frame, DESIGN))
    with pytest.raises(ValueError, match="missing"):
        owner.data()
