"""Is the optimiser's choice the best one, kept by the air, and told in words? Checked by brute force and our own arithmetic."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from hushtune_common.config import AllocatorConfig, UtilityConfig
from hushtune_common.errors import ConfigError, Infeasible
from hushtune_common.link import wiretap
from hushtune_common.link.secrecy import tap_gain_bound
from hushtune_common.messages import SEALING_BYTES, Assignment, ClientReport, CurvePoint, GateDecision, UtilityCurve
from hushtune_common.seeding import SeedTree
from hushtune_common.units import FlopPerSecond, Joule, PowerRatio, Second
from hushtune_server.coordinator.allocators.allocator import Allocation
from hushtune_server.coordinator.allocators.choices import Choices
from hushtune_server.coordinator.allocators.coded import settle
from hushtune_server.coordinator.allocators.linear import Work, share_out
from hushtune_server.coordinator.allocators.optimised import Method, Optimised
from hushtune_server.coordinator.problems.radio import radio_of
from hushtune_server.coordinator.problems.secrecy import AllocationProblem, believed
from tests.radio import report, scenario


def some_reports(count: int, *, seed: int) -> list[ClientReport]:
    rng = np.random.default_rng(seed)
    return [
        report(
            f"c{k}",
            main_db=float(rng.uniform(-105, -85)),
            tap_db=float(rng.uniform(-135, -115)),
            update_bits=int(10 ** rng.uniform(6.5, 8.3)),
        )
        for k in range(count)
    ]


def problem_of(count: int, *, seed: int = 0, **terms: object) -> AllocationProblem:
    problem = AllocationProblem.of(scenario(), some_reports(count, seed=seed))
    return replace(problem, allocator=AllocatorConfig(**terms))  # type: ignore[arg-type]


def best(problem: AllocationProblem, before: Allocation | None = None) -> Allocation:
    return Optimised("global").allocate(problem, seeds=SeedTree(1), before=before)


def granted(allocation: Allocation) -> list[Assignment]:
    return [a for a in allocation.assignments if a.gate.decision is GateDecision.GRANTED]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
def test_no_combination_of_points_and_levels_is_better(seed: int) -> None:
    problem = problem_of(2, seed=seed, share_min=0.5, levels=5)
    choices = Choices.of(problem, [radio_of(problem, r) for r in problem.reports])
    open_ = [np.flatnonzero(np.isfinite(row)) for row in choices.symbols_m]
    most = 0.0
    for at in product(*(options[::2] for options in open_)):
        most = max(most, settle(choices, np.array(at, dtype=np.intp)).worth.objective)
    found = best(problem)
    assert found.objective is not None
    assert most <= found.objective * (1.0 + 2e-3)
    assert most <= (found.upper_bound or 0.0) * (1.0 + 1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 3, 10, 40])
def test_the_gap_is_small_and_the_bound_is_above(count: int) -> None:
    found = best(problem_of(count, seed=count))
    assert found.gap is not None
    assert 0.0 <= found.gap < 5e-3
    assert found.objective is not None
    assert found.upper_bound == pytest.approx(found.objective * (1.0 + found.gap))


@pytest.mark.slow
def test_the_planned_airtime_is_that_of_the_design_within_two_percent() -> None:
    problem = problem_of(8, seed=3)
    found = best(problem)
    assert len(granted(found)) == 8
    for a, asked in zip(found.assignments, problem.reports, strict=True):
        assert a.design is not None
        assert a.planned is not None
        sealed = a.budget_bytes + SEALING_BYTES
        assert 8 * sealed == pytest.approx(a.planned.update_bits, abs=16)
        blocks = wiretap.block_count(a.design, sealed)
        assert a.planned.airtime_s == pytest.approx(wiretap.airtime(a.design, blocks=blocks, bandwidth=a.bandwidth), rel=0.02)
        assert a.planned.train_s == pytest.approx(asked.train_flops / a.clock)
        assert a.planned.radio_j == pytest.approx(a.power * a.planned.airtime_s)
        assert a.budget_bytes == int(a.adapter_share * (asked.update_bits // 8 - SEALING_BYTES))


def test_the_objective_is_utility_over_cost_of_what_is_planned() -> None:
    problem = problem_of(3, seed=5)
    found, terms, owner = best(problem), problem.allocator, problem.owner
    plans = [a.planned for a in found.assignments if a.planned]
    utility = sum(np.log1p(20.0 * a.adapter_share) for a in found.assignments)
    served = [owner.plug_in_flops / p.plug_in_s for p in plans]
    energy = sum(p.compute_j + p.radio_j for p in plans)
    energy += sum(owner.energy_w_per_flops3 * owner.plug_in_flops * f**2 for f in served)
    cost = terms.time_weight_per_s * max(p.total_s for p in plans) + terms.energy_weight_per_j * energy
    assert found.objective == pytest.approx(utility / cost, rel=1e-9)
    assert sum(served) <= owner.clock_max_flops * (1.0 + 1e-9)


@pytest.mark.slow
def test_an_earlier_answer_changes_the_way_and_hardly_the_end() -> None:
    problem = problem_of(6, seed=7)
    first = best(problem)
    rest = replace(problem, reports=problem.reports[1:])
    cold, warm = best(rest), best(rest, before=first)
    assert warm.objective == pytest.approx(cold.objective, rel=2e-3)


def test_a_deadline_is_met_and_an_impossible_one_serves_those_who_can() -> None:
    problem = problem_of(4, seed=2)
    free = max(a.planned.total_s for a in granted(best(problem)) if a.planned)
    hurried = best(replace(problem, round_s=Second(0.8 * free)))
    assert max(a.planned.total_s for a in granted(hurried) if a.planned) <= 0.8 * free * (1.0 + 1e-9)
    slow = replace(problem.reports[0], clock_max=FlopPerSecond(1e9))
    some = best(replace(problem, reports=(slow, *problem.reports[1:])))
    assert [a.gate.decision for a in some.assignments] == [GateDecision.DEFERRED] + [GateDecision.GRANTED] * 3
    assert "more than timing.round_s = 900 s" in some.assignments[0].gate.reason
    assert some.assignments[0].bandwidth == 0.0


@pytest.mark.slow
def test_together_too_slow_means_that_some_are_served() -> None:
    large = tuple(replace(r, update_bits=10**9) for r in problem_of(6, seed=2).reports)
    found = best(replace(problem_of(6), reports=large, round_s=Second(8.0)))
    assert 0 < len(granted(found)) < 6
    assert found.violation <= 1e-9
    assert any("cannot be done within" in a.gate.reason or "more than timing" in a.gate.reason for a in found.assignments)


def test_energy_limits_the_clock() -> None:
    poor = replace(report("c1", main_db=-90.0, tap_db=-120.0), energy_max=Joule(0.25))
    (found,) = best(AllocationProblem.of(scenario(), [poor])).assignments
    assert found.clock <= 0.5e12 * (1.0 + 1e-9)  # kappa c f^2 = 0.25 J at 1 TFLOP and 1e-36
    assert found.planned is not None
    assert found.planned.compute_j <= 0.25 * (1.0 + 1e-9)


def test_the_assumed_formula_plans_less_time_than_the_code_takes() -> None:
    coded, assumed = (best(problem_of(2, seed=1, rate_model=model)) for model in ("coded", "gaussian"))
    assert (assumed.objective or 0.0) > (coded.objective or 0.0)
    for a in assumed.assignments:
        assert a.design is not None
        assert a.planned is not None
        assert a.planned.airtime_s < a.planned.update_bits / (a.design.rate * a.bandwidth)


def test_a_client_has_no_say_in_what_the_tap_hears() -> None:
    world = scenario()
    bound = tap_gain_bound(world, world.clients[0])
    modest, bold = (replace(report("c1", main_db=-90.0, tap_db=-100.0), gain_tap=PowerRatio(f * bound)) for f in (2.0, 0.0))
    assert believed(world, [modest]) == (modest,)
    assert believed(world, [bold])[0].gain_tap == bound


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["exponential", "power", "scaling"])
def test_every_assumed_utility_can_be_planned_with(kind: str) -> None:
    utility = UtilityConfig(kind=kind, shape=0.5 if kind != "exponential" else 3.0)  # type: ignore[arg-type]
    found = best(problem_of(3, seed=4, utility=utility))
    assert found.gap is not None
    assert found.gap < 0.05


def curve_of(offset: float, weight: float, shape: float) -> UtilityCurve:
    points = tuple(CurvePoint(s, v, v, v) for s in (0.25, 0.5, 1.0) for v in (offset - weight * s**-shape,))
    return UtilityCurve(offset=offset, weight=weight, shape=shape, share_min=0.25, points=points)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["global", "random", "communication_only"])
def test_a_measured_utility_is_what_the_objective_counts(method: Method) -> None:
    curve = curve_of(0.3, 0.02, 1.2)
    problem = replace(problem_of(3, seed=4, utility=UtilityConfig(kind="measured")), curve=curve)
    found = Optimised(method).allocate(problem, seeds=SeedTree(1))
    plans = [a.planned for a in found.assignments if a.planned]
    worth = sum(0.3 - 0.02 * a.adapter_share**-1.2 for a in found.assignments)
    energy = sum(p.compute_j + p.radio_j for p in plans)
    served = [problem.owner.plug_in_flops / p.plug_in_s for p in plans]
    energy += sum(problem.owner.energy_w_per_flops3 * problem.owner.plug_in_flops * f**2 for f in served)
    assert found.objective == pytest.approx(worth / (max(p.total_s for p in plans) + 0.01 * energy), rel=1e-9)
    assert not any("split evenly" in note for note in found.notes)


@pytest.mark.slow
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e4])
def test_the_unit_of_a_measured_utility_does_not_matter_and_its_steepness_does(scale: float) -> None:
    plain = problem_of(4, seed=3, utility=UtilityConfig(kind="measured"))
    shares = {
        steep: [a.adapter_share for a in best(replace(plain, curve=curve_of(0.3 * by, weight * by, 1.0))).assignments]
        for steep, weight, by in (("no", 1e-4, 1.0), ("yes", 0.06, 1.0), ("scaled", 0.06, scale))
    }
    assert shares["scaled"] == shares["yes"]
    assert sum(shares["no"]) < sum(shares["yes"])


@pytest.mark.slow
def test_no_choice_is_better_by_a_measured_utility_that_is_negative_for_small_shares() -> None:
    curve = curve_of(0.3, 0.1, 1.0)  # zero at one third
    problem = replace(problem_of(2, seed=1, levels=6, utility=UtilityConfig(kind="measured")), curve=curve)
    choices = Choices.of(problem, [radio_of(problem, r) for r in problem.reports])
    open_ = [np.flatnonzero(np.isfinite(row)) for row in choices.symbols_m]
    most = max(settle(choices, np.array(at, dtype=np.intp)).worth.objective for at in product(*(o[::2] for o in open_)))
    found = best(problem)
    assert 0.0 < most <= (found.objective or 0.0) * (1.0 + 2e-3)
    assert most <= (found.upper_bound or 0.0) * (1.0 + 1e-9)
    assert min(a.adapter_share for a in found.assignments) > 1.0 / 3.0


def test_a_utility_that_was_to_be_measured_and_was_not_is_no_problem_to_solve() -> None:
    with pytest.raises(ValueError, match="no curve"):
        best(problem_of(1, utility=UtilityConfig(kind="measured")))


def test_an_unknown_method_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="communication_only"):
        Optimised("best")  # type: ignore[arg-type]


def work(**changes: object) -> Work:
    n = 3
    base = Work(
        train_tflop=np.array([1.0, 2.0, 0.5]),
        symbols_m=np.array([10.0, 30.0, 5.0]),
        plug_in_tflop=4.0,
        clock_max_tflops=np.full(n, 2.0),
        clock_energy_w_per_tflops3=np.ones(n),
        band_max_mhz=np.array([4.0, 100.0, 100.0]),
        bandwidth_mhz=20.0,
        server_tflops=20.0,
        server_energy_w_per_tflops3=0.02,
        time_weight_per_s=1.0,
        energy_weight_per_j=0.01,
        deadline_s=900.0,
    )
    return replace(base, **changes)  # type: ignore[arg-type]


def cost_of(w: Work, band: np.ndarray, clock: np.ndarray, server: np.ndarray) -> float:
    time = (w.train_tflop / clock + w.symbols_m / band + w.plug_in_tflop / server).max()
    energy = (w.clock_energy_w_per_tflops3 * clock**2 * w.train_tflop).sum()
    energy += (w.server_energy_w_per_tflops3 * server**2 * w.plug_in_tflop).sum()
    return float(w.time_weight_per_s * time + w.energy_weight_per_j * energy)


def test_no_random_sharing_is_better_and_small_steps_do_not_help() -> None:
    w, rng = work(), np.random.default_rng(0)
    found = share_out(w)
    least = cost_of(w, found.bandwidth_mhz, found.clock_tflops, found.server_tflops)
    for _ in range(2000):
        near = [
            x * np.exp(rng.normal(0.0, rng.choice([1e-3, 0.3]), 3))
            for x in (found.bandwidth_mhz, found.clock_tflops, found.server_tflops)
        ]
        band = np.minimum(near[0] * min(1.0, 20.0 / near[0].sum()), w.band_max_mhz)
        server = near[2] * min(1.0, 20.0 / near[2].sum())
        assert cost_of(w, band, np.minimum(near[1], 2.0), server) >= least * (1.0 - 1e-6)


def test_a_deadline_out_of_reach_is_infeasible_with_the_least_time() -> None:
    with pytest.raises(Infeasible, match="more than the deadline of 1 s"):
        share_out(work(deadline_s=1.0))
    free = share_out(work(energy_weight_per_j=1.0))
    hurried = share_out(work(energy_weight_per_j=1.0, deadline_s=0.9 * free.time_s))
    assert 0.89 * free.time_s < hurried.time_s <= 0.9 * free.time_s
