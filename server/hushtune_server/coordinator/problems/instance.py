"""The resource problem of one round as numbers: who could do what at which cost, one answer, and what that answer is worth.

Every client trains a share (phi) of its adapter and uploads it over its own band, with an eavesdropper listening, to the model
owner, who plugs it in. To choose: shares, bands, transmit powers, the clients' clocks, the owner's clocks for each plug-in.
The structure is that of arXiv 2407.00347 (utility-consumption ratio); its exact workloads, utilities and constants are not
public, the forms here are a reconstruction. Units throughout: MHz, Mbit, W, J, s, TFLOP, TFLOP/s; N clients.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from math import inf, isfinite, log
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hushtune_common.config import CodecConfig
from hushtune_server.coordinator.problems.utility import Floats, Objective, Utility

_POSITIVE = (
    "gain_main_mhz_per_w",
    "power_max_w",
    "clock_max_tflops",
    "clock_energy_w_per_tflops3",
    "update_mbit",
    "train_tflop",
    "plug_in_tflop",
    "share_min",
    "share_max",
)
_NOT_NEGATIVE = ("gain_tap_mhz_per_w", "train_fixed_share", "start_s", "rate_min_mbps")
_SCALARS = (
    "bandwidth_mhz",
    "server_tflops",
    "server_energy_w_per_tflops3",
    "time_weight_per_s",
    "energy_weight_per_j",
    "codec_bits",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClockLevels:
    """The operating points of one device: increasing clocks, and the power drawn at each."""

    clock_tflops: tuple[float, ...]
    power_w: tuple[float, ...]

    def __post_init__(self) -> None:
        """Clocks and powers are positive and increase together."""
        if not self.clock_tflops or len(self.clock_tflops) != len(self.power_w):
            raise ValueError("a device has at least one clock level, and one power for each")
        for numbers in (self.clock_tflops, self.power_w):
            if not all(isfinite(x) for x in numbers) or np.any(np.diff((0.0, *numbers)) <= 0.0):
                raise ValueError(f"clock levels and their powers are positive and increase, got {numbers}")

    def hull(self) -> tuple[Floats, Floats]:
        """Return the clocks and powers on the lower convex hull through the idle point (0, 0), the idle point included.

        Sharing time between two neighbours realises every point of the hull, and nothing does better (Ishihara and Yasuura,
        ISLPED 1998).
        """
        kept: list[tuple[float, float]] = [(0.0, 0.0)]
        for point in zip(self.clock_tflops, self.power_w, strict=True):
            while len(kept) > 1 and _above_chord(kept[-2], kept[-1], point):
                kept.pop()
            kept.append(point)
        clocks, powers = np.array(kept).T
        return clocks, powers

    def power(self, clock_tflops: float) -> float:
        """Return the mean power of running at this mean clock by sharing time between two levels."""
        clocks, powers = self.hull()
        return float(np.interp(clock_tflops, clocks, powers))


def _above_chord(first: tuple[float, float], middle: tuple[float, float], last: tuple[float, float]) -> bool:
    rise = (last[1] - first[1]) * (middle[0] - first[0])
    return (middle[1] - first[1]) * (last[0] - first[0]) >= rise * (1.0 - 1e-9)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Instance:
    """One resource problem; every array is (N,).

    Laws: permuting the clients permutes optimal choices; ``select`` and ``permuted`` keep every number of a client.
    """

    names: tuple[str, ...]
    gain_main_mhz_per_w: Floats
    """a: channel gain to the owner over the noise density."""
    gain_tap_mhz_per_w: Floats
    """e: the same to the eavesdropper."""
    power_max_w: Floats
    clock_max_tflops: Floats
    clock_energy_w_per_tflops3: Floats
    """A device at clock f draws this times f**3; not used where there are ``clock_levels``."""
    update_mbit: Floats
    """D: the whole adapter; a share of it is uploaded."""
    train_tflop: Floats
    """c: training the whole adapter."""
    train_fixed_share: Floats
    """s0: the part of ``train_tflop`` that any share costs (a pass through the emulator)."""
    plug_in_tflop: Floats
    """c': plugging in and checking the whole adapter, on the owner's machine."""
    start_s: Floats
    """t0: before a client can start (download)."""
    share_min: Floats
    share_max: Floats
    rate_min_mbps: Floats
    """Least secrecy rate; 0 for none."""
    bandwidth_mhz: float
    server_tflops: float
    server_energy_w_per_tflops3: float
    time_weight_per_s: float
    energy_weight_per_j: float
    utility: Utility
    objective: Objective = field(default_factory=Objective)
    deadline_s: float | None = None
    share_levels: tuple[float, ...] | None = None
    """The shares that exist (discrete compression), increasing; None where any share in the range does."""
    clock_levels: tuple[ClockLevels, ...] | None = None
    """The clocks that exist, per client; the top one is ``clock_max_tflops``."""
    codec_bits: float = CodecConfig().bits
    """Bits per weight that the whole update spends; a share spends that part of them. Told beside shares, and nothing else."""

    def __post_init__(self) -> None:
        """Sizes agree and every number is finite and in its range."""
        self._check_sizes()
        for name in _POSITIVE:
            self._check(name, lambda x: x > 0.0, "a positive number")
        for name in _NOT_NEGATIVE:
            self._check(name, lambda x: x >= 0.0, "a number of at least 0")
        self._check("train_fixed_share", lambda x: x <= 1.0, "at most 1")
        self._check("share_max", lambda x: x <= 1.0, "at most 1")
        self._check("share_min", lambda x: x <= self.share_max, "at most share_max")
        for name in _SCALARS:
            value = getattr(self, name)
            if not (isfinite(value) and value > 0.0):
                raise ValueError(f"{name} is {value}, expected a positive number")
        if self.deadline_s is not None and not (isfinite(self.deadline_s) and self.deadline_s > 0.0):
            raise ValueError(f"deadline_s is {self.deadline_s}, expected a positive number")
        self._check_levels()
        if self.objective.kind in ("ratio", "max_min") and not self._worth_something():
            raise ValueError(f"the objective {self.objective.kind} needs utilities above zero at share_max: raise utility.offset")

    def _check_sizes(self) -> None:
        n = len(self.names)
        if n == 0:
            raise ValueError("an instance has at least one client")
        if len(set(self.names)) != n:
            raise ValueError("client names are unique")
        for f in fields(self):
            value = getattr(self, f.name)
            if isinstance(value, np.ndarray) and (value.shape != (n,) or value.dtype != np.float64):
                raise ValueError(f"{f.name} has shape {value.shape} of {value.dtype}, expected ({n},) of float64")
        if self.utility.clients != n:
            raise ValueError(f"utility is of {self.utility.clients} clients, expected {n}")

    def _check(self, name: str, holds: Callable[[Floats], NDArray[np.bool_]], expected: str) -> None:
        numbers: Floats = getattr(self, name)
        bad = ~(np.isfinite(numbers) & holds(numbers))
        if bad.any():
            worst = int(bad.argmax())
            raise ValueError(f"{name} of client {self.names[worst]} is {numbers[worst]}, expected {expected}")

    def _check_levels(self) -> None:
        levels = self.share_levels
        if levels is not None and (not levels or levels[0] <= 0.0 or levels[-1] > 1.0 or np.any(np.diff(levels) <= 0.0)):
            raise ValueError(f"share_levels increase within (0, 1], got {levels}")
        if self.utility.kind == "table" and levels != self.utility.levels:
            raise ValueError("a table of utilities needs share_levels, and is given at exactly these")
        if levels is not None and not self.allowed_levels().any(axis=1).all():
            name = self.names[int((~self.allowed_levels().any(axis=1)).argmax())]
            raise ValueError(f"share_levels: client {name} has none between its share_min and share_max")
        if self.clock_levels is not None:
            if len(self.clock_levels) != len(self.names):
                raise ValueError("clock_levels has one entry per client")
            tops = np.array([device.clock_tflops[-1] for device in self.clock_levels])
            self._check("clock_max_tflops", lambda x: np.isclose(x, tops, rtol=1e-12), "the top one of clock_levels")

    def _worth_something(self) -> bool:
        with np.errstate(over="ignore"):  # a utility of minus infinity is worth nothing
            best = self.utility.value(self.share_max)
        if self.utility.values is not None:
            best = np.where(self.allowed_levels(), self.utility.value(self.level_grid()), -inf).max(axis=1)
        return bool(best.sum() > 0.0) if self.objective.kind == "ratio" else bool((best > 0.0).all())

    @property
    def clients(self) -> int:
        """N."""
        return len(self.names)

    @property
    def usable(self) -> NDArray[np.bool_]:
        """Who can have a secret rate at all: the owner hears better than the eavesdropper, a > e."""
        return self.gain_main_mhz_per_w > self.gain_tap_mhz_per_w

    @property
    def in_theorem(self) -> bool:
        """Whether a stationary choice is certain to be the best one: every share in a range is possible, utilities curve enough.

        Every utility's relative risk aversion is at least 1/2 on the range and at most the owner's band, machine and time are
        shared. With least rates the same is known where it is at least 1 (log-log convexity). Derived, not peer reviewed.
        """
        least = self.utility.relative_risk_aversion_min(self.share_min, self.share_max)
        needed = np.where(self.rate_min_mbps > 0.0, 1.0, 0.5)
        return self.share_levels is None and bool((least >= needed * (1.0 - 1e-12)).all())

    def level_grid(self) -> Floats:
        """Return the share levels of every client, (N, K)."""
        return np.tile(np.array(self.share_levels or (), dtype=np.float64), (self.clients, 1))

    def allowed_levels(self) -> NDArray[np.bool_]:
        """Return which levels lie in each client's range, (N, K)."""
        grid = self.level_grid()
        slack = 1e-12
        return (grid >= self.share_min[:, None] * (1.0 - slack)) & (grid <= self.share_max[:, None] * (1.0 + slack))

    def select(self, mask: NDArray[np.bool_]) -> "Instance":
        """Return the same problem with the clients where ``mask`` holds only."""
        return self._taken(np.flatnonzero(mask))

    def permuted(self, order: NDArray[np.intp]) -> "Instance":
        """Return the same problem with its clients in another order."""
        if sorted(order.tolist()) != list(range(self.clients)):
            raise ValueError("an order names every client once")
        return self._taken(order)

    def _taken(self, index: NDArray[np.intp]) -> "Instance":
        arrays = {f.name: getattr(self, f.name)[index] for f in fields(self) if isinstance(getattr(self, f.name), np.ndarray)}
        names = tuple(self.names[i] for i in index)
        clocks = None if self.clock_levels is None else tuple(self.clock_levels[i] for i in index)
        return replace(self, **arrays, names=names, utility=self.utility.select(index), clock_levels=clocks)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Choice:
    """One answer; every array is (N,). A client with share 0 takes no part, and all its numbers are 0."""

    share: Floats
    bandwidth_mhz: Floats
    power_w: Floats
    clock_tflops: Floats
    server_tflops: Floats
    time_s: float
    """T, by which every client's update is plugged in."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Evaluation:
    """What a choice is worth, by the plain formulas."""

    utility: float
    """U."""
    cost: float
    """S = time weight times the latest client's time + energy weight times all energy."""
    objective: float
    """To be maximised: U / S, U - price S, -S, or the least u over S."""
    time_s: float
    """When the latest client is plugged in."""
    client_time_s: Floats
    compute_energy_j: Floats
    radio_energy_j: Floats
    server_energy_j: Floats
    secret_rate_mbps: Floats
    residuals: Mapping[str, float]
    """Worst relative violation of each family of constraints; 0 where it holds."""

    @property
    def worst(self) -> float:
        """The largest relative violation."""
        return max(self.residuals.values())

    @property
    def energy_j(self) -> float:
        """All energy."""
        return float(self.compute_energy_j.sum() + self.radio_energy_j.sum() + self.server_energy_j.sum())


