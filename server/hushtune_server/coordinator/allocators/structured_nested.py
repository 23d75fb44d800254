"""How are the prices found where Newton's method does not find them: nested monotone searches, compiled."""

import numpy as np

from hushtune_common.link.kernels import kernel
from hushtune_server.coordinator.allocators.structured_newton import (
    ENERGIES,
    ENERGY_WEIGHT,
    OFFSET,
    TIME_WEIGHT,
    WORTHS,
    Floats,
    residuals,
    sweep,
    unfold,
)


@kernel
def nested(
    level: int,
    rows: Floats,
    kind: int,
    shared: Floats,
    y: Floats,
    states: Floats,
    tolerance: float,
    scratch: tuple[Floats, ...],
    report: Floats,
) -> int:
    """Balance time, machine and band by nested searches at a fixed price of utility; return 1 when all of them ended.

    Every level's residual falls with its own number while the levels below stay balanced (the problem is convex in time and its
    dual concave in the prices), so each search keeps a bracket and cannot fail to close it. A time that the shared resources do
    not allow shows in prices without bound (2). ``scratch``: prices, sums, slopes, follow, residuals, Jacobian.
    """
    prices, sums, slopes, follow, f, j = scratch
    if level == 3:
        time, by_time, by_server = unfold(y, shared, prices)
        used = sweep(rows, kind, shared, prices, time, by_time, by_server, 1e-8, states, follow, sums, slopes)
        report[0] += 1.0
        report[3], report[4] = shared[TIME_WEIGHT] * time + shared[ENERGY_WEIGHT] * sums[ENERGIES], sums[WORTHS] + shared[OFFSET]
        if used >= 0:
            residuals(y, shared, time, by_time, sums, slopes, f, j)
        return 0 if used < 0 else (2 if f[0] > 30.0 else 1)
    index = 0 if level == 0 else (2 if level == 1 else 1)
    low, high, f_low, f_high, grow = -np.inf, np.inf, 0.0, 0.0, 0.5
    keep_1, keep_2, keep_states = y[1], y[2], states.copy()
    for k in range(120):
        ended = nested(level + 1, rows, kind, shared, y, states, 0.1 * tolerance, scratch, report)
        if ended == 0 or (ended == 2 and level > 0):
            return ended
        at, value = y[index], (f[index] if ended == 1 else 30.0)
        if ended == 2:
            y[1], y[2] = keep_1, keep_2
            states[:] = keep_states
        elif level == 0:
            keep_1, keep_2 = y[1], y[2]
            keep_states[:] = states
        if abs(value) < tolerance or high - low < 1e-15 * (1.0 + abs(at)):
            return 1
        if value > 0.0:
            f_high = 0.5 * f_high if low > -np.inf else f_high  # the Illinois rule keeps the other end moving
            low, f_low = at, value
        else:
            f_low = 0.5 * f_low if high < np.inf else f_low
            high, f_high = at, value
        if low == -np.inf or high == np.inf:
            y[index] = at + (grow if value > 0.0 else -grow)
            grow = min(2.0 * grow, 1.0 if level == 0 else 4.0)
        elif k % 4 == 3:
            y[index] = 0.5 * (low + high)
        else:
            y[index] = (low * f_high - high * f_low) / (f_high - f_low)
        if not abs(y[index]) < 700.0:
            return 0
    return 1 if high - low < tolerance else 0
