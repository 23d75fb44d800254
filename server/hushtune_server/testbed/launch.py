"""Runs a scenario: every role as its own process, supervised to the end, then the referee and the report."""

import asyncio
import contextlib
import importlib.metadata
import logging
import platform
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.live import Live

from hushtune_common.clock import Clock
from hushtune_common.config import Scenario
from hushtune_common.errors import DeadlineExceeded, HushtuneError, QuorumMissed
from hushtune_common.messages import Role
from hushtune_common.store.disk import disk_fault
from hushtune_server import pki
from hushtune_server.testbed import report, rundir
from hushtune_server.testbed.metrics.targets import file_sd, write_targets
from hushtune_server.testbed.processes import Child, ChildFailed, address_of, failed_among, start, stop_all
from hushtune_server.testbed.rundir import RunDirectory
from hushtune_server.testbed.view import View

SERVER = "hushtune_server"
CLIENT = "hushtune_client"
ANY_PORT = "127.0.0.1:0"
_ROLES = ("coordinator", "air", "owner", "eavesdropper")
_TICK_S = 0.2
_SETUP_S = 900.0
_REFEREE_S = 3600.0
_TAP_S = 60.0

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How to run an experiment."""

    runs: Path
    cache: Path
    live: bool = True
    bound: bool = False
    keep_state: bool = False
    metrics: bool = False
    traces: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How an experiment ended: its directory, exit code and, when something failed, why."""

    run: RunDirectory
    code: int
    problem: str = ""


class _Interrupted(Exception):
    """The person at the keyboard wants to stop."""


@dataclass(slots=True)
class _Stage:
    """The processes of one experiment and what is shown of them."""

    run: RunDirectory
    clock: Clock
    view: View
    started_s: float
    console: Console
    live: Live | None
    metrics: bool = False
    traces: str | None = None
    children: list[Child] = field(default_factory=list[Child])
    stop: asyncio.Event = field(default_factory=asyncio.Event)
    roles: Mapping[str, str] = field(default_factory=dict[str, str])
    _reported: set[str] = field(default_factory=set[str])
    _targets: list[dict[str, object]] = field(default_factory=list[dict[str, object]])

    async def add(self, name: str, module: str, arguments: Sequence[str]) -> Child:
        watched = [*(["--metrics", ANY_PORT] if self.metrics else []), *(["--traces", self.traces] if self.traces else [])]
        watched = watched if name in self.roles else []
        child = await start(self.run, name, module, [*arguments, *watched])
        self.children.append(child)
        pids = self.run.facts().get("pids", {})
        self.run.update(pids={**pids, name: child.process.pid})
        self.tick()
        return child

    async def once(self, name: str, module: str, arguments: Sequence[str], *, within_s: float) -> None:
        """Run a process that only prepares something to its end, and have done with it."""
        child = await self.add(name, module, arguments)
        await self.until_ended([child], within_s=within_s)
        self.children.remove(child)
        self.run.update(pids={other: pid for other, pid in self.run.facts().get("pids", {}).items() if other != name})

    async def address(self, child: Child) -> str:
        """Wait until ``child`` serves and return where; `ChildFailed` when it, or one that was started before, ends instead."""
        waiting = asyncio.ensure_future(address_of(child, clock=self.clock, within_s=_SETUP_S))
        try:
            while not waiting.done():
                await asyncio.wait([waiting], timeout=_TICK_S)
                self._check_stop()
                self.tick(except_for=child)
                self._show(child, _take(child))
                failed = failed_among(lasting=[c for c in self.children if c is not child], essential=(), others=())
                if failed is not None:
                    raise ChildFailed(failed)
            return waiting.result()
        finally:
            waiting.cancel()

    def tick(self, *, except_for: Child | None = None) -> None:
        for child in self.children:
            if child is not except_for:
                self._show(child, [*_take(child), *child.poll()])
            child.measure()
            if child.code is not None and child.name not in self._reported:
                self._reported.add(child.name)
                self._show(child, [{"event": "process_ended", "code": child.code}])
        self._tell_targets()
        if self.live is not None:
            self.live.update(self.view.render(elapsed_s=self.clock.monotonic() - self.started_s))

    def _tell_targets(self) -> None:
        """Write down where the processes that run serve their metrics, whenever that has changed."""
        if not self.metrics:
            return
        running = {c.name: c.metrics for c in self.children if c.metrics and c.code is None}
        targets = file_sd(running, roles=self.roles)
        if targets != self._targets:
            self._targets = targets
            write_targets(self.run.metrics, targets)

    async def until_ended(
        self,
        watched: Sequence[Child],
        *,
        within_s: float,
        lasting: Sequence[Child] = (),
        others: Sequence[Child] = (),
    ) -> None:
        """Wait for all of ``watched``; `ChildFailed` when one of them or of the rest spoils the run (see `failed_among`).

        `DeadlineExceeded` after ``within_s``.
        """
        limit = self.clock.monotonic() + within_s
        while True:
            self._check_stop()
            # Looked at after the last of them has ended, too: what ends last may be what failed.
            failed = failed_among(lasting=lasting, essential=watched, others=others)
            if failed is not None:
                raise ChildFailed(failed)
            running = [c.name for c in watched if c.code is None]
            if not running:
                break
            if self.clock.monotonic() > limit:
                raise DeadlineExceeded(f"{', '.join(running)}: not done after {within_s:.0f} s")
            await self.clock.sleep(_TICK_S)
            self.tick()

    async def wait_for(self, come_true: Callable[[], bool], *, within_s: float) -> None:
        """Wait until ``come_true`` holds, but no longer than ``within_s``."""
        limit = self.clock.monotonic() + within_s
        while not come_true() and self.clock.monotonic() < limit:
            self._check_stop()
            await self.clock.sleep(_TICK_S)
            self.tick()

    def begin_targets(self) -> None:
        """Write the list of metrics before anything runs, so that who watches it finds it."""
        if self.metrics:
            write_targets(self.run.metrics, self._targets)

    def _show(self, child: Child, events: Sequence[Mapping[str, object]]) -> None:
        """Fold new events into the view; where there is no live view, what is worth telling is printed as it comes."""
        told = self.view.apply(child.name, events)
        if self.live is None:
            elapsed_s = self.clock.monotonic() - self.started_s
            for line in told:
                self.console.print(f"{elapsed_s:5.0f} s  {child.name:<13} {line}", markup=False, highlight=False, soft_wrap=True)

    def _check_stop(self) -> None:
        if self.stop.is_set():
            raise _Interrupted


