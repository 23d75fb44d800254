"""Does the bound hold for everything anyone could choose, and does it close where it should?"""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.optimize import minimize

from hushtune_common.seeding import SeedTree
from hushtune_server.coordinator.allocators.balance import balance, least_time
from hushtune_server.coordinator.allocators.certificate import certify, least_costs, responses, upper_bound
from hushtune_server.coordinator.allocators.continuous import outcome_of
from hushtune_server.coordinator.allocators.model import model_of
from hushtune_server.coordinator.allocators.solution import Prices, Solution
from hushtune_server.coordinator.allocators.structured import solve
from hushtune_server.coordinator.problems.draws import Scale, random_instance
from hushtune_server.coordinator.problems.instance import Choice, Instance, evaluate
from hushtune_server.coordinator.problems.utility import Objective, Utility
from tests.optimality.oracles import every, sequential_quadratic

Floats = NDArray[np.float64]
SCALES: tuple[Scale, Scale] = ("default", "extreme")


def drawn(clients: int, seed: int, scale: Scale = "default") -> Instance:
    return random_instance(clients=clients, seeds=SeedTree(seed), scale=scale)


def prices_of(found: Solution) -> Prices:
    assert found.prices is not None
    return found.prices


def somehow(i: Instance, draw: np.random.Generator) -> Choice:
    """Return a random feasible choice."""
    n = i.clients
    return Choice(
        share=np.exp(draw.uniform(np.log(i.share_min), np.log(i.share_max))),
        bandwidth_mhz=i.bandwidth_mhz * draw.dirichlet(np.ones(n)),
        power_w=i.power_max_w * draw.uniform(0.01, 1.0, n),
        clock_tflops=i.clock_max_tflops * draw.uniform(0.05, 1.0, n),
        server_tflops=i.server_tflops * draw.dirichlet(np.ones(n)),
        time_s=1e9,
    )


@pytest.mark.parametrize("scale", SCALES)
def test_the_bound_closes_on_instances_in_the_convex_class(scale: Scale) -> None:
    for seed in range(100):
        found = certify(drawn(1 + seed % 60, 500 + seed, scale), solve(drawn(1 + seed % 60, 500 + seed, scale)))
        assert found.gap is not None
        assert found.gap <= 1e-9
        assert found.claim == "certificate"


GOALS = [
    Objective(kind="ratio"),
    Objective(kind="difference", price=0.2),
    Objective(kind="cost", utility_min=6.0),
    Objective(kind="max_min"),
]


@pytest.mark.parametrize("goal", GOALS, ids=lambda goal: goal.kind)
@pytest.mark.parametrize("utility", ["log", "linear"])
def test_no_random_choice_exceeds_the_bound_at_any_prices(goal: Objective, utility: Any) -> None:
    draw, bounds = np.random.default_rng(5), list[float]()
    for seed in range(5):
        i = replace(drawn(4, seed), objective=goal)
        i = replace(i, utility=Utility(kind=utility, weight=4.0 * i.utility.weight, shape=i.utility.shape))
        best = max(
            e.objective for e in (evaluate(i, somehow(i, draw)) for _ in range(200)) if e.residuals.get("utility", 0.0) == 0.0
        )
        prices = prices_of(solve(i))
        for spread in (0.0, 0.1, 0.3, 1.0, 3.0):
            factors = np.exp(spread * draw.standard_normal(7))
            other = Prices(
                time_per_s=prices.time_per_s * factors[:4],
                bandwidth_per_mhz=prices.bandwidth_per_mhz * factors[4],
                server_per_tflops=(prices.server_per_tflops + 1e-4) * factors[5],
                utility=prices.utility * factors[6],
                worst_off=prices.worst_off,
            )
            bounds.append(upper_bound(i, other))
            assert bounds[-1] >= best
    assert np.isfinite(bounds).sum() >= 10


@pytest.mark.slow
def test_the_bound_is_not_below_what_many_starts_find_outside_the_convex_class() -> None:
    for seed in range(3):
        i = drawn(2, 80 + seed)
        i = replace(i, utility=Utility(kind="linear", weight=i.utility.weight, shape=np.ones(2)))
        other, found = sequential_quadratic(i, starts=8), certify(i, solve(i))
        assert other is not None
        assert found.upper_bound is not None
        assert found.upper_bound >= other.objective


@pytest.mark.parametrize("kind", ["log", "linear", "exponential"])
def test_a_clients_best_response_is_no_less_than_a_dense_grid_of_shares_gives(kind: Any) -> None:
    for seed in range(10):
        i = drawn(3, seed, SCALES[seed % 2])
        i = replace(i, utility=Utility(kind=kind, weight=i.utility.weight, shape=i.utility.shape))
        prices = replace(prices_of(solve(i)), utility=10.0 ** np.random.default_rng(seed).uniform(-1, 3))
        grid = np.exp(np.linspace(np.log(i.share_min), np.log(i.share_max), 4001)).T
        gains = prices.utility * i.utility.value(grid) - least_costs(model_of(i), prices, grid)
        assert (responses(i, prices) >= gains.max(axis=1) - 1e-12 * np.abs(gains).max()).all()
        assert responses(i, prices) == pytest.approx(gains.max(axis=1), rel=1e-5, abs=1e-5 * float(np.abs(gains).max()))


