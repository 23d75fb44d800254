"""What the structured solver's kernels are given of an instance, and what no prices could make feasible."""

from dataclasses import dataclass, replace
from math import exp, inf, log
from typing import Final

import numpy as np

from hushtune_common.errors import Infeasible
from hushtune_server.coordinator.allocators import structured_kernels as client
from hushtune_server.coordinator.allocators import structured_newton as shared_by
from hushtune_server.coordinator.problems.instance import Instance
from hushtune_server.coordinator.problems.utility import Floats, Utility, UtilityKind

_KINDS: Final[dict[UtilityKind, int]] = {
    "log": client.LOG,
    "exponential": client.EXPONENTIAL,
    "power": client.POWER,
    "scaling": client.SCALING,
    "log_share": client.LOG_RATIO,
    "linear": client.LINEAR,
}
_LN2: Final = log(2.0)
MARGIN: Final = 1.0 + 1e-6
"""What a message advises is this much more than the least, so that the solver has room."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Model:
    """An instance of usable clients as arrays for the kernels, at one way to price utility."""

    names: tuple[str, ...]
    rows: Floats
    """(N, at least 17), columns in ``structured_kernels``."""
    kind: int
    shared: Floats
    """Constants, indices in ``structured_newton``."""
    deadline_s: float
    """Infinite for none."""

    def with_shares(self, share: Floats) -> "Model":
        """Return the model with every share fixed, (N,)."""
        return self.with_range(share, share)

    def with_range(self, low: Floats, high: Floats) -> "Model":
        """Return the model with other bounds of the shares, (N,) each."""
        rows = self.rows.copy()
        rows[:, client.LOG_SHARE_MIN], rows[:, client.LOG_SHARE_MAX] = np.log(low), np.log(high)
        return replace(self, rows=rows, shared=_with_time_low(rows, self.shared))

    def with_utility(self, utility: Utility) -> "Model":
        """Return the model with other utilities."""
        rows, shared = self.rows.copy(), self.shared.copy()
        rows[:, client.WEIGHT], rows[:, client.SHAPE] = utility.weight, utility.shape
        shared[shared_by.OFFSET] = 0.0 if utility.offset is None else utility.offset.sum()
        return replace(self, rows=rows, kind=_KINDS[utility.kind], shared=shared)

    def priced(self, mode: float, *, target: float = 0.0) -> "Model":
        """Return the model with another way to price utility: ``RATIO``, ``FIXED`` or ``FLOOR`` (of ``target``)."""
        shared = self.shared.copy()
        shared[shared_by.MODE], shared[shared_by.TARGET] = mode, target
        return replace(self, shared=shared)

    def softened(self, softness: float) -> "Model":
        """Return the model with the price steps between clock levels spread over this much of ln theta."""
        shared = self.shared.copy()
        shared[shared_by.SOFTNESS] = softness
        return replace(self, shared=shared)


def model_of(instance: Instance) -> Model:
    """Return the model of an instance whose clients are all usable.

    Raises ``Infeasible`` for what one client or the band alone forbids, with the least change that helps.
    """
    i = instance
    width = client.HULL
    hulls = [] if i.clock_levels is None else [device.hull() for device in i.clock_levels]
    width += 2 * max((clocks.size for clocks, _ in hulls), default=0)
    rows = np.zeros((i.clients, width))
    columns = {
        client.GAIN_MAIN: i.gain_main_mhz_per_w,
        client.GAIN_TAP: i.gain_tap_mhz_per_w,
        client.POWER_MAX: i.power_max_w,
        client.CLOCK_MAX: i.clock_max_tflops,
        client.CLOCK_ENERGY: i.clock_energy_w_per_tflops3,
        client.SENT: _LN2 * i.update_mbit,
        client.WORK_FIXED: i.train_tflop * i.train_fixed_share,
        client.WORK_SHARE: i.train_tflop * (1.0 - i.train_fixed_share),
        client.PLUGGED: i.plug_in_tflop,
        client.START: i.start_s,
        client.LOG_SHARE_MIN: np.log(i.share_min),
        client.LOG_SHARE_MAX: np.log(i.share_max),
        client.RATE_MIN: _LN2 * i.rate_min_mbps,
        client.WEIGHT: i.utility.weight,
        client.SHAPE: i.utility.shape,
    }
    for column, numbers in columns.items():
        rows[:, column] = numbers
    for row, (clocks, powers) in zip(rows, hulls, strict=False):
        row[client.LEVELS] = clocks.size
        row[client.HULL : client.HULL + 2 * clocks.size] = np.stack([clocks, powers], axis=1).ravel()
    _fit_rates(i, rows)
    shared = np.zeros(shared_by.SHARED)
    shared[shared_by.ENERGY_WEIGHT] = i.energy_weight_per_j
    shared[shared_by.SERVER_ENERGY] = i.server_energy_w_per_tflops3
    shared[shared_by.TIME_WEIGHT] = i.time_weight_per_s
    shared[shared_by.BANDWIDTH] = i.bandwidth_mhz
    shared[shared_by.MACHINE] = i.server_tflops
    shared[shared_by.Z_DEADLINE] = inf
    shared[shared_by.OFFSET] = 0.0 if i.utility.offset is None else i.utility.offset.sum()
    kind = client.LINEAR if i.utility.kind == "table" else _KINDS[i.utility.kind]
    deadline = inf if i.deadline_s is None else i.deadline_s
    return Model(names=i.names, rows=rows, kind=kind, shared=_with_time_low(rows, shared), deadline_s=deadline)


def least_bands_mhz(instance: Instance) -> Floats:
    """Return the narrowest band in which each client's top power reaches its least rate, (N,).

    0 where there is no least rate, infinity where it is out of reach in any band.
    """
    i = instance
    bands, limit = np.zeros(i.clients), _rate_limit(i)
    for n in np.flatnonzero(i.rate_min_mbps > 0.0):
        a, e, top = float(i.gain_main_mhz_per_w[n]), float(i.gain_tap_mhz_per_w[n]), float(i.power_max_w[n])
        reachable = i.rate_min_mbps[n] < limit[n] * (1.0 - 1e-12)
        bands[n] = top / exp(client.root_both(a, e, _LN2 * float(i.rate_min_mbps[n]) / top)) if reachable else inf
    return bands


def _rate_limit(i: Instance) -> Floats:
    """Return the secret rates at top power over ever wider bands, (N,)."""
    return i.power_max_w * (i.gain_main_mhz_per_w - i.gain_tap_mhz_per_w) / _LN2


def _fit_rates(i: Instance, rows: Floats) -> None:
    """Find the least band for each least rate; refuse rates that no band, or not this band, can carry."""
    asked = i.rate_min_mbps > 0.0
    if not asked.any():
        return
    bands = least_bands_mhz(i)
    if np.isinf(bands).any():
        n, limit = int(bands.argmax()), _rate_limit(i)
        needed = i.power_max_w[n] * i.rate_min_mbps[n] / limit[n]
        raise Infeasible(
            f"client {i.names[n]}: rate_min_mbps of {i.rate_min_mbps[n]:g} is out of reach at any bandwidth: "
            f"lower it below {limit[n] / MARGIN:.9g}, or raise power_max_w above {MARGIN * needed:.9g}"
        )
    rows[asked, client.X_BOTH] = np.log(i.power_max_w[asked] / bands[asked])
    if bands.sum() > i.bandwidth_mhz * (1.0 + 1e-12):
        raise Infeasible(
            f"bandwidth_mhz of {i.bandwidth_mhz:g} cannot carry every rate_min_mbps: "
            f"raise it to at least {MARGIN * bands.sum():.9g}"
        )


def time_low(rows: Floats) -> Floats:
    """Return the time below which each client cannot be, with all band and machine for itself, (N,)."""
    share = np.exp(rows[:, client.LOG_SHARE_MIN])
    rate = rows[:, client.POWER_MAX] * (rows[:, client.GAIN_MAIN] - rows[:, client.GAIN_TAP])
    work = rows[:, client.WORK_FIXED] + rows[:, client.WORK_SHARE] * share
    return rows[:, client.START] + work / rows[:, client.CLOCK_MAX] + share * rows[:, client.SENT] / rate


def _with_time_low(rows: Floats, shared: Floats) -> Floats:
    shared = shared.copy()
    shared[shared_by.TIME_LOW] = time_low(rows).max()
    return shared
