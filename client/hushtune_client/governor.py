"""How fast a device may train: the assigned clock, kept by pauses."""

import time
from collections.abc import Callable
from typing import Protocol

from hushtune_common.clock import Clock
from hushtune_common.units import Second


class Governor(Protocol):
    """Holds training to a share of the device's speed and counts what it cost.

    Laws: after ``step_ended``, at least ``cpu / (threads * share)`` seconds of wall time have passed since the step began, where
    ``cpu`` is the step's processor time; ``cpu_s`` and ``wall_s`` never decrease.
    """

    @property
    def cpu_s(self) -> Second:
        """Processor seconds of all steps so far; pauses cost none."""
        ...

    @property
    def wall_s(self) -> Second:
        """Seconds of all steps so far, pauses included."""
        ...

    def step_began(self) -> None:
        """Mark the start of a step."""
        ...

    def step_ended(self) -> None:
        """Mark the end of a step and wait until its time is up."""
        ...


class PacingGovernor:
    """Waits after each step. Measured in processor time, so that time lost to other processes is not charged twice."""

    def __init__(
        self, clock_share: float, *, clock: Clock, threads: int = 1, cpu_time: Callable[[], float] = time.process_time
    ) -> None:
        """Take the share of the device's top clock, in (0, 1], and the threads that a step keeps busy."""
        if not 0.0 < clock_share <= 1.0 or threads < 1:
            raise ValueError(f"a clock share in (0, 1] and at least one thread, got {clock_share} and {threads}")
        self._share = clock_share
        self._threads = threads
        self._clock = clock
        self._cpu_time = cpu_time
        self._began = (0.0, 0.0)
        self._cpu = 0.0
        self._wall = 0.0

    @property
    def cpu_s(self) -> Second:
        """Processor seconds of all steps so far."""
        return Second(self._cpu)

    @property
    def wall_s(self) -> Second:
        """Seconds of all steps so far, pauses included."""
        return Second(self._wall)

    def step_began(self) -> None:
        """Mark the start of a step."""
        self._began = (self._cpu_time(), self._clock.monotonic())

    def step_ended(self) -> None:
        """Count the step and wait for the rest of its time."""
        cpu_began, wall_began = self._began
        cpu = self._cpu_time() - cpu_began
        self._cpu += cpu
        missing = cpu / (self._threads * self._share) - (self._clock.monotonic() - wall_began)
        if missing > 0.0:
            self._clock.pause(missing)
        self._wall += self._clock.monotonic() - wall_began


_conforms: type[Governor] = PacingGovernor