def secret_rate_mbps(instance: Instance, *, bandwidth_mhz: Floats, power_w: Floats) -> Floats:
    """Return the secrecy capacity of the Gaussian wiretap channel, b log2((1 + a p/b) / (1 + e p/b)), at least 0 (N,).

    Leung-Yan-Cheong and Hellman (1978).
    """
    a, e = instance.gain_main_mhz_per_w, instance.gain_tap_mhz_per_w
    x = _over(power_w, bandwidth_mhz, none=bandwidth_mhz <= 0.0)
    return bandwidth_mhz * np.maximum(np.log1p((a - e) * x / (1.0 + e * x)), 0.0) / log(2.0)


def client_times_s(instance: Instance, choice: Choice) -> Floats:
    """Return when each client is plugged in, (N,); 0 for those that take no part, infinity for what has no speed."""
    return _stages(instance, choice).end_s


def evaluate(instance: Instance, choice: Choice) -> Evaluation:
    """Return what ``choice`` is worth and how far it violates each constraint; independent of every solver."""
    i, stages = instance, _stages(instance, choice)
    part = choice.share > 0.0
    compute = _compute_power(i, choice.clock_tflops) * stages.compute_s
    radio = choice.power_w * stages.air_s
    server = i.server_energy_w_per_tflops3 * i.plug_in_tflop * choice.share * choice.server_tflops**2
    time = float(stages.end_s.max())
    each = np.where(part, i.utility.value(np.where(part, choice.share, i.share_min)), 0.0)
    utility = float(each.sum())
    cost = i.time_weight_per_s * time + i.energy_weight_per_j * float(compute.sum() + radio.sum() + server.sum())
    return Evaluation(
        utility=utility,
        cost=cost,
        objective=_objective(i, each[part], utility, cost),
        time_s=time,
        client_time_s=stages.end_s,
        compute_energy_j=compute,
        radio_energy_j=radio,
        server_energy_j=server,
        secret_rate_mbps=stages.rate_mbps,
        residuals=_residuals(i, choice, rate=stages.rate_mbps, client_time=stages.end_s, utility=utility),
    )


