"""The method ``global`` on coding points: which point and which level for each client, with bands and clocks to match?

Prices of time, band and machine tell every client its best option (point and level); the exact answer for these options gives new
prices; what is promising at the last prices is then tried one client at a time. The dual over all options bounds how much better
any choice could be; as options are discrete, a gap remains in general, and it is reported.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np

from hushtune_common.errors import Infeasible, SolverFailed
from hushtune_server.coordinator.allocators.choices import Choices, Chosen, Worth
from hushtune_server.coordinator.allocators.linear import Prices, Shared, least_time, share_out
from hushtune_server.coordinator.problems.utility import Floats

_TURNS: Final = 10
_BETTER: Final = 1e-9
_FLIPS: Final = 400
"""Single changes tried, divided by the number of clients."""
_AVERAGED: Final = 30
_CLOSE: Final = 1e-5
"""A gap below which prices are not looked for any longer."""
_BLENDS: Final = 6
_PARTS: Final = (0.03, 0.08, 0.15, 0.25, 0.4, 0.55, 0.7, 0.85)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Settled:
    """A complete choice with its worth."""

    at: Chosen
    shared: Shared
    worth: Worth


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Found:
    """The best choice, the bound on any other, and how many were solved exactly."""

    best: Settled
    upper_bound: float
    solved: int


def settle(choices: Choices, at: Chosen) -> Settled:
    """Return the best bands and clocks for chosen options; ``Infeasible`` or ``SolverFailed``."""
    shared = share_out(choices.work(at))
    worth = choices.worth(at, band=shared.bandwidth_mhz, clock=shared.clock_tflops, server=shared.server_tflops)
    return Settled(at=at, shared=shared, worth=worth)


def solve_coded(choices: Choices, *, prices: Prices | None = None, ell: float | None = None) -> Found:
    """Return the best choice found; ``prices`` and ``ell`` of a similar problem are for speed only.

    Raises ``Infeasible`` where no options tried meet the deadline together, ``SolverFailed`` where numbers defeat the method.
    """
    search = _Search(choices)
    if prices is not None and ell is not None:
        search.follow(search.best_at(prices, ell))
    search.begin()
    search.average()
    search.blend()
    search.flip()
    return search.answer()


def slowest(choices: Choices) -> int:
    """Return the client whose time weighs most when all hurry as much as they can."""
    return int(least_time(choices.work(quickest(choices))).prices.time_per_s.argmax())


def quickest(choices: Choices) -> Chosen:
    """Return the options with (about) the least time of the latest client."""
    even = choices.bandwidth_mhz / choices.clients
    at = (choices.symbols_m / np.minimum(choices.band_max_mhz, even)).argmin(axis=1)
    best, best_s = at, np.inf
    for _ in range(3):
        found = least_time(choices.work(at))
        if found.time_s >= best_s:
            break
        best, best_s = at, found.time_s
        theta, mu = found.prices.time_per_s[:, None], found.prices.bandwidth_per_mhz
        band = np.minimum(choices.band_max_mhz, np.sqrt(theta * choices.symbols_m / max(mu, 1e-300)))
        with np.errstate(invalid="ignore"):
            costs = mu * band + theta * choices.symbols_m / band
        at = np.where(np.isfinite(choices.symbols_m), costs, np.inf).argmin(axis=1)
    return best


def _between(old: Prices, new: Prices, *, part: float) -> Prices:
    """Return prices a part of the way from old to new, in logarithms; the price of time stays shared out in full."""

    def way(a: Floats | float, b: Floats | float) -> Floats:
        return np.exp((1.0 - part) * np.log(np.maximum(a, 1e-300)) + part * np.log(np.maximum(b, 1e-300)))

    theta = way(old.time_per_s, new.time_per_s)
    total = (1.0 - part) * old.time_per_s.sum() + part * new.time_per_s.sum()
    return Prices(
        time_per_s=theta * (total / theta.sum()),
        bandwidth_per_mhz=float(way(old.bandwidth_per_mhz, new.bandwidth_per_mhz)),
        server_per_tflops=float(way(old.server_per_tflops, new.server_per_tflops)),
    )


class _Search:
    def __init__(self, choices: Choices) -> None:
        self._c = choices
        self._seen: set[bytes] = set()
        self._best: Settled | None = None
        self._solved = 0
        self._bound = np.inf
        self._dual: Prices | None = None
        self._failure: Exception = SolverFailed("no options were tried")

    def _try(self, at: Chosen) -> Settled | None:
        """Settle these options unless that was done before; keep the best."""
        key = at.tobytes()
        if key in self._seen:
            return None
        self._seen.add(key)
        try:
            found = settle(self._c, at)
        except (Infeasible, SolverFailed) as problem:
            self._failure = problem
            return None
        self._keep(found)
        return found

    def _keep(self, found: Settled) -> None:
        self._solved += 1
        if self._best is None or found.worth.objective > self._best.worth.objective * (1.0 + _BETTER):
            self._best = found

    def best_at(self, prices: Prices, ell: float, level: int | None = None) -> Chosen:
        """Return every client's best option at the prices, at one level or at any."""
        gains = ell * self._c.utility - self._c.radio_costs(prices)
        if level is not None:
            there = np.where(self._c.level_of == level, gains, -np.inf)
            gains = np.where(np.isfinite(there).any(axis=1, keepdims=True), there, gains)
        return gains.argmax(axis=1)

    def follow(self, at: Chosen, level: int | None = None) -> None:
        """Settle, take the options that are best at the prices found, and so on, as long as that is new."""
        for turn in range(_TURNS):
            found = self._try(at)
            if found is None:
                return
            ell = 1.0 / found.worth.objective
            bound = self._c.bound(found.shared.prices, start=found.worth.objective)
            if bound < self._bound:
                self._bound, self._dual = bound, found.shared.prices
            at = self.best_at(found.shared.prices, ell, level if turn == 0 else None)

    def begin(self) -> None:
        """Start from equal bands at the least, a middle and the most level, and from least time where these are too slow."""
        c = self._c
        even = np.minimum(c.band_max_mhz, c.bandwidth_mhz / c.clients)
        with np.errstate(invalid="ignore"):
            cost = c.time_weight_per_s / c.clients * c.symbols_m / even + c.energy_weight_per_j * c.energy_j
        cost = np.where(np.isfinite(c.symbols_m), cost, np.inf)
        for level in dict.fromkeys((c.levels - 1, 0, c.levels // 2)):
            self.follow(self._least(cost, level), level)
        whole = np.where(c.band_max_mhz >= c.bandwidth_mhz / c.clients * (1.0 - 1e-12), c.symbols_m, np.inf)
        self._try(self._least(np.where(np.isfinite(whole).any(axis=1, keepdims=True), whole, cost), c.levels - 1))
        if self._best is None:
            self.follow(quickest(c))

    def _least(self, cost: Floats, level: int) -> Chosen:
        there = np.where(self._c.level_of == level, cost, np.inf)
        return np.where(np.isfinite(there).any(axis=1, keepdims=True), there, cost).argmin(axis=1)

    def average(self) -> None:
        """Follow prices that move less and less: where options and prices chase each other, their mean is the better bound."""
        if self._best is None:
            return
        prices, ell = self._best.shared.prices, 1.0 / self._best.worth.objective
        for turn in range(1, _AVERAGED + 1):
            at = self.best_at(prices, ell)
            try:
                found = settle(self._c, at)
            except (Infeasible, SolverFailed):
                return
            self._keep(found)
            bound = self._c.bound(prices, start=self._best.worth.objective)
            if bound < self._bound:
                self._bound, self._dual = bound, prices
            ell = 1.0 / min(bound, 2.0 * self._best.worth.objective)
            prices = _between(prices, found.shared.prices, part=2.0 / (turn + 3.0))
            if self._bound <= self._best.worth.objective * (1.0 + _CLOSE):
                return

    def blend(self) -> None:
        """Let only some clients, those that gain most, take what is best for them at the prices of the bound."""
        for _ in range(_BLENDS):
            best = self._best
            if best is None or self._dual is None:
                return
            for prices in (self._dual, best.shared.prices):
                self._blend(best, prices)
            if self._best is best:
                return

    def _blend(self, best: Settled, prices: Prices) -> None:
        gains = self._c.utility / best.worth.objective - self._c.radio_costs(prices)
        wanted = gains.argmax(axis=1)
        rises = self._c.picked(gains, wanted) - self._c.picked(gains, best.at)
        order = np.argsort(-rises, kind="stable")[: int((rises > 0.0).sum())]
        parts = sorted({max(1, int(order.size * part)) for part in _PARTS}) if order.size else []
        for size in parts:
            at = best.at.copy()
            at[order[:size]] = wanted[order[:size]]
            self._try(at)

    def flip(self) -> None:
        """Change one client's option at a time, the promising ones first, as long as that may help."""
        left = _FLIPS // self._c.clients
        while self._best is not None and left > 0:
            best = self._best
            for n, o in self._promising(best)[:left]:
                at = best.at.copy()
                at[n] = o
                left -= 1
                self._try(at)
                if self._best is not best:
                    break
            else:
                return

    def _promising(self, best: Settled) -> list[tuple[int, int]]:
        """Return the changes that the prices do not rule out, (client, option), the best hope first (weak duality)."""
        c, prices = self._c, best.shared.prices
        costs = c.radio_costs(prices)
        worth, cost = c.utility - c.picked(c.utility, best.at)[:, None], costs - c.picked(costs, best.at)[:, None]
        with np.errstate(invalid="ignore"):
            hope = np.nan_to_num((best.worth.utility + worth) / np.maximum(best.worth.cost + cost, 1e-300), nan=-np.inf)
        hope[np.arange(c.clients), best.at] = -np.inf
        order = np.argsort(-hope, axis=None, kind="stable")
        order = order[hope.ravel()[order] > best.worth.objective * (1.0 + _BETTER)]
        return [(int(f) // hope.shape[1], int(f) % hope.shape[1]) for f in order]

    def answer(self) -> Found:
        if self._best is None:
            raise self._failure
        best = self._best
        bound = min(self._bound, self._c.bound(best.shared.prices, start=best.worth.objective))
        return Found(best=best, upper_bound=max(bound, best.worth.objective), solved=self._solved)
