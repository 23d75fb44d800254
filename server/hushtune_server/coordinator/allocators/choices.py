"""Which choices has every client of a round, what does each cost, and what is a complete choice worth?"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

import numpy as np
from numpy.typing import NDArray

from hushtune_server.coordinator.allocators.linear import Prices, Work
from hushtune_server.coordinator.problems.radio import Radio
from hushtune_server.coordinator.problems.secrecy import AllocationProblem
from hushtune_server.coordinator.problems.utility import Floats, Utility

Chosen = NDArray[np.intp]
_TERA = 1e12


def utility_of(problem: AllocationProblem, *, clients: int) -> Utility:
    """Return what updates are worth, the same for each client: as measured, or as the scenario assumes.

    ``ValueError`` where the scenario has it measured and nobody did.
    """
    assumed, curve, ones = problem.allocator.utility, problem.curve, np.ones(clients)
    if assumed.kind == "measured":
        if curve is None:
            raise ValueError("utilities are to be measured, and there is no curve")
        return Utility(kind="scaling", weight=curve.weight * ones, shape=curve.shape * ones, offset=curve.offset * ones)
    weight, offset = assumed.weight * ones, None
    if assumed.kind == "scaling":
        weight, offset = 0.5 * assumed.weight * problem.share_least**assumed.shape * ones, assumed.weight * ones
    return Utility(kind=assumed.kind, weight=weight, shape=assumed.shape * ones, offset=offset)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Worth:
    """What a complete choice is worth; arrays are (N,)."""

    utility: float
    cost: float
    client_time_s: Floats
    compute_j: Floats
    radio_j: Floats

    @property
    def objective(self) -> float:
        """Utility over cost."""
        return self.utility / self.cost

    @property
    def time_s(self) -> float:
        """When the latest client is plugged in."""
        return float(self.client_time_s.max())


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Choices:
    """The options of N clients, each a coding point with a level: arrays are (N,) and (N, O), padded with infinite symbols."""

    radios: tuple[Radio, ...]
    symbols_m: Floats
    energy_j: Floats
    """On air."""
    band_max_mhz: Floats
    utility: Floats
    train_tflop: Floats
    clock_max_tflops: Floats
    """Also no faster than the device's energy allows."""
    clock_energy_w_per_tflops3: Floats
    plug_in_tflop: float
    bandwidth_mhz: float
    server_tflops: float
    server_energy_w_per_tflops3: float
    time_weight_per_s: float
    energy_weight_per_j: float
    deadline_s: float
    levels: int
    """K; option o is point o // K at level o % K."""

    @staticmethod
    def of(problem: AllocationProblem, radios: Sequence[Radio]) -> "Choices":
        """Return the options of clients that have some."""
        levels = radios[0].shares
        points = max(len(r.points) for r in radios)
        symbols, density = np.full((len(radios), points, len(levels)), inf), np.ones((len(radios), points, 1))
        for n, radio in enumerate(radios):
            symbols[n, : len(radio.points)] = radio.symbols_m
            density[n, : len(radio.points), 0] = radio.density_w_per_mhz
        tops = np.array([r.report.power_max for r in radios])[:, None, None]
        shares = np.tile(np.array(levels), (len(radios), points))
        worth = utility_of(problem, clients=len(radios)).value(shares)
        flat = (len(radios), points * len(levels))
        train = np.array([r.report.train_flops for r in radios]) / _TERA
        kappa = np.array([r.report.energy_w_per_flops3 for r in radios]) * _TERA**3
        clock = np.array([r.report.clock_max for r in radios]) / _TERA
        energy = np.array([r.report.energy_max for r in radios])
        return Choices(
            radios=tuple(radios),
            symbols_m=symbols.reshape(flat),
            energy_j=(density * symbols).reshape(flat),
            band_max_mhz=np.broadcast_to(tops / density, symbols.shape).reshape(flat),
            utility=np.where(np.isfinite(symbols.reshape(flat)), worth, -inf),
            train_tflop=train,
            clock_max_tflops=np.minimum(clock, np.sqrt(energy / train / kappa)),
            clock_energy_w_per_tflops3=kappa,
            plug_in_tflop=problem.owner.plug_in_flops / _TERA,
            bandwidth_mhz=problem.air.bandwidth_hz / 1e6,
            server_tflops=problem.owner.clock_max_flops / _TERA,
            server_energy_w_per_tflops3=problem.owner.energy_w_per_flops3 * _TERA**3,
            time_weight_per_s=problem.allocator.time_weight_per_s,
            energy_weight_per_j=problem.allocator.energy_weight_per_j,
            deadline_s=float(problem.round_s),
            levels=len(levels),
        )

    @property
    def clients(self) -> int:
        """N."""
        return len(self.radios)

    @property
    def level_of(self) -> Chosen:
        """The level of each option, (O,)."""
        return np.arange(self.symbols_m.shape[1], dtype=np.intp) % self.levels

    def picked(self, numbers: Floats, at: Chosen) -> Floats:
        """Return the numbers (N, O) of the chosen options, (N,)."""
        return numbers[np.arange(self.clients), at]

    def alone_s(self) -> Floats:
        """Return the least time of each client with the whole band and machine for itself, (N,)."""
        air = (self.symbols_m / np.minimum(self.band_max_mhz, self.bandwidth_mhz)).min(axis=1)
        return self.train_tflop / self.clock_max_tflops + air + self.plug_in_tflop / self.server_tflops

    def work(self, at: Chosen) -> Work:
        """Return what is left to share out once the options are chosen."""
        return Work(
            train_tflop=self.train_tflop,
            symbols_m=self.picked(self.symbols_m, at),
            plug_in_tflop=self.plug_in_tflop,
            clock_max_tflops=self.clock_max_tflops,
            clock_energy_w_per_tflops3=self.clock_energy_w_per_tflops3,
            band_max_mhz=self.picked(self.band_max_mhz, at),
            bandwidth_mhz=self.bandwidth_mhz,
            server_tflops=self.server_tflops,
            server_energy_w_per_tflops3=self.server_energy_w_per_tflops3,
            time_weight_per_s=self.time_weight_per_s,
            energy_weight_per_j=self.energy_weight_per_j,
            deadline_s=self.deadline_s,
        )

    def worth(self, at: Chosen, *, band: Floats, clock: Floats, server: Floats) -> Worth:
        """Return what a complete choice is worth."""
        compute = self.clock_energy_w_per_tflops3 * clock**2 * self.train_tflop
        radio = self.picked(self.energy_j, at)
        plugged = self.server_energy_w_per_tflops3 * server**2 * self.plug_in_tflop
        time = self.train_tflop / clock + self.picked(self.symbols_m, at) / band + self.plug_in_tflop / server
        energy = float((compute + radio + plugged).sum())
        return Worth(
            utility=float(self.picked(self.utility, at).sum()),
            cost=self.time_weight_per_s * float(time.max()) + self.energy_weight_per_j * energy,
            client_time_s=time,
            compute_j=compute,
            radio_j=radio,
        )

    def radio_costs(self, prices: Prices) -> Floats:
        """Return the least cost of every option at the prices, band and time on air included, (N, O)."""
        theta, mu = prices.time_per_s[:, None], max(prices.bandwidth_per_mhz, 1e-300)
        with np.errstate(invalid="ignore", over="ignore"):
            band = np.minimum(self.band_max_mhz, np.sqrt(theta * self.symbols_m / mu))
            found = mu * band + theta * self.symbols_m / band + self.energy_weight_per_j * self.energy_j
        return np.where(np.isfinite(self.symbols_m), found, inf)

    def other_costs(self, prices: Prices) -> Floats:
        """Return the least cost of training and plug-in at the prices, (N,)."""
        theta, nu, w = prices.time_per_s, prices.server_per_tflops, self.energy_weight_per_j
        kappa, mine, plug = self.clock_energy_w_per_tflops3, self.server_energy_w_per_tflops3, self.plug_in_tflop
        clock = np.minimum(self.clock_max_tflops, np.cbrt(theta / (2.0 * w * kappa)))
        server = np.cbrt(theta / (2.0 * w * mine))
        for _ in range(60):  # Newton from above on a convex, increasing function
            slope = 6.0 * w * mine * plug * server**2 + 2.0 * nu * server
            server = server - (2.0 * w * mine * plug * server**3 + nu * server**2 - theta * plug) / slope
        training = theta * self.train_tflop / clock + w * kappa * self.train_tflop * clock**2
        return training + theta * plug / server + w * mine * plug * server**2 + nu * server

    def bound(self, prices: Prices, *, start: float) -> float:
        """Return a ratio of utility to cost that no choice for these clients exceeds: weak duality at any prices.

        ``start``: any ratio that is reached. With ell = 1 / ratio, nothing is better where ell U - S cannot be positive.
        """
        costs, surplus = self.radio_costs(prices), float(prices.time_per_s.sum()) - self.time_weight_per_s
        fixed = prices.bandwidth_per_mhz * self.bandwidth_mhz + prices.server_per_tflops * self.server_tflops
        fixed += max(surplus, 0.0) * self.deadline_s - float(self.other_costs(prices).sum())
        ell = 1.0 / start
        for _ in range(100):  # Newton from above on a convex, increasing, piecewise linear function
            gains = ell * self.utility - costs
            at = gains.argmax(axis=1)
            value, slope = float(self.picked(gains, at).sum()) + fixed, float(self.picked(self.utility, at).sum())
            step = value / slope
            if step <= 1e-13 * ell:
                break
            ell -= step
            if ell <= 0.0:
                return inf
        return 1.0 / (ell * (1.0 - 1e-12))
