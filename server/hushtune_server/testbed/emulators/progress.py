"""How far is the comparison? One line on standard error for each settled cell, and a moving one inside a cell."""

import sys
from collections.abc import Mapping
from statistics import fmean
from typing import TextIO

from hushtune_common.clock import Clock
from hushtune_server.testbed.emulators.cells import Done

_TELL_EVERY_S = 1.0


class Ticker:
    """Counts cells, and says how long the rest may take: each as long as those of its kind that were computed now."""

    def __init__(self, *, expected: Mapping[str, int], clock: Clock, out: TextIO = sys.stderr) -> None:
        """Expect so many cells of each kind."""
        self._left, self._total = dict(expected), sum(expected.values())
        self._clock, self._out = clock, out
        self._began = clock.monotonic()
        self._told = self._began
        self._settled = 0
        self._took: dict[str, list[float]] = {}
        self._moving = out.isatty()

    def settled(self, done: Done) -> None:
        """Print one line for a cell."""
        kind = done.cell.kind
        self._settled += 1
        self._left[kind] = max(0, self._left.get(kind, 0) - 1)
        if not done.reused:
            self._took.setdefault(kind, []).append(done.wall_s)
        spent = _span(self._clock.monotonic() - self._began)
        how = "known" if done.reused else f"{done.wall_s:.0f} s"
        self._say(f"[{self._settled}/{self._total}] {done.cell.title}: {_outcome(done)} ({how}; {spent} so far{self._rest()})")

    def _rest(self) -> str:
        """Say how long the cells that are left may take; nothing while some kind was never seen."""
        left = {kind: count for kind, count in self._left.items() if count}
        if not left or any(kind not in self._took for kind in left):
            return ""
        return f", about {_span(sum(count * fmean(self._took[kind]) for kind, count in left.items()))} left"

    def phase(self, text: str) -> None:
        """Print what is being done inside a cell."""
        self._say(text)

    def step(self, done: int, total: int) -> None:
        """Show steps done inside a cell, on a terminal."""
        now = self._clock.monotonic()
        if self._moving and (done == total or now - self._told >= _TELL_EVERY_S):
            self._told = now
            print(f"\r\x1b[K{done} of {total} steps", end="", file=self._out, flush=True)

    def _say(self, text: str) -> None:
        print(("\r\x1b[K" if self._moving else "") + text, file=self._out, flush=True)


def _outcome(done: Done) -> str:
    result = done.result
    if "failed" in result:
        return f"failed: {result['failed']}"
    if "losses" in result:
        return ", ".join(f"{name} {sum(losses) / len(losses):.4f}" for name, losses in result["losses"].items())
    return f"{result['bytes'] / 1e6:.1f} MB" if "bytes" in result else "done"


def _span(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{minutes} min {rest:02d} s"