class _Stages(NamedTuple):
    """How long each client trains and sends, at which secret rate, and when it is plugged in; (N,) each."""

    compute_s: Floats
    air_s: Floats
    rate_mbps: Floats
    end_s: Floats


def _stages(i: Instance, choice: Choice) -> _Stages:
    out = ~(choice.share > 0.0)
    rate = secret_rate_mbps(i, bandwidth_mhz=choice.bandwidth_mhz, power_w=choice.power_w)
    work = i.train_tflop * (i.train_fixed_share + (1.0 - i.train_fixed_share) * choice.share)
    compute_s = _over(work, choice.clock_tflops, none=out)
    air_s = _over(i.update_mbit * choice.share, rate, none=out)
    plug_in_s = _over(i.plug_in_tflop * choice.share, choice.server_tflops, none=out)
    return _Stages(compute_s, air_s, rate, np.where(out, 0.0, i.start_s + compute_s + air_s + plug_in_s))


def _over(amount: Floats, speed: Floats, *, none: NDArray[np.bool_]) -> Floats:
    """Return amount / speed; nothing takes no time, and something at no speed takes forever."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(none, 0.0, amount / speed)


def _compute_power(instance: Instance, clock: Floats) -> Floats:
    if instance.clock_levels is None:
        return instance.clock_energy_w_per_tflops3 * clock**3
    return np.array([device.power(float(f)) for device, f in zip(instance.clock_levels, clock, strict=True)])


def _objective(instance: Instance, each: Floats, utility: float, cost: float) -> float:
    goal = instance.objective
    if not each.size:
        return -inf if goal.kind == "cost" else 0.0
    match goal.kind:
        case "ratio":
            return utility / cost
        case "difference":
            return utility - (goal.price or 0.0) * cost
        case "cost":
            return -cost
        case "max_min":
            return float(each.min()) / cost


def _residuals(instance: Instance, choice: Choice, *, rate: Floats, client_time: Floats, utility: float) -> dict[str, float]:
    i, part = instance, choice.share > 0.0
    found = {
        "bandwidth": float(choice.bandwidth_mhz.sum()) / i.bandwidth_mhz - 1.0,
        "server": float(choice.server_tflops.sum()) / i.server_tflops - 1.0,
        "power": _worst(choice.power_w[part] / i.power_max_w[part] - 1.0),
        "clock": _worst(choice.clock_tflops[part] / i.clock_max_tflops[part] - 1.0),
        "share": max(_worst(choice.share[part] / i.share_max[part] - 1.0), _worst(1.0 - choice.share[part] / i.share_min[part])),
        "rate": _worst(1.0 - rate[part] / np.maximum(i.rate_min_mbps[part], 1e-300), where=i.rate_min_mbps[part] > 0.0),
        "time": _worst(client_time[part] / choice.time_s - 1.0) if choice.time_s > 0.0 else 0.0,
        "deadline": 0.0 if i.deadline_s is None else float(client_time.max()) / i.deadline_s - 1.0,
        "sign": _worst(-np.concatenate([choice.bandwidth_mhz, choice.power_w, choice.clock_tflops, choice.server_tflops])),
    }
    if i.share_levels is not None:
        grid = i.level_grid()[part]
        found["levels"] = _worst(np.abs(grid / choice.share[part, None] - 1.0).min(axis=1)) if part.any() else 0.0
    floor = i.objective.utility_min
    if floor is not None:
        found["utility"] = (floor - utility) / max(abs(floor), 1e-300)
    return {family: max(violation, 0.0) if violation == violation else inf for family, violation in found.items()}


def _worst(violations: Floats, where: NDArray[np.bool_] | None = None) -> float:
    kept = violations if where is None else violations[where]
    return float(kept.max()) if kept.size else 0.0
