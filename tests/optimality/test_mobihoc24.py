"""Do the rebuilt experiments show what theory says, and does the command write them? Signs, order, laws of problems, files."""

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("cvxpy", reason="the package cvxpy is not installed")
pytest.importorskip("matplotlib", reason="the package matplotlib is not installed")

from hushtune_common.errors import ConfigError, SolverFailed
from hushtune_common.seeding import SeedTree
from hushtune_server.cli import main
from hushtune_server.coordinator.allocators.solution import Solution
from hushtune_server.coordinator.allocators.structured import solve
from hushtune_server.coordinator.problems.instance import Instance
from hushtune_server.coordinator.problems.utility import Floats, Objective
from hushtune_server.testbed.experiments import problems
from hushtune_server.testbed.experiments.commands import STUDIES, mobihoc24
from hushtune_server.testbed.experiments.contenders import START_SHARE, Contender, contenders
from hushtune_server.testbed.experiments.mobihoc24 import QUICK, Plan, compare, seeds_of
from hushtune_server.testbed.experiments.problems import SWEEPS, Sweep

RISING = [sweep for sweep in SWEEPS if sweep.rises]
SEEDS = range(4)


def best(problem: Instance) -> float:
    return solve(problem).evaluation.objective


def over(sweep: Sweep, seed: int) -> Floats:
    return np.array([best(sweep.build(seeds_of(seed), 4, x)) for x in sweep.points])


@pytest.mark.parametrize("sweep", RISING, ids=lambda s: s.name)
@pytest.mark.parametrize("seed", SEEDS)
def test_the_best_ratio_rises_with_what_helps(sweep: Sweep, seed: int) -> None:
    ratios = over(sweep, seed)
    assert np.all(np.diff(ratios) >= -1e-9 * ratios[:-1])
    assert ratios[-1] > 1.001 * ratios[0]


@pytest.mark.parametrize("sweep", RISING, ids=lambda s: s.name)
@pytest.mark.parametrize("seed", SEEDS)
def test_what_helps_helps_less_and_less(sweep: Sweep, seed: int) -> None:
    def by_doubling(x: float) -> float:
        return best(sweep.build(seeds_of(seed), 4, 2.0 * x)) / best(sweep.build(seeds_of(seed), 4, x)) - 1.0

    first, last = sweep.points[0], sweep.points[-1]
    assert by_doubling(first) > by_doubling(last)
    assert by_doubling(1e3 * last) < 1e-2


@pytest.mark.parametrize("weight", ["time_weight_per_s", "energy_weight_per_j"])
def test_with_y_held_the_mean_share_falls_as_time_or_energy_weigh_more(weight: str) -> None:
    shares = np.array([shares_over(weight, seed, factors=(0.1, 1.0, 10.0)) for seed in SEEDS])
    assert np.all(np.diff(shares, axis=1) <= 1e-9)  # equal where every share is at an end of its range
    assert np.all(np.diff(shares.mean(axis=0)) < -0.1)


def shares_over(weight: str, seed: int, *, factors: tuple[float, ...]) -> list[float]:
    drawn = problems.default(seeds_of(seed), 6)
    held = replace(drawn, objective=Objective(kind="difference", price=best(drawn)))
    dearer = [replace(held, **{weight: factor * getattr(held, weight)}) for factor in factors]
    return [float(solve(one).choice.share.mean()) for one in dearer]


