"""Are levels, admission, the worst-off client, clock levels and statistical eavesdroppers handled as well as brute force does?"""

from contextlib import suppress
from dataclasses import replace
from math import log

import numpy as np
import pytest
from numpy.typing import NDArray

from hushtune_common.errors import Infeasible
from hushtune_common.seeding import SeedTree
from hushtune_server.coordinator.allocators.balance import balance
from hushtune_server.coordinator.allocators.certificate import certify
from hushtune_server.coordinator.allocators.continuous import outcome_of
from hushtune_server.coordinator.allocators.extensions import tap_quantile, with_statistical_tap
from hushtune_server.coordinator.allocators.model import model_of
from hushtune_server.coordinator.allocators.structured import solve
from hushtune_server.coordinator.problems.draws import Scale, random_instance
from hushtune_server.coordinator.problems.instance import ClockLevels, Evaluation, Instance, evaluate
from hushtune_server.coordinator.problems.utility import Objective, Utility
from tests.optimality.oracles import every

Floats = NDArray[np.float64]
SCALES: tuple[Scale, Scale] = ("default", "extreme")
LEVELS = (0.1, 0.25, 0.5, 1.0)


def drawn(clients: int, seed: int, scale: Scale = "default") -> Instance:
    return random_instance(clients=clients, seeds=SeedTree(seed), scale=scale)


def with_levels(i: Instance, *, table: bool, seed: int = 0) -> Instance:
    n = i.clients
    wide = replace(i, share_min=np.full(n, 0.1), share_max=np.ones(n), share_levels=LEVELS)
    if not table:
        return wide
    values = np.sort(np.random.default_rng(seed).uniform(0.1, 1.0, (n, 4)), axis=1)
    return replace(wide, utility=Utility(kind="table", weight=np.ones(n), shape=np.ones(n), levels=LEVELS, values=values))


def at_shares(i: Instance, share: Floats) -> Evaluation:
    return outcome_of(i, balance(model_of(i).with_shares(share).priced(1.0)))[1]


