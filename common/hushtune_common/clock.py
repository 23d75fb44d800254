"""The clock: the only reader of time."""

import asyncio
import time
from datetime import UTC, datetime
from typing import Protocol

from hushtune_common.units import Second


class Clock(Protocol):
    """Tells time and waits.

    Laws: ``monotonic`` never decreases; after ``sleep(s)`` it has grown by at least ``s``.
    """

    def monotonic(self) -> Second:
        """Return seconds since an arbitrary start, for durations only."""
        ...

    def wall(self) -> datetime:
        """Return the date in UTC, for people only; never compared between machines."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Wait without blocking the event loop."""
        ...

    def pause(self, seconds: float) -> None:
        """Wait, blocking this thread."""
        ...


class SystemClock:
    """The operating system's clock."""

    def monotonic(self) -> Second:
        """Return the monotonic clock."""
        return Second(time.monotonic())

    def wall(self) -> datetime:
        """Return the date in UTC."""
        return datetime.now(UTC)

    async def sleep(self, seconds: float) -> None:
        """Wait on the event loop."""
        await asyncio.sleep(seconds)

    def pause(self, seconds: float) -> None:
        """Block this thread."""
        time.sleep(seconds)


_conforms: type[Clock] = SystemClock
