"""How far can an answer be from the best one: a dual bound that no allocation exceeds, whatever the utility.

For any prices of time, band, machine and utility the clients decouple, and every client's best response bounds the whole from
above (weak duality). Per client one dimension is left, the share: its least cost at the prices is the smallest of functions that
are affine in the share, hence concave, so that on an interval a chord bounds it from below and two tangents bound the concave
utility from above. Intervals are halved where that leaves room. Nothing here rests on convexity of the problem; rounding apart
(a relative 1e-13 is added for it), the bound holds for every concave utility, and for any values at discrete levels.
"""

from dataclasses import dataclass, replace
from math import log
from typing import Final

import numpy as np

from hushtune_common.errors import SolverFailed
from hushtune_common.link.kernels import kernel
from hushtune_server.coordinator.allocators import structured_kernels as client
from hushtune_server.coordinator.allocators import structured_newton as shared_by
from hushtune_server.coordinator.allocators.balance import balance
from hushtune_server.coordinator.allocators.continuous import solution_of, solve_continuous
from hushtune_server.coordinator.allocators.extensions import solve_max_min
from hushtune_server.coordinator.allocators.model import Model, model_of
from hushtune_server.coordinator.allocators.solution import Prices, Solution
from hushtune_server.coordinator.allocators.structured_kernels import (
    COST,
    LOG_SHARE,
    LOG_SHARE_MAX,
    LOG_SHARE_MIN,
    LOG_THETA,
    LOG_X,
    POINTS,
    SHAPE,
    START,
    STATES,
    WEIGHT,
    examine,
    worth,
)
from hushtune_server.coordinator.problems.instance import Instance
from hushtune_server.coordinator.problems.utility import Floats

GAP_MAX: Final = 1e-6
"""A smaller gap counts as proof that an answer is the best one."""
_ROUNDING: Final = 1e-13
_HALVINGS: Final = 60
_CLOSE: Final = 2e-11
"""Relative distance from the root of the dual function at which the search for it ends."""
_INTERVALS: Final = 1024


@kernel
def _cost(row: Floats, kind: int, shared: Floats, prices: Floats, share: float, state: Floats, r: Floats, o: Floats) -> float:
    """Return a client's least cost at the prices with this share, what it waits before its start included."""
    state[LOG_SHARE] = log(share)
    examine(row, kind, shared, prices, 1.0, state, r, o)
    return o[COST] + np.exp(state[LOG_THETA]) * row[START]


@kernel
def _ceiling(ell: float, p: Floats, q: Floats) -> float:
    """Return an upper bound of ell u - cost between two shares; ``p`` and ``q`` hold share, cost, u and u'."""
    best = max(ell * p[2] - p[1], ell * q[2] - q[1])
    bend = p[3] - q[3]
    if bend <= 0.0:
        return best
    middle = (q[2] - p[2] + p[3] * p[0] - q[3] * q[0]) / bend  # where the tangents meet
    middle = min(max(middle, p[0]), q[0])
    chord = p[1] + (q[1] - p[1]) * (middle - p[0]) / (q[0] - p[0])
    return max(best, ell * (p[2] + p[3] * (middle - p[0])) - chord)


@kernel
def _point(
    row: Floats, kind: int, shared: Floats, prices: Floats, share: float, state: Floats, r: Floats, o: Floats, p: Floats
) -> None:
    p[0] = share
    p[1] = _cost(row, kind, shared, prices, share, state, r, o)
    p[2], p[3], _ = worth(kind, row[WEIGHT], row[SHAPE], share)


