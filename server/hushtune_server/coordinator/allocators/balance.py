"""How the structured solver is started, driven and trusted: cold and warm starts, three tiers, and what to do when none ends.

Tier 0 is Newton on all prices at once, the price of utility included
(Dinkelbach merged); tier 1 fixes the price of utility in turns (Dinkelbach, or bisection for a floor of utility) with a trust
region below; tier 2 nests monotone searches instead and cannot fail to converge where the problem is convex.
"""

from dataclasses import dataclass, replace
from itertools import pairwise
from math import exp, expm1, inf, log, log1p
from typing import Final

import numpy as np

from hushtune_common.errors import Infeasible, SolverFailed
from hushtune_common.link.kernels import kernel
from hushtune_server.coordinator.allocators import structured_kernels as client
from hushtune_server.coordinator.allocators import structured_newton as shared_by
from hushtune_server.coordinator.allocators.model import MARGIN, Model, time_low
from hushtune_server.coordinator.allocators.structured_nested import nested
from hushtune_server.coordinator.problems.utility import Floats

_PLAIN: Final = 25
_CAREFUL: Final = 60
_ROUNDS: Final = 12
_SNR_START: Final = 10.0
_SOFT: Final = (2e-2, 2e-3, 2e-4, 2e-5)
"""Half widths, in ln theta, of the steps between clock levels, where these are far enough apart."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Start:
    """Where to begin: time, prices and the state of every client."""

    time_s: float
    band: float
    server: float
    utility: float
    states: Floats
    """(N, 5), columns in ``structured_kernels``."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Balance:
    """Prices at which the shared resources balance, and what every client does at them; also a start for the next model."""

    start: Start
    chosen: Floats
    """(N, 7): share, band, power, clock, owner's clock, theta, marginal cost of the share."""
    deadline_price: float
    tier: int
    sweeps: int
    residual: float


def cold(model: Model) -> Start:
    """Return a start from nothing: equal airtimes and plug-in times, shares in the middle, prices that fit these."""
    states = np.zeros((model.rows.shape[0], client.STATES))
    time, band, server, utility = _from_nothing(model.rows, model.kind, model.shared, states)
    return Start(time_s=time, band=band, server=server, utility=utility, states=states)


@kernel
def _from_nothing(rows: Floats, kind: int, shared: Floats, states: Floats) -> tuple[float, float, float, float]:
    """Write the states of a start from nothing; return its time and its prices of band, machine and utility."""
    we, kaps, n = shared[shared_by.ENERGY_WEIGHT], shared[shared_by.SERVER_ENERGY], rows.shape[0]
    main, tap, top = rows[:, client.GAIN_MAIN], rows[:, client.GAIN_TAP], rows[:, client.POWER_MAX]
    share = np.exp(0.5 * (rows[:, client.LOG_SHARE_MIN] + rows[:, client.LOG_SHARE_MAX]))
    sent, plugged = share * rows[:, client.SENT], share * rows[:, client.PLUGGED]
    work = rows[:, client.WORK_FIXED] + rows[:, client.WORK_SHARE] * share
    band, x = np.zeros_like(sent), _SNR_START / main
    for _ in range(3):
        efficiency = np.log1p((main - tap) * x / (1.0 + tap * x))
        band = sent / efficiency * (shared[shared_by.BANDWIDTH] / (sent / efficiency).sum())
        x = np.minimum(_SNR_START / main, 0.5 * top / band)
    airtime = sent / (band * np.log1p((main - tap) * x / (1.0 + tap * x)))
    server = plugged * shared[shared_by.MACHINE] / plugged.sum()
    clock = 0.6 * rows[:, client.CLOCK_MAX]
    energy = rows[:, client.CLOCK_ENERGY] * work * clock**2 + x * band * airtime + kaps * plugged * server**2
    time = max((rows[:, client.START] + work / clock + airtime + plugged / server).max(), 1.2 * shared[shared_by.TIME_LOW])
    theta = shared[shared_by.TIME_WEIGHT] / n
    mu = shared[shared_by.TIME_WEIGHT] * airtime.mean() / shared[shared_by.BANDWIDTH]
    nu = max((theta * plugged / server**2 - 2.0 * we * kaps * plugged * server).mean(), 0.0)
    cost, utility = shared[shared_by.TIME_WEIGHT] * time + we * energy.sum(), shared[shared_by.OFFSET]
    for k in range(n):
        row, left = rows[k], time - rows[k, client.START]
        states[k, client.LOG_THETA] = log(  # enough for each of the three stages to end within a third of the time
            max(
                2.0 * we * row[client.CLOCK_ENERGY] * min(3.0 * work[k] / left, row[client.CLOCK_MAX]) ** 3,
                mu * band[k] / min(airtime[k], left / 3.0),
                2.0 * we * kaps * (3.0 * plugged[k] / left) ** 3 + nu * 9.0 * plugged[k] / left**2,
            )
        )
        states[k, client.LOG_SHARE], states[k, client.LOG_X], states[k, client.SERVER] = log(share[k]), log(x[k]), server[k]
        utility += client.worth(kind, row[client.WEIGHT], row[client.SHAPE], share[k])[0]
    return time, mu, nu, cost / utility if utility > 0.0 else cost


