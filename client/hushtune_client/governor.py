"""How fast a device may train: the assigned clock, kept by the processor itself or by pauses."""

import logging
import os
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from hushtune_common.clock import Clock
from hushtune_common.errors import ConfigError
from hushtune_common.logs import log_event
from hushtune_common.model.governor import Governor, Unpaced

_logger = logging.getLogger(__name__)

SYSFS = Path("/sys/devices/system/cpu")
"""Where Linux keeps the frequency settings of its cores (kernel documentation, admin-guide/pm/cpufreq)."""
_AS_GOOD_AS_ALL = 0.995
"""Share left to pauses above which they are rounding and not worth a word."""
Kind = Literal["auto", "cpufreq", "pacing"]


def own_cores() -> list[int]:
    """Return the numbers of the cores that this process may use: all of them where the system does not say, as on macOS."""
    allowed = getattr(os, "sched_getaffinity", None)
    return sorted(allowed(0)) if allowed is not None else list(range(os.cpu_count() or 1))


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
        self._threads = threads
        self._share = clock_share

    def retune(self, clock_share: float) -> None:
        """Keep to another share, in (0, 1], from the step on that is under way."""
        if not 0.0 < clock_share <= 1.0:
            raise ValueError(f"a clock share in (0, 1], got {clock_share}")
        self._share = clock_share

    def step_ended(self) -> None:
        """Wait for the rest of the step's time, then count it."""
        cpu, wall = self._since_began()
        missing = cpu / (self._share * self._threads) - wall
        if missing > 0.0:
            self._clock.pause(missing)
        super().step_ended()


_conforms: type[Governor] = PacingGovernor


@dataclass(frozen=True, slots=True, kw_only=True)
class _Core:
    """The frequency settings of one core, in kHz."""

    folder: Path

    @property
    def limit(self) -> Path:
        return self.folder / "scaling_max_freq"

    @property
    def range(self) -> tuple[int, int]:
        return self._number("cpuinfo_min_freq"), self._number("cpuinfo_max_freq")

    @property
    def steps(self) -> tuple[int, ...]:
        """The frequencies that the core can run at, where it tells them."""
        with suppress(OSError):
            return tuple(sorted(int(word) for word in (self.folder / "scaling_available_frequencies").read_text().split()))
        return ()

    @property
    def mates(self) -> frozenset[int]:
        """The cores that change their frequency together with this one."""
        return frozenset(int(word) for word in (self.folder / "affected_cpus").read_text().split())

    def least_above(self, share: float) -> int:
        """Return the lowest frequency that is no less than ``share`` of the top one."""
        low, high = self.range
        wanted = max(low, min(high, -(-int(share * high * 1000) // 1000)))
        return next((step for step in self.steps if wanted <= step <= high), wanted)

    def _number(self, name: str) -> int:
        return int((self.folder / name).read_text())


@dataclass(slots=True, kw_only=True)
class Throttle:
    """Caps the frequency of this process's cores while training runs, as far as the system lets it; pauses do the rest.

    Laws: no other core's settings are touched; after ``hold`` every setting is what it was before, also after an error. A process
    that is killed outright cannot put anything back. With no ``cores`` nothing is capped and pauses do everything.
    """

    root: Path = SYSFS
    cores: frozenset[int] = frozenset()
    why: str = "pauses were chosen"
    _before: dict[Path, str] = field(default_factory=dict[Path, str])
    _reached: float = 1.0

    @staticmethod
    def choose(kind: Kind, *, cores: Sequence[int], root: Path = SYSFS) -> "Throttle":
        """Return what keeps the clock of a process that runs on ``cores``.

        ``auto`` caps frequencies where that is permitted and meets nobody else: the process is bound to some of the machine's
        cores. ``cpufreq`` insists on it and raises `ConfigError` where it is not permitted.
        """
        if kind == "pacing":
            return Throttle(root=root)
        obstacle = _obstacle(root, frozenset(cores), alone=kind == "auto")
        if obstacle and kind == "cpufreq":
            raise ConfigError("compute.governor", f"'cpufreq' cannot be kept here: {obstacle}; use 'auto' or 'pacing'")
        return Throttle(root=root, cores=frozenset() if obstacle else frozenset(cores), why=obstacle or "permitted")

    @property
    def name(self) -> str:
        """Which governor acts: ``cpufreq``, ``pacing``, or both where the lowest frequency is still too fast."""
        if not self._before:
            return "pacing"
        return "cpufreq" if self._reached >= _AS_GOOD_AS_ALL else "cpufreq+pacing"

    @contextmanager
    def hold(self, share: float) -> Generator[float]:
        """Keep the clock at ``share`` of the top one; yields the share of the capped clock that is left to pauses."""
        try:
            yield self.set(share)
        finally:
            self._put_back()

    def set(self, share: float) -> float:
        """Change the cap and return the share of the capped clock that is left to pauses. Only while held."""
        try:
            self._reached = min(
                (self._cap(_Core(folder=_folder(self.root, n)), share) for n in sorted(self.cores)), default=share
            )
        except (OSError, ValueError) as error:
            log_event(_logger, "governor_refused", level=logging.WARNING, problem=f"the frequency cannot be set: {error}")
            self._put_back()
            self.cores, self.why, self._reached = frozenset(), f"the frequency could not be set: {error}", share
        return self._reached

    def _cap(self, core: _Core, share: float) -> float:
        frequency = core.least_above(share)
        before = core.limit.read_text()
        core.limit.write_text(f"{frequency}\n")
        self._before.setdefault(core.limit, before)
        return min(1.0, share * core.range[1] / frequency)

    def _put_back(self) -> None:
        for path, before in self._before.items():
            try:
                path.write_text(before)
            except OSError as error:
                log_event(_logger, "governor_stuck", level=logging.ERROR, problem=f"{path} keeps its cap: {error}")
        self._before.clear()


def _obstacle(root: Path, cores: frozenset[int], *, alone: bool) -> str:
    """Return why the frequency of exactly these cores cannot be capped, or nothing."""
    machine = len(list(root.glob("cpu[0-9]*")))
    if alone and len(cores) >= machine:
        return "the process is not bound to cores of its own"
    for number in sorted(cores):
        core = _Core(folder=_folder(root, number))
        try:
            low, high = core.range
            shared = core.mates - cores
            with core.limit.open("r+"):
                pass
        except (OSError, ValueError) as error:
            return f"core {number} offers no frequency to set ({error})"
        if shared:
            return f"core {number} changes its frequency together with {', '.join(str(n) for n in sorted(shared))}"
        if not 0 < low <= high:
            return f"core {number} names impossible frequencies, {low} to {high} kHz"
    return "" if cores else "no cores are named"


def _folder(root: Path, number: int) -> Path:
    return root / f"cpu{number}" / "cpufreq"
