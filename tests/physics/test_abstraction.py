"""Do effective SNR, block errors and the draws agree with theory and with what was measured?"""

import itertools
from math import sqrt

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hushtune_common.link.abstraction import (
    NO_FADING,
    Fading,
    block_error_rate,
    effective_snr_db,
    hash_block_error_rate,
    hear,
    required_snr_db,
)
from hushtune_common.link.leakage import information_density
from hushtune_common.link.mcs import CODING_POINTS, CodingPoint
from hushtune_common.messages import Listener
from hushtune_common.seeding import SeedTree
from hushtune_common.units import from_db
from tests.radio import POINTS, frame_of, qpsk_design

points = pytest.mark.parametrize("point", CODING_POINTS, ids=lambda p: p.name)


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
def test_block_errors_fall_with_snr_between_one_and_the_floor_of_the_measurement(point: CodingPoint) -> None:
    rates = block_error_rate(point, np.linspace(-30.0, 40.0, 2001))
    assert (np.diff(rates) <= 1e-12).all()
    assert rates[0] == 1.0
    assert rates[-1] == pytest.approx(1 / 12_000)


@points
@pytest.mark.parametrize("fading", [NO_FADING, Fading(subbands=16)], ids=["none", "rayleigh"])
def test_the_required_snr_is_the_least_that_closes(point: CodingPoint, fading: Fading) -> None:
    least = required_snr_db(point, codewords=4, block_error_max=0.01, fading=fading)
    assert hash_block_error_rate(point, snr_db=least, codewords=4, fading=fading) <= 0.01
    assert hash_block_error_rate(point, snr_db=least - 0.02, codewords=4, fading=fading) > 0.01


def test_what_was_never_measured_is_not_promised() -> None:
    assert required_snr_db(POINTS["qpsk-0.825"], codewords=4, block_error_max=1e-5) == float("inf")


@given(snr_db=st.lists(st.floats(-15.0, 13.0), min_size=1, max_size=16), modulation=st.sampled_from(["qpsk", "qam16"]))
def test_the_effective_snr_lies_between_the_worst_and_the_mean(snr_db: list[float], modulation: str) -> None:
    effective = float(effective_snr_db(modulation, np.array(snr_db)))
    mean = 10 * np.log10(np.mean(10 ** (np.array(snr_db) / 10)))
    assert min(snr_db) - 0.02 <= effective <= mean + 0.02  # information is concave in the SNR; 0.02 dB for the table


def test_equal_coherence_blocks_have_their_own_snr() -> None:
    for snr_db in (-8.1, 0.0, 5.37, 12.2):
        assert float(effective_snr_db("qam16", np.full(16, snr_db))) == pytest.approx(snr_db, abs=1e-6)


@pytest.mark.parametrize(("name", "snr_db", "measured"), [("qpsk-0.825", 11.0, 0.343), ("qam16-0.825", 16.5, 0.414)])
def test_errors_under_fading_are_those_that_a_real_decoder_showed(name: str, snr_db: float, measured: float) -> None:
    rate = hash_block_error_rate(POINTS[name], snr_db=snr_db, codewords=1, fading=Fading(subbands=16))
    assert abs(rate - measured) < 3.0 * sqrt(measured * (1 - measured) / 120)  # 120 channels were drawn there


@pytest.mark.parametrize("snr_db", [4.0, 5.2, 5.4, 9.0])
def test_blocks_are_lost_as_often_as_the_table_says(snr_db: float) -> None:
    made = qpsk_design(codewords=2)
    frame = frame_of(4000 * made.payload_bytes, made)
    seeds = SeedTree(1).child("heard", str(snr_db))
    got = hear(frame, listener=Listener.MAIN, design=made, snr=from_db(snr_db), fading=NO_FADING, seeds=seeds)
    p = hash_block_error_rate(POINTS["qpsk-0.825"], snr_db=snr_db, codewords=2)
    lost = 4000 - int(got.heard.sum())
    assert abs(lost - 4000 * p) <= 4.0 * sqrt(4000 * p * (1 - p)) + 1e-9
    assert got.snr_db == pytest.approx(snr_db, abs=1e-5)


def test_fading_keeps_the_mean_snr_and_loses_as_often_as_the_average() -> None:
    made, fading = qpsk_design(codewords=1), Fading(subbands=16)
    frame = frame_of(5000 * made.payload_bytes, made)
    got = hear(frame, listener=Listener.MAIN, design=made, snr=from_db(11.0), fading=fading, seeds=SeedTree(2))
    p = hash_block_error_rate(POINTS["qpsk-0.825"], snr_db=11.0, codewords=1, fading=fading)
    error = sqrt(p * (1 - p) * (1 / 5000 + 1 / 4096))  # both sides are samples
    assert abs(1.0 - got.heard.mean() - p) < 4.0 * error
    assert np.mean(10 ** (got.snr_db / 10)) == pytest.approx(10**1.1, rel=4.0 / sqrt(5000 * 16))


def test_higher_rates_need_more_snr() -> None:
    needs = [
        required_snr_db(POINTS[n], codewords=4, block_error_max=0.01)
        for n in ("qpsk-0.5", "qpsk-0.825", "qam16-0.5", "qam16-0.825")
    ]
    assert all(a < b for a, b in itertools.pairwise(needs))
