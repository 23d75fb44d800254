"""What happens when the experiments of arXiv 2407.00347 are run: every contender on every problem, one row each."""

import csv
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from hushtune_common.errors import Infeasible, SolverFailed
from hushtune_common.seeding import SeedTree
from hushtune_server.coordinator.allocators.solution import Solution
from hushtune_server.coordinator.problems.instance import Instance
from hushtune_server.testbed.experiments.contenders import OPTIMUM, ORACLE, Contender
from hushtune_server.testbed.experiments.problems import Sweep

ROOT_SEED: Final = 2407
Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How much is run: repetitions, of them those that the conic oracle joins, clients, and points of each sweep."""

    seeds: int = 5
    oracle_seeds: int = 2
    clients: int = 10
    share_seeds: int = 100
    share_seeds_slow: int = 10
    points_max: int = 100
    clients_max: int = 50

    def points(self, sweep: Sweep) -> tuple[float, ...]:
        """Return the sweep's values, thinned evenly to ``points_max`` with both ends kept."""
        allowed = [x for x in sweep.points if sweep.name != "owners" or x <= self.clients_max]
        kept = np.unique(np.linspace(0, len(allowed) - 1, min(self.points_max, len(allowed))).round().astype(int))
        return tuple(allowed[k] for k in kept)


QUICK: Final = Plan(seeds=2, oracle_seeds=1, clients=3, share_seeds=10, share_seeds_slow=2, points_max=2, clients_max=6)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One answer of one method to one problem; None where it has none, and ``status`` says why."""

    method: str
    seed: int
    status: str
    ratio: float | None = None
    """U / S."""
    relative_to_optimum: float | None = None
    """This ratio over that of the method global on the same problem."""
    gap: float | None = None
    """Of the dual bound above the ratio, relative; with the method global only."""
    utility: float | None = None
    cost: float | None = None
    time_s: float | None = None
    energy_j: float | None = None
    client_energy_j: float | None = None
    radio_energy_j: float | None = None
    server_energy_j: float | None = None
    share_mean: float | None = None
    secret_rate_mean_mbps: float | None = None
    taking_part: int | None = None


_WORDS: Final = ("method", "status", "rate", "kind", "client", "objective", "weight")
_COUNTS: Final = ("seed", "block", "taking_part")


def seeds_of(repetition: int) -> SeedTree:
    """Return the seeds of one repetition, the same in every experiment."""
    return SeedTree(ROOT_SEED).child("repetition", str(repetition))


def run_sweep(sweep: Sweep, *, plan: Plan, methods: Sequence[Contender], progress: Progress) -> list[dict[str, Any]]:
    """Return one line per point, repetition and method, the varied quantity under its own name."""
    lines: list[dict[str, Any]] = []
    points = plan.points(sweep)
    for k, x in enumerate(points, start=1):
        progress(f"{sweep.name} {k}/{len(points)}: {sweep.label} = {x:g}")
        for repetition in range(plan.seeds):
            problem = sweep.build(seeds_of(repetition), plan.clients, x)
            asked = [m for m in methods if m.name != ORACLE or repetition < plan.oracle_seeds]
            lines += [{sweep.column: x, **asdict(row)} for row in compare(problem, methods=asked, repetition=repetition)]
    return lines


def compare(problem: Instance, *, methods: Sequence[Contender], repetition: int) -> Iterator[Row]:
    """Yield each method's row; the first method is the measure of the others."""
    best: float | None = None
    for method in methods:
        found = answer(method, problem, seeds=seeds_of(repetition))
        if isinstance(found, str):
            yield Row(method=method.name, seed=repetition, status=found)
            continue
        best = found.evaluation.objective if method.name == OPTIMUM else best
        yield _row(method, repetition, found, best)


def answer(method: Contender, problem: Instance, *, seeds: SeedTree) -> Solution | str:
    """Return the method's solution, or the name of the failure."""
    try:
        return method.solve(problem, seeds)
    except (Infeasible, SolverFailed) as failure:
        return type(failure).__name__


def _row(method: Contender, repetition: int, found: Solution, best: float | None) -> Row:
    value, part = found.evaluation, found.choice.share > 0.0
    return Row(
        method=method.name,
        seed=repetition,
        status="ok",
        ratio=value.objective,
        relative_to_optimum=None if best is None else value.objective / best,
        gap=found.gap,
        utility=value.utility,
        cost=value.cost,
        time_s=value.time_s,
        energy_j=value.energy_j,
        client_energy_j=float(value.compute_energy_j.sum()),
        radio_energy_j=float(value.radio_energy_j.sum()),
        server_energy_j=float(value.server_energy_j.sum()),
        share_mean=float(found.choice.share[part].mean()),
        secret_rate_mean_mbps=float(value.secret_rate_mbps[part].mean()),
        taking_part=int(part.sum()),
    )


def write_csv(lines: Sequence[dict[str, Any]], path: Path) -> None:
    """Write lines of equal keys; numbers to six digits, gaps to two, so that equal runs on other machines agree."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(lines[0])
        writer.writerows([_said(key, value) for key, value in line.items()] for line in lines)


def read_csv(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a file that `write_csv` made, with numbers as written and None where nothing was."""
    with path.open(encoding="utf-8", newline="") as file:
        return [{key: _meant(key, text) for key, text in line.items()} for line in csv.DictReader(file)]


def _meant(key: str, text: str) -> object:
    if not text:
        return None
    if key in _WORDS:
        return text
    return int(text) if key in _COUNTS else float(text)


def _said(key: str, value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.2g}" if key == "gap" else f"{value:.6g}"
    return str(value)
