"""Who gets in, what do failures look like on both sides, and does a server stop?"""

import asyncio
import logging
import socket
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest

from hushtune_common.clock import SystemClock
from hushtune_common.config import TimingConfig
from hushtune_common.errors import AddressInUse, ConfigError, HushtuneError, NotYours, OffsetMismatch, PeerLost, StaleRound
from hushtune_common.messages import Caller, Role
from hushtune_common.seeding import SeedTree
from hushtune_common.wire import faults, preflight
from hushtune_common.wire.endpoint import Kit, Server, connect, ready, serve
from hushtune_common.wire.interceptors import caller_of
from hushtune_server.testbed.chaos.proxy import FaultProxy
from tests.kits import Kits

CLOCK = SystemClock()
TIMING = TimingConfig(connect_s=1.0, idle_s=5.0)
SERVICE = "hushtune.test.Echo"
Raiser = Callable[[Any], None]


@pytest.fixture
def kits(tmp_path: Path) -> Kits:
    return Kits(tmp_path / "kits")


def echo(before: Raiser = lambda context: None) -> Callable[[grpc.aio.Server], None]:
    """Register a service with a method of each arity; ``before`` may raise."""

    async def one(request: bytes, context: Any) -> bytes:
        before(context)
        return request

    async def collect(requests: AsyncIterator[bytes], context: Any) -> bytes:
        received = [request async for request in requests]
        before(context)
        return b"".join(received)

    async def repeat(request: bytes, context: Any) -> AsyncIterator[bytes]:
        yield request
        before(context)
        yield request

    async def written(request: bytes, context: Any) -> None:
        await context.write(request)
        before(context)
        await context.write(request)

    async def answer(requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        async for request in requests:
            yield request
        before(context)

    async def wait(request: bytes, context: Any) -> bytes:
        await asyncio.Event().wait()
        return request

    handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
        "One": grpc.unary_unary_rpc_method_handler(one),
        "Collect": grpc.stream_unary_rpc_method_handler(collect),
        "Repeat": grpc.unary_stream_rpc_method_handler(repeat),
        "Written": grpc.unary_stream_rpc_method_handler(written),
        "Answer": grpc.stream_stream_rpc_method_handler(answer),
        "Wait": grpc.unary_unary_rpc_method_handler(wait),
    }
    handler = grpc.method_handlers_generic_handler(SERVICE, handlers)
    return lambda server: server.add_generic_rpc_handlers((handler,))


@asynccontextmanager
async def serving(
    kit: Kit, *registrations: Callable[[grpc.aio.Server], None], timing: TimingConfig = TIMING
) -> AsyncGenerator[Server]:
    server = await serve(registrations or (echo(),), names=[SERVICE], listen="127.0.0.1:0", kit=kit, clock=CLOCK, timing=timing)
    try:
        yield server
    finally:
        await server.stop(0.0)


@asynccontextmanager
async def channel_to(address: str, kit: Kit, role: Role = Role.OWNER, timing: TimingConfig = TIMING) -> AsyncGenerator[Any]:
    channel: Any = connect(address, role=role, kit=kit, timing=timing)
    try:
        yield channel
    finally:
        await channel.close()


async def call(channel: Any, arity: str, *requests: bytes) -> list[bytes]:
    """Call the echo method of that arity with real streams, and return all responses."""
    path = f"/{SERVICE}/{arity}"

    async def stream() -> AsyncIterator[bytes]:
        for request in requests:
            yield request

    with faults.translated():
        match arity:
            case "One":
                return [await channel.unary_unary(path)(requests[0], timeout=5.0)]
            case "Collect":
                return [await channel.stream_unary(path)(stream(), timeout=5.0)]
            case "Answer":
                return [response async for response in channel.stream_stream(path)(stream(), timeout=5.0)]
            case _:
                return [response async for response in channel.unary_stream(path)(requests[0], timeout=5.0)]


ARITIES = ["One", "Collect", "Repeat", "Written", "Answer"]


