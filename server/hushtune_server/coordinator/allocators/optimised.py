"""The optimisers as allocators: from the reports of a round to assignments that the air can keep to.

Whatever the method, every client ends on a coding point at its own power density, with one of the shares on offer, so that what
is planned is what the wiretap code delivers. ``global`` chooses among these directly; the others solve the continuous
problem with Gaussian rates first, scaled to the code, and are put onto points afterwards.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, Protocol, get_args

import numpy as np

from hushtune_common.errors import ConfigError, Infeasible, SolverFailed
from hushtune_common.link.secrecy import outage_factor
from hushtune_common.messages import Assignment, ClientId, ClientReport, Protection, TapModel
from hushtune_common.seeding import SeedTree
from hushtune_common.units import NOISE_DENSITY_W_PER_HZ, FlopPerSecond, Hertz
from hushtune_server.coordinator.allocators.allocator import VIOLATION_MAX, Allocation, Allocator, RoundPrices
from hushtune_server.coordinator.allocators.choices import Choices, Chosen, Worth, utility_of
from hushtune_server.coordinator.allocators.coded import settle, slowest, solve_coded
from hushtune_server.coordinator.allocators.equal_share import EqualShare
from hushtune_server.coordinator.allocators.gate import gate_of
from hushtune_server.coordinator.allocators.linear import Prices
from hushtune_server.coordinator.allocators.plan import granted, refused
from hushtune_server.coordinator.allocators.solution import Claim, Solution
from hushtune_server.coordinator.problems.instance import Choice, Instance
from hushtune_server.coordinator.problems.radio import Radio, radio_of
from hushtune_server.coordinator.problems.secrecy import AllocationProblem, Candidate
from hushtune_server.coordinator.problems.utility import Floats

Method = Literal["global", "conic", "alternating", "random", "communication_only", "computation_only"]
METHODS: tuple[Method, ...] = get_args(Method)

CERTIFIED = 1e-6
"""A gap at most this large counts as proof."""
_LATEST = 1.0 - 1e-6
"""Who needs more than this part of the round for itself alone is not served."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Answer:
    """A complete choice for the clients that are served, with what is known about it."""

    at: Chosen
    band: Floats
    clock: Floats
    server: Floats
    worth: Worth
    upper_bound: float | None
    claim: Claim
    sweeps: int
    notes: tuple[str, ...]
    prices: Prices | None


class Optimised:
    """One method that maximises utility over cost of a round; ``global`` is the one to use, the others are for comparison."""

    def __init__(self, method: Method, *, clock_share: float = 0.7) -> None:
        """Choose the ``method``; ``clock_share`` is for the even split that is fallen back on."""
        if method not in METHODS:
            raise ConfigError("coordinator.allocator.kind", f"unknown method {method!r}; known: {', '.join(METHODS)}")
        self._method: Method = method
        self._even = EqualShare(clock_share=clock_share)

    def allocate(self, problem: AllocationProblem, *, seeds: SeedTree, before: Allocation | None = None) -> Allocation:
        """Return the allocation; the seeds are for ``random`` only, an earlier answer for ``global``.

        Clients that cannot be served are refused with the reason. Where numbers defeat the method, the even split answers, and
        the notes say so; ``SolverFailed`` where that does not do either.
        """
        who = _Admission(problem)
        answer: _Answer | None = None
        while who.served and answer is None:
            choices = Choices.of(problem, who.served)
            try:
                answer = self._solve(problem, choices, seeds=seeds, before=before)
            except Infeasible:
                try:
                    who.drop(slowest(choices))
                except SolverFailed as failure:
                    return self._fallen_back(problem, seeds, failure)
            except SolverFailed as failure:
                return self._fallen_back(problem, seeds, failure)
        allocation = _allocation(problem, who, answer, method=self._method)
        if allocation.violation > VIOLATION_MAX:
            failure = SolverFailed(f"its own residuals say {allocation.violation:.1e}")
            return self._fallen_back(problem, seeds, failure)
        return allocation

    def _fallen_back(self, problem: AllocationProblem, seeds: SeedTree, failure: Exception) -> Allocation:
        note = f"{self._method} found no answer ({failure}); the band is split evenly"
        return replace(self._even.allocate(problem, seeds=seeds), notes=(note,))

    def _solve(self, problem: AllocationProblem, choices: Choices, *, seeds: SeedTree, before: Allocation | None) -> _Answer:
        if self._method == "global":
            return _solve_global(choices, before)
        instance = instance_of(problem, choices)
        solution = _SOLVERS[self._method](instance, seeds)
        return _onto_points(choices, solution)


