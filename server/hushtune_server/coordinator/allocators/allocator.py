"""Who gets which resources: the interface of every allocator."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from hushtune_common.messages import Assignment, ClientId
from hushtune_common.seeding import SeedTree
from hushtune_server.coordinator.allocators.solution import Claim
from hushtune_server.coordinator.problems.secrecy import AllocationProblem

VIOLATION_MAX = 1e-9
"""Largest relative residual that counts as feasible."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundPrices:
    """What the limits of a round are worth, in units of its cost: where the next allocation starts."""

    time_per_s: Mapping[ClientId, float]
    bandwidth_per_mhz: float
    server_per_tflops: float
    utility: float
    """Cost per unit of utility."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Allocation:
    """One assignment per report, in their order, with its certificate.

    ``violation`` is the worst relative residual as the problem computes it. ``objective`` is utility over cost of what is planned
    for those who may send, and ``upper_bound`` what no choice of points, levels, bands and clocks *for the same clients* exceeds;
    ``gap`` is their relative distance. ``claim``, ``tier`` and ``sweeps`` as in ``solution.Solution``.
    """

    assignments: tuple[Assignment, ...]
    method: str
    violation: float
    gap: float | None
    objective: float | None = None
    upper_bound: float | None = None
    claim: Claim = "none"
    tier: int = 0
    sweeps: int = 0
    notes: tuple[str, ...] = ()
    prices: RoundPrices | None = field(default=None, repr=False)


class Allocator(Protocol):
    """Shares band, power and clocks among the clients of a round.

    Laws: the violation stays below ``VIOLATION_MAX``; a feasible problem never raises ``Infeasible``; permuting the clients
    permutes the assignments; the same problem and seeds give the same answer. A round in which nobody may send is still
    answered, with every gate's reason.
    """

    def allocate(self, problem: AllocationProblem, *, seeds: SeedTree, before: Allocation | None = None) -> Allocation:
        """Return the allocation; ``Infeasible`` or ``SolverFailed`` when there is none.

        ``before``: the answer to a similar problem, some of whose clients may be gone; for speed only.
        """
        ...