def _take(child: Child) -> list[dict[str, object]]:
    taken, child.events_seen[:] = list(child.events_seen), []
    return taken


async def run_experiment(scenario: Scenario, *, options: Options, clock: Clock, console: Console) -> Outcome:
    """Run ``scenario`` and return how it ended. All children have stopped when this returns, whatever happened."""
    run = rundir.create(options.runs, scenario, now=clock.wall())
    started_s = clock.monotonic()
    run.update(
        id=run.id,
        status=rundir.RUNNING,
        supervisor=rundir.supervisor(),
        started=clock.wall().isoformat(timespec="seconds"),
        seed=scenario.seed,
        scenario=scenario.name,
        scenario_digest=scenario.digest.hex,
        versions=versions(),
        command=sys.argv[1:],
    )
    view = View(f"{run.id}  fidelity: {scenario.air.fidelity}")
    screen = Live(console=console, refresh_per_second=4, transient=False) if options.live else None
    stage = _Stage(
        run=run,
        clock=clock,
        view=view,
        started_s=started_s,
        console=console,
        live=screen,
        metrics=options.metrics,
        traces=options.traces,
    )
    stage.roles = {**{role: role for role in _ROLES}, **{c.id: "client" for c in scenario.clients}}
    stage.begin_targets()
    with contextlib.ExitStack() as stack:
        stack.enter_context(_signals(stage.stop))
        if screen is not None:
            stack.enter_context(screen)
        try:
            status, code, problem = await _supervised(stage, scenario, options)
        finally:
            if not options.keep_state:
                run.forget_secrets()
    wall_s = clock.monotonic() - started_s
    peaks = {label: rss for child in stage.children for label, rss in child.peak_rss_bytes.items()}
    run.update(status=status, wall_s=round(wall_s, 1), peak_rss_bytes=peaks, problem=problem)
    report.write(run, scenario)
    if not options.keep_state:
        run.prune_blobs()
    return Outcome(run=run, code=code, problem=problem)


