"""Which prices balance the shared resources: the compiled outer half of the structured solver.

Unknowns: the round's time, the price of bandwidth, the price of the owner's machine and the price of utility, each through one
real number ``y``; equations, in logarithms: the clients' prices of time sum to the weight of time, bands to the band, clocks to
the machine's, and the objective's own. One sweep settles every client, and its implicit derivatives give the Jacobian, so that a
Newton step costs O(N). Complementarity needs no cases: one number ``z`` stands for price (z > 0) or slack (z < 0).
"""

from math import exp, expm1, log
from typing import Final

import numpy as np
from numpy.typing import NDArray

from hushtune_common.link.kernels import kernel
from hushtune_server.coordinator.allocators.structured_kernels import (
    BALANCE,
    BAND,
    CLOCK,
    D_BALANCE,
    D_BAND,
    D_ENERGY,
    D_LATE,
    D_SERVED,
    D_WORTH,
    D_X,
    ENERGY,
    LATE,
    LOG_SHARE,
    LOG_SHARE_MAX,
    LOG_SHARE_MIN,
    LOG_THETA,
    LOG_X,
    MARGINAL,
    POINTS,
    SERVED,
    START,
    TRANSMIT,
    WORTH,
    examine,
)

Floats = NDArray[np.float64]

# Shared parameters.
ENERGY_WEIGHT: Final = 0
SERVER_ENERGY: Final = 1
SOFTNESS: Final = 2
TIME_WEIGHT: Final = 3
BANDWIDTH: Final = 4
MACHINE: Final = 5
TIME_LOW: Final = 6
TIME_SCALE: Final = 7
Z_DEADLINE: Final = 8
SERVER_PRICE_SCALE: Final = 9
MODE: Final = 10
TARGET: Final = 11
OFFSET: Final = 12
SHARED: Final = 13

RATIO, FIXED, FLOOR = 0.0, 1.0, 2.0

# Sums over the clients.
THETA, BANDS, CLOCKS, ENERGIES, WORTHS = 0, 1, 2, 3, 4


@kernel
def _move(state: Floats, o: Floats, dt: float, ds: float) -> None:
    state[LOG_THETA] += dt
    state[LOG_SHARE] += ds
    state[LOG_X] += o[D_X] * dt + o[D_X + 1] * ds


@kernel
def _newton_step(row: Floats, state: Floats, o: Floats) -> tuple[float, float, bool]:
    """Return the Newton step in (ln theta, ln share), and whether the share stays at a bound."""
    low, high = row[LOG_SHARE_MIN], row[LOG_SHARE_MAX]
    share, late, balance = state[LOG_SHARE], o[LATE], o[BALANCE]
    if (share <= low and balance <= 0.0) or (share >= high and balance >= 0.0):
        return -late / o[D_LATE], 0.0, True
    b_t, b_s, l_t, l_s = o[D_BALANCE], o[D_BALANCE + 1], o[D_LATE], o[D_LATE + 1]
    det = b_t * l_s - b_s * l_t
    ds = (l_t * balance - b_t * late) / det
    if not low <= share + ds <= high:
        ds = (low if share + ds < low else high) - share
        return -(late + l_s * ds) / l_t, ds, False
    return (b_s * late - l_s * balance) / det, ds, False


@kernel
def settle(
    row: Floats,
    kind: int,
    shared: Floats,
    prices: Floats,
    time: float,
    state: Floats,
    tolerance: float,
    radio_out: Floats,
    o: Floats,
) -> int:
    """Solve one client's two equations from its state; return the number of evaluations, or -1 (then ``bracket`` it)."""
    low, high = row[LOG_SHARE_MIN], row[LOG_SHARE_MAX]
    left = time - row[START]
    state[LOG_SHARE] = min(max(state[LOG_SHARE], low), high)
    for k in range(30):
        examine(row, kind, shared, prices, left, state, radio_out, o)
        dt, ds, held = _newton_step(row, state, o)
        if abs(o[LATE]) < tolerance and (held or abs(o[BALANCE]) < tolerance):
            return k + 1
        size = max(abs(dt) / 4.0, abs(ds) / 2.0) * (1.0 if k < 15 else 4.0)
        if not size < 1e30:
            return -1
        scale = 1.0 if size <= 1.0 else 1.0 / size
        _move(state, o, scale * dt, scale * ds)
        state[LOG_SHARE] = min(max(state[LOG_SHARE], low), high)
    return -1


