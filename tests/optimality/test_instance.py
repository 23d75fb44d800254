"""Is the resource problem what the formulas say, and are its known properties true of what is computed?"""

from collections.abc import Callable
from dataclasses import replace
from math import log2
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.optimize import linprog

from hushtune_common.seeding import SeedTree
from hushtune_server.coordinator.problems.draws import random_instance
from hushtune_server.coordinator.problems.forms import to_tree
from hushtune_server.coordinator.problems.instance import Choice, ClockLevels, Instance, evaluate, secret_rate_mbps
from hushtune_server.coordinator.problems.utility import UTILITY_KINDS, Objective, Utility, UtilityKind

Floats = NDArray[np.float64]
SHAPES: dict[UtilityKind, float] = {
    "log": 20.0,
    "exponential": 6.0,
    "power": 0.4,
    "scaling": 0.7,
    "log_share": 0.05,
    "linear": 1.0,
}


GOALS: list[tuple[Objective, Callable[[Floats, float], float]]] = [
    (Objective(kind="ratio"), lambda u, s: u.sum() / s),
    (Objective(kind="difference", price=0.3), lambda u, s: u.sum() - 0.3 * s),
    (Objective(kind="cost", utility_min=0.1), lambda _, s: -s),
    (Objective(kind="max_min"), lambda u, s: u.min() / s),
]


def some(clients: int = 4, seed: int = 1) -> Instance:
    return random_instance(clients=clients, seeds=SeedTree(seed))


def halves(i: Instance) -> Choice:
    n = i.clients
    return Choice(
        share=np.full(n, 0.5),
        bandwidth_mhz=np.full(n, i.bandwidth_mhz / n),
        power_w=0.5 * i.power_max_w,
        clock_tflops=0.5 * i.clock_max_tflops,
        server_tflops=np.full(n, i.server_tflops / n),
        time_s=1e6,
    )


def utility(kind: UtilityKind, clients: int = 3) -> Utility:
    return Utility(
        kind=kind, weight=np.linspace(0.5, 1.5, clients), shape=np.full(clients, SHAPES[kind]), offset=np.full(clients, 3.0)
    )


def test_one_client_costs_what_the_formulas_say() -> None:
    i = some(clients=1)
    c = halves(i)
    a, e = i.gain_main_mhz_per_w[0], i.gain_tap_mhz_per_w[0]
    b, p, f, big_f = c.bandwidth_mhz[0], c.power_w[0], c.clock_tflops[0], c.server_tflops[0]
    rate = b * (log2(1.0 + a * p / b) - log2(1.0 + e * p / b))
    work = i.train_tflop[0] * (0.3 + 0.7 * 0.5)
    times = work / f, 0.5 * i.update_mbit[0] / rate, 0.5 * i.plug_in_tflop[0] / big_f
    energies = i.clock_energy_w_per_tflops3[0] * work * f**2, p * times[1], 1e-3 * 0.5 * i.plug_in_tflop[0] * big_f**2
    found = evaluate(i, c)
    assert found.secret_rate_mbps[0] == pytest.approx(rate, rel=1e-12)
    assert found.time_s == pytest.approx(sum(times), rel=1e-12)
    assert found.energy_j == pytest.approx(sum(energies), rel=1e-12)
    assert found.objective == pytest.approx(found.utility / (sum(times) + 0.01 * sum(energies)), rel=1e-12)


@pytest.mark.parametrize(("goal", "expected"), GOALS)
def test_objectives_are_what_they_are_called(goal: Objective, expected: Callable[[Floats, float], float]) -> None:
    i = replace(some(), objective=goal)
    found = evaluate(i, halves(i))
    each = i.utility.value(np.full(4, 0.5))
    assert found.objective == pytest.approx(expected(each, found.cost), rel=1e-12)


