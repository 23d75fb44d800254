"""Does every solver, the scenario's and the fixed one, obey the laws of ``Solver``?"""

from pathlib import Path

import pytest

from hushtune_common.clock import SystemClock
from hushtune_common.config import load
from hushtune_common.messages import ClientId
from hushtune_common.seeding import SeedTree
from hushtune_server.coordinator.app import AllocatorSolver
from hushtune_server.coordinator.ports import Solver
from tests.fakes import FixedSolver, report_of

DEMO = Path(__file__).parents[2] / "scenarios" / "demo.toml"
REPORTS = [report_of(ClientId(f"c{k}"), 3) for k in range(1, 4)]


@pytest.fixture(params=["scenario", "fixed"])
def solver(request: pytest.FixtureRequest) -> Solver:
    if request.param == "fixed":
        return FixedSolver(deferred=frozenset({ClientId("c2")}))
    return AllocatorSolver(load(DEMO), clock=SystemClock(), seeds=SeedTree(1))


def test_each_report_is_answered_once_and_for_its_round(solver: Solver) -> None:
    solution = solver.solve(3, REPORTS)

    assert [(a.client, a.round_id) for a in solution.assignments] == [(r.client, 3) for r in REPORTS]


def test_the_same_round_is_solved_the_same_way_again(solver: Solver) -> None:
    assert solver.solve(3, REPORTS).assignments == solver.solve(3, REPORTS).assignments