@kernel
def _respond(
    rows: Floats, kind: int, shared: Floats, prices: Floats, log_theta: Floats, grid: int, tolerance: float, found: Floats
) -> None:
    """Write for every client an upper bound of max over share of ell u - cost, and u at the best share seen (N, 2)."""
    ell = prices[2]
    state, r, o = np.zeros(STATES), np.empty(16), np.empty(POINTS)
    ends, spare = np.empty((_INTERVALS, 2, 4)), np.empty((_INTERVALS, 2, 4))
    p = np.empty(4)
    for n in range(rows.shape[0]):
        row = rows[n]
        low, high = np.exp(row[LOG_SHARE_MIN]), np.exp(row[LOG_SHARE_MAX])
        state[LOG_THETA], state[LOG_X] = log_theta[n], -log(row[0])
        _point(row, kind, shared, prices, low, state, r, o, p)
        best, best_u = ell * p[2] - p[1], p[2]
        count = 0
        ends[0, 0] = p
        cells = grid if high > low * (1.0 + 1e-14) else 0
        for k in range(cells):
            _point(row, kind, shared, prices, low * (high / low) ** ((k + 1.0) / cells), state, r, o, p)
            ends[k, 1] = p
            if k + 1 < cells:
                ends[k + 1, 0] = p
            if ell * p[2] - p[1] > best:
                best, best_u = ell * p[2] - p[1], p[2]
            count += 1
        ceiling = best
        for _ in range(_HALVINGS):
            kept, rest = 0, best
            for k in range(count):
                top = _ceiling(ell, ends[k, 0], ends[k, 1])
                if top <= best + tolerance:
                    continue
                rest = max(rest, top)
                if kept + 2 > _INTERVALS:
                    continue
                _point(row, kind, shared, prices, 0.5 * (ends[k, 0, 0] + ends[k, 1, 0]), state, r, o, p)
                if ell * p[2] - p[1] > best:
                    best, best_u = ell * p[2] - p[1], p[2]
                spare[kept, 0], spare[kept, 1], spare[kept + 1, 0], spare[kept + 1, 1] = ends[k, 0], p, p, ends[k, 1]
                kept += 2
            full = kept + 2 > _INTERVALS
            ceiling = rest
            ends, spare = spare, ends
            count = kept
            if kept == 0 or full:
                break
        found[n, 0], found[n, 1] = max(ceiling, best) + tolerance, best_u


@kernel
def _costs(rows: Floats, kind: int, shared: Floats, prices: Floats, log_theta: Floats, shares: Floats, costs: Floats) -> None:
    state, r, o = np.zeros(STATES), np.empty(16), np.empty(POINTS)
    for n in range(rows.shape[0]):
        state[LOG_THETA], state[LOG_X] = log_theta[n], -log(rows[n, 0])
        for k in range(shares.shape[1]):
            costs[n, k] = _cost(rows[n], kind, shared, prices, shares[n, k], state, r, o)


def least_costs(model: Model, prices: Prices, shares: Floats) -> Floats:
    """Return every client's least cost at the prices, time before its start included, for shares (N, K)."""
    costs = np.empty_like(shares)
    three = np.array([prices.bandwidth_per_mhz, prices.server_per_tflops, prices.utility])
    exact = model.softened(0.0)
    _costs(exact.rows, exact.kind, exact.shared, three, np.log(prices.time_per_s), shares, costs)
    return costs


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Dual:
    """The dual function of the price of utility at fixed other prices: value(ell) >= max (ell U - S) over all allocations."""

    instance: Instance
    model: Model
    prices: Prices
    grid: int
    weight: Floats
    """(N,): utilities count with this, all ones but for max-min."""

    def value(self, ell: float) -> tuple[float, float]:
        """Return the bound and the utility at the best responses, its slope."""
        each, worths = self.each(ell)
        shared = self.prices.bandwidth_per_mhz * self.instance.bandwidth_mhz
        shared += self.prices.server_per_tflops * self.instance.server_tflops
        surplus = float(self.prices.time_per_s.sum()) - self.instance.time_weight_per_s
        late = max(surplus, 0.0) * (self.instance.deadline_s or 0.0)
        total = float(each.sum()) + shared + late
        return total + _ROUNDING * (float(np.abs(each).sum()) + shared + late), float(worths.sum())

    def each(self, ell: float) -> tuple[Floats, Floats]:
        """Return every client's part of the bound, and its utility there."""
        each, worths = self._respond(ell)
        offset = self.weight * self._offsets()
        return each + ell * offset, worths + offset

    def _offsets(self) -> Floats:
        offset = self.instance.utility.offset
        return np.zeros(self.instance.clients) if offset is None or self.instance.utility.kind == "table" else offset

    def _respond(self, ell: float) -> tuple[Floats, Floats]:
        i = self.instance
        if i.share_levels is not None:
            grid = i.level_grid()
            allowed = i.allowed_levels()
            values = self.weight[:, None] * (i.utility.value(np.where(allowed, grid, 1.0)) - self._offsets()[:, None])
            costs = least_costs(self.model, self.prices, grid)
            gains = np.where(allowed, ell * values - costs, -np.inf)
            at = gains.argmax(axis=1)
            rows = np.arange(i.clients)
            return gains[rows, at], values[rows, at]
        exact = self.model.softened(0.0)
        rows = exact.rows.copy()
        rows[:, client.WEIGHT] *= self.weight
        three = np.array([self.prices.bandwidth_per_mhz, self.prices.server_per_tflops, ell])
        found = np.empty((i.clients, 2))
        tolerance = 1e-13 * (1.0 / i.clients) * i.time_weight_per_s * float(exact.shared[6])
        _respond(rows, exact.kind, exact.shared, three, np.log(self.prices.time_per_s), self.grid, tolerance, found)
        return found[:, 0], found[:, 1]