def test_who_takes_no_part_costs_nothing_and_is_worth_nothing() -> None:
    i = some()
    mask = np.array([True, False, True, True])
    part, whole = halves(i.select(mask)), halves(i)
    arrays = ("share", "bandwidth_mhz", "power_w", "clock_tflops", "server_tflops")
    changed = {name: np.where(mask, getattr(whole, name), 0.0) for name in arrays}
    changed["bandwidth_mhz"] *= 4 / 3
    changed["server_tflops"] *= 4 / 3
    assert evaluate(i, replace(whole, **changed)).objective == pytest.approx(evaluate(i.select(mask), part).objective, rel=1e-12)


def test_order_of_clients_does_not_matter() -> None:
    i, order = some(), np.array([2, 0, 3, 1])
    first, second = evaluate(i, halves(i)), evaluate(i.permuted(order), halves(i.permuted(order)))
    assert second.objective == pytest.approx(first.objective, rel=1e-12)
    assert second.secret_rate_mbps.tolist() == first.secret_rate_mbps[order].tolist()


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("bandwidth", {"bandwidth_mhz": np.full(4, 6.0)}),
        ("server", {"server_tflops": np.full(4, 150.0)}),
        ("power", {"power_w": np.full(4, 0.24)}),
        ("share", {"share": np.full(4, 1.2)}),
        ("time", {"time_s": 1e-3}),
        ("sign", {"power_w": np.full(4, -0.2)}),
    ],
)
def test_residuals_see_each_violation(family: str, changes: dict[str, Any]) -> None:
    i = some()
    assert evaluate(i, halves(i)).worst == 0.0
    assert evaluate(i, replace(halves(i), **changes)).residuals[family] > 0.15


def test_residuals_see_deadline_rate_level_and_floor() -> None:
    i = replace(some(), deadline_s=1e-3, rate_min_mbps=np.full(4, 1e6), share_levels=(0.25, 1.0))
    i = replace(i, objective=Objective(kind="cost", utility_min=1e3))
    found = evaluate(i, halves(i)).residuals
    assert min(found[name] for name in ("deadline", "rate", "levels", "utility")) > 0.4


@pytest.mark.parametrize("kind", [k for k in UTILITY_KINDS if k != "table"])
def test_utilities_have_the_derivatives_and_inverse_they_claim(kind: UtilityKind) -> None:
    u, step = utility(kind), 1e-5
    for share in (np.full(3, 0.12), np.array([0.3, 0.5, 0.9])):
        rise = (u.value(share + step) - u.value(share - step)) / (2.0 * step)
        bend = (u.slope(share + step) - u.slope(share - step)) / (2.0 * step)
        assert u.slope(share) == pytest.approx(rise, rel=1e-7)
        assert u.curvature(share) == pytest.approx(bend, rel=1e-6, abs=1e-9)
        assert u.share_of(u.value(share)) == pytest.approx(share, rel=1e-12)


