"""Are path loss, noise, secrecy rates, outages and the map what the formulas and simulations say?"""

from math import exp, log2

import numpy as np
import pytest

from hushtune_common.errors import ConfigError
from hushtune_common.link.secrecy import (
    any_outage,
    gaussian_secrecy_rate,
    noise_power,
    outage_factor,
    path_gain,
    positive_secrecy_probability,
    second_order_constrained_rate,
    second_order_secrecy_rate,
    secrecy_outage,
    secrecy_outage_known_main,
    snr,
    tap_gain_bound,
)
from hushtune_common.seeding import SeedTree
from hushtune_common.units import Hertz, Metre, PowerRatio, Second, Watt, from_db, to_db
from hushtune_server.air.fading import Geography
from tests.radio import scenario


def test_path_loss_is_128_db_at_a_kilometre_and_falls_by_37_6_db_per_decade() -> None:
    assert to_db(path_gain(Metre(1000.0))) == pytest.approx(-128.1)
    assert to_db(path_gain(Metre(100.0))) == pytest.approx(-128.1 + 37.6)


def test_nobody_is_closer_than_ten_metres() -> None:
    assert path_gain(Metre(0.0)) == path_gain(Metre(10.0))
    with pytest.raises(ValueError, match="distance"):
        path_gain(Metre(float("nan")))


def test_noise_is_minus_174_dbm_per_hertz() -> None:
    assert to_db(noise_power(Hertz(1e6))) == pytest.approx(-174.0 - 30.0 + 60.0)
    assert snr(power=Watt(0.2), gain=PowerRatio(1e-10), bandwidth=Hertz(1e6)) == pytest.approx(0.2e-10 / 10 ** (-14.4))


def test_the_gaussian_secrecy_rate_is_the_difference_of_two_capacities() -> None:
    assert gaussian_secrecy_rate(3.0, 1.0) == pytest.approx(log2(4.0) - log2(2.0))
    assert gaussian_secrecy_rate(1.0, 3.0) == 0.0


def test_a_faded_tap_exceeds_the_design_snr_as_often_as_allowed() -> None:
    gains = SeedTree(4).child("outage").generator().exponential(size=400_000)
    share = float((gains > outage_factor(1e-2)).mean())
    assert share == pytest.approx(1e-2, abs=4 * (1e-2 / 400_000) ** 0.5)
    assert exp(-outage_factor(1e-3)) == pytest.approx(1e-3)


def test_outages_of_independent_blocks_add_up() -> None:
    assert any_outage(0.1, 2) == pytest.approx(1 - 0.9**2)
    assert any_outage(1e-12, 3) == pytest.approx(3e-12)


@pytest.mark.parametrize(
    ("main_db", "tap_db", "rate", "formula"), [(20, 5, 1.0, 0.06884), (15, 0, 1.0, 0.08876), (10, -5, 0.5, 0.08165)]
)
def test_outage_of_two_faded_links_is_the_published_form_and_that_of_a_simulation(
    main_db: float, tap_db: float, rate: float, formula: float
) -> None:
    main, tap = from_db(main_db), from_db(tap_db)
    gains = SeedTree(4).child("both").generator().exponential(size=(2, 400_000))
    capacity = np.log2(1.0 + main * gains[0]) - np.log2(1.0 + tap * gains[1])
    found = secrecy_outage(main, tap, rate=rate)
    assert found == pytest.approx(formula, abs=5e-6)
    assert float((capacity < rate).mean()) == pytest.approx(found, abs=4 * (found / 400_000) ** 0.5)
    assert float((capacity > 0).mean()) == pytest.approx(positive_secrecy_probability(main, tap), abs=4e-3)


@pytest.mark.parametrize("antennas", [1, 3])
def test_outage_with_a_known_main_link_is_that_of_a_simulation(antennas: int) -> None:
    main, tap, rate = from_db(10.0), from_db(-2.0), 1.5
    gain = SeedTree(4).child("tap", str(antennas)).generator().exponential(size=(400_000, antennas)).sum(axis=1)
    share = float((np.log2(1.0 + main) - np.log2(1.0 + tap * gain) < rate).mean())
    found = secrecy_outage_known_main(main, tap, rate=rate, antennas=antennas)
    assert share == pytest.approx(found, abs=4 * (found / 400_000) ** 0.5)
    assert secrecy_outage_known_main(main, tap, rate=log2(1.0 + main) + 0.1) == 1.0


