"""Does a receiver's gain keep what rounding to bytes would destroy, and leave alone what needs none?"""

from math import log2

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import norm

from hushtune_common.link import ldpc
from hushtune_common.link.leakage import information_density
from hushtune_common.link.mcs import CODING_POINTS, CodingPoint
from hushtune_common.link.modem import Path, gain_log2, received, soft_values
from hushtune_common.link.noise import NoiseKey
from hushtune_common.seeding import SeedTree
from hushtune_common.units import from_db
from hushtune_server.eavesdropper.bench import Bench
from hushtune_server.eavesdropper.distinguish import trials
from tests.radio import qpsk_design

Floats = NDArray[np.float64]

KEY = NoiseKey.of(SeedTree(11).child("gain"))
LEVELS = {"qpsk": (-1, 1), "qam16": (-3, -1, 1, 3), "qam64": (-7, -5, -3, -1, 1, 3, 5, 7)}
MODULATIONS = tuple(LEVELS)
LOST_MOST = 0.01
snrs = st.floats(-290.0, 290.0).map(lambda level: float(from_db(level)))
modulations = pytest.mark.parametrize("modulation", MODULATIONS)


def gain_at(modulation: str, snr_db: float) -> int:
    return gain_log2(modulation, snr=float(from_db(snr_db)))


