"""How good is each allocator on one instance, against a bound that none can exceed, and how long does it take?"""

import signal
import threading
import time
from collections.abc import Callable, Collection, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import isfinite
from types import FrameType
from typing import Final, Literal, TypeVar

from hushtune_common.errors import ConfigError, DeadlineExceeded, HushtuneError, Infeasible, MissingPackage, SolverFailed
from hushtune_common.seeding import SeedTree
from hushtune_server.coordinator.allocators.certificate import GAP_MAX, certify
from hushtune_server.coordinator.allocators.extensions import spread_out
from hushtune_server.coordinator.allocators.solution import Claim, Solution
from hushtune_server.coordinator.problems.draws import random_instance
from hushtune_server.coordinator.problems.instance import Instance
from hushtune_server.testbed.solve.methods import METHODS, SLOW, Method, Solve, solver_of

Status = Literal["optimal", "feasible", "infeasible", "unsupported", "unavailable", "out_of_time", "failed"]
Result = TypeVar("Result")

VIOLATION_MAX: Final = 1e-6
"""Largest relative violation of a limit with which an answer still counts."""
TIMING: Final = (
    "CPU time of all threads, the best of up to 5 runs where one takes less than 0.1 s, without imports and compilation"
)
_RUNS_MAX: Final = 5
_SHORT_S: Final = 0.1

_STATUSES: Final[tuple[tuple[type[HushtuneError], Status], ...]] = (
    (Infeasible, "infeasible"),
    (MissingPackage, "unavailable"),
    (ConfigError, "unsupported"),
    (DeadlineExceeded, "out_of_time"),
    (SolverFailed, "failed"),
)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Row:
    """What came of one allocator; without a solution there is an error that says why."""

    method: Method
    status: Status
    solution: Solution | None = None
    cpu_ms: float | None = None
    upper_bound: float | None = None
    """The instance's, or that of the clients admitted; no allocator's objective is above it."""
    gap: float | None = None
    """(upper bound - objective) / |objective|."""
    admission: bool = False
    """Whether clients were left out by choice, so that nothing is proven about other sets of clients."""
    error: HushtuneError | None = None

    @property
    def claim(self) -> Claim:
        """What makes the answer an optimum: a small gap to the bound does, whoever found it."""
        if self.admission:
            return "none"
        if self.gap is not None and self.gap <= GAP_MAX:
            return "certificate"
        return "none" if self.solution is None else self.solution.claim

    @property
    def ratio(self) -> float | None:
        """The part of the bound that was reached, at most 1; None where signs make that meaningless."""
        if self.solution is None or self.upper_bound is None:
            return None
        objective, bound = self.solution.evaluation.objective, self.upper_bound
        if bound > 0.0 and objective >= 0.0:
            return objective / bound
        return bound / objective if bound < 0.0 and objective < 0.0 else None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Comparison:
    """Rows in the order asked, and the bound that all are held against."""

    rows: Mapping[Method, Row]
    upper_bound: float | None
    bound_cpu_ms: float | None
    bound_problem: str
    """Why there is no bound; empty if there is one."""
    admitted: int | None = None
    """How many clients take part and are what the bound is for, where clients may be left out; None where they may not."""


