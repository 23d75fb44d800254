"""Which convex programs does the resource problem contain: one in logarithms, and the second block of the alternating method.

In the logarithms of share, band, spectral efficiency q = ln((1 + a x) / (1 + e x)) with x = power / band, and clocks, every time
and every energy is a sum of exponentials of affine functions, except for the power that an efficiency needs:

    x (a - e - e z) = z,  z = exp(q) - 1,  ln z = ln q + q/2 + L,  L = ln(sinh(q/2) / (q/2)).

The first relation is a posynomial inequality in (x, z). L is concave in q**2 (its product formula is a sum of ln(1 + q**2/c)), so
its tangent there bounds it from above and is an exponential in ln q. Utilities are bounded from below the same way, by functions
that are concave in ln share and touch at the current point. Every program is therefore an inner approximation, exact to first
order at the point it is made around, with every variable measured from that point. Derived for this project, not peer reviewed;
the scheme is that of Marks and Wright (1978).

The only module that knows cvxpy.
"""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from math import exp, inf
from typing import Any, Final, Literal

import numpy as np

from hushtune_common.errors import MissingPackage, SolverFailed
from hushtune_server.coordinator.allocators.points import Numbers, Point, block_numbers, efficiency, program_numbers
from hushtune_server.coordinator.problems.instance import Choice, Evaluation, Instance, evaluate
from hushtune_server.coordinator.problems.utility import Floats

try:
    import cvxpy as cp
    from cvxpy.error import SolverError
except ModuleNotFoundError as error:
    raise MissingPackage("cvxpy", "the package is not installed; run: pip install 'hushtune-server[coordinator]'") from error

Held = Literal["share", "radio", "compute"]
"""What a program leaves as it is: the shares; bands and powers; the clocks of both sides."""
Goal = Literal["gain", "least", "cost", "time"]
"""Utility minus cost, the least utility minus cost, the cost alone, the time alone."""

_CLARABEL: Final[tuple[Mapping[str, Any], ...]] = (
    {"static_regularization_constant": 1e-11, "max_step_fraction": 0.95},
    {},
    {"equilibrate_enable": False},
)
"""Settings that fail in different places. Exponential cones over many decades are hard: about three programs in a hundred fail
with the first."""
_GAP: Final = 1e-8
_BLOCK_GAP: Final = 1e-6
"""Of one approximation of the second block, which the next one replaces."""
_RADII: Final = (2.0, 0.5, 0.1)
"""How far a program may move a logarithm; the smaller ones where every solver failed at the larger."""
_CURVED: Final = ("scaling", "exponential")


class _Parameters:
    """The numbers of a program that change from step to step, by name: made where first used, not negative unless said."""

    def __init__(self, clients: int) -> None:
        self._clients = clients
        self._made: dict[str, cp.Parameter] = {}

    def __call__(self, name: str, *, scalar: bool = False, signed: bool = False) -> cp.Parameter:
        """Return the parameter, (N,) or a scalar."""
        return self._made.setdefault(name, cp.Parameter(() if scalar else self._clients, nonneg=not signed))

    def times(self, name: str, expression: Any) -> Any:
        """Return the parameter times an expression, (N,)."""
        return cp.multiply(self(name), expression)

    def exp(self, name: str, exponent: Any) -> Any:
        """Return the parameter times the exponential of an affine expression, (N,)."""
        return self.times(name, cp.exp(exponent))

    def fill(self, numbers: Mapping[str, Numbers]) -> None:
        """Set those of the numbers that the program has."""
        for name, value in numbers.items():
            if name in self._made:
                self._made[name].value = value


