"""What does one client do at given prices, and how does that change with them: the compiled inner half of the structured solver.

With the prices of time (theta, a client's own), bandwidth (mu), the owner's machine (nu) and utility (ell) the clients decouple.
A client then has two unknowns, ln theta and ln share, and two equations in logarithms: the marginal utility of its share equals
its marginal cost, and its time is up exactly when the round is. Everything else has closed forms or a one-dimensional root:
the clock from theta; the owner's clock from one cubic; the radio from one root in ``x = power / bandwidth`` in one of four
regimes (free, power at its top, rate at its least, both). Rates are in nats in here: Mbit come multiplied with ln 2.

Derived for this project, not peer reviewed; checked against finite differences and general solvers.
"""

from math import exp, log, log1p, sqrt
from typing import Final

import numpy as np
from numpy.typing import NDArray

from hushtune_common.link.kernels import kernel

Floats = NDArray[np.float64]

# Columns of a client's parameters.
GAIN_MAIN: Final = 0
GAIN_TAP: Final = 1
POWER_MAX: Final = 2
CLOCK_MAX: Final = 3
CLOCK_ENERGY: Final = 4
SENT: Final = 5
"""Nats to send for the whole adapter."""
WORK_FIXED: Final = 6
WORK_SHARE: Final = 7
PLUGGED: Final = 8
START: Final = 9
LOG_SHARE_MIN: Final = 10
LOG_SHARE_MAX: Final = 11
RATE_MIN: Final = 12
"""Nats per second."""
X_BOTH: Final = 13
"""Power over bandwidth where the rate is least and the power at its top."""
WEIGHT: Final = 14
SHAPE: Final = 15
LEVELS: Final = 16
"""Points of the hull of a device's clock levels; 0 where any clock is possible."""
HULL: Final = 17
"""From here on the hull: clock and power of each point in turn."""

# Columns of a client's state, kept from sweep to sweep.
LOG_THETA: Final = 0
LOG_SHARE: Final = 1
LOG_X: Final = 2
SERVER: Final = 3
REGIME: Final = 4
STATES: Final = 5

FREE, CAPPED, SLOW, BOTH = 0.0, 1.0, 2.0, 3.0

# Utilities.
LOG, EXPONENTIAL, POWER, SCALING, LOG_RATIO, LINEAR = 0, 1, 2, 3, 4, 5

# What an evaluation leaves behind; ``D`` stands for derivatives of logarithms by (ln theta, ln share, ln mu, nu).
BALANCE: Final = 0
"""ln(ell u') - ln(marginal cost)."""
LATE: Final = 1
"""ln(time) - ln(time there is)."""
D_BALANCE: Final = 2
D_LATE: Final = 6
BAND: Final = 10
D_BAND: Final = 11
SERVED: Final = 15
D_SERVED: Final = 16
ENERGY: Final = 20
D_ENERGY: Final = 21
"""Of the energy itself, not of its logarithm."""
WORTH: Final = 25
D_WORTH: Final = 26
"""u and the derivative of u by ln share."""
D_X: Final = 27
CLOCK: Final = 31
TRANSMIT: Final = 32
MARGINAL: Final = 33
"""Marginal cost of the share."""
COST: Final = 34
"""Energy, time and shared resources at their prices, without the time before the start."""
POINTS: Final = 35


@kernel
def worth(kind: int, weight: float, shape: float, share: float) -> tuple[float, float, float]:
    """Return a utility, its derivative by the share and its relative risk aversion."""
    if kind == LOG:
        y = shape * share
        return weight * log1p(y), weight * shape / (1.0 + y), y / (1.0 + y)
    if kind == EXPONENTIAL:
        y = exp(-shape * share)
        return weight * (1.0 - y), weight * shape * y, shape * share
    if kind == POWER:
        y = share**shape
        return weight * y, weight * shape * y / share, 1.0 - shape
    if kind == SCALING:
        y = share**-shape
        return -weight * y, weight * shape * y / share, 1.0 + shape
    if kind == LOG_RATIO:
        return weight * log(share / shape), weight / share, 1.0
    return weight * share, weight, 0.0


@kernel
def spectral(a: float, e: float, x: float) -> tuple[float, float, float, float]:
    """Return the efficiency L(x) = ln((1 + a x) / (1 + e x)), x L', L - x L' without cancellation, and -x L'' / L'."""
    ax, ex, d = a * x, e * x, (a - e) * x
    whole = log1p(d / (1.0 + ex))
    slope = d / ((1.0 + ax) * (1.0 + ex))
    bend = ax / (1.0 + ax) + ex / (1.0 + ex)
    if ax > 0.02:
        return whole, slope, whole - slope, bend
    # L - x L' = sum over k >= 2 of (-1)^k (1 - 1/k) ((ax)^k - (ex)^k)
    difference, power, rest, sign = d, 1.0, 0.0, 1.0
    for k in range(2, 11):
        power *= ex
        difference = ax * difference + power * d
        rest += sign * (1.0 - 1.0 / k) * difference
        sign = -sign
    return whole, slope, rest, bend


