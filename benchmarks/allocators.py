"""How much faster is the structured allocator than general methods on the same instances? CPU-time ratios of one run.

    python benchmarks/allocators.py --limit-s 60 --json

``global`` cold and warm (every channel changed by 5 %) from 3 to 10,000 clients; beside it SLSQP in logarithms with exact
gradients (N = 3), the alternating method and the conic one (N = 100, or the largest N at which they end within the limit), and
IPOPT (N = 100) where cyipopt is installed. Process CPU time on one thread, the best of the repeats (of one run where that takes
over 0.2 s), median over the instances; without imports, compilation and certificates. ``of bound``: the least objective over a
certified upper bound of its instance.
"""

import argparse
import json
import platform
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from threadpoolctl import threadpool_limits

from hushtune_common.errors import HushtuneError
from hushtune_common.seeding import SeedTree
from hushtune_server.coordinator.allocators.certificate import certify
from hushtune_server.coordinator.allocators.solution import Solution
from hushtune_server.coordinator.allocators.structured import solve
from hushtune_server.coordinator.problems.draws import random_instance
from hushtune_server.coordinator.problems.instance import Choice, Instance, evaluate
from hushtune_server.testbed.solve.methods import Method, solver_of

Floats = NDArray[np.float64]
SIZES = (3, 10, 50, 100, 1000, 10_000)
PEER_SIZES = (100, 50, 30, 10, 3)
SHORT_MS = 200.0
"""Whatever takes longer runs once."""
LN2 = float(np.log(2.0))


class OutOfTime(BaseException):
    """The alarm; no solver takes it for a failure of its own."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One method at one size."""

    method: str
    clients: int
    cpu_ms: float | None
    of_bound: float | None
    times_slower: float | None
    """CPU time over that of cold ``global`` on the same instances."""
    note: str = ""


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    """Return CPU milliseconds and the result."""
    start = time.process_time()
    result = call()
    return 1e3 * (time.process_time() - start), result


def limited(seconds: float, call: Callable[[], Any]) -> Any:
    """Return what ``call`` returns; ``OutOfTime`` after this wall time."""

    def ring(*_: object) -> None:
        raise OutOfTime

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        return call()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)


def changed(instance: Instance, *, percent: float, seed: int) -> Instance:
    """Return the instance after its channels have moved a little, everyone still better off than the tap."""
    draw = np.random.default_rng(seed)
    factor = 1.0 + percent / 100.0 * draw.uniform(-1.0, 1.0, (2, instance.clients))
    main = instance.gain_main_mhz_per_w * factor[0]
    tap = np.minimum(instance.gain_tap_mhz_per_w * factor[1], 0.999 * main)
    return replace(instance, gain_main_mhz_per_w=main, gain_tap_mhz_per_w=tap)


