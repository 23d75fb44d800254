"""Does every allocator keep its laws?"""

from dataclasses import replace
from math import ceil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hushtune_common.link.mcs import point_of
from hushtune_common.link.wiretap import design
from hushtune_common.messages import Assignment, ClientReport, GateDecision, Protection
from hushtune_common.seeding import SeedTree
from hushtune_common.units import FlopPerSecond, Hertz, PowerRatio, Second, Watt
from hushtune_server.coordinator.allocators.allocator import VIOLATION_MAX, Allocation, Allocator
from hushtune_server.coordinator.allocators.equal_share import EqualShare
from hushtune_server.coordinator.allocators.optimised import Optimised
from hushtune_server.coordinator.problems.secrecy import AllocationProblem
from tests.radio import report, scenario

EQUAL, GLOBAL = EqualShare(clock_share=0.7), Optimised("global")
ALLOCATORS: list[Allocator] = [EQUAL, GLOBAL, Optimised("random")]
SLOW: list[Allocator] = [
    Optimised("conic"),
    Optimised("alternating"),
    Optimised("communication_only"),
    Optimised("computation_only"),
]
allocators = pytest.mark.parametrize("allocator", ALLOCATORS, ids=["equal_share", "global", "random"])
slow_ones = pytest.mark.parametrize("allocator", SLOW, ids=["conic", "alternating", "communication_only", "computation_only"])


orders = st.lists(st.sampled_from([p.value for p in Protection]), min_size=1, unique=True)
"""Which protections a scenario allows, the preferred first."""


@st.composite
def problems(draw: st.DrawFn, *, protections: st.SearchStrategy[list[str]] = orders) -> AllocationProblem:
    """Rounds of one to five clients anywhere, with or without fading. Steps of 3 dB let designs be found again."""
    count = draw(st.integers(1, 5))
    reports = [
        report(
            f"c{k}",
            main_db=3.0 * draw(st.integers(-43, -20)),
            tap_db=3.0 * draw(st.integers(-47, -23)),
            power_max=draw(st.sampled_from([1e-4, 1e-2, 0.2])),
            update_bits=draw(st.integers(1, 10**9)),
        )
        for k in range(count)
    ]
    fading = draw(st.sampled_from(["none", "rayleigh_block"]))
    secrecy = {"protections": draw(protections), "fading_design": draw(st.sampled_from(["outage", "interleaved"]))}
    return AllocationProblem.of(scenario(air={"fading": fading}, secrecy=secrecy), reports)


def solve(allocator: Allocator, problem: AllocationProblem) -> Allocation:
    return allocator.allocate(problem, seeds=SeedTree(1))


@pytest.mark.slow
@allocators
@given(problem=problems())
def test_an_allocation_is_feasible_and_answers_every_report_in_order(allocator: Allocator, problem: AllocationProblem) -> None:
    check_feasible(problem, solve(allocator, problem))


def check_feasible(problem: AllocationProblem, found: Allocation) -> None:
    assert found.violation <= VIOLATION_MAX
    assert problem.residuals(found.assignments).worst == found.violation
    assert [(a.client, a.round_id) for a in found.assignments] == [(r.client, r.round_id) for r in problem.reports]
    assert sum(a.bandwidth for a in found.assignments) <= problem.air.bandwidth_hz * (1 + 1e-12)
    for given_, asked in zip(found.assignments, problem.reports, strict=True):
        assert 0.0 <= given_.power <= asked.power_max
        assert 0.0 <= given_.clock <= asked.clock_max
        assert given_.gate.reason
        assert given_.protection is None or given_.protection.value in problem.secrecy.protections


@pytest.mark.slow
@allocators
@given(problem=problems(), data=st.data())
def test_permuting_the_clients_permutes_the_assignments(
    allocator: Allocator, problem: AllocationProblem, data: st.DataObject
) -> None:
    order = data.draw(st.permutations(range(len(problem.reports))))
    found, turned = solve(allocator, problem), solve(allocator, problem.permuted(order))
    assert turned.assignments == tuple(found.assignments[i] for i in order)
    assert problem.permuted(order).residuals(turned.assignments).clients == tuple(
        problem.residuals(found.assignments).clients[i] for i in order
    )


@pytest.mark.slow
@allocators
@given(problem=problems())
def test_the_same_problem_has_the_same_answer(allocator: Allocator, problem: AllocationProblem) -> None:
    assert solve(allocator, problem) == solve(allocator, problem)


