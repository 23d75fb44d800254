"""Do effective SNR, block errors and the draws agree with theory, and with what the link's own decoder does?"""

import itertools
from math import sqrt

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hushtune_common.link import ldpc, modem
from hushtune_common.link.abstraction import (
    CONTRADICTION_P,
    NO_FADING,
    Fading,
    block_error_rate,
    consistent,
    effective_snr_db,
    fading_gains,
    fates,
    hash_block_error_rate,
    required_snr_db,
)
from hushtune_common.link.leakage import information_density
from hushtune_common.link.mcs import CODING_POINTS, CodingPoint, point_named
from hushtune_common.link.noise import NoiseKey
from hushtune_common.link.wiretap import open_design
from hushtune_common.messages import SecrecyDesign
from hushtune_common.seeding import SeedTree
from hushtune_common.units import from_db
from tests.radio import POINTS, qpsk_design

points = pytest.mark.parametrize("point", CODING_POINTS, ids=lambda p: p.name)
SIXTEEN = Fading(subbands=16)


def test_mutual_information_is_the_quadrature_of_the_channel() -> None:
    nodes, weights = np.polynomial.hermite_e.hermegauss(80)
    for snr_db in (-10.0, -3.0, 2.0, 6.0):
        snr = 10 ** (snr_db / 10)
        terms = np.log2(1.0 + np.exp(-2.0 * (snr + sqrt(snr) * nodes)))
        capacity = 1.0 - float(weights @ terms) / sqrt(2 * np.pi)
        assert information_density("qpsk", snr_db).mean == pytest.approx(capacity, abs=2e-5)


@points
def test_measured_block_error_rates_are_kept(point: CodingPoint) -> None:
    for snr_db, rate, blocks in point.bler:
        expected = min(max(rate, 1 / (2 * blocks)), 1 - 1 / (2 * blocks))
        assert float(block_error_rate(point, np.array(snr_db))) == pytest.approx(expected, rel=1e-6)


@points
def test_every_table_ends_with_a_row_without_errors_and_begins_where_hardly_anything_is_decoded(point: CodingPoint) -> None:
    assert point.bler[-1][1] == 0.0
    assert point.bler[-1][2] >= 10_000
    assert point.bler[0][1] > 0.98


@points
def test_block_errors_fall_with_snr_between_one_and_the_floor_of_the_measurement(point: CodingPoint) -> None:
    rates = block_error_rate(point, np.linspace(-30.0, 40.0, 2001))
    assert (np.diff(rates) <= 1e-12).all()
    assert rates[0] == 1.0
    assert rates[-1] == pytest.approx(1 / (2 * point.bler[-1][2]))


@pytest.mark.slow
@points
@pytest.mark.parametrize("fading", [NO_FADING, SIXTEEN], ids=["none", "rayleigh"])
def test_the_required_snr_is_the_least_that_closes(point: CodingPoint, fading: Fading) -> None:
    least = required_snr_db(point, codewords=4, block_error_max=0.01, fading=fading)
    assert hash_block_error_rate(point, snr_db=least, codewords=4, fading=fading) <= 0.01
    assert hash_block_error_rate(point, snr_db=least - 0.02, codewords=4, fading=fading) > 0.01


def test_what_was_never_measured_is_not_promised() -> None:
    assert required_snr_db(POINTS["qpsk-0.825"], codewords=4, block_error_max=1e-6) == float("inf")


@points
def test_the_decoder_ends_its_waterfall_within_two_decibels_of_the_constellations_limit(point: CodingPoint) -> None:
    needed = required_snr_db(point, codewords=1, block_error_max=0.01)
    assert information_density(point.modulation, needed).mean * point.dimensions > point.info_bits
    assert information_density(point.modulation, needed - 2.0).mean * point.dimensions < point.info_bits


@given(snr_db=st.lists(st.floats(-15.0, 13.0), min_size=1, max_size=16), modulation=st.sampled_from(["qpsk", "qam16", "qam64"]))
def test_the_effective_snr_lies_between_the_worst_and_the_mean(snr_db: list[float], modulation: str) -> None:
    effective = float(effective_snr_db(modulation, np.array(snr_db)))
    mean = 10 * np.log10(np.mean(10 ** (np.array(snr_db) / 10)))
    assert min(snr_db) - 0.02 <= effective <= mean + 0.02  # information is concave in the SNR; 0.02 dB for the table