class Program:
    """The convex program around a point, compiled once: every variable is the logarithm of a ratio to the point.

    N-vectors ``share, band, nats, ratio (x), excess (z), clock, server`` and the scalar ``time`` (a ratio). What is held is the
    constant 0. Names of parameters are those of `program_numbers`, which documents what they are.
    """

    def __init__(self, instance: Instance, *, goal: Goal, held: frozenset[Held]) -> None:
        """Compile the program for the clients, limits and kind of utility of ``instance``."""
        self._n, self._goal, self._held = instance.clients, goal, held
        self._curved = instance.utility.kind in _CURVED
        self._p = _Parameters(instance.clients)
        self._moves: dict[str, Any] = {
            "share": self._variable("share"),
            **{name: self._variable("radio") for name in ("band", "nats", "ratio", "excess")},
            **{name: self._variable("compute") for name in ("clock", "server")},
        }
        self._time = cp.Variable()
        limits = [*self._shared(instance), *self._radio(instance), *self._ranges()]
        if instance.objective.kind == "cost" and "share" not in held:
            limits.append(cp.sum(self._worth()) >= self._p("floor", scalar=True, signed=True))
        objective = self._objective(limits)
        self._problem = cp.Problem(cp.Minimize(objective), limits)

    def _variable(self, group: Held) -> Any:
        return np.zeros(self._n) if group in self._held else cp.Variable(self._n)

    def _shared(self, instance: Instance) -> list[Any]:
        """Return who is done when, and the limits on what all share."""
        m = self._moves
        done = (
            self._p("start")
            + self._p.exp("time_fixed", -m["clock"])
            + self._p.exp("time_share", m["share"] - m["clock"])
            + self._p.exp("time_air", m["share"] - m["band"] - m["nats"])
            + self._p.exp("time_plug", m["share"] - m["server"])
        )
        limits: list[Any] = [done <= self._time]
        if instance.deadline_s is not None and self._goal != "time":
            limits.append(self._time <= self._p("deadline", scalar=True))
        if "radio" not in self._held:
            limits.append(cp.sum(self._p.exp("band", m["band"])) <= 1.0)
        if "compute" not in self._held:
            limits.append(cp.sum(self._p.exp("server", m["server"])) <= 1.0)
        return limits

    def _ranges(self) -> list[Any]:
        """Return the ranges of shares and clocks, and how far this program may go."""
        m, limits = self._moves, list[Any]()
        if "share" not in self._held:
            limits += [m["share"] >= self._p("share_low", signed=True), m["share"] <= self._p("share_high", signed=True)]
        if "compute" not in self._held:
            limits += [m["clock"] <= self._p("clock_high", signed=True)]
        radius = self._p("radius", scalar=True)
        return limits + [cp.abs(move) <= radius for move in m.values() if isinstance(move, cp.Variable)]

    def _radio(self, instance: Instance) -> list[Any]:
        """Return the relation of power and efficiency, and the limits on either."""
        if "radio" in self._held:
            return []
        m = self._moves
        even, square = cp.exp(m["nats"]) - 1.0, cp.exp(2.0 * m["nats"]) - 1.0
        tangent = cp.multiply(self._p("even"), even) + cp.multiply(self._p("square"), square)
        limits = [
            m["excess"] >= m["nats"] + tangent,
            self._p.exp("from_ratio", m["excess"] - m["ratio"]) + self._p.exp("from_tap", m["excess"]) <= 1.0,
            m["band"] + m["ratio"] <= self._p("power_high", signed=True),
        ]
        if instance.rate_min_mbps.any():
            limits.append(m["band"] + m["nats"] >= self._p("rate_low", signed=True))
        return limits

    def _objective(self, limits: list[Any]) -> Any:
        """Return what is minimised, the cost of the point being 1."""
        if self._goal == "time":
            return self._time
        m = self._moves
        energy = (
            self._p.exp("energy_fixed", 2.0 * m["clock"])
            + self._p.exp("energy_share", m["share"] + 2.0 * m["clock"])
            + self._p.exp("energy_air", m["share"] + m["ratio"] - m["nats"])
            + self._p.exp("energy_plug", m["share"] + 2.0 * m["server"])
        )
        cost = self._p("time_weight", scalar=True) * self._time + cp.sum(energy)
        if self._goal == "cost":
            return cost
        if self._goal == "gain":
            return cost - cp.sum(self._worth())
        least = cp.Variable()
        limits.append(self._p("worth_at", signed=True) + self._worth() >= least)
        return cost - least

    def _worth(self) -> Any:
        """Return lower bounds of the utilities' changes (N,): tangents in ln share, or bent down where utilities are."""
        share = self._moves["share"]
        if not self._curved:
            return cp.multiply(self._p("slope"), share)
        return self._p("scale") - cp.multiply(self._p("scale"), cp.exp(-cp.multiply(self._p("bend"), share)))

    def step(self, instance: Instance, point: Point, *, found: Evaluation) -> Point:
        """Return a point that is at least as good; `SolverFailed` where no solver finds an optimum."""
        self._p.fill(program_numbers(instance, point, found=found))
        first_optimum(self._problem, within=lambda radius: self._p.fill({"radius": radius}), gap=_GAP)
        return self._moved(instance, point)

    def _moved(self, instance: Instance, point: Point) -> Point:
        """Return the point after the program's move, its last digits pushed inside the limits."""
        i = instance
        ratio = {name: np.exp(np.asarray(m.value)) for name, m in self._moves.items() if isinstance(m, cp.Variable)}
        share = point.share if "share" in self._held else np.clip(point.share * ratio["share"], i.share_min, i.share_max)
        if "compute" not in self._held:
            server = _within(point.server * ratio["server"], i.server_tflops)
            point = replace(point, clock=np.minimum(point.clock * ratio["clock"], i.clock_max_tflops), server=server)
        if "radio" not in self._held:
            band = _within(point.band * ratio["band"], i.bandwidth_mhz)
            nats = np.minimum(point.nats * ratio["nats"], efficiency(i, band=band, power=i.power_max_w))
            point = replace(point, band=band, nats=nats)
        return replace(point, share=share)