class _Admission:
    """Who is served, and why others are not; in the order of names, so that the order of the reports does not matter."""

    def __init__(self, problem: AllocationProblem) -> None:
        self._problem = problem
        self.served: list[Radio] = []
        self.refusals: dict[ClientId, str] = {}
        for report in sorted(problem.reports, key=lambda r: r.client):
            if problem.hopeless(report):
                continue
            radio = radio_of(problem, report)
            if radio.refusal:
                self.refusals[report.client] = radio.refusal
                continue
            alone_s = float(Choices.of(problem, [radio]).alone_s()[0])
            if alone_s > _LATEST * problem.round_s:
                self.refusals[report.client] = self._too_slow(report, alone_s)
            else:
                self.served.append(radio)

    def _too_slow(self, report: ClientReport, alone_s: float) -> str:
        limit = f"timing.round_s = {self._problem.round_s:g} s"
        return (
            f"training, upload and plug-in take {alone_s:.4g} s with the whole band, more than {limit}: raise it, "
            f"clock_max_flops, energy_max_j or power_max_w of {report.client}, or lower coordinator.allocator.share_min"
        )

    def drop(self, index: int) -> None:
        """Serve one client less."""
        out = self.served.pop(index)
        limit = f"timing.round_s = {self._problem.round_s:g} s"
        self.refusals[out.report.client] = (
            f"together with {len(self.served)} others it cannot be done within {limit}: raise it or air.bandwidth_hz, or let "
            f"fewer clients take part"
        )


def _solve_global(choices: Choices, before: Allocation | None) -> _Answer:
    prices, ell = _remembered(choices, before)
    found = solve_coded(choices, prices=prices, ell=ell)
    best = found.best
    gap = found.upper_bound / best.worth.objective - 1.0
    note = f"{found.solved} combinations of points and levels were solved exactly; no other is better by more than {gap:.2g}"
    return _Answer(
        at=best.at,
        band=best.shared.bandwidth_mhz,
        clock=best.shared.clock_tflops,
        server=best.shared.server_tflops,
        worth=best.worth,
        upper_bound=found.upper_bound,
        claim="certificate" if gap <= CERTIFIED else "none",
        sweeps=found.solved,
        notes=(note,),
        prices=best.shared.prices,
    )


def _remembered(choices: Choices, before: Allocation | None) -> tuple[Prices | None, float | None]:
    """Return the prices of an earlier answer for the clients of today; newcomers pay the mean price of time."""
    if before is None or before.prices is None or not before.prices.time_per_s:
        return None, None
    old = before.prices
    mean = sum(old.time_per_s.values()) / len(old.time_per_s)
    theta = np.array([old.time_per_s.get(r.report.client, mean) for r in choices.radios])
    theta *= choices.time_weight_per_s / theta.sum()
    prices = Prices(time_per_s=theta, bandwidth_per_mhz=old.bandwidth_per_mhz, server_per_tflops=old.server_per_tflops)
    return prices, old.utility