def _numbers(model: Model, start: Start) -> tuple[Floats, Floats]:
    """Return the unknowns ``y`` of a start, and the model's constants with scales that fit it."""
    y, shared = np.zeros(4), model.shared.copy()
    _scaled(model.rows, model.deadline_s, start.time_s, start.band, start.server, start.utility, start.states, shared, y)
    return y, shared


@kernel
def _scaled(
    rows: Floats,
    deadline: float,
    time: float,
    band: float,
    server: float,
    utility: float,
    states: Floats,
    shared: Floats,
    y: Floats,
) -> None:
    """Write the scales of a start into ``shared`` and its unknowns into ``y``."""
    low = shared[shared_by.TIME_LOW]
    time = max(time, low * (1.0 + 1e-9) + 1e-300)
    if deadline < inf:
        time = min(time, low + 0.9 * (deadline - low))
    shared[shared_by.TIME_SCALE] = time - low
    shared[shared_by.Z_DEADLINE] = log((deadline - low) / (time - low)) if deadline < inf else inf
    load, drawn = 0.0, 0.0
    for k in range(rows.shape[0]):
        served = states[k, client.SERVER]
        load += served / shared[shared_by.MACHINE]
        drawn += exp(states[k, client.LOG_SHARE]) * rows[k, client.PLUGGED] * served / rows.shape[0]
    scale = 2.0 * shared[shared_by.ENERGY_WEIGHT] * shared[shared_by.SERVER_ENERGY] * drawn
    shared[shared_by.SERVER_PRICE_SCALE] = scale
    y[0], y[1], y[3] = 0.0, log(band), log(utility)
    y[2] = log1p(server / scale) if server > 0.0 else min(log(load), -1e-9)


def balance(model: Model, start: Start | None = None, *, tolerance: float = 1e-10, first_tier: int = 0) -> Balance:
    """Return the balance of a model, from ``start`` or from nothing; ``first_tier`` skips the faster ways, for comparison.

    Raises ``Infeasible`` where the deadline cannot be met, ``SolverFailed`` with the residual reached.
    """
    _check_deadline(model)
    if model.rows.shape[1] > client.HULL:
        return _harden(model, start, tolerance=tolerance, first_tier=first_tier)
    return _balance(model, start, tolerance=tolerance, first_tier=first_tier)


def near(model: Model, start: Start, *, tolerance: float = 1e-10) -> Balance | None:
    """Return the balance that plain Newton finds from a start close to it, or None."""
    run = _Run(model, start, tolerance)
    return run.result(0) if run.merged(_PLAIN, 0) == 0 else None