@kernel
def _settle_share(
    row: Floats, kind: int, shared: Floats, prices: Floats, left: float, state: Floats, radio_out: Floats, o: Floats
) -> None:
    """Solve for the share at the state's theta: the balance falls with the share, so bisection with Newton steps ends."""
    low, high = row[LOG_SHARE_MIN], row[LOG_SHARE_MAX]
    state[LOG_SHARE] = min(max(state[LOG_SHARE], low), high)
    for _ in range(200):
        examine(row, kind, shared, prices, left, state, radio_out, o)
        share, balance = state[LOG_SHARE], o[BALANCE]
        if balance > 0.0:
            low = share
        else:
            high = share
        if high - low < 1e-15 or abs(balance) < 1e-14:
            return
        moved = share - balance / o[D_BALANCE + 1]
        state[LOG_SHARE] = moved if low < moved < high else 0.5 * (low + high)
        if share == row[LOG_SHARE_MIN] and balance > 0.0 and not moved > share:
            state[LOG_SHARE] = 0.5 * (low + high)


@kernel
def bracket(
    row: Floats, kind: int, shared: Floats, prices: Floats, time: float, state: Floats, radio_out: Floats, o: Floats
) -> bool:
    """Solve one client's equations by two nested monotone searches; return whether that ended."""
    left = time - row[START]
    low, high = -np.inf, np.inf
    grow = 1.0
    for _ in range(400):
        _settle_share(row, kind, shared, prices, left, state, radio_out, o)
        late, at = o[LATE], state[LOG_THETA]
        if abs(late) < 1e-13:
            return True
        if late > 0.0:
            low = at
        else:
            high = at
        if high - low < 1e-14 * (1.0 + abs(at)):
            return True
        held = state[LOG_SHARE] <= row[LOG_SHARE_MIN] or state[LOG_SHARE] >= row[LOG_SHARE_MAX]
        slope = o[D_LATE] - (0.0 if held else o[D_LATE + 1] * o[D_BALANCE] / o[D_BALANCE + 1])
        moved = at - late / slope
        if not (low == -np.inf or high == np.inf):
            inside = low + 0.05 * (high - low) < moved < high - 0.05 * (high - low)
            state[LOG_THETA] = moved if inside else 0.5 * (low + high)
        else:
            state[LOG_THETA] = at + (grow if late > 0.0 else -grow)
            grow *= 2.0
        if abs(state[LOG_THETA]) > 600.0:
            return False
    return False


@kernel
def sweep(
    rows: Floats,
    kind: int,
    shared: Floats,
    prices: Floats,
    time: float,
    by_time: float,
    by_server: float,
    tolerance: float,
    states: Floats,
    follow: Floats,
    sums: Floats,
    slopes: Floats,
) -> int:
    """Settle every client; return the number of evaluations, or -1 - n if client n cannot be settled.

    ``follow`` (N, 2, 4): how ln theta and ln share follow ``y``. ``sums`` (5) and ``slopes`` (5, 4): sums over the clients, with
    the clients' last small Newton steps applied to first order, and their derivatives by ``y``.
    """
    o, r, c = np.empty(POINTS), np.empty(16), np.empty((2, 4))
    sums[:] = 0.0
    slopes[:] = 0.0
    evaluations = 0
    for n in range(rows.shape[0]):
        row, state = rows[n], states[n]
        used = settle(row, kind, shared, prices, time, state, tolerance, r, o)
        if used < 0:
            if not bracket(row, kind, shared, prices, time, state, r, o):
                return -1 - n
            used = 30
        evaluations += used
        dt, ds, held = _newton_step(row, state, o)
        _follow(o, time - row[START], by_time, by_server, held, c)
        theta = exp(state[LOG_THETA])
        sums[THETA] += theta * (1.0 + dt)
        sums[BANDS] += o[BAND] * (1.0 + o[D_BAND] * dt + o[D_BAND + 1] * ds)
        sums[CLOCKS] += o[SERVED] * (1.0 + o[D_SERVED] * dt + o[D_SERVED + 1] * ds)
        sums[ENERGIES] += o[ENERGY] + o[D_ENERGY] * dt + o[D_ENERGY + 1] * ds
        sums[WORTHS] += o[WORTH] + o[D_WORTH] * ds
        for k in range(4):
            t, s = c[0, k], c[1, k]
            m, v = 1.0 if k == 1 else 0.0, by_server if k == 2 else 0.0
            slopes[THETA, k] += theta * t
            slopes[BANDS, k] += o[BAND] * (o[D_BAND] * t + o[D_BAND + 1] * s + o[D_BAND + 2] * m)
            slopes[CLOCKS, k] += o[SERVED] * (o[D_SERVED] * t + o[D_SERVED + 1] * s + o[D_SERVED + 3] * v)
            slopes[ENERGIES, k] += o[D_ENERGY] * t + o[D_ENERGY + 1] * s + o[D_ENERGY + 2] * m + o[D_ENERGY + 3] * v
            slopes[WORTHS, k] += o[D_WORTH] * s
            follow[n, 0, k], follow[n, 1, k] = t, s
        _move(state, o, dt, ds)
    return evaluations