async def _supervised(stage: _Stage, scenario: Scenario, options: Options) -> tuple[str, int, str]:
    try:
        await _play(stage, scenario, options)
    except _Interrupted:
        return rundir.INTERRUPTED, 130, "stopped from the keyboard"
    except ChildFailed as failed:
        return rundir.FAILED, failed.code, str(failed)
    except HushtuneError as error:
        return rundir.FAILED, error.exit_code, str(error)
    except OSError as error:
        fault = disk_fault(error)
        if fault is None:
            raise
        return rundir.FAILED, fault.exit_code, str(fault)
    finally:
        await stop_all(stage.children)
        stage.tick()
    return rundir.FINISHED, 0, ""


async def _play(stage: _Stage, scenario: Scenario, options: Options) -> None:
    run = stage.run
    names = [*_ROLES, *(c.id for c in scenario.clients)]
    _issue_kits(run, scenario, clock=stage.clock)
    home = {name: ["--kit", str(run.kit(name)), "--state", str(run.state(name))] for name in names}
    full = str(run.scenario)
    if scenario.air.fidelity != "abstract":
        await stage.once("prepare", SERVER, ["link", "prepare"], within_s=_SETUP_S)
    coordinator = await stage.add(
        "coordinator", SERVER, ["coordinator", "serve", full, "--run", run.id, "--listen", ANY_PORT, *home["coordinator"]]
    )
    air = await stage.add("air", SERVER, ["air", "serve", full, "--listen", ANY_PORT, *home["air"]])
    at_coordinator = ["--coordinator", await stage.address(coordinator)]
    at_air = ["--air", await stage.address(air)]
    tap = await stage.add(
        "eavesdropper", SERVER, ["eavesdropper", "listen", str(run.scenario_for_tap), *at_air, *home["eavesdropper"]]
    )
    owner = await stage.add(
        "owner",
        SERVER,
        ["owner", "serve", full, "--listen", ANY_PORT, "--cache", str(options.cache), *at_coordinator, *at_air, *home["owner"]],
    )
    at_owner = ["--owner", await stage.address(owner)]
    clients = [
        await stage.add(c.id, CLIENT, ["run", full, "--client", c.id, *at_owner, *at_coordinator, *at_air, *home[c.id]])
        for c in scenario.clients
    ]
    rounds_s = scenario.coordinator.rounds * scenario.timing.round_s + _SETUP_S
    await stage.until_ended([coordinator, owner], lasting=[air, tap], others=clients, within_s=rounds_s)
    await stage.wait_for(lambda: all(c.code is not None for c in clients), within_s=10.0)
    # The tap decodes what nothing corrects, to the last iteration; if it is not done by then, the report says so.
    await stage.wait_for(lambda: tap.code is not None or report.tap_is_done(run), within_s=_TAP_S)
    await stop_all([tap, air])
    if coordinator.code != 0:
        reason = report.failure_of(run)
        raise QuorumMissed(reason) if reason else ChildFailed(coordinator)
    flags = ["--bound"] if options.bound else []
    referee = await stage.add("referee", SERVER, ["testbed", "referee", str(run.path), "--cache", str(options.cache), *flags])
    await stage.until_ended([referee], within_s=_REFEREE_S)


def _issue_kits(run: RunDirectory, scenario: Scenario, *, clock: Clock) -> None:
    authority = run.path / "pki"
    pki.init(authority, clock=clock)
    for role in (Role.OWNER, Role.COORDINATOR, Role.AIR, Role.EAVESDROPPER):
        pki.issue(authority, role=role, name=role.value, out=run.kit(role.value), clock=clock)
    for client in scenario.clients:
        pki.issue(authority, role=Role.CLIENT, name=client.id, out=run.kit(client.id), clock=clock)


@contextlib.contextmanager
def _signals(stop: asyncio.Event):
    """Turn SIGINT and SIGTERM into an orderly stop; a second one changes nothing."""
    loop = asyncio.get_running_loop()
    for kind in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(kind, stop.set)
    try:
        yield
    finally:
        for kind in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(kind)


def versions() -> dict[str, str]:
    """Return the versions that a result depends on, the source revision included when there is one."""
    found = {"python": platform.python_version(), "machine": platform.machine()}
    for package in (
        "hushtune-server",
        "torch",
        "transformers",
        "numpy",
        "grpcio",
        "protobuf",
        "cryptography",
        "zstandard",
        "numba",
    ):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        source = Path(__file__).resolve().parent
        found["revision"] = subprocess.run(  # noqa: S603 - a fixed command
            ["git", "-C", str(source), "describe", "--always", "--dirty"],  # noqa: S607 - git from the user's path
            capture_output=True,
            text=True,
            check=True,
            timeout=5,
        ).stdout.strip()
    return found
