"""How fast a device may train: the assigned clock, kept by pauses."""

import time
from collections.abc import Callable

from hushtune_common.clock import Clock
from hushtune_common.model.governor import Governor, Unpaced


class PacingGovernor(Unpaced):
    """Waits after each step until the device would have been through with it at its assigned share of the top clock.

    Law: after ``step_ended``, at least ``cpu / (threads * share)`` seconds have passed since the step began, where ``cpu`` is the
    step's processor time. Processor time, so that time lost to other processes is not charged a second time.
    """

    def __init__(
        self, clock_share: float, *, clock: Clock, threads: int = 1, cpu_time: Callable[[], float] = time.process_time
    ) -> None:
        """Take the share of the device's top clock, in (0, 1], and the number of threads that a step keeps busy."""
        if not 0.0 < clock_share <= 1.0 or threads < 1:
            raise ValueError(f"a clock share in (0, 1] and at least one thread, got {clock_share} and {threads}")
        super().__init__(clock=clock, cpu_time=cpu_time)
        self._share = clock_share * threads

    def step_ended(self) -> None:
        """Wait for the rest of the step's time, then count it."""
        cpu, wall = self._since_began()
        missing = cpu / self._share - wall
        if missing > 0.0:
            self._clock.pause(missing)
        super().step_ended()


_conforms: type[Governor] = PacingGovernor
