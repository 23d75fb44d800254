"""What else knows the best allocation? Optimality conditions in plain numpy, and a general solver from many starts.

Both are written from the formulas of the problem alone and share nothing with the solvers they judge.
"""

from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

from hushtune_server.coordinator.allocators.solution import Prices
from hushtune_server.coordinator.problems.instance import Choice, Evaluation, Instance, evaluate

Floats = NDArray[np.float64]
LN2 = float(np.log(2.0))


def stationarity(instance: Instance, choice: Choice, prices: Prices) -> dict[str, float]:
    """Return the worst violation of each Karush-Kuhn-Tucker condition, relative to the terms it sums.

    The Lagrangian is S - ell U + sum theta (t - T) + mu (sum b - B) + nu (sum F - machine), differentiated by logarithms; at an
    upper bound its derivative may be negative, at a lower one positive.
    """
    i, c = instance, choice
    theta, mu, nu, ell = prices.time_per_s, prices.bandwidth_per_mhz, prices.server_per_tflops, prices.utility
    we, wt = i.energy_weight_per_j, i.time_weight_per_s
    x = c.power_w / c.bandwidth_mhz
    ax, ex = i.gain_main_mhz_per_w * x, i.gain_tap_mhz_per_w * x
    efficiency = np.log((1.0 + ax) / (1.0 + ex)) / LN2
    by_power = (ax / (1.0 + ax) - ex / (1.0 + ex)) / LN2 / efficiency  # d ln rate / d ln power
    rate = c.bandwidth_mhz * efficiency
    work = i.train_tflop * (i.train_fixed_share + (1.0 - i.train_fixed_share) * c.share)
    t1, t2, t3 = work / c.clock_tflops, i.update_mbit * c.share / rate, i.plug_in_tflop * c.share / c.server_tflops
    e1 = i.clock_energy_w_per_tflops3 * work * c.clock_tflops**2
    e2, e3 = c.power_w * t2, i.server_energy_w_per_tflops3 * i.plug_in_tflop * c.share * c.server_tflops**2
    air = we * e2 + theta * t2
    grow = i.train_tflop * (1.0 - i.train_fixed_share) * c.share / work
    floor = np.where((i.rate_min_mbps > 0.0) & (rate <= i.rate_min_mbps * (1.0 + 1e-7)), 1.0, 0.0)
    terms = {  # derivative, scale, at its lower bound, at its upper bound
        "clock": (2.0 * we * e1 - theta * t1, we * e1 + theta * t1, False, c.clock_tflops >= i.clock_max_tflops * (1 - 1e-9)),
        "machine": (2.0 * we * e3 - theta * t3 + nu * c.server_tflops, theta * t3, False, False),
        "share": (
            (we * e1 + theta * t1) * grow + air + we * e3 + theta * t3 - ell * c.share * i.utility.slope(c.share),
            we * (e1 + e2 + e3) + theta * (t1 + t2 + t3),
            c.share <= i.share_min * (1 + 1e-9),
            c.share >= i.share_max * (1 - 1e-9),
        ),
    }
    at_power = c.power_w >= i.power_max_w * (1 - 1e-9)
    by_band = mu * c.bandwidth_mhz - air * (1.0 - by_power)
    push = we * e2 - air * by_power
    # Where a least rate binds, its multiplier takes the part of both derivatives along the rate.
    pull = np.where(floor > 0.0, np.maximum(by_band / (1.0 - by_power), 0.0), 0.0)
    terms["band"] = (by_band - pull * (1.0 - by_power), mu * c.bandwidth_mhz + air, False, False)
    terms["power"] = (push - pull * by_power, mu * c.bandwidth_mhz + air, False, at_power)
    found = {name: _violation(*term) for name, term in terms.items()}
    ends = i.start_s + t1 + t2 + t3
    found["time"] = float(np.abs(ends / c.time_s - 1.0).max())
    deadline = prices.deadline_per_s if i.deadline_s is not None else 0.0
    found["weight"] = abs(float(theta.sum()) / (wt + deadline) - 1.0)
    found["bandwidth"] = abs(float(c.bandwidth_mhz.sum()) / i.bandwidth_mhz - 1.0)
    slack = 1.0 - float(c.server_tflops.sum()) / i.server_tflops
    found["complementarity"] = slack if nu * i.server_tflops > 1e-9 * wt * c.time_s else 0.0
    return found


