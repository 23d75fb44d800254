"""Who gets which resources: the interface of every allocator."""

from dataclasses import dataclass
from typing import Protocol

from hushtune_common.messages import Assignment
from hushtune_common.seeding import SeedTree
from hushtune_server.coordinator.problems.secrecy import AllocationProblem

VIOLATION_MAX = 1e-9
"""Largest relative residual that counts as feasible."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Allocation:
    """One assignment per report, in their order, with its certificate.

    ``violation`` is the worst relative residual as the problem computes it; ``gap`` bounds the distance to the optimum, if the
    method proves one.
    """

    assignments: tuple[Assignment, ...]
    method: str
    violation: float
    gap: float | None


class Allocator(Protocol):
    """Shares band, power and clocks among the clients of a round.

    Laws: the violation stays below ``VIOLATION_MAX``; a feasible problem never raises ``Infeasible``; permuting the clients
    permutes the assignments; the same problem and seeds give the same answer. A round in which nobody may send is still
    answered, with every gate's reason.
    """

    def allocate(self, problem: AllocationProblem, *, seeds: SeedTree) -> Allocation:
        """Return the allocation; ``Infeasible`` or ``SolverFailed`` when there is none."""
        ...