class LogProblem:
    """The ratio, in the logarithms of (share, band, power, clock, owner's clock) of each client and of the time."""

    def __init__(self, instance: Instance) -> None:
        self._i, self._n = instance, instance.clients

    def start(self) -> Floats:
        """Return the even split at a middling share, not quite at its limits, as logarithms."""
        i, n = self._i, self._n
        share = np.sqrt(i.share_min * i.share_max)
        parts = [share, np.full(n, 0.99 * i.bandwidth_mhz / n), 0.5 * i.power_max_w, 0.7 * i.clock_max_tflops]
        z = np.log(np.concatenate([*parts, np.full(n, 0.99 * i.server_tflops / n), [1.0]]))
        z[-1] = np.log(1.01 * self._times(z)[-1].max())
        return z

    def bounds(self) -> list[tuple[float, float]]:
        """Return a box around everything that makes sense."""
        i, n = self._i, self._n
        tops = [i.share_max, np.full(n, i.bandwidth_mhz), i.power_max_w, i.clock_max_tflops, np.full(n, i.server_tflops)]
        lows = [i.share_min, 1e-7 * tops[1], 1e-9 * tops[2], 1e-5 * tops[3], 1e-7 * tops[4]]
        pairs = zip(np.log(np.concatenate(lows)), np.log(np.concatenate(tops)), strict=True)
        return [*((float(low), float(top)) for low, top in pairs), (-30.0, 40.0)]

    def choice(self, z: Floats) -> Choice:
        """Return the point with every limit kept: the bands and the machine scaled back, the time that of the latest client."""
        i = self._i
        share, band, power, clock, server = self._parts(z)
        band, server = band * min(1.0, i.bandwidth_mhz / band.sum()), server * min(1.0, i.server_tflops / server.sum())
        made = Choice(
            share=np.clip(share, i.share_min, i.share_max),
            bandwidth_mhz=band,
            power_w=np.minimum(power, i.power_max_w),
            clock_tflops=np.minimum(clock, i.clock_max_tflops),
            server_tflops=server,
            time_s=np.inf,
        )
        return replace(made, time_s=evaluate(i, made).time_s)

    def _parts(self, z: Floats) -> list[Floats]:
        return list(np.exp(z[:-1]).reshape(5, self._n))

    def _times(self, z: Floats) -> tuple[Floats, ...]:
        """Return d ln work / d ln share, d ln rate / d ln power, work, and the three times and their sum."""
        i = self._i
        share, band, power, clock, server = self._parts(z)
        grow = i.train_tflop * (1.0 - i.train_fixed_share) * share
        work = i.train_tflop * i.train_fixed_share + grow
        ax, ex = i.gain_main_mhz_per_w * power / band, i.gain_tap_mhz_per_w * power / band
        nats = np.log1p(ax) - np.log1p(ex)
        by_power = (ax / (1.0 + ax) - ex / (1.0 + ex)) / nats
        t1, t2, t3 = work / clock, i.update_mbit * share * LN2 / (band * nats), i.plug_in_tflop * share / server
        return grow / work, by_power, work, t1, t2, t3, i.start_s + t1 + t2 + t3

    def goal(self, z: Floats) -> tuple[float, Floats]:
        """Return ln S - ln U and its gradient."""
        i, n = self._i, self._n
        share, _, power, clock, server = self._parts(z)
        by_share, by_power, work, _, t2, _, _ = self._times(z)
        e1, e2 = i.clock_energy_w_per_tflops3 * work * clock**2, power * t2
        e3 = i.server_energy_w_per_tflops3 * i.plug_in_tflop * share * server**2
        late = i.time_weight_per_s * float(np.exp(z[-1]))
        cost, worth = late + i.energy_weight_per_j * float((e1 + e2 + e3).sum()), float(i.utility.value(share).sum())
        rows = [e1 * by_share + e2 + e3, -e2 * (1.0 - by_power), e2 * (1.0 - by_power), 2.0 * e1, 2.0 * e3]
        slope = np.append(i.energy_weight_per_j * np.concatenate(rows), late) / cost
        slope[:n] -= i.utility.slope(share) * share / worth
        return float(np.log(cost / worth)), slope

    def limits(self, z: Floats) -> Floats:
        """Return N + 2 numbers that must not be negative: in time, within the band, within the machine; all in logarithms."""
        _, band, _, _, server = self._parts(z)
        sums = [np.log(self._i.bandwidth_mhz / band.sum()), np.log(self._i.server_tflops / server.sum())]
        return np.append(z[-1] - np.log(self._times(z)[-1]), sums)

    def limit_slopes(self, z: Floats) -> Floats:
        """Return the derivatives of the limits, (N + 2, 5 N + 1)."""
        n = self._n
        _, band, _, _, server = self._parts(z)
        by_share, by_power, _, t1, t2, t3, time_s = self._times(z)
        rows = [-(t1 * by_share + t2 + t3), t2 * (1.0 - by_power), t2 * by_power, t1, t3]
        slopes = np.zeros((n + 2, 5 * n + 1))
        each = np.arange(n)
        for k, row in enumerate(rows):
            slopes[each, k * n + each] = row / time_s
        slopes[:n, -1] = 1.0
        slopes[n, n : 2 * n] = -band / band.sum()
        slopes[n + 1, 4 * n : 5 * n] = -server / server.sum()
        return slopes


