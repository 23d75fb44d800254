"""Do bulk bytes arrive whole, once, and from where they were cut?"""

import asyncio
import hashlib
import os
import zlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import grpc
import pytest

from hushtune_common.clock import SystemClock
from hushtune_common.config import TimingConfig
from hushtune_common.errors import (
    DeadlineExceeded,
    DigestMismatch,
    LimitExceeded,
    MalformedUpdate,
    NotYours,
    OffsetMismatch,
    PartCorrupt,
    PeerLost,
    StaleRound,
    StorageFull,
)
from hushtune_common.messages import Caller, Digest, Role
from hushtune_common.seeding import SeedTree
from hushtune_common.store.blobs import BlobName, BlobStore
from hushtune_common.wire import faults, transfer
from hushtune_common.wire.endpoint import connect, serve
from hushtune_common.wire.v1 import blobs_pb2 as pb
from hushtune_common.wire.v1 import blobs_pb2_grpc
from hushtune_server.testbed.chaos.proxy import FaultProxy, Way
from tests.fakes import FakeClock
from tests.kits import Kits

MIB = 1 << 20
QUOTA = 64 * MIB
TIMING = TimingConfig(connect_s=5.0, idle_s=5.0)


def name_of(data: bytes, prefix: str = "frames/c1") -> BlobName:
    return BlobName(prefix=prefix, digest=Digest(hashlib.sha256(data).digest()), size=len(data))


def below_own_name(caller: Caller, name: BlobName) -> bool:
    return name.prefix.startswith(f"frames/{caller.name}")


@dataclass
class Bench:
    """A server with a blob store, and a way to reach it as client c1."""

    store: BlobStore
    address: str
    kits: Kits
    channels: list[Any] = field(default_factory=list)

    def channel(self, *, address: str | None = None, name: str = "c1", timing: TimingConfig = TIMING) -> Any:
        kit = self.kits.kit(Role.CLIENT, name)
        channel = connect(address or self.address, role=Role.AIR, kit=kit, timing=timing)
        self.channels.append(channel)
        return channel

    def stub(self, **how: Any) -> Any:
        return blobs_pb2_grpc.BlobsStub(self.channel(**how))


@asynccontextmanager
async def bench(
    folder: Path,
    *,
    service: Any = None,
    quota: int = QUOTA,
    may_write: transfer.MayAccess = below_own_name,
    timing: TimingConfig = TIMING,
) -> AsyncGenerator[Bench]:
    kits = Kits(folder / "kits")
    store = BlobStore(folder / "served", quota_bytes=quota)
    served = service or transfer.BlobsService(
        store, may_read=lambda caller, name: True, may_write=may_write, size_max=QUOTA, idle_s=timing.idle_s
    )
    server = await serve(
        [transfer.register_blobs(served)],
        names=["hushtune.v1.Blobs"],
        listen="127.0.0.1:0",
        kit=kits.kit(Role.AIR),
        clock=SystemClock(),
        timing=timing,
    )
    made = Bench(store, server.address, kits)
    try:
        yield made
    finally:
        for channel in made.channels:
            await channel.close()
        await server.stop(0.0)


def options(**changes: Any) -> dict[str, Any]:
    plain = {"clock": FakeClock(autojump=True), "seeds": SeedTree(1), "timing": TIMING, "attempts_max": 3}
    return plain | changes


def part_of(data: bytes, offset: int, *, name: BlobName | None = None, finish: bool = False, crc: int | None = None) -> Any:
    return pb.WriteRequest(
        resource_name=name.text if name else "",
        write_offset=offset,
        data=data,
        crc32=zlib.crc32(data) if crc is None else crc,
        finish_write=finish,
    )


async def write(stub: Any, *parts: Any) -> Any:
    async def stream() -> AsyncIterator[Any]:
        for part in parts:
            yield part

    with faults.translated():
        return await stub.Write(stream(), timeout=5.0)


