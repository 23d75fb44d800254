"""Runs a load: a real coordinator process, processes full of light clients, and the owner's part of the control plane.

What stands in for the air is a pipe: a light client says on its standard output that it would have sent, and the owner settles.
"""

import asyncio
import json
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import tomli_w

from hushtune_common.clock import Clock
from hushtune_common.config import Scenario, to_toml_tree
from hushtune_common.errors import DeadlineExceeded, PeerLost
from hushtune_common.messages import ClientId, Conclusion, DirectiveKind, Role, RunId, Settlement, UpdateKey
from hushtune_common.seeding import SeedTree
from hushtune_common.wire.endpoint import Kit, connect, ready
from hushtune_server import pki
from hushtune_server.owner.gateway import CoordinatorGateway
from hushtune_server.testbed.processes import Child, ChildFailed, address_of, start
from hushtune_server.testbed.rundir import RunDirectory
from hushtune_server.testbed.transport.crowd import Pace, summary

RUN = RunId("load")
_START_S = 120.0
_CLIENTS_PER_PROCESS = 100
_SETTLING_MAX = 64
_LINE_BYTES_MAX = 1 << 26
_SENT, _MEASURED, _JOINED = "update_rehearsed", "rehearsal_measured", "run_joined"
_SETTLED_S = 1.0
"""Time for a stream to be opened after a client has joined."""
_AGAIN_S = 0.1

Json = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadOrder:
    """What to run: a ``scenario`` of `crowd.scenario_of` in ``folder``; ``kill_in`` is the round to kill the coordinator in."""

    scenario: Scenario
    folder: Path
    kill_in: int | None = None


async def noticed_after(scenario: Scenario, *, folder: Path, blows: Mapping[str, int], clock: Clock) -> dict[str, float]:
    """Return by client how many seconds after its blow, a signal, the coordinator took it for dead.

    Every client is a process of its own; the owner never comes, so that no round begins or ends meanwhile.
    """
    stage = _Stage(LoadOrder(scenario=scenario, folder=folder), clock=clock)
    stage.prepare()
    async with stage.processes():
        async with asyncio.timeout(_START_S + 4 * scenario.timing.idle_s):
            return await stage.struck(blows)


async def run_load(order: LoadOrder, *, clock: Clock) -> Json:
    """Play every round of the scenario and return the figures. All processes have stopped when this returns.

    Raises `PeerLost` in the words of a process that failed, `DeadlineExceeded` when the rounds do not end.
    """
    stage = _Stage(order, clock=clock)
    stage.prepare()
    async with stage.processes():
        scenario = order.scenario
        try:
            async with asyncio.timeout(_START_S + scenario.coordinator.rounds * scenario.timing.round_s):
                return await stage.play()
        except ExceptionGroup as group:
            raise _first(group) from group


@dataclass(slots=True)
class _Crowd:
    """One process full of light clients."""

    names: tuple[str, ...]
    process: Process
    measured: Json = field(default_factory=dict[str, Any])


