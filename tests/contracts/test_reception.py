"""Does the owner put an update together over chunks, attempts and lives of its process, say what is missing, and hold bounds?"""

import tracemalloc
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import permutations
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hushtune_common.crypto import envelope
from hushtune_common.crypto.keys import HybridPrivateKey
from hushtune_common.errors import AbstractionContradicted, ConfigError, LimitExceeded, MalformedUpdate, NotYours
from hushtune_common.link.fidelity import Fidelity
from hushtune_common.link.frame import FrameChunk, chunk_blocks, frame_parts
from hushtune_common.link.modem import Path as Channel
from hushtune_common.link.modem import soft_values
from hushtune_common.link.modular import BlockCode, dither_rows
from hushtune_common.link.noise import NoiseKey
from hushtune_common.link.randomness import OsRandomness
from hushtune_common.link.reception import Reception
from hushtune_common.link.wiretap import open_design
from hushtune_common.messages import (
    BLOCKS_MAX,
    ClientId,
    Digest,
    LinkSeed,
    Listener,
    Part,
    Protection,
    Receipt,
    ReceptionNotice,
    SecrecyDesign,
    UpdateKey,
)
from hushtune_common.seeding import SeedTree
from hushtune_common.units import Second, from_db
from hushtune_server.owner.reception import Bounds, UpdateReception
from tests.radio import POINTS, link_seed, qpsk_design, random_update, reader, transmission

