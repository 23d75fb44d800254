"""Is the gate's choice the best one, and are its numbers right? Checked against our own arithmetic and brute force."""

from dataclasses import replace
from itertools import permutations
from math import ceil, log10
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hushtune_common.errors import SecrecyUnavailable
from hushtune_common.link.abstraction import block_error_rate, required_snr_db
from hushtune_common.link.mcs import CODING_POINTS, point_of
from hushtune_common.link.secrecy import tap_gain_bound
from hushtune_common.link.wiretap import design, snr_tap_limit_db
from hushtune_common.messages import (
    Assignment,
    ClientId,
    ClientReport,
    GateDecision,
    Protection,
    SecrecyDesign,
    TapModel,
)
from hushtune_common.seeding import SeedTree
from hushtune_common.units import FlopPerSecond, Hertz, Joule, PowerRatio, Second, Watt, to_db
from hushtune_server.air.fading import Geography
from hushtune_server.coordinator.allocators.equal_share import EqualShare
from hushtune_server.coordinator.problems.secrecy import AllocationProblem
from tests.radio import POINTS, report, scenario

NOISE_DB_PER_HZ = -204.0
NEAR = report("c1", main_db=-90.0, tap_db=-105.0)
"""Much closer to the owner than to the tap: 80 Mbit take about a second over the wiretap code and less without."""
EXPOSED = report("c1", main_db=-100.0, tap_db=-90.0)
"""The tap hears it 10 dB better than the owner does."""
ALL = ("payload", "key", "crypto_only")


def assign(*reports: ClientReport, **secrecy: Any) -> tuple[Assignment, ...]:
    return solved(AllocationProblem.of(scenario(secrecy=secrecy), reports))


def solved(problem: AllocationProblem) -> tuple[Assignment, ...]:
    return EqualShare(clock_share=0.7).allocate(problem, seeds=SeedTree(1)).assignments


def hurried(*, round_s: float, protections: tuple[str, ...] = ALL) -> Assignment:
    """What the near client gets when the round is short."""
    problem = AllocationProblem.of(scenario(secrecy={"protections": protections}), [NEAR])
    (found,) = solved(replace(problem, round_s=Second(round_s)))
    return found


