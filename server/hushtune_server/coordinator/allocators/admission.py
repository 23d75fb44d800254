"""Who should take part: clients are left out where that raises the objective.

The round's time is the one coupling that is not convex here: one slow client holds up all. So sets of clients are tried that meet
different times, each followed by what its prices say about everyone (a client is worth having at a time and prices if its utility
at their price exceeds its cost), and then single clients, and pairs, are exchanged. A client whose best response is worth
something at the present prices need not be tried without (weak duality). Where least rates would take more than the band, those
stay that give most per MHz.
"""

from collections.abc import Generator
from dataclasses import replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from hushtune_common.errors import Infeasible, SolverFailed
from hushtune_server.coordinator.allocators import structured_newton as shared_by
from hushtune_server.coordinator.allocators.balance import cold
from hushtune_server.coordinator.allocators.certificate import least_costs, responses
from hushtune_server.coordinator.allocators.continuous import solve_continuous
from hushtune_server.coordinator.allocators.extensions import spread_out
from hushtune_server.coordinator.allocators.levels import solve_levels
from hushtune_server.coordinator.allocators.model import least_bands_mhz, model_of, time_low
from hushtune_server.coordinator.allocators.solution import Solution
from hushtune_server.coordinator.problems.instance import Instance
from hushtune_server.coordinator.problems.utility import Floats

Taking = NDArray[np.bool_]

_TRIES_MAX: Final = 600
_PREFIXES: Final = 24
_TURNS: Final = 4
_TIMES: Final = (0.4, 0.55, 0.7, 0.8, 0.9, 0.95, 1.05, 1.1, 1.25, 1.5, 2.0, 3.0)
_BETTER: Final = 1e-11


def admit(instance: Instance) -> Solution:
    """Return the best choice found over all sets of clients; every client must be usable.

    For the objectives ratio, difference and cost. Raises ``Infeasible`` or ``SolverFailed`` where no set tried can be served.
    """
    if instance.objective.kind == "max_min":
        raise ValueError("leaving clients out has no meaning for the worst-off client")
    search = _Search(instance)
    search.scan()
    search.exchange()
    return search.answer()