DESIGN = qpsk_design(snr_tap_db=3.0, codewords=1)
SEED = link_seed(DESIGN)
STEP = chunk_blocks(DESIGN)
UPDATE = random_update(1234)
COUNT = -(-1234 // DESIGN.payload_bytes)
OPEN = open_design(POINTS["qpsk-0.825"], codewords=1)


def expect(folder: Path, *, update_bytes_max: int = 1 << 28, attempts_max: int = 3) -> UpdateReception:
    bounds = Bounds(update_bytes_max=update_bytes_max, attempts_max=attempts_max, threads=1)
    return UpdateReception(folder, client=ClientId("c1"), round_id=1, bounds=bounds)


class Sending:
    """One transmission as the owner gets to know it; every one has random bits of its own."""

    def __init__(
        self,
        update: bytes = UPDATE,
        *,
        design: SecrecyDesign = DESIGN,
        part: Part = Part.PAYLOAD,
        seed: LinkSeed = SEED,
        attempt: int = 1,
        only: Sequence[int] | None = None,
        coded: Sequence[bool] | None = None,
        fidelity: Fidelity = Fidelity.BIT_EXACT,
        client: str = "c1",
    ) -> None:
        count = -(-len(update) // design.payload_bytes) if only is None else len(only)
        flags = np.full(count, fidelity is Fidelity.BIT_EXACT) if coded is None else np.array(coded)
        code = BlockCode(design, toeplitz=seed.toeplitz)
        pieces = frame_parts(
            update, part=part, design=design, code=code, fidelity=fidelity, coded=flags, only=only, randomness=OsRandomness()
        )
        self.design, self.seed, blob = design, seed, b"".join(pieces)
        self.frame = reader(blob)
        self.notice = ReceptionNotice(
            seq=attempt,
            listener=Listener.MAIN,
            transmission=transmission(blob, design, part=part, seed=seed, client=client, attempt=attempt),
            blocks=count,
            update_bytes=len(update),
            fidelity=fidelity.value,
            airtime=Second(1.0),
            acknowledged=False,
        )

    def heard(self, lost: Sequence[int] | set[int] = (), *, snr_db: float = 30.0) -> Iterator[Reception]:
        """Yield what is heard without noise, except of the ``lost`` blocks, of which nothing but noise is."""
        for number in range(self.frame.chunk_count(self.design)):
            chunk = self.frame.chunk(number, design=self.design)
            there = ~np.isin(chunk.indices, list(lost))
            bits = np.unpackbits(chunk.rows, axis=1, bitorder="little").reshape(-1, self.design.codewords, self.design.code_bits)
            soft = np.where(bits, np.int8(-127), np.int8(127))
            gone = np.flatnonzero(~there[chunk.coded])
            rng = SeedTree(number).child("noise").generator()
            soft[gone] = rng.integers(-127, 128, size=(gone.size, *soft.shape[1:]), dtype=np.int8)
            yield self._reception(chunk, soft, heard=there | chunk.coded, snr_db=snr_db)

    def through(self, snr_db: float, *, seeds: SeedTree) -> Iterator[Reception]:
        """Yield what is heard through white noise."""
        for number in range(self.frame.chunk_count(self.design)):
            chunk = self.frame.chunk(number, design=self.design)
            first = chunk.coded_start * self.design.codewords
            channel = Channel(snr=from_db(snr_db), gains=None, key=NoiseKey.of(seeds), first=first)
            dither = dither_rows(self.design, self.seed.dither)
            words = chunk.rows.reshape(-1, self.design.code_bits // 8)
            soft = soft_values(words, dither=dither, modulation=self.design.modulation, path=channel)
            soft = soft.reshape(-1, self.design.codewords, self.design.code_bits)
            yield self._reception(chunk, soft, heard=np.ones(chunk.count, np.bool_), snr_db=snr_db)

    def to(self, owner: UpdateReception, lost: Sequence[int] | set[int] = ()) -> Receipt:
        """Have the owner hear all of it."""
        for chunk in self.heard(lost):
            owner.take(chunk, notice=self.notice)
        return owner.conclude(self.notice)[0]

    @staticmethod
    def _reception(
        chunk: FrameChunk, soft: np.ndarray[tuple[int, ...], np.dtype[np.int8]], *, heard: np.ndarray, snr_db: float
    ) -> Reception:
        snrs = np.full(chunk.count, snr_db, np.float32)
        return Reception.of(chunk, listener=Listener.MAIN, heard=heard, snr_db=snrs, gain_log2=0, soft=soft)


def blob_of(owner: UpdateReception) -> bytes | None:
    whole = owner.whole()
    return None if whole is None else whole.blob


@contextmanager
def folder() -> Generator[Path]:
    """Yield a folder of one example's own."""
    with TemporaryDirectory() as name:
        yield Path(name)


@pytest.mark.parametrize("fidelity", [Fidelity.ABSTRACT, Fidelity.BIT_EXACT])
@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(lost=st.sets(st.integers(0, COUNT - 1), max_size=COUNT))
def test_a_retransmission_of_what_is_missing_completes_the_update(fidelity: Fidelity, lost: set[int]) -> None:
    with folder() as at:
        owner = expect(at)
        receipt = Sending(fidelity=fidelity).to(owner, lost)
        assert receipt.missing == tuple(sorted(lost))
        if lost:
            assert owner.whole() is None
            receipt = Sending(fidelity=fidelity, attempt=2, only=receipt.missing).to(owner)
        assert receipt.missing == ()
        assert blob_of(owner) == UPDATE


def test_a_concluded_attempt_keeps_its_receipt_whatever_is_heard_of_it_again(tmp_path: Path) -> None:
    owner, sending = expect(tmp_path), Sending()
    first = sending.to(owner, {3})
    assert sending.to(owner) == first == owner.receipt(sending.notice.transmission)
    assert owner.attempts == 1
    assert owner.whole() is None


def test_chunks_in_any_order_and_repeated_give_the_same_receipt_and_the_same_counts(tmp_path: Path) -> None:
    update = random_update((2 * STEP + 5) * DESIGN.payload_bytes)
    flags = [n % 9 == 0 for n in range(2 * STEP + 5)]
    sending, outcomes = Sending(update, coded=flags, fidelity=Fidelity.HYBRID), list[object]()
    chunks = list(sending.heard({1, 9 * (STEP // 9 + 1)}))
    for number, order in enumerate(permutations(chunks)):
        owner = expect(tmp_path / str(number))
        for chunk in (*order, order[0]):
            owner.take(chunk, notice=sending.notice)
        outcomes.append(owner.conclude(sending.notice))
    assert len(outcomes) == 6
    assert all(outcome == outcomes[0] for outcome in outcomes)


def test_what_was_not_heard_of_a_transmission_counts_as_missing(tmp_path: Path) -> None:
    owner, sending = expect(tmp_path), Sending()
    receipt, decoding = owner.conclude(sending.notice)
    assert receipt.missing == tuple(range(COUNT))
    assert (decoding.blocks, decoding.blocks_sound) == (0, 0)


def test_a_block_with_a_wrong_checksum_counts_as_missing(tmp_path: Path) -> None:
    owner, sending = expect(tmp_path), Sending(fidelity=Fidelity.ABSTRACT)
    (chunk,) = sending.heard()
    damaged = chunk.bare.copy()
    damaged[2, 0] ^= 1
    owner.take(replace(chunk, bare=damaged), notice=sending.notice)
    assert owner.conclude(sending.notice)[0].missing == (2,)


def test_too_much_is_refused_before_room_is_made(tmp_path: Path) -> None:
    sending = Sending()
    (chunk,) = sending.heard()
    crowd = replace(sending.notice, update_bytes=BLOCKS_MAX * DESIGN.payload_bytes + 1)
    wide = qpsk_design(codewords=300)
    large = replace(sending.notice, transmission=replace(sending.notice.transmission, design=wide, seed=link_seed(wide)))
    with pytest.raises(LimitExceeded, match="1234 bytes"):
        expect(tmp_path, update_bytes_max=1000).take(chunk, notice=sending.notice)
    with pytest.raises(LimitExceeded, match="blocks"):
        expect(tmp_path).conclude(crowd)
    with pytest.raises(LimitExceeded, match="3072000 bits"):
        expect(tmp_path).conclude(large)
    with pytest.raises(LimitExceeded, match="attempt 4"):
        expect(tmp_path).take(chunk, notice=Sending(attempt=4).notice)
    assert not list(tmp_path.iterdir())


def test_the_update_of_another_client_is_refused(tmp_path: Path) -> None:
    sending = Sending(client="c2")
    with pytest.raises(NotYours):
        sending.to(expect(tmp_path))


def test_a_chunk_that_does_not_belong_is_refused_and_not_kept(tmp_path: Path) -> None:
    sending, owner = Sending(fidelity=Fidelity.ABSTRACT), expect(tmp_path)
    (chunk,) = sending.heard()
    other_design = qpsk_design(codewords=1)
    (other,) = Sending(design=other_design, seed=link_seed(other_design), fidelity=Fidelity.ABSTRACT).heard()
    strangers = {
        "other listener": replace(chunk, listener=Listener.TAP),
        "payload and abstract": replace(chunk, part=Part.KEY),
        "of 1233 bytes": replace(chunk, update_bytes=1233),
        "hybrid, announced": replace(chunk, fidelity=Fidelity.HYBRID),
        "not of a design": other,
    }
    for problem, stranger in strangers.items():
        with pytest.raises(MalformedUpdate, match=problem):
            owner.take(stranger, notice=sending.notice)
    assert owner.conclude(sending.notice)[0].missing == tuple(range(COUNT))


def test_a_later_attempt_with_another_design_seed_or_size_is_refused(tmp_path: Path) -> None:
    owner = expect(tmp_path)
    Sending().to(owner, {1})
    other = qpsk_design(codewords=1)
    for later in (
        Sending(attempt=2, design=other, seed=link_seed(other)),
        Sending(attempt=2, seed=replace(SEED, tag=b"t" * 32)),
        Sending(UPDATE[:-1], attempt=2),
    ):
        with pytest.raises(MalformedUpdate, match="began with"):
            later.to(expect(tmp_path))
        with pytest.raises(MalformedUpdate, match="began with"):
            later.to(owner)
    assert Sending(attempt=2, only=[1]).to(owner).missing == ()


def test_whenever_the_process_is_killed_nothing_acknowledged_is_lost(tmp_path: Path) -> None:
    update = random_update((2 * STEP + 5) * DESIGN.payload_bytes)
    lost = [{0, 7, STEP, 2 * STEP + 4}, {7}, set[int]()]
    answers: list[Receipt] = []
    only: tuple[int, ...] | None = None
    for attempt, gone in enumerate(lost, start=1):
        sending = Sending(update, attempt=attempt, only=only, fidelity=Fidelity.ABSTRACT)
        for heard in range(sending.frame.chunk_count(DESIGN)):  # killed after each chunk: the air repeats them all
            dying = expect(tmp_path)
            for chunk in list(sending.heard(gone))[: heard + 1]:
                dying.take(chunk, notice=sending.notice)
            (tmp_path / "payload.fresh").write_bytes(b"torn")
            reborn = expect(tmp_path)
            assert [reborn.receipt(replace(sending.notice.transmission, key=a.key)) for a in answers] == answers
        answers.append(sending.to(expect(tmp_path), gone))
        only = answers[-1].missing
        assert only == tuple(sorted(gone))
    reborn = expect(tmp_path)
    assert blob_of(reborn) == update
    assert reborn.attempts == 3


def test_a_record_that_is_damaged_is_said_to_be(tmp_path: Path) -> None:
    Sending().to(expect(tmp_path))
    record = tmp_path / "payload.known"
    record.write_bytes(record.read_bytes()[:-1])
    with pytest.raises(ConfigError, match=r"payload\.known.*empty state folder"):
        expect(tmp_path)


def test_what_is_kept_is_readable_by_its_owner_only(tmp_path: Path) -> None:
    Sending().to(expect(tmp_path / "c1"))
    assert {file.stat().st_mode & 0o077 for file in (tmp_path / "c1").iterdir()} == {0}


def test_noise_costs_blocks_and_retransmissions_bring_back_the_very_bytes(tmp_path: Path) -> None:
    design, seeds = qpsk_design(codewords=1), SeedTree(7)
    seed, update = link_seed(design), random_update(40 * design.payload_bytes - 100)
    owner, only, lost = expect(tmp_path, attempts_max=30), None, 0
    for attempt in range(1, 31):
        sending = Sending(update, design=design, seed=seed, attempt=attempt, only=only)
        for chunk in sending.through(5.05, seeds=seeds.child(str(attempt))):
            owner.take(chunk, notice=sending.notice)
        receipt, decoding = owner.conclude(sending.notice)
        assert decoding.blocks_sound == sending.notice.blocks - len(receipt.missing)
        only, lost = receipt.missing, lost + len(receipt.missing)
        if not only:
            break
    assert lost > 3  # about every other block is, at this SNR
    assert blob_of(owner) == update


@pytest.mark.slow
@pytest.mark.parametrize(("fidelity", "blocks"), [(Fidelity.ABSTRACT, 40_000), (Fidelity.BIT_EXACT, 8_000)])
def test_memory_does_not_grow_with_the_update(tmp_path: Path, fidelity: Fidelity, blocks: int) -> None:
    design = qpsk_design(codewords=1)
    seed = link_seed(design)
    Sending(UPDATE, design=design, seed=seed, fidelity=fidelity).to(expect(tmp_path / "warm"))
    update = random_update(blocks * design.payload_bytes)
    sending, owner = Sending(update, design=design, seed=seed, fidelity=fidelity), expect(tmp_path)
    tracemalloc.start()
    try:
        receipt = sending.to(owner)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert receipt.missing == ()
    assert peak < 12 << 20  # of 29 MB of payload, or of 82 MB of soft values, 2.6 MB in each chunk
    assert blob_of(owner) == update


def sealed(secret: bytes) -> bytes:
    key = UpdateKey(run=transmission(b"x", DESIGN).key.run, round_id=1, client=ClientId("c1"), attempt=1)
    recipient = HybridPrivateKey.generate().public
    sealing = envelope.seal(b"adapter", recipient=recipient, key=key, emulator=Digest.of(b"e"), codec="c", secret=secret)
    return envelope.to_bytes(sealing.update)


def test_an_update_sealed_with_a_secret_is_whole_when_its_key_is_there_too(tmp_path: Path) -> None:
    secret, open_seed = bytes(range(32)), link_seed(OPEN)
    payload = sealed(secret)
    owner = expect(tmp_path)
    Sending(payload, design=OPEN, seed=open_seed).to(owner)
    assert owner.whole() is None
    Sending(secret, part=Part.KEY, attempt=2).to(owner)
    whole = owner.whole()
    assert whole is not None
    assert (whole.blob, whole.secret, whole.protection) == (payload, secret, Protection.KEY)
    assert (whole.links[Part.KEY].design, whole.links[Part.PAYLOAD].design) == (DESIGN, OPEN)
    assert expect(tmp_path).whole() == whole
    assert repr(secret)[2:-1] not in repr(whole)


def test_a_key_alone_is_nothing_and_has_one_size(tmp_path: Path) -> None:
    owner = expect(tmp_path)
    with pytest.raises(MalformedUpdate, match="33 bytes"):
        Sending(bytes(33), part=Part.KEY).to(owner)
    assert Sending(bytes(32), part=Part.KEY).to(owner).missing == ()
    assert owner.whole() is None


def test_what_travels_in_the_open_is_never_called_protected_by_the_link(tmp_path: Path) -> None:
    for number, secret in enumerate((b"", bytes(32))):
        owner, open_seed = expect(tmp_path / str(number)), link_seed(OPEN)
        Sending(bytes(32), part=Part.KEY, design=OPEN, seed=open_seed).to(owner)
        Sending(sealed(secret), design=OPEN, seed=open_seed, attempt=2).to(owner)
        whole = owner.whole()
        assert whole is not None
        assert whole.protection is Protection.CRYPTO_ONLY
    Sending().to(owner := expect(tmp_path / "payload"))
    whole = owner.whole()
    assert whole is not None
    assert whole.protection is Protection.PAYLOAD


def hybrid(lost: int, *, snr_db: float, at: Path) -> Receipt:
    """Hear a hybrid transmission of 60 coded blocks, of which ``lost`` fail."""
    sending = Sending(random_update(60 * DESIGN.payload_bytes), coded=[True] * 60, fidelity=Fidelity.HYBRID)
    owner = expect(at)
    for chunk in sending.heard(range(lost), snr_db=snr_db):
        owner.take(chunk, notice=sending.notice)
    return owner.conclude(sending.notice)[0]


@pytest.mark.parametrize(("lost", "snr_db"), [(20, 12.0), (0, 4.0)], ids=["fails too often", "fails too rarely"])
def test_a_sample_that_contradicts_the_tables_is_an_error_and_concludes_nothing(tmp_path: Path, lost: int, snr_db: float) -> None:
    with pytest.raises(AbstractionContradicted, match=rf"{lost} of 60 .* {snr_db:g} dB"):
        hybrid(lost, snr_db=snr_db, at=tmp_path)
    assert not list(tmp_path.glob("*.known"))


@pytest.mark.parametrize(("lost", "snr_db"), [(0, 12.0), (60, 4.0)])
def test_a_sample_that_agrees_with_the_tables_is_answered(tmp_path: Path, lost: int, snr_db: float) -> None:
    assert hybrid(lost, snr_db=snr_db, at=tmp_path).missing == tuple(range(lost))
