"""A process of the testbed: started with its log in a file, followed, measured, stopped by its pid."""

import asyncio
import ctypes
import json
import re
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import psutil

from hushtune_common.clock import Clock
from hushtune_common.errors import ConfigError, DeadlineExceeded, MissingPackage, OperatingFault, QuorumMissed
from hushtune_server.testbed.rundir import RunDirectory

_OF_GRPC = re.compile(r"[IWE]\d{4} \d\d:\d\d:\d\d\.\d{6} ")
"""How a line begins that the gRPC library prints by itself."""


class ChildFailed(Exception):
    """A process of the testbed ended in a way that spoils the run; ``code`` is an exit code for the whole."""

    def __init__(self, child: "Child") -> None:
        """Tell in the process's own last words; one that was killed, or told to stop, had none to say about it."""
        code = child.code or 0
        self.code = code if code > 0 else OperatingFault.exit_code
        super().__init__(f"{child.name}: {_words(child) if code > 0 else _ending(code)}")


def _words(child: "Child") -> str:
    said = child.last_words()
    for prefix in ("hushtune: ", "hushtune-client: "):
        said = said.removeprefix(prefix)
    return said or f"ended with code {child.code} and without a word about it (is the disk full?); see {child.log.path}"


def _ending(code: int) -> str:
    if code == 0:
        return "was told to stop before the run was over"
    try:
        return f"was killed by {signal.Signals(-code).name} (out of memory, or by hand)"
    except ValueError:
        return f"was killed by signal {-code}"


@dataclass(slots=True)
class LogFollower:
    """Reads the complete new lines of a growing JSON lines file."""

    path: Path
    _offset: int = 0

    def fresh(self) -> list[dict[str, Any]]:
        """Return the events written since the last call; a line without its newline waits for the next call."""
        try:
            with self.path.open("rb") as file:
                file.seek(self._offset)
                data = file.read()
        except OSError:
            return []
        whole = data[: data.rfind(b"\n") + 1]
        self._offset += len(whole)
        return [e for line in whole.splitlines() if (e := _event(line)) is not None]


def _event(line: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(line)
    except ValueError:
        return None
    return cast(dict[str, Any], value) if isinstance(value, dict) else None


@dataclass(slots=True)
class Child:
    """A running process of the testbed."""

    name: str
    process: asyncio.subprocess.Process
    log: LogFollower
    errors: Path
    peak_rss_bytes: dict[str, int] = field(default_factory=dict[str, int])
    address: str = ""
    metrics: str = ""
    events_seen: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])

    @property
    def code(self) -> int | None:
        """The exit code, or ``None`` while it runs."""
        return self.process.returncode

    def poll(self) -> list[dict[str, Any]]:
        """Return new log events, remembering where the process serves, and where its metrics are."""
        fresh = self.log.fresh()
        for event in fresh:
            if event.get("event") == "serving_started":
                self.address = str(event.get("address", ""))
            elif event.get("event") == "metrics_served":
                self.metrics = str(event.get("address", ""))
        return fresh

    def measure(self) -> None:
        """Update the peak resident memory of the process and of each of its children."""
        try:
            root = psutil.Process(self.process.pid)
            family = [root, *root.children(recursive=True)]
        except psutil.Error:
            return
        for index, member in enumerate(family):
            label = self.name if index == 0 else f"{self.name}/trainer"
            try:
                rss = member.memory_info().rss
            except psutil.Error:
                continue
            self.peak_rss_bytes[label] = max(self.peak_rss_bytes.get(label, 0), rss)

    def last_words(self) -> str:
        """Return the last line the process printed beside its log, for an error message."""
        try:
            lines = [line for line in self.errors.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
            lines = [line for line in lines if not _OF_GRPC.match(line)] or lines
        except OSError:
            return ""
        return lines[-1] if lines else ""

    def terminate(self) -> None:
        """Ask the process to stop."""
        if self.code is None:
            self.process.terminate()

    async def stopped(self, *, within_s: float) -> bool:
        """Wait for the end; ``False`` when it did not come in time."""
        try:
            await asyncio.wait_for(self.process.wait(), within_s)
        except TimeoutError:
            return False
        return True

    async def kill(self) -> None:
        """End the process and its children for good."""
        try:
            family = psutil.Process(self.process.pid).children(recursive=True)
        except psutil.Error:
            family = []
        if self.code is None:
            self.process.kill()
            await self.process.wait()
        for member in family:
            try:
                member.kill()
            except psutil.Error:
                continue


def failed_among(*, lasting: Sequence[Child], essential: Sequence[Child], others: Sequence[Child]) -> Child | None:
    """Return a process whose end spoils the run, or `None` while there is none.

    The ``lasting`` must not end at all, the ``essential`` only with their work done or the quorum missed. ``others`` may die,
    rounds survive that; but a setting that is wrong for one of them is the user's to put right.
    """
    ended = [c for c in lasting if c.code is not None]
    ended += [c for c in essential if c.code not in (None, 0, QuorumMissed.exit_code)]
    ended += [c for c in others if c.code in (ConfigError.exit_code, MissingPackage.exit_code)]
    return ended[0] if ended else None


async def start(
    run: RunDirectory, name: str, module: str, arguments: Sequence[str], *, tied: bool = True, within: Sequence[str] = ()
) -> Child:
    """Start ``python -m module arguments`` with its log in the run directory; ``within`` are words to begin the command with.

    The process gets a session of its own, so Ctrl-C reaches the testbed only; on Linux it is told when the testbed dies, unless
    it is not to be ``tied``: a caller that speaks gRPC must not run code between fork and exec.
    """
    with run.log(name).open("ab") as log, run.errors(name).open("ab") as errors:
        process = await asyncio.create_subprocess_exec(
            *within,
            sys.executable,
            "-m",
            module,
            *arguments,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=log,
            stderr=errors,
            start_new_session=True,
            preexec_fn=_die_with_parent if tied and sys.platform == "linux" else None,
        )
    return Child(name=name, process=process, log=LogFollower(run.log(name)), errors=run.errors(name))


def _die_with_parent() -> None:
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM)


async def address_of(child: Child, *, clock: Clock, within_s: float, poll_s: float = 0.05) -> str:
    """Wait until ``child`` serves, then return its address; `ChildFailed` or `DeadlineExceeded` when it never does."""
    limit = clock.monotonic() + within_s
    while not child.address:
        child.events_seen.extend(child.poll())
        if child.address:
            break
        if child.code is not None:
            raise ChildFailed(child)
        if clock.monotonic() > limit:
            raise DeadlineExceeded(f"{child.name} did not serve within {within_s:.0f} s; see {child.log.path}")
        await clock.sleep(poll_s)
    return child.address


async def stop_all(children: Sequence[Child], *, grace_s: float = 6.0) -> list[str]:
    """Terminate every child, kill those that do not end within ``grace_s``; return the names that had to be killed."""
    for child in children:
        child.terminate()
    ended = await asyncio.gather(*(child.stopped(within_s=grace_s) for child in children))
    stubborn = [child for child, ok in zip(children, ended, strict=True) if not ok]
    for child in stubborn:
        await child.kill()
    return [child.name for child in stubborn]