def airtime_s(made: SecrecyDesign, update_bytes: int, *, bandwidth_hz: float) -> float:
    blocks = ceil(update_bytes / (made.message_bits // 8 - 4))
    return blocks * made.codewords * made.code_bits / {"qpsk": 2, "qam16": 4, "qam64": 6}[made.modulation] / bandwidth_hz


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
    assert found.design is not None
    point = point_of(found.design)
    assert reached == pytest.approx(required_snr_db(point, codewords=4, block_error_max=0.01) + 0.5, abs=1e-6)
    assert found.gate.snr_main_db == pytest.approx(reached, abs=1e-6)
    assert 1 - (1 - float(block_error_rate(point, np.array(found.gate.snr_main_db)))) ** 4 <= 0.01


def test_the_design_covers_the_assumed_tap_and_the_rate_is_its_own() -> None:
    (found,) = assign(report("c1", main_db=-90.0, tap_db=-105.0))
    assert found.design is not None
    tap_db = 10 * log10(found.power) - 105.0 - NOISE_DB_PER_HZ - 10 * log10(found.bandwidth)
    assert tap_db - 1e-9 <= found.design.snr_tap_design_db <= tap_db + 0.0101
    assert found.secrecy_rate_bps == pytest.approx(found.design.message_bits / found.design.symbols * found.bandwidth)
    assert found.gate.rate_gaussian > found.gate.rate_coded


@pytest.mark.slow
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
    needed_db = required_snr_db(POINTS["qpsk-0.5"], codewords=4, block_error_max=0.01) + 0.5
    needed_mw = 1e3 * 10 ** ((needed_db + 100.0 + NOISE_DB_PER_HZ) / 10) * 20e6
    reason = found.gate.reason
    assert reason.startswith(f"qpsk-0.5 needs {needed_db:.1f} dB, reached -19.0 dB at 10 uW over 20.00 MHz")
    assert f"raise power_max_w to {needed_mw:.3g} mW" in reason
    assert f"at most {20.0 * 1e-2 / needed_mw:.2f} MHz" in reason


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


# -- protections -------------------------------------------------------------------------------------------------------


def test_where_the_update_itself_can_be_hidden_it_is() -> None:
    (found,) = assign(NEAR, protections=ALL)
    assert (found.protection, found.carrier) == (Protection.PAYLOAD, None)
    assert found == assign(NEAR)[0]
    assert found.gate.reason.endswith("s on air")  # nothing better was refused


def test_an_update_that_would_take_too_long_secretly_travels_open_under_a_key_that_does_not() -> None:
    slow = hurried(round_s=900.0)
    assert slow.design is not None
    limit = airtime_s(slow.design, 10_000_000, bandwidth_hz=20e6) * 0.999
    assert hurried(round_s=limit, protections=("payload",)).gate.decision is GateDecision.DEFERRED
    found = hurried(round_s=limit)
    assert found.protection is Protection.KEY
    assert found.design is not None
    assert found.carrier is not None
    both = airtime_s(found.carrier, 10_000_000, bandwidth_hz=20e6) + airtime_s(found.design, 32, bandwidth_hz=20e6)
    assert both <= limit
    decisions = [hurried(round_s=both * share, protections=("key",)).gate.decision for share in (1.0 + 1e-9, 1.0 - 1e-9)]
    assert decisions == [GateDecision.GRANTED, GateDecision.DEFERRED]
    assert f"{both:.1f} s on air (the update itself over the wiretap code: " in found.gate.reason
    assert f"more than timing.round_s = {limit:g} s" in found.gate.reason
    assert found.secrecy_rate_bps == pytest.approx(found.design.message_bits / found.design.symbols * 20e6)


def test_a_round_too_short_even_for_an_open_update_is_deferred() -> None:
    quick = hurried(round_s=900.0, protections=("crypto_only",))
    assert quick.carrier is not None
    limit = airtime_s(quick.carrier, 10_000_000, bandwidth_hz=20e6)
    assert hurried(round_s=limit * 1.001, protections=("crypto_only",)).protection is Protection.CRYPTO_ONLY
    assert hurried(round_s=limit * 0.999).gate.decision is GateDecision.DEFERRED


def test_too_few_message_bits_for_an_update_are_enough_for_its_key() -> None:
    (found,) = assign(NEAR, protections=ALL, message_bits_min=34_000)
    assert found.protection is Protection.KEY
    assert "the update itself over the wiretap code: tap bound" in found.gate.reason
    assert "message bits < 34000" in found.gate.reason
    assert "bits carry the update's key" in found.gate.reason


def test_a_key_needs_room_for_itself_and_its_checksum() -> None:
    point, own = POINTS["qpsk-0.5"], {"codewords": 1, "message_bits_min": 64}
    limit_db = snr_tap_limit_db(point, codewords=1, log2_delta=-64.0)
    lead_db = required_snr_db(point, codewords=1, block_error_max=0.01) + 0.5 - limit_db
    tight = report("c1", main_db=-90.0, tap_db=-90.0 - lead_db - 0.02, update_bits=8_000)
    problem = AllocationProblem.of(scenario(secrecy={**own, "protections": ALL}), [tight])
    few = {c.protection: c for c in problem.candidates(tight, Hertz(20e6)) if c.point is point}
    assert few[Protection.PAYLOAD].problem == ""
    made = few[Protection.KEY].design
    assert made is not None
    assert 64 <= made.message_bits < 8 * (32 + 4)
    assert f"{made.message_bits} message bits < 288" in few[Protection.KEY].problem


@pytest.mark.parametrize("tap_db", [-100.0, -90.0])
def test_where_the_tap_hears_at_least_as_well_encryption_alone_is_said_to_be_alone(tap_db: float) -> None:
    exposed = replace(EXPOSED, gain_tap=PowerRatio(10 ** (tap_db / 10)))
    (found,) = assign(exposed, protections=ALL)
    assert (found.protection, found.design) == (Protection.CRYPTO_ONLY, None)
    assert found.carrier is not None
    assert not found.carrier.secret
    assert "encryption alone protects the update, the physical layer contributes nothing" in found.gate.reason
    assert "(the update itself over the wiretap code: tap bound" in found.gate.reason
    assert (found.gate.rate_coded, found.secrecy_rate_bps) == (0.0, 0.0)
    (refused,) = assign(exposed, protections=("payload", "key"))
    assert refused.gate.decision is GateDecision.EXCLUDED
    assert "no power or bandwidth helps" in refused.gate.reason


def test_only_who_can_be_helped_shares_the_band() -> None:
    other = report("c2", main_db=-90.0, tap_db=-120.0)
    assert [a.bandwidth for a in assign(EXPOSED, other)] == [0.0, 20e6]
    assert [a.bandwidth for a in assign(EXPOSED, other, protections=("payload", "crypto_only"))] == [10e6, 10e6]


@pytest.mark.parametrize("order", list(permutations(ALL)))
def test_the_first_protection_that_can_be_met_is_taken(order: tuple[str, ...]) -> None:
    assert assign(NEAR, protections=order)[0].protection == order[0]
    assert assign(EXPOSED, protections=order)[0].protection == Protection.CRYPTO_ONLY


@pytest.mark.parametrize(
    ("order", "said"),
    [
        (("key", "payload"), ""),
        (("crypto_only", "payload"), ""),
        (("key", "crypto_only"), "its key over the wiretap code: tap bound"),
    ],
)
def test_a_gate_says_what_stands_against_what_the_scenario_prefers_and_nothing_else(order: tuple[str, ...], said: str) -> None:
    asked = EXPOSED if said else NEAR
    (found,) = assign(asked, protections=order)
    assert found.gate.decision is GateDecision.GRANTED
    assert (said in found.gate.reason) if said else ("over the wiretap code:" not in found.gate.reason)


def test_an_open_carrier_goes_as_fast_as_the_owner_can_hear() -> None:
    for power_max in (2e-4, 1e-3, 0.2):
        (found,) = assign(report("c1", main_db=-90.0, tap_db=-60.0, power_max=power_max), protections=("crypto_only",))
        top_db = 10 * log10(power_max) - 90.0 - NOISE_DB_PER_HZ - 10 * log10(20e6)
        closing = [p for p in CODING_POINTS if required_snr_db(p, codewords=4, block_error_max=0.01) + 0.5 <= top_db]
        best = max(p.info_bits / p.code_bits * p.bits_per_symbol for p in closing)
        assert found.carrier is not None
        assert found.carrier.rate == pytest.approx(best)


# -- fading ------------------------------------------------------------------------------------------------------------


def faded(
    fading_design: str, *, fading: str = "rayleigh_block", protections: tuple[str, ...] = ("payload",)
) -> AllocationProblem:
    secrecy = {"fading_design": fading_design, "protections": protections}
    return AllocationProblem.of(
        scenario(air={"fading": fading, "subbands": 16}, secrecy=secrecy), [report("c1", main_db=-80.0, tap_db=-112.0)]
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fading_design", "model", "raised_db"),
    [("interleaved", TapModel.INTERLEAVED, 0.0), ("outage", TapModel.OUTAGE, 10 * log10(6.907755))],
)
def test_a_design_for_a_fading_tap_is_the_one_that_is_asked_for(fading_design: str, model: TapModel, raised_db: float) -> None:
    (found,) = solved(faded(fading_design))
    assert found.design is not None
    assert (found.design.tap_model, found.design.subbands) == (model, 16)
    mean_db = 10 * log10(found.power) - 112.0 - NOISE_DB_PER_HZ - 10 * log10(20e6)
    assert -1e-9 <= found.design.snr_tap_design_db - (mean_db + raised_db) <= 0.0101
    assert found.gate.snr_tap_bound_db == found.design.snr_tap_design_db
    anew = design(
        point_of(found.design),
        codewords=4,
        snr_tap_db=found.design.snr_tap_design_db,
        log2_delta=-64.0,
        tap_model=model,
        subbands=16,
    )
    assert found.design == anew


@pytest.mark.slow
def test_averaging_over_the_fading_costs_less_than_bounding_its_peaks() -> None:
    (mean,), (peaks,) = solved(faded("interleaved")), solved(faded("outage"))
    assert mean.gate.rate_coded > 1.1 * peaks.gate.rate_coded > 0.0


def test_without_fading_there_is_nothing_to_average_over() -> None:
    (found,) = solved(faded("interleaved", fading="none"))
    assert found.design is not None
    assert (found.design.tap_model, found.design.subbands) == (TapModel.FIXED, 0)


@pytest.mark.slow
def test_a_key_is_designed_for_the_fading_tap_and_its_carrier_fades_without_a_claim() -> None:
    (found,) = solved(faded("interleaved", protections=("key",)))
    assert found.design is not None
    assert found.carrier is not None
    assert (found.design.tap_model, found.design.subbands) == (TapModel.INTERLEAVED, 16)
    assert (found.carrier.tap_model, found.carrier.subbands, found.carrier.secret) == (TapModel.FIXED, 16, False)


# -- the demo, and hostile reports -------------------------------------------------------------------------------------


@pytest.mark.slow
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
                train_flops=1e12,
                energy_w_per_flops3=c.energy_w_per_flops3,
            )
            for c in world.clients
        ]
        found = EqualShare(clock_share=0.7).allocate(AllocationProblem.of(world, reports), seeds=SeedTree(seed)).assignments
        assert [a.gate.decision for a in found] == [GateDecision.GRANTED] * 3, seed
        assert len({round(a.gate.rate_coded, 2) for a in found}) >= 2, seed


extremes = st.sampled_from([1e-60, 1e-30, 1e-12, 1.0, 1e30, 1e60])


@pytest.mark.slow
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
        train_flops=1e12,
        energy_w_per_flops3=1e-36,
    )
    first, _ = assign(report("c1", main_db=-90.0, tap_db=-120.0), odd)
    assert first.gate.decision is GateDecision.GRANTED
