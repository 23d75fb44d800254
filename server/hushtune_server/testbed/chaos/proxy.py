"""What can go wrong with the bytes between two processes? A TCP proxy that does it on demand.

It sees bytes only: under TLS it can delay, slow down, cut, freeze and damage a connection, but not change a message unnoticed
(that is what `relay` is for). It is driven from the process that runs it, and draws nothing at random but jitter, from a seed.
"""

import asyncio
import socket
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from enum import StrEnum

from hushtune_common.clock import Clock
from hushtune_common.errors import ConfigError
from hushtune_common.seeding import SeedTree

_PIECE_BYTES = 8 << 10
_PIECES = 128
_PIECES_IF_SLOW = 2
"""What one direction of a connection may have on its way inside the proxy; beyond it the sender is made to wait.

A link of little rate has a short queue: a ping that waits behind seconds of data would be taken for a lost one.
"""
_SOCKET_BYTES = 16 << 10
_SEGMENT_BYTES = 1400
_CLOSE_S = 5.0


class Way(StrEnum):
    """Which of the two directions; a connection is opened upwards."""

    UP = "up"
    DOWN = "down"


@dataclass(slots=True, kw_only=True)
class Weather:
    """How one direction is. ``rate_bps`` in bytes per second and ``delay_s`` hold from the next bytes on."""

    delay_s: float = 0.0
    jitter_s: float = 0.0
    rate_bps: float | None = None

    def __post_init__(self) -> None:
        """Refuse a negative wait and a rate at which nothing ever arrives (`freeze` says that)."""
        if self.delay_s < 0.0 or self.jitter_s < 0.0 or (self.rate_bps is not None and not self.rate_bps > 0.0):
            raise ConfigError("weather", "delay_s and jitter_s of at least 0 s, and rate_bps above 0 bytes per second")


@dataclass(slots=True)
class Connection:
    """One connection through the proxy: what it has carried, and what is to happen to it."""

    number: int
    opened_s: float
    carried: dict[Way, int] = field(default_factory=lambda: dict.fromkeys(Way, 0))
    lost: dict[Way, int] = field(default_factory=lambda: dict.fromkeys(Way, 0))
    damaged: set[Way] = field(default_factory=set[Way])
    thawed: asyncio.Event = field(default_factory=asyncio.Event)
    ended_s: float | None = None
    _writers: list[asyncio.StreamWriter] = field(default_factory=list[asyncio.StreamWriter])

    def __post_init__(self) -> None:
        """Start to forward."""
        self.thawed.set()

    def attach(self, *writers: asyncio.StreamWriter) -> None:
        """Remember the sockets that `cut` closes."""
        self._writers.extend(writers)

    def cut(self) -> None:
        """Drop both ends at once, without a farewell: what is on its way is lost, and both peers are told so by TCP."""
        for writer in self._writers:
            writer.transport.abort()

    @property
    def is_open(self) -> bool:
        """Whether its bytes still flow, or would when thawed."""
        return self.ended_s is None