@pytest.mark.parametrize(
    ("arity", "expected"),
    [("One", [b"a"]), ("Collect", [b"ab"]), ("Repeat", [b"a", b"a"]), ("Written", [b"a", b"a"]), ("Answer", [b"a", b"b"])],
)
def test_calls_of_every_arity_get_through(kits: Kits, arity: str, expected: list[bytes]):
    async def run() -> None:
        async with (
            serving(kits.kit(Role.OWNER)) as server,
            channel_to(server.address, kits.kit(Role.CLIENT, "c1")) as channel,
        ):
            await ready(channel, address=server.address, role=Role.OWNER, timing=TIMING)
            assert await call(channel, arity, b"a", b"b") == expected

    asyncio.run(run())


@pytest.mark.parametrize("arity", ARITIES)
def test_a_refusal_reaches_the_caller_typed_and_the_log_with_the_caller(kits: Kits, arity: str, caplog: pytest.LogCaptureFixture):
    def refuse(context: Any) -> None:
        raise StaleRound("round 3 is over")

    async def run() -> None:
        async with (
            serving(kits.kit(Role.OWNER), echo(refuse)) as server,
            channel_to(server.address, kits.kit(Role.CLIENT, "c1")) as channel,
        ):
            with pytest.raises(StaleRound, match="round 3 is over"):
                await call(channel, arity, b"a")

    with caplog.at_level(logging.INFO):
        asyncio.run(run())
    (record,) = [record for record in caplog.records if record.getMessage() == "call_refused"]
    logged = record.__dict__["hushtune_fields"]
    assert (logged["reason"], logged["caller"]) == ("STALE_ROUND", "hushtune://client/c1")
    assert logged["method"] == f"/{SERVICE}/{arity}"


@pytest.mark.parametrize("arity", ARITIES)
def test_a_defect_is_an_incident_in_the_log_and_nothing_more_to_the_caller(
    kits: Kits, arity: str, caplog: pytest.LogCaptureFixture
):
    def fail(context: Any) -> None:
        raise KeyError("a secret path")

    async def run() -> str:
        async with (
            serving(kits.kit(Role.OWNER), echo(fail)) as server,
            channel_to(server.address, kits.kit(Role.CLIENT, "c1")) as channel,
        ):
            with pytest.raises(HushtuneError) as raised:
                await call(channel, arity, b"a")
            return str(raised.value)

    message = asyncio.run(run())
    (record,) = [record for record in caplog.records if record.getMessage() == "call_failed"]
    assert record.__dict__["hushtune_fields"]["incident"] in message
    assert "secret" not in message
    assert record.exc_info is not None


def test_an_offset_mismatch_carries_the_committed_size(kits: Kits):
    def refuse(context: Any) -> None:
        raise OffsetMismatch(4096)

    async def run() -> None:
        async with (
            serving(kits.kit(Role.OWNER), echo(refuse)) as server,
            channel_to(server.address, kits.kit(Role.CLIENT, "c1")) as channel,
        ):
            with pytest.raises(OffsetMismatch) as raised:
                await call(channel, "Collect", b"a")
            assert raised.value.committed_size == 4096

    asyncio.run(run())


def test_the_caller_is_who_the_certificate_says(kits: Kits):
    seen: list[Caller] = []

    def look(context: Any) -> None:
        seen.append(caller_of(context, Role.CLIENT))

    async def run() -> None:
        async with serving(kits.kit(Role.AIR), echo(look)) as server:
            async with channel_to(server.address, kits.kit(Role.CLIENT, "c7"), role=Role.AIR) as channel:
                await call(channel, "One", b"a")
            async with channel_to(server.address, kits.kit(Role.EAVESDROPPER), role=Role.AIR) as channel:
                with pytest.raises(NotYours, match="eavesdropper"):
                    await call(channel, "One", b"a")

    asyncio.run(run())
    assert seen == [Caller(role=Role.CLIENT, name="c7")]


@pytest.mark.parametrize(
    "uris", [[], [b"https://example.org/c1"], [b"hushtune://king/c1"], [b"hushtune://client/c1"] * 2, [b"\xff"]]
)
def test_a_certificate_without_one_identity_is_refused(uris: list[bytes]):
    class Context:
        def auth_context(self) -> dict[str, list[bytes]]:
            return {"peer_uri": uris}

    with pytest.raises(NotYours):
        caller_of(Context())


def test_a_server_of_another_role_is_refused(kits: Kits):
    async def run() -> None:
        async with (
            serving(kits.kit(Role.EAVESDROPPER)) as server,
            channel_to(server.address, kits.kit(Role.CLIENT, "c1"), role=Role.OWNER) as channel,
        ):
            with pytest.raises(PeerLost, match="no owner of our certificate authority"):
                await ready(channel, address=server.address, role=Role.OWNER, timing=TIMING)

    asyncio.run(run())