@pytest.mark.parametrize("size", [0, 1, 256 << 10, (256 << 10) + 1, 5 * MIB])
@pytest.mark.parametrize("from_file", [False, True])
def test_a_blob_goes_up_and_comes_down(tmp_path: Path, size: int, from_file: bool):
    data = os.urandom(size)
    name = name_of(data)
    (tmp_path / "source").write_bytes(data)
    seen: list[tuple[int, int]] = []

    def note(done: int, total: int) -> None:
        seen.append((done, total))

    async def run() -> None:
        async with bench(tmp_path) as served:
            source = tmp_path / "source" if from_file else data
            await transfer.upload(served.channel(), name, source, **options(progress=note))
            assert served.store.path(name).read_bytes() == data
            mine = BlobStore(tmp_path / "mine", quota_bytes=QUOTA)
            path = await transfer.download(served.channel(), name, mine, **options())
            assert path.read_bytes() == data

    asyncio.run(run())
    assert seen == sorted(seen)
    assert seen[-1] == (size, size)


def test_a_held_blob_is_not_sent_again(tmp_path: Path):
    data = os.urandom(MIB)

    async def run() -> None:
        async with bench(tmp_path) as served:
            name = served.store.put("frames/c1", data)
            await transfer.upload(served.channel(), name, tmp_path / "no such file", **options())
            assert await transfer.download(served.channel(), name, served.store, **options()) == served.store.path(name)
            late = await write(served.stub(), part_of(b"ignored", 77, name=name, finish=True))
            assert (late.committed_size, late.complete) == (MIB, True)

    asyncio.run(run())


def test_find_missing_names_what_is_not_held_completely(tmp_path: Path):
    async def run() -> None:
        async with bench(tmp_path) as served:
            held, missing = served.store.put("frames/c1", b"held"), name_of(b"missing")
            stub = served.stub()
            with faults.translated():
                answer = await stub.FindMissing(pb.FindMissingRequest(resource_names=[held.text, missing.text]))
                assert list(answer.resource_names) == [missing.text]
            with pytest.raises(LimitExceeded), faults.translated():
                await stub.FindMissing(pb.FindMissingRequest(resource_names=[held.text] * 1025))

    asyncio.run(run())


def test_a_write_resumes_at_the_committed_offset_only(tmp_path: Path):
    data = os.urandom(3 * MIB)
    name = name_of(data)

    async def run() -> None:
        async with bench(tmp_path) as served:
            stub = served.stub()
            first = await write(stub, part_of(data[:MIB], 0, name=name), part_of(data[MIB : 2 * MIB], MIB))
            assert (first.committed_size, first.complete) == (2 * MIB, False)
            for wrong in (0, MIB, 3 * MIB):
                with pytest.raises(OffsetMismatch) as refused:
                    await write(stub, part_of(data[-5:], wrong, name=name, finish=True))
                assert refused.value.committed_size == 2 * MIB
            with faults.translated():
                status = await stub.QueryWriteStatus(pb.QueryWriteStatusRequest(resource_name=name.text))
            assert (status.committed_size, status.complete) == (2 * MIB, False)
            last = await write(stub, part_of(data[2 * MIB :], 2 * MIB, name=name, finish=True))
            assert (last.committed_size, last.complete) == (3 * MIB, True)
            assert served.store.path(name).read_bytes() == data

    asyncio.run(run())


