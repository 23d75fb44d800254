"""The best choice where only a few shares exist: whole levels of compression, with any utilities at them.

For given levels the problem is a balance of prices. Prices from such a balance give every client its best level (Lagrangian
choice), the exact cost of the new levels gives new prices, and so on; then single levels, and pairs, are changed. A change whose
cost at the present prices already speaks against it cannot help (weak duality), which leaves few to be tried exactly.
"""

from collections.abc import Iterable
from dataclasses import replace
from math import inf
from typing import Final

import numpy as np
from numpy.typing import NDArray

from hushtune_common.errors import Infeasible, SolverFailed
from hushtune_server.coordinator.allocators import structured_newton as shared_by
from hushtune_server.coordinator.allocators.balance import balance
from hushtune_server.coordinator.allocators.certificate import least_costs
from hushtune_server.coordinator.allocators.continuous import solution_of, solve_continuous, start_of
from hushtune_server.coordinator.allocators.model import model_of
from hushtune_server.coordinator.allocators.solution import Prices, Solution
from hushtune_server.coordinator.problems.instance import Instance
from hushtune_server.coordinator.problems.utility import Floats

Levels = NDArray[np.intp]

_TRIES_MAX: Final = 1500
_PAIRED: Final = 48
_TURNS: Final = 12
_BETTER: Final = 1e-12


def solve_levels(instance: Instance) -> Solution:
    """Return the best choice found over the instance's ``share_levels``; every client must be usable.

    Raises ``Infeasible`` or ``SolverFailed`` where no levels tried can be balanced. The answer is not proven to be the best; a
    certificate bounds how much better any other could be.
    """
    search = _Search(instance)
    if instance.objective.kind == "max_min":
        search.try_all(search.at_least(z) for z in search.thresholds())
    else:
        search.begin()
        search.improve()
    return search.answer()