@kernel
def _follow(o: Floats, left: float, by_time: float, by_server: float, held: bool, c: Floats) -> None:
    """Implicit derivatives of (ln theta, ln share) by ``y``: time, ln mu, the machine's z, ln ell."""
    b_t, b_s, l_t, l_s = o[D_BALANCE], o[D_BALANCE + 1], o[D_LATE], o[D_LATE + 1]
    det = b_t * l_s - b_s * l_t
    for k in range(4):
        late = -by_time / left if k == 0 else (o[D_LATE + 2] if k == 1 else (o[D_LATE + 3] * by_server if k == 2 else 0.0))
        balance = 0.0 if k == 0 else (o[D_BALANCE + 2] if k == 1 else (o[D_BALANCE + 3] * by_server if k == 2 else 1.0))
        if held:
            c[0, k], c[1, k] = -late / l_t, 0.0
        else:
            c[0, k], c[1, k] = (b_s * late - l_s * balance) / det, (l_t * balance - b_t * late) / det


@kernel
def unfold(y: Floats, shared: Floats, prices: Floats) -> tuple[float, float, float]:
    """Write mu, nu and ell; return the time and the derivatives of time and nu by their numbers in ``y``."""
    span = shared[TIME_SCALE] * exp(min(y[0], shared[Z_DEADLINE]))
    prices[0], prices[2] = exp(y[1]), exp(y[3])
    prices[1] = shared[SERVER_PRICE_SCALE] * expm1(y[2]) if y[2] > 0.0 else 0.0
    by_server = shared[SERVER_PRICE_SCALE] * exp(y[2]) if y[2] > 0.0 else 0.0
    return shared[TIME_LOW] + span, span if y[0] < shared[Z_DEADLINE] else 0.0, by_server


@kernel
def residuals(y: Floats, shared: Floats, time: float, by_time: float, sums: Floats, slopes: Floats, f: Floats, j: Floats) -> None:
    """Write the four residuals and their Jacobian by ``y``."""
    scale = (shared[TIME_WEIGHT], shared[BANDWIDTH], shared[MACHINE])
    for i in range(3):
        f[i] = log(sums[i] / scale[i])
        for k in range(4):
            j[i, k] = slopes[i, k] / sums[i]
    over = y[0] - shared[Z_DEADLINE]
    if over >= 0.0:  # the deadline holds the time, and z is the logarithm of its price
        f[0] -= over
        j[0, 0] -= 1.0
    if y[2] <= 0.0:  # the machine is not full, and z is the logarithm of its load
        f[2] -= y[2]
        j[2, 2] -= 1.0
    worth = sums[WORTHS] + shared[OFFSET]
    cost = shared[TIME_WEIGHT] * time + shared[ENERGY_WEIGHT] * sums[ENERGIES]
    f[3] = 0.0
    for k in range(4):
        j[3, k] = 1.0 if k == 3 else 0.0
    if shared[MODE] == RATIO:
        if worth <= 0.0:
            f[3], j[3, 3] = 2.0, -1.0  # below the root: more must be paid for utility
            return
        f[3] = log(cost / worth) - y[3]
        for k in range(4):
            j[3, k] = shared[ENERGY_WEIGHT] * slopes[ENERGIES, k] / cost - slopes[WORTHS, k] / worth
        j[3, 0] += shared[TIME_WEIGHT] * by_time / cost
        j[3, 3] -= 1.0
    elif shared[MODE] == FLOOR:
        level = max(abs(shared[TARGET]), 1e-300)
        f[3] = (shared[TARGET] - worth) / level
        for k in range(4):
            j[3, k] = -slopes[WORTHS, k] / level


@kernel
def solve_small(a: Floats, b: Floats, x: Floats) -> bool:
    """Solve the 4 x 4 system by elimination with row exchanges; return whether it is regular."""
    m, v = a.copy(), b.copy()
    n = v.size
    for k in range(n):
        p = k
        for i in range(k + 1, n):
            if abs(m[i, k]) > abs(m[p, k]):
                p = i
        if not abs(m[p, k]) > 1e-300:
            return False
        for q in range(n):
            m[k, q], m[p, q] = m[p, q], m[k, q]
        v[k], v[p] = v[p], v[k]
        for i in range(k + 1, n):
            w = m[i, k] / m[k, k]
            v[i] -= w * v[k]
            for q in range(k, n):
                m[i, q] -= w * m[k, q]
    for k in range(n - 1, -1, -1):
        rest = v[k]
        for q in range(k + 1, n):
            rest -= m[k, q] * x[q]
        x[k] = rest / m[k, k]
    return True


