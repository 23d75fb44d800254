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


class VirtualTime(Unpaced):
    """Lets every step last what it would on the assigned clock, on a clock that jumps: the time of a simulation.

    Law: ``wall_s`` grows by exactly ``step_s`` per step as long as the steps themselves take no time of the ``clock``.
    """

    def __init__(self, step_s: Second, *, clock: Clock, cpu_time: Callable[[], float] = time.process_time) -> None:
        """Take the modelled seconds of one step: its floating-point operations over the assigned clock."""
        if not step_s > 0.0:
            raise ValueError(f"a step takes time, got {step_s} s")
        super().__init__(clock=clock, cpu_time=cpu_time)
        self._step_s = step_s

    def step_ended(self) -> None:
        """Let the rest of the step's time pass, then count it."""
        _, wall = self._since_began()
        self._clock.pause(max(0.0, self._step_s - wall))
        super().step_ended()


_conforms: type[Governor] = Unpaced
_conforms_too: type[Governor] = VirtualTime
