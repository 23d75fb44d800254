"""Does the fault proxy do what it says to bytes, and nothing without being told?"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest

from hushtune_common.clock import SystemClock
from hushtune_common.errors import ConfigError
from hushtune_common.seeding import SeedTree
from hushtune_server.testbed.chaos.proxy import FaultProxy, Way, Weather

DATA = bytes(range(256)) * 1024
CLOCK = SystemClock()


@dataclass
class Far:
    """A server that remembers what each connection sent, and answers what it is told to."""

    heard: list[bytearray] = field(default_factory=list[bytearray])
    ended: list[bool] = field(default_factory=list[bool])
    answer: bytes = b""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        mine = bytearray()
        self.heard.append(mine)
        self.ended.append(False)
        number = len(self.ended) - 1
        writer.write(self.answer)
        try:
            while data := await reader.read(4096):
                mine += data
        except OSError:
            pass
        finally:
            self.ended[number] = True
            writer.transport.abort()


Dial = Callable[[], Awaitable[tuple[asyncio.StreamReader, asyncio.StreamWriter]]]


@asynccontextmanager
async def proxied(far: Far) -> AsyncGenerator[tuple[FaultProxy, Dial]]:
    server = await asyncio.start_server(far.serve, "127.0.0.1", 0)
    proxy = FaultProxy(clock=CLOCK, seeds=SeedTree(1))
    proxy.target = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    host, _, port = (await proxy.open()).partition(":")
    writers: list[asyncio.StreamWriter] = []

    async def dial() -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection(host, int(port))
        writers.append(writer)
        return reader, writer

    try:
        yield proxy, dial
    finally:
        for writer in writers:
            writer.transport.abort()
        await proxy.close()
        await until(lambda: all(far.ended))
        server.close()
        await server.wait_closed()


async def until(come_true: Callable[[], bool]) -> None:
    ends_s = CLOCK.monotonic() + 10.0
    while not come_true() and CLOCK.monotonic() < ends_s:
        await CLOCK.sleep(0.005)
    assert come_true()


def test_without_a_fault_every_byte_arrives_in_order_both_ways() -> None:
    async def run() -> None:
        far = Far(answer=DATA)
        async with proxied(far) as (proxy, dial):
            reader, writer = await dial()
            writer.write(DATA)
            assert await reader.readexactly(len(DATA)) == DATA
            await until(lambda: bool(far.heard) and bytes(far.heard[0]) == DATA)
            assert proxy.carried(Way.UP) == proxy.carried(Way.DOWN) == len(DATA)

    asyncio.run(run())


def test_a_cut_connection_has_carried_exactly_as_much_as_was_said_and_the_next_ones_too() -> None:
    async def run() -> None:
        far = Far()
        async with proxied(far) as (proxy, dial):
            proxy.cut_each_after(1000, 100_001)
            for _ in range(2):
                reader, writer = await dial()
                writer.write(DATA)
                with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
                    await reader.readexactly(1)
            await until(lambda: far.ended == [True, True])
            assert far.heard == [DATA[:1000], DATA[:100_001]]
            _, writer = await dial()
            writer.write(DATA)
            await until(lambda: far.heard[2:] == [DATA])

    asyncio.run(run())


def test_a_frozen_connection_carries_nothing_and_stays_open_until_it_thaws() -> None:
    async def run() -> None:
        far = Far()
        async with proxied(far) as (proxy, dial):
            _, frozen = await dial()
            frozen.write(b"before ")
            await until(lambda: far.heard == [b"before "])
            assert proxy.freeze() == 1
            frozen.write(b"after")
            frozen.transport.abort()  # the far end must not hear of it
            _, newcomer = await dial()
            newcomer.write(b"new")
            await until(lambda: far.heard[1:] == [b"new"])
            assert (bytes(far.heard[0]), far.ended[0]) == (b"before ", False)
            proxy.thaw()
            await until(lambda: far.ended[0])

    asyncio.run(run())


def test_one_bit_is_damaged_and_no_more() -> None:
    async def run() -> None:
        far = Far()
        async with proxied(far) as (proxy, dial):
            _, writer = await dial()
            await until(lambda: len(proxy.alive) == 1)
            proxy.damage_next(Way.UP)
            writer.write(DATA)
            await until(lambda: bool(far.heard) and len(far.heard[0]) == len(DATA))
            differing = [a ^ b for a, b in zip(far.heard[0], DATA, strict=True) if a != b]
            assert [bin(bits).count("1") for bits in differing] == [1]

    asyncio.run(run())


@pytest.mark.slow
def test_delay_and_rate_hold_bytes_back_for_as_long_as_they_say() -> None:
    async def run() -> None:
        far = Far()
        async with proxied(far) as (proxy, dial):
            proxy.weather[Way.UP] = Weather(delay_s=0.2, rate_bps=len(DATA) / 0.5)
            _, writer = await dial()
            began_s = CLOCK.monotonic()
            writer.write(DATA)
            await until(lambda: bool(far.heard) and len(far.heard[0]) == len(DATA))
            assert 0.7 <= CLOCK.monotonic() - began_s < 3.0

    asyncio.run(run())


def test_nobody_behind_it_is_a_closed_connection_and_weather_that_cannot_be_is_refused() -> None:
    async def run() -> None:
        far = Far()
        async with proxied(far) as (proxy, dial):
            proxy.refuse()
            reader, _ = await dial()
            with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
                await reader.readexactly(1)
            assert far.heard == []

    asyncio.run(run())
    for wrong in ({"delay_s": -1.0}, {"jitter_s": -1.0}, {"rate_bps": 0.0}):
        with pytest.raises(ConfigError, match="weather"):
            Weather(**wrong)