def test_equal_coherence_blocks_have_their_own_snr() -> None:
    for snr_db in (-8.1, 0.0, 5.37, 12.2):
        assert float(effective_snr_db("qam16", np.full(16, snr_db))) == pytest.approx(snr_db, abs=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "snr_db", "published"),
    [
        ("qpsk-0.825", 11.0, 0.343),
        ("qpsk-0.825", 14.6, None),  # strong values beside weak ones: a decoder whose bytes saturate fails here
        ("qam16-0.825", 16.5, 0.414),
        ("qam16-0.667", 15.0, None),
        ("qam64-0.667", 17.1, None),
    ],
)
def test_errors_under_fading_are_those_of_the_real_decoder(name: str, snr_db: float, published: float | None) -> None:
    point, count = point_named(name), 1500
    gains = fading_gains(count, codewords=1, fading=SIXTEEN, seeds=SeedTree(8).child(name, "gains"))
    assert gains is not None
    measured = float(_lost(point, snr_db, count=count, gains=gains).mean())
    heard, _ = fates(
        50_000,
        design=open_design(point, codewords=1, subbands=16),
        snr=from_db(snr_db),
        gains=fading_gains(50_000, codewords=1, fading=SIXTEEN, seeds=SeedTree(8).child(name)),
        seeds=SeedTree(8),
    )
    drawn = 1.0 - float(heard.mean())
    error = sqrt(measured * (1 - measured) / count)
    assert abs(measured - drawn) < 3.5 * error
    assert drawn == pytest.approx(hash_block_error_rate(point, snr_db=snr_db, codewords=1, fading=SIXTEEN), abs=4 * 0.008)
    if published is not None:  # another decoder with 12 iterations and without interleaver; 120 channels of 24 codewords there
        assert abs(drawn - published) < 3.0 * sqrt(published * (1 - published) / 120)


@pytest.mark.slow
@points
def test_errors_in_white_noise_are_those_of_the_real_decoder(point: CodingPoint) -> None:
    snr_db, rate, blocks = next(row for row in point.bler if row[1] < 0.35)
    measured = float(_lost(point, snr_db, count=1000, gains=None).mean())
    assert abs(measured - rate) < 4.0 * sqrt(rate * (1 - rate) * (1 / 1000 + 1 / blocks))


@pytest.mark.parametrize("snr_db", [4.0, 5.15, 5.25, 9.0])
def test_blocks_are_lost_as_often_as_the_table_says(snr_db: float) -> None:
    made = qpsk_design(codewords=2)
    seeds = SeedTree(1).child("heard", str(snr_db))
    heard, seen = fates(4000, design=made, snr=from_db(snr_db), gains=None, seeds=seeds)
    p = hash_block_error_rate(POINTS["qpsk-0.825"], snr_db=snr_db, codewords=2)
    lost = 4000 - int(heard.sum())
    assert abs(lost - 4000 * p) <= 4.0 * sqrt(4000 * p * (1 - p)) + 1e-9
    assert seen == pytest.approx(snr_db, abs=1e-5)
    again, _ = fates(4000, design=made, snr=from_db(snr_db), gains=None, seeds=seeds)
    assert (heard == again).all()


def test_fading_keeps_the_mean_snr_and_loses_as_often_as_the_average() -> None:
    made = open_design(POINTS["qpsk-0.825"], codewords=1, subbands=16)
    gains = fading_gains(5000, codewords=1, fading=SIXTEEN, seeds=SeedTree(2).child("gains"))
    assert gains is not None
    assert gains.shape == (5000, 16)
    heard, seen = fates(5000, design=made, snr=from_db(11.0), gains=gains, seeds=SeedTree(2))
    p = hash_block_error_rate(POINTS["qpsk-0.825"], snr_db=11.0, codewords=1, fading=SIXTEEN)
    error = sqrt(p * (1 - p) * (1 / 5000 + 1 / 4096))  # both sides are samples
    assert abs(1.0 - heard.mean() - p) < 4.0 * error
    assert np.mean(10 ** (seen / 10)) == pytest.approx(10**1.1, rel=4.0 / sqrt(5000 * 16))


def test_a_deeper_fade_never_helps_and_a_dead_channel_is_deaf() -> None:
    made = open_design(POINTS["qam16-0.5"], codewords=2, subbands=4)
    gains = fading_gains(2000, codewords=2, fading=Fading(subbands=4), seeds=SeedTree(3))
    assert gains is not None
    better, _ = fates(2000, design=made, snr=from_db(14.0), gains=gains, seeds=SeedTree(3))
    worse, _ = fates(2000, design=made, snr=from_db(12.0), gains=gains, seeds=SeedTree(3))
    assert 0 < worse.sum() < better.sum()
    assert not (worse & ~better).any()
    dead, seen = fates(2, design=made, snr=from_db(14.0), gains=np.zeros((4, 4), dtype=np.float32), seeds=SeedTree(3))
    assert not dead.any()
    assert np.isfinite(seen).all()
    assert fading_gains(5, codewords=2, fading=NO_FADING, seeds=SeedTree(3)) is None


@pytest.mark.slow
@pytest.mark.parametrize("subbands", [0, 16])
def test_a_sample_drawn_from_the_tables_does_not_contradict_them(subbands: int) -> None:
    made = open_design(POINTS["qam16-0.667"], codewords=4, subbands=subbands)
    for number, offset_db in enumerate((-0.2, 0.0, 0.2, 0.6)):
        seeds = SeedTree(6).child(str(subbands), str(number))
        assert _p_value(made, offset_db=offset_db, error_db=0.0, count=3000, seeds=seeds) > 1e-3


