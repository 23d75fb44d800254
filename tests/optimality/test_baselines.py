"""Are the baselines what they say, and is optimising more never worse? Held against their definition, laws and each other."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("cvxpy", reason="the package cvxpy is not installed")

from hushtune_common.errors import ConfigError, Infeasible, SolverFailed
from hushtune_common.seeding import SeedTree
from hushtune_server.coordinator.allocators.baselines import (
    even_split,
    solve_communication_only,
    solve_computation_only,
    solve_equal_share,
    solve_random,
    solve_secrecy_blind,
)
from hushtune_server.coordinator.allocators.conic import solve_conic
from hushtune_server.coordinator.allocators.solution import Solution
from hushtune_server.coordinator.allocators.structured import solve
from hushtune_server.coordinator.problems.draws import random_instance
from hushtune_server.coordinator.problems.instance import Instance, evaluate
from hushtune_server.coordinator.problems.utility import Objective

SEEDS = SeedTree(7)


def small(seed: int, *, clients: int = 4) -> Instance:
    return random_instance(clients=clients, seeds=SeedTree(seed))


def with_one_tapped(instance: Instance) -> Instance:
    tap = instance.gain_tap_mhz_per_w.copy()
    tap[1] = 2.0 * instance.gain_main_mhz_per_w[1]
    return replace(instance, gain_tap_mhz_per_w=tap)


@pytest.mark.parametrize("share", [0.1, 0.3, 0.5])
def test_an_even_split_gives_everyone_the_same(share: float) -> None:
    found = solve_equal_share(with_one_tapped(small(1)), share=share)
    assert found.excluded == ("client-2",)
    assert found.choice.bandwidth_mhz == pytest.approx([20 / 3, 0.0, 20 / 3, 20 / 3])
    assert found.choice.server_tflops == pytest.approx([500 / 3, 0.0, 500 / 3, 500 / 3])
    assert found.choice.share == pytest.approx([share, 0.0, share, share])
    assert found.choice.power_w == pytest.approx([0.2, 0.0, 0.2, 0.2])
    taking = np.array([0, 2, 3])
    assert found.choice.clock_tflops[taking] == pytest.approx(0.7 * small(1).clock_max_tflops[taking])


def test_who_forgets_the_eavesdropper_chooses_what_is_best_without_and_is_judged_with() -> None:
    for seed in range(5):
        tapped = with_one_tapped(small(seed))
        found, alone = solve_secrecy_blind(tapped), tapped.select(tapped.usable)
        unheard = solve(replace(alone, gain_tap_mhz_per_w=np.zeros(3)))
        assert found.choice.bandwidth_mhz[tapped.usable] == pytest.approx(unheard.choice.bandwidth_mhz, rel=1e-12)
        assert found.excluded == ("client-2",)
        assert found.evaluation.objective < unheard.evaluation.objective
        assert found.evaluation.objective <= solve(tapped).evaluation.objective * (1.0 + 1e-9)
        assert found.evaluation.objective == pytest.approx(evaluate(tapped, found.choice).objective, rel=1e-12)


def test_a_deadline_that_only_the_unheard_meet_is_a_failure_of_the_forgetful() -> None:
    i = small(1)
    both = (solve_secrecy_blind(i).choice.time_s, solve(replace(i, gain_tap_mhz_per_w=np.zeros(4))).choice.time_s)
    with pytest.raises(SolverFailed, match="deadline by"):
        solve_secrecy_blind(replace(i, deadline_s=0.5 * sum(both)))


def test_an_even_split_takes_the_nearest_level_there_is() -> None:
    levelled = replace(small(2), share_levels=(0.05, 0.2, 0.45, 1.0))
    assert solve_equal_share(levelled, share=0.3).choice.share.tolist() == [0.2] * 4
    assert solve_equal_share(levelled, share=0.06).choice.share.tolist() == [0.2] * 4  # 0.05 is below every range


def test_a_limit_that_the_even_split_breaks_is_named_and_not_called_infeasible() -> None:
    with pytest.raises(SolverFailed, match="deadline by"):
        solve_equal_share(replace(small(3), deadline_s=1e-3))
    with pytest.raises(Infeasible, match="at least as well"):
        solve_equal_share(replace(small(3), gain_tap_mhz_per_w=2.0 * small(3).gain_main_mhz_per_w))
    with pytest.raises(ConfigError, match="share"):
        solve_equal_share(small(3), share=1.5)


def test_random_is_feasible_repeatable_and_improves_with_draws() -> None:
    few, many, again = (solve_random(small(4), seeds=SEEDS, draws=k) for k in (10, 200, 200))
    assert many.evaluation.worst <= 1e-9
    assert many.evaluation.objective >= few.evaluation.objective
    assert np.array_equal(many.choice.share, again.choice.share)
    assert solve_random(small(4), seeds=SeedTree(8)).evaluation.objective != many.evaluation.objective


def test_random_does_not_depend_on_the_order_of_clients() -> None:
    order = np.array([3, 1, 0, 2])
    here, there = solve_random(small(5), seeds=SEEDS), solve_random(small(5).permuted(order), seeds=SEEDS)
    assert there.choice.share == pytest.approx(here.choice.share[order], rel=1e-12)
    assert there.choice.bandwidth_mhz == pytest.approx(here.choice.bandwidth_mhz[order], rel=1e-9)


def test_random_draws_only_levels_that_a_client_may_use_and_all_of_them() -> None:
    levelled = replace(small(6), share_levels=(0.05, 0.2, 0.45, 1.0))
    drawn = {float(s) for k in range(30) for s in solve_random(levelled, seeds=SeedTree(k), draws=1).choice.share}
    assert drawn == {0.2, 0.45, 1.0}


def test_no_draw_within_a_deadline_is_a_failure_and_not_an_answer() -> None:
    with pytest.raises(SolverFailed, match="none of 5 draws"):
        solve_random(replace(small(7), deadline_s=1e-3), seeds=SEEDS, draws=5)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3, 4])
def test_optimising_everything_beats_one_side_which_beats_an_even_split(seed: int) -> None:
    i = small(seed, clients=6)
    full, *single = (solve(i).evaluation.objective for solve in (solve_conic, solve_communication_only, solve_computation_only))
    even = max(solve_equal_share(i, share=s).evaluation.objective for s in (0.1, 0.3, 0.5))
    assert full >= max(single) * (1.0 - 1e-8)
    assert min(single) >= even
    assert full > 1.05 * max(even, solve_random(i, seeds=SEEDS).evaluation.objective)


@pytest.mark.slow
def test_communication_only_leaves_the_clocks_and_computation_only_the_radio() -> None:
    i = with_one_tapped(small(5))
    taking = i.usable
    radio, compute = solve_communication_only(i).choice, solve_computation_only(i).choice
    assert radio.clock_tflops == pytest.approx(np.where(taking, i.clock_max_tflops, 0.0), rel=1e-12)
    assert radio.server_tflops == pytest.approx(np.where(taking, 500 / 3, 0.0), rel=1e-12)
    assert compute.bandwidth_mhz == pytest.approx(np.where(taking, 20 / 3, 0.0), rel=1e-12)
    assert compute.power_w == pytest.approx(np.where(taking, i.power_max_w, 0.0), rel=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("solve", [solve_communication_only, solve_computation_only])
def test_nothing_near_a_single_block_optimum_is_better(solve: Callable[[Instance], Solution]) -> None:
    i = small(6)
    found, draw = solve(i), np.random.default_rng(1)
    own = ("bandwidth_mhz", "power_w") if solve is solve_communication_only else ("clock_tflops", "server_tflops")
    tops = {
        "bandwidth_mhz": i.bandwidth_mhz,
        "server_tflops": i.server_tflops,
        "power_w": i.power_max_w,
        "clock_tflops": i.clock_max_tflops,
    }
    for _ in range(200):
        size = 10.0 ** draw.uniform(-4, -1)
        moved = {name: getattr(found.choice, name) * np.exp(size * draw.standard_normal(4)) for name in ("share", *own)}
        moved["share"] = np.clip(moved["share"], i.share_min, i.share_max)
        for name in own:
            top = tops[name]
            moved[name] = (
                np.minimum(moved[name], top) if isinstance(top, np.ndarray) else moved[name] * min(1.0, top / moved[name].sum())
            )
        assert evaluate(i, replace(found.choice, **moved)).objective <= found.evaluation.objective * (1.0 + 1e-8)


@pytest.mark.slow
def test_a_single_block_that_cannot_meet_a_deadline_says_so_and_does_not_call_it_infeasible() -> None:
    i = replace(small(7), bandwidth_mhz=1.0)
    hurried = replace(i, deadline_s=1.001 * solve_conic(i).evaluation.time_s)
    assert solve_conic(hurried).evaluation.worst <= 1e-6
    with pytest.raises(SolverFailed, match="with given radio"):
        solve_computation_only(hurried)


def test_an_even_split_is_worth_what_the_formulas_say_for_every_objective() -> None:
    i = replace(small(8), objective=Objective(kind="difference", price=0.1))
    found = solve_equal_share(i)
    again = evaluate(i, even_split(i, share=np.full(4, 0.3)))
    assert found.evaluation.objective == pytest.approx(again.utility - 0.1 * again.cost, rel=1e-12)
