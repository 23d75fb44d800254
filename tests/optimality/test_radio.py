"""Is the table of coding points what the gate's own candidates say, over any band?"""

from dataclasses import replace

import numpy as np
import pytest

from hushtune_common.config import AllocatorConfig, UtilityConfig
from hushtune_common.link import wiretap
from hushtune_common.messages import CurvePoint, Protection, UtilityCurve
from hushtune_common.units import Hertz
from hushtune_server.coordinator.problems.radio import levels_of, radio_of
from hushtune_server.coordinator.problems.secrecy import AllocationProblem
from tests.radio import report, scenario


def problem_of(**secrecy: object) -> AllocationProblem:
    return AllocationProblem.of(scenario(secrecy=secrecy), [report("c1", main_db=-90.0, tap_db=-112.0)])


@pytest.mark.parametrize("bandwidth", [2e4, 1e6, 2e7])
def test_power_design_and_airtime_are_those_of_the_candidates_in_that_band(bandwidth: float) -> None:
    problem = problem_of()
    (asked,) = problem.reports
    radio = radio_of(problem, asked)
    there = {c.point.name: c for c in problem.candidates(asked, Hertz(bandwidth))}
    assert radio.points
    for index, point in enumerate(radio.points):
        found, wanted = radio.at(index, bandwidth=Hertz(bandwidth), share=1.0), there[point.point.name]
        if asked.power_max < wanted.power:
            continue
        assert found.power == pytest.approx(wanted.power, rel=1e-9)
        assert found.design is not None
        assert wanted.design is not None
        assert found.rate == pytest.approx(wanted.rate, rel=1e-3)  # the tap bound is rounded up to 0.01 dB
        blocks = wiretap.block_count(found.design, -(-asked.update_bits // 8))
        assert found.airtime == wiretap.airtime(found.design, blocks=blocks, bandwidth=Hertz(bandwidth))


def test_denser_points_are_faster_and_smaller_shares_take_less_symbols() -> None:
    problem = problem_of()
    radio = radio_of(problem, problem.reports[0])
    assert np.all(np.diff(radio.density_w_per_mhz) > 0.0)
    assert np.all(np.diff(radio.symbols_m, axis=0) < 0.0)
    assert np.all(np.diff(radio.symbols_m, axis=1) > 0.0)
    assert np.all(radio.band_max_mhz * radio.density_w_per_mhz <= problem.reports[0].power_max * (1.0 + 1e-12))


def test_only_the_preferred_protection_that_can_be_met_is_in_the_table() -> None:
    problem = AllocationProblem.of(
        scenario(secrecy={"protections": ["payload", "crypto_only"]}),
        [report("c1", main_db=-90.0, tap_db=-120.0), report("c2", main_db=-90.0, tap_db=-85.0)],
    )
    first, second = (radio_of(problem, r) for r in problem.reports)
    assert {p.protection for p in first.points} == {Protection.PAYLOAD}
    assert {p.protection for p in second.points} == {Protection.CRYPTO_ONLY}


def test_who_has_no_point_is_told_why() -> None:
    problem = AllocationProblem.of(scenario(), [report("c1", main_db=-90.0, tap_db=-91.0)])
    assert "tap bound" in radio_of(problem, problem.reports[0]).refusal


@pytest.mark.parametrize(("least", "count"), [(0.25, 16), (0.1, 2), (0.01, 64)])
def test_levels_reach_from_the_least_share_to_the_whole_in_equal_ratios(least: float, count: int) -> None:
    problem = replace(problem_of(), share_codec=0.0, allocator=AllocatorConfig(share_min=least, levels=count))
    levels = levels_of(problem)
    assert (levels[0], levels[-1], len(levels)) == (least, 1.0, count)
    ratios = np.array(levels[1:]) / np.array(levels[:-1])
    assert ratios == pytest.approx(ratios[0])
    assert ratios[0] > 1.0


def test_a_codec_of_one_size_and_a_single_level_leave_only_the_whole() -> None:
    assert levels_of(replace(problem_of(), share_codec=1.0)) == (1.0,)
    assert levels_of(replace(problem_of(), allocator=AllocatorConfig(levels=1))) == (1.0,)
    assert levels_of(replace(problem_of(), allocator=AllocatorConfig(share_min=1.0))) == (1.0,)


def test_shares_that_a_measured_utility_says_are_worth_nothing_are_not_on_offer() -> None:
    points = (CurvePoint(0.1, -1.0, -1.0, -1.0), CurvePoint(1.0, 0.9, 0.9, 0.9))
    curve = UtilityCurve(offset=1.0, weight=0.1, shape=1.0, share_min=0.05, points=points)  # zero at a share of 0.1
    terms = AllocatorConfig(share_min=0.05, utility=UtilityConfig(kind="measured"))
    levels = levels_of(replace(problem_of(), share_codec=0.0, allocator=terms, curve=curve))
    assert 0.1 < levels[0] < 0.11
    assert all(curve.value(share) > 0.0 for share in levels)
    higher = AllocatorConfig(share_min=0.3, utility=UtilityConfig(kind="measured"))
    assert levels_of(replace(problem_of(), share_codec=0.0, allocator=higher, curve=curve))[0] == 0.3
    assert levels_of(replace(problem_of(), share_codec=0.4, allocator=higher, curve=curve))[0] == 0.4