def _violation(slope: Floats, scale: Floats, low: Any, high: Any) -> float:
    rest = np.where(low, np.minimum(slope, 0.0), slope)
    rest = np.where(high, np.maximum(rest, 0.0), rest)
    return float(np.abs(rest / scale).max())


@dataclass(frozen=True, slots=True, kw_only=True)
class _LogForm:
    """The problem in the logarithms of (share, band, power, clock, owner's clock) of each client and of the time."""

    instance: Instance

    def split(self, z: Floats) -> tuple[Floats, ...]:
        n = self.instance.clients
        return tuple(np.exp(z[k * n : (k + 1) * n]) for k in range(5))

    def choice(self, z: Floats) -> Choice:
        share, band, power, clock, server = self.split(z)
        return Choice(
            share=share, bandwidth_mhz=band, power_w=power, clock_tflops=clock, server_tflops=server, time_s=float(np.exp(z[-1]))
        )

    def rates(self, z: Floats) -> tuple[Floats, Floats]:
        """Return ln rate and its derivative by ln power; by ln band it is 1 minus that."""
        i = self.instance
        _, band, power, _, _ = self.split(z)
        ax, ex = i.gain_main_mhz_per_w * power / band, i.gain_tap_mhz_per_w * power / band
        nats = np.log((1.0 + ax) / (1.0 + ex))
        return np.log(band * nats / LN2), (ax / (1.0 + ax) - ex / (1.0 + ex)) / nats

    def stages(self, z: Floats) -> tuple[Floats, Floats, Floats, Floats, Floats]:
        """Return work, its derivative by ln share, and the three times."""
        i = self.instance
        share, _, _, clock, server = self.split(z)
        grow = i.train_tflop * (1.0 - i.train_fixed_share) * share
        work = i.train_tflop * i.train_fixed_share + grow
        return work, grow, work / clock, i.update_mbit * share / np.exp(self.rates(z)[0]), i.plug_in_tflop * share / server

    def cost(self, z: Floats) -> tuple[float, Floats]:
        i, n = self.instance, self.instance.clients
        share, _, power, clock, server = self.split(z)
        work, grow, _, t2, _ = self.stages(z)
        by_power = self.rates(z)[1]
        e1, e2 = i.clock_energy_w_per_tflops3 * work * clock**2, power * t2
        e3 = i.server_energy_w_per_tflops3 * i.plug_in_tflop * share * server**2
        slope = np.zeros(5 * n + 1)
        slope[:n] = e1 * grow / work + e2 + e3
        slope[n : 2 * n] = -e2 * (1.0 - by_power)
        slope[2 * n : 3 * n] = e2 * (1.0 - by_power)
        slope[3 * n : 4 * n] = 2.0 * e1
        slope[4 * n : 5 * n] = 2.0 * e3
        slope *= i.energy_weight_per_j
        time = float(i.time_weight_per_s * np.exp(z[-1]))
        slope[-1] = time
        return time + i.energy_weight_per_j * float((e1 + e2 + e3).sum()), slope

    def goal(self, z: Floats) -> tuple[float, Floats]:
        """Return what is minimised, with its gradient: ln S - ln U, S - U / price, or ln S."""
        i, n = self.instance, self.instance.clients
        cost, slope = self.cost(z)
        share = self.split(z)[0]
        utility = float(i.utility.value(share).sum())
        rise = np.zeros(5 * n + 1)
        rise[:n] = i.utility.slope(share) * share
        if i.objective.kind == "difference":
            return cost - utility / (i.objective.price or 1.0), slope - rise / (i.objective.price or 1.0)
        if i.objective.kind == "cost":
            return float(np.log(cost)), slope / cost
        return float(np.log(cost / max(utility, 1e-12))), slope / cost - rise / max(utility, 1e-12)

    def limits(self, z: Floats) -> Floats:
        """Return what must not be negative."""
        i = self.instance
        share, band, _, _, server = self.split(z)
        _, _, t1, t2, t3 = self.stages(z)
        rows = [z[-1] - np.log(i.start_s + t1 + t2 + t3)]
        rows.append(np.log(i.bandwidth_mhz / band.sum())[None])
        rows.append(np.log(i.server_tflops / server.sum())[None])
        asked = i.rate_min_mbps > 0.0
        if asked.any():
            rows.append((self.rates(z)[0] - np.log(np.maximum(i.rate_min_mbps, 1e-300)))[asked])
        if i.objective.utility_min is not None:
            rows.append((i.utility.value(share).sum() - i.objective.utility_min)[None])
        return np.concatenate(rows)

    def limit_slopes(self, z: Floats) -> Floats:
        i, n = self.instance, self.instance.clients
        share, band, _, _, server = self.split(z)
        _, grow, t1, t2, t3 = self.stages(z)
        work = t1 * self.split(z)[3]
        by_power = self.rates(z)[1]
        each = np.arange(n)
        time = i.start_s + t1 + t2 + t3
        ends = np.zeros((n, 5 * n + 1))
        ends[each, each] = -(t1 * grow / work + t2 + t3) / time
        ends[each, n + each] = t2 * (1.0 - by_power) / time
        ends[each, 2 * n + each] = t2 * by_power / time
        ends[each, 3 * n + each] = t1 / time
        ends[each, 4 * n + each] = t3 / time
        ends[:, -1] = 1.0
        sums = np.zeros((2, 5 * n + 1))
        sums[0, n : 2 * n] = -band / band.sum()
        sums[1, 4 * n : 5 * n] = -server / server.sum()
        rates = np.zeros((n, 5 * n + 1))
        rates[each, n + each], rates[each, 2 * n + each] = 1.0 - by_power, by_power
        rows = [ends, sums, rates[i.rate_min_mbps > 0.0]]
        if i.objective.utility_min is not None:
            rise = np.zeros((1, 5 * n + 1))
            rise[0, :n] = i.utility.slope(share) * share
            rows.append(rise)
        return np.concatenate(rows)