class _OutOfTime(BaseException):
    """The alarm; not an ``Exception``, so that no solver mistakes it for a failure of its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """Runs allocators one after the other: a limit for each, and someone to tell of the slow ones.

    With ``admission`` the method `global` first chooses who takes part, and all others share out among those.
    """

    seeds: SeedTree
    limit_s: float
    tell: Callable[[str], None]
    admission: bool = False
    cpu_time: Callable[[], float] = time.process_time
    """Processor seconds of this process, over all of its threads."""

    def compare(self, instance: Instance, methods: Collection[Method]) -> Comparison:
        """Return what comes of ``methods``; ``global`` runs as well, for its bound."""
        if self.admission and instance.objective.kind == "max_min":
            raise ConfigError("--admission", "has no meaning for the worst-off client; leave it out or choose another objective")
        order: list[Method] = [m for m in METHODS if m in methods]
        found = self.run(instance, "global")
        bound, bound_ms, problem = self._bound(instance, found)
        rows: dict[Method, Row] = {}
        for method in order:
            row = found if method == "global" else self._beside(instance, method, found.solution)
            rows[method] = _judged(replace(row, admission=self.admission), bound)
        admitted = None if not self.admission or found.solution is None else int((found.solution.choice.share > 0.0).sum())
        return Comparison(rows=rows, upper_bound=bound, bound_cpu_ms=bound_ms, bound_problem=problem, admitted=admitted)

    def _beside(self, instance: Instance, method: Method, chosen: Solution | None) -> Row:
        """Return the row of an allocator other than `global`, on the clients that `global` admitted where it chooses them."""
        if not self.admission or chosen is None:
            return self.run(instance, method)
        taking = chosen.choice.share > 0.0
        row = self.run(instance.select(taking), method)
        if row.solution is None:
            return row
        return replace(row, solution=replace(spread_out(instance, row.solution, taking), excluded=chosen.excluded))

    def run(self, instance: Instance, method: Method) -> Row:
        """Return the row of one allocator; whatever it raises on purpose becomes a status."""
        try:
            solve = solver_of(method, seeds=self.seeds.child("solve", method), admission=self.admission)
            self._prepare(method, solve)
            if method in SLOW:
                self.tell(f"{method}: at most {self.limit_s:g} s …")
            cpu_ms, solution = self._timed(method, lambda: solve(instance))
        except HushtuneError as error:
            return Row(method=method, status=_status(error), error=error)
        return Row(method=method, status="feasible", solution=solution, cpu_ms=cpu_ms)

    def _prepare(self, method: Method, solve: Solve) -> None:
        """Load compiled code outside the measurement; the first time on a machine it is compiled, for about half a minute."""
        if method == "global":
            tiny = random_instance(clients=2, seeds=self.seeds.child("prepare"))
            certify(tiny, solve(tiny))

    def _bound(self, instance: Instance, row: Row) -> tuple[float | None, float | None, str]:
        solution = row.solution
        if solution is None:
            return None, None, f"global gives no answer: {row.error}"
        try:
            bound_ms, proven = self._timed("bound", lambda: certify(instance, solution))
        except HushtuneError as error:
            return None, None, str(error)
        bound = proven.upper_bound
        if bound is None or not isfinite(bound):
            return None, bound_ms, "the dual function is unbounded at the prices found"
        return bound, bound_ms, ""

    def _timed(self, what: str, call: Callable[[], Result]) -> tuple[float, Result]:
        """Return the shortest CPU time in ms and the first result; ``DeadlineExceeded`` after the limit, which is wall time."""
        best = _SHORT_S
        try:
            with _alarm(self.limit_s):
                start = self.cpu_time()
                result = call()
                best = self.cpu_time() - start
        except _OutOfTime:
            raise DeadlineExceeded(f"{what}: no answer after {self.limit_s:g} s; give more with --limit-s") from None
        for _ in range(_RUNS_MAX - 1 if best < _SHORT_S else 0):
            start = self.cpu_time()
            call()
            best = min(best, self.cpu_time() - start)
        return 1e3 * best, result


@contextmanager
def _alarm(seconds: float) -> Generator[None]:
    """Interrupt the block after this time, as soon as Python has control; only possible in the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def ring(_signal: int, _frame: FrameType | None) -> None:
        raise _OutOfTime

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)


def _status(error: HushtuneError) -> Status:
    for kind, status in _STATUSES:
        if isinstance(error, kind):
            return status
    return "failed"


def _judged(row: Row, bound: float | None) -> Row:
    """Return the row held against the limits of the problem and against the bound."""
    if row.solution is None:
        return replace(row, upper_bound=bound)
    found = row.solution.evaluation
    if not found.worst <= VIOLATION_MAX:
        error = SolverFailed(f"{row.method}: its answer violates a limit by {found.worst:.2g} of it")
        return replace(row, status="failed", upper_bound=bound, error=error)
    if bound is None:
        return replace(row, status="optimal" if row.claim != "none" else "feasible")
    excess = (found.objective - bound) / max(abs(found.objective), 1e-300)
    if excess > 2.0 * VIOLATION_MAX:
        error = SolverFailed(
            f"{row.method}: its objective {found.objective:.9g} is above the bound {bound:.9g} of all allocations"
        )
        return replace(row, status="failed", upper_bound=bound, error=error)
    gap = max(-excess, 0.0)
    proven = gap <= GAP_MAX and not row.admission
    return replace(row, status="optimal" if proven else "feasible", upper_bound=bound, gap=gap)
