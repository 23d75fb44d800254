"""A world in a heap: events in the order of time, with weather drawn from a seed.

Everything random comes from one generator and everything happens in one thread, so a seed is a replay.
"""

import heapq
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from hushtune_common.seeding import SeedTree

Action = Callable[[], None]


class Violation(AssertionError):
    """A law was broken."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Weather:
    """How bad things are: shares per message or deed, and mean times in seconds between the faults of one kind."""

    loss: float
    duplication: float
    delay_s: float
    late: float
    late_s: float
    break_s: float
    crash_s: float
    coordinator_crash_s: float
    return_share: float
    stall: float
    failure: float
    refusal: float
    deferral: float
    training_s: float
    motion_s: float
    cut_s: float

    @staticmethod
    def drawn(rng: np.random.Generator, *, round_s: float) -> "Weather":
        """Draw a mix: each fault is absent in about every third world, and rare or frequent in the others."""

        def share(top: float) -> float:
            return 0.0 if rng.random() < 0.3 else float(rng.random()) * top

        def mean_s(shortest: float) -> float:
            return float("inf") if rng.random() < 0.3 else shortest * float(1.0 + 9.0 * rng.random())

        return Weather(
            loss=share(0.4),
            duplication=share(0.5),
            delay_s=0.01 + share(3.0),
            late=share(0.3),
            late_s=1.5 * round_s,
            break_s=mean_s(0.3 * round_s),
            crash_s=mean_s(2.0 * round_s),
            coordinator_crash_s=mean_s(0.5 * round_s),
            return_share=1.0 - share(0.8),
            stall=share(0.25),
            failure=share(0.2),
            refusal=share(0.2),
            deferral=share(0.2),
            training_s=15.0 + share(30.0),
            motion_s=mean_s(0.1 * round_s),
            cut_s=mean_s(0.6 * round_s),
        )

    @staticmethod
    def fair() -> "Weather":
        """Return weather without faults."""
        never = float("inf")
        return Weather(
            loss=0.0,
            duplication=0.0,
            delay_s=0.01,
            late=0.0,
            late_s=0.0,
            break_s=never,
            crash_s=never,
            coordinator_crash_s=never,
            return_share=1.0,
            stall=0.0,
            failure=0.0,
            refusal=0.0,
            deferral=0.0,
            training_s=15.0,
            motion_s=never,
            cut_s=never,
        )


class World:
    """Time, chance and the network."""

    def __init__(self, seed: int, *, round_s: float, fair: bool = False) -> None:
        """Draw the weather of ``seed``, or take ``fair`` weather."""
        self.now = 0.0
        self.rng = SeedTree(seed).child("world").generator()
        self.weather = Weather.fair() if fair else Weather.drawn(self.rng, round_s=round_s)
        self.trace: list[str] = []
        self._heap: list[tuple[float, int, Action]] = []
        self._serial = 0

    def after(self, delay_s: float, action: Action) -> None:
        """Let ``action`` happen later; never for an infinite delay."""
        if delay_s == float("inf"):
            return
        self._serial += 1
        heapq.heappush(self._heap, (self.now + delay_s, self._serial, action))

    def happens(self, share: float) -> bool:
        """Whether something with this probability happens now."""
        return share > 0.0 and float(self.rng.random()) < share

    def between(self, low: float, high: float) -> float:
        """Draw a number."""
        return low + (high - low) * float(self.rng.random())

    def lifetime(self, mean_s: float) -> float:
        """Draw the time to the next fault of a kind."""
        return float("inf") if mean_s == float("inf") else float(self.rng.exponential(mean_s))

    def send(self, action: Action) -> None:
        """Deliver a message as the weather allows: lost, twice, delayed, long after everybody forgot it, in any order."""
        copies = 0 if self.happens(self.weather.loss) else 1
        copies += self.happens(self.weather.duplication)
        for _ in range(copies):
            self.after(self.between(0.0, self.weather.delay_s), action)
        if self.happens(self.weather.late):
            self.after(self.between(0.0, self.weather.late_s), action)

    def clear(self) -> None:
        """Let all faults stop."""
        self.weather = Weather.fair()

    def note(self, text: str) -> None:
        """Add a line to the trace that a replay shows."""
        self.trace.append(f"{self.now:8.2f} {text}")

    def step(self) -> bool:
        """Let the next event happen; return whether there was one."""
        if not self._heap:
            return False
        self.now, _, action = heapq.heappop(self._heap)
        action()
        return True