def test_a_client_with_a_servers_certificate_of_no_server_cannot_pose_as_one(kits: Kits):
    async def run() -> None:
        async with (
            serving(kits.kit(Role.CLIENT, "c1")) as server,
            channel_to(server.address, kits.kit(Role.CLIENT, "c2"), role=Role.OWNER) as channel,
        ):
            with pytest.raises(PeerLost):
                await ready(channel, address=server.address, role=Role.OWNER, timing=TIMING)

    asyncio.run(run())


@pytest.mark.slow
def test_a_client_of_another_authority_is_refused_in_time(kits: Kits, tmp_path: Path):
    foreign = Kits(tmp_path / "foreign").kit(Role.CLIENT, "c1")
    trusting = replaced(foreign, ca=kits.kit(Role.OWNER).ca)

    async def run(kit: Kit) -> str:
        async with serving(kits.kit(Role.OWNER)) as server, channel_to(server.address, kit) as channel:
            started = CLOCK.monotonic()
            with pytest.raises(PeerLost) as raised:
                await ready(channel, address=server.address, role=Role.OWNER, timing=TIMING)
            assert CLOCK.monotonic() - started < TIMING.connect_s + 1.0
            return str(raised.value)

    assert "certificate authority" in asyncio.run(run(foreign))
    assert "another authority, or expired" in asyncio.run(run(trusting))


def replaced(kit: Kit, **changes: Any) -> Kit:
    fields = {name: getattr(kit, name) for name in ("ca", "certificate", "key", "caller", "not_before", "not_after", "directory")}
    return Kit(**(fields | changes))


@pytest.mark.slow
def test_an_expired_client_is_refused_by_the_server_even_if_it_dials(kits: Kits):
    past = datetime.now(UTC) - timedelta(days=10)
    expired = kits.kit(Role.CLIENT, "c1", not_before=past, days=1)
    lying = replaced(expired, not_after=datetime.now(UTC) + timedelta(days=1))

    async def run() -> None:
        async with serving(kits.kit(Role.OWNER)) as server, channel_to(server.address, lying) as channel:
            with pytest.raises(PeerLost, match="expired"):
                await ready(channel, address=server.address, role=Role.OWNER, timing=TIMING)

    asyncio.run(run())


@pytest.mark.slow
def test_a_client_without_a_certificate_is_refused(kits: Kits):
    async def run() -> None:
        async with serving(kits.kit(Role.OWNER)) as server:
            options = [("grpc.ssl_target_name_override", "owner.hushtune.internal")]
            credentials = grpc.ssl_channel_credentials(kits.kit(Role.OWNER).ca)
            async with grpc.aio.secure_channel(server.address, credentials, options=options) as channel:
                with pytest.raises(PeerLost):
                    await ready(channel, address=server.address, role=Role.OWNER, timing=TIMING)

    asyncio.run(run())


@pytest.mark.parametrize(
    ("days_ago", "advice"), [(10, "expired on"), (-10, "is not valid before")], ids=["expired", "not yet valid"]
)
def test_our_own_certificate_is_checked_before_dialling_and_listening(kits: Kits, days_ago: int, advice: str):
    kit = kits.kit(Role.OWNER, "late", not_before=datetime.now(UTC) - timedelta(days=days_ago), days=1)
    with pytest.raises(ConfigError, match=rf"tls\.crt: {advice}.*hushtune pki issue --role owner --name late"):
        connect("127.0.0.1:1", role=Role.AIR, kit=kit, timing=TIMING)
    with pytest.raises(ConfigError, match="hushtune pki issue"):
        asyncio.run(serve([], names=[], listen="127.0.0.1:0", kit=kit, clock=CLOCK, timing=TIMING))


@pytest.mark.parametrize("missing", ["ca.crt", "tls.crt", "tls.key", "kit.toml"])
def test_an_incomplete_kit_is_named_with_its_remedy(kits: Kits, missing: str):
    folder = kits.folder(Role.CLIENT, "c1")
    (folder / missing).unlink()
    with pytest.raises(ConfigError, match=rf"{missing}.*hushtune pki issue"):
        Kit.load(folder)