def best_of_all_levels(i: Instance) -> float:
    tried = [at_shares(i, np.array(LEVELS)[k]) for k in every(4, i.clients)]
    return max(e.objective for e in tried if e.residuals.get("utility", 0.0) <= 1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("table", [False, True])
def test_levels_are_chosen_as_well_as_by_trying_all(table: bool) -> None:
    for seed in range(8):
        i = with_levels(drawn(3 + seed % 2, seed, SCALES[seed // 2 % 2]), table=table, seed=seed)
        found = solve(i)
        assert set(found.choice.share.round(12)) <= set(LEVELS)
        assert found.evaluation.objective == pytest.approx(best_of_all_levels(i), rel=1e-8)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["difference", "cost", "max_min"])
def test_levels_serve_other_goals_as_well_as_trying_all_does(kind: str) -> None:
    for seed in range(5):
        i = with_levels(drawn(3, 30 + seed), table=True, seed=seed)
        ratio = solve(i).evaluation
        most = 0.95 * float(i.utility.value(i.level_grid()).max(axis=1).sum())
        if kind == "difference":
            i = replace(i, objective=Objective(kind="difference", price=0.8 * ratio.objective))
        elif kind == "cost":
            i = replace(i, objective=Objective(kind="cost", utility_min=min(1.1 * ratio.utility, most)))
        else:
            i = replace(i, objective=Objective(kind="max_min"))
        assert solve(i).evaluation.objective == pytest.approx(best_of_all_levels(i), rel=1e-8)


def test_levels_lose_little_against_the_bound_when_there_are_many_clients() -> None:
    i = with_levels(drawn(40, 3), table=False)
    found = certify(i, solve(i))
    assert found.gap is not None
    assert found.gap < 0.05
    assert found.claim == "none"


def test_levels_that_no_deadline_allows_are_refused() -> None:
    i = with_levels(drawn(3, 3), table=False)
    with pytest.raises(Infeasible, match="deadline_s"):
        solve(replace(i, deadline_s=1e-3))


@pytest.mark.slow
@pytest.mark.parametrize("scale", SCALES)
def test_who_takes_part_is_decided_as_well_as_by_trying_all_sets(scale: Scale) -> None:
    left_out = 0
    for seed in range(8):
        i = drawn(5, 100 + seed, scale)
        found = solve(i, admission=True)
        best = max(solve(i.select(k.astype(np.bool_))).evaluation.objective for k in every(2, 5) if k.any())
        assert found.evaluation.objective == pytest.approx(best, rel=1e-8)
        assert evaluate(i, found.choice).objective == pytest.approx(best, rel=1e-8)
        left_out += len(found.excluded)
    assert left_out > 0


def limited(i: Instance, what: str) -> Instance:
    found = solve(i)
    utility, time_s = found.evaluation.utility, found.choice.time_s
    match what:
        case "deadline":
            return replace(i, deadline_s=0.5 * time_s)
        case "one rate out of reach":
            return replace(i, rate_min_mbps=np.where(np.arange(i.clients) == 1, 1e6, 0.0))
        case "rates beyond the band":
            return replace(i, rate_min_mbps=3.0 * found.evaluation.secret_rate_mbps)
        case "floor of utility":
            return replace(i, objective=Objective(kind="cost", utility_min=0.5 * utility))
        case _:
            return replace(i, objective=Objective(kind="cost", utility_min=1.1 * utility), deadline_s=0.8 * time_s)


@pytest.mark.slow
@pytest.mark.parametrize(
    "what", ["deadline", "one rate out of reach", "rates beyond the band", "floor of utility", "floor and deadline"]
)
def test_limits_that_not_everyone_can_meet_bind_those_who_take_part(what: str) -> None:
    for seed in range(4):
        i = limited(drawn(5, seed), what)
        values: list[float] = []
        for k in every(2, 5)[1:]:
            with suppress(Infeasible):
                values.append(solve(i.select(k.astype(np.bool_))).evaluation.objective)
        if not values:
            with pytest.raises(Infeasible):
                solve(i, admission=True)
            continue
        found = solve(i, admission=True)
        assert found.evaluation.objective == pytest.approx(max(values), rel=1e-8), seed
        assert found.evaluation.worst < 1e-9


def test_where_no_client_can_take_part_at_all_the_reason_is_given() -> None:
    i = drawn(4, 2)
    with pytest.raises(Infeasible, match="rate_min_mbps of 1e"):
        solve(replace(i, rate_min_mbps=np.full(4, 1e6)), admission=True)


def test_a_client_that_holds_up_all_others_is_left_out_with_the_reason() -> None:
    i = drawn(6, 4)
    i = replace(i, start_s=np.array([0.0, 0.0, 500.0, 0.0, 0.0, 0.0]))
    found = solve(i, admission=True)
    assert "client-3" in found.excluded
    assert any("client-3 takes no part: the objective is higher without it" in note for note in found.notes)
    assert found.evaluation.objective > 2.0 * solve(i).evaluation.objective


def test_the_worst_off_client_is_served_as_well_as_a_search_over_levels_and_the_bound_say() -> None:
    for seed in range(25):
        i = replace(drawn(1 + seed % 8, seed, SCALES[seed % 2]), objective=Objective(kind="max_min"))
        if (i.utility.value(i.share_max) <= 0.0).any():
            continue
        found = certify(i, solve(i))
        assert found.gap is not None
        assert found.gap < 1e-8
        reach = float(i.utility.value(i.share_max).min())
        for level in np.linspace(float(i.utility.value(i.share_min).min()), reach, 8)[1:]:
            share = np.clip(i.utility.share_of(np.full(i.clients, level)), i.share_min, i.share_max)
            assert at_shares(i, share).objective <= found.evaluation.objective * (1.0 + 1e-9)


def clocked(i: Instance, count: int) -> Instance:
    levels: list[ClockLevels] = []
    for top, k in zip(i.clock_max_tflops, i.clock_energy_w_per_tflops3, strict=True):
        clocks = top * np.linspace(0.2, 1.0, count)
        clocks[-1] = top
        levels.append(ClockLevels(clock_tflops=tuple(clocks), power_w=tuple(0.05 * k * top**3 + k * clocks**3)))
    return replace(i, clock_levels=tuple(levels))


def test_clock_levels_shared_in_time_are_used_best() -> None:
    for seed in range(40):
        i = clocked(drawn(1 + seed % 12, seed, SCALES[seed % 2]), 8)
        found = certify(i, solve(i))
        assert found.evaluation.worst < 1e-9
        assert found.gap is not None
        assert found.gap < 1e-8


def test_more_clock_levels_are_never_worse_and_few_cost_little() -> None:
    i = drawn(10, 3)
    few, many = (solve(clocked(i, n)).evaluation.objective for n in (8, 57))
    assert few <= many * (1.0 + 1e-9)
    assert few > 0.97 * many


def test_the_quantile_of_a_rayleigh_tap_is_the_closed_form() -> None:
    for outage in (0.1, 0.01, 1e-6):
        assert tap_quantile(outage) == pytest.approx(log(1.0 / outage), rel=1e-9)


@pytest.mark.parametrize(("antennas", "eavesdroppers"), [(1, 1), (4, 1), (1, 5), (2, 3)])
@pytest.mark.parametrize("outage", [0.1, 0.01])
def test_simulated_taps_exceed_the_quantile_as_often_as_allowed(antennas: int, eavesdroppers: int, outage: float) -> None:
    trials = 200_000
    gains = np.random.default_rng(1).standard_exponential((trials, eavesdroppers, antennas)).sum(axis=2).max(axis=1)
    exceeded = float((gains > tap_quantile(outage, antennas=antennas, eavesdroppers=eavesdroppers)).mean())
    assert exceeded == pytest.approx(outage, abs=4.0 * (outage * (1.0 - outage) / trials) ** 0.5)


def test_a_statistical_tap_keeps_the_promised_outage_and_costs_something() -> None:
    i = drawn(6, 2)
    i = replace(i, gain_tap_mhz_per_w=0.05 * i.gain_main_mhz_per_w)
    careful = with_statistical_tap(i, outage=0.05)
    found = solve(careful)
    assert found.evaluation.objective < solve(i).evaluation.objective
    fades = np.random.default_rng(2).standard_exponential((20_000, 6))
    x = found.choice.power_w / found.choice.bandwidth_mhz
    secret = np.log2((1.0 + i.gain_main_mhz_per_w * x) / (1.0 + fades * i.gain_tap_mhz_per_w * x)) * found.choice.bandwidth_mhz
    outage = (secret < found.evaluation.secret_rate_mbps * (1.0 - 1e-12)).mean(axis=0)
    assert outage == pytest.approx(np.full(6, 0.05), abs=4.0 * (0.05 * 0.95 / 20_000) ** 0.5)