class ResourceBlock:
    """The second block of arXiv 2407.00347 around a choice, compiled once: bands, powers, clocks and the time at given shares.

    Variables are ratios to the choice. The radio energy p s / r becomes (p s)**2 v + 1 / (4 r**2 v) with v = 1 / (2 p s r)
    (fractional programming: above the product and equal at the choice). The published method also replaces the eavesdropper's
    rate by its tangent (successive convex approximation: the secret rate is then concave, below the real one and equal at the
    choice); with ``exact_rate`` the secret rate is left as it is, because it is concave already.
    """

    def __init__(self, instance: Instance, *, exact_rate: bool) -> None:
        """Compile the block for the clients of ``instance``, whose shares may change from step to step."""
        self._n = instance.clients
        self._p = _Parameters(instance.clients)
        self._ratios = {name: cp.Variable(self._n, pos=True) for name in ("band", "power", "clock", "server")}
        self._time = cp.Variable(pos=True)
        r, limits = self._ratios, list[Any]()
        rate = self._exact_rate(limits) if exact_rate else self._tangent_rate()
        slow, slower = cp.inv_pos(r["clock"]), cp.inv_pos(rate)
        done = (
            self._p("start")
            + self._p.times("train", slow)
            + self._p.times("air", slower)
            + self._p.times("plug", cp.inv_pos(r["server"]))
        )
        limits += [
            done <= self._time,
            self._p("band") @ r["band"] <= 1.0,
            self._p("server") @ r["server"] <= 1.0,
            r["power"] <= self._p("power_high"),
            r["clock"] <= self._p("clock_high"),
            *(ratio <= self._p("grown", scalar=True) for ratio in r.values()),
            *(ratio >= self._p("shrunk", scalar=True) for ratio in r.values()),
        ]
        if instance.deadline_s is not None:
            limits.append(self._time <= self._p("deadline", scalar=True))
        if instance.rate_min_mbps.any():
            limits.append(rate >= self._p("rate_low"))
        energy = (
            self._p.times("energy_train", cp.square(r["clock"]))
            + self._p.times("energy_plug", cp.square(r["server"]))
            + self._p.times("energy_air", cp.square(r["power"]) + cp.square(slower))
        )
        cost = self._p("time_weight", scalar=True) * self._time + cp.sum(energy)
        self._problem = cp.Problem(cp.Minimize(cost), limits)

    def _tangent_rate(self) -> Any:
        """Return a lower bound of the secret rate over that of the choice (N,), concave in the ratios of band and power."""
        band, power = self._ratios["band"], self._ratios["power"]
        inside = self._p.times("inside_band", band) + self._p.times("inside_power", power)
        tangent = cp.multiply(self._p("by_band", signed=True), band) - self._p.times("by_power", power)
        return tangent - self._p.times("by_entropy", cp.rel_entr(band, inside))

    def _exact_rate(self, limits: list[Any]) -> Any:
        """Return the secret rate over that of the choice (N,): the entropy of a band and a parallel sum of band and power.

        With m = b p / (b + e p) the rate is b ln(1 + (a - e) m / b). The parallel sum is p - e p**2 / (b + e p), used where the
        eavesdropper's signal is below its noise, and (b - b**2 / (b + e p)) / e, used where it is above.
        """
        band, power, square = self._ratios["band"], self._ratios["power"], cp.Variable(self._n)
        total = self._p.times("total_band", band) + self._p.times("total_power", power)
        squared = self._p.times("below", power) + self._p.times("above", band)
        limits.append(cp.SOC(square + total, cp.vstack([2.0 * squared, square - total]), axis=0))
        parallel = self._p.times("by_below", power) + self._p.times("by_above", band) - self._p.times("by_square", square)
        inside = self._p.times("lead_band", band) + self._p.times("lead_parallel", parallel)
        return band - self._p.times("by_entropy", cp.rel_entr(band, inside))

    def step(self, instance: Instance, choice: Choice) -> Choice:
        """Return a choice of the same shares that costs no more; `SolverFailed` where no solver finds an optimum."""
        self._p.fill(block_numbers(instance, choice))
        first_optimum(self._problem, within=lambda r: self._p.fill({"grown": exp(r), "shrunk": exp(-r)}), gap=_BLOCK_GAP)
        ratio = {name: np.asarray(variable.value) for name, variable in self._ratios.items()}
        moved = Choice(
            share=choice.share,
            bandwidth_mhz=_within(choice.bandwidth_mhz * ratio["band"], instance.bandwidth_mhz),
            power_w=np.minimum(choice.power_w * ratio["power"], instance.power_max_w),
            clock_tflops=np.minimum(choice.clock_tflops * ratio["clock"], instance.clock_max_tflops),
            server_tflops=_within(choice.server_tflops * ratio["server"], instance.server_tflops),
            time_s=inf,
        )
        return replace(moved, time_s=evaluate(instance, moved).time_s)


