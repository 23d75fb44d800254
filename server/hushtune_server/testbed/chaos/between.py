"""What does a bad network do to a run? The fault proxy between callers and servers, as a process of its own with a log."""

import asyncio
import errno
import logging
from collections.abc import Sequence
from dataclasses import dataclass

from hushtune_common.clock import Clock
from hushtune_common.errors import AddressInUse, ConfigError
from hushtune_common.logs import log_event
from hushtune_common.seeding import SeedTree
from hushtune_server.testbed.chaos.proxy import FaultProxy, Way, Weather

_log = logging.getLogger(__name__)
_BITS = 8
_TELL_EVERY_S = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """One server behind the proxy: where callers reach it here, and where it is."""

    host: str
    port: int
    server: str

    @staticmethod
    def of(text: str) -> "Link":
        """Read ``HOST:PORT=SERVER:PORT``, of which the first host may be missing; `ConfigError` for anything else."""
        here, _, server = text.partition("=")
        host, _, port = here.rpartition(":")
        there, _, there_port = server.rpartition(":")
        if not there or not _is_port(port) or not _is_port(there_port):
            raise ConfigError("--between", f"expected HOST:PORT=SERVER:PORT such as 0.0.0.0:7002=air:7002, got {text!r}")
        return Link(host=host or "127.0.0.1", port=int(port), server=server)


def _is_port(text: str) -> bool:
    return text.isascii() and text.isdigit() and int(text) <= 65535


@dataclass(frozen=True, slots=True, kw_only=True)
class Faults:
    """What is done to every connection. ``rate_bps`` is in bit/s and 0 for none; ``cut_every_s`` is a mean, and 0 for never."""

    delay_s: float = 0.0
    jitter_s: float = 0.0
    rate_bps: float = 0.0
    cut_every_s: float = 0.0

    def __post_init__(self) -> None:
        """Refuse what is below zero, naming the option."""
        given = {
            "--delay-ms": self.delay_s,
            "--jitter-ms": self.jitter_s,
            "--rate-kbps": self.rate_bps,
            "--cut-every-s": self.cut_every_s,
        }
        for name, value in given.items():
            if not 0.0 <= value < float("inf"):
                raise ConfigError(name, "a number of at least 0; 0 switches it off")

    @property
    def weather(self) -> Weather:
        """The same for the proxy, each way."""
        return Weather(delay_s=self.delay_s, jitter_s=self.jitter_s, rate_bps=self.rate_bps / _BITS or None)


class Between:
    """Forwards every link through a proxy of its own and cuts its connections now and then.

    Laws: the moments of the cuts depend on the seed and the link's server alone; what was done is logged when it was done.
    """

    def __init__(self, links: Sequence[Link], faults: Faults, *, clock: Clock, seeds: SeedTree) -> None:
        """Forward nothing yet."""
        self._links = tuple(links)
        self._faults = faults
        self._clock = clock
        self._seeds = seeds
        self._proxies = {link.server: FaultProxy(clock=clock, seeds=seeds.child(link.server)) for link in links}
        self._cuts = dict.fromkeys(self._proxies, 0)

    async def open(self) -> dict[str, str]:
        """Listen, and return by server where; `AddressInUse` or `ConfigError` where that cannot be."""
        found: dict[str, str] = {}
        for link in self._links:
            proxy = self._proxies[link.server]
            proxy.target = link.server
            proxy.weather = {way: self._faults.weather for way in Way}
            try:
                found[link.server] = await proxy.open(host=link.host, port=link.port)
            except OSError as error:
                raise _unusable(link, error) from error
            faults = self._faults
            log_event(
                _log,
                "proxy_opened",
                address=found[link.server],
                server=link.server,
                delay_s=faults.delay_s,
                jitter_s=faults.jitter_s,
                rate_bps=faults.rate_bps,
                cut_every_s=faults.cut_every_s,
            )
        return found

    async def run(self) -> None:
        """Do it until cancelled, then close."""
        try:
            async with asyncio.TaskGroup() as group:
                for server in self._proxies:
                    group.create_task(self._tell(server))
                    if self._faults.cut_every_s:
                        group.create_task(self._cut(server))
        finally:
            await self.close()

    async def close(self) -> None:
        """Cut everything and stop listening."""
        for server, proxy in self._proxies.items():
            self._told(server)
            await proxy.close()

    async def _cut(self, server: str) -> None:
        rng = self._seeds.child(server).child("cuts").generator()
        while True:
            await self._clock.sleep(float(rng.uniform(0.5, 1.5)) * self._faults.cut_every_s)
            proxy = self._proxies[server]
            count = proxy.cut()
            if count:
                self._cuts[server] += count
                up, down = proxy.carried(Way.UP), proxy.carried(Way.DOWN)
                log_event(_log, "connections_cut", server=server, connections=count, bytes_up=up, bytes_down=down)

    async def _tell(self, server: str) -> None:
        before = -1
        while True:
            await self._clock.sleep(_TELL_EVERY_S)
            carried = sum(self._proxies[server].carried(way) for way in Way)
            if carried != before:
                self._told(server)
            before = carried

    def _told(self, server: str) -> None:
        proxy, cut = self._proxies[server], self._cuts[server]
        up, down, there = proxy.carried(Way.UP), proxy.carried(Way.DOWN), len(proxy.alive)
        log_event(_log, "traffic_forwarded", server=server, connections=there, cut=cut, bytes_up=up, bytes_down=down)


def _unusable(link: Link, error: OSError) -> Exception:
    where = f"{link.host}:{link.port}"
    if error.errno == errno.EADDRINUSE:
        return AddressInUse(f"{where} is taken; give another port before the = of --between")
    return ConfigError("--between", f"cannot listen at {where} ({error.strerror})")
