"""Does telling messages apart work where it must, and does it stay within what theory allows?"""

import zlib
from dataclasses import replace

import numpy as np
import pytest

from hushtune_common.link import ldpc
from hushtune_common.link.leakage import white
from hushtune_common.link.wiretap import design, open_design
from hushtune_common.messages import SecrecyDesign
from hushtune_common.seeding import SeedTree
from hushtune_server.eavesdropper.bench import Bench, Subject
from hushtune_server.eavesdropper.distinguish import CONTROL_ACCURACY_LEAST, DistinguishResult, distinguish, trials, valid
from tests.radio import POINTS, link_seed, qpsk_design

SEEDS = SeedTree(4).child("distinguish")
SMALL = qpsk_design(codewords=1)


def weak(secrecy: SecrecyDesign) -> SecrecyDesign:
    """The same code with 8 random bits."""
    return replace(secrecy, message_bits=secrecy.codewords * 8448 - 8, random_bits=8, log2_delta=-1e-9)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("point", "codewords", "snr_db"),
    [("qpsk-0.825", 1, -5.0), ("qpsk-0.825", 4, -5.0), ("qam16-0.825", 2, 0.0), ("qam64-0.5", 1, 0.0)],
)
def test_controls_are_told_apart_and_designed_blocks_are_not(point: str, codewords: int, snr_db: float) -> None:
    secrecy = design(POINTS[point], codewords=codewords, snr_tap_db=snr_db, log2_delta=-64.0)
    results = distinguish(secrecy, snr_db=snr_db, seeds=SEEDS, train=1000, test=500)
    assert [r.name for r in results] == ["no hash, linear", "the design, linear", "hash with 8 random bits, likelihood"]
    controls = [r for r in results if r.control]
    (subject,) = [r for r in results if not r.control]
    assert valid(results)
    assert all(r.accuracy >= CONTROL_ACCURACY_LEAST for r in controls)
    assert abs(subject.accuracy - 0.5) < 4.0 * np.sqrt(0.25 / subject.trials)
    assert (subject.verdict, subject.random_bits) == ("not told apart", secrecy.random_bits)


@pytest.mark.slow
def test_the_network_tells_apart_what_has_no_hash_and_not_what_was_designed() -> None:
    control, subject = distinguish(SMALL, snr_db=-5.0, seeds=SEEDS, train=900, test=500, methods=("mlp",))
    assert (control.name, control.told_apart) == ("no hash, mlp", True)
    assert abs(subject.accuracy - 0.5) < 4.0 * np.sqrt(0.25 / 500)


def test_with_many_blocks_the_network_has_to_break_the_weak_hash_too() -> None:
    planned = trials(SMALL, snr_db=-5.0, seeds=SEEDS, train=10_000, test=1, methods=("mlp",))
    assert [t.name for t in planned if t.control] == ["no hash, mlp", "hash with 8 random bits, mlp"]


def test_the_candidates_of_a_weak_hash_are_those_of_its_definition() -> None:
    seed = link_seed(weak(SMALL))
    subject = Subject(design=weak(SMALL), hashed=True, toeplitz=seed.toeplitz, dither=seed.dither, snr_db=0.0)
    labels, rows = Bench(subject, seeds=SEEDS, threads=1).candidates()
    bits = np.unpackbits(np.frombuffer(seed.toeplitz, np.uint8))  # most significant first
    matrix = np.array([bits[i : i + 8][::-1] for i in range(8440)])  # T[i, j] = s[i - j + 7]
    for label, byte in ((False, b"\x00"), (True, b"\xff")):
        payload = byte * (8440 // 8 - 4)
        message = np.unpackbits(np.frombuffer(payload + zlib.crc32(payload).to_bytes(4, "big"), np.uint8), bitorder="little")
        fresh = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little")
        words = np.concatenate((message ^ (fresh @ matrix.T & 1), fresh), axis=1)
        expected = ldpc.encode(np.packbits(words, axis=1, bitorder="little"), code_bits=10_240)
        assert {r.tobytes() for r in rows[labels == label]} == {r.tobytes() for r in expected}


@pytest.mark.slow
@pytest.mark.parametrize("snr_db", [-36.0, -33.0, -30.0])
def test_not_even_the_best_test_beats_the_leakage_bound(snr_db: float) -> None:
    results = distinguish(weak(SMALL), snr_db=snr_db, seeds=SEEDS, train=4, test=1500, methods=("likelihood",))
    accuracy = results[0].accuracy
    bound = 2.0 ** white("qpsk", snr_db=snr_db, dimensions=10_240).bound(8)[0]
    error = np.sqrt(0.25 / 1500)
    assert 0.5 + 2.0 * error < accuracy < 0.5 + min(bound, 0.5) + 3.0 * error


def test_a_tap_that_hears_nothing_fails_its_controls_and_the_run_is_void() -> None:
    results = distinguish(SMALL, snr_db=-60.0, seeds=SEEDS, train=100, test=100, methods=("linear",))
    assert not valid(results)
    assert [r.verdict for r in results] == ["CONTROL FAILED", "not told apart"]


def test_equal_seeds_give_equal_results_and_the_public_seed_matters() -> None:
    def accuracy(seeds: SeedTree, public: tuple[bytes, bytes] | None = None) -> list[float]:
        found = distinguish(SMALL, snr_db=-24.0, seeds=seeds, train=60, test=200, methods=("linear",), public=public)
        return [r.accuracy for r in found]

    seed = link_seed(SMALL)
    assert accuracy(SEEDS) == accuracy(SEEDS)
    assert accuracy(SEEDS) != accuracy(SEEDS, (seed.toeplitz, seed.dither))


def test_guessing_right_often_enough_counts_as_telling_apart() -> None:
    def result(right: int, *, control: bool = False) -> DistinguishResult:
        return DistinguishResult(
            name="x",
            method="linear",
            control=control,
            snr_db=0.0,
            codewords=1,
            random_bits=8,
            hashed=True,
            right=right,
            trials=20,
        )

    assert result(20).p_value == pytest.approx(2.0**-20)
    assert result(0).p_value == 1.0
    assert (result(19).told_apart, result(16).told_apart) == (True, False)  # 21 / 2^20 and 0.6 %
    assert not result(19, control=True).told_apart  # 0.95 is not 0.98
    assert not valid([result(20)])  # no control


def test_what_cannot_be_tried_is_refused() -> None:
    with pytest.raises(ValueError, match="open block"):
        distinguish(open_design(POINTS["qpsk-0.825"], codewords=1), snr_db=0.0, seeds=SEEDS, train=10, test=10)
    with pytest.raises(ValueError, match="fewer blocks"):
        distinguish(SMALL, snr_db=0.0, seeds=SEEDS, train=10**6, test=10, methods=("mlp",))
    with pytest.raises(ValueError, match="at least 4 blocks"):
        distinguish(SMALL, snr_db=0.0, seeds=SEEDS, train=2, test=10)