@kernel
def newton(
    rows: Floats,
    kind: int,
    shared: Floats,
    y: Floats,
    states: Floats,
    tolerance: float,
    plain: int,
    careful: int,
    report: Floats,
) -> int:
    """Iterate to the balance of the shared resources; return 0 (plain Newton) or 1 (trust region), or -1 without an answer.

    The plain stage takes every step of bounded length. When nothing has improved for a while the second stage starts again from
    the best point and accepts only what improves on one of the last three, with steps that shrink: that ends the two-cycles of
    a piecewise smooth system. ``report``: sweeps, evaluations, worst residual, cost, utility.
    """
    n = rows.shape[0]
    prices, f, j, step = np.empty(3), np.empty(4), np.empty((4, 4)), np.empty(4)
    sums, slopes, follow = np.empty(5), np.empty((5, 4)), np.empty((n, 2, 4))
    kept_y, kept_states, kept_f, kept_j, kept_follow = y.copy(), states.copy(), np.empty(4), np.empty((4, 4)), np.empty((n, 2, 4))
    best, radius, inner = np.inf, 2.0, 1e-2
    stale, tier = 0, 0
    recent = np.full(3, np.inf)
    for k in range(plain + careful):
        time, by_time, by_server = unfold(y, shared, prices)
        used = sweep(rows, kind, shared, prices, time, by_time, by_server, inner, states, follow, sums, slopes)
        report[0] += 1.0
        merit = np.inf
        if used >= 0:
            report[1] += used
            residuals(y, shared, time, by_time, sums, slopes, f, j)
            merit = _largest(f)
        report[2] = merit
        report[3], report[4] = shared[TIME_WEIGHT] * time + shared[ENERGY_WEIGHT] * sums[ENERGIES], sums[WORTHS] + shared[OFFSET]
        if merit < tolerance and inner <= 1e-6:
            return tier
        stale = 0 if merit < best else stale + 1
        if merit < best or (tier == 1 and merit < recent.max()):
            if tier == 1:
                recent[k % 3] = merit
                radius = min(2.0 * radius, 2.0) if merit < best else radius
            best = min(best, merit)
            kept_y[:], kept_f[:], kept_j[:] = y, f, j
            kept_states[:], kept_follow[:] = states, follow
        elif tier == 1 or merit == np.inf or k >= plain or stale >= 6:
            if best == np.inf:
                return -1
            if tier == 0:
                tier, radius = 1, 1.0
                recent[:] = best
            radius *= 0.3
            y[:], f[:], j[:] = kept_y, kept_f, kept_j
            states[:], follow[:] = kept_states, kept_follow
        inner = min(max(1e-2 * best, 1e-7), 1e-3)
        if radius < 1e-12 or not solve_small(j, -f, step):
            return -1
        longest = _largest(step)
        if not longest < 1e300:
            return -1
        step *= min(1.0, radius / max(longest, 1e-300))
        y += step
        for m in range(n):
            dt, ds = 0.0, 0.0
            for i in range(4):
                dt += follow[m, 0, i] * step[i]
                ds += follow[m, 1, i] * step[i]
            states[m, LOG_THETA] += min(max(dt, -4.0), 4.0)
            states[m, LOG_SHARE] += min(max(ds, -2.0), 2.0)
    return -1


@kernel
def _largest(v: Floats) -> float:
    found = 0.0
    for x in v:
        if not abs(x) < np.inf:
            return np.inf
        found = max(found, abs(x))
    return found


@kernel
def settled(
    rows: Floats, kind: int, shared: Floats, prices: Floats, time: float, states: Floats, tolerance: float, chosen: Floats
) -> int:
    """Settle every client at the prices; write share, band, power, clock, owner's clock, theta and marginal cost (N, 7)."""
    o, r = np.empty(POINTS), np.empty(16)
    for n in range(rows.shape[0]):
        row, state = rows[n], states[n]
        if settle(row, kind, shared, prices, time, state, tolerance, r, o) < 0 and not bracket(
            row, kind, shared, prices, time, state, r, o
        ):
            return -1 - n
        chosen[n, 0], chosen[n, 1], chosen[n, 2] = exp(state[LOG_SHARE]), o[BAND], o[TRANSMIT]
        chosen[n, 3], chosen[n, 4], chosen[n, 5] = o[CLOCK], o[SERVED], exp(state[LOG_THETA])
        chosen[n, 6] = o[MARGINAL]
    return 0
