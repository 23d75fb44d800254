"""Which bands and clocks are best once every client's coding point and level are chosen?

Then the symbols of an upload and the energy to send them are numbers, and time falls with 1 / band. What is left is convex in the
logarithms of all times (a geometric program in a few terms per client): an interior-point method with the Newton systems solved
by blocks, O(N) per step (Boyd and Vandenberghe, Convex Optimization, 11.7).
"""

from dataclasses import dataclass, replace
from math import inf, log, sqrt
from typing import Final

import numpy as np

from hushtune_common.errors import Infeasible, SolverFailed
from hushtune_server.coordinator.problems.utility import Floats

_STEPS_MAX: Final = 150
_AIM: Final = 1e-7
_PRICES_MAX: Final = 60
_PUNCTUAL: Final = 1e-4
"""An answer this close before the deadline, relatively, counts as in time exactly."""
_STIFFENED: Final = 1e-12
"""Added to the diagonal of every block, so that what hardly matters does not move."""
_NEAR: Final = 1e-5
"""A relative duality gap below this counts as solved where rounding stops the method."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Work:
    """What N clients have to do, and with what; arrays are (N,)."""

    train_tflop: Floats
    symbols_m: Floats
    """Complex symbols on air in millions, so that over a band in MHz they take seconds; retransmissions included."""
    plug_in_tflop: float
    clock_max_tflops: Floats
    clock_energy_w_per_tflops3: Floats
    band_max_mhz: Floats
    """At the top power, wider bands fall below the coding point's power density."""
    bandwidth_mhz: float
    server_tflops: float
    server_energy_w_per_tflops3: float
    time_weight_per_s: float
    energy_weight_per_j: float
    deadline_s: float

    @property
    def clients(self) -> int:
        """N."""
        return self.train_tflop.size


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Prices:
    """What the limits are worth, in units of cost; ``time_per_s`` is (N,)."""

    time_per_s: Floats
    bandwidth_per_mhz: float
    server_per_tflops: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Shared:
    """The answer; arrays are (N,)."""

    bandwidth_mhz: Floats
    clock_tflops: Floats
    server_tflops: Floats
    time_s: float
    prices: Prices
    steps: int


def share_out(work: Work) -> Shared:
    """Return the bands and clocks of least cost: time weight times the latest client, energy weight times all energy.

    The energy on air is not in it, because it does not depend on bands. Raises ``Infeasible`` where the deadline cannot be met,
    ``SolverFailed`` where rounding ends the method too early.
    """
    free = _Interior(work).solve()
    if free.time_s <= work.deadline_s:
        return free
    hurried = least_time(work)
    if hurried.time_s > work.deadline_s:
        raise Infeasible(
            f"all clients together need {hurried.time_s:.6g} s at least, more than the deadline of {work.deadline_s:g} s"
        )
    return _in_time(work, hurried)


def _in_time(work: Work, early: Shared) -> Shared:
    """Return the answer that just meets the deadline: time is priced higher until it does (its price is monotone in it)."""
    low, high = work.time_weight_per_s, inf
    for _ in range(_PRICES_MAX):
        if high < inf and (early.time_s > (1.0 - _PUNCTUAL) * work.deadline_s or high < low * (1.0 + 1e-6)):
            break
        tried = sqrt(low * high) if high < inf else 16.0 * low
        found = _Interior(replace(work, time_weight_per_s=tried)).solve()
        if found.time_s > work.deadline_s:
            low = tried
        else:
            early, high = found, tried
    return early


def least_time(work: Work) -> Shared:
    """Return the bands and clocks of (all but) least time, energy free; their prices are in units of time."""
    top = work.clock_energy_w_per_tflops3 * work.clock_max_tflops**2 * work.train_tflop
    spent = float(top.sum()) + work.server_energy_w_per_tflops3 * work.clients * work.plug_in_tflop * work.server_tflops**2
    quick = float((work.train_tflop / work.clock_max_tflops).max()) + float(work.symbols_m.sum()) / work.bandwidth_mhz
    cheap = 1e-6 * quick / max(spent, 1e-300)
    return _Interior(replace(work, time_weight_per_s=1.0, energy_weight_per_j=cheap)).solve()