class _Stage:
    def __init__(self, order: LoadOrder, *, clock: Clock) -> None:
        self._order = order
        self._scenario = order.scenario
        self._clock = clock
        self._run = RunDirectory(order.folder)
        self._crowds: list[_Crowd] = []
        self._coordinators: list[Child] = []
        self._owner = _Owner(clock=clock)
        self._empty_bytes = self._peak_bytes = 0
        self._empty_cpu_s = self._cpu_s = 0.0
        self._killed_s: float | None = None
        self._back_s: float | None = None

    def prepare(self) -> None:
        """Write the scenario and a kit for everybody."""
        folder = self._order.folder
        for name in ("logs", "state", "kits"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        self._run.scenario.write_bytes(tomli_w.dumps(to_toml_tree(self._scenario)).encode())
        pki.init(folder / "ca", clock=self._clock)
        for role in (Role.COORDINATOR, Role.OWNER):
            pki.issue(folder / "ca", role=role, name=role.value, out=folder / "kits" / role.value, clock=self._clock)
        for client in self._scenario.clients:
            pki.issue(folder / "ca", role=Role.CLIENT, name=client.id, out=folder / "kits" / client.id, clock=self._clock)

    @asynccontextmanager
    async def processes(self) -> AsyncGenerator[None]:
        """Have everything stop in the end, whatever happens."""
        try:
            yield
        finally:
            for crowd in self._crowds:
                if crowd.process.returncode is None:
                    crowd.process.kill()
                    await crowd.process.wait()
            for child in self._coordinators:
                await child.kill()

    async def struck(self, blows: Mapping[str, int]) -> dict[str, float]:
        """Let every client follow, strike, and watch the coordinator's log."""
        coordinator = await self._coordinate("127.0.0.1:0")
        address = await address_of(coordinator, clock=self._clock, within_s=_START_S, poll_s=0.02)
        for client in self._scenario.clients:
            crowd = await self._rehearse((client.id,), address)
            self._crowds.append(crowd)
            await _until_joined(crowd)
        await self._clock.sleep(_SETTLED_S)
        struck_at: dict[str, float] = {}
        for crowd in (c for c in self._crowds if c.names[0] in blows):
            crowd.process.send_signal(blows[crowd.names[0]])
            struck_at[crowd.names[0]] = self._clock.monotonic()
        found: dict[str, float] = {}
        while found.keys() != blows.keys():
            for event in coordinator.poll():
                if event.get("event") == "client_died":
                    found[event["client"]] = self._clock.monotonic() - struck_at[event["client"]]
            await self._clock.sleep(0.05)
        return found

    async def play(self) -> Json:
        """Run to the end."""
        coordinator = await self._coordinate("127.0.0.1:0")
        address = await address_of(coordinator, clock=self._clock, within_s=_START_S, poll_s=0.02)
        empty = psutil.Process(coordinator.process.pid)
        self._empty_bytes, self._empty_cpu_s = empty.memory_info().rss, sum(empty.cpu_times()[:2])
        kit = Kit.load(self._order.folder / "kits" / Role.OWNER.value)
        channel = connect(address, role=Role.COORDINATOR, kit=kit, timing=self._scenario.timing, clock=self._clock)
        try:
            await ready(channel, address=address, role=Role.COORDINATOR, timing=self._scenario.timing)
            gateway = CoordinatorGateway(channel, self._scenario, clock=self._clock, seeds=SeedTree(self._scenario.seed))
            return await self._with_owner(gateway, address)
        finally:
            await channel.close()

    async def _with_owner(self, gateway: CoordinatorGateway, address: str) -> Json:
        async with asyncio.TaskGroup() as group:
            following = group.create_task(self._owner.follow(gateway))
            names = [c.id for c in self._scenario.clients]
            for first in range(0, len(names), _CLIENTS_PER_PROCESS):
                self._crowds.append(await self._rehearse(tuple(names[first : first + _CLIENTS_PER_PROCESS]), address))
            readers = [group.create_task(self._read(crowd, gateway)) for crowd in self._crowds]
            watching = group.create_task(self._watch(address))
            await asyncio.wait([following, *readers])
            watching.cancel()
        pace = Pace(ended_s=self._owner.ended_s, empty_bytes=self._empty_bytes, peak_bytes=self._peak_bytes, cpu_s=self._cpu_s)
        rounds, measured = self._scenario.coordinator.rounds, [crowd.measured for crowd in self._crowds]
        figures = summary(pace, measured=measured, clients=len(self._scenario.clients), rounds=rounds)
        if self._killed_s is not None and self._back_s is not None:
            # The round that was hit took this much longer than the others did.
            figures["kill_cost_s"] = round(max(pace.lengths_s) - figures["round_median_s"], 3)
            figures["restart_s"] = round(self._back_s - self._killed_s, 3)
        return figures

    async def _coordinate(self, listen: str) -> Child:
        home = ["--kit", str(self._order.folder / "kits" / "coordinator"), "--state", str(self._run.state("coordinator"))]
        arguments = ["coordinator", "serve", str(self._run.scenario), "--run", RUN, "--listen", listen, *home]
        name = f"coordinator-{len(self._coordinators) + 1}"
        child = await start(self._run, name, "hushtune_server", arguments)
        self._coordinators.append(child)
        return child

    async def _rehearse(self, names: tuple[str, ...], address: str) -> _Crowd:
        folder = self._order.folder
        arguments = ["rehearse", str(self._run.scenario), "--clients", ",".join(names), "--kits", str(folder / "kits")]
        arguments += ["--state", str(folder / "state"), "--coordinator", address]
        with (folder / "logs" / f"{names[0]}.stderr").open("ab") as errors:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "hushtune_client", *arguments, stdout=PIPE, stderr=errors, limit=_LINE_BYTES_MAX
            )
        return _Crowd(names=names, process=process)

    async def _read(self, crowd: _Crowd, gateway: CoordinatorGateway) -> None:
        """Take what a crowd says: settle for what it would have sent, keep its last words."""
        stream = crowd.process.stdout
        if stream is None:
            raise RuntimeError("the process was started without a pipe")
        async with asyncio.TaskGroup() as settling:
            async for line in stream:
                if _SENT.encode() in line:
                    event = json.loads(line)
                    await self._owner.room.acquire()
                    settling.create_task(self._owner.settle(gateway, event["client"], event["round_id"]))
                elif _MEASURED.encode() in line:
                    crowd.measured = json.loads(line)
        if await crowd.process.wait() != 0 or not crowd.measured:
            words = (self._order.folder / "logs" / f"{crowd.names[0]}.stderr").read_text(encoding="utf-8").strip()
            raise PeerLost(f"the clients {crowd.names[0]} to {crowd.names[-1]} gave up: {words or 'without a word'}")

    def _measure(self, child: Child) -> None:
        with suppress(psutil.Error):  # it may just have ended, as it does after the last round
            process = psutil.Process(child.process.pid)
            self._peak_bytes = max(self._peak_bytes, process.memory_info().rss)
            self._cpu_s = sum(process.cpu_times()[:2]) - self._empty_cpu_s

    async def _watch(self, address: str) -> None:
        """Look after the coordinator: measure it, kill it when that is asked for, and tell when it fails by itself."""
        while True:
            child = self._coordinators[-1]
            if child.code not in (None, 0):
                raise ChildFailed(child)
            if child.code is None:
                self._measure(child)
            kill_in = self._order.kill_in
            if kill_in is not None and self._killed_s is None and len(self._owner.ended_s) >= kill_in:
                self._killed_s = self._clock.monotonic()
                await child.kill()
                again = await self._coordinate(address)
                await address_of(again, clock=self._clock, within_s=_START_S, poll_s=0.02)
                self._back_s = self._clock.monotonic()
            await self._clock.sleep(0.02)