def by_slsqp(instance: Instance) -> float:
    """Return the objective that SLSQP ends with."""
    problem = LogProblem(instance)
    end: Any = minimize(
        problem.goal,
        problem.start(),
        jac=True,
        bounds=problem.bounds(),
        method="SLSQP",
        constraints={"type": "ineq", "fun": problem.limits, "jac": problem.limit_slopes},
        options={"maxiter": 1000, "ftol": 1e-12},
    )
    return evaluate(instance, problem.choice(np.asarray(end.x))).objective


def by_ipopt(instance: Instance) -> float:
    """Return the objective that IPOPT ends with; its Hessians are limited-memory approximations here."""
    from cyipopt import minimize_ipopt  # pyright: ignore[reportMissingImports] # optional

    problem = LogProblem(instance)
    end: Any = minimize_ipopt(
        problem.goal,
        problem.start(),
        jac=True,
        bounds=problem.bounds(),
        constraints={"type": "ineq", "fun": problem.limits, "jac": problem.limit_slopes},
        options={"max_iter": 1000, "tol": 1e-9, "print_level": 0},
    )
    return evaluate(instance, problem.choice(np.asarray(end.x))).objective


def structured_rows(clients: int, instances: Sequence[Instance], *, repeats: int) -> tuple[list[Row], list[float]]:
    """Return the rows of ``global``, cold and warm, and the certified bounds of the instances."""
    cold, warm, bounds, reached = [], [], [], []
    for k, instance in enumerate(instances):
        times = [timed(lambda problem=instance: solve(problem)) for _ in range(repeats)]
        found: Solution = times[0][1]
        cold.append(min(ms for ms, _ in times))
        moved = changed(instance, percent=5.0, seed=k)
        warm.append(min(timed(lambda problem=moved, start=found: solve(problem, start=start))[0] for _ in range(repeats)))
        bounds.append(certify(instance, found).upper_bound or float("inf"))
        reached.append(found.evaluation.objective / bounds[-1])
    base = median(cold)
    rows = [
        Row(method="global, cold", clients=clients, cpu_ms=base, of_bound=min(reached), times_slower=1.0),
        Row(method="global, warm", clients=clients, cpu_ms=median(warm), of_bound=None, times_slower=median(warm) / base),
    ]
    return rows, bounds


def peer_row(
    name: str, objective_of: Callable[[Instance], float], *, clients: int, count: int, limit_s: float, repeats: int
) -> Row | None:
    """Return the row of another method on instances of this size, or None where the first takes longer than the limit."""
    instances = drawn(clients, count)
    own, bounds = structured_rows(clients, instances, repeats=repeats)
    times: list[float] = []
    reached: list[float] = []
    failures: list[str] = []
    for instance, bound in zip(instances, bounds, strict=True):
        try:
            ms, objective = limited(limit_s, lambda problem=instance: timed(lambda: objective_of(problem)))
            for _ in range(repeats - 1 if ms < SHORT_MS else 0):
                ms = min(ms, timed(lambda problem=instance: objective_of(problem))[0])
        except OutOfTime:
            if not times:
                return None
            failures.append(f"over {limit_s:g} s")
            continue
        except HushtuneError as error:
            failures.append(str(error))
            continue
        times.append(ms)
        reached.append(objective / bound)
    note = f"{len(failures)} of {count} failed: {failures[0]}" if failures else ""
    if not times:
        return Row(method=name, clients=clients, cpu_ms=None, of_bound=None, times_slower=None, note=note)
    slower = median(times) / (own[0].cpu_ms or 1.0)
    return Row(method=name, clients=clients, cpu_ms=median(times), of_bound=min(reached), times_slower=slower, note=note)