class FaultProxy:
    """Forwards TCP connections to ``target`` and does to them what it is told.

    Laws: without a fault, every byte arrives, in order, once; a connection that was cut forwards no byte after the mark; a frozen
    one forwards none and is not closed, not even when its other end is; counters never fall. Memory per connection is bounded.
    """

    def __init__(self, *, clock: Clock, seeds: SeedTree) -> None:
        """Forward nowhere yet: connections are closed at once until there is a ``target`` (``HOST:PORT``)."""
        self.target = ""
        self.weather = {way: Weather() for way in Way}
        self.connections: list[Connection] = []
        self.cuts_made = 0
        self._cuts: deque[int] = deque()
        self._until_cut: int | None = None
        self.refusing = False
        self.freezing = False
        self._clock = clock
        self._rng = seeds.generator()
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def open(self, *, host: str = "127.0.0.1", port: int = 0) -> str:
        """Listen on a port of ``host``, a free one unless given, and return the address."""
        place = _narrow_socket()  # what it accepts is as narrow
        try:
            place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            place.bind((host, port))
        except OSError:
            place.close()
            raise
        self._server = await asyncio.start_server(self._accept, sock=place, limit=_PIECE_BYTES)
        return f"{host}:{place.getsockname()[1]}"

    async def close(self) -> None:
        """Cut every connection and stop listening."""
        if self._server is not None:
            self._server.close()
        for connection in self.connections:
            connection.thawed.set()
            connection.cut()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=_CLOSE_S)

    # --- what a test says ---------------------------------------------------------------------------------------------

    @property
    def alive(self) -> list[Connection]:
        """The connections that are open."""
        return [c for c in self.connections if c.is_open]

    def cut(self) -> int:
        """Cut every connection there is now, and return how many that were."""
        there = self.alive
        for connection in there:
            connection.cut()
        return len(there)

    def cut_each_after(self, *counts: int) -> None:
        """Cut whichever connection carries the last of the next so many bytes up, and again after each further of ``counts``."""
        self._cuts.extend(counts)
        if self._until_cut is None:
            self._next_cut()

    def freeze(self, *, newcomers: bool = False) -> int:
        """Half-open: forward nothing more on the connections there are, and close none of them; return how many that were.

        With ``newcomers`` later connections are frozen too, as when a cable is out and nobody has noticed.
        """
        self.freezing = newcomers
        there = self.alive
        for connection in there:
            connection.thawed.clear()
        return len(there)

    def thaw(self) -> None:
        """Forward again, beginning with what was held back."""
        self.freezing = False
        for connection in self.alive:
            connection.thawed.set()

    def refuse(self, *, yes: bool = True) -> None:
        """Close every connection as soon as it is opened, and cut those that are there: nobody answers behind this proxy."""
        self.refusing = yes
        if yes:
            self.cut()

    def damage_next(self, way: Way) -> None:
        """Flip one bit of the next bytes that an open connection carries this way."""
        for connection in self.alive:
            connection.damaged.add(way)

    def carried(self, way: Way) -> int:
        """Bytes that have arrived at their end, over all connections."""
        return sum(c.carried[way] for c in self.connections)

    # --- what is done -------------------------------------------------------------------------------------------------

    def _next_cut(self) -> None:
        self._until_cut = self._cuts.popleft() if self._cuts else None

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is not None:
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        connection = Connection(number=len(self.connections) + 1, opened_s=self._clock.monotonic())
        connection.attach(writer)
        self.connections.append(connection)
        try:
            if not self.refusing and self.target:
                await self._join(connection, reader, writer)
        finally:
            connection.cut()
            connection.ended_s = self._clock.monotonic()

    async def _join(self, connection: Connection, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        host, _, port = self.target.rpartition(":")
        try:
            far_reader, far_writer = await _dialled(host, int(port))
        except OSError:
            return  # nobody there; the caller sees its connection closed
        connection.attach(far_writer)
        if self.freezing:
            connection.thawed.clear()
        ways = {
            asyncio.create_task(self._forward(connection, Way.UP, reader, far_writer)),
            asyncio.create_task(self._forward(connection, Way.DOWN, far_reader, writer)),
        }
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in ways:
                task.cancel()
            await asyncio.wait(ways)

    async def _forward(self, connection: Connection, way: Way, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        """Carry one direction to its end; returning ends the connection."""
        queue: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(_PIECES)
        feeder = asyncio.create_task(self._feed(way, source, queue))
        try:
            with suppress(OSError):
                while True:
                    due_s, data = await queue.get()
                    await self._until(due_s)
                    if not await self._carry(connection, way, data, sink):
                        return
        finally:
            feeder.cancel()
            while not queue.empty():
                connection.lost[way] += len(queue.get_nowait()[1])

    async def _feed(self, way: Way, source: asyncio.StreamReader, queue: "asyncio.Queue[tuple[float, bytes]]") -> None:
        """Read what comes, to the end and that included, and note when it may arrive."""
        data = b"-"
        while data:
            try:
                data = await source.read(_PIECE_BYTES)
            except OSError:
                data = b""
            weather = self.weather[way]
            while weather.rate_bps is not None and queue.qsize() >= _PIECES_IF_SLOW:
                await self._clock.sleep(0.01)
            jitter_s = float(self._rng.uniform(0.0, weather.jitter_s)) if weather.jitter_s else 0.0
            await queue.put((self._clock.monotonic() + weather.delay_s + jitter_s, data))

    async def _until(self, due_s: float) -> None:
        left_s = due_s - self._clock.monotonic()
        if left_s > 0.0:
            await self._clock.sleep(left_s)

    async def _carry(self, connection: Connection, way: Way, data: bytes, sink: asyncio.StreamWriter) -> bool:
        """Pass ``data`` on, as far as the connection goes; false when it is over, as it is after the last byte."""
        await connection.thawed.wait()
        if not data:
            return False
        passed, cut = data, way is Way.UP and self._until_cut is not None and len(data) >= self._until_cut
        if way is Way.UP and self._until_cut is not None:  # before the first wait: another connection counts, too
            passed = data[: self._until_cut]
            self._until_cut -= len(passed)
        if cut:
            self.cuts_made += 1
            self._next_cut()
        if way in connection.damaged:
            connection.damaged.discard(way)
            passed = _flipped(passed)
        rate = self.weather[way].rate_bps
        if rate is not None:
            await self._clock.sleep(len(passed) / rate)
            await connection.thawed.wait()
        sink.write(passed)
        await sink.drain()
        connection.carried[way] += len(passed)
        connection.lost[way] += len(data) - len(passed)
        return not cut


def _narrow_socket() -> socket.socket:
    """Return a socket whose peer has little on its way at once: over loopback it would be megabytes, as on no slow link."""
    narrow = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    narrow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _SOCKET_BYTES)
    narrow.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, _SEGMENT_BYTES)
    return narrow


async def _dialled(host: str, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    narrow = _narrow_socket()
    narrow.setblocking(False)
    try:
        await asyncio.get_running_loop().sock_connect(narrow, (host, port))
        return await asyncio.open_connection(sock=narrow, limit=_PIECE_BYTES)
    except BaseException:
        narrow.close()
        raise


def _flipped(data: bytes) -> bytes:
    """Return ``data`` with one bit in its middle turned over."""
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 0x10]) + data[middle + 1 :] if data else data