@pytest.mark.parametrize(
    ("old", "new", "field"),
    [
        ("client/c1", "king/c1", "identity"),
        ("identity", "ident", "identity"),
        ("not_after = ", "not_after = 3 #", "not_after"),
        ("=", "", "TOML"),
    ],
)
def test_a_damaged_kit_is_named_with_its_field(kits: Kits, old: str, new: str, field: str):
    file = kits.folder(Role.CLIENT, "c1") / "kit.toml"
    file.write_text(file.read_text().replace(old, new))
    with pytest.raises(ConfigError, match=rf"kit\.toml.*{field}"):
        Kit.load(file.parent)


def test_a_kit_does_not_print_its_key(kits: Kits):
    kit = kits.kit(Role.CLIENT, "c1")
    assert "PRIVATE KEY" in kit.key.decode()
    assert "PRIVATE KEY" not in repr(kit)


def test_a_taken_port_is_named_with_a_remedy(kits: Kits):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(AddressInUse, match=rf"{address} is taken: .*port 0"):
            asyncio.run(serve([], names=[], listen=address, kit=kits.kit(Role.OWNER), clock=CLOCK, timing=TIMING))


def test_two_servers_do_not_share_a_port(kits: Kits):
    async def run() -> None:
        async with serving(kits.kit(Role.OWNER)) as server:
            with pytest.raises(AddressInUse):
                await serve([], names=[], listen=server.address, kit=kits.kit(Role.OWNER), clock=CLOCK, timing=TIMING)

    asyncio.run(run())


@pytest.mark.parametrize("listen", ["127.0.0.1", ":0", "127.0.0.1:x", "127.0.0.1:70000", "192.0.2.1:0"])
def test_an_impossible_address_is_a_setting_to_correct(kits: Kits, listen: str):
    with pytest.raises(ConfigError, match="--listen"):
        asyncio.run(serve([], names=[], listen=listen, kit=kits.kit(Role.OWNER), clock=CLOCK, timing=TIMING))


def test_nobody_listening_is_said_with_role_and_address(kits: Kits):
    timing = TimingConfig(connect_s=0.3, idle_s=5.0)

    async def run() -> None:
        with socket.socket() as bound:  # bound but not listening: dialling it is refused
            bound.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{bound.getsockname()[1]}"
            async with channel_to(address, kits.kit(Role.CLIENT, "c1"), timing=timing) as channel:
                with pytest.raises(PeerLost, match=rf"no owner answers at {address} within 0\.3 s"):
                    await ready(channel, address=address, role=Role.OWNER, timing=timing)

    asyncio.run(run())


def test_a_server_that_starts_late_is_waited_for(kits: Kits):
    timing = TimingConfig(connect_s=10.0, idle_s=5.0)
    owner, client = kits.kit(Role.OWNER), kits.kit(Role.CLIENT, "c1")

    async def run() -> None:
        with socket.socket() as bound:
            bound.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{bound.getsockname()[1]}"
            async with channel_to(address, client, timing=timing) as channel:
                waiting = asyncio.create_task(ready(channel, address=address, role=Role.OWNER, timing=timing))
                while channel.get_state() is not grpc.ChannelConnectivity.TRANSIENT_FAILURE:
                    await channel.wait_for_state_change(channel.get_state())
                bound.close()
                server = await serve([echo()], names=[], listen=address, kit=owner, clock=CLOCK, timing=TIMING)
                await waiting
                await server.stop(0.0)

    asyncio.run(run())


def test_a_connection_that_breaks_in_the_middle_of_a_handshake_is_tried_again(kits: Kits):
    timing = TimingConfig(connect_s=10.0, idle_s=5.0)

    async def run() -> None:
        async with serving(kits.kit(Role.OWNER)) as server, breaking_proxy(server.address, times=2) as (address, broken):
            async with channel_to(address, kits.kit(Role.CLIENT, "c1"), timing=timing) as channel:
                await ready(channel, address=address, role=Role.OWNER, timing=timing)
            assert broken == [True, True]

    asyncio.run(run())


