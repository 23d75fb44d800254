"""How are the processes of a run started, reached, hurt and watched? Every way between two of them leads through a proxy."""

import asyncio
import signal
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import psutil

from hushtune_common.clock import Clock
from hushtune_common.config import Scenario
from hushtune_common.errors import DeadlineExceeded
from hushtune_common.messages import Role
from hushtune_common.seeding import SeedTree
from hushtune_common.units import Second
from hushtune_common.wire.endpoint import Kit
from hushtune_server import pki
from hushtune_server.testbed import rundir
from hushtune_server.testbed.chaos.proxy import FaultProxy, Way
from hushtune_server.testbed.chaos.relay import Mischief, OpenRelay, open_relay
from hushtune_server.testbed.processes import Child, LogFollower, address_of, start, stop_all
from hushtune_server.testbed.rundir import RunDirectory

RUN = "chaos"
SERVERS = ("coordinator", "air", "owner")
_MEMBER = "hushtune_server.testbed.chaos.member"
_TICK_S = 0.01
_START_S = 120.0
_STOP_S = 15.0
Event = dict[str, Any]
Tell = Callable[[str], None]
"""Where progress is told, line by line."""


@dataclass(slots=True)
class Log:
    """What one process has said over all of its lives, and when it was read here."""

    follower: LogFollower
    clock: Clock
    events: list[Event] = field(default_factory=list[Event])

    def read(self) -> None:
        """Take in what is new; ``heard_s`` is when, on this process's clock."""
        now_s = self.clock.monotonic()
        self.events.extend({**event, "heard_s": now_s} for event in self.follower.fresh())

    def find(self, event: str, **fields: object) -> list[Event]:
        """Return the events of this name with these fields, oldest first."""
        self.read()
        return [e for e in self.events if e.get("event") == event and fields.items() <= e.items()]


@dataclass(frozen=True, slots=True)
class Shifted:
    """A clock whose date is off by ``by_s`` seconds; durations are right."""

    clock: Clock
    by_s: float

    def monotonic(self) -> Second:
        """Return the true monotonic clock."""
        return self.clock.monotonic()

    def wall(self) -> datetime:
        """Return a date that is off."""
        return self.clock.wall() + timedelta(seconds=self.by_s)

    async def sleep(self, seconds: float) -> None:
        """Wait on the event loop."""
        await self.clock.sleep(seconds)

    def pause(self, seconds: float) -> None:
        """Block this thread."""
        self.clock.pause(seconds)


_conforms: type[Clock] = Shifted