def largest_row(
    name: str, objective_of: Callable[[Instance], float], *, sizes: Sequence[int], count: int, limit_s: float, repeats: int
) -> Row:
    """Return the row at the largest size at which the method ends within the limit."""
    missed: list[int] = []
    for clients in sizes:
        row = peer_row(name, objective_of, clients=clients, count=count, limit_s=limit_s, repeats=repeats)
        if row is not None:
            beyond = f"over {limit_s:g} s at N = {', '.join(map(str, missed))}" if missed else ""
            return replace(row, note="; ".join(filter(None, [row.note, beyond])))
        missed.append(clients)
    return Row(method=name, clients=0, cpu_ms=None, of_bound=None, times_slower=None, note=f"over {limit_s:g} s at every size")


def allocator(method: Method) -> Callable[[Instance], float]:
    """Return a shipped allocator as a function that gives the objective, everything it needs imported."""
    chosen = solver_of(method, seeds=SeedTree(1))
    return lambda instance: chosen(instance).evaluation.objective


def drawn(clients: int, count: int) -> list[Instance]:
    """Return the benchmark's instances of one size."""
    return [random_instance(clients=clients, seeds=SeedTree(k).child("benchmark")) for k in range(count)]


def peers(options: argparse.Namespace) -> list[Row]:
    """Return the rows of all other methods that are installed."""
    limits = {"limit_s": options.limit_s, "repeats": options.repeats}
    rows = [largest_row("SLSQP, logarithms", by_slsqp, sizes=(3,), count=options.count, **limits)]
    for method in ("alternating", "alternating-strict", "conic"):
        try:
            rows.append(largest_row(method, allocator(method), sizes=PEER_SIZES, count=min(3, options.count), **limits))
        except HushtuneError as missing:
            rows.append(Row(method=method, clients=0, cpu_ms=None, of_bound=None, times_slower=None, note=str(missing)))
    with suppress(ImportError):
        import cyipopt as _  # pyright: ignore[reportMissingImports] # noqa: F401 # optional

        rows.append(largest_row("IPOPT, logarithms", by_ipopt, sizes=PEER_SIZES, count=min(3, options.count), **limits))
    return rows


def show(rows: Sequence[Row]) -> None:
    """Print the table."""
    print(f"{'method':<20} {'N':>6} {'CPU ms':>10} {'of bound':>15} {'times':>8}")
    for row in rows:
        ms = "-" if row.cpu_ms is None else f"{row.cpu_ms:.4g}"
        part = "-" if row.of_bound is None else f"{row.of_bound:.12f}"
        slower = "-" if row.times_slower is None else f"{row.times_slower:.3g}"
        print(f"{row.method:<20} {row.clients or '-':>6} {ms:>10} {part:>15} {slower:>8}  {row.note}".rstrip())


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=5, help="instances of each size; peers that take seconds get at most 3")
    parser.add_argument("--repeats", type=int, default=5, help="of each solve that takes less than 0.2 s; the best counts")
    parser.add_argument("--limit-s", type=float, default=60.0, help="wall time that a peer may take for one instance")
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES), help="numbers of clients for global")
    parser.add_argument("--no-peers", action="store_true", help="global only")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the table")
    options = parser.parse_args()
    with threadpool_limits(limits=1):
        first_ms, first = timed(lambda: solve(drawn(2, 1)[0]))  # loads the compiled code
        certify(drawn(2, 1)[0], first)
        rows: list[Row] = []
        for clients in options.sizes:
            count = options.count if clients <= 1000 else min(2, options.count)
            rows += structured_rows(clients, drawn(clients, count), repeats=options.repeats)[0]
        if not options.no_peers:
            rows += peers(options)
    if options.json:
        machine = {"processor": platform.processor() or platform.machine(), "python": platform.python_version()}
        print(json.dumps({"machine": machine, "first_call_ms": first_ms, "rows": [vars(row) for row in rows]}, indent=1))
    else:
        show(rows)
        print(f"first call of this process, compiled code loaded from disk or made: {first_ms / 1e3:.2f} s")


if __name__ == "__main__":
    main()
