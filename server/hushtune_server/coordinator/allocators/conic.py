"""What do general conic solvers make of the resource problem: an oracle that shares nothing with the structured solver.

A sequence of convex programs in logarithms (`convex.Program`), each made around the answer of the one before; none is worse than
its predecessor, and where the sequence ends the first-order conditions of the real problem hold. That is an optimum wherever the
problem is convex after some change of variables: for given shares always, else where ``Instance.in_theorem`` says so. The ratio
is Dinkelbach's (1967), its parameter renewed with every program. Meant for checks and for tens of clients, not for speed.
"""

from dataclasses import replace
from typing import Final

import numpy as np

from hushtune_common.errors import Infeasible, SolverFailed
from hushtune_common.seeding import SeedTree
from hushtune_server.coordinator.allocators.convex import Goal, Held, Program
from hushtune_server.coordinator.allocators.participants import Participants, refuse_levels
from hushtune_server.coordinator.allocators.points import Point, choice_at, efficiency, point_at
from hushtune_server.coordinator.allocators.solution import Solution
from hushtune_server.coordinator.problems.instance import Choice, Evaluation, Instance, evaluate, secret_rate_mbps
from hushtune_server.coordinator.problems.utility import Floats, ObjectiveKind

METHOD: Final = "conic"
_PROGRAMS_MAX: Final = 100
_GOALS: Final[dict[ObjectiveKind, Goal]] = {"ratio": "gain", "difference": "gain", "cost": "cost", "max_min": "least"}


def solve_conic(instance: Instance, *, seeds: SeedTree | None = None, tolerance: float = 1e-9) -> Solution:
    """Return the best choice that conic solvers find; the seeds are not used.

    Ends when a program improves the objective by less than ``tolerance`` relatively. `Infeasible` names what cannot be met and
    what would do; `SolverFailed` where no solver reports an optimum; `ConfigError` for discrete shares or clocks.
    """
    del seeds
    refuse_levels(instance, method=METHOD)
    who = Participants.of(instance)
    point, sweeps = _improve(who.problem, start_point(who.problem), held=frozenset(), tolerance=tolerance)
    proven = who.problem.in_theorem
    notes = () if proven else ("a stationary point; no theorem says that there is no better one",)
    return who.answer(
        choice_at(who.problem, point), method=METHOD, claim="theorem" if proven else "none", sweeps=sweeps, notes=notes
    )


def solve_held(instance: Instance, *, start: Choice, held: frozenset[Held], method: str, tolerance: float = 1e-9) -> Solution:
    """Return the best choice that agrees with ``start`` in what is ``held``; errors as with `solve_conic`.

    Shares that are held may lie outside their range. ``start`` needs positive numbers for everyone who takes part.
    """
    refuse_levels(instance, method=method)
    who = Participants.of(instance)
    begin = point_at(who.problem, who.part_of(start))
    point, sweeps = _improve(who.problem, begin, held=held, tolerance=tolerance)
    return who.answer(
        choice_at(who.problem, point),
        method=method,
        sweeps=sweeps,
        notes=(f"the best choice with given {' and '.join(sorted(held))}",),
        waived="share" if "share" in held else "",
    )


def fixed_share_optimum(instance: Instance, *, share: Floats, tolerance: float = 1e-9) -> Solution:
    """Return the least cost at which these shares (N,) can be had: a generalised geometric program, convex in logarithms."""
    start = np.where(share > 0.0, share, instance.share_min)
    return solve_held(
        instance,
        start=feasible_start(instance, share=start),
        held=frozenset({"share"}),
        method="fixed_share",
        tolerance=tolerance,
    )


def feasible_start(instance: Instance, *, share: Floats | None = None) -> Choice:
    """Return a choice for all that satisfies every constraint, except the deadline; with these shares (N,), if given."""
    who = Participants.of(instance)
    point = start_point(who.problem)
    point = point if share is None else replace(point, share=share[who.mask])
    return who.spread(choice_at(who.problem, point))


def start_point(instance: Instance) -> Point:
    """Return a point with top power, bands for about equal upload times above the least rates, and middling shares.

    `Infeasible` where the least rates, or a floor of the utilities, cannot be met.
    """
    least = _least_bands(instance)
    spare = instance.bandwidth_mhz - float(least.sum())
    if spare <= 0.0:
        raise Infeasible(
            f"rate_min_mbps: the least rates take {least.sum():.4g} MHz in all, {least.max():.4g} MHz of it for "
            f"{instance.names[int(least.argmax())]}; raise bandwidth_mhz from {instance.bandwidth_mhz:g}, or lower these rates"
        )
    band = np.full(instance.clients, instance.bandwidth_mhz / instance.clients)
    for _ in range(30):
        wanted = instance.update_mbit / efficiency(instance, band=band, power=instance.power_max_w)
        band = np.sqrt(band * wanted)
        band *= instance.bandwidth_mhz / band.sum()
    band = least + spare * band / instance.bandwidth_mhz
    return Point(
        share=_start_share(instance),
        band=band,
        nats=efficiency(instance, band=band, power=instance.power_max_w),
        clock=0.7 * instance.clock_max_tflops,
        server=0.9 * instance.server_tflops * instance.plug_in_tflop / instance.plug_in_tflop.sum(),
    )


