"""What does the published method find: shares and resources optimised in turn, for the ratio or the difference.

The alternation of arXiv 2407.00347: a first block for the shares and Dinkelbach's parameter y, solved from its stationarity
conditions, and a second one for bands, powers, clocks and time by fractional programming (`convex.ResourceBlock`). Details that
are not public are reconstructed. Each block improves the objective; the limit need not be a joint optimum, because every client
is exactly in time after the second block. In the variant ``strict`` the time belongs to the second block only, as published, so
that no share can ever grow again; in ``free`` the first block chooses it too. The rate ``tangent`` is successive convex
approximation, as published; its steps are short where the eavesdropper hears almost as well as the owner, so that the rounds may
run out long before the limit. The rate ``exact`` has the same limits and arrives.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final, Literal, cast

import numpy as np
from scipy.optimize import brentq

from hushtune_common.errors import ConfigError
from hushtune_common.seeding import SeedTree
from hushtune_server.coordinator.allocators.baselines import even_split
from hushtune_server.coordinator.allocators.conic import feasible_start
from hushtune_server.coordinator.allocators.convex import ResourceBlock
from hushtune_server.coordinator.allocators.participants import VIOLATION_MAX, Participants, refuse_levels
from hushtune_server.coordinator.allocators.solution import Solution
from hushtune_server.coordinator.problems.instance import Choice, Evaluation, Instance, evaluate
from hushtune_server.coordinator.problems.utility import Floats, Utility

Variant = Literal["strict", "free"]
Rate = Literal["exact", "tangent"]
Block = Literal["start", "share", "resources"]

METHOD: Final = "alternating"
_ROUNDS_MAX: Final = 20
_RATIOS_MAX: Final = 5
_APPROXIMATIONS_MAX: Final = 20
_APPROXIMATED: Final = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What one block left behind."""

    block: Block
    objective: float
    """y, the ratio, or the difference."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Alternation:
    """The answer and the way to it; the objectives of the history never fall."""

    solution: Solution
    history: tuple[Step, ...]


def solve_alternating(
    instance: Instance,
    *,
    seeds: SeedTree | None = None,
    variant: Variant = "free",
    rate: Rate = "exact",
    share: float = 0.5,
    tolerance: float = 1e-6,
) -> Solution:
    """Return what `alternate` finds; the seeds are not used."""
    del seeds
    return alternate(instance, variant=variant, rate=rate, share=share, tolerance=tolerance).solution


def alternate(
    instance: Instance, *, variant: Variant, rate: Rate = "exact", share: float = 0.5, tolerance: float = 1e-6
) -> Alternation:
    """Alternate from an even split with every share at ``share``, up to 20 times or a gain below ``tolerance``.

    `Infeasible` and `SolverFailed` as with the conic method; `ConfigError` for discrete shares or clocks, convex utilities, and
    objectives other than the ratio and the difference.
    """
    _check(instance)
    who = Participants.of(instance)
    problem, sweep = who.problem, 0
    choice = _start(problem, share)
    block = ResourceBlock(problem, exact_rate=rate == "exact")
    history = [Step(block="start", objective=evaluate(problem, choice).objective)]
    notes = ["need not be a joint optimum", f"not at its limit after {_ROUNDS_MAX} rounds"]
    while sweep < _ROUNDS_MAX:
        sweep += 1
        choice = share_block(problem, choice, variant=variant)
        history.append(Step(block="share", objective=evaluate(problem, choice).objective))
        choice = resource_block(problem, choice, block=block)
        history.append(Step(block="resources", objective=evaluate(problem, choice).objective))
        gain, found = history[-1].objective - history[-3].objective, evaluate(problem, choice)
        if gain <= tolerance * max(abs(found.objective), found.cost * (problem.objective.price or 0.0)):
            notes.pop()
            break
    solution = who.answer(choice, method=f"{METHOD}_{variant}", sweeps=sweep, notes=notes)
    return Alternation(solution=solution, history=tuple(history))


def _check(instance: Instance) -> None:
    refuse_levels(instance, method=METHOD)
    if instance.objective.kind not in ("ratio", "difference"):
        raise ConfigError("objective.kind", f"the method {METHOD} knows ratio and difference, not {instance.objective.kind}")
    if instance.utility.kind == "power" and np.any(instance.utility.shape > 1.0):
        raise ConfigError("utility.shape", f"the method {METHOD} needs concave utilities: an exponent of at most 1")


def _start(instance: Instance, share: float) -> Choice:
    """Return the even split, or where that breaks a limit a choice that does not."""
    even = even_split(instance, share=np.clip(np.full(instance.clients, share), instance.share_min, instance.share_max))
    found = evaluate(instance, even)
    if found.worst > VIOLATION_MAX or found.objective <= 0.0:
        return feasible_start(instance)
    return even


def share_block(instance: Instance, choice: Choice, *, variant: Variant) -> Choice:
    """Return the best shares at these bands, powers and clocks, y renewed each time; the time is free or the choice's."""
    costs = _Costs.of(instance, choice)
    found = evaluate(instance, choice)
    for _ in range(_RATIOS_MAX):
        ratio = _ratio(instance, found)
        share = costs.best_shares(ratio, time_s=choice.time_s if variant == "strict" else None)
        moved = replace(choice, share=share)
        better = evaluate(instance, moved)
        if better.objective <= found.objective:
            break
        choice, found = replace(moved, time_s=better.time_s if variant == "free" else choice.time_s), better
    return choice