@pytest.mark.parametrize(("subbands", "error_db"), [(0, -0.2), (0, 0.2), (16, -0.6), (16, 0.6)])
def test_a_table_that_is_off_by_a_fraction_of_a_decibel_is_contradicted(subbands: int, error_db: float) -> None:
    made = open_design(POINTS["qam16-0.667"], codewords=4, subbands=subbands)
    assert _p_value(made, offset_db=0.0, error_db=error_db, count=6000, seeds=SeedTree(6)) < CONTRADICTION_P


def test_the_p_value_is_the_binomial_tail_where_all_blocks_are_alike() -> None:
    made, snr_db = open_design(POINTS["qpsk-0.825"], codewords=1), 5.1
    p = float(block_error_rate(POINTS["qpsk-0.825"], np.array(snr_db)))
    log_pmf = np.array([_log_binomial(100, k) + k * np.log(p) + (100 - k) * np.log1p(-p) for k in range(101)])
    for failed in (5, 15, 50, 80):
        tails = np.exp(log_pmf[failed:]).sum(), np.exp(log_pmf[: failed + 1]).sum()
        found = consistent(made, snr_db=np.array(snr_db), failed=failed, of=100, error_db=0.0)
        assert found == pytest.approx(min(1.0, 2.0 * min(tails)), rel=1e-6)


def test_errors_where_none_were_ever_seen_are_suspicious_only_when_there_are_many() -> None:
    made = open_design(POINTS["qpsk-0.825"], codewords=1)
    assert consistent(made, snr_db=np.array(9.0), failed=0, of=10**6) == 1.0
    assert consistent(made, snr_db=np.array(9.0), failed=1, of=1000) > 1e-3
    assert consistent(made, snr_db=np.array(9.0), failed=20, of=1000) < CONTRADICTION_P
    assert consistent(made, snr_db=np.array(0.0), failed=1000, of=1000) == 1.0


@pytest.mark.parametrize(("failed", "of"), [(-1, 3), (4, 3), (0, 0)])
def test_an_impossible_sample_is_refused(failed: int, of: int) -> None:
    with pytest.raises(ValueError, match="cannot have failed"):
        consistent(open_design(POINTS["qpsk-0.5"], codewords=1), snr_db=np.array(3.0), failed=failed, of=of)


def test_higher_rates_need_more_snr() -> None:
    for modulation in ("qpsk", "qam16", "qam64"):
        names = (f"{modulation}-{rate}" for rate in ("0.5", "0.667", "0.825"))
        needs = [required_snr_db(POINTS[name], codewords=4, block_error_max=0.01) for name in names]
        assert all(a < b for a, b in itertools.pairwise(needs))
    rates = [point.info_bits / point.code_bits * point.bits_per_symbol for point in CODING_POINTS]
    assert rates == sorted(rates, reverse=True)


def _p_value(design: SecrecyDesign, *, offset_db: float, error_db: float, count: int, seeds: SeedTree) -> float:
    """Draw blocks some dB from where a tenth is lost, tell them as if they had been heard ``error_db`` better, and test."""
    fading = Fading(subbands=design.subbands)
    level = required_snr_db(POINTS["qam16-0.667"], codewords=4, block_error_max=0.1, fading=fading) + offset_db
    gains = fading_gains(count, codewords=4, fading=fading, seeds=seeds.child("gains"))
    heard, snr_db = fates(count, design=design, snr=from_db(level), gains=gains, seeds=seeds)
    return consistent(design, snr_db=snr_db + np.float32(error_db), failed=int((~heard).sum()), of=count)


def _log_binomial(n: int, k: int) -> float:
    return float(np.log(np.arange(k + 1, n + 1)).sum() - np.log(np.arange(1, n - k + 1)).sum())


def _lost(
    point: CodingPoint, snr_db: float, *, count: int, gains: np.ndarray[tuple[int, ...], np.dtype[np.float32]] | None
) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """Send random codewords through the link's code, modem and decoder; return which came back wrong or unconverged."""
    seeds = SeedTree(8).child(point.name, str(snr_db))
    rng = seeds.generator()
    words = rng.integers(0, 256, size=(count, ldpc.INFO_BYTES), dtype=np.uint8)
    dither = rng.integers(0, 256, size=(4, point.code_bits // 8), dtype=np.uint8)
    coded = ldpc.encode(words, code_bits=point.code_bits)
    path = modem.Path(snr=from_db(snr_db), gains=gains, key=NoiseKey.of(seeds), first=0)
    soft = modem.soft_values(coded, dither=dither, modulation=point.modulation, path=path)
    decoded, used = ldpc.decode(soft, code_bits=point.code_bits, iterations=point.iterations)
    return (decoded != words).any(axis=1) | (used < 0)