@allocators
def test_when_everybody_is_excluded_everybody_is_told_why(allocator: Allocator) -> None:
    reports = [report("c1", main_db=-100.0, tap_db=-90.0), report("c2", main_db=-100.0, tap_db=-100.0)]
    found = solve(allocator, AllocationProblem.of(scenario(), reports))
    assert [a.gate.decision for a in found.assignments] == [GateDecision.EXCLUDED] * 2
    assert "10.0 dB above the owner's" in found.assignments[0].gate.reason
    assert all(a.design is None and a.bandwidth == 0.0 for a in found.assignments)


@pytest.mark.slow
@slow_ones
def test_the_methods_for_comparison_are_feasible_and_no_better_than_the_bound(allocator: Allocator) -> None:
    problem = AllocationProblem.of(scenario(), trio())
    found, best = solve(allocator, problem), solve(GLOBAL, problem)
    check_feasible(problem, found)
    assert not any("split evenly" in note for note in found.notes)
    assert found.objective is not None
    assert best.upper_bound is not None
    assert 0.0 < found.objective <= best.upper_bound


@pytest.mark.slow
@given(problem=problems())
def test_global_is_never_worse_than_equal_share_for_the_same_clients(problem: AllocationProblem) -> None:
    even, best = solve(EQUAL, problem), solve(GLOBAL, problem)
    in_time = all(a.planned is None or a.planned.total_s <= problem.round_s for a in even.assignments)
    same = [a.protection for a in even.assignments] == [a.protection for a in best.assignments]
    if same and in_time and even.objective is not None and best.objective is not None:
        assert even.objective <= best.objective * (1.0 + 1e-6)
        assert best.objective <= (best.upper_bound or 0.0)


@pytest.mark.slow
@given(problem=problems())
def test_a_better_tap_never_raises_the_ratio_above_the_bound_of_before(problem: AllocationProblem) -> None:
    worse = tuple(replace(r, gain_tap=PowerRatio(r.gain_tap * 4.0)) for r in problem.reports)
    before, after = solve(GLOBAL, problem), solve(GLOBAL, replace(problem, reports=worse))
    same = [a.protection for a in before.assignments] == [a.protection for a in after.assignments]
    if same and after.objective is not None:
        assert after.objective <= (before.upper_bound or 0.0) * (1.0 + 1e-6)


@pytest.mark.slow
@given(problem=problems(protections=st.just(["payload"])))
def test_more_margin_for_the_tap_never_grants_more(problem: AllocationProblem) -> None:
    """A law of the even split alone: an optimiser may give one client more because another one got worse."""
    allocator = EQUAL
    worse = tuple(replace(r, gain_tap=PowerRatio(r.gain_tap * 10**0.6)) for r in problem.reports)
    changed = replace(problem, reports=worse)
    # The share of band depends on who is excluded, so compare the rates per symbol that power does not limit.
    rich = [r for r in problem.reports if r.power_max == 0.2]
    before = {a.client: a.gate.rate_coded for a in solve(allocator, problem).assignments if a.design}
    after = {a.client: a.gate.rate_coded for a in solve(allocator, changed).assignments if a.design}
    excluded = sum(problem.hopeless(r) for r in problem.reports) != sum(changed.hopeless(r) for r in worse)
    if not excluded:
        assert all(after.get(r.client, 0.0) <= before.get(r.client, 0.0) for r in rich)


def trio() -> list[ClientReport]:
    """Three clients that everybody can serve."""
    return [
        report("c1", main_db=-90.0, tap_db=-120.0, update_bits=80_000_000),
        report("c2", main_db=-100.0, tap_db=-125.0, update_bits=40_000_000),
        report("c3", main_db=-95.0, tap_db=-112.0, update_bits=120_000_000),
    ]


@pytest.mark.slow
@allocators
def test_sixty_clients_share_one_band(allocator: Allocator) -> None:
    rng = SeedTree(1).child("reports").generator()
    reports = [
        report(f"c{k}", main_db=float(rng.integers(-110, -80)), tap_db=float(rng.integers(-130, -100)), update_bits=1000)
        for k in range(60)
    ]
    found = solve(allocator, AllocationProblem.of(scenario(), reports))
    assert sum(a.bandwidth for a in found.assignments) <= 20e6 * (1 + 1e-12)


def test_a_client_that_reports_twice_is_refused() -> None:
    twice = (report("c1", main_db=-90.0, tap_db=-120.0),) * 2
    with pytest.raises(ValueError, match="more than once"):
        AllocationProblem.of(scenario(), twice)


@pytest.mark.parametrize("gain", [float("nan"), -1.0, float("inf")])
def test_impossible_gains_never_reach_an_allocator(gain: float) -> None:
    good = report("c1", main_db=-90.0, tap_db=-120.0)
    with pytest.raises(ValueError, match="gain_tap"):
        replace(good, gain_tap=PowerRatio(gain))