@pytest.mark.parametrize("kind", [k for k in UTILITY_KINDS if k != "table"])
def test_the_least_risk_aversion_is_the_least_over_the_range(kind: UtilityKind) -> None:
    u, low, high = utility(kind), np.full(3, 0.1), np.full(3, 1.0)
    grid = np.tile(np.linspace(0.1, 1.0, 400), (3, 1))
    everywhere = -grid * u.curvature(grid) / u.slope(grid)
    assert u.relative_risk_aversion_min(low, high) == pytest.approx(everywhere.min(axis=1), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize(
    ("kind", "inside"), [("log", 10.01), ("exponential", 5.01), ("power", 0.499), ("scaling", 0.01), ("log_share", 0.05)]
)
def test_the_convex_class_is_where_the_utility_is_concave_in_the_root_of_the_share(kind: UtilityKind, inside: float) -> None:
    low, high = np.array([0.1]), np.array([1.0])
    u = Utility(kind=kind, weight=np.ones(1), shape=np.array([inside]))
    assert u.in_theorem(low, high)
    v = np.sqrt(np.linspace(0.1, 1.0, 301))[None, :]
    middle = u.value((0.5 * (v[:, 2:] + v[:, :-2])) ** 2) - 0.5 * (u.value(v[:, 2:] ** 2) + u.value(v[:, :-2] ** 2))
    assert (middle > -1e-12).all()


def test_utilities_that_curve_too_little_are_outside_the_class() -> None:
    low, high = np.array([0.1]), np.array([1.0])
    shapes: dict[UtilityKind, float] = {"log": 9.9, "exponential": 4.9, "power": 0.51, "linear": 1.0}
    for kind, shape in shapes.items():
        assert not Utility(kind=kind, weight=np.ones(1), shape=np.array([shape])).in_theorem(low, high)


def test_the_secret_rate_is_concave_in_band_and_power_where_the_owner_hears_better() -> None:
    i, draw = random_instance(clients=2000, seeds=SeedTree(3), scale="extreme"), np.random.default_rng(3)
    band, power = 10.0 ** draw.uniform(-3, 2, (2, 2000)), 10.0 ** draw.uniform(-6, 1, (2, 2000))
    ends = [secret_rate_mbps(i, bandwidth_mhz=b, power_w=p) for b, p in zip(band, power, strict=True)]
    middle = secret_rate_mbps(i, bandwidth_mhz=band.mean(axis=0), power_w=power.mean(axis=0))
    assert (middle >= 0.5 * (ends[0] + ends[1]) * (1.0 - 1e-12)).all()


def test_sharing_time_between_clock_levels_costs_what_a_linear_program_says() -> None:
    device = ClockLevels(clock_tflops=(1.0, 1.6, 2.0, 3.0), power_w=(2.0, 4.5, 5.0, 12.0))
    clocks, powers = (0.0, *device.clock_tflops), (0.0, *device.power_w)
    for clock in (0.3, 1.0, 1.3, 1.8, 2.5, 3.0):
        best = linprog(powers, A_eq=[clocks, [1.0] * 5], b_eq=[clock, 1.0])
        assert device.power(clock) == pytest.approx(best.fun, rel=1e-9)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"gain_tap_mhz_per_w": np.array([1.0, -1.0, 1.0, 1.0])}, ("gain_tap_mhz_per_w", "client-2")),
        ({"power_max_w": np.array([1.0, 1.0, np.nan, 1.0])}, ("power_max_w", "client-3")),
        ({"share_min": np.array([0.1, 0.1, 0.1, 2.0])}, ("share_min", "client-4", "share_max")),
        ({"update_mbit": np.ones(3)}, ("update_mbit", "(3,)")),
        ({"bandwidth_mhz": 0.0}, ("bandwidth_mhz",)),
        ({"deadline_s": -1.0}, ("deadline_s",)),
        ({"share_levels": (0.01, 0.05)}, ("share_levels", "client-1")),
        ({"clock_levels": (ClockLevels(clock_tflops=(9.0,), power_w=(1.0,)),) * 4}, ("clock_max_tflops", "client-1")),
        ({"names": ("a", "b", "a", "c")}, ("unique",)),
    ],
)
def test_instances_that_cannot_be_right_are_refused_by_name(changes: dict[str, Any], words: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match=".*".join(words).replace("(", r"\(").replace(")", r"\)")):
        replace(some(), **changes)


def test_a_ratio_of_nothing_worth_is_refused() -> None:
    worthless = Utility(kind="scaling", weight=np.ones(4), shape=np.ones(4))
    with pytest.raises(ValueError, match=r"utility\.offset"):
        replace(some(), utility=worthless)


@pytest.mark.parametrize("scale", ["default", "extreme"])
def test_random_instances_depend_on_their_seed_only_and_can_be_certified(scale: Any) -> None:
    for seed in range(30):
        first, second = (random_instance(clients=5, seeds=SeedTree(seed), scale=scale) for _ in range(2))
        assert to_tree(first) == to_tree(second)
        assert first.usable.all()
        assert first.in_theorem


def test_a_cell_has_clients_that_the_eavesdropper_hears_better() -> None:
    share = [1.0 - random_instance(clients=200, seeds=SeedTree(s), usable_only=False).usable.mean() for s in range(40)]
    assert 0.2 < float(np.mean(share)) < 0.45