async def _until_joined(crowd: _Crowd) -> None:
    if crowd.process.stdout is None:
        raise RuntimeError("the process was started without a pipe")
    async for line in crowd.process.stdout:
        if _JOINED.encode() in line:
            return
    raise PeerLost(f"{crowd.names[0]} ended before it had joined")


def _first(group: ExceptionGroup[Exception]) -> Exception:
    """Return the error that the others came of: of tasks that end each other, the one that was not cancelled."""
    error = group.exceptions[0]
    if isinstance(error, ExceptionGroup):
        return _first(error)
    return PeerLost(str(error)) if isinstance(error, ChildFailed) else error


class _Owner:
    """The owner's part of the control plane: it settles, and concludes every round at once."""

    def __init__(self, *, clock: Clock) -> None:
        self.ended_s: list[float] = []
        self.room = asyncio.Semaphore(_SETTLING_MAX)
        self._clock = clock

    async def follow(self, gateway: CoordinatorGateway) -> None:
        """Take part until the last round has closed."""
        run = await gateway.join()
        async for directive in gateway.follow(lambda: "load"):
            if directive.kind is DirectiveKind.CONCLUDE:
                word = Conclusion(run=run, round_id=directive.round_id, last=False, reason="")
                await self._insist(lambda word=word: gateway.conclude(word))
            elif directive.kind is DirectiveKind.ROUND_CLOSED:
                self.ended_s.append(self._clock.monotonic())
                if directive.failed_reason:
                    raise DeadlineExceeded(f"round {directive.round_id} failed: {directive.failed_reason}")
                if directive.last:
                    return

    async def settle(self, gateway: CoordinatorGateway, client: str, round_id: int) -> None:
        """Accept what a client would have sent."""
        try:
            key = UpdateKey(run=RUN, round_id=round_id, client=ClientId(client), attempt=1)
            await self._insist(lambda: gateway.settle(Settlement(key=key, accepted=True)))
        finally:
            self.room.release()

    async def _insist(self, call: Callable[[], Awaitable[None]]) -> None:
        """Repeat a word to a coordinator that is down: saying it twice has no second effect."""
        until_s = self._clock.monotonic() + _START_S
        while True:
            try:
                await call()
            except PeerLost:
                if self._clock.monotonic() > until_s:
                    raise
                await self._clock.sleep(_AGAIN_S)
            else:
                return


def told(figures: Json) -> Sequence[tuple[str, str]]:
    """Return the figures of a load as lines for people: a label and a value."""
    waits, calls, means = figures["wait_assignment_s"], figures["wait_call_s"], figures["wait_means_s"]
    mib = 1 << 20
    lines = [
        ("rounds per second", f"{figures['rounds_per_s']:.2f} with {figures['clients']} clients, {figures['rounds']} rounds"),
        ("a round", f"{figures['round_median_s']:.3f} s (median), {figures['round_max_s']:.3f} s at most"),
        ("coordinator", f"{figures['coordinator_cpu_s_per_round'] * 1e3:.0f} ms of CPU per round"),
        (
            "memory per client",
            f"{figures['coordinator_bytes_per_client'] / mib:.2f} MiB at the coordinator, "
            f"{figures['client_bytes_per_client'] / mib:.2f} MiB at the client",
        ),
        ("report to assignment", f"{waits['median']:.3f} s (median), {waits['p95']:.3f} s (95 %), {waits['max']:.3f} s at most"),
        ("answer to a call", f"{calls['median']:.3f} s (median), {calls['p95']:.3f} s (95 %), {calls['max']:.3f} s at most"),
        (
            "fairness",
            f"{figures['fairness_jain']:.4f} (Jain's index of mean waits, which lie between {means['min']:.3f} "
            f"and {means['max']:.3f} s)",
        ),
    ]
    if "kill_cost_s" in figures:
        lines.append(
            ("coordinator killed", f"{figures['kill_cost_s']:.2f} s lost, {figures['restart_s']:.2f} s of them its start")
        )
    return lines
