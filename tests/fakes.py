"""Stand-ins that keep the laws of what they replace: a clock that jumps, an allocator with a fixed answer."""

import asyncio
from datetime import UTC, datetime, timedelta

from hushtune_common.clock import Clock
from hushtune_common.units import Second


class FakeClock:
    """A clock that stands still until told otherwise.

    ``advance`` moves it and wakes whoever slept long enough. With ``autojump`` a sleeper moves it itself, so nothing ever waits.
    """

    def __init__(self, *, start: float = 0.0, autojump: bool = False) -> None:
        self._now = start
        self._autojump = autojump
        self._sleepers: list[tuple[float, asyncio.Event]] = []

    def monotonic(self) -> Second:
        return Second(self._now)

    def wall(self) -> datetime:
        return datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=self._now)

    async def sleep(self, seconds: float) -> None:
        due = self._now + max(seconds, 0.0)
        if self._autojump or seconds <= 0.0:
            await asyncio.sleep(0)
            self.advance(max(0.0, due - self._now))
            return
        woken = asyncio.Event()
        self._sleepers.append((due, woken))
        await woken.wait()

    def pause(self, seconds: float) -> None:
        self.advance(seconds)

    def advance(self, seconds: float) -> None:
        """Let time pass; ``ValueError`` when it would run backwards."""
        if seconds < 0.0:
            raise ValueError(f"time does not run backwards, got {seconds}")
        self._now += seconds
        for due, woken in self._sleepers:
            if due <= self._now:
                woken.set()
        self._sleepers = [(due, woken) for due, woken in self._sleepers if due > self._now]


_conforms: type[Clock] = FakeClock
