"""Is the structured solver's answer the best there is, on easy and hard instances, in every regime and by every way it knows?"""

import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from hushtune_common.errors import Infeasible
from hushtune_common.seeding import SeedTree
from hushtune_server.coordinator.allocators import structured_newton as shared_by
from hushtune_server.coordinator.allocators.balance import balance, cold, least_time
from hushtune_server.coordinator.allocators.continuous import outcome_of
from hushtune_server.coordinator.allocators.model import model_of
from hushtune_server.coordinator.allocators.solution import Solution
from hushtune_server.coordinator.allocators.structured import solve
from hushtune_server.coordinator.problems.draws import Scale, random_instance
from hushtune_server.coordinator.problems.instance import Instance, evaluate
from hushtune_server.coordinator.problems.utility import Objective, Utility, UtilityKind
from tests.optimality.oracles import sequential_quadratic, stationarity

Floats = NDArray[np.float64]
SCALES: tuple[Scale, Scale] = ("default", "extreme")


def drawn(clients: int, seed: int, scale: Scale = "default") -> Instance:
    return random_instance(clients=clients, seeds=SeedTree(seed), scale=scale)


def worst_condition(i: Instance, found: Solution) -> float:
    assert found.prices is not None
    return max(stationarity(i, found.choice, found.prices).values())