@pytest.mark.parametrize(("tap_db", "capacity", "rate"), [(-10.0, 0.843, 0.799), (-5.0, 0.714, 0.654), (0.0, 0.426, 0.355)])
def test_the_second_order_benchmark_is_the_published_one(tap_db: float, capacity: float, rate: float) -> None:
    for symbols, expected, tolerance in ((5120, rate, 5e-4), (10**13, capacity, 6e-4)):
        found = second_order_constrained_rate(
            "qpsk", snr_main_db=6.0, snr_tap_db=tap_db, symbols=symbols, block_error_rate=1e-3, log2_delta=-40.0
        )
        assert found / 2.0 == pytest.approx(expected, abs=tolerance)  # published per real dimension


def test_the_second_order_benchmark_tends_to_the_difference_of_capacities_from_below() -> None:
    main, tap = from_db(6.0), from_db(-5.0)
    rates = [
        second_order_secrecy_rate(main, tap, symbols=n, block_error_rate=1e-3, log2_delta=-64.0)
        for n in (10, 10**3, 10**5, 10**9)
    ]
    assert rates == sorted(rates)
    assert rates[0] == 0.0
    assert rates[-1] == pytest.approx(gaussian_secrecy_rate(main, tap), abs=1e-3)


def test_the_gaussian_dispersion_is_that_of_simulated_noise() -> None:
    snr_main, symbols = 3.0, 200_000
    rng = SeedTree(4).child("dispersion").generator()
    sent, noise = (rng.standard_normal((symbols, 2)) for _ in range(2))
    heard = np.sqrt(snr_main) * sent * np.sqrt(2.0) / np.linalg.norm(sent, axis=1, keepdims=True) + noise  # shell: equal powers
    density = (np.log2(1 + snr_main) + np.log2(np.e) / 2 * (heard**2 / (1 + snr_main) - noise**2).sum(axis=1)).var()
    left = second_order_secrecy_rate(snr_main, 0.0, symbols=1000, block_error_rate=1e-3, log2_delta=-64.0)
    assert log2(1.0 + snr_main) - left == pytest.approx(3.0902 * (density / 1000) ** 0.5, rel=0.01)


def test_shadowing_has_the_stated_spread_and_the_median_of_the_path_loss() -> None:
    place = Geography(scenario(air={"shadowing_db": 8.0}), SeedTree(1).child("air"))
    level = np.array([to_db(place.gain_main("c1", n)) for n in range(1, 2001)]) - to_db(path_gain(Metre(60.0)))
    assert abs(level.mean()) < 4 * 8.0 / 2000**0.5
    assert level.std() == pytest.approx(8.0, rel=4 / (2 * 2000) ** 0.5)


def test_links_rounds_and_clients_are_shadowed_independently_and_repeatably() -> None:
    place = Geography(scenario(), SeedTree(1).child("air"))
    main = np.array([to_db(place.gain_main("c1", n)) for n in range(1, 1001)])
    tap = np.array([to_db(place.gain_tap("c1", n)) for n in range(1, 1001)])
    assert abs(np.corrcoef(main, tap)[0, 1]) < 4 / 1000**0.5
    again = Geography(scenario(), SeedTree(1).child("air"))
    assert again.gain_tap("c1", 7) == place.gain_tap("c1", 7)
    assert again.gains("c2", 7).main == place.gain_main("c2", 7)


def wandering(coherence_s: float) -> Geography:
    return Geography(scenario(air={"shadowing_db": 8.0, "coherence_s": coherence_s}), SeedTree(1).child("air"))


def test_wandering_shadowing_starts_where_a_still_one_stands() -> None:
    still = Geography(scenario(air={"shadowing_db": 8.0}), SeedTree(1).child("air"))
    assert wandering(10.0).gains("c1", 1) == still.gains("c1", 1)


