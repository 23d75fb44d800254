"""What would each client have got, had the round been shared out in equal parts? The same problem, the simplest answer."""

from collections.abc import Mapping
from typing import Any

import msgspec

from hushtune_common.config import Scenario
from hushtune_common.errors import HushtuneError
from hushtune_common.messages import Assignment, ClientReport
from hushtune_common.seeding import SeedTree
from hushtune_server.coordinator.allocators.allocator import Allocation
from hushtune_server.coordinator.allocators.equal_share import EqualShare
from hushtune_server.coordinator.app import standing
from hushtune_server.coordinator.problems.secrecy import AllocationProblem, believed

Json = dict[str, Any]


def of(scenario: Scenario, record: Mapping[str, Any]) -> Json | None:
    """Return the equal share of the clients that reported in a round, as planned; `None` where nobody reported.

    ``record`` is what the coordinator left of the round. Each that may hope gets the same band, sends its whole update and trains
    at the scenario's share of its clock. Where that cannot be done, ``problem`` says why.
    """
    try:
        reports = msgspec.convert(record.get("reports") or [], list[ClientReport], strict=False)
        if not reports:
            return None
        problem = AllocationProblem.of(scenario, believed(standing(scenario, reports), reports))
        config = scenario.coordinator.allocator
        found = EqualShare(clock_share=config.clock_share).allocate(problem, seeds=SeedTree(scenario.seed).child("equal share"))
    except (msgspec.ValidationError, HushtuneError, ValueError) as error:
        return {"objective": None, "clients": {}, "problem": str(error)}
    return _plain(found)


def _plain(found: Allocation) -> Json:
    return {"objective": found.objective, "clients": {a.client: _assignment(a) for a in found.assignments}}


def _assignment(assignment: Assignment) -> Json:
    plan = assignment.planned
    return {
        "decision": assignment.gate.decision.value,
        "bandwidth_hz": assignment.bandwidth,
        "power_w": assignment.power,
        "clock_flops": assignment.clock,
        "adapter_share": assignment.adapter_share,
        "secrecy_rate_bps": assignment.secrecy_rate_bps,
        "airtime_s": None if plan is None else plan.airtime_s,
        "train_s": None if plan is None else plan.train_s,
        "energy_j": None if plan is None else plan.compute_j + plan.radio_j,
    }