def ratios(y: Floats, modulation: str, snr: float) -> list[Floats]:
    """Max-log ratios of the sign and the magnitude bits, by trying every amplitude."""
    levels = np.array(LEVELS[modulation], dtype=np.float64)
    points = levels / np.sqrt(np.mean(levels**2))
    metric = -0.5 * snr * (y[..., None] - points) ** 2
    size = len(levels) // 2
    flags = [levels > 0, np.abs(levels) < size, np.abs(np.abs(levels) - size) < size // 2][: int(log2(len(levels)))]
    return [metric[..., zero].max(-1) - metric[..., ~zero].max(-1) for zero in flags]


def information(cells: NDArray[np.int64], mass: Floats, zero: NDArray[np.bool_]) -> float:
    """Bits that the number of the cell says about one bit; ``mass`` (amplitudes, places) is where what is received lies."""
    numbered = cells - cells.min()
    if_zero, if_one = (np.bincount(numbered, weights=mass[flags].mean(axis=0)) for flags in (zero, ~zero))
    both = 0.5 * (if_zero + if_one)
    off = np.divide(if_zero - both, both, out=np.zeros_like(both), where=both > 0.0)  # that of a one is its opposite
    off = np.clip(off, -1.0 + 1e-15, 1.0 - 1e-15)
    each = 0.5 * ((1.0 + off) * np.log1p(off) + (1.0 - off) * np.log1p(-off))
    return float(both @ each) / np.log(2.0)


def carried(modulation: str, snr_db: float, *, gain: float) -> float:
    """Bits per dimension in soft values, summed over the bits of an amplitude; an infinite gain stands for no rounding."""
    snr, levels = 10 ** (snr_db / 10), np.array(LEVELS[modulation], dtype=np.float64)
    points = levels / np.sqrt(np.mean(levels**2))
    reach = np.abs(points).max() + 9.0 / np.sqrt(snr)
    y = np.linspace(-reach, reach, 40_001)
    mass = np.exp(-0.5 * snr * (y - points[:, None]) ** 2)
    mass /= mass.sum(axis=1, keepdims=True)
    known = ratios(points, modulation, 1.0)
    total = 0.0
    for values, sent in zip(ratios(y, modulation, snr), known, strict=True):
        fine = np.rint(values / np.abs(values).max() * 4e4)
        cells = fine if np.isinf(gain) else np.rint(np.clip(3.0 * gain * values, -127, 127))
        total += information(cells.astype(np.int64), mass, sent > 0)
    return total


def lost(modulation: str, snr_db: float, *, gain: float) -> float:
    """Share of the information in soft values that rounding destroys."""
    return 1.0 - carried(modulation, snr_db, gain=gain) / carried(modulation, snr_db, gain=np.inf)


@modulations
@given(first=snrs, second=snrs)
def test_gain_never_rises_with_the_snr_and_doubles_when_the_snr_falls_to_a_quarter(
    modulation: str, first: float, second: float
) -> None:
    low, high = (gain_log2(modulation, snr=snr) for snr in sorted((first, second)))
    assert 0 <= high <= low <= 63
    assert gain_log2(modulation, snr=first / 4.0) == gain_log2(modulation, snr=first) + 1 or gain_log2(modulation, snr=first) == 0


@pytest.mark.parametrize("point", CODING_POINTS, ids=lambda point: point.name)
def test_gain_is_one_from_4_db_below_where_the_first_codeword_is_decoded(point: CodingPoint) -> None:
    assert gain_at(point.modulation, point.bler[0][0] - 4.0) == 0


@modulations
@pytest.mark.parametrize("snr_db", [-300.0, -40.0, -20.0, -10.0])
def test_there_is_gain_where_signals_are_weak(modulation: str, snr_db: float) -> None:
    assert gain_at(modulation, snr_db) > 0


@pytest.mark.parametrize(("modulation", "snr"), [("8psk", 1.0), ("qpsk", 0.0), ("qpsk", float("nan")), ("qpsk", 1e31)])
def test_gain_for_no_modulation_or_no_snr_is_refused(modulation: str, snr: float) -> None:
    with pytest.raises(ValueError, match=r"modulation|SNR"):
        gain_log2(modulation, snr=snr)


def exact_qpsk(snr_db: float, *, gain: float) -> float:
    """The same for QPSK in closed form: a value of k steps stands for what lies between k - 1/2 and k + 1/2 of them."""
    snr = 10 ** (snr_db / 10)
    edges = np.concatenate([[-np.inf], np.arange(-126.5, 127.0), [np.inf]]) / (6.0 * gain * snr)
    if_zero = np.diff(norm.cdf((edges - 1.0) * np.sqrt(snr)))
    both = 0.5 * (if_zero + if_zero[::-1])
    seen = if_zero > 0.0
    return float(if_zero[seen] @ np.log2(if_zero[seen] / both[seen]))


@pytest.mark.parametrize("snr_db", [-20.0, -8.0, -3.0, 4.0])
def test_the_measure_agrees_with_closed_forms_and_with_the_capacity_of_the_leakage_bound(snr_db: float) -> None:
    assert carried("qpsk", snr_db, gain=np.inf) == pytest.approx(information_density("qpsk", snr_db).mean, rel=1e-4)
    for gain in (1.0, 2.0, 8.0):
        assert carried("qpsk", snr_db, gain=gain) == pytest.approx(exact_qpsk(snr_db, gain=gain), rel=5e-3)


@pytest.mark.slow
@modulations
def test_with_gain_rounding_destroys_less_than_one_percent_of_the_information_from_minus_40_db_up(modulation: str) -> None:
    for snr_db in np.arange(-40.0, 12.0, 0.75):
        assert lost(modulation, snr_db, gain=2.0 ** gain_at(modulation, snr_db)) < LOST_MOST


@modulations
def test_without_gain_it_would_destroy_most_of_it_where_the_tap_is_weak(modulation: str) -> None:
    assert lost(modulation, -26.7, gain=1.0) > 0.6
    assert lost(modulation, -32.0, gain=1.0) > 0.97


def correlation(modulation: str, snr_db: float, *, gains: NDArray[np.float32] | None = None) -> float:
    """Squared correlation of soft values and unrounded ratios of sign bits: at low SNR the share of information that is left."""
    rng = np.random.default_rng(3)
    bits = len(LEVELS[modulation]).bit_length() - 1
    coded, dims = rng.integers(0, 256, size=(40, 1200), dtype=np.uint8), 9600 // bits
    dither = np.zeros((1, 1200), dtype=np.uint8)
    path = Path(snr=float(from_db(snr_db)), gains=gains, key=KEY, first=0)
    soft = soft_values(coded, dither=dither, modulation=modulation, path=path)[:, :dims]
    z = received(coded, dither=dither, modulation=modulation, path=path).astype(np.complex128)
    h = np.ones((40, 1)) if gains is None else np.sqrt(np.resize(np.tile(gains, 9600), z.shape).astype(np.float64))
    y = np.concatenate([z.real, z.imag], axis=1) / np.tile(h, 2 if h.shape[1] > 1 else 1)
    wanted = ratios(y, modulation, path.snr)[0] * np.tile(h**2, 2 if h.shape[1] > 1 else 1)
    return float(np.corrcoef(soft.ravel(), wanted.ravel())[0, 1] ** 2)


@modulations
@pytest.mark.parametrize("snr_db", [-40.0, -33.3, -26.7, -20.0, -12.5, -7.0])
def test_what_the_modem_hands_over_is_the_unrounded_ratio_but_for_one_percent(modulation: str, snr_db: float) -> None:
    assert correlation(modulation, snr_db) > 1.0 - LOST_MOST


@pytest.mark.parametrize("snr_db", [-40.0, -26.7, -13.0])
def test_fading_around_a_weak_mean_costs_no_more(snr_db: float) -> None:
    gains = np.random.default_rng(5).exponential(size=(1, 16)).astype(np.float32)
    assert correlation("qpsk", snr_db, gains=np.tile(gains, (40, 1))) > 1.0 - LOST_MOST


@modulations
@pytest.mark.parametrize("edge_db", [0.0, -1e-4, -6.1, -30.0])
def test_soft_values_are_ratios_times_three_times_the_gain_on_either_side_of_where_it_begins(
    modulation: str, edge_db: float
) -> None:
    rng, snr = np.random.default_rng(4), {"qpsk": 0.25, "qam16": 1.0, "qam64": 2.0}[modulation] * float(from_db(edge_db))
    coded, none = rng.integers(0, 256, size=(6, 120), dtype=np.uint8), np.zeros((1, 120), dtype=np.uint8)
    path = Path(snr=snr, gains=None, key=KEY, first=0)
    z = received(coded, dither=none, modulation=modulation, path=path).astype(np.complex128)
    wanted = np.concatenate(ratios(np.concatenate([z.real, z.imag], axis=1), modulation, snr), axis=1)
    gain = {0.0: 1, -1e-4: 2, -6.1: 4, -30.0: 32}[edge_db]
    assert gain == 2 ** gain_log2(modulation, snr=snr)
    steps = np.clip(3.0 * gain * wanted, -127, 127)
    assert np.abs(soft_values(coded, dither=none, modulation=modulation, path=path) - steps).max() <= 0.5 + 1e-3


@pytest.mark.slow
def test_far_below_its_threshold_a_decoder_has_something_to_guess_from() -> None:
    words = np.random.default_rng(6).integers(0, 256, size=(4, ldpc.INFO_BYTES), dtype=np.uint8)
    coded = ldpc.encode(words, code_bits=16_896)
    path = Path(snr=from_db(-26.7), gains=None, key=KEY, first=0)
    soft = soft_values(coded, dither=np.zeros_like(coded), modulation="qpsk", path=path)
    assert (soft == 0).mean() < 0.15
    decoded, used = ldpc.decode(soft, code_bits=16_896, iterations=4)
    assert (used < 0).all()
    assert (decoded == 0).mean() < 0.02


@pytest.mark.slow
@pytest.mark.parametrize("snr_db", [-26.7, -32.0])
def test_the_weak_tap_tells_messages_without_a_hash_apart_as_often_as_theory_says_of_unrounded_values(snr_db: float) -> None:
    train, test, runs = 200, 400, 4
    plans = [
        trials(qpsk_design(codewords=1), snr_db=snr_db, seeds=SeedTree(s), train=train, test=test, methods=("linear",))[0]
        for s in range(runs)
    ]
    right = sum(plan.run().right for plan in plans)
    bench = Bench(plans[0].subject, seeds=SeedTree(9), threads=1)
    labels, coded = bench.sent(64)
    bits = np.unpackbits(coded.reshape(64, -1), axis=1).astype(np.float64)
    apart = np.abs(bits[labels].mean(axis=0) - bits[~labels].mean(axis=0)) == 1.0  # the others are random with either message
    # With means learnt from n blocks the discriminant is the true one plus noise of variance 4 / n in every dimension.
    distance = 4.0 * float(from_db(snr_db)) * apart.sum()
    expected = norm.cdf(0.5 * distance / np.sqrt(distance + 4.0 * bits.shape[1] / train))
    # Blocks that are judged after the same training share its luck, hence more than the deviation of coins alone.
    assert abs(right / (runs * test) - expected) < 6.0 * np.sqrt(expected * (1.0 - expected) / (runs * test))
