"""Is the gate's choice the best one, and are its numbers right? Checked against our own arithmetic and brute force."""

from math import log10

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hushtune_common.errors import SecrecyUnavailable
from hushtune_common.link.abstraction import block_error_rate, required_snr_db
from hushtune_common.link.mcs import CODING_POINTS
from hushtune_common.link.secrecy import tap_gain_bound
from hushtune_common.link.wiretap import design
from hushtune_common.messages import Assignment, ClientId, ClientReport, GateDecision
from hushtune_common.seeding import SeedTree
from hushtune_common.units import FlopPerSecond, Hertz, Joule, PowerRatio, Watt, to_db
from hushtune_server.air.fading import Geography
from hushtune_server.coordinator.allocators.equal_share import EqualShare
from hushtune_server.coordinator.problems.secrecy import AllocationProblem
from tests.radio import POINTS, report, scenario

NOISE_DB_PER_HZ = -204.0


def assign(*reports: ClientReport, **secrecy: float) -> tuple[Assignment, ...]:
    problem = AllocationProblem.of(scenario(secrecy=dict(secrecy)), reports)
    return EqualShare(clock_share=0.7).allocate(problem, seeds=SeedTree(1)).assignments


def test_band_is_split_over_those_who_are_not_excluded() -> None:
    near, far = report("c1", main_db=-90.0, tap_db=-120.0), report("c2", main_db=-120.0, tap_db=-90.0)
    first, second, excluded = assign(near, report("c3", main_db=-95.0, tap_db=-125.0), far)
    assert first.bandwidth == second.bandwidth == 10e6
    assert excluded.bandwidth == 0.0
    assert first.clock == pytest.approx(1.4e12)


@pytest.mark.parametrize("lead_db", [7.0, 10.0, 15.0, 25.0, 40.0])
@pytest.mark.parametrize("power_max", [2e-6, 5e-6, 2e-5, 0.2])
def test_the_chosen_point_has_the_highest_rate_of_all_that_power_allows(lead_db: float, power_max: float) -> None:
    (found,) = assign(report("c1", main_db=-75.0, tap_db=-75.0 - lead_db, power_max=power_max))
    top_db = 10 * log10(power_max) - 75.0 - NOISE_DB_PER_HZ - 10 * log10(20e6)
    best = 0.0
    for point in CODING_POINTS:
        needed = required_snr_db(point, codewords=4, block_error_max=0.01) + 0.5
        if needed > top_db:
            continue
        try:
            best = max(best, design(point, codewords=4, snr_tap_db=needed - lead_db, log2_delta=-64.0).rate)
        except SecrecyUnavailable:
            continue
    assert found.gate.rate_coded == pytest.approx(best, abs=0.01)  # the tap bound is rounded up to 0.01 dB
    assert (found.gate.decision is GateDecision.GRANTED) == (best > 0.0)


def test_power_is_the_least_that_closes_with_the_margin() -> None:
    (found,) = assign(report("c1", main_db=-90.0, tap_db=-120.0))
    reached = 10 * log10(found.power) - 90.0 - NOISE_DB_PER_HZ - 10 * log10(found.bandwidth)
    point = POINTS["qam16-0.825"]
    assert reached == pytest.approx(required_snr_db(point, codewords=4, block_error_max=0.01) + 0.5, abs=1e-6)
    assert found.gate.snr_main_db == pytest.approx(reached, abs=1e-6)
    assert 1 - (1 - float(block_error_rate(point, np.array(found.gate.snr_main_db)))) ** 4 <= 0.01


def test_the_design_covers_the_assumed_tap_and_the_rate_is_its_own() -> None:
    (found,) = assign(report("c1", main_db=-90.0, tap_db=-105.0))
    assert found.design is not None
    tap_db = 10 * log10(found.power) - 105.0 - NOISE_DB_PER_HZ - 10 * log10(found.bandwidth)
    assert tap_db <= found.design.snr_tap_design_db <= tap_db + 0.0101
    assert found.secrecy_rate_bps == pytest.approx(found.design.message_bits / found.design.symbols * found.bandwidth)
    assert found.gate.rate_gaussian > found.gate.rate_coded