class Stage:
    """One run of the small scenario, with a proxy on every way between two processes.

    Nothing outlives `opened`: processes are stopped by their ids, proxies closed. Logs of several lives are one file.
    ``reference`` has the round records of the same run without any fault, where one was played before.
    """

    def __init__(self, run: RunDirectory, file: Path, scenario: Scenario, *, clock: Clock, tell: Tell) -> None:
        """Use `opened`."""
        self.run = run
        self.file = file
        self.scenario = scenario
        self.clock = clock
        self.tell = tell
        self.reference: Mapping[int, Event] = {}
        self.children: dict[str, Child] = {}
        self.proxies: dict[tuple[str, str], FaultProxy] = {}
        self.relays: dict[tuple[str, str], OpenRelay] = {}
        self._ways: dict[tuple[str, str], str] = {}
        self._side_ways: list[FaultProxy] = []
        self._logs: dict[str, Log] = {}
        self.seeds = SeedTree(scenario.seed).child("chaos")
        self._authority = run.path / "pki"
        self._all: list[Child] = []

    @property
    def clients(self) -> tuple[str, ...]:
        """The names of the clients."""
        return tuple(c.id for c in self.scenario.clients)

    # --- before the run -----------------------------------------------------------------------------------------------

    async def prepare(self, *, ahead_s: float = 0.0) -> None:
        """Issue kits and open the proxies of all ways; nothing runs yet.

        The clock of whoever vouches for the servers is ``ahead_s`` ahead of ours.
        """
        issuing = Shifted(self.clock, by_s=ahead_s)
        pki.init(self._authority, clock=issuing)
        for role in (Role.COORDINATOR, Role.AIR, Role.OWNER, Role.EAVESDROPPER):
            self.issue(role, role.value, clock=issuing)
        for name in self.clients:
            self.issue(Role.CLIENT, name, clock=self.clock)
        ways = [(who, server) for who in self.clients for server in SERVERS]
        for who, server in [*ways, ("owner", "coordinator"), ("owner", "air"), ("eavesdropper", "air")]:
            proxy = FaultProxy(clock=self.clock, seeds=self.seeds.child(who, server))
            self._ways[who, server] = await proxy.open()
            self.proxies[who, server] = proxy

    def issue(
        self, role: Role, name: str, *, clock: Clock, authority: Path | None = None, folder: str = "", days: int = pki.LEAF_DAYS
    ) -> Path:
        """Issue a kit to ``folder`` (its name's by default) and return it."""
        out = self.run.kit(folder or name)
        pki.issue(authority or self._authority, role=role, name=name, out=out, clock=clock, days=days)
        return out

    async def relay(self, who: str, server: str) -> Mischief:
        """Put a relay beneath TLS behind the proxy of a way, and return what says what it does. Before ``who`` starts."""
        relay = await open_relay(
            role=Role(server),
            server=Kit.load(self.run.kit(server)),
            caller=Kit.load(self.run.kit(who)),
            timing=self.scenario.timing,
            clock=self.clock,
        )
        self.relays[who, server] = relay
        self.proxies[who, server].target = relay.address
        if server in self.children and self.children[server].address:
            await relay.point_at(self.children[server].address)
        return relay.mischief

    def way(self, who: str, server: str) -> str:
        """Return the address at which ``who`` finds a server: its proxy's."""
        return self._ways[who, server]

    def proxy(self, who: str, server: str) -> FaultProxy:
        """Return the proxy on the way of ``who`` to ``server``."""
        return self.proxies[who, server]

    async def side_way(self, server: str, way: Way, *, rate_bps: float) -> tuple[FaultProxy, str]:
        """Open another way to a server that serves, slow in one direction, for the suite itself; return its proxy and address."""
        number = len(self._side_ways)
        proxy = FaultProxy(clock=self.clock, seeds=self.seeds.child("side", str(number)))
        proxy.target, proxy.weather[way].rate_bps = self.children[server].address, rate_bps
        self._side_ways.append(proxy)
        return proxy, await proxy.open()

    # --- processes ----------------------------------------------------------------------------------------------------

    async def serve(self, name: str) -> None:
        """Start a server, or start it again, and lead every way to it once it serves."""
        child = await self.start_server(name)
        await self.lead_to(name, await address_of(child, clock=self.clock, within_s=_START_S, poll_s=_TICK_S))

    async def start_server(self, name: str, *overrides: str, called: str = "", kit: Path | None = None) -> Child:
        """Start a server's process, ``called`` otherwise in the logs if wanted, without waiting for it to serve."""
        at = [word for s in SERVERS if (name, s) in self._ways for word in (f"--{s}", self._ways[name, s])]
        home = self._home(name, kit=kit)
        arguments = [name, "serve", str(self.file), *at, *home, "--listen", "127.0.0.1:0", *_set(overrides)]
        if name == "coordinator":
            arguments += ["--run", RUN]
        return await self._start(called or name, "hushtune_server", arguments)

    async def lead_to(self, server: str, address: str) -> None:
        """Let every way to ``server`` end at ``address``."""
        for way, proxy in self.proxies.items():
            if way[1] == server and way in self.relays:
                await self.relays[way].point_at(address)
            elif way[1] == server:
                proxy.target = address

    async def take_part(
        self, name: str, *overrides: str, called: str = "", kit: Path | None = None, ahead_s: float = 0.0
    ) -> Child:
        """Start a client, or start it again; ``called`` otherwise, it has a state of its own; ``ahead_s`` is its date."""
        at = [word for s in SERVERS for word in (f"--{s}", self._ways[name, s])]
        home = self._home(called or name, kit=kit or self.run.kit(name))
        arguments = ["run", str(self.file), "--client", name, *at, *home, *_set(overrides)]
        return await self._start(called or name, "hushtune_client", arguments, ahead_s=ahead_s)

    async def eavesdrop(self) -> None:
        """Start the eavesdropper."""
        at_air = ["--air", self._ways["eavesdropper", "air"]]
        home = self._home("eavesdropper")
        await self._start(
            "eavesdropper", "hushtune_server", ["eavesdropper", "listen", str(self.run.scenario_for_tap), *at_air, *home]
        )

    async def examine(self, name: str, *, ahead_s: float) -> str:
        """Let a client's doctor look at its kit and its ways, on a machine whose date is off, and return what it says."""
        ways = ",".join(f"{server}={self._ways[name, server]}" for server in SERVERS)
        words = ["doctor", str(self.run.kit(name)), "--scenario", str(self.file), "--addresses", ways, "--json"]
        called = f"{name}-doctor"
        await self._start(called, "hushtune_client", words, ahead_s=ahead_s, logs=False)
        await self.ended(called, within_s=_START_S)
        return self.run.log(called).read_text(encoding="utf-8", errors="replace")

    async def kill(self, name: str) -> float:
        """End a process and its children at once, as a machine that loses its power does; return when."""
        await self.children[name].kill()
        return self.clock.monotonic()

    async def stop(self, name: str) -> None:
        """Ask a process to end, and wait until it has."""
        await stop_all([self.children[name]], grace_s=_STOP_S)

    def freeze(self, name: str) -> float:
        """Stop a process and its children with SIGSTOP; return when."""
        for member in _family(self.children[name]):
            member.send_signal(signal.SIGSTOP)
        return self.clock.monotonic()

    def thaw(self, name: str) -> float:
        """Let a frozen process go on; return when."""
        for member in _family(self.children[name]):
            member.send_signal(signal.SIGCONT)
        return self.clock.monotonic()

    async def ended(self, *names: str, within_s: float = 180.0) -> dict[str, int | None]:
        """Wait until the processes have ended, and return their exit codes; `DeadlineExceeded` names those that have not."""
        await self.until(lambda: all(self.children[n].code is not None for n in names), within_s=within_s, what=f"end of {names}")
        return {name: self.children[name].code for name in names}

    async def close(self) -> None:
        """Stop everything that was started here."""
        for child in self._all:
            if child.code is None:
                for member in _family(child):
                    with suppress(psutil.Error):
                        member.send_signal(signal.SIGCONT)
        await stop_all([c for c in self._all if c.code is None], grace_s=_STOP_S)
        for relay in self.relays.values():
            await relay.close()
        for proxy in (*self.proxies.values(), *self._side_ways):
            await proxy.close()

    async def _start(self, name: str, module: str, arguments: Sequence[str], *, ahead_s: float = 0.0, logs: bool = True) -> Child:
        # A later life writes on in the same log, so where it serves is read from its own events only.
        written = self.run.log(name).stat().st_size if self.run.log(name).exists() else 0
        words = [str(ahead_s), module, *arguments, *(["--json-logs"] if logs else [])]
        child = await start(self.run, name, _MEMBER, words, tied=False)
        child.log = LogFollower(self.run.log(name), written)
        self.children[name] = child
        self._all.append(child)
        return child

    def _home(self, name: str, *, kit: Path | None = None) -> list[str]:
        return ["--kit", str(kit or self.run.kit(name)), "--state", str(self.run.state(name))]

    # --- what is seen -------------------------------------------------------------------------------------------------

    def log(self, name: str) -> Log:
        """Return what a process has said."""
        return self._logs.setdefault(name, Log(LogFollower(self.run.log(name)), self.clock))

    async def heard(self, name: str, event: str, *, count: int = 1, within_s: float = 120.0, **fields: object) -> Event:
        """Wait until a process has said ``event`` with these ``fields`` for the ``count``-th time, and return it."""
        log = self.log(name)
        about = f"{name} to say {event} {fields or ''}"
        await self.until(lambda: len(log.find(event, **fields)) >= count, within_s=within_s, what=about)
        return log.find(event, **fields)[count - 1]

    async def until(self, come_true: Callable[[], bool], *, within_s: float, what: str) -> None:
        """Wait until something holds; `DeadlineExceeded` says what was waited for."""
        limit = self.clock.monotonic() + within_s
        while not come_true():
            if self.clock.monotonic() > limit:
                raise DeadlineExceeded(f"waited {within_s:.0f} s for {what.strip()}")
            await self.clock.sleep(_TICK_S)

    def record(self, round_id: int = 1) -> Event:
        """Return what the coordinator left about a round; empty while the round goes on."""
        return rundir.read_json(self.run.state("coordinator") / f"round-{round_id}.json")

    def judged(self) -> list[Mapping[str, Any]]:
        """Return what the owner says about the updates that it judged."""
        return list(rundir.read_json(self.run.state("owner") / "owner.json").get("clients") or [])

    def words(self, name: str) -> str:
        """Return everything that a process printed beside its log."""
        path = self.run.errors(name)
        return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""


@asynccontextmanager
async def opened(
    folder: Path, file: Path, scenario: Scenario, *, clock: Clock, tell: Tell, ahead_s: float = 0.0
) -> AsyncGenerator[Stage]:
    """Make a stage in ``folder``, and clear it away at the end whatever happened."""
    run = rundir.create(folder, scenario, now=clock.wall())
    stage = Stage(run, file, scenario, clock=clock, tell=tell)
    try:
        await stage.prepare(ahead_s=ahead_s)
        yield stage
    finally:
        await asyncio.shield(stage.close())
        run.forget_secrets()


def _set(overrides: Sequence[str]) -> list[str]:
    return [word for override in overrides for word in ("--set", override)]


def _family(child: Child) -> list[psutil.Process]:
    try:
        root = psutil.Process(child.process.pid)
        return [root, *root.children(recursive=True)]
    except psutil.Error:
        return []