def _start_share(instance: Instance) -> Floats:
    floor = instance.objective.utility_min
    if floor is not None:
        return _shares_worth(instance, floor)
    middle = np.sqrt(instance.share_min * instance.share_max)
    worth = instance.utility.value(middle)
    needed = {"ratio": worth.sum(), "max_min": worth.min()}.get(instance.objective.kind, 1.0)
    return middle if needed > 0.0 else instance.share_max


def _shares_worth(instance: Instance, floor: float) -> Floats:
    """Return shares between least and top whose utilities add up to more than ``floor``, or to just that if they cannot."""
    low, high = np.log(instance.share_min), np.log(instance.share_max)

    def worth(part: float) -> float:
        return float(instance.utility.value(np.exp(low + part * (high - low))).sum())

    if worth(1.0) < floor:
        raise Infeasible(f"objective.utility_min is {floor:g}, but the largest shares together are worth {worth(1.0):.6g} only")
    below, above = 0.0, 1.0
    for _ in range(50):
        part = 0.5 * (below + above)
        below, above = (part, above) if worth(part) < floor else (below, part)
    return np.exp(low + min(1.0, above + 0.1) * (high - low))


def _least_bands(instance: Instance) -> Floats:
    """Return the bands in MHz (N,) that the least rates need at top power, by bisection in the logarithm; 0 without one."""
    rate = instance.rate_min_mbps
    low, high = np.full(instance.clients, 1e-12 * instance.bandwidth_mhz), np.full(instance.clients, instance.bandwidth_mhz)
    reached = secret_rate_mbps(instance, bandwidth_mhz=high, power_w=instance.power_max_w)
    if np.any(reached < rate):
        worst = int((reached / np.maximum(rate, 1e-300)).argmin())
        raise Infeasible(
            f"rate_min_mbps of {instance.names[worst]} is {rate[worst]:g}, but the whole band at top power gives "
            f"{reached[worst]:.4g} Mbit/s"
        )
    for _ in range(60):
        middle = np.sqrt(low * high)
        enough = secret_rate_mbps(instance, bandwidth_mhz=middle, power_w=instance.power_max_w) >= rate
        low, high = np.where(enough, low, middle), np.where(enough, middle, high)
    return np.where(rate > 0.0, high, 0.0)


def _improve(instance: Instance, point: Point, *, held: frozenset[Held], tolerance: float) -> tuple[Point, int]:
    """Return the best point that the sequence finds from ``point`` on, and the number of programs solved."""
    hurried = 0
    if instance.deadline_s is not None and evaluate(instance, choice_at(instance, point)).time_s > instance.deadline_s:
        point, hurried = _sequence(instance, point, goal="time", held=held, tolerance=tolerance)
        fastest = evaluate(instance, choice_at(instance, point)).time_s
        if fastest > instance.deadline_s:
            raise _too_slow(instance, fastest, held)
    goal = "cost" if "share" in held else _GOALS[instance.objective.kind]
    point, sweeps = _sequence(instance, point, goal=goal, held=held, tolerance=tolerance)
    return point, hurried + sweeps


def _too_slow(instance: Instance, fastest: float, held: frozenset[Held]) -> Exception:
    said = f"deadline_s is {instance.deadline_s:g}, but the fastest possible is {fastest:.6g} s"
    return (
        SolverFailed(f"{said} with given {' and '.join(sorted(held))}") if held else Infeasible(f"{said}; raise it, or the band")
    )


def _sequence(instance: Instance, point: Point, *, goal: Goal, held: frozenset[Held], tolerance: float) -> tuple[Point, int]:
    program = Program(instance, goal=goal, held=held)
    found = evaluate(instance, choice_at(instance, point))
    for sweep in range(1, _PROGRAMS_MAX + 1):
        moved = program.step(instance, point, found=found)
        better = evaluate(instance, choice_at(instance, moved))
        gain = _merit(better, goal) - _merit(found, goal)
        if gain > 0.0:
            point, found = moved, better
        in_time = goal == "time" and instance.deadline_s is not None and found.time_s <= instance.deadline_s
        if in_time or gain <= tolerance * max(abs(_merit(found, goal)), found.cost * (instance.objective.price or 0.0)):
            return point, sweep
    raise SolverFailed(f"{METHOD}: still improving after {_PROGRAMS_MAX} programs")


def _merit(found: Evaluation, goal: Goal) -> float:
    if goal == "time":
        return -found.time_s
    return -found.cost if goal == "cost" else found.objective