def test_fading_makes_the_gate_assume_a_stronger_tap() -> None:
    asked = report("c1", main_db=-80.0, tap_db=-130.0)
    still = AllocationProblem.of(scenario(), [asked])
    faded = AllocationProblem.of(scenario(air={"fading": "rayleigh_block"}), [asked])
    levels = [p.snr_tap_bound(power=asked.power_max, gain=asked.gain_tap, bandwidth=Hertz(20e6)) for p in (still, faded)]
    assert to_db(levels[1]) - to_db(levels[0]) == pytest.approx(10 * log10(6.907755), abs=1e-4)  # ln 1000
    both = [EqualShare(clock_share=1.0).allocate(p, seeds=SeedTree(1)).assignments[0] for p in (still, faded)]
    assert both[1].gate.rate_coded < both[0].gate.rate_coded


def test_too_little_power_is_deferred_with_what_would_help() -> None:
    (found,) = assign(report("c1", main_db=-100.0, tap_db=-130.0, power_max=1e-5))
    assert found.gate.decision is GateDecision.DEFERRED
    assert found.gate.reason.startswith("qpsk-0.5 needs 2.4 dB, reached -19.0 dB at 10 uW over 20.00 MHz")
    assert "raise power_max_w to 1.38 mW" in found.gate.reason


def test_too_little_lead_over_the_tap_is_deferred_with_what_would_help() -> None:
    (found,) = assign(report("c1", main_db=-90.0, tap_db=-91.0))
    assert found.gate.decision is GateDecision.DEFERRED
    assert "tap bound" in found.gate.reason
    assert "lower secrecy.tap_margin_db" in found.gate.reason


def test_too_few_message_bits_are_deferred_with_their_number() -> None:
    (found,) = assign(report("c1", main_db=-90.0, tap_db=-120.0), message_bits_min=34_000)
    assert found.gate.decision is GateDecision.DEFERRED
    assert "message bits < 34000" in found.gate.reason


def test_an_upload_longer_than_the_round_is_deferred() -> None:
    (found,) = assign(report("c1", main_db=-90.0, tap_db=-120.0, update_bits=10**12))
    assert found.gate.decision is GateDecision.DEFERRED
    assert "more than timing.round_s = 900 s" in found.gate.reason


def test_the_demo_grants_all_three_clients_for_ten_seeds_at_different_rates() -> None:
    for seed in range(1, 11):
        world = scenario(seed=seed)
        place = Geography(world, SeedTree(seed).child("air"))
        reports = [
            ClientReport(
                client=ClientId(c.id),
                round_id=1,
                gain_main=place.gain_main(c.id, 1),
                gain_tap=tap_gain_bound(world, c),
                power_max=Watt(c.power_max_w),
                clock_max=FlopPerSecond(c.clock_max_flops),
                energy_max=Joule(c.energy_max_j),
                sample_count=1,
                update_bits=28_000_000 * 8,
            )
            for c in world.clients
        ]
        found = EqualShare(clock_share=0.7).allocate(AllocationProblem.of(world, reports), seeds=SeedTree(seed)).assignments
        assert [a.gate.decision for a in found] == [GateDecision.GRANTED] * 3, seed
        assert len({round(a.gate.rate_coded, 2) for a in found}) >= 2, seed


extremes = st.sampled_from([1e-60, 1e-30, 1e-12, 1.0, 1e30, 1e60])


@given(
    gain_main=extremes,
    gain_tap=extremes | st.just(0.0),
    power_max=extremes,
    clock_max=extremes,
    bits=st.sampled_from([1, 2**63 - 1]),
)
def test_no_report_of_one_client_keeps_the_others_from_an_allocation(
    gain_main: float, gain_tap: float, power_max: float, clock_max: float, bits: int
) -> None:
    odd = ClientReport(
        client=ClientId("c2"),
        round_id=1,
        gain_main=PowerRatio(gain_main),
        gain_tap=PowerRatio(gain_tap),
        power_max=Watt(power_max),
        clock_max=FlopPerSecond(clock_max),
        energy_max=Joule(1.0),
        sample_count=1,
        update_bits=bits,
    )
    first, _ = assign(report("c1", main_db=-90.0, tap_db=-120.0), odd)
    assert first.gate.decision is GateDecision.GRANTED