@pytest.mark.slow
def test_wandering_shadowing_keeps_its_spread_and_resembles_itself_by_1_over_e_after_the_coherence_time() -> None:
    place, path = wandering(1.0), to_db(path_gain(Metre(60.0)))
    level = np.array([to_db(place.gain_main("c1", 1, at=Second(float(s)))) for s in range(2000)]) - path
    # Samples one coherence time apart are a first-order autoregression with coefficient 1 / e: its effective sample size is
    # n (1 - r) / (1 + r) for the mean, n (1 - r^2) / (1 + r^2) for the variance, and the coefficient's error sqrt((1 - r^2) / n).
    r, n = float(np.exp(-1.0)), 2000
    assert abs(level.mean()) < 4 * 8.0 * ((1 + r) / (1 - r) / n) ** 0.5
    assert level.std() == pytest.approx(8.0, rel=4 * ((1 + r**2) / (1 - r**2) / (2 * n)) ** 0.5)
    assert np.corrcoef(level[:-1], level[1:])[0, 1] == pytest.approx(r, abs=4 * ((1 - r**2) / n) ** 0.5)


@pytest.mark.slow
def test_wandering_gains_are_the_same_in_any_order_and_independent_between_links() -> None:
    moments = [Second(float(s)) for s in range(0, 2000, 2)]
    forth = [wandering(1.0).gains("c1", 1, at=s) for s in moments[:50]]
    place = wandering(1.0)
    assert [place.gains("c1", 2, at=s) for s in reversed(moments[:50])] == forth[::-1]
    main, tap = (np.array([to_db(gain("c1", 1, at=s)) for s in moments]) for gain in (place.gain_main, place.gain_tap))
    assert abs(np.corrcoef(main, tap)[0, 1]) < 4 * (1.3 / len(moments)) ** 0.5


@pytest.mark.parametrize("seam", [1, 2, 1_000_000])
def test_shadowing_wanders_as_little_from_one_block_of_steps_to_the_next_as_within_one_however_late_it_is(seam: int) -> None:
    step_s, path = 1.0 / 32, to_db(path_gain(Metre(60.0)))
    moments = [Second((2048 * seam + n + 0.5) * step_s) for n in range(-20, 20)]
    level = np.array([to_db(wandering(1.0).gain_main("c1", 1, at=s)) for s in moments]) - path
    spread = 8.0 * (2.0 * (1.0 - np.exp(-step_s))) ** 0.5
    steps = np.abs(np.diff(level))
    assert steps.min() > 0.0
    assert steps.max() < 5.0 * spread


def test_both_gains_follow_a_client_that_moves() -> None:
    move = {"client": "c1", "after_s": 10.0, "position": {"x_m": 0.0, "y_m": -200.0}}
    place = Geography(scenario(air={"shadowing_db": 0.0, "moves": [move]}), SeedTree(1))
    before, after = (place.gains("c1", 1, at=Second(s)) for s in (9.999, 10.0))
    assert (before.main, before.tap) == pytest.approx((path_gain(Metre(60.0)), path_gain(Metre(390.0))))
    assert (after.main, after.tap) == pytest.approx((path_gain(Metre(200.0)), path_gain(Metre(492.4429)))), "Pythagoras"
    assert place.gains("c2", 1, at=Second(20.0)) == place.gains("c2", 1)


def test_the_latest_of_several_moves_counts_in_whatever_order_they_are_written() -> None:
    moves = [{"client": "c1", "after_s": s, "position": {"x_m": x, "y_m": 0.0}} for s, x in ((20.0, 2.0), (10.0, 1.0))]
    world = scenario(air={"moves": moves})
    assert [world.air.place(world.clients[0], at=s).x_m for s in (0.0, 10.0, 19.0, 25.0)] == [60.0, 1.0, 1.0, 2.0]


def test_without_shadowing_the_true_tap_is_the_margin_below_the_assumed_one() -> None:
    world = scenario(air={"shadowing_db": 0.0}, secrecy={"tap_margin_db": 12.0})
    place = Geography(world, SeedTree(1))
    for client in world.clients:
        assert to_db(tap_gain_bound(world, client)) == pytest.approx(to_db(place.gain_tap(client.id, 1)) + 12.0)


def test_an_unknown_client_is_named() -> None:
    with pytest.raises(ConfigError, match="c9"):
        Geography(scenario(), SeedTree(1)).gain_main("c9", 1)
