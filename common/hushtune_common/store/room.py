"""How long does a caller wait for room on a full disk, here or at a peer?"""

import logging

from hushtune_common.clock import Clock
from hushtune_common.errors import StorageFull
from hushtune_common.logs import log_event
from hushtune_common.seeding import NoiseRng

_log = logging.getLogger(__name__)
_JITTER = 0.25


class Room:
    """The waits for room of one call or transfer.

    A disk is emptied by a person, who takes minutes and not seconds, so these waits are counted in time and not in tries; whoever
    gives up meanwhile is cancelled, as when a round closes.
    """

    def __init__(self, *, clock: Clock, within_s: float, rng: NoiseRng | None = None) -> None:
        """Wait at most ``within_s`` in all; ``rng`` spreads the tries of many who wait for the same disk."""
        self._clock = clock
        self._rng = rng
        self._within_s = within_s
        self._since_s: float | None = None

    async def wait(self, error: StorageFull) -> None:
        """Wait as ``error`` says, and a little longer if there is an ``rng``; raise it when the time is up."""
        now_s = self._clock.monotonic()
        if self._since_s is None:
            self._since_s = now_s
            log_event(_log, "room_awaited", level=logging.WARNING, problem=str(error), within_s=self._within_s)
        if now_s - self._since_s >= self._within_s:
            raise error
        longer = 0.0 if self._rng is None else float(self._rng.uniform(0.0, _JITTER))
        await self._clock.sleep(error.retry_after_s * (1.0 + longer))

    def found(self) -> None:
        """There is room again: the next wait is another one."""
        self._since_s = None
