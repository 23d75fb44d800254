"""Does the proxy between callers and servers do what its options say, tell it, and refuse what makes no sense?"""

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import pytest

from hushtune_common.clock import SystemClock
from hushtune_common.errors import AddressInUse, ConfigError
from hushtune_common.seeding import SeedTree
from hushtune_server import cli
from hushtune_server.testbed.chaos.between import Between, Faults, Link
from tests.contracts.test_chaos_proxy import DATA, Far

CLOCK = SystemClock()
OFTEN_S = 0.05


@asynccontextmanager
async def standing(faults: Faults) -> AsyncGenerator[tuple[str, int]]:
    """A server that answers ``DATA``, and the way to it through the proxy."""
    server = await asyncio.start_server(Far(answer=DATA).serve, "127.0.0.1", 0)
    link = Link.of(f"127.0.0.1:0=127.0.0.1:{server.sockets[0].getsockname()[1]}")
    between = Between([link], faults, clock=CLOCK, seeds=SeedTree(1))
    ((_, address),) = (await between.open()).items()
    running = asyncio.create_task(between.run())
    await asyncio.sleep(0)  # it begins
    host, _, port = address.partition(":")
    try:
        yield host, int(port)
    finally:
        running.cancel()
        await asyncio.wait([running])
        server.close()


def fields(caplog: pytest.LogCaptureFixture, event: str) -> list[dict[str, object]]:
    return [vars(record)["hushtune_fields"] for record in caplog.records if record.getMessage() == event]


def test_without_faults_every_byte_arrives_and_what_went_through_is_told(caplog: pytest.LogCaptureFixture) -> None:
    async def play() -> bytes:
        async with standing(Faults()) as (host, port), asyncio.timeout(10):
            reader, writer = await asyncio.open_connection(host, port)
            answer = await reader.readexactly(len(DATA))
            writer.close()
            return answer

    with caplog.at_level(logging.INFO):
        assert asyncio.run(play()) == DATA
    assert fields(caplog, "traffic_forwarded")[-1]["bytes_down"] == len(DATA)
    assert fields(caplog, "connections_cut") == []


def test_connections_are_cut_again_and_again_and_every_cut_is_told(caplog: pytest.LogCaptureFixture) -> None:
    async def play() -> None:
        async with standing(Faults(cut_every_s=OFTEN_S)) as (host, port), asyncio.timeout(10):
            for _ in range(2):
                reader, writer = await asyncio.open_connection(host, port)
                try:
                    while await reader.read(1 << 20):
                        pass
                except ConnectionResetError:
                    pass
                writer.transport.abort()

    with caplog.at_level(logging.INFO):
        asyncio.run(play())
    assert len(fields(caplog, "connections_cut")) == 2


def test_a_delay_is_added_both_ways() -> None:
    async def play() -> float:
        async with standing(Faults(delay_s=0.1)) as (host, port), asyncio.timeout(10):
            began_s = CLOCK.monotonic()
            reader, writer = await asyncio.open_connection(host, port)
            await reader.readexactly(1)
            writer.transport.abort()
            return CLOCK.monotonic() - began_s

    assert asyncio.run(play()) >= 0.1


@pytest.mark.parametrize("text", ["", "7001", "7001=air", "x=air:7002", "0.0.0.0:7002=:7002", "0.0.0.0:99999=air:7002"])
def test_a_link_that_is_none_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ConfigError, match=r"0\.0\.0\.0:7002=air:7002"):
        Link.of(text)


@pytest.mark.parametrize("option", ["--delay-ms", "--jitter-ms", "--rate-kbps", "--cut-every-s"])
@pytest.mark.parametrize("value", ["-1", "nan", "inf"])
def test_a_number_that_makes_no_sense_is_refused_by_its_option(
    option: str, value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code = cli.main(["testbed", "disturb", "--between", "127.0.0.1:0=127.0.0.1:1", f"{option}={value}"])
    assert (code, option in capsys.readouterr().err) == (ConfigError.exit_code, True)


def test_a_taken_port_is_told_with_the_remedy() -> None:
    async def play() -> None:
        async with standing(Faults()) as (host, port):
            await Between([Link.of(f"{host}:{port}=air:1")], Faults(), clock=CLOCK, seeds=SeedTree(1)).open()

    with pytest.raises(AddressInUse, match="another port"):
        asyncio.run(play())