def test_residuals_see_what_is_wrong() -> None:
    asked = report("c1", main_db=-90.0, tap_db=-120.0)
    problem = AllocationProblem.of(scenario(), [asked])
    (fair,) = solve(ALLOCATORS[0], problem).assignments
    for broken in (
        replace(fair, bandwidth=Hertz(fair.bandwidth * 1.5)),
        replace(fair, power=Watt(asked.power_max * 1.25)),
        replace(fair, clock=FlopPerSecond(asked.clock_max * 2.0)),
        replace(fair, power=Watt(fair.power * 0.5)),
    ):
        assert problem.residuals([broken]).worst > 0.1
    assert fair.design is not None
    point, assumed_db = point_of(fair.design), fair.design.snr_tap_design_db
    weaker_tap = design(point, codewords=fair.design.codewords, snr_tap_db=assumed_db - 1.0, log2_delta=-64.0)
    assert 0.25 < problem.residuals([replace(fair, design=weaker_tap)]).worst <= 10**0.1 - 1.0  # bounds are rounded up by 0.01 dB
    greedy = AllocationProblem.of(scenario(secrecy={"message_bits_min": 2 * fair.design.message_bits}), [asked])
    assert greedy.residuals([fair]).worst == pytest.approx(1.0)
    hurried = AllocationProblem(reports=(asked,), air=problem.air, secrecy=problem.secrecy, round_s=Second(1e-3))
    assert hurried.residuals([fair]).worst > 1.0


def airtime_s(assignment: Assignment, *, update_bits: int) -> float:
    """The seconds on air of an update, and of one hash block with its key where it has one."""
    blocks = {assignment.carrier or assignment.design: ceil(update_bits / 8)}
    if assignment.protection is Protection.KEY:
        blocks[assignment.design] = 32
    symbols = sum(ceil(size / (d.message_bits // 8 - 4)) * d.symbols for d, size in blocks.items() if d is not None)
    return symbols / assignment.bandwidth


@pytest.mark.parametrize("protection", list(Protection))
def test_residuals_know_the_airtime_of_all_parts(protection: Protection) -> None:
    asked = report("c1", main_db=-90.0, tap_db=-120.0)
    problem = AllocationProblem.of(scenario(secrecy={"protections": [protection.value]}), [asked])
    (fair,) = solve(ALLOCATORS[0], problem).assignments
    assert fair.protection is protection
    assert problem.residuals([fair]).worst == 0.0
    half = replace(problem, round_s=Second(airtime_s(fair, update_bits=asked.update_bits) / 2.0))
    assert half.residuals([fair]).worst == pytest.approx(1.0)
    shared = replace(fair, adapter_share=0.25, budget_bytes=asked.budget_bytes(0.25))
    assert half.residuals([shared]).worst == 0.0
    assert problem.residuals([replace(fair, power=Watt(fair.power * 0.5))]).worst > 0.1


def test_residuals_of_a_key_see_its_own_design_and_not_what_is_asked_of_an_update() -> None:
    asked = report("c1", main_db=-90.0, tap_db=-120.0)
    problem = AllocationProblem.of(scenario(secrecy={"protections": ["key"], "message_bits_min": 34_000}), [asked])
    (fair,) = solve(ALLOCATORS[0], problem).assignments
    assert problem.residuals([fair]).worst == 0.0
    assert fair.design is not None
    total, few = fair.design.message_bits + fair.design.random_bits, 8 * 18  # a key and its checksum have twice as many
    short = replace(fair, design=replace(fair.design, message_bits=few, random_bits=total - few))
    assert problem.residuals([short]).worst == pytest.approx(1.0)
    bolder = design(point_of(fair.design), codewords=4, snr_tap_db=fair.design.snr_tap_design_db - 3.0, log2_delta=-64.0)
    assert problem.residuals([replace(fair, design=bolder)]).worst == pytest.approx(10**0.3 - 1.0, abs=0.01)


def test_encryption_alone_assumes_nothing_of_the_tap() -> None:
    asked = report("c1", main_db=-90.0, tap_db=-60.0)
    problem = AllocationProblem.of(scenario(secrecy={"protections": ["crypto_only"]}), [asked])
    (fair,) = solve(ALLOCATORS[0], problem).assignments
    assert (fair.design, fair.gate.rate_coded, fair.secrecy_rate_bps) == (None, 0.0, 0.0)
    assert problem.residuals([fair]).worst == 0.0