def responses(instance: Instance, prices: Prices) -> Floats:
    """Return what each client's best response is worth at the prices: bounds of max over share of ell u - cost, (N,)."""
    ones = np.ones(instance.clients)
    dual = _Dual(instance=instance, model=model_of(instance), prices=prices, grid=16, weight=ones)
    return dual.each(prices.utility)[0]


def upper_bound(
    instance: Instance,
    prices: Prices,
    *,
    grid: int = 16,
) -> float:
    """Return a value that no allocation of the instance exceeds, in units of its objective.

    ``prices`` may be any positive numbers; the closer to those at the optimum, the closer the bound, and far from them there may
    be none (infinity). ``grid``: cells per client to begin with, which matters for speed only. Every client must be usable.
    """
    total = float(prices.time_per_s.sum())
    if instance.deadline_s is None and total > instance.time_weight_per_s:  # time has no bound of its own
        prices = replace(prices, time_per_s=prices.time_per_s * (instance.time_weight_per_s / total) * (1.0 - 1e-15))
    counted = np.ones(instance.clients)
    if instance.objective.kind == "max_min":  # the least utility is below every weighted mean of them
        counted = prices.worst_off if prices.worst_off is not None else counted / instance.clients
    dual = _Dual(instance=instance, model=model_of(instance), prices=prices, grid=grid, weight=counted)
    goal = instance.objective
    if goal.kind == "difference":
        price = goal.price or 0.0
        return price * dual.value(1.0 / price)[0]
    if goal.kind == "cost":
        return dual.value(prices.utility)[0] - prices.utility * (goal.utility_min or 0.0)
    return _largest_ratio(dual, prices.utility)


def _largest_ratio(dual: _Dual, ell: float) -> float:
    """Return 1 / ell for the largest ell found at which ell U - S cannot be positive: the ratio U / S cannot be larger."""
    proven = 0.0
    for _ in range(_HALVINGS):
        value, slope = dual.value(ell)
        if not slope > 0.0:
            ell *= 2.0  # nobody's best response is worth anything yet
            continue
        step = value / (slope * ell)
        if value <= 0.0:
            proven = max(proven, ell)
            if step > -_CLOSE:
                break
        elif step < 1e-9:
            step = 1.01 * step + 1e-12  # to the safe side of a convex function's root
        ell *= min(max(1.0 - step, 0.1), 10.0)
    return 1.0 / proven if proven > 0.0 else np.inf


def certify(instance: Instance, solution: Solution) -> Solution:
    """Return the solution with its upper bound, gap and claim; prices are looked for where it has none.

    The bound is on choices in which the same clients take part; where usable ones were left out it proves nothing about other
    sets, and the claim stays what it was. Raises ``SolverFailed`` where prices are needed and cannot be found.
    """
    taking = solution.choice.share > 0.0
    part = instance.select(taking)
    prices = solution.prices
    if prices is None:
        prices = _prices_for(part, solution.choice.share[taking])
    else:
        worst_off = None if prices.worst_off is None else prices.worst_off[taking]
        prices = replace(prices, time_per_s=prices.time_per_s[taking], worst_off=worst_off)
    objective = solution.evaluation.objective
    bound = upper_bound(part, prices)
    gap = max(bound - objective, 0.0) / max(abs(objective), 1e-300)
    chosen_set = bool((instance.usable & ~taking).any())
    claim = "certificate" if gap <= GAP_MAX and not chosen_set else solution.claim
    notes = (*solution.notes, "the bound is for the clients that take part") if chosen_set else solution.notes
    return replace(solution, upper_bound=max(bound, objective), gap=gap, claim=claim, notes=notes)


def _prices_for(part: Instance, share: Floats) -> Prices:
    """Return prices near the optimum for a choice that came without: those of the best continuous choice, or of these shares."""
    if part.objective.kind == "max_min" and part.utility.kind != "table":
        found = solve_max_min(replace(part, share_levels=None))
    elif part.utility.kind != "table":
        found = solve_continuous(replace(part, share_levels=None))
    else:
        fixed = model_of(part).with_shares(share).priced(shared_by.FIXED)
        found = solution_of(part, balance(fixed), method="global")
    if found.prices is None:
        raise SolverFailed("the best choice has no prices")
    return found.prices
