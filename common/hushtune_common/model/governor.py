"""Who decides how fast training runs, and counts what it costs."""

import time
from collections.abc import Callable
from typing import Protocol

from hushtune_common.clock import Clock
from hushtune_common.units import Second


class Governor(Protocol):
    """Is told when a step begins and ends, and may make it last longer.

    Laws: ``cpu_s`` and ``wall_s`` never decrease and change in ``step_ended`` only; pauses cost no processor time.
    """

    @property
    def cpu_s(self) -> Second:
        """Processor seconds of all steps so far."""
        ...

    @property
    def wall_s(self) -> Second:
        """Seconds of all steps so far, pauses included."""
        ...

    def step_began(self) -> None:
        """Mark the start of a step."""
        ...

    def step_ended(self) -> None:
        """Mark the end of a step; returns when the next may begin."""
        ...


class Unpaced:
    """Counts, and never waits."""

    def __init__(self, *, clock: Clock, cpu_time: Callable[[], float] = time.process_time) -> None:
        """Take the clock for wall time; ``cpu_time`` returns this process's processor seconds, over all of its threads."""
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
        """Seconds of all steps so far."""
        return Second(self._wall)

    def step_began(self) -> None:
        """Mark the start of a step."""
        self._began = (self._cpu_time(), self._clock.monotonic())

    def step_ended(self) -> None:
        """Count the step."""
        cpu, wall = self._since_began()
        self._cpu += cpu
        self._wall += wall

    def _since_began(self) -> tuple[float, float]:
        cpu_began, wall_began = self._began
        return self._cpu_time() - cpu_began, self._clock.monotonic() - wall_began


_conforms: type[Governor] = Unpaced