def test_under_the_ratio_only_the_proportion_of_the_weights_matters() -> None:
    drawn = problems.default(seeds_of(0), 6)
    dearer = replace(drawn, time_weight_per_s=5.0 * drawn.time_weight_per_s, energy_weight_per_j=5.0 * drawn.energy_weight_per_j)
    assert solve(dearer).choice.share == pytest.approx(solve(drawn).choice.share, rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
def test_joint_beats_alternating_beats_a_single_block_beats_the_average(seed: int) -> None:
    problem = problems.default(seeds_of(seed), 4)
    rows = {row.method: row.ratio or 0.0 for row in compare(problem, methods=contenders(), repetition=seed)}
    slack = 1.0 + 1e-6
    assert rows["global"] * slack >= max(rows.values())
    assert rows["conic"] == pytest.approx(rows["global"], rel=1e-5)
    assert rows["global"] * slack >= rows["alternating_free"]
    for single in ("shares_only", "resources_only"):
        assert rows["alternating_free"] * slack >= rows[single] >= rows["average"] / slack


def test_the_blind_plan_is_judged_as_heard_and_the_resources_keep_their_shares() -> None:
    problem = problems.default(seeds_of(1), 4)
    by_name = {c.name: c for c in contenders()}
    blind, kept = (by_name[name].solve(problem, SeedTree(0)) for name in ("secrecy_blind", "resources_only"))
    unheard = solve(replace(problem, gain_tap_mhz_per_w=np.zeros(4)))
    assert blind.evaluation.objective < best(problem) < unheard.evaluation.objective
    assert blind.evaluation.worst <= 1e-9
    assert kept.choice.share.tolist() == [START_SHARE] * 4


def test_the_eavesdropper_walks_away_from_every_client_at_once() -> None:
    near, far = (problems.eavesdropper(seeds_of(2), 30, km) for km in (0.5, 0.6))
    assert near.usable.all()
    assert np.all(far.gain_tap_mhz_per_w < near.gain_tap_mhz_per_w)
    assert np.array_equal(far.gain_main_mhz_per_w, near.gain_main_mhz_per_w)


def test_more_owners_contain_the_fewer_and_equal_seeds_give_equal_problems() -> None:
    few, many = (problems.owners(seeds_of(3), 4, n) for n in (3, 8))
    assert np.array_equal(few.gain_tap_mhz_per_w, many.gain_tap_mhz_per_w[:3])
    assert few.bandwidth_mhz == many.bandwidth_mhz
    assert not np.array_equal(few.update_mbit, problems.owners(seeds_of(4), 4, 3).update_mbit)


def test_at_the_average_allocation_time_and_energy_cost_what_their_weights_say() -> None:
    problem = problems.weight(seeds_of(0), 4, 0.3)
    average = next(c for c in contenders() if c.name == "average").solve(problem, SeedTree(0)).evaluation
    assert average.cost == pytest.approx(1.0, rel=1e-12)
    assert problem.time_weight_per_s * average.time_s == pytest.approx(0.3, rel=1e-12)


def test_a_method_without_an_answer_leaves_a_row_that_says_so() -> None:
    def fails(_problem: Instance, _seeds: SeedTree) -> Solution:
        raise SolverFailed("no answer")

    (row,) = compare(
        problems.default(seeds_of(0), 2), methods=[Contender(name="none", label="", says="", solve=fails)], repetition=0
    )
    assert (row.status, row.ratio) == ("SolverFailed", None)


@pytest.mark.parametrize("plan", [Plan(), QUICK], ids=["full", "quick"])
@pytest.mark.parametrize("sweep", SWEEPS, ids=lambda s: s.name)
def test_a_thinned_sweep_keeps_its_ends_within_the_plan(sweep: Sweep, plan: Plan) -> None:
    points = plan.points(sweep)
    assert len(points) == min(plan.points_max, len(points)) >= 2
    assert points[0] == sweep.points[0]
    assert points[-1] == (sweep.points[-1] if sweep.name != "owners" else max(x for x in sweep.points if x <= plan.clients_max))


@pytest.fixture(scope="module")
def quick_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("mobihoc24")
    assert main(["experiments", "mobihoc24", "--quick", "--seeds", "1", "--out", str(out)]) == 0
    return out


@pytest.mark.slow
def test_a_run_writes_numbers_and_a_captioned_figure_for_every_experiment(quick_run: Path) -> None:
    text = (quick_run / "README.md").read_text(encoding="utf-8")
    known = {*(s.name for s in SWEEPS), *STUDIES}
    assert {path.stem for path in quick_run.glob("*.svg")} == {path.stem for path in quick_run.glob("*.csv")} == known
    for name in known:
        _, _, caption = text.partition(f"({name}.svg)")
        assert "econstructed" in caption.partition("###")[0]
        assert f"--quick --seeds 1 --only {name}`" in caption.partition("###")[0]


@pytest.mark.slow
def test_every_method_has_a_row_at_every_point_and_none_beats_the_optimum(quick_run: Path) -> None:
    with (quick_run / "bandwidth.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    asked = {(f"{x:g}", c.name) for x in QUICK.points(SWEEPS[0]) for c in contenders()}
    assert {(row["bandwidth_mhz"], row["method"]) for row in rows} == asked
    assert len(rows) == len(asked)
    assert all(float(row["relative_to_optimum"]) <= 1.0 + 1e-5 for row in rows)


@pytest.mark.slow
def test_the_same_experiment_alone_writes_the_same_files_and_no_text(quick_run: Path, tmp_path: Path) -> None:
    assert mobihoc24(out=tmp_path, quick=True, seeds=1, only=["bandwidth"]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bandwidth.csv", "bandwidth.svg"]
    assert all(path.read_bytes() == (quick_run / path.name).read_bytes() for path in tmp_path.iterdir())


def test_an_experiment_that_does_not_exist_is_named_with_those_that_do(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="expected one of bandwidth"):
        mobihoc24(out=tmp_path, only=["bandwith"])
