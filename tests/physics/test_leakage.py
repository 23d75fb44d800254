"""Is the leakage bound the one that was published and checked, and does the design waste nothing?"""

import itertools
import time
from math import log2

import numpy as np
import pytest

from hushtune_common.errors import SecrecyUnavailable
from hushtune_common.link.leakage import (
    information_density,
    least_random_bits,
    log2_mutual_information,
    total_log2_delta,
    white,
)
from hushtune_common.link.wiretap import design, open_design, snr_tap_limit_db
from hushtune_common.messages import TapModel
from hushtune_common.seeding import SeedTree
from tests.radio import POINTS, qpsk_design

# Reference values computed with a separate program at 40 001 integration nodes.
CUMULANTS = [
    ("qpsk", -5.0, 0.197731546, 0.433445163, (0.021239574, 0.132334126, 0.318488866)),
    ("qam16", 0.0, 0.494870686, 0.813995837, (0.052216700, 0.308508515, 0.714615936)),
]
DESIGNS = [  # point, tap SNR, n I, deviation, least r at 2^-40 / 2^-64 / 2^-128, message bits, payload bytes, rate
    ("qpsk-0.825", -10, 703.9, 43.0, (1064, 1170, 1394), 7272, 905, 1.420),
    ("qpsk-0.825", -7, 1342.8, 56.9, (1804, 1935, 2209), 6512, 810, 1.272),
    ("qpsk-0.825", -5, 2024.8, 66.6, (2556, 2704, 3012), 5744, 714, 1.122),
    ("qpsk-0.825", -3, 2980.2, 75.4, (3572, 3736, 4071), 4712, 585, 0.920),
    ("qpsk-0.825", 0, 4976.1, 82.2, (5611, 5783, 6130), 2664, 329, 0.520),
    ("qpsk-0.825", 2, 6575.6, 78.8, (7178, 7339, 7662), 1104, 134, 0.216),
    ("qpsk-0.825", 3, 7379.6, 74.0, (7942, 8091, 8389), 352, 40, 0.069),
    ("qam16-0.825", -5, 1013.8, 48.3, (1411, 1526, 1769), 6920, 861, 2.703),
    ("qam16-0.825", 0, 2533.7, 64.6, (3046, 3189, 3483), 5256, 653, 2.053),
    ("qam16-0.825", 3, 3945.0, 69.0, (4485, 4634, 4938), 3808, 472, 1.488),
    ("qpsk-0.5", -8, 1792.3, 66.9, (2329, 2481, 2796), 5960, 741, 0.705),
]


@pytest.mark.parametrize(("modulation", "snr_db", "mean", "variance", "cumulants"), CUMULANTS)
def test_cumulants_are_the_reference_values(
    modulation: str, snr_db: float, mean: float, variance: float, cumulants: tuple[float, float, float]
) -> None:
    density = information_density(modulation, snr_db)
    assert density.mean == pytest.approx(mean, abs=1e-8)
    assert density.variance == pytest.approx(variance, abs=1e-8)
    assert [density.cumulant(rho)[0] for rho in (0.1, 0.5, 1.0)] == pytest.approx(cumulants, abs=1e-8)


def test_the_slope_of_a_cumulant_is_its_derivative() -> None:
    density = information_density("qam16", 3.0)
    step = 1e-5
    for rho in (0.05, 0.3, 0.9):
        difference = (density.cumulant(rho + step)[0] - density.cumulant(rho - step)[0]) / (2 * step)
        assert density.cumulant(rho)[1] == pytest.approx(difference, abs=1e-7)


@pytest.mark.parametrize(("name", "snr_db", "total", "deviation", "least", "message", "payload", "rate"), DESIGNS)
def test_designs_are_the_reference_table(
    name: str, snr_db: int, total: float, deviation: float, least: tuple[int, int, int], message: int, payload: int, rate: float
) -> None:
    point = POINTS[name]
    leak = white(point.modulation, snr_db=float(snr_db), dimensions=point.dimensions)
    assert leak.mean_bits == pytest.approx(total, abs=0.06)
    assert (point.dimensions * leak.density.variance) ** 0.5 == pytest.approx(deviation, abs=0.06)
    found = [least_random_bits(leak, log2_delta_max=target, at_most=point.info_bits) for target in (-40.0, -64.0, -128.0)]
    assert tuple(found) == least
    made = design(point, codewords=1, snr_tap_db=float(snr_db), log2_delta=-64.0)
    assert (made.message_bits, made.payload_bytes) == (message, payload)
    assert made.rate == pytest.approx(rate, abs=6e-4)


@pytest.mark.parametrize(
    ("codewords", "least", "rate"), [(1, 2704, 1.122), (2, 4990, 1.163), (4, 9408, 1.191), (8, 18_028, 1.210)]
)
def test_hashing_over_more_codewords_needs_fewer_random_bits_each(codewords: int, least: int, rate: float) -> None:
    leak = white("qpsk", snr_db=-5.0, dimensions=10_240 * codewords)
    found = least_random_bits(leak, log2_delta_max=-64.0, at_most=8448 * codewords)
    made = qpsk_design(codewords=codewords)
    assert found == least
    assert made.random_bits == codewords * 8448 - (codewords * 8448 - least) // 8 * 8
    assert made.rate == pytest.approx(rate, abs=6e-4)


def test_the_least_number_of_random_bits_is_the_least() -> None:
    leak = white("qpsk", snr_db=-5.0, dimensions=10_240)
    assert leak.bound(2704)[0] <= -64.0
    assert leak.bound(2703)[0] > -64.0