@kernel
def _root_free(a: float, e: float, target: float, log_x: float) -> float:
    """Return ln x with zeta(x)^2 / L(x) = target, where zeta = L / L' - x; the left side is close to a power of x."""
    for _ in range(60):
        x = exp(log_x)
        whole, slope, rest, bend = spectral(a, e, x)
        zeta = rest * x / slope
        step = log(target * whole / (zeta * zeta)) / (2.0 * bend * whole / rest - slope / whole)
        log_x += min(max(step, -8.0), 8.0)
        if abs(step) < 1e-7:
            break
    return log_x


@kernel
def _root_capped(a: float, e: float, target: float, log_x: float) -> float:
    """Return ln x with L^2 / (x^2 (L - x L')) = target; the left side falls."""
    for _ in range(60):
        x = exp(log_x)
        whole, slope, rest, bend = spectral(a, e, x)
        step = log(target * x * x * rest / (whole * whole)) / (2.0 * slope / whole - 2.0 - bend * slope / rest)
        log_x += min(max(step, -8.0), 8.0)
        if abs(step) < 1e-7:
            break
    return log_x


@kernel
def _root_slow(a: float, e: float, target: float, log_x: float) -> float:
    """Return ln x with zeta(x) = target."""
    for _ in range(60):
        x = exp(log_x)
        whole, slope, rest, bend = spectral(a, e, x)
        step = log(target * slope / (rest * x)) * rest / (bend * whole)
        log_x += min(max(step, -8.0), 8.0)
        if abs(step) < 1e-7:
            break
    return log_x


@kernel
def root_both(a: float, e: float, target: float) -> float:
    """Return ln x with L(x) / x = target; the left side falls from a - e to 0."""
    log_x = log(1.0 / a)
    for _ in range(200):
        x = exp(log_x)
        whole, _, rest, _ = spectral(a, e, x)
        step = log(whole / (x * target)) * whole / rest
        log_x += min(max(step, -2.0), 2.0)
        if abs(step) < 1e-13:
            break
    return log_x


@kernel
def radio(row: Floats, we: float, theta: float, share: float, mu: float, log_x: float, regime: float, out: Floats) -> float:
    """Choose band and power; leave ln x, band, power, airtime and their derivatives in ``out``; return the regime.

    ``out``: ln x, its derivatives by (ln theta, ln share, ln mu), then the same for band, power and airtime (0..15).
    """
    a, e, top, sent = row[GAIN_MAIN], row[GAIN_TAP], row[POWER_MAX], row[SENT] * share
    least = row[RATE_MIN]
    for attempt in range(3):  # the other of the two regimes is tried when the first turns out not to hold
        if regime == CAPPED:
            log_x = _root_capped(a, e, (theta + we * top) * sent / (mu * top * top), log_x)
            x = exp(log_x)
            whole, slope, rest, bend = spectral(a, e, x)
            band = top / x
            if attempt < 2 and we * band * rest * x / slope > theta * (1.0 + 1e-9):
                regime = FREE
                continue
            gain = 1.0 / (2.0 * slope / whole - 2.0 - bend * slope / rest)
            by_theta, by_share, by_mu = gain * theta / (theta + we * top), gain, -gain
            out[0], out[1], out[2], out[3] = log_x, by_theta, by_share, by_mu
            out[4], out[5], out[6], out[7] = band, -by_theta, -by_share, -by_mu
            out[8], out[9], out[10], out[11] = top, 0.0, 0.0, 0.0
            rise = 1.0 - slope / whole
            out[12], out[13], out[14], out[15] = sent / (band * whole), rise * by_theta, 1.0 + rise * by_share, rise * by_mu
            break
        log_x = _root_free(a, e, theta * mu / (sent * we * we), log_x)
        x = exp(log_x)
        whole, slope, rest, bend = spectral(a, e, x)
        zeta = rest * x / slope
        airtime = mu / (we * zeta)
        band = sent / (whole * airtime)
        if attempt < 2 and x * band > top * (1.0 + 1e-9):
            regime = CAPPED
            continue
        regime = FREE
        z1, r1 = bend * whole / rest, slope / whole
        gain = 1.0 / (2.0 * z1 - r1)
        out[0], out[1], out[2], out[3] = log_x, gain, -gain, gain
        out[12], out[13], out[14], out[15] = airtime, -z1 * gain, z1 * gain, 1.0 - z1 * gain
        out[4], out[5], out[6], out[7] = band, (z1 - r1) * gain, 1.0 - (z1 - r1) * gain, (z1 - r1) * gain - 1.0
        out[8], out[9], out[10], out[11] = x * band, out[1] + out[5], out[2] + out[6], out[3] + out[7]
        break
    if least > 0.0 and sent < least * out[12] * (1.0 - 1e-13):
        return _slow(row, we, sent, mu, out)
    return regime


