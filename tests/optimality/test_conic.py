"""Do the convex programs say what they should? Held against SLSQP, stationarity in closed form, their own bounds, and laws."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.optimize import minimize

pytest.importorskip("cvxpy", reason="the package cvxpy is not installed")

import cvxpy as cp

from hushtune_common.errors import ConfigError, Infeasible, SolverFailed
from hushtune_common.seeding import SeedTree
from hushtune_server.coordinator.allocators.conic import feasible_start, fixed_share_optimum, solve_conic, start_point
from hushtune_server.coordinator.allocators.convex import first_optimum
from hushtune_server.coordinator.allocators.points import choice_at, efficiency, program_numbers
from hushtune_server.coordinator.allocators.solution import Solution
from hushtune_server.coordinator.problems.draws import random_instance
from hushtune_server.coordinator.problems.instance import Choice, Instance, evaluate
from hushtune_server.coordinator.problems.utility import Floats, Objective, Utility, UtilityKind

pytestmark = pytest.mark.slow


def small(seed: int, *, clients: int = 3) -> Instance:
    """A few clients with as much band and machine each as in a round of fifty."""
    drawn = random_instance(clients=clients, seeds=SeedTree(seed))
    return replace(drawn, bandwidth_mhz=0.4 * clients, server_tflops=10.0 * clients)


def by_slsqp(instance: Instance) -> float:
    """The best objective that SLSQP finds from two starts, in logarithms, by the plain formulas only."""
    i, n = instance, instance.clients
    tops = np.concatenate(
        [i.share_max, np.full(n, i.bandwidth_mhz), i.power_max_w, i.clock_max_tflops, np.full(n, i.server_tflops)]
    )

    def choice(y: Floats) -> Choice:
        share, band, power, clock, server = np.exp(y[:-1]).reshape(5, n)
        return Choice(
            share=share, bandwidth_mhz=band, power_w=power, clock_tflops=clock, server_tflops=server, time_s=np.exp(y[-1])
        )

    def loss(y: Floats) -> float:
        found = evaluate(i, choice(y))
        late = i.time_weight_per_s * (np.exp(y[-1]) - found.time_s)  # the cost with T for the latest client's time
        cost = found.cost + late
        match i.objective.kind:
            case "ratio":
                return float(np.log(cost) - np.log(found.utility))
            case "difference":
                return float((i.objective.price or 0.0) * cost - found.utility)
            case "cost":
                return float(cost)
            case "max_min":
                return float(cost / i.utility.value(choice(y).share).min())

    def slack(y: Floats) -> Floats:
        c = choice(y)
        found = evaluate(i, c)
        shared = [np.log(i.bandwidth_mhz / c.bandwidth_mhz.sum()), np.log(i.server_tflops / c.server_tflops.sum())]
        late = [] if i.deadline_s is None else [np.log(i.deadline_s) - y[-1]]
        floor = [] if i.objective.utility_min is None else [found.utility - i.objective.utility_min]
        rate = np.log(found.secret_rate_mbps) - np.log(np.maximum(i.rate_min_mbps, 1e-9))
        return np.concatenate([shared, late, floor, rate, y[-1] - np.log(found.client_time_s)])

    bounds = [(np.log(v), 0.0) for v in i.share_min] + [(np.log(t) - 12.0, np.log(t)) for t in tops[n:]] + [(None, None)]
    found: list[float] = []
    for part in (0.3, 0.8):
        c = feasible_start(i)
        share = np.exp(np.log(i.share_min) * (1.0 - part))
        y = np.log(np.concatenate([share, c.bandwidth_mhz, c.power_w, c.clock_tflops * part, c.server_tflops, [c.time_s * 3.0]]))
        end = minimize(
            loss,
            y,
            method="SLSQP",
            bounds=bounds,
            constraints={"type": "ineq", "fun": slack},
            options={"maxiter": 200, "ftol": 1e-12},
        )
        if slack(end.x).min() > -1e-7:
            found.append(evaluate(i, choice(end.x)).objective)
    return max(found)


def agrees(instance: Instance) -> Solution:
    solution = solve_conic(instance)
    assert solution.evaluation.worst <= 1e-6
    assert solution.evaluation.objective == pytest.approx(by_slsqp(instance), rel=2e-6)
    return solution


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_ratio_is_that_of_a_general_solver(seed: int) -> None:
    assert agrees(small(seed, clients=2 + seed % 2)).claim == "theorem"


@pytest.mark.parametrize(
    "utility",
    [
        Utility(kind="exponential", weight=np.array([1.0, 2.0]), shape=np.array([6.0, 12.0])),
        Utility(kind="power", weight=np.array([1.0, 0.7]), shape=np.array([0.4, 0.2])),
        Utility(kind="scaling", weight=np.array([1.0, 2.0]), shape=np.array([0.5, 0.3]), offset=np.array([4.0, 5.0])),
        Utility(kind="log_share", weight=np.array([1.0, 2.0]), shape=np.array([0.05, 0.02])),
        Utility(kind="linear", weight=np.array([1.0, 2.0]), shape=np.ones(2)),
    ],
    ids=lambda utility: utility.kind,
)
def test_every_utility_gives_the_ratio_of_a_general_solver(utility: Utility) -> None:
    solution = agrees(replace(small(4, clients=2), utility=utility))
    assert solution.claim == ("none" if utility.kind == "linear" else "theorem")


@pytest.mark.parametrize(
    "objective",
    [Objective(kind="difference", price=0.05), Objective(kind="cost", utility_min=4.0), Objective(kind="max_min")],
    ids=lambda objective: objective.kind,
)
def test_every_objective_is_that_of_a_general_solver(objective: Objective) -> None:
    solution = agrees(replace(small(5, clients=2), objective=objective))
    if objective.utility_min is not None:
        assert solution.evaluation.utility == pytest.approx(objective.utility_min, rel=1e-6)


def test_a_deadline_that_binds_is_met_exactly_and_at_the_cost_of_a_general_solver() -> None:
    free = solve_conic(small(6))
    hurried = agrees(replace(small(6), deadline_s=0.8 * free.evaluation.time_s))
    assert hurried.evaluation.time_s == pytest.approx(0.8 * free.evaluation.time_s, rel=1e-6)
    assert hurried.evaluation.objective < free.evaluation.objective


def test_a_least_rate_that_binds_is_met_exactly_and_at_the_cost_of_a_general_solver() -> None:
    rate = solve_conic(small(7)).evaluation.secret_rate_mbps
    needed = rate * np.array([1.3, 0.5, 0.5])
    assert agrees(replace(small(7), rate_min_mbps=needed)).evaluation.secret_rate_mbps[0] == pytest.approx(needed[0], rel=1e-6)


@pytest.mark.parametrize("seed", [1, 2, 3, 4])
def test_prices_computed_from_the_fixed_share_optimum_in_closed_form_agree(seed: int) -> None:
    """Stationarity: prices of time from the clocks sum to the weight of time; band and machine have one price for all."""
    i = replace(small(seed, clients=4), clock_max_tflops=np.full(4, 1e3), power_max_w=np.full(4, 1e3))
    share = np.linspace(0.2, 0.8, 4)
    c = fixed_share_optimum(i, share=share, tolerance=1e-12).choice
    theta = 2.0 * i.energy_weight_per_j * i.clock_energy_w_per_tflops3 * c.clock_tflops**3
    plugged, x = i.plug_in_tflop * share, c.power_w / c.bandwidth_mhz
    nu = (
        theta * plugged / c.server_tflops**2
        - 2.0 * i.energy_weight_per_j * i.server_energy_w_per_tflops3 * plugged * c.server_tflops
    )
    rho = np.log1p(i.gain_main_mhz_per_w * x) - np.log1p(i.gain_tap_mhz_per_w * x)
    slope = i.gain_main_mhz_per_w / (1.0 + i.gain_main_mhz_per_w * x) - i.gain_tap_mhz_per_w / (1.0 + i.gain_tap_mhz_per_w * x)
    air_s = share * i.update_mbit * np.log(2.0) / (c.bandwidth_mhz * rho)
    mu = i.energy_weight_per_j * (rho / slope - x) * air_s
    assert theta.sum() == pytest.approx(i.time_weight_per_s, rel=1e-3)
    assert np.ptp(nu) <= 1e-3 * nu.max()
    assert np.ptp(mu) <= 3e-3 * mu.max()


def test_shares_below_their_range_stay_as_they_are_in_a_fixed_share_program() -> None:
    share = np.array([0.02, 0.05, 0.5])
    assert fixed_share_optimum(small(1), share=share).choice.share == pytest.approx(share, rel=1e-12)


@pytest.mark.parametrize("kind", ["exponential", "scaling", "log", "linear"])
def test_the_bounds_that_a_program_is_made_of_hold_everywhere_and_touch_at_the_point(kind: UtilityKind) -> None:
    i = random_instance(clients=8, seeds=SeedTree(3))
    offset = np.full(8, 100.0) if kind == "scaling" else None
    shape = np.linspace(0.2, 2.0, 8) if kind == "scaling" else i.utility.shape
    i = replace(i, utility=Utility(kind=kind, weight=i.utility.weight, shape=shape, offset=offset))
    point = start_point(i)
    p = program_numbers(i, point, found=evaluate(i, choice_at(i, point)))
    for move in np.linspace(-2.0, 2.0, 41):
        excess = move + p["even"] * np.expm1(move) + p["square"] * np.expm1(2.0 * move)
        needed = np.log(np.expm1(point.nats * np.exp(move)) / np.expm1(point.nats))
        assert np.all(excess >= needed - 1e-9), move
        share = point.share * np.exp(move)
        curved = p["scale"] * -np.expm1(-p["bend"] * move) if kind in ("exponential", "scaling") else p["slope"] * move
        unit = i.utility.value(point.share).sum()
        assert np.all(curved * unit <= i.utility.value(share) - i.utility.value(point.share) + 1e-9), move


def test_a_permutation_of_clients_permutes_the_choice() -> None:
    i, order = small(8), np.array([2, 0, 1])
    here, there = solve_conic(i, tolerance=1e-11), solve_conic(i.permuted(order), tolerance=1e-11)
    assert there.evaluation.objective == pytest.approx(here.evaluation.objective, rel=1e-8)
    assert there.choice.share == pytest.approx(here.choice.share[order], rel=1e-3)


def test_other_units_of_cost_change_the_ratio_and_not_the_choice() -> None:
    i = small(9)
    scaled = replace(i, time_weight_per_s=1e3 * i.time_weight_per_s, energy_weight_per_j=1e3 * i.energy_weight_per_j)
    here, there = solve_conic(i), solve_conic(scaled)
    assert 1e3 * there.evaluation.objective == pytest.approx(here.evaluation.objective, rel=1e-7)


def test_who_is_heard_better_by_the_eavesdropper_takes_no_part() -> None:
    i = small(10)
    tapped = replace(i, gain_tap_mhz_per_w=i.gain_tap_mhz_per_w + np.array([0.0, 1.0, 0.0]) * i.gain_main_mhz_per_w)
    solution, without = solve_conic(tapped), solve_conic(i.select(np.array([True, False, True])))
    assert solution.excluded == ("client-2",)
    assert solution.choice.share[1] == solution.choice.bandwidth_mhz[1] == solution.choice.power_w[1] == 0.0
    assert solution.evaluation.objective == pytest.approx(without.evaluation.objective, rel=1e-8)


def test_what_cannot_be_met_is_named() -> None:
    i = small(11)
    fastest = solve_conic(
        replace(i, time_weight_per_s=1e6, utility=replace(i.utility, weight=1e-6 * i.utility.weight))
    ).evaluation.time_s
    cases = {
        "deadline_s is": replace(i, deadline_s=0.9 * fastest),
        "rate_min_mbps of client-2": replace(i, rate_min_mbps=np.array([0.0, 1e5, 0.0])),
        "the least rates take": replace(i, rate_min_mbps=0.6 * evaluate(replace(i), _alone(i)).secret_rate_mbps),
        "objective.utility_min": replace(i, objective=Objective(kind="cost", utility_min=1e3)),
        "closest is client-": replace(i, gain_tap_mhz_per_w=2.0 * i.gain_main_mhz_per_w),
    }
    for said, problem in cases.items():
        with pytest.raises(Infeasible, match=said):
            solve_conic(problem)


def _alone(instance: Instance) -> Choice:
    """Everyone with the whole band at top power, as if nobody else were there."""
    start = feasible_start(instance)
    return replace(start, bandwidth_mhz=np.full(instance.clients, instance.bandwidth_mhz), power_w=instance.power_max_w)


def test_discrete_shares_are_refused_rather_than_rounded() -> None:
    with pytest.raises(ConfigError, match="share_levels"):
        solve_conic(replace(small(1), share_levels=(0.25, 0.5, 1.0)))


def test_no_status_but_optimal_is_used_and_all_are_named() -> None:
    x = cp.Variable()
    radii: list[float] = []
    with pytest.raises(SolverFailed, match=r"CLARABEL infeasible.*SCS infeasible"):
        first_optimum(cp.Problem(cp.Minimize(x), [x >= 1.0, x <= 0.0]), within=radii.append, gap=1e-8)
    assert radii == sorted(radii, reverse=True)


@pytest.mark.parametrize("seed", range(4))
def test_extreme_scales_are_solved_too_and_nothing_nearby_is_better(seed: int) -> None:
    i = random_instance(clients=6, seeds=SeedTree(100 + seed), scale="extreme")
    solution = solve_conic(i)
    best, draw = solution.evaluation.objective, np.random.default_rng(seed)
    assert efficiency(i, band=solution.choice.bandwidth_mhz, power=solution.choice.power_w).min() > 0.0
    for size in (1e-1, 1e-2, 1e-3):
        for _ in range(50):
            assert _nudged(i, solution.choice, size * draw.standard_normal((5, 6))) <= best * (1.0 + 1e-8)


def _nudged(instance: Instance, choice: Choice, move: Floats) -> float:
    """The objective after a small move of everything, pushed back inside the limits."""
    i, (share, band, power, clock, server) = instance, np.exp(move)
    band, server = band * choice.bandwidth_mhz, server * choice.server_tflops
    moved = Choice(
        share=np.clip(share * choice.share, i.share_min, i.share_max),
        bandwidth_mhz=band * i.bandwidth_mhz / band.sum(),
        power_w=np.minimum(power * choice.power_w, i.power_max_w),
        clock_tflops=np.minimum(clock * choice.clock_tflops, i.clock_max_tflops),
        server_tflops=server * min(1.0, i.server_tflops / server.sum()),
        time_s=np.inf,
    )
    return evaluate(i, moved).objective