@pytest.mark.slow
def test_more_random_bits_leak_less_and_a_better_tap_more() -> None:
    leak = white("qpsk", snr_db=-5.0, dimensions=10_240)
    bounds = [leak.bound(r)[0] for r in range(2100, 4200, 100)]
    assert all(a >= b for a, b in itertools.pairwise(bounds))
    rates = [design(POINTS["qam16-0.825"], codewords=4, snr_tap_db=s, log2_delta=-64.0).rate for s in np.arange(-40.0, 7.0, 1.0)]
    assert all(a >= b for a, b in itertools.pairwise(rates))


def test_the_bound_is_never_worse_than_without_a_tail_nor_better_than_the_normal_approximation() -> None:
    leak = white("qpsk", snr_db=-5.0, dimensions=10_240)
    whole = -1.0 - 0.5 * (3388 - 10_240 * leak.density.cumulant(1.0)[0])
    assert whole == pytest.approx(-64.0, abs=0.5)  # without the tail, 3388 bits are needed
    assert leak.bound(3388)[0] <= whole
    normal = leak.mean_bits + (10_240 * leak.density.variance) ** 0.5 * 9.08  # Qinv(2^-64) = 9.08
    assert 2704 - 90 < normal < 2704


def test_the_information_density_is_that_of_simulated_noise() -> None:
    rng = SeedTree(3).child("noise").generator()
    count, noise = 200_000, 10 ** (5.0 / 10)  # variance at -5 dB
    z = 1.0 + np.sqrt(noise) * rng.standard_normal(count)
    sample = 1.0 - np.log2(1.0 + np.exp(-2.0 * z / noise))
    density = information_density("qpsk", -5.0)
    assert abs(sample.mean() - density.mean) < 4.0 * np.sqrt(density.variance / count)
    assert abs(sample.var() / density.variance - 1.0) < 0.03


def test_leakage_adds_up_over_all_blocks_sent() -> None:
    made = qpsk_design()
    assert total_log2_delta(made, 14_006) == pytest.approx(-64.0 + log2(14_006))
    assert total_log2_delta(made, 0) == float("-inf")
    assert total_log2_delta(made, 2**70) == 0.0


def test_mutual_information_is_bounded_by_the_continuity_of_entropy_and_never_by_more_than_the_message() -> None:
    made = qpsk_design(codewords=1)
    twice = 2.0**-63
    assert log2_mutual_information(made, 1) == pytest.approx(log2(twice * (5744 - log2(twice))))
    assert log2_mutual_information(made, 2**62) == log2(5744) + 62
    assert log2_mutual_information(made, 0) == float("-inf")


@pytest.mark.slow
def test_sixteen_qam_pays_one_bit_for_the_public_acknowledgement() -> None:
    snrs_db = np.arange(-6.0, 4.0, 0.25)  # sizes are whole bytes, so the bit shows where the least number is a multiple of eight
    for name, bits in (("qam16-0.825", 1), ("qpsk-0.825", 0)):
        point = POINTS[name]
        spare: set[int] = set()
        for snr_db in snrs_db:
            leak = white(point.modulation, snr_db=float(snr_db), dimensions=point.dimensions)
            least = least_random_bits(leak, log2_delta_max=-64.0, at_most=8384 - bits)
            if least is not None:
                made = design(point, codewords=1, snr_tap_db=float(snr_db), log2_delta=-64.0)
                spare.add(made.random_bits - least)
        assert min(spare) == bits
        assert max(spare) < 8 + bits


@pytest.mark.parametrize("snr_db", [5.0, 9.0, 40.0, 200.0])
def test_an_impossible_design_is_refused_at_once(snr_db: float) -> None:
    with pytest.raises(SecrecyUnavailable, match="message bits remain"):
        qpsk_design(snr_tap_db=snr_db)


@pytest.mark.slow
def test_the_refusal_names_the_best_tap_that_could_be_withstood() -> None:
    for tap_model, subbands in ((TapModel.FIXED, 0), (TapModel.INTERLEAVED, 16)):
        limit = snr_tap_limit_db(POINTS["qam64-0.825"], codewords=4, log2_delta=-64.0, tap_model=tap_model, subbands=subbands)
        with pytest.raises(SecrecyUnavailable, match=f"at most {limit:.1f} dB"):
            design(
                POINTS["qam64-0.825"],
                codewords=4,
                snr_tap_db=limit + 0.15,
                log2_delta=-64.0,
                tap_model=tap_model,
                subbands=subbands,
            )
        design(POINTS["qam64-0.825"], codewords=4, snr_tap_db=limit, log2_delta=-64.0, tap_model=tap_model, subbands=subbands)


def test_an_open_block_is_all_message_and_claims_nothing() -> None:
    made = open_design(POINTS["qam64-0.825"], codewords=2, subbands=16)
    assert (made.message_bits, made.random_bits, made.log2_delta, made.secret) == (2 * 8448, 0, 0.0, False)
    assert made.rate == 2 * 8448 / (2 * 1704)


def test_a_deaf_tap_leaves_almost_all_bits_to_the_message() -> None:
    made = qpsk_design(snr_tap_db=-400.0)
    assert made.random_bits <= 136  # 2 * 64 bits for the bound, rounded to bytes
    assert made.snr_tap_design_db == -60.0


def test_a_design_costs_less_than_a_tenth_of_a_second() -> None:
    clock = time.process_time
    qpsk_design(snr_tap_db=-4.0)
    start = clock()
    for step in range(5):
        qpsk_design(snr_tap_db=-3.0 + 0.01 * step)
    assert (clock() - start) / 5 < 0.1