@asynccontextmanager
async def breaking_proxy(target: str, *, times: int) -> AsyncGenerator[tuple[str, list[bool]]]:
    """Break the first connections as soon as something was said on them, as a server does that is just being stopped."""
    proxy, broken = FaultProxy(clock=CLOCK, seeds=SeedTree(1)), list[bool]()

    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        broken.append(True)
        if len(broken) == times:
            proxy.target = target
        writer.transport.abort()

    rude = await asyncio.start_server(greet, "127.0.0.1", 0)
    proxy.target = f"127.0.0.1:{rude.sockets[0].getsockname()[1]}"
    try:
        yield await proxy.open(), broken
    finally:
        await proxy.close()
        rude.close()
        await rude.wait_closed()


def test_health_tells_serving_and_a_stopping_server_says_so(kits: Kits):
    client = kits.kit(Role.CLIENT, "c1")

    async def run() -> None:
        async with serving(kits.kit(Role.OWNER)) as server, channel_to(server.address, client) as channel:
            assert await preflight.health(server.address, role=Role.OWNER, kit=client, timing=TIMING)
            waiting = channel.unary_unary(f"/{SERVICE}/Wait")(b"", timeout=5.0)
            watch = channel.unary_stream("/grpc.health.v1.Health/Watch")(b"")
            states = aiter(watch)
            assert await anext(states) == b"\x08\x01"  # status: SERVING
            stopping = asyncio.create_task(server.stop(0.2))
            assert await anext(states) == b"\x08\x02"  # status: NOT_SERVING
            await stopping
            with pytest.raises(PeerLost), faults.translated():
                await waiting
            with suppress(grpc.aio.AioRpcError):
                await anext(states)

    asyncio.run(run())


@pytest.mark.slow
def test_a_peer_that_falls_silent_is_noticed_within_idle_s(kits: Kits):
    timing = TimingConfig(connect_s=2.0, idle_s=0.9)

    async def run() -> None:
        async with (
            serving(kits.kit(Role.OWNER)) as server,
            silencing_proxy(server.address) as (address, silence),
            channel_to(address, kits.kit(Role.CLIENT, "c1"), timing=timing) as channel,
        ):
            states = aiter(channel.unary_stream("/grpc.health.v1.Health/Watch")(b""))
            await anext(states)
            silence.set()
            started = CLOCK.monotonic()
            with pytest.raises(PeerLost), faults.translated():
                await anext(states)
            assert CLOCK.monotonic() - started < 2 * timing.idle_s

    asyncio.run(run())


@asynccontextmanager
async def silencing_proxy(target: str) -> AsyncGenerator[tuple[str, asyncio.Event]]:
    """Forward TCP until the event is set; from then on swallow everything and close nothing: a half-open connection."""
    host, _, port = target.rpartition(":")
    silent = asyncio.Event()
    writers: list[asyncio.StreamWriter] = []

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65_536):
            if not silent.is_set():
                writer.write(data)

    async def join(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        inner_reader, inner_writer = await asyncio.open_connection(host, int(port))
        writers.extend((writer, inner_writer))
        with suppress(ConnectionError, asyncio.CancelledError):
            await asyncio.gather(pump(reader, inner_writer), pump(inner_reader, writer))

    proxy = await asyncio.start_server(join, "127.0.0.1", 0)
    try:
        yield f"127.0.0.1:{proxy.sockets[0].getsockname()[1]}", silent
    finally:
        proxy.close()
        for writer in writers:
            writer.close()


@pytest.mark.slow
def test_a_connection_that_is_cut_anywhere_in_its_first_call_is_dialled_again(kits: Kits):
    patient = TimingConfig(connect_s=10.0, idle_s=5.0)

    async def dialled_s(address: str, mark: int) -> float:
        proxy = FaultProxy(clock=CLOCK, seeds=SeedTree(mark))
        proxy.target = address
        proxy.cut_each_after(mark)
        way, began_s = await proxy.open(), CLOCK.monotonic()
        try:
            async with channel_to(way, kits.kit(Role.CLIENT, "c1"), timing=patient) as channel:
                await ready(channel, address=way, role=Role.OWNER, timing=patient)
        finally:
            await proxy.close()
        return CLOCK.monotonic() - began_s

    async def run() -> None:
        async with serving(kits.kit(Role.OWNER), timing=patient) as server:
            marks = range(100, 4100, 200)
            seconds = await asyncio.gather(*(dialled_s(server.address, mark) for mark in marks))
            assert max(seconds) < patient.connect_s / 2, dict(zip(marks, seconds, strict=True))

    asyncio.run(run())