@pytest.mark.slow
def test_an_upload_cut_anywhere_sends_nothing_again_that_was_durable(tmp_path: Path):
    size = 12 * MIB

    async def sent_and_resumed(served: Bench, data: bytes, cut: int) -> tuple[int, int]:
        seen = [0]

        def note(done: int, total: int) -> None:
            seen.append(done)

        async with cutting_proxy(served.address, after_bytes=cut) as (address, forwarded):
            channel = served.channel(address=address)
            await transfer.upload(channel, name_of(data), data, **options(progress=note))
        resumed = [then - transfer.part_bytes(size) for now, then in pairwise(seen) if then <= now and now < size]
        return sum(forwarded), max(resumed, default=0)

    async def run() -> None:
        async with bench(tmp_path) as served:
            for cut in range(0, size, size // 8):
                data = os.urandom(size)
                sent, resumed = await sent_and_resumed(served, data, cut)
                assert served.store.path(name_of(data)).read_bytes() == data
                assert 0 <= resumed <= cut
                assert sent <= cut + (size - resumed) + size // 20  # a twentieth for TLS, framing and the other calls
                served.store.discard("frames")

    asyncio.run(run())


@pytest.mark.slow
def test_a_download_cut_in_the_middle_goes_on_from_what_is_held(tmp_path: Path):
    data = os.urandom(12 * MIB)

    async def run() -> None:
        async with bench(tmp_path) as served:
            name = served.store.put("frames/c1", data)
            mine = BlobStore(tmp_path / "mine", quota_bytes=QUOTA)
            async with cutting_proxy(served.address, after_bytes=6 * MIB) as (address, forwarded):
                path = await transfer.download(served.channel(address=address), name, mine, **options())
            assert path.read_bytes() == data
            assert sum(forwarded) < 12 * MIB + 4 * MIB  # what has arrived is kept, but for what was under way

    asyncio.run(run())


@asynccontextmanager
async def cutting_proxy(target: str, *, after_bytes: int) -> AsyncGenerator[tuple[str, list[int]]]:
    """Forward TCP; the first connection is reset after that many bytes. Yields its address and the bytes of each direction."""
    host, _, port = target.rpartition(":")
    forwarded: list[int] = []
    budgets = [after_bytes]
    open_writers: list[asyncio.StreamWriter] = []

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, budget: list[int]) -> None:
        while data := await reader.read(65_536):
            forwarded.append(len(data))
            if budget:
                budget[0] -= len(data)
                if budget[0] < 0:
                    raise ConnectionResetError
            writer.write(data)
            await writer.drain()

    async def join(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        inner_reader, inner_writer = await asyncio.open_connection(host, int(port))
        open_writers.extend((writer, inner_writer))
        budget = [budgets.pop()] if budgets else []
        with suppress(ConnectionError, asyncio.CancelledError):
            await asyncio.gather(pump(reader, inner_writer, budget), pump(inner_reader, writer, budget))
        for end in (writer, inner_writer):
            end.transport.abort()

    proxy = await asyncio.start_server(join, "127.0.0.1", 0)
    try:
        yield f"127.0.0.1:{proxy.sockets[0].getsockname()[1]}", forwarded
    finally:
        proxy.close()
        for writer in open_writers:
            writer.transport.abort()


@pytest.mark.slow
def test_a_slow_link_that_moves_is_never_cut_in_either_direction(tmp_path: Path):
    # 64 KiB in half of idle_s: keepalive, parts and answers all have to come through behind what is on its way.
    timing = TimingConfig(connect_s=10.0, idle_s=2.0)
    rate_bps, size = 2 * (64 << 10) / timing.idle_s, 300_000
    data = os.urandom(size)

    async def run() -> None:
        async with bench(tmp_path, timing=timing) as served:
            proxies = [FaultProxy(clock=SystemClock(), seeds=SeedTree(1)) for _ in Way]
            for proxy, way in zip(proxies, Way, strict=True):
                proxy.target, proxy.weather[way].rate_bps = served.address, rate_bps
            up, down = [served.channel(address=await proxy.open(), timing=timing) for proxy in proxies]
            name, mine = served.store.put("frames/c2", data), BlobStore(tmp_path / "mine", quota_bytes=QUOTA)
            how = options(clock=SystemClock(), timing=timing, attempts_max=1)  # a single cut would end it
            began_s = SystemClock().monotonic()
            await asyncio.gather(transfer.upload(up, name_of(data), data, **how), transfer.download(down, name, mine, **how))
            assert SystemClock().monotonic() - began_s > 2 * timing.idle_s
            assert [len(proxy.connections) for proxy in proxies] == [1, 1]
            for proxy in proxies:
                await proxy.close()

    asyncio.run(run())


def test_a_second_write_takes_over_from_a_half_open_one(tmp_path: Path):
    data = os.urandom(3 * MIB)
    name = name_of(data)

    asked = asyncio.Event()

    def may_write(caller: Caller, name: BlobName) -> bool:
        asked.set()
        return True

    async def run() -> None:
        async with bench(tmp_path, may_write=may_write) as served:
            half_open = served.stub().Write()
            await half_open.write(part_of(data[:MIB], 0, name=name))
            await asked.wait()  # the server has the first part in hand
            await transfer.upload(served.channel(), name, data, **options())
            with suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
                await half_open.write(part_of(b"?" * MIB, MIB))
            with pytest.raises(PeerLost), faults.translated():
                await half_open
            assert served.store.path(name).read_bytes() == data

    asyncio.run(run())


def test_a_corrupt_part_is_refused_and_nothing_of_it_kept(tmp_path: Path):
    data = os.urandom(2 * MIB)
    name = name_of(data)

    async def run() -> None:
        async with bench(tmp_path) as served:
            stub = served.stub()
            with pytest.raises(PartCorrupt):
                await write(stub, part_of(data[:MIB], 0, name=name, crc=1))
            assert served.store.committed_size(name) == 0
            done = await write(stub, part_of(data[:MIB], 0, name=name), part_of(data[MIB:], MIB, finish=True))
            assert done.complete

    asyncio.run(run())


def test_a_lying_digest_ends_the_upload_after_one_restart(tmp_path: Path):
    data = os.urandom(MIB)
    lie = BlobName(prefix="frames/c1", digest=Digest(bytes(32)), size=len(data))
    seen: list[int] = []

    def note(done: int, total: int) -> None:
        seen.append(done)

    async def run() -> None:
        async with bench(tmp_path) as served:
            with pytest.raises(DigestMismatch):
                await transfer.upload(served.channel(), lie, data, **options(attempts_max=9, progress=note))
            assert served.store.used_bytes == 0

    asyncio.run(run())
    assert sum(later <= earlier for earlier, later in pairwise(seen)) == 1


@pytest.mark.parametrize(
    ("parts", "error"),
    [
        ([], MalformedUpdate),
        ([pb.WriteRequest(resource_name="frames/../../etc")], MalformedUpdate),
        ([part_of(b"x" * (MIB + 1), 0, name=name_of(bytes(2 * MIB)))], LimitExceeded),
        ([part_of(b"", 0, name=name_of(b"abc"))], MalformedUpdate),
        ([part_of(b"a", 0, name=name_of(b"abc")), part_of(b"b", 1, name=name_of(b"abd"))], MalformedUpdate),
        ([part_of(b"abcd", 0, name=name_of(b"abc"), finish=True)], DigestMismatch),
        ([part_of(b"ab", 0, name=name_of(b"abc"), finish=True)], DigestMismatch),
        ([part_of(b"abc", -3, name=name_of(b"abc"), finish=True)], OffsetMismatch),
        ([part_of(b"a", 0, name=BlobName(prefix="frames/c1", digest=Digest(bytes(32)), size=QUOTA + 1))], LimitExceeded),
        ([part_of(b"a", 0, name=name_of(b"abc", "frames/c2"))], NotYours),
    ],
    ids=["nothing", "path", "large part", "empty part", "renamed", "too long", "too short", "offset", "large blob", "not yours"],
)
def test_bad_writes_are_refused(tmp_path: Path, parts: list[Any], error: type[Exception]):
    async def run() -> None:
        async with bench(tmp_path) as served:
            with pytest.raises(error):
                await write(served.stub(), *parts)
            assert not list((tmp_path / "served" / "complete").rglob("*"))

    asyncio.run(run())


@pytest.mark.parametrize(
    ("name", "error"),
    [
        (BlobName(prefix="frames/c1", digest=Digest(bytes(32)), size=QUOTA + 1), LimitExceeded),
        (BlobName(prefix="frames/c1", digest=Digest(bytes(32)), size=QUOTA), StorageFull),
        (BlobName(prefix="emulators", digest=Digest(bytes(32)), size=5), NotYours),
    ],
    ids=["large blob", "no room", "not yours"],
)
def test_what_the_name_forbids_is_said_before_any_byte_is_sent(tmp_path: Path, name: BlobName, error: type[Exception]):
    async def run() -> None:
        async with bench(tmp_path) as served:
            served.store.put("other", b"in the way")
            with pytest.raises(error):
                await transfer.upload(served.channel(), name, tmp_path / "never read", **options())

    asyncio.run(run())


def test_reading_honours_offset_and_limit_and_refuses_others(tmp_path: Path):
    data = os.urandom(MIB)

    async def run() -> None:
        async with bench(tmp_path) as served:
            name = served.store.put("frames/c2", data)
            stub = served.stub()

            async def read(**request: Any) -> bytes:
                with faults.translated():
                    return b"".join([part.data async for part in stub.Read(pb.ReadRequest(**request))])

            assert await read(resource_name=name.text, read_offset=1000) == data[1000:]
            assert await read(resource_name=name.text, read_offset=1000, read_limit=500_000) == data[1000:501_000]
            assert await read(resource_name=name.text, read_offset=MIB) == b""
            with pytest.raises(MalformedUpdate, match="read_offset"):
                await read(resource_name=name.text, read_offset=MIB + 1)
            with pytest.raises(StaleRound, match="not held"):
                await read(resource_name=name_of(b"absent").text)

    asyncio.run(run())


def test_a_full_store_is_said_and_waited_for(tmp_path: Path):
    data = os.urandom(MIB)

    async def run() -> None:
        async with bench(tmp_path, quota=MIB + 10) as served:
            other = served.store.put("other", bytes(100))
            vain = FakeClock(autojump=True)
            with pytest.raises(StorageFull, match="do not fit"):
                await transfer.upload(served.channel(), name_of(data), data, **options(clock=vain, timing=TIMING))
            assert TIMING.round_s <= vain.monotonic() < TIMING.round_s + 7.0, "a person gets as long as a round to make room"

            class Tidying(FakeClock):
                async def sleep(self, seconds: float) -> None:
                    waits.append(seconds)
                    served.store.discard(other.prefix)

            waits: list[float] = []
            await transfer.upload(served.channel(), name_of(data), data, **options(clock=Tidying()))
            assert served.store.complete(name_of(data))
            assert [5.0 <= wait <= 6.25 for wait in waits] == [True], "as long as the receiver said, and a little more"

    asyncio.run(run())


class Stub(blobs_pb2_grpc.BlobsServicer):
    """A peer that misbehaves: ``read`` makes what ``Read`` sends."""

    def __init__(self, read: Callable[[int], AsyncIterator[Any]]) -> None:
        self._read = read
        self.offsets: list[int] = []

    async def FindMissing(self, request: Any, context: Any) -> Any:  # noqa: N802  # gRPC method name
        return pb.FindMissingResponse()

    async def QueryWriteStatus(self, request: Any, context: Any) -> Any:  # noqa: N802  # gRPC method name
        return pb.QueryWriteStatusResponse()

    async def Write(self, request_iterator: Any, context: Any) -> Any:  # noqa: N802  # gRPC method name
        await asyncio.Event().wait()

    async def Read(self, request: Any, context: Any) -> AsyncIterator[Any]:  # noqa: N802  # gRPC method name
        self.offsets.append(request.read_offset)
        async for part in self._read(request.read_offset):
            yield part


def sent(data: bytes, offset: int, *, crc: int | None = None) -> Any:
    return pb.ReadResponse(offset=offset, data=data, crc32=zlib.crc32(data) if crc is None else crc)


def download_from(
    tmp_path: Path, read: Callable[[int], AsyncIterator[Any]], name: BlobName, **changes: Any
) -> tuple[Any, list[int]]:
    peer = Stub(read)

    async def run() -> Any:
        async with bench(tmp_path, service=peer) as served:
            mine = BlobStore(tmp_path / "mine", quota_bytes=QUOTA)
            return await transfer.download(served.channel(), name, mine, **options(**changes))

    try:
        return asyncio.run(run()), peer.offsets
    except Exception as error:
        return error, peer.offsets


def test_a_part_damaged_on_the_way_is_fetched_again_from_what_is_held(tmp_path: Path):
    data = os.urandom(MIB)
    damage = [1]

    async def read(offset: int) -> AsyncIterator[Any]:
        yield sent(data[offset : MIB // 2], offset) if offset < MIB // 2 else sent(data[offset:], offset)
        if damage:
            yield sent(data[MIB // 2 :], MIB // 2, crc=damage.pop())

    path, offsets = download_from(tmp_path, read, name_of(data))
    assert path.read_bytes() == data
    assert offsets == [0, MIB // 2]


def test_a_sender_of_other_bytes_is_given_one_more_chance(tmp_path: Path):
    async def read(offset: int) -> AsyncIterator[Any]:
        yield sent(b"other", offset)

    error, offsets = download_from(tmp_path, read, name_of(b"right"), attempts_max=9)
    assert type(error) is DigestMismatch
    assert offsets == [0, 0]


@pytest.mark.parametrize(("data", "at"), [(b"", 0), (b"right", 1)], ids=["an empty part", "another offset"])
def test_a_sender_that_breaks_the_protocol_is_left_at_once(tmp_path: Path, data: bytes, at: int):
    async def read(offset: int) -> AsyncIterator[Any]:
        yield sent(data, at)

    error, offsets = download_from(tmp_path, read, name_of(b"right"), attempts_max=9)
    assert type(error) is MalformedUpdate
    assert offsets == [0]


def test_retries_go_on_while_bytes_get_through_and_stop_when_none_do(tmp_path: Path):
    data = os.urandom(10)

    async def read(offset: int) -> AsyncIterator[Any]:
        if offset < 8:
            yield sent(data[offset : offset + 1], offset)

    error, offsets = download_from(tmp_path, read, name_of(data), attempts_max=3)
    assert type(error) is PeerLost
    assert offsets == [0, 1, 2, 3, 4, 5, 6, 7, 8, 8, 8]


@pytest.mark.slow
def test_a_stalled_sender_is_left_after_idle_s_and_a_slow_one_is_not(tmp_path: Path):
    timing = TimingConfig(connect_s=5.0, idle_s=0.2)
    data = b"0123456789"

    async def stall(offset: int) -> AsyncIterator[Any]:
        yield sent(data[offset : offset + 1], offset)
        await asyncio.Event().wait()

    async def trickle(offset: int) -> AsyncIterator[Any]:
        for at in range(offset, len(data)):
            yield sent(data[at : at + 1], at)
            await asyncio.sleep(timing.idle_s / 4)  # the pace is what is tested

    error, _ = download_from(tmp_path / "a", stall, name_of(data), timing=timing, attempts_max=1)
    assert type(error) is DeadlineExceeded
    path, offsets = download_from(tmp_path / "b", trickle, name_of(data), timing=timing, attempts_max=1)
    assert path.read_bytes() == data
    assert offsets == [0]


def test_a_receiver_that_never_answers_is_left_after_idle_s(tmp_path: Path):
    async def nothing(offset: int) -> AsyncIterator[Any]:
        yield sent(b"", offset)

    async def run() -> None:
        async with bench(tmp_path, service=Stub(nothing)) as served:
            timing = TimingConfig(connect_s=5.0, idle_s=0.2)
            with pytest.raises(DeadlineExceeded, match="nothing moved"):
                await transfer.upload(served.channel(), name_of(b"abc"), b"abc", **options(timing=timing, attempts_max=1))

    asyncio.run(run())


def test_a_server_that_is_gone_is_given_up_after_bounded_waits(tmp_path: Path):
    class Counting(FakeClock):
        waits: list[float]

        async def sleep(self, seconds: float) -> None:
            self.waits.append(seconds)

    clock = Counting()
    clock.waits = []

    async def run() -> None:
        async with bench(tmp_path) as served:
            channel = served.channel()
        timing = TimingConfig(connect_s=1.0, idle_s=0.1)
        with pytest.raises((PeerLost, DeadlineExceeded)):
            await transfer.upload(channel, name_of(b"abc"), b"abc", **options(clock=clock, timing=timing, attempts_max=4))

    asyncio.run(run())
    assert len(clock.waits) == 3
    assert all(0.0 <= wait <= 0.5 * 2**index for index, wait in enumerate(clock.waits))


def test_a_restarted_server_goes_on_from_its_durable_bytes(tmp_path: Path):
    data = os.urandom(3 * MIB)
    name = name_of(data)

    async def run() -> None:
        async with bench(tmp_path) as served:
            first = await write(served.stub(), part_of(data[:MIB], 0, name=name))
            assert first.committed_size == MIB
            seen: list[int] = []

            def note(done: int, total: int) -> None:
                seen.append(done)

            store = BlobStore(tmp_path / "served", quota_bytes=QUOTA)
            rules = {"may_read": below_own_name, "may_write": below_own_name}
            service = transfer.BlobsService(store, **rules, size_max=QUOTA, idle_s=TIMING.idle_s)
            server = await serve(
                [transfer.register_blobs(service)],
                names=[],
                listen="127.0.0.1:0",
                kit=served.kits.kit(Role.AIR),
                clock=SystemClock(),
                timing=TIMING,
            )
            channel = served.channel(address=server.address)
            await transfer.upload(channel, name, data, **options(progress=note))
            assert min(seen) > MIB
            assert store.path(name).read_bytes() == data
            await server.stop(0.0)

    asyncio.run(run())