class _Search:
    """Exact answers for levels tried so far, and the best of them."""

    def __init__(self, instance: Instance) -> None:
        self._i = instance
        self._model = model_of(instance).priced(shared_by.FIXED)
        self._grid, self._allowed = instance.level_grid(), instance.allowed_levels()
        self._values = np.where(
            self._allowed, instance.utility.value(np.where(self._allowed, self._grid, instance.share_max[:, None])), -inf
        )
        self._seen: dict[bytes, float] = {}
        self._best: Solution | None = None
        self._best_levels: Levels = np.zeros(instance.clients, dtype=np.intp)
        self._failure: Exception = SolverFailed("no levels were tried")

    def begin(self) -> None:
        """Try every uniform level, the rounded relaxation, and what prices suggest from there."""
        first = self._allowed.argmax(axis=1)
        last = self._grid.shape[1] - 1 - self._allowed[:, ::-1].argmax(axis=1)
        uniform = [np.clip(np.full(self._i.clients, k), first, last) for k in range(self._grid.shape[1])]
        self.try_all(uniform)
        if self._i.utility.kind != "table":
            self._round_relaxation(first, last)
        for _ in range(_TURNS):
            if self._best is None or not self._try(self._suggested(self._best)):
                break

    def _round_relaxation(self, first: Levels, last: Levels) -> None:
        low, high = (self._grid[np.arange(self._i.clients), k] for k in (first, last))
        try:
            relaxed = solve_continuous(replace(self._i, share_levels=None, share_min=low, share_max=high))
        except (Infeasible, SolverFailed):
            return
        distance = np.where(self._allowed, np.abs(np.log(self._grid / relaxed.choice.share[:, None])), inf)
        self._try(distance.argmin(axis=1))
        above = self._allowed & (self._grid >= relaxed.choice.share[:, None] * (1.0 - 1e-9))
        self._try(np.where(above.any(axis=1), above.argmax(axis=1), last))
        self._try(self._suggested(relaxed))

    def _suggested(self, solution: Solution) -> Levels:
        """Return the levels that are best at a solution's prices."""
        gains = self._gains(solution)
        return gains.argmax(axis=1)

    def _gains(self, solution: Solution) -> Floats:
        """Return ell u - least cost at the prices of a solution, (N, K)."""
        prices = self._prices(solution)
        return np.where(self._allowed, prices.utility * self._values - self._costs(prices), -inf)

    def _prices(self, solution: Solution) -> Prices:
        prices, e = solution.prices, solution.evaluation
        if prices is None:
            raise SolverFailed("a balance has prices")
        if self._i.objective.kind == "ratio" and e.utility > 0.0:
            return replace(prices, utility=e.cost / e.utility)
        if self._i.objective.price is not None:
            return replace(prices, utility=1.0 / self._i.objective.price)
        return prices

    def _costs(self, prices: Prices) -> Floats:
        return least_costs(self._model, prices, self._grid)

    def thresholds(self) -> list[float]:
        """Return the values that the least utility can have, at most as many as may be tried, from the top."""
        reach = self._values.max(axis=1).min()
        found = np.unique(self._values[self._allowed & (self._values <= reach)])[::-1]
        return [float(z) for z in found[:: max(1, found.size // _TRIES_MAX)]]

    def at_least(self, threshold: float) -> Levels:
        """Return the least levels with which every utility reaches the threshold."""
        return (self._values >= threshold).argmax(axis=1)

    def try_all(self, many: Iterable[Levels]) -> None:
        for levels in many:
            self._try(levels)

    def _try(self, levels: Levels) -> bool:
        """Balance the problem at these levels; return whether that is the best so far. Nothing is tried twice."""
        key = levels.tobytes()
        if key in self._seen or len(self._seen) >= _TRIES_MAX:
            return False
        shares = self._grid[np.arange(self._i.clients), levels]
        start = None if self._best is None else start_of(self._best)
        try:
            found = balance(self._model.with_shares(shares), start)
        except (Infeasible, SolverFailed) as problem:
            self._seen[key] = -inf
            self._failure = problem
            return False
        solution = solution_of(self._i, found, method="global")
        value = solution.evaluation.objective if self._floor_holds(solution.evaluation.utility) else -inf
        self._seen[key] = value
        if self._best is not None and value <= self._best_value() + _BETTER * abs(self._best_value()):
            return False
        if value == -inf:
            self._failure = Infeasible(
                f"objective.utility_min of {self._i.objective.utility_min} is out of reach at any level tried"
            )
            return False
        self._best, self._best_levels = solution, levels.copy()
        return True

    def _best_value(self) -> float:
        return -inf if self._best is None else self._best.evaluation.objective

    def _floor_holds(self, utility: float) -> bool:
        floor = self._i.objective.utility_min
        return floor is None or utility >= floor - 1e-12 * abs(floor)

    def improve(self) -> None:
        """Change single levels, then pairs, as long as something helps."""
        while self._best is not None and len(self._seen) < _TRIES_MAX:
            if not self._change_one() and not self._change_two():
                return

    def _changes(self) -> tuple[Floats, Floats]:
        """Return by how much utility and (at least) cost change with each single level, (N, K)."""
        if self._best is None:
            raise SolverFailed("there is nothing to change")
        costs, rows = self._costs(self._prices(self._best)), np.arange(self._i.clients)
        worth = self._values - self._values[rows, self._best_levels][:, None]
        return worth, costs - costs[rows, self._best_levels][:, None]

    def _hope(self, worth: Floats, cost: Floats) -> Floats:
        """Return the most that changes of utility and cost can lead to."""
        if self._best is None:
            raise SolverFailed("there is nothing to change")
        e, goal = self._best.evaluation, self._i.objective
        utility, spent = e.utility + worth, np.maximum(e.cost + cost, 1e-300)
        match goal.kind:
            case "ratio":
                return utility / spent
            case "difference":
                return utility - (goal.price or 0.0) * spent
            case _:
                return np.where(utility >= (goal.utility_min or 0.0), -spent, -inf)

    def _change_one(self) -> bool:
        worth, cost = self._changes()
        hope = np.where(self._allowed, self._hope(worth, cost), -inf)
        order = np.argsort(-hope, axis=None)
        for flat in order[: _TRIES_MAX // 2]:
            n, k = np.unravel_index(flat, hope.shape)
            if not hope[n, k] > self._best_value() * (1.0 + np.sign(self._best_value()) * _BETTER):
                return False
            levels = self._best_levels.copy()
            levels[n] = k
            if self._try(levels):
                return True
        return False

    def _change_two(self) -> bool:
        worth, cost = self._changes()
        hope = np.where(self._allowed, self._hope(worth, cost), -inf)
        hope[np.arange(self._i.clients), self._best_levels] = -inf
        order = [np.unravel_index(f, hope.shape) for f in np.argsort(-hope, axis=None)[:_PAIRED]]
        if self._i.objective.kind == "cost":  # what falls below the floor alone may be paid for by another
            gains = np.where(np.isfinite(worth), -cost, -inf)
            gains[np.arange(self._i.clients), self._best_levels] = -inf
            order += [np.unravel_index(f, gains.shape) for f in np.argsort(-gains, axis=None)[:_PAIRED]]
        pairs: list[tuple[float, Levels]] = []
        for at, (n, k) in enumerate(order):
            for m, q in order[at + 1 :]:
                if n == m or not (np.isfinite(worth[n, k]) and np.isfinite(worth[m, q])):
                    continue
                value = float(self._hope(worth[n, k] + worth[m, q], cost[n, k] + cost[m, q]))
                if value > self._best_value() * (1.0 + np.sign(self._best_value()) * _BETTER):
                    levels = self._best_levels.copy()
                    levels[n], levels[m] = k, q
                    pairs.append((value, levels))
        pairs.sort(key=lambda pair: -pair[0])
        return any(self._try(levels) for _, levels in pairs[:200])

    def answer(self) -> Solution:
        """Return the best, with prices for a bound."""
        if self._best is None:
            raise self._failure
        how = f"{len(self._seen)} combinations of levels were balanced exactly; the best of these need not be the best of all"
        return replace(self._best, prices=self._prices(self._best), notes=(how,))
