"""An answer to the resource problem, with what is known about how good it is."""

from dataclasses import dataclass
from typing import Literal

from hushtune_server.coordinator.problems.instance import Choice, Evaluation
from hushtune_server.coordinator.problems.utility import Floats

Claim = Literal["theorem", "certificate", "none"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Prices:
    """What the limits are worth at the answer, in units of cost; where a method starts again after a small change."""

    time_per_s: Floats
    """theta, (N,): each client's share of the price of time; 0 for clients that take no part."""
    bandwidth_per_mhz: float
    server_per_tflops: float
    utility: float
    """ell: cost per unit of utility; the inverse of the ratio at its optimum."""
    deadline_per_s: float = 0.0
    worst_off: Floats | None = None
    """With the objective max_min, (N,): how much of the price of utility each client's carries; the sum is 1."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Solution:
    """A choice, what it is worth, and the proof of that.

    ``claim``: ``certificate`` where ``upper_bound`` is rigorous and ``gap`` small, ``theorem`` where the method ended at a
    stationary point of a problem known to be convex, ``none`` otherwise.
    """

    choice: Choice
    evaluation: Evaluation
    method: str
    upper_bound: float | None = None
    """No choice is worth more than this, in units of the objective."""
    gap: float | None = None
    """(upper bound - objective) / max(|objective|, tiny)."""
    claim: Claim = "none"
    tier: int = 0
    """Which stage of the method answered: 0 plain Newton, 1 trust region, 2 nested bracketing."""
    sweeps: int = 0
    """Passes over all clients."""
    excluded: tuple[str, ...] = ()
    """Clients that take no part."""
    notes: tuple[str, ...] = ()
    """One sentence each: why a client is left out, which bound holds, what is not proven."""
    prices: Prices | None = None

    def __post_init__(self) -> None:
        """A gap comes with its bound."""
        if (self.upper_bound is None) != (self.gap is None):
            raise ValueError("an upper bound and its gap come together")
