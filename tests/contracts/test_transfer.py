"""Do bulk bytes arrive whole, once, and from where they were cut?"""

import asyncio
import hashlib
import os
import tracemalloc
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import grpc
import pytest

from hushtune_common.clock import SystemClock
from hushtune_common.config import TimingConfig
from hushtune_common.errors import (
    DigestMismatch,
    LimitExceeded,
    MalformedUpdate,
    NotYours,
    OffsetMismatch,
    PeerLost,
    StaleRound,
    StorageFull,
)
from hushtune_common.messages import Caller, Digest, Role
from hushtune_common.seeding import SeedTree
from hushtune_common.store.blobs import BlobName, BlobStore
from hushtune_common.wire import faults, transfer
from hushtune_common.wire.endpoint import serve
from hushtune_common.wire.pace import LEG_BYTES_MIN
from hushtune_common.wire.v1 import blobs_pb2 as pb
from hushtune_server.testbed.chaos.proxy import FaultProxy, Way
from tests.fakes import FakeClock
from tests.transfer_stage import MIB, QUOTA, TIMING, Bench, below_own_name, bench, name_of, options, part_of, write


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


@pytest.mark.slow
def test_a_transfer_holds_a_few_parts_whatever_its_size(tmp_path: Path):
    """Both ends are in this process: what Python holds of a blob that is many times as large is the parts on their way."""
    source = tmp_path / "blob"
    with source.open("wb") as file:
        file.truncate(48 * MIB)
    with source.open("rb") as file:
        name = BlobName(prefix="frames/c1", digest=Digest(hashlib.file_digest(file, "sha256").digest()), size=48 * MIB)

    async def run() -> tuple[int, int]:
        async with bench(tmp_path) as served:
            tracemalloc.start()
            await transfer.upload(served.channel(), name, source, **options())
            up = tracemalloc.get_traced_memory()[1]
            tracemalloc.reset_peak()
            fetched = BlobStore(tmp_path / "fetched", quota_bytes=QUOTA)
            await transfer.download(served.channel(), name, fetched, **options())
            down = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            assert fetched.complete(name)
            return up, down

    assert max(asyncio.run(run())) < 8 * MIB


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
        # The first part after a cut is the shortest leg.
        resumed = [then - LEG_BYTES_MIN for now, then in pairwise(seen) if then <= now and now < size]
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