def _within(amounts: Floats, limit: float) -> Floats:
    return amounts * min(1.0, limit / float(amounts.sum()))


def _solvers(gap: float) -> list[tuple[str, Mapping[str, Any]]]:
    """Return the installed solvers with their settings, in the order in which they are tried; ECOS comes with nothing else."""
    clarabel = [("CLARABEL", {**options, "tol_gap_abs": gap, "tol_gap_rel": gap}) for options in _CLARABEL]
    others = [("ECOS", {}), ("SCS", {"eps_abs": 1e-8, "eps_rel": 1e-8, "max_iters": 5000})]
    return [(name, options) for name, options in [*clarabel, *others] if name in cp.installed_solvers()]


def first_optimum(problem: Any, *, within: Callable[[float], None], gap: float) -> None:
    """Solve with the first solver that reports an optimum; where all fail, again with smaller moves. `SolverFailed` in the end.

    Every other status is noted in the error, and its numbers are not used.
    """
    statuses: list[str] = []
    for radius in _RADII:
        within(radius)
        for solver, options in _solvers(gap):
            status = _status(problem, solver, options)
            if status == cp.OPTIMAL:
                return
            statuses.append(f"{solver} {status}")
    raise SolverFailed(f"no solver reports an optimum: {', '.join(statuses)}")


def _status(problem: Any, solver: str, options: Mapping[str, Any]) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # cvxpy warns of inaccurate answers, which are not used
        try:
            # A solver that is kept between programs also keeps the scaling it found for the first one, and then often fails.
            problem.solve(solver=solver, warm_start=False, **options)
        except SolverError:
            return "error"
    return str(problem.status)
