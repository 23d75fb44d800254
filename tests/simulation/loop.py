"""An event loop in which time is a number: nothing waits, and the same program runs the same way every time.

Timers fire in the order of their time, work for threads runs in the loop when its time has come, and there is no network. What
production code does with ``asyncio`` is thereby as repeatable as a pure machine.
"""

import asyncio
import heapq
from collections.abc import Callable
from concurrent.futures import Executor
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np

from hushtune_common.clock import Clock
from hushtune_common.units import Second
from tests.simulation.disk import PowerCut
from tests.simulation.simulator import Violation


class SimulatedLoop(asyncio.SelectorEventLoop):
    """See above; ``rng`` draws how long work in threads takes, up to ``work_s``."""

    def __init__(self, rng: np.random.Generator, *, work_s: float) -> None:
        super().__init__()
        self._now = 0.0
        self._rng = rng
        self._work_s = work_s

    def time(self) -> float:
        return self._now

    def run_in_executor(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, executor: Executor | None, func: Callable[..., Any], *args: Any
    ) -> "asyncio.Future[Any]":
        done = self.create_future()

        def work() -> None:
            if done.cancelled():
                return
            try:
                result = func(*args)
            except PowerCut:
                return  # nobody will ever hear of this work; who waits for it goes down with its machine
            except Exception as error:
                done.set_exception(error)
            else:
                done.set_result(result)

        self.call_later(self._work_s * float(self._rng.random()), work)
        return done

    def _run_once(self) -> None:
        """Jump to the next timer instead of waiting for it."""
        timers: list[Any] = self._scheduled  # type: ignore[attr-defined]
        while timers and timers[0]._cancelled:
            heapq.heappop(timers)._scheduled = False
            self._timer_cancelled_count -= 1  # type: ignore[attr-defined]
        if not self._ready:  # type: ignore[attr-defined]
            if not timers:
                raise Violation("everybody waits for ever")
            self._now = max(self._now, timers[0]._when)
        super()._run_once()  # type: ignore[misc]


class SkewedClock:
    """The clock of one machine: its day is another one, and its seconds are a little longer or shorter than the world's."""

    def __init__(self, loop: SimulatedLoop, *, offset_s: float, rate: float) -> None:
        self._loop = loop
        self._offset_s = offset_s
        self._rate = rate

    def monotonic(self) -> Second:
        return Second(abs(self._offset_s) + self._rate * self._loop.time())

    def wall(self) -> datetime:
        return datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=self._offset_s + self._rate * self._loop.time())

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds / self._rate)

    def pause(self, seconds: float) -> None:
        raise Violation("nobody blocks the world")


_conforms: type[Clock] = SkewedClock
