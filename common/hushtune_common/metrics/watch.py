"""What can be asked of a running process while it works? Readings of its state, and word of every call."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

from hushtune_common.metrics.table import METRICS, READINGS

Reading = Callable[[], float | Mapping[str, float] | None]
"""Returns a number, or one for each value of the metric's label; none while there is nothing to tell.

It is called from another thread than the process's own, so it reads and copies, and changes nothing.
"""

_NAMES = frozenset(metric.name for metric in READINGS)


class Calls(Protocol):
    """Hears of every call between processes.

    Law: whatever it is told, it raises nothing, so that no call fails because it is counted.
    """

    def began(self, *, side: str, service: str, method: str) -> None:
        """Note that a call began; ``side`` is server or client."""
        ...

    def ended(self, *, side: str, service: str, method: str, status: str, seconds: float) -> None:
        """Note its end, with the name of the gRPC status."""
        ...


class Watch:
    """What a process offers to whoever watches it; one that nobody watches costs nothing."""

    def __init__(self, calls: Calls | None = None) -> None:
        """Tell ``calls`` of every call; without one, nobody is told."""
        self.calls = calls
        self._readings: dict[str, Reading] = {}

    def offer(self, name: str, read: Reading) -> None:
        """Have the metric ``name`` answered by ``read`` from now on; `LookupError` for one that is not in the table."""
        if name not in _NAMES:
            raise LookupError(f"{name} is no reading; hushtune_common/metrics/table.py lists them")
        self._readings[name] = read

    def offer_state(self, name: str, read: Callable[[], str]) -> None:
        """Have the metric ``name`` answered by 1 for the value of its label that ``read`` returns, and 0 for the others."""
        values = sorted(METRICS[name].labels[0].allowed)

        def one_hot() -> Mapping[str, float]:
            now = read()
            return {value: float(value == now) for value in values}

        self.offer(name, one_hot)

    def offer_journal(self, path: Path) -> None:
        """Offer the size of a journal, with what SQLite has beside it."""
        self.offer("hushtune_journal_bytes", lambda: sum(_size(path.with_name(path.name + end)) for end in ("", "-wal")))

    def offer_store(self, held: Callable[[], Mapping[str, float]], *, quota_bytes: int) -> None:
        """Offer what a store of blobs holds, and may hold."""
        self.offer("hushtune_stored_bytes", held)
        self.offer("hushtune_stored_bytes_max", lambda: float(quota_bytes))

    def readings(self) -> dict[str, float | Mapping[str, float]]:
        """Return what can be read now. What cannot, because it is just changing or not there yet, is left out."""
        found: dict[str, float | Mapping[str, float]] = {}
        for name, read in list(self._readings.items()):
            try:
                value = read()
            except Exception:  # noqa: S112 - a state that is changed while it is looked at is looked at again next time
                continue
            if value is not None:
                found[name] = value
        return found


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