def resource_block(instance: Instance, choice: Choice, *, block: ResourceBlock) -> Choice:
    """Return the cheapest bands, powers and clocks that the approximations find for the shares of ``choice``."""
    cost = evaluate(instance, choice).cost
    for _ in range(_APPROXIMATIONS_MAX):
        moved = block.step(instance, choice)
        cheaper = evaluate(instance, moved).cost
        saved, cost = cost - cheaper, min(cost, cheaper)
        if saved > 0.0:
            choice = moved
        if saved <= _APPROXIMATED * cost:
            break
    return choice


def _ratio(instance: Instance, found: Evaluation) -> float:
    """Return y: utility per unit of cost."""
    price = instance.objective.price
    return found.utility / found.cost if price is None else price


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Costs:
    """Time and weighted energy of every client as affine functions of its share, all else given; (N,) each."""

    instance: Instance
    time_fixed: Floats
    time_slope: Floats
    energy_slope: Floats
    """In units of cost."""

    @staticmethod
    def of(instance: Instance, choice: Choice) -> "_Costs":
        """Return the costs at the choice's bands, powers and clocks."""
        i, rate = instance, evaluate(instance, choice).secret_rate_mbps
        per_share = i.train_tflop * (1.0 - i.train_fixed_share)
        energy = (
            i.clock_energy_w_per_tflops3 * choice.clock_tflops**2 * per_share
            + choice.power_w * i.update_mbit / rate
            + i.server_energy_w_per_tflops3 * i.plug_in_tflop * choice.server_tflops**2
        )
        return _Costs(
            instance=i,
            time_fixed=i.start_s + i.train_tflop * i.train_fixed_share / choice.clock_tflops,
            time_slope=per_share / choice.clock_tflops + i.update_mbit / rate + i.plug_in_tflop / choice.server_tflops,
            energy_slope=i.energy_weight_per_j * energy,
        )

    def best_shares(self, ratio: float, *, time_s: float | None) -> Floats:
        """Return the shares that maximise U - ratio S, the time given or (None) chosen."""
        i = self.instance
        wanted = np.clip(share_at_slope(i.utility, ratio * self.energy_slope), i.share_min, i.share_max)
        return self._in(self._best_time(ratio, wanted) if time_s is None else time_s, wanted)

    def _in(self, time_s: float, wanted: Floats) -> Floats:
        """Return the shares nearest to what is wanted that are done in time."""
        return np.clip((time_s - self.time_fixed) / self.time_slope, self.instance.share_min, wanted)

    def _best_time(self, ratio: float, wanted: Floats) -> float:
        """Return the time at which a second more is worth what it costs: the sum of the clients' prices is y times its weight."""
        i = self.instance
        low = float((self.time_fixed + self.time_slope * i.share_min).max())
        high = float((self.time_fixed + self.time_slope * wanted).max())
        high = high if i.deadline_s is None else min(high, i.deadline_s)
        gain = self._gain_of_time(ratio, wanted)
        if high <= low or gain(low) <= 0.0:
            return low
        if gain(high) >= 0.0:
            return high
        return cast(float, brentq(gain, low, high, xtol=1e-14 * high))

    def _gain_of_time(self, ratio: float, wanted: Floats) -> Callable[[float], float]:
        i = self.instance

        def gain(time_s: float) -> float:
            share = self._in(time_s, wanted)
            late = share < wanted
            price = (i.utility.slope(share) - ratio * self.energy_slope) / self.time_slope
            return float(price[late].sum()) - ratio * i.time_weight_per_s

        return gain


def share_at_slope(utility: Utility, slope: Floats) -> Floats:
    """Return the share (N,) at which a concave utility has this positive slope; 0 or infinity where a straight one has not."""
    q, s = utility.weight, utility.shape
    match utility.kind:
        case "log":
            return q / slope - 1.0 / s
        case "exponential":
            return np.log(q * s / slope) / s
        case "power":
            bent = np.where(s < 1.0, 1.0 - s, 1e-3)
            return np.where(s < 1.0, (q * s / slope) ** (1.0 / bent), np.where(q > slope, np.inf, 0.0))
        case "scaling":
            return (q * s / slope) ** (1.0 / (1.0 + s))
        case "log_share":
            return q / slope
        case "linear":
            return np.where(q > slope, np.inf, 0.0)
        case "table":
            raise ConfigError("utility", f"the method {METHOD} needs a utility with a slope, not a table")