def instance_of(problem: AllocationProblem, choices: Choices) -> Instance:
    """Return the continuous problem with Gaussian rates, update sizes scaled so that these are what the code delivers.

    The scale is taken at each client's best coding point over an equal band. Without a wiretap design for the update itself the
    tap does not matter: its gain is 0 there. Plug-in work falls with the share here, on points it does not.
    """
    n, noise = choices.clients, NOISE_DENSITY_W_PER_HZ * 1e6
    reports = [r.report for r in choices.radios]
    factor = outage_factor(problem.secrecy.tap_outage) if problem.tap_model is TapModel.OUTAGE else 1.0
    secret = np.array([r.points[0].protection is Protection.PAYLOAD for r in choices.radios])
    main = np.array([r.gain_main for r in reports]) / noise
    tap = np.where(secret, np.array([r.gain_tap for r in reports]) * factor / noise, 0.0)
    even = np.minimum(choices.band_max_mhz, choices.bandwidth_mhz / n)
    with np.errstate(invalid="ignore"):
        air_s = np.where(np.isfinite(choices.symbols_m), choices.symbols_m / even, np.inf)
    whole = choices.level_of == choices.levels - 1
    at = np.where(whole & np.isfinite(air_s), air_s, np.inf).argmin(axis=1)
    x = choices.picked(choices.energy_j, at) / choices.picked(choices.symbols_m, at)
    rate = np.log1p((main - tap) * x / (1.0 + tap * x)) / np.log(2.0)
    least = choices.radios[0].shares[0]
    return Instance(
        names=tuple(r.client for r in reports),
        gain_main_mhz_per_w=main,
        gain_tap_mhz_per_w=tap,
        power_max_w=np.array([r.power_max for r in reports]),
        clock_max_tflops=choices.clock_max_tflops,
        clock_energy_w_per_tflops3=choices.clock_energy_w_per_tflops3,
        update_mbit=choices.picked(choices.symbols_m, at) * np.maximum(rate, 1e-9),
        train_tflop=choices.train_tflop,
        train_fixed_share=np.ones(n),
        plug_in_tflop=np.full(n, choices.plug_in_tflop),
        start_s=np.zeros(n),
        share_min=np.full(n, least),
        share_max=np.ones(n),
        rate_min_mbps=np.zeros(n),
        bandwidth_mhz=choices.bandwidth_mhz,
        server_tflops=choices.server_tflops,
        server_energy_w_per_tflops3=choices.server_energy_w_per_tflops3,
        time_weight_per_s=choices.time_weight_per_s,
        energy_weight_per_j=choices.energy_weight_per_j,
        utility=utility_of(problem, clients=n),
        deadline_s=choices.deadline_s,
    )


def _onto_points(choices: Choices, solution: Solution) -> _Answer:
    """Put a continuous choice onto coding points and levels: the nearest level, the best point at its power density or below.

    A client that the method left out, or one below every point's density, gets its least one in a band that its power fills.
    Where the round would take too long, bands and clocks are shared out anew for these points.
    """
    choice, left_out = solution.choice, solution.choice.share <= 0.0
    if left_out.any():
        raise Infeasible(f"{solution.method} leaves out {', '.join(solution.excluded)}")
    at, band = _nearest_points(choices, choice)
    worth = choices.worth(at, band=band, clock=choice.clock_tflops, server=choice.server_tflops)
    clock, server, notes = choice.clock_tflops, choice.server_tflops, solution.notes
    if worth.time_s > choices.deadline_s:
        again = settle(choices, at)
        worth, shared = again.worth, again.shared
        band, clock, server = shared.bandwidth_mhz, shared.clock_tflops, shared.server_tflops
        notes = (*notes, "on coding points it took too long: bands and clocks were shared out anew for these points")
    return _Answer(
        at=at,
        band=band,
        clock=clock,
        server=server,
        worth=worth,
        upper_bound=None,
        claim="none",
        sweeps=solution.sweeps,
        notes=(*notes, "found with Gaussian rates, then put onto coding points: no claim holds for these"),
        prices=None,
    )


def _nearest_points(choices: Choices, choice: Choice) -> tuple[Chosen, Floats]:
    at, band = np.zeros(choices.clients, dtype=np.intp), np.zeros(choices.clients)
    for n, radio in enumerate(choices.radios):
        shares = np.array(radio.shares)
        fits = np.isfinite(radio.symbols_m)
        density = float(choice.power_w[n] / choice.bandwidth_mhz[n])
        point = max(int((radio.density_w_per_mhz <= density * (1.0 + 1e-9)).sum()) - 1, 0)
        away = np.where(fits[point], np.abs(shares - choice.share[n]), np.inf)
        at[n] = point * choices.levels + int(away.argmin())
        band[n] = min(float(choice.bandwidth_mhz[n]), float(radio.band_max_mhz[point]))
    return at, band


