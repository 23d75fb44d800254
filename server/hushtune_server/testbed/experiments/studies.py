"""What else do the experiments look at: how the alternation converges, which shares are chosen, and what prices do to them."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final, get_args

import numpy as np

from hushtune_common.errors import SolverFailed
from hushtune_server.coordinator.problems.instance import Instance
from hushtune_server.coordinator.problems.utility import Objective
from hushtune_server.testbed.experiments.contenders import OPTIMUM, START_SHARE, Contender
from hushtune_server.testbed.experiments.mobihoc24 import Plan, Progress, answer, seeds_of
from hushtune_server.testbed.experiments.problems import default

FACTORS: Final = (0.1, 0.3, 1.0, 3.0, 10.0)
WEIGHTS: Final = ("time_weight_per_s", "energy_weight_per_j")


def convergence(*, plan: Plan, progress: Progress) -> list[dict[str, Any]]:
    """Return the ratio after every block of the alternation, both variants and both treatments of the rate."""
    from hushtune_server.coordinator.allocators.alternating import Rate, Variant, alternate
    from hushtune_server.coordinator.allocators.structured import solve

    lines: list[dict[str, Any]] = []
    for repetition in range(plan.seeds):
        progress(f"convergence {repetition + 1}/{plan.seeds}")
        problem = default(seeds_of(repetition), plan.clients)
        best = solve(problem).evaluation.objective
        for variant in get_args(Variant):
            for rate in get_args(Rate):
                named = {"method": f"alternating_{variant}", "rate": rate, "seed": repetition}
                try:
                    history = alternate(problem, variant=variant, rate=rate, share=START_SHARE).history
                except SolverFailed:
                    lines.append({**named, "status": "SolverFailed", "block": 0, "kind": "", "ratio": None, "relative": None})
                    continue
                for k, step in enumerate(history):
                    of = {"status": "ok", "block": k, "kind": step.block}
                    lines.append({**named, **of, "ratio": step.objective, "relative": step.objective / best})
    return lines


def shares(*, plan: Plan, methods: Sequence[Contender], progress: Progress) -> list[dict[str, Any]]:
    """Return every client's share under the joint optimum and both variants of the alternation (fewer seeds)."""
    lines: list[dict[str, Any]] = []
    for method in methods:
        if method.name not in (OPTIMUM, "alternating_free", "alternating_strict"):
            continue
        count = plan.share_seeds if method.name == OPTIMUM else plan.share_seeds_slow
        progress(f"shares: {method.name}, {count} seeds")
        for repetition in range(count):
            problem = default(seeds_of(repetition), plan.clients)
            found = answer(method, problem, seeds=seeds_of(repetition))
            if isinstance(found, str):
                continue
            for name, share in zip(problem.names, found.choice.share, strict=True):
                lines.append({"method": method.name, "seed": repetition, "client": name, "share": float(share)})
    return lines


def prices(*, plan: Plan, progress: Progress) -> list[dict[str, Any]]:
    """Return the mean best share when one weight of the cost is multiplied: for U / S, and for U - y S with y held.

    y is the best ratio at the weights as drawn, as in the first block of the alternation, where it is a constant.
    """
    lines: list[dict[str, Any]] = []
    for repetition in range(plan.share_seeds):
        if repetition % 20 == 0:
            progress(f"prices {repetition + 1}/{plan.share_seeds}")
        problem = default(seeds_of(repetition), plan.clients)
        for weight in WEIGHTS:
            lines += [
                {"objective": kind, "weight": weight, "factor": factor, "seed": repetition, "share_mean": share}
                for kind, goal in _goals(problem)
                for factor, share in _shares_over(replace(problem, objective=goal), weight)
            ]
    return lines


def _goals(problem: Instance) -> tuple[tuple[str, Objective], ...]:
    from hushtune_server.coordinator.allocators.structured import solve

    held = Objective(kind="difference", price=solve(problem).evaluation.objective)
    return ("ratio", Objective()), ("difference", held)


def _shares_over(problem: Instance, weight: str) -> list[tuple[float, float]]:
    from hushtune_server.coordinator.allocators.structured import solve

    def mean_share(factor: float) -> float:
        weighed = replace(problem, **{weight: factor * getattr(problem, weight)})
        return float(np.mean(solve(weighed).choice.share))

    return [(factor, mean_share(factor)) for factor in FACTORS]