def _balance(model: Model, start: Start | None, *, tolerance: float, first_tier: int = 0) -> Balance:
    run = _Run(model, cold(model) if start is None else start, tolerance)
    tier = run.merged(_PLAIN, _CAREFUL // 2) if first_tier == 0 else -1
    if tier < 0 and first_tier == 0 and start is not None:
        run = _Run(model, replace(cold(model), utility=start.utility), tolerance, spent=run.sweeps)
        tier = run.merged(_PLAIN, _CAREFUL // 2)
    if tier < 0:
        _check_joint_deadline(model)
        tier = 1 if first_tier < 2 and run.in_turns(patiently=False) else (2 if run.in_turns(patiently=True) else -1)
    if tier < 0:
        raise SolverFailed(
            f"the structured solver stopped at a relative residual of {run.residual:.1e} after {run.sweeps} sweeps"
        )
    return run.result(tier)


def _check_deadline(model: Model) -> None:
    if model.deadline_s == inf:
        return
    low, deadline = time_low(model.rows), model.deadline_s
    if deadline <= low.max() * (1.0 + 1e-12):
        n = int(low.argmax())
        raise Infeasible(
            f"client {model.names[n]}: a deadline_s of {deadline:g} is below its own least time with the whole band and machine: "
            f"raise it above {MARGIN * low[n]:.9g}"
        )


def least_time(model: Model) -> Balance:
    """Return the balance of least time with every share at its least, energy all but free."""
    fixed = model.with_shares(np.exp(model.rows[:, client.LOG_SHARE_MIN])).priced(shared_by.FIXED)
    shared = fixed.shared.copy()
    rows = fixed.rows
    work = rows[:, client.WORK_FIXED] + rows[:, client.WORK_SHARE]
    spent = float((rows[:, client.CLOCK_ENERGY] * work * rows[:, client.CLOCK_MAX] ** 2).sum())
    spent += float(rows[:, client.POWER_MAX].sum()) * shared[shared_by.TIME_LOW]
    spent += shared[shared_by.SERVER_ENERGY] * float(rows[:, client.PLUGGED].sum()) * shared[shared_by.MACHINE] ** 2
    cheap = 1e-7 * shared[shared_by.TIME_WEIGHT] * shared[shared_by.TIME_LOW] / spent
    shared[shared_by.ENERGY_WEIGHT] = min(shared[shared_by.ENERGY_WEIGHT], cheap)
    return _balance(replace(fixed, shared=shared, deadline_s=inf), None, tolerance=1e-9)


def _check_joint_deadline(model: Model) -> None:
    """Refuse a deadline that band and machine, shared by all, do not allow."""
    if model.deadline_s == inf:
        return
    found = least_time(model)
    if found.start.time_s > model.deadline_s:
        n = int(found.chosen[:, 5].argmax())
        raise Infeasible(
            f"deadline_s of {model.deadline_s:g} leaves too little band and machine to share, most of all for client "
            f"{model.names[n]}: raise it to at least {MARGIN * found.start.time_s:.9g}"
        )


def _harden(model: Model, start: Start | None, *, tolerance: float, first_tier: int) -> Balance:
    """Balance a model with clock levels: the price steps between levels are spread at first, and sharpened in turns."""
    widths = np.array(_SOFT) * min(1.0, _least_step(model) / (5.0 * _SOFT[0]))
    found = _balance(model.softened(widths[0]), start, tolerance=tolerance, first_tier=first_tier)
    sweeps, tier = found.sweeps, found.tier
    for before, softness in pairwise(widths):
        client.sharpen(model.rows, model.softened(before).shared, softness / before, found.start.states)
        found = _balance(model.softened(softness), found.start, tolerance=tolerance)
        sweeps, tier = sweeps + found.sweeps, max(tier, found.tier)
    client.sharpen(model.rows, model.softened(widths[-1]).shared, 0.0, found.start.states)
    return replace(found, sweeps=sweeps, tier=tier, chosen=_with_theta(found, model))


def _least_step(model: Model) -> float:
    """Return the smallest distance, in ln theta, between the steps of one device's clock levels."""
    least = inf
    for row in model.rows:
        points = row[client.HULL : client.HULL + 2 * int(row[client.LEVELS])].reshape(-1, 2)[1:]
        rise = np.diff(points, axis=0)
        centres = rise[:, 1] / rise[:, 0] * points[:-1, 0] - points[:-1, 1]
        least = min(least, float(np.diff(np.log(centres)).min(initial=inf)))
    return least


def _with_theta(found: Balance, model: Model) -> Floats:
    """Return what was chosen with theta exactly at the steps between clock levels, and the sum over all clients as it was."""
    chosen = found.chosen.copy()
    before, after = chosen[:, 5], np.exp(found.start.states[:, client.LOG_THETA])
    between = np.abs(after - before) > 1e-14 * before
    rest = float(before[~between].sum())
    excess = float(after[between].sum() - before[between].sum())
    scale = 1.0 - excess / rest if rest > 2.0 * abs(excess) else 1.0
    chosen[:, 5] = np.where(between, after, before * scale)
    return chosen


class _Run:
    """One model from one start: the unknowns, the clients' states, and the ways to move them."""

    def __init__(self, model: Model, start: Start, tolerance: float, *, spent: int = 0) -> None:
        self._model, self._tolerance = model, tolerance
        y, self._shared = _numbers(model, start)
        self._first = (y, start.states.copy())
        self._y, self._states = y.copy(), start.states.copy()
        self._report = np.zeros(5)
        self._report[0] = spent
        self.residual = inf

    @property
    def sweeps(self) -> int:
        return int(self._report[0])

    def merged(self, plain: int, careful: int, *, tolerance: float | None = None) -> int:
        """Newton on everything; the tier, or -1."""
        aim = self._tolerance if tolerance is None else tolerance
        m = self._model
        tier = shared_by.newton(m.rows, m.kind, self._shared, self._y, self._states, aim, plain, careful, self._report)
        self.residual = min(self.residual, float(self._report[2]))
        return tier

    def in_turns(self, *, patiently: bool) -> bool:
        """Fix the price of utility, balance the rest, correct the price; after each turn try everything at once again."""
        mode = float(self._shared[shared_by.MODE])
        self._y, self._states = self._first[0].copy(), self._first[1].copy()
        low, high = -inf, inf
        for _ in range(1 if mode == shared_by.FIXED else _ROUNDS if mode == shared_by.RATIO else 10 * _ROUNDS):
            self._shared[shared_by.MODE] = shared_by.FIXED
            good = self._nest() if patiently else self.merged(_PLAIN, _CAREFUL, tolerance=1e-3) >= 0
            self._shared[shared_by.MODE] = mode
            if not good:
                return False
            cost, worth = float(self._report[3]), float(self._report[4])
            if mode == shared_by.RATIO:
                self._y[3] = log(cost / worth) if worth > 0.0 else self._y[3] + 2.0
            elif mode == shared_by.FLOOR:
                low, high = (self._y[3], high) if worth < self._shared[shared_by.TARGET] else (low, self._y[3])
                self._y[3] = low + 2.0 if high == inf else high - 2.0 if low == -inf else 0.5 * (low + high)
            kept = self._y.copy(), self._states.copy()
            if self.merged(_PLAIN, _CAREFUL // 2 if patiently else 0) >= 0:
                return True
            self._y, self._states = kept
        return False

    def _nest(self) -> bool:
        n, m = self._states.shape[0], self._model
        scratch = np.empty(3), np.empty(5), np.empty((5, 4)), np.empty((n, 2, 4)), np.empty(4), np.empty((4, 4))
        aim = 1e-7
        ended = nested(0, m.rows, m.kind, self._shared, self._y, self._states, aim, scratch, self._report)
        return ended == 1

    def result(self, tier: int) -> Balance:
        prices, chosen = np.empty(3), np.empty((self._states.shape[0], 7))
        m, y, shared = self._model, self._y, self._shared
        time, _, _ = shared_by.unfold(y, shared, prices)
        failed = shared_by.settled(m.rows, m.kind, shared, prices, time, self._states, 1e-12, chosen)
        if failed < 0:
            raise SolverFailed(f"client {m.names[-1 - failed]} could not be settled at the final prices")
        over = float(y[0] - shared[shared_by.Z_DEADLINE])
        start = Start(
            time_s=time, band=float(prices[0]), server=float(prices[1]), utility=float(prices[2]), states=self._states.copy()
        )
        return Balance(
            start=start,
            chosen=chosen,
            deadline_price=float(shared[shared_by.TIME_WEIGHT]) * expm1(over) if over > 0.0 else 0.0,
            tier=tier,
            sweeps=self.sweeps,
            residual=self.residual,
        )
