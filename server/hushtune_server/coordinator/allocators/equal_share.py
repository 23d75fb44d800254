"""Equal share: everyone who can be helped gets the same band; the baseline of every optimiser."""

import numpy as np

from hushtune_common.errors import SolverFailed
from hushtune_common.messages import Assignment, ClientReport, GateDecision
from hushtune_common.seeding import SeedTree
from hushtune_common.units import FlopPerSecond, Hertz
from hushtune_server.coordinator.allocators.allocator import VIOLATION_MAX, Allocation, Allocator
from hushtune_server.coordinator.allocators.choices import utility_of
from hushtune_server.coordinator.allocators.gate import gate_of
from hushtune_server.coordinator.allocators.plan import clock_max, granted, refused
from hushtune_server.coordinator.problems.secrecy import AllocationProblem


class EqualShare:
    """Splits the band evenly over all clients that are not excluded; each uses the least power for its best coding point."""

    def __init__(self, *, clock_share: float) -> None:
        """Run every device at ``clock_share`` of its top clock, or as fast as its energy allows."""
        if not 0.0 < clock_share <= 1.0:
            raise ValueError(f"clock_share must be in (0, 1], got {clock_share}")
        self._clock_share = clock_share

    def allocate(self, problem: AllocationProblem, *, seeds: SeedTree, before: Allocation | None = None) -> Allocation:
        """Return the allocation; neither the seeds nor an earlier answer are used."""
        del seeds, before
        sharing = max(1, sum(not problem.hopeless(r) for r in problem.reports))
        assignments = tuple(self._assign(problem, report, sharing) for report in problem.reports)
        violation = problem.residuals(assignments).worst
        if violation > VIOLATION_MAX:
            raise SolverFailed(f"equal_share: its own residuals say {violation:.1e}")
        return Allocation(
            assignments=assignments,
            method="equal_share",
            violation=violation,
            gap=None,
            objective=planned_objective(problem, assignments),
        )

    def _assign(self, problem: AllocationProblem, report: ClientReport, sharing: int) -> Assignment:
        bandwidth = Hertz(problem.air.bandwidth_hz / sharing)
        found = problem.candidates(report, bandwidth)
        gate = gate_of(problem, report, found, bandwidth)
        if gate.decision is not GateDecision.GRANTED:
            return refused(problem, report, gate)
        return granted(
            problem,
            report,
            found[0],
            gate=gate,
            share=1.0,
            bandwidth=bandwidth,
            clock=FlopPerSecond(min(self._clock_share * report.clock_max, clock_max(report))),
            server=FlopPerSecond(problem.owner.clock_max_flops / sharing),
        )


def planned_objective(problem: AllocationProblem, assignments: tuple[Assignment, ...]) -> float | None:
    """Return utility over cost of what is planned for those who may send; None where nobody may."""
    in_order = sorted(assignments, key=lambda a: a.client)
    plans = [(a.adapter_share, a.planned) for a in in_order if a.planned is not None]
    if not plans:
        return None
    terms, owner = problem.allocator, problem.owner
    worth = utility_of(problem, clients=1)
    utility = sum(float(worth.value(np.array([share]))[0]) for share, _ in plans)
    served = [owner.plug_in_flops / p.plug_in_s for _, p in plans]
    energy = sum(p.compute_j + p.radio_j for _, p in plans)
    energy += sum(owner.energy_w_per_flops3 * owner.plug_in_flops * f**2 for f in served)
    latest = max(p.total_s for _, p in plans)
    return utility / (terms.time_weight_per_s * latest + terms.energy_weight_per_j * energy)


_conforms: type[Allocator] = EqualShare