@kernel
def _slow(row: Floats, we: float, sent: float, mu: float, out: Floats) -> float:
    """The least rate binds: the airtime is fixed, and band is traded against power."""
    a, e, top, least = row[GAIN_MAIN], row[GAIN_TAP], row[POWER_MAX], row[RATE_MIN]
    log_x = _root_slow(a, e, mu * least / (we * sent), out[0])
    x = exp(log_x)
    whole, slope, rest, bend = spectral(a, e, x)
    band = least / whole
    regime = SLOW
    gain = rest / (bend * whole)
    if x * band > top:
        regime, gain = BOTH, 0.0
        log_x = row[X_BOTH]
        x = exp(log_x)
        band = top / x
    out[0], out[1], out[2], out[3] = log_x, 0.0, -gain, gain
    fall = 0.0 if regime == BOTH else slope / whole
    out[4], out[5], out[6], out[7] = band, 0.0, fall * gain, -fall * gain
    rise = 0.0 if regime == BOTH else 1.0 - fall
    out[8], out[9], out[10], out[11] = x * band, 0.0, -rise * gain, rise * gain
    out[12], out[13], out[14], out[15] = sent / least, 0.0, 1.0, 0.0
    return regime


@kernel
def plug_in(we: float, kaps: float, work: float, theta: float, nu: float, guess: float) -> tuple[float, float]:
    """Return the owner's clock, the root of 2 we kaps work F^3 + nu F^2 = theta work, and the second term's part of the sum."""
    cubic, total = 2.0 * we * kaps * work, theta * work
    clock = (total / cubic) ** (1.0 / 3.0)
    if nu <= 0.0:
        return clock, 0.0
    clock = min(clock, sqrt(total / nu))  # right of the root; from there Newton on a convex function falls onto it
    if 0.0 < guess < clock:
        moved = guess - (guess * guess * (cubic * guess + nu) - total) / (guess * (3.0 * cubic * guess + 2.0 * nu))
        clock = min(clock, moved)
    for _ in range(60):
        step = (clock * clock * (cubic * clock + nu) - total) / (clock * (3.0 * cubic * clock + 2.0 * nu))
        clock -= step
        if abs(step) <= 1e-14 * clock:
            break
    return clock, min(nu * clock * clock / total, 1.0)


@kernel
def compute(row: Floats, we: float, theta: float, softness: float) -> tuple[float, float, float, float]:
    """Return the client's clock, d ln clock / d ln theta, energy per TFLOP and its derivative by ln theta."""
    points = int(row[LEVELS])
    if points == 0:
        clock = (theta / (2.0 * we * row[CLOCK_ENERGY])) ** (1.0 / 3.0)
        if clock >= row[CLOCK_MAX]:
            clock = row[CLOCK_MAX]
            return clock, 0.0, row[CLOCK_ENERGY] * clock * clock, 0.0
        energy = row[CLOCK_ENERGY] * clock * clock
        return clock, 1.0 / 3.0, energy, 2.0 / 3.0 * energy
    # Between two points of the hull every clock costs the same price of time; ``softness`` spreads that price a little.
    clock, power = row[HULL + 2], row[HULL + 3]
    log_theta = log(theta)
    for k in range(1, points - 1):
        f0, p0 = row[HULL + 2 * k], row[HULL + 2 * k + 1]
        f1, p1 = row[HULL + 2 * k + 2], row[HULL + 2 * k + 3]
        level = (p1 - p0) / (f1 - f0) * f0 - p0  # minus the chord's value at clock 0, times energy weight: the price
        centre = log(max(we * level, 1e-300))
        if log_theta <= centre - softness:
            break
        if log_theta < centre + softness:
            part = (log_theta - centre + softness) / (2.0 * softness)
            rise = log(f1 / f0) / (2.0 * softness)
            clock = f0 * exp(part * 2.0 * softness * rise)
            energy = (p0 + (p1 - p0) / (f1 - f0) * (clock - f0)) / clock
            return clock, rise, energy, level / clock * rise
        clock, power = f1, p1
    return clock, 0.0, power / clock, 0.0