def _allocation(problem: AllocationProblem, who: _Admission, answer: _Answer | None, *, method: str) -> Allocation:
    served = {} if answer is None else {r.report.client: n for n, r in enumerate(who.served)}
    assignments = tuple(_assignment(problem, who, answer, served.get(r.client), r) for r in problem.reports)
    violation = problem.residuals(assignments).worst
    if answer is None:
        return Allocation(assignments=assignments, method=method, violation=violation, gap=None)
    objective, bound = answer.worth.objective, answer.upper_bound
    return Allocation(
        assignments=assignments,
        method=method,
        violation=violation,
        gap=None if bound is None else max(bound / objective - 1.0, 0.0),
        objective=objective,
        upper_bound=bound,
        claim=answer.claim,
        sweeps=answer.sweeps,
        notes=answer.notes,
        prices=_round_prices(who, answer),
    )


def _round_prices(who: _Admission, answer: _Answer) -> RoundPrices | None:
    if answer.prices is None:
        return None
    names = [r.report.client for r in who.served]
    return RoundPrices(
        time_per_s=dict(zip(names, answer.prices.time_per_s.tolist(), strict=True)),
        bandwidth_per_mhz=answer.prices.bandwidth_per_mhz,
        server_per_tflops=answer.prices.server_per_tflops,
        utility=1.0 / answer.worth.objective,
    )


def _assignment(
    problem: AllocationProblem, who: _Admission, answer: _Answer | None, index: int | None, report: ClientReport
) -> Assignment:
    if answer is None or index is None:
        band = Hertz(problem.air.bandwidth_hz)
        refusal = who.refusals.get(report.client, "")
        return refused(problem, report, gate_of(problem, report, problem.candidates(report, band), band, refusal=refusal))
    radio, option = who.served[index], int(answer.at[index])
    point, level = divmod(option, len(radio.shares))
    band, share = Hertz(float(answer.band[index]) * 1e6), radio.shares[level]
    candidate = radio.at(point, bandwidth=band, share=share)
    return granted(
        problem,
        report,
        candidate,
        gate=gate_of(problem, report, [candidate, *_better_refused(problem, report, candidate, band)], band),
        share=share,
        bandwidth=band,
        clock=FlopPerSecond(min(float(answer.clock[index]) * 1e12, report.clock_max)),
        server=FlopPerSecond(float(answer.server[index]) * 1e12),
    )


def _better_refused(problem: AllocationProblem, report: ClientReport, candidate: Candidate, band: Hertz) -> list[Candidate]:
    """Return the best candidate that protects the update itself where another protection was taken."""
    if candidate.protection is Protection.PAYLOAD:
        return []
    found = problem.candidates(report, band)
    return [c for c in found if c.protection is Protection.PAYLOAD and c.problem][:1]


class _Solver(Protocol):
    def __call__(self, instance: Instance, seeds: SeedTree, /) -> Solution: ...


def _conic(instance: Instance, seeds: SeedTree) -> Solution:
    from hushtune_server.coordinator.allocators.conic import solve_conic  # needs cvxpy

    return solve_conic(instance, seeds=seeds)


def _alternating(instance: Instance, seeds: SeedTree) -> Solution:
    from hushtune_server.coordinator.allocators.alternating import solve_alternating  # needs cvxpy

    return solve_alternating(instance, seeds=seeds)


def _random(instance: Instance, seeds: SeedTree) -> Solution:
    from hushtune_server.coordinator.allocators.baselines import solve_random

    return solve_random(instance, seeds=seeds)


def _communication_only(instance: Instance, seeds: SeedTree) -> Solution:
    from hushtune_server.coordinator.allocators.baselines import solve_communication_only

    return solve_communication_only(instance, seeds=seeds)


def _computation_only(instance: Instance, seeds: SeedTree) -> Solution:
    from hushtune_server.coordinator.allocators.baselines import solve_computation_only

    return solve_computation_only(instance, seeds=seeds)


_SOLVERS: Mapping[str, _Solver] = {
    "conic": _conic,
    "alternating": _alternating,
    "random": _random,
    "communication_only": _communication_only,
    "computation_only": _computation_only,
}

_conforms: type[Allocator] = Optimised