@pytest.mark.parametrize("scale", SCALES)
def test_answers_meet_the_optimality_conditions(scale: Scale) -> None:
    for seed in range(200):
        i = drawn(1 + seed % 40, seed, scale)
        found = solve(i)
        assert found.evaluation.worst < 1e-9
        assert found.claim == "theorem"
        assert worst_condition(i, found) < 1e-7, seed


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
def test_answers_are_never_below_a_general_solver_from_twenty_starts(seed: int) -> None:
    i = drawn(2 + seed % 2, seed, SCALES[seed // 2 % 2])
    other = sequential_quadratic(i, starts=20, seed=seed)
    assert other is not None
    assert solve(i).evaluation.objective == pytest.approx(other.objective, rel=1e-6)
    assert solve(i).evaluation.objective >= other.objective * (1.0 - 1e-8)


@pytest.mark.parametrize("tier", [1, 2])
def test_slower_ways_end_at_the_same_answer(tier: int) -> None:
    for seed in range(12):
        i = drawn(1 + seed % 6, seed, SCALES[seed % 2])
        found = balance(model_of(i), first_tier=tier)
        assert found.tier == tier
        value = outcome_of(i, found)[1].objective
        assert value == pytest.approx(solve(i).evaluation.objective, rel=1e-9)


def test_hard_instances_need_more_than_newton_and_get_it() -> None:
    tiers = {seed: solve(drawn(1 + seed % 60, seed, "extreme")).tier for seed in (0, 49, 2462)}
    assert tiers == {0: 1, 49: 1, 2462: 2}


def residuals_at(i: Instance, y: Floats) -> tuple[Floats, Floats]:
    """Return the four residuals and their Jacobian at unknowns ``y``, every client settled tightly."""
    model, n = model_of(i), i.clients
    shared = model.shared.copy()
    shared[[shared_by.TIME_SCALE, shared_by.SERVER_PRICE_SCALE]] = 0.3 * shared[shared_by.TIME_LOW], 1e-3
    prices, sums, slopes, follow = np.empty(3), np.empty(5), np.empty((5, 4)), np.empty((n, 2, 4))
    f, jacobian, states = np.empty(4), np.empty((4, 4)), cold(model).states
    time, by_time, by_server = shared_by.unfold(y, shared, prices)
    used = shared_by.sweep(model.rows, model.kind, shared, prices, time, by_time, by_server, 1e-11, states, follow, sums, slopes)
    assert used > 0
    shared_by.residuals(y, shared, time, by_time, sums, slopes, f, jacobian)
    return f, jacobian


@pytest.mark.parametrize("kind", ["log", "exponential", "power", "scaling", "log_share"])
def test_the_jacobian_is_what_differences_say_in_every_regime(kind: UtilityKind) -> None:
    for seed in range(12):
        i = drawn(5, seed, SCALES[seed % 2])
        shape = {"log": 30.0, "exponential": 8.0, "power": 0.4, "scaling": 0.5, "log_share": 0.005}[kind]
        i = replace(i, utility=Utility(kind=kind, weight=i.utility.weight, shape=np.full(5, shape), offset=np.full(5, 90.0)))
        reach = i.power_max_w * (i.gain_main_mhz_per_w - i.gain_tap_mhz_per_w)
        i = replace(i, rate_min_mbps=np.array([0.0, 1e-3, 0.1, 0.4, 0.8]) * np.minimum(reach, 0.5), bandwidth_mhz=1e6)
        found = balance(model_of(replace(i, bandwidth_mhz=1e2))).start
        y = np.log([1.0, found.band, 2.0, found.utility]) + np.random.default_rng(seed).normal(0.0, 0.3, 4)
        jacobian, step = residuals_at(i, y)[1], 1e-5
        for k, unit in enumerate(step * np.eye(4)):
            difference = (residuals_at(i, y + unit)[0] - residuals_at(i, y - unit)[0]) / (2.0 * step)
            assert jacobian[:, k] == pytest.approx(difference, rel=1e-4, abs=1e-6), (seed, k)


def test_one_device_alone_runs_at_the_clock_where_energy_and_time_weigh_the_same() -> None:
    i = replace(drawn(1, 5), clock_max_tflops=np.array([1e4]), power_max_w=np.array([1e4]), energy_weight_per_j=0.1)
    found = solve(i).choice
    # d/df of (wt W/f + we kap W f^2) is zero where 2 we kap f^3 = wt; the owner's machine likewise while it is not full.
    assert found.clock_tflops[0] == pytest.approx((1.0 / (0.2 * i.clock_energy_w_per_tflops3[0])) ** (1 / 3), rel=1e-9)
    assert found.server_tflops[0] == pytest.approx((1.0 / (0.2 * 1e-3)) ** (1 / 3), rel=1e-9)


def test_everyone_is_ready_at_the_same_time_and_the_band_is_full() -> None:
    i = replace(drawn(20, 4), start_s=np.linspace(0.0, 5.0, 20))
    found = solve(i)
    assert found.evaluation.client_time_s == pytest.approx(np.full(20, found.choice.time_s), rel=1e-9)
    assert found.choice.bandwidth_mhz.sum() == pytest.approx(20.0, rel=1e-12)


def test_the_machine_is_full_when_energy_is_cheap_and_has_no_price_when_it_is_not() -> None:
    cheap, dear = (solve(replace(drawn(10, 2), server_energy_w_per_tflops3=k)) for k in (1e-7, 1.0))
    assert cheap.prices is not None
    assert dear.prices is not None
    assert cheap.choice.server_tflops.sum() == pytest.approx(500.0, rel=1e-9)
    assert cheap.prices.server_per_tflops > 0.0
    assert dear.choice.server_tflops.sum() < 400.0
    assert dear.prices.server_per_tflops == 0.0


def test_a_machine_that_is_just_full_is_found() -> None:
    i = drawn(5, 2)
    load = float(solve(replace(i, server_tflops=1e6)).choice.server_tflops.sum())
    for factor in (1.0 - 1e-9, 1.0, 1.0 + 1e-9):
        assert worst_condition(i, solve(replace(i, server_tflops=load * factor))) < 1e-6


def test_without_fixed_costs_somebody_stays_at_the_least_share() -> None:
    for seed in range(10):
        i = drawn(8, seed)
        i = replace(i, train_fixed_share=np.zeros(8))
        assert solve(i).choice.share.min() == pytest.approx(0.1, rel=1e-9)


def test_clients_in_another_order_get_the_same() -> None:
    i, order = drawn(12, 7), np.random.default_rng(0).permutation(12)
    first, second = solve(i).choice, solve(i.permuted(order)).choice
    for name in ("share", "bandwidth_mhz", "power_w", "clock_tflops", "server_tflops"):
        assert getattr(second, name) == pytest.approx(getattr(first, name)[order], rel=1e-6)


def test_units_do_not_matter() -> None:
    i = drawn(6, 8)
    k = 7.3  # band and gains in another unit of frequency; both weights of the cost in another currency
    other = replace(
        i,
        bandwidth_mhz=i.bandwidth_mhz * k,
        gain_main_mhz_per_w=i.gain_main_mhz_per_w * k,
        gain_tap_mhz_per_w=i.gain_tap_mhz_per_w * k,
        update_mbit=i.update_mbit * k,
        time_weight_per_s=3.0 * i.time_weight_per_s,
        energy_weight_per_j=3.0 * i.energy_weight_per_j,
    )
    first, second = solve(i), solve(other)
    assert second.evaluation.objective == pytest.approx(first.evaluation.objective / 3.0, rel=1e-10)
    assert second.choice.power_w == pytest.approx(first.choice.power_w, rel=1e-6)


def test_a_warm_start_changes_the_effort_and_not_the_answer() -> None:
    sweeps: list[tuple[int, int]] = []
    for seed in range(20):
        i = drawn(30, seed)
        before = solve(i)
        moved = replace(i, gain_main_mhz_per_w=i.gain_main_mhz_per_w * np.random.default_rng(seed).uniform(1.0, 1.1, 30))
        warm, cold = solve(moved, start=before), solve(moved)
        sweeps.append((warm.sweeps, cold.sweeps))
        assert warm.evaluation.objective == pytest.approx(cold.evaluation.objective, rel=1e-10)
    assert np.mean(sweeps, axis=0)[0] < np.mean(sweeps, axis=0)[1]


def test_a_start_of_other_clients_is_no_obstacle() -> None:
    i = drawn(5, 1)
    assert solve(i, start=solve(drawn(9, 2))).evaluation.objective == pytest.approx(solve(i).evaluation.objective, rel=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("what", ["difference", "cost", "deadline", "rate"])
def test_other_goals_and_limits_are_met_as_well_as_a_general_solver_does(what: str, seed: int) -> None:
    i = drawn(2 + seed % 2, 40 + seed)
    best = solve(i)
    if what == "difference":
        i = replace(i, objective=Objective(kind="difference", price=0.5 * best.evaluation.objective))
    elif what == "cost":
        i = replace(i, objective=Objective(kind="cost", utility_min=1.2 * best.evaluation.utility))
    elif what == "deadline":
        i = replace(i, deadline_s=0.5 * (best.choice.time_s + least_time(model_of(i)).start.time_s))
    else:
        i = replace(i, rate_min_mbps=best.evaluation.secret_rate_mbps * np.array([1.05, 0.5, 1.02])[: i.clients])
    found, other = solve(i), sequential_quadratic(i, starts=8, seed=seed)
    assert other is not None
    assert found.evaluation.worst < 1e-9
    assert worst_condition(i, found) < 1e-6
    assert found.evaluation.objective >= other.objective - 1e-8 * abs(other.objective)


OUTSIDE: list[tuple[UtilityKind, float]] = [("linear", 1.0), ("log", 0.5), ("exponential", 0.8), ("power", 0.9)]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "shape"), OUTSIDE)
def test_utilities_outside_the_convex_class_are_solved_as_well_as_from_many_starts(kind: UtilityKind, shape: float) -> None:
    for seed in range(3):
        i = drawn(2 + seed % 2, 70 + seed)
        n = i.clients
        i = replace(i, utility=Utility(kind=kind, weight=i.utility.weight, shape=np.full(n, shape)))
        found, other = solve(i), sequential_quadratic(i, starts=8, seed=seed)
        assert other is not None
        assert found.claim == "none"
        assert found.evaluation.objective >= other.objective * (1.0 - 1e-8)


def test_who_the_eavesdropper_hears_better_is_left_out_with_the_reason() -> None:
    i = drawn(4, 3)
    i = replace(i, gain_tap_mhz_per_w=np.where(np.arange(4) == 2, 2.0 * i.gain_main_mhz_per_w, i.gain_tap_mhz_per_w))
    found = solve(i)
    assert found.excluded == ("client-3",)
    assert "3.0 dB better" in found.notes[0]
    assert found.choice.share[2] == found.choice.bandwidth_mhz[2] == found.choice.power_w[2] == 0.0
    assert evaluate(i, found.choice).objective == pytest.approx(solve(i.select(i.usable)).evaluation.objective, rel=1e-12)


def test_nobody_usable_is_refused() -> None:
    i = drawn(3, 3)
    with pytest.raises(Infeasible, match="eavesdropper hears all of them"):
        solve(replace(i, gain_tap_mhz_per_w=2.0 * i.gain_main_mhz_per_w))


def advised(problem: Infeasible) -> float:
    found = re.search(r"(?:raise it to at least|raise it above|lower it below|lower it to) ([0-9.e+-]+[0-9])", str(problem))
    assert found is not None, str(problem)
    return float(found[1])


def refuse(i: Instance, words: str) -> float:
    with pytest.raises(Infeasible, match=words) as caught:
        solve(i)
    return advised(caught.value)


@pytest.mark.parametrize("fraction", [0.5, 0.9])
def test_a_deadline_before_a_clients_own_least_time_names_it_and_one_that_would_do(fraction: float) -> None:
    i = drawn(4, 9)
    least = model_of(i).shared[shared_by.TIME_LOW]
    limit = refuse(replace(i, deadline_s=fraction * least), r"client client-\d: a deadline_s")
    assert limit == pytest.approx(least, rel=1e-5)


def test_a_deadline_that_the_shared_limits_forbid_is_refused_with_one_that_would_do() -> None:
    for seed in range(8):
        i = drawn(6, seed, SCALES[seed % 2])
        alone, together = float(model_of(i).shared[shared_by.TIME_LOW]), least_time(model_of(i)).start.time_s
        needed = refuse(replace(i, deadline_s=0.5 * (alone + together)), "too little band and machine")
        found = solve(replace(i, deadline_s=needed))
        assert found.choice.time_s <= needed * (1.0 + 1e-9)
        refuse(replace(i, deadline_s=needed * (1.0 - 1e-5)), "too little band and machine")


def test_a_rate_out_of_reach_is_refused_with_rate_and_power_that_would_do() -> None:
    i = drawn(3, 2)
    asked = np.array([1e5, 0.0, 0.0])
    rate = refuse(replace(i, rate_min_mbps=asked), "client client-1: rate_min_mbps")
    wide = replace(i, bandwidth_mhz=1e9)
    assert solve(replace(wide, rate_min_mbps=np.array([rate * 0.999, 0.0, 0.0]))).evaluation.secret_rate_mbps[0] >= rate * 0.998
    refuse(replace(wide, rate_min_mbps=np.array([rate * 1.001, 0.0, 0.0])), "client client-1")


def test_rates_that_do_not_fit_into_the_band_are_refused_with_a_band_that_would_do() -> None:
    i = drawn(6, 2)
    i = replace(i, rate_min_mbps=5.0 * solve(i).evaluation.secret_rate_mbps)
    needed = refuse(i, "cannot carry every rate_min_mbps")
    found = solve(replace(i, bandwidth_mhz=needed * (1.0 + 1e-4)))
    assert found.evaluation.worst < 1e-9
    assert (found.evaluation.secret_rate_mbps >= i.rate_min_mbps * (1.0 - 1e-9)).all()


def test_a_floor_of_utility_out_of_reach_is_refused_with_one_that_would_do() -> None:
    i = drawn(4, 6)
    most = refuse(replace(i, objective=Objective(kind="cost", utility_min=1e3)), r"utility_min of 1000 is out of reach")
    assert solve(replace(i, objective=Objective(kind="cost", utility_min=most))).choice.share == pytest.approx(
        np.ones(4), rel=1e-4
    )


def test_a_floor_of_utility_out_of_reach_before_the_deadline_is_refused() -> None:
    i = drawn(4, 6)
    most = float(i.utility.value(i.share_max).sum())
    quick = replace(i, deadline_s=1.02 * least_time(model_of(i)).start.time_s)
    needed = refuse(replace(quick, objective=Objective(kind="cost", utility_min=0.999 * most)), "before deadline_s")
    found = solve(replace(quick, objective=Objective(kind="cost", utility_min=0.99 * needed)))
    assert found.evaluation.utility == pytest.approx(0.99 * needed, rel=1e-8)


@pytest.mark.parametrize(
    "changes",
    [
        {"gain_tap_mhz_per_w": np.zeros(3)},
        {"train_fixed_share": np.ones(3)},
        {"share_max": np.full(3, 0.1)},
        {"energy_weight_per_j": 1e-9},
        {"energy_weight_per_j": 1e3},
        {"server_tflops": 1e-2},
        {"bandwidth_mhz": 1e-4},
    ],
)
def test_extreme_but_meaningful_numbers_are_solved(changes: dict[str, Any]) -> None:
    i = replace(drawn(3, 11), **changes)
    found = solve(i)
    assert found.evaluation.worst < 1e-9
    assert worst_condition(i, found) < 1e-6