def test_a_clients_least_cost_is_what_a_general_minimiser_finds() -> None:
    i = replace(drawn(1, 12), rate_min_mbps=np.array([0.5]))
    prices = Prices(time_per_s=np.array([0.8]), bandwidth_per_mhz=0.05, server_per_tflops=0.002, utility=1.0)

    def cost(z: Floats) -> float:
        band, power, clock, server = np.exp(z)
        choice = Choice(share=np.array([0.4]), bandwidth_mhz=np.array([band]), power_w=np.array([power]),
                        clock_tflops=np.array([clock]), server_tflops=np.array([server]), time_s=1.0)  # fmt: skip
        e = evaluate(i, choice)
        short = max(0.5 / e.secret_rate_mbps[0] - 1.0, 0.0)
        return 0.01 * e.energy_j + 0.8 * e.time_s + 0.05 * band + 0.002 * server + 1e3 * short

    ends = [(-9.0, 5.0), (-20.0, np.log(0.2)), (-5.0, np.log(i.clock_max_tflops[0])), (-5.0, 9.0)]
    begin = np.log([2.0, 0.05, 0.5, 50.0])
    best = min(minimize(cost, begin, method=m, bounds=ends, options={"maxiter": 4000}).fun for m in ("Nelder-Mead", "Powell"))
    assert least_costs(model_of(i), prices, np.array([[0.4]]))[0, 0] == pytest.approx(best, rel=1e-4)
    assert least_costs(model_of(i), prices, np.array([[0.4]]))[0, 0] <= best * (1.0 + 1e-9)


def test_the_least_cost_is_concave_in_the_share_and_convex_in_its_root() -> None:
    for seed in range(20):
        i = drawn(3, seed, SCALES[seed % 2])
        prices = prices_of(solve(i))
        share, v = np.tile(np.linspace(0.05, 1.0, 65), (3, 1)), np.tile(np.linspace(0.2, 1.0, 65), (3, 1))
        for grid, sign in ((share, 1.0), (v**2, -1.0)):
            costs = least_costs(model_of(i), prices, grid)
            bend = sign * (costs[:, 1:-1] - 0.5 * (costs[:, 2:] + costs[:, :-2]))
            assert (bend >= -1e-12 * np.abs(costs).max()).all()


def test_the_bound_covers_every_combination_of_levels() -> None:
    levels = (0.1, 0.4, 1.0)
    for seed in range(4):
        i = drawn(3, seed)
        values = np.random.default_rng(seed).uniform(0.1, 1.0, (3, 3))
        table = Utility(kind="table", weight=np.ones(3), shape=np.ones(3), levels=levels, values=values)
        i = replace(i, utility=table, share_levels=levels)
        model = model_of(i)
        tried = [balance(model.with_shares(np.array(levels)[k]).priced(1.0)) for k in every(3, 3)]
        found = certify(i, solve(i))
        assert found.upper_bound is not None
        assert found.upper_bound >= max(outcome_of(i, b)[1].objective for b in tried)


def test_a_bound_for_chosen_clients_says_so_and_claims_nothing_about_others() -> None:
    i = drawn(5, 4)
    i = replace(i, start_s=np.array([0.0, 0.0, 500.0, 0.0, 0.0]))
    found = certify(i, solve(i, admission=True))
    assert found.gap is not None
    assert found.gap <= 1e-8
    assert found.claim == "none"
    assert "the bound is for the clients that take part" in found.notes


def test_prices_without_meaning_give_no_bound_and_no_error() -> None:
    i = drawn(3, 2)
    assert upper_bound(i, replace(prices_of(solve(i)), bandwidth_per_mhz=1e6)) == np.inf


def test_a_deadline_is_part_of_the_bound() -> None:
    for seed in range(10):
        i = drawn(5, seed)
        i = replace(i, deadline_s=0.5 * (solve(i).choice.time_s + least_time(model_of(i)).start.time_s))
        found = certify(i, solve(i))
        assert found.gap is not None
        assert found.gap <= 1e-8


def test_a_choice_from_elsewhere_gets_a_bound_too_and_no_false_claim() -> None:
    i = drawn(4, 6)
    found = solve(i)
    worse = evaluate(i, somehow(i, np.random.default_rng(1)))
    other = certify(i, Solution(choice=somehow(i, np.random.default_rng(1)), evaluation=worse, method="chance"))
    assert other.upper_bound == pytest.approx(found.evaluation.objective, rel=1e-9)
    assert other.gap == pytest.approx(found.evaluation.objective / worse.objective - 1.0, rel=1e-6)
    assert other.claim == "none"


def test_clients_left_out_for_good_are_left_out_of_the_bound() -> None:
    i = drawn(4, 6)
    i = replace(
        i, gain_tap_mhz_per_w=np.where(np.arange(4) == 1, 2.0, 1.0) * i.gain_main_mhz_per_w * np.array([0.1, 1.0, 0.1, 0.1])
    )
    found = certify(i, solve(i))
    assert found.excluded == ("client-2",)
    assert found.gap is not None
    assert found.gap <= 1e-9
