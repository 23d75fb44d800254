"""Is the structured allocator as sure as it says? Failures and certified gaps over many random problems of the theorem's class.

``python benchmarks/allocator_gaps.py [--certified 1000] [--plain 10000] [--seed 1] [--json]``: 1 to 60 clients, half of the
problems with ordinary and half with extreme scales. A gap is certified by a dual bound that is rigorous for any utility; a
failure is any error, or a choice that violates a limit by more than 1e-7.
"""

import argparse
import json
import sys
from collections import Counter
from typing import Any, Literal

import numpy as np

from hushtune_common.errors import HushtuneError
from hushtune_common.seeding import SeedTree
from hushtune_server.coordinator.allocators.certificate import certify
from hushtune_server.coordinator.allocators.structured import solve
from hushtune_server.coordinator.problems.draws import random_instance
from hushtune_server.coordinator.problems.instance import Instance

_RESIDUAL_MAX = 1e-7


def main() -> None:
    """Solve, certify, and print what was found."""
    parser = argparse.ArgumentParser(description="Failures and certified gaps of the structured allocator.")
    parser.add_argument("--certified", type=int, default=1000, help="problems solved with a certificate")
    parser.add_argument("--plain", type=int, default=10_000, help="problems solved without")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    given = parser.parse_args()
    seeds = SeedTree(given.seed)
    plain = _run(given.plain, seeds.child("plain"), certified=False)
    found = {"plain": plain, "certified": _run(given.certified, seeds.child("certified"), certified=True)}
    print(json.dumps(found, indent=1) if given.json else "\n".join(f"{kind}: {result}" for kind, result in found.items()))


def _run(count: int, seeds: SeedTree, *, certified: bool) -> dict[str, Any]:
    tiers: Counter[int] = Counter()
    problems: list[str] = []
    gaps: list[float] = []
    for k in range(count):
        instance = _instance(k, seeds.child(str(k)))
        try:
            solution = solve(instance)
            if solution.evaluation.worst > _RESIDUAL_MAX:
                problems.append(f"{k}: residual {solution.evaluation.worst:.1e}")
            if certified:
                gaps.append(float(certify(instance, solution).gap or 0.0))
            tiers[solution.tier] += 1
        except HushtuneError as error:
            problems.append(f"{k}: {error}")
        if k % 1000 == 999:
            print(f"{k + 1} of {count}", file=sys.stderr, flush=True)
    result: dict[str, Any] = {"problems": count, "failures": len(problems), "first_failures": problems[:5], "tiers": dict(tiers)}
    if gaps:
        result |= {"gap_worst": max(gaps), "gap_median": float(np.median(gaps))}
    return result


def _instance(k: int, seeds: SeedTree) -> Instance:
    scale: Literal["default", "extreme"] = "extreme" if k % 2 else "default"
    clients = int(seeds.child("clients").generator().integers(1, 61))
    return random_instance(clients=clients, seeds=seeds, scale=scale)


if __name__ == "__main__":
    main()
