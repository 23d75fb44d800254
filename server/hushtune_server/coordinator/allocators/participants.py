"""Who takes part in a resource problem, and how is an answer about them an answer for all?

A client that the eavesdropper hears at least as well as the owner does has no secret rate at any band and power: it is left out,
the problem is solved without it, and it reappears in the answer with share 0.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from hushtune_common.errors import ConfigError, Infeasible, SolverFailed
from hushtune_server.coordinator.allocators.solution import Claim, Solution
from hushtune_server.coordinator.problems.instance import Choice, Instance, evaluate
from hushtune_server.coordinator.problems.utility import Floats

VIOLATION_MAX = 1e-6
"""Largest relative residual of an answer that a method may return."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Participants:
    """The clients of ``everyone`` that can have a secret rate, as a problem of their own."""

    everyone: Instance
    problem: Instance
    mask: NDArray[np.bool_]
    """(N,), who takes part."""

    @staticmethod
    def of(instance: Instance) -> "Participants":
        """Leave out who cannot be helped; `Infeasible` where nobody, or nothing of any worth, is left."""
        mask = instance.usable
        if not mask.any():
            lead = instance.gain_main_mhz_per_w / instance.gain_tap_mhz_per_w
            best = int(lead.argmax())
            raise Infeasible(
                f"the eavesdropper hears every client at least as well as the owner; closest is {instance.names[best]}, "
                f"whose gain_main_mhz_per_w would have to grow by {100.0 * (1.0 / lead[best] - 1.0):.3g} %"
            )
        try:
            problem = instance.select(mask)
        except ValueError as error:
            raise Infeasible(f"without the clients that the eavesdropper hears better: {error}") from error
        return Participants(everyone=instance, problem=problem, mask=mask)

    def part_of(self, choice: Choice) -> Choice:
        """Return what a choice for all says about the participants."""
        return _mapped(choice, lambda numbers: numbers[self.mask])

    def answer(
        self, choice: Choice, *, method: str, claim: Claim = "none", sweeps: int = 0, notes: Sequence[str] = (), waived: str = ""
    ) -> Solution:
        """Return the participants' choice as a solution for all; the time is that of the latest client.

        `SolverFailed` where a constraint is violated, except those of the family ``waived``.
        """
        whole = self.spread(choice)
        found = evaluate(self.everyone, whole)
        violated = {family: r for family, r in found.residuals.items() if r > VIOLATION_MAX and family != waived}
        if violated:
            said = ", ".join(f"{family} by {100.0 * r:.2g} %" for family, r in violated.items())
            raise SolverFailed(f"{method}: its answer violates {said}")
        excluded = tuple(name for name, takes_part in zip(self.everyone.names, self.mask, strict=True) if not takes_part)
        left_out = tuple(f"{name} takes no part: the eavesdropper hears it at least as well as the owner" for name in excluded)
        return Solution(
            choice=whole,
            evaluation=found,
            method=method,
            claim=claim,
            sweeps=sweeps,
            excluded=excluded,
            notes=(*left_out, *notes),
        )

    def spread(self, choice: Choice) -> Choice:
        """Return the participants' choice as one for all, zero for those who take no part."""

        def over_all(numbers: Floats) -> Floats:
            whole = np.zeros(self.everyone.clients)
            whole[self.mask] = numbers
            return whole

        return _mapped(choice, over_all)


def refuse_levels(instance: Instance, *, method: str) -> None:
    """Raise `ConfigError` where shares or clocks are discrete, for a method that knows ranges only."""
    for name in ("share_levels", "clock_levels"):
        if getattr(instance, name) is not None:
            raise ConfigError(name, f"the method {method} knows ranges only; remove the levels or choose another method")
    if instance.utility.kind == "table":
        raise ConfigError("utility", f"the method {method} needs a utility with a slope, not a table")


def _mapped(choice: Choice, change: Callable[[Floats], Floats]) -> Choice:
    arrays = {f.name: change(getattr(choice, f.name)) for f in fields(choice) if f.name != "time_s"}
    return Choice(**arrays, time_s=choice.time_s)