class _Interior:
    """The primal-dual method; unknowns are the logarithms of the times of training, upload, plug-in, and of the whole."""

    def __init__(self, work: Work) -> None:
        self._w = work
        n = work.clients
        self._work = np.stack([work.train_tflop, work.symbols_m, np.full(n, work.plug_in_tflop)])
        self._floor = np.log(self._work[:2] / np.stack([work.clock_max_tflops, work.band_max_mhz]))
        self._energy = work.energy_weight_per_j * np.stack(
            [
                work.clock_energy_w_per_tflops3 * work.train_tflop**3,
                np.zeros(n),
                np.full(n, work.server_energy_w_per_tflops3 * work.plug_in_tflop**3),
            ]
        )
        self._totals = np.array([work.bandwidth_mhz, work.server_tflops])
        self._s, self._tau = self._begin()
        self._scale = self._cost()
        self._slack = np.maximum(-self._limits(), 1e-2)
        self._lam = 1.0 / self._slack / self._slack.size

    def _begin(self) -> tuple[Floats, float]:
        """Return a point inside of every limit."""
        w, n = self._w, self._w.clients
        dear = w.time_weight_per_s / (2.0 * w.energy_weight_per_j)  # faster costs more in energy than time is worth
        clock = 0.7 * np.minimum(w.clock_max_tflops, (dear / w.clock_energy_w_per_tflops3) ** (1.0 / 3.0))
        band = 0.9 * np.minimum(w.band_max_mhz, w.bandwidth_mhz / n)
        server = 0.9 * min(w.server_tflops / n, (dear / w.server_energy_w_per_tflops3) ** (1.0 / 3.0))
        s = np.log(self._work / np.stack([clock, band, np.full(n, server)]))
        return s, log(1.2 * float(np.exp(s).sum(axis=0).max()))

    def _cost(self) -> float:
        return self._w.time_weight_per_s * float(np.exp(self._tau)) + float((self._energy * np.exp(-2.0 * self._s)).sum())

    def _limits(self) -> Floats:
        """Return all constraint functions, negative inside: times (N), floors (2N), band and machine (2)."""
        s, tau = self._s, self._tau
        late = np.log(np.exp(s - tau).sum(axis=0))
        used = np.log((self._work[1:] * np.exp(-s[1:])).sum(axis=1) / self._totals)
        return np.concatenate([late, (self._floor - s[:2]).ravel(), used])

    def solve(self) -> Shared:
        gap, residual, step, length = inf, inf, 0, 0.9
        while step < _STEPS_MAX:
            step += 1
            with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
                limits = self._limits()
                gap, residual = float(self._slack @ self._lam), self._residual(limits)
                if (gap < _AIM and residual < 10.0 * _AIM) or not gap < inf:
                    break
                length = self._step(limits, max(gap * max(0.02, min(0.6, (1.0 - length) ** 1.5)), 0.1 * _AIM) / limits.size)
        if gap < _NEAR and residual < 10.0 * _NEAR:
            return self._answer(step)
        raise SolverFailed(f"bands and clocks: stopped at a relative gap of {gap:.1e} after {step} steps")

    def _parts(self) -> tuple[Floats, Floats]:
        """Return how each client's time divides (3, N), and how band and machine divide (2, N)."""
        times = np.exp(self._s - self._s.max(axis=0))
        used = self._work[1:] * np.exp(-self._s[1:])
        return times / times.sum(axis=0), used / used.sum(axis=1, keepdims=True)

    def _gradient(self, weights: Floats) -> tuple[Floats, float]:
        """Return the gradient of cost (scaled) plus constraints with ``weights``: of the client's times (3, N) and of the end."""
        n = self._w.clients
        late, floors, shared = weights[:n], weights[n : 3 * n].reshape(2, n), weights[3 * n : 3 * n + 2]
        parts, used = self._parts()
        g = -2.0 * self._energy * np.exp(-2.0 * self._s) / self._scale + late * parts
        g[:2] -= floors
        g[1:] -= shared[:, None] * used
        end = self._w.time_weight_per_s * float(np.exp(self._tau)) / self._scale - float(late.sum())
        return g, end

    def _residual(self, limits: Floats) -> float:
        g, end = self._gradient(self._lam)
        return max(float(np.abs(g).max()), abs(end), float((limits + self._slack).max()))

    def _step(self, limits: Floats, aim: float) -> float:
        """Make one Newton step as far as slacks and multipliers stay positive; return how far."""
        off = limits + self._slack
        ds, dtau = self._direction((aim + self._lam * off) / self._slack, self._lam / self._slack)
        dslack = -off - self._along(ds, dtau)
        dlam = (aim - self._lam * dslack) / self._slack - self._lam
        most = max(float(np.max(-dslack / self._slack)), float(np.max(-dlam / self._lam)), float(np.abs(ds).max()) / 3.0)
        length = min(1.0, 0.98 / max(most, 1e-300))
        self._s, self._tau = self._s + length * ds, self._tau + length * dtau
        self._slack, self._lam = self._slack + length * dslack, self._lam + length * dlam
        return length

    def _direction(self, weights: Floats, stiff: Floats) -> tuple[Floats, float]:
        """Solve the reduced Newton system: a 3 x 3 block per client, bordered by the end, the band and the machine."""
        n, lam = self._w.clients, self._lam
        late, floors, shared = stiff[:n], stiff[n : 3 * n].reshape(2, n), stiff[3 * n : 3 * n + 2]
        parts, used = self._parts()
        diagonal = 4.0 * self._energy * np.exp(-2.0 * self._s) / self._scale + lam[:n] * parts
        diagonal[:2] += floors
        diagonal[1:] += lam[3 * n : 3 * n + 2, None] * used
        block = ((late - lam[:n]) * parts).T[:, :, None] * parts.T[:, None, :]
        block[:, range(3), range(3)] += diagonal.T + _STIFFENED
        border = np.zeros((n, 3, 4))  # right-hand side, end, band, machine
        g, end = self._gradient(weights)
        border[:, :, 0], border[:, :, 1] = -g.T, -(late * parts).T
        border[:, 1, 2], border[:, 2, 3] = used
        solved = np.linalg.solve(block, border)
        inner = np.einsum("nik,nil->kl", border[:, :, 1:], solved)  # rows: end, band, machine
        kappa = shared - lam[3 * n : 3 * n + 2]
        corner = self._w.time_weight_per_s * float(np.exp(self._tau)) / self._scale + float(late.sum())
        matrix = -inner[:, 1:]
        right = -inner[:, 0]
        matrix[0, 0] += corner
        right[0] -= end
        matrix[1:] *= -kappa[:, None]
        right[1:] *= -kappa
        matrix[1, 1] += 1.0
        matrix[2, 2] += 1.0
        outer = np.linalg.solve(matrix, right)
        return (solved[:, :, 0] - solved[:, :, 1:] @ outer).T, float(outer[0])

    def _along(self, ds: Floats, dtau: float) -> Floats:
        """Return how the limits change along a step, to first order."""
        parts, used = self._parts()
        return np.concatenate([(parts * ds).sum(axis=0) - dtau, -ds[:2].ravel(), -(used * ds[1:]).sum(axis=1)])

    def _answer(self, steps: int) -> Shared:
        n, w, lam = self._w.clients, self._w, self._lam * self._scale
        clock, band, server = self._work * np.exp(-self._s)
        clock, band = np.minimum(clock, w.clock_max_tflops), np.minimum(band, w.band_max_mhz)
        band, server = band * min(1.0, w.bandwidth_mhz / band.sum()), server * min(1.0, w.server_tflops / server.sum())
        times = (self._work / np.stack([clock, band, server])).sum(axis=0)
        prices = Prices(
            time_per_s=w.time_weight_per_s * lam[:n] / lam[:n].sum(),
            bandwidth_per_mhz=float(lam[3 * n] / band.sum()),
            server_per_tflops=float(lam[3 * n + 1] / server.sum()),
        )
        return Shared(
            bandwidth_mhz=band,
            clock_tflops=clock,
            server_tflops=server,
            time_s=float(times.max()),
            prices=prices,
            steps=steps,
        )