@kernel
def sharpen(rows: Floats, shared: Floats, factor: float, states: Floats) -> None:
    """Move theta of every client between two clock levels to the same place for a softness smaller by ``factor``."""
    for n in range(rows.shape[0]):
        for k in range(1, int(rows[n, LEVELS]) - 1):
            f0, p0 = rows[n, HULL + 2 * k], rows[n, HULL + 2 * k + 1]
            f1, p1 = rows[n, HULL + 2 * k + 2], rows[n, HULL + 2 * k + 3]
            away = states[n, LOG_THETA] - log(max(shared[0] * ((p1 - p0) / (f1 - f0) * f0 - p0), 1e-300))
            if abs(away) < shared[2]:
                states[n, LOG_THETA] += (factor - 1.0) * away


@kernel
def examine(
    row: Floats, kind: int, shared: Floats, prices: Floats, time_left: float, state: Floats, radio_out: Floats, o: Floats
) -> None:
    """Evaluate one client at its state; leave residuals, derivatives and resources in ``o``; keep ln x and clocks in the state.

    ``shared``: energy weight, energy constant of the owner's machine, softness. ``prices``: mu, nu, ell.
    """
    we, kaps = shared[0], shared[1]
    mu, nu, ell = prices[0], prices[1], prices[2]
    theta, share = exp(state[LOG_THETA]), exp(state[LOG_SHARE])
    clock, clock_t, per_work, per_work_t = compute(row, we, theta, shared[2])
    work = row[WORK_FIXED] + row[WORK_SHARE] * share
    t1, grow = work / clock, row[WORK_SHARE] * share / work
    r = radio_out
    state[REGIME] = radio(row, we, theta, share, mu, state[LOG_X], min(state[REGIME], CAPPED), r)
    state[LOG_X] = r[0]
    band, power, t2 = r[4], r[8], r[12]
    plugged = row[PLUGGED] * share
    served, part = plug_in(we, kaps, plugged, theta, nu, state[SERVER])
    state[SERVER] = served
    t3 = plugged / served
    # d ln served by (ln theta, ln share); by nu it is -served^2 / (theta plugged (3 - part))
    s_t, s_s, s_n = 1.0 / (3.0 - part), part / (3.0 - part), -served * served / (theta * plugged * (3.0 - part))
    time = t1 + t2 + t3
    o[LATE] = log(time / time_left)
    o[D_LATE] = (-t1 * clock_t + t2 * r[13] - t3 * s_t) / time
    o[D_LATE + 1] = (t1 * grow + t2 * r[14] + t3 * (1.0 - s_s)) / time
    o[D_LATE + 2] = t2 * r[15] / time
    o[D_LATE + 3] = -t3 * s_n / time
    value, slope, aversion = worth(kind, row[WEIGHT], row[SHAPE], share)
    radio_price = theta + we * power
    m1 = row[WORK_SHARE] * (we * per_work + theta / clock)
    m2 = radio_price * t2 / share
    m3 = row[PLUGGED] * (we * kaps * served * served + theta / served)
    marginal = m1 + m2 + m3
    drag = nu * served / share
    by_power = we * power / radio_price
    d_t = row[WORK_SHARE] * (we * per_work_t + theta / clock * (1.0 - clock_t)) + row[PLUGGED] * theta / served - drag * s_t
    d_t += m2 * (theta / radio_price + by_power * r[9] + r[13])
    d_s = m2 * (by_power * r[10] + r[14] - 1.0) - drag * s_s
    o[MARGINAL] = marginal
    o[BALANCE] = log(ell * slope / marginal)
    o[D_BALANCE] = -d_t / marginal
    o[D_BALANCE + 1] = -aversion - d_s / marginal
    o[D_BALANCE + 2] = -m2 * (by_power * r[11] + r[15]) / marginal
    o[D_BALANCE + 3] = drag * s_n / marginal
    e1, e2, e3 = work * per_work, power * t2, kaps * plugged * served * served
    o[BAND], o[SERVED], o[CLOCK], o[TRANSMIT] = band, served, clock, power
    o[ENERGY] = e1 + e2 + e3
    o[D_ENERGY] = work * per_work_t + e2 * (r[9] + r[13]) + 2.0 * e3 * s_t
    o[D_ENERGY + 1] = e1 * grow + e2 * (r[10] + r[14]) + e3 * (1.0 + 2.0 * s_s)
    o[D_ENERGY + 2] = e2 * (r[11] + r[15])
    o[D_ENERGY + 3] = 2.0 * e3 * s_n
    for k in range(3):
        o[D_BAND + k] = r[5 + k]
        o[D_X + k] = r[1 + k]
    o[D_BAND + 3], o[D_X + 3] = 0.0, 0.0
    o[D_SERVED], o[D_SERVED + 1], o[D_SERVED + 2], o[D_SERVED + 3] = s_t, s_s, 0.0, s_n
    o[WORTH], o[D_WORTH] = value, slope * share
    o[COST] = we * o[ENERGY] + theta * time + mu * band + nu * served