class _Search:
    def __init__(self, instance: Instance) -> None:
        self._i = instance
        self._low = time_low(model_of(replace(instance, rate_min_mbps=np.zeros(instance.clients))).rows)
        self._bands = least_bands_mhz(instance)
        self._low[self._bands > instance.bandwidth_mhz * (1.0 + 1e-12)] = np.inf  # out of reach alone, so in every set
        if np.isinf(self._low).all():
            model_of(instance)  # raises, and says what would help
        self._seen: dict[bytes, float] = {}
        self._best: Solution | None = None
        self._taking: Taking = np.ones(instance.clients, dtype=np.bool_)
        self._failure: Exception = SolverFailed("no set of clients was tried")

    def _value(self) -> float:
        return -np.inf if self._best is None else self._best.evaluation.objective

    def _try(self, taking: Taking) -> Solution | None:
        """Solve for these clients alone; return the solution, None where they were tried before or cannot be served."""
        key = taking.tobytes()
        if not taking.any() or key in self._seen or len(self._seen) >= _TRIES_MAX:
            return None
        part = self._i.select(taking)
        try:
            found = solve_continuous(part) if part.share_levels is None else solve_levels(part)
        except (Infeasible, SolverFailed, ValueError) as problem:
            self._seen[key], self._failure = -np.inf, problem
            return None
        value = self._seen[key] = found.evaluation.objective
        if value > self._value() + _BETTER * abs(self._value()) or self._best is None:
            self._best, self._taking = found, taking.copy()
        return found

    def scan(self) -> None:
        """Try sets that meet one time after the other, and follow their prices."""
        for order in self._orders():
            for size in np.unique(np.linspace(1, order.size, min(order.size, _PREFIXES)).astype(int))[::-1]:
                taking = np.zeros(self._i.clients, dtype=np.bool_)
                taking[order[:size]] = True
                self._follow(taking)
        if self._best is not None:
            best, taking = self._best, self._taking.copy()
            for factor in _TIMES:
                self._follow(self._worth_having(best, taking, best.choice.time_s * factor))

    def _orders(self) -> Generator[NDArray[np.intp]]:
        """Yield orders in which to take clients in: the quick first; then, where limits speak against sets, other virtues."""
        i, some = self._i, np.flatnonzero(np.isfinite(self._low))
        yield some[np.argsort(self._low[some], kind="stable")]
        if self._bands.any():
            yield some[np.argsort(self._bands[some], kind="stable")]
        if self._best is None or i.objective.kind == "cost":
            worth = i.utility.value(i.share_max)
            for virtue in (worth, worth / self._low, worth / (self._low - i.start_s) / i.update_mbit):
                yield some[np.argsort(-virtue[some], kind="stable")]

    def _follow(self, taking: Taking) -> None:
        for _ in range(_TURNS):
            found = self._try(taking)
            if found is None:
                return
            taking = self._worth_having(found, taking, found.choice.time_s)

    def _worth_having(self, found: Solution, taking: Taking, time_s: float) -> Taking:
        gains = self._gains(found, time_s)
        per_mhz = np.maximum(gains, 0.0) / np.maximum(self._bands, 1e-12 * self._i.bandwidth_mhz)
        order = np.argsort(-per_mhz, kind="stable")
        fits = np.empty_like(taking)
        fits[order] = np.cumsum(np.where(gains > 0.0, self._bands, 0.0)[order]) <= self._i.bandwidth_mhz
        return (gains > 0.0) & fits

    def _gains(self, found: Solution, time_s: float) -> Floats:
        """Return what every client would add at a time and the prices of a solution: ell u - cost; minus infinity if too slow."""
        i, prices = self._i, found.prices
        gains = np.full(i.clients, -np.inf)
        able = self._low < time_s * (1.0 - 1e-9)
        if prices is None or not able.any():
            return gains
        wide = max(i.bandwidth_mhz, 2.0 * float(self._bands[able].sum()))  # prices are given, the band's width does not matter
        part = replace(i.select(able), deadline_s=None, bandwidth_mhz=wide)
        model = model_of(part)
        chosen, states = np.empty((part.clients, 7)), cold(model).states
        three = np.array([prices.bandwidth_per_mhz, prices.server_per_tflops, max(prices.utility, 1e-300)])
        soft = model.softened(1e-6)
        if shared_by.settled(soft.rows, soft.kind, soft.shared, three, time_s, states, 1e-9, chosen) < 0:
            return gains
        share, theta = chosen[:, 0], chosen[:, 5]
        costs = least_costs(model, replace(prices, time_per_s=theta), share[:, None])[:, 0]
        gains[able] = prices.utility * part.utility.value(share) - (costs - theta * time_s)  # time is given: it costs nothing
        return gains

    def exchange(self) -> None:
        """Leave out, take in, or swap single clients, as long as something helps."""
        while self._best is not None and len(self._seen) < _TRIES_MAX:
            before = self._value()
            for taking in self._neighbours():
                self._try(taking)
                if self._value() > before + _BETTER * abs(before):
                    break
            else:
                return

    def _neighbours(self) -> list[Taking]:
        """Return sets that differ in one client, then in two, the promising ones first."""
        best = self._best
        if best is None or best.prices is None:
            return []
        inside, outside = np.flatnonzero(self._taking), np.flatnonzero(~self._taking)
        worth = np.zeros(self._i.clients)
        worth[inside] = responses(self._i.select(self._taking), best.prices)
        droppable = inside if self._i.objective.kind == "cost" else inside[worth[inside] < 0.0]
        gains = self._gains(best, best.choice.time_s)
        outside = outside[np.argsort(-gains[outside], kind="stable")]
        dropped = [(n,) for n in droppable[np.argsort(worth[droppable], kind="stable")]]
        added = [(n,) for n in outside]
        swaps = [(n, m) for m in outside[:12] for n in inside[np.argsort(worth[inside], kind="stable")][:12]]
        pairs = [(int(a), int(b)) for k, a in enumerate(outside[:8]) for b in outside[k + 1 : 8]]
        found: list[Taking] = []
        for change in (*dropped, *added, *swaps, *pairs):
            taking = self._taking.copy()
            taking[list(change)] ^= True
            found.append(taking)
        return found

    def answer(self) -> Solution:
        """Return the best, spread out over all clients, with the reason for everyone who is left out."""
        if self._best is None:
            raise self._failure
        left_out = tuple(name for name, taking in zip(self._i.names, self._taking, strict=True) if not taking)
        notes = tuple(f"client {name} takes no part: the objective is higher without it" for name in left_out)
        whole = spread_out(self._i, self._best, self._taking)
        how = f"{len(self._seen)} sets of clients were solved; the best of them is not proven to be the best of all"
        return replace(whole, excluded=left_out, notes=(*whole.notes, how, *notes), claim="none")