def sequential_quadratic(instance: Instance, *, starts: int, seed: int = 0) -> Evaluation | None:
    """Return the best feasible end of SLSQP in logarithms with exact gradients, from random starts; None without one."""
    form, n, i = _LogForm(instance=instance), instance.clients, instance
    draw = np.random.default_rng(seed)
    bounds = [*np.log(np.stack([i.share_min, i.share_max], axis=1))]
    bounds += [(np.log(1e-7 * i.bandwidth_mhz), np.log(i.bandwidth_mhz))] * n
    bounds += [(np.log(1e-9 * p), np.log(p)) for p in i.power_max_w]
    bounds += [(np.log(1e-5 * f), np.log(f)) for f in i.clock_max_tflops]
    bounds += [(np.log(1e-7 * i.server_tflops), np.log(i.server_tflops))] * n
    bounds += [(-30.0, 40.0 if i.deadline_s is None else float(np.log(i.deadline_s)))]
    best: Evaluation | None = None
    for _ in range(starts):
        share = np.exp(draw.uniform(np.log(i.share_min), np.log(i.share_max)))
        part = draw.dirichlet(np.full(n, 5.0))
        guess = [share, part * i.bandwidth_mhz, draw.uniform(0.05, 1.0, n) * i.power_max_w]
        guess += [draw.uniform(0.2, 1.0, n) * i.clock_max_tflops, draw.dirichlet(np.full(n, 5.0)) * i.server_tflops]
        z = np.append(np.log(np.concatenate(guess)), 0.0)
        _, _, t1, t2, t3 = form.stages(z)
        z[-1] = np.clip(np.log((i.start_s + t1 + t2 + t3).max()), *bounds[-1])
        with np.errstate(all="ignore"):
            end = minimize(
                form.goal,
                z,
                jac=True,
                bounds=bounds,
                method="SLSQP",
                constraints={"type": "ineq", "fun": form.limits, "jac": form.limit_slopes},
                options={"maxiter": 600, "ftol": 1e-15},
            )
        if not np.isfinite(end.x).all():
            continue
        found = evaluate(instance, form.choice(np.asarray(end.x, dtype=np.float64)))
        if found.worst < 1e-7 and (best is None or found.objective > best.objective):
            best = found
    return best


def every(levels: int, clients: int) -> list[NDArray[np.intp]]:
    """Return every way to give each client one of the levels."""
    return [np.array(combination, dtype=np.intp) for combination in product(range(levels), repeat=clients)]
