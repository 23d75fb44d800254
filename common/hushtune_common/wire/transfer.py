"""How do bulk bytes travel? The Blobs service and the loops that read from it and write to it.

Content-addressed, resumable by offset, checksummed by part, idempotent. Progress, not elapsed time, keeps a transfer alive.
"""

import asyncio
import os
import zlib
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Generator, Iterator
from contextlib import aclosing, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import grpc

from hushtune_common.clock import Clock
from hushtune_common.config import TimingConfig
from hushtune_common.errors import (
    DeadlineExceeded,
    DigestMismatch,
    HushtuneError,
    LimitExceeded,
    MalformedUpdate,
    NotYours,
    OperatingFault,
    PartCorrupt,
    PeerLost,
    StaleRound,
    StorageFull,
)
from hushtune_common.messages import Caller
from hushtune_common.seeding import SeedTree
from hushtune_common.store.blobs import BlobName, BlobStore, PartialWriter
from hushtune_common.store.room import Room
from hushtune_common.wire import faults
from hushtune_common.wire.interceptors import caller_of
from hushtune_common.wire.pace import Legs, Pace
from hushtune_common.wire.v1 import blobs_pb2 as pb
from hushtune_common.wire.v1 import blobs_pb2_grpc

PART_BYTES_MAX = 1 << 20
_PART_BYTES = 512 << 10
_SMALL_PART_BYTES = 64 << 10
_SMALL_BLOB_BYTES = 4 << 20
_BIG_BLOB_BYTES = 64 << 20
_NAMES_MAX = 1024
_END: Any = vars(grpc.aio)["EOF"]  # exported, but missing from its type stubs
BACKOFF_BASE_S = 0.5
"""The wait before the first new try is shorter than this."""
_BACKOFF_CAP_S = 20.0

Progress = Callable[[int, int], None]
"""Called with bytes done and bytes in total."""

MayAccess = Callable[[Caller, BlobName], bool]


def part_bytes(size: int) -> int:
    """Return the part size for a blob of ``size`` bytes.

    What a cut costs is at least the part that was on its way: a small blob in large parts never gets through a connection that
    is cut all the time. A slow way, and one that was cut, gets shorter parts (`Pace`).
    """
    if size >= _BIG_BLOB_BYTES:
        return PART_BYTES_MAX
    return _SMALL_PART_BYTES if size <= _SMALL_BLOB_BYTES else _PART_BYTES


class BlobsService(blobs_pb2_grpc.BlobsServicer):
    """Serves a ``BlobStore``. Who may read and write which names is decided by the two functions, from the certificate."""

    def __init__(self, store: BlobStore, *, may_read: MayAccess, may_write: MayAccess, size_max: int, idle_s: float) -> None:
        """Bound a written blob to ``size_max`` bytes, and the wait for its next part to ``idle_s`` seconds."""
        self._store = store
        self._may_read = may_read
        self._may_write = may_write
        self._size_max = size_max
        self._idle_s = idle_s

    async def FindMissing(self, request: pb.FindMissingRequest, context: Any) -> pb.FindMissingResponse:
        """Answer which of the names are not held completely; all must be the caller's to read or to write."""
        caller = caller_of(context)
        if len(request.resource_names) > _NAMES_MAX:
            raise LimitExceeded(f"resource_names: at most {_NAMES_MAX} at once")
        names = [self._allowed(caller, text, self._may_read, self._may_write) for text in request.resource_names]
        return pb.FindMissingResponse(resource_names=[name.text for name in names if not self._store.complete(name)])

    async def QueryWriteStatus(self, request: pb.QueryWriteStatusRequest, context: Any) -> pb.QueryWriteStatusResponse:
        """Make durable what has arrived of a blob, answer how much that is, and refuse what ``Write`` would refuse for its name.

        A sender asks first, and learns here what a refusal in mid-stream may not tell it: gRPC can lose that status.
        """
        name = self._allowed(caller_of(context), request.resource_name, self._may_write)
        self._require_acceptable(name)
        size = await self._store.settle(name)
        return pb.QueryWriteStatusResponse(committed_size=size, complete=self._store.complete(name))

    async def Write(self, request_iterator: Any, context: Any) -> pb.WriteResponse:
        """Receive parts from the committed size on. A complete name is answered at once and its bytes are ignored."""
        caller = caller_of(context)
        stream = aiter(request_iterator)
        first: Any = await self._next(stream)
        if first is None:
            raise MalformedUpdate("resource_name: a write without a message")
        name = self._allowed(caller, first.resource_name, self._may_write)
        self._require_acceptable(name)
        if self._store.complete(name):
            return pb.WriteResponse(committed_size=name.size, complete=True)
        writer, part = self._store.writer(name), first
        while part is not None:  # bounded: every part but the last carries bytes, and the name bounds their sum
            if part.resource_name not in ("", first.resource_name):
                raise MalformedUpdate("resource_name: changed within one write")
            if not part.data and not part.finish_write:
                raise MalformedUpdate("data: empty, and not the end")
            _require_sound(part.data, part.crc32)
            await writer.write(part.write_offset, part.data)
            if part.finish_write:
                await writer.finish()
                return pb.WriteResponse(committed_size=name.size, complete=True)
            part = await self._next(stream)
        await writer.sync()
        return pb.WriteResponse(committed_size=writer.committed_size, complete=False)

    async def Read(self, request: pb.ReadRequest, context: Any) -> AsyncIterator[pb.ReadResponse]:
        """Send a complete blob from an offset on."""
        name = self._allowed(caller_of(context), request.resource_name, self._may_read)
        path = self._store.path(name)
        if not 0 <= request.read_offset <= name.size or request.read_limit < 0:
            raise MalformedUpdate(f"read_offset: {request.read_offset} is not within the {name.size} bytes of the blob")
        end = min(name.size, request.read_offset + request.read_limit) if request.read_limit else name.size
        spans = _spans(request.read_offset, end, step=lambda: part_bytes(name.size))
        async with aclosing(_parts(path, spans)) as parts:
            async for offset, data, crc in parts:
                yield pb.ReadResponse(offset=offset, data=data, crc32=crc)

    def _require_acceptable(self, name: BlobName) -> None:
        if name.size > self._size_max:
            raise LimitExceeded(f"{name.size} bytes are more than the {self._size_max} allowed")
        self._store.require_room(name)

    async def _next(self, stream: AsyncIterator[Any]) -> Any:
        async with _moving(self._idle_s):
            return await anext(stream, None)

    def _allowed(self, caller: Caller, text: str, *rules: MayAccess) -> BlobName:
        name = BlobName.parse(text)
        if not any(may(caller, name) for may in rules):
            raise NotYours(f"{caller.uri} may not touch {name.prefix}")
        return name


def register_blobs(service: BlobsService) -> Callable[[grpc.aio.Server], None]:
    """Return the registration of ``service`` for ``endpoint.serve``."""
    return lambda server: blobs_pb2_grpc.add_BlobsServicer_to_server(service, server)


async def upload(
    channel: grpc.aio.Channel,
    name: BlobName,
    source: Path | bytes,
    *,
    clock: Clock,
    seeds: SeedTree,
    timing: TimingConfig,
    attempts_max: int,
    progress: Progress | None = None,
) -> None:
    """Send ``source`` under ``name`` until the receiver has it durably; returns at once when it has it already.

    Goes on while the receiver's committed size grows; after ``attempts_max`` tries in a row without growth the last error is
    raised, ``StorageFull`` not before ``round_s``. A fault of ours or the peer's (``ProtocolFault``) is raised at once, a wrong
    digest after one restart from zero.
    """
    stub: Any = blobs_pb2_grpc.BlobsStub(channel)
    pace = Pace(idle_s=timing.idle_s)
    patience = _Patience(name, clock=clock, seeds=seeds, attempts_max=attempts_max, round_s=timing.round_s)
    while True:  # bounded by the patience, which raises
        try:
            with faults.translated():
                request, asked_s = pb.QueryWriteStatusRequest(resource_name=name.text), clock.monotonic()
                status = await stub.QueryWriteStatus(request, timeout=timing.idle_s)
                pace.answered(clock.monotonic() - asked_s)
            patience.reached(status.committed_size)
            if not status.complete:
                offset, idle_s = status.committed_size, timing.idle_s
                legs = Legs(pace, ask=_asked_nothing(stub), clock=clock)
                await _write(stub, name, source, offset=offset, idle_s=idle_s, legs=legs, progress=progress)
            break
        except HushtuneError as error:
            pace.cut()
            await patience.after(error)
    if progress:
        progress(name.size, name.size)


async def download(
    channel: grpc.aio.Channel,
    name: BlobName,
    store: BlobStore,
    *,
    clock: Clock,
    seeds: SeedTree,
    timing: TimingConfig,
    attempts_max: int,
    progress: Progress | None = None,
) -> Path:
    """Fetch ``name`` into ``store`` and return its file; goes on from what the store holds. Retries as ``upload`` does."""
    stub: Any = blobs_pb2_grpc.BlobsStub(channel)
    pace = Pace(idle_s=timing.idle_s)
    patience = _Patience(name, clock=clock, seeds=seeds, attempts_max=attempts_max, round_s=timing.round_s)
    while not store.complete(name):  # bounded by the patience, which raises
        try:
            writer = store.writer(name)
            patience.reached(writer.committed_size)
            await _read_all(stub, name, writer, idle_s=timing.idle_s, pace=pace, clock=clock, progress=progress)
        except HushtuneError as error:
            pace.cut()
            await patience.after(error)
    if progress:
        progress(name.size, name.size)
    return store.path(name)


class _Patience:
    """Decides after each fault whether to try again: as long as bytes get through, else a bounded number of times."""

    def __init__(self, name: BlobName, *, clock: Clock, seeds: SeedTree, attempts_max: int, round_s: float) -> None:
        self._clock = clock
        self._rng = seeds.child("backoff", name.text).generator()
        self._room = Room(clock=clock, rng=self._rng, within_s=round_s)
        self._attempts_max = attempts_max
        self._failures = 0
        self._reached = 0
        self._restarts = 0

    def reached(self, committed_size: int) -> None:
        """Note progress: bytes that are durable at the receiver."""
        if committed_size > self._reached:
            self._reached, self._failures = committed_size, 0
            self._room.found()

    async def after(self, error: HushtuneError) -> None:
        """Wait before the next try, or raise ``error``. Full jitter: uniform below a bound that doubles; for room as told."""
        if isinstance(error, StorageFull):
            return await self._room.wait(error)
        if isinstance(error, DigestMismatch):
            self._restarts += 1
            self._reached = 0
        elif not isinstance(error, OperatingFault):
            raise error
        self._failures += 1
        if self._failures >= self._attempts_max or self._restarts > 1:
            raise error
        bound_s = min(_BACKOFF_CAP_S, BACKOFF_BASE_S * 2.0 ** (self._failures - 1))
        return await self._clock.sleep(float(self._rng.uniform(0.0, bound_s)))


def _asked_nothing(stub: Any) -> Callable[[], Awaitable[object]]:
    """Return a call that any receiver answers at once."""
    return lambda: stub.FindMissing(pb.FindMissingRequest(), wait_for_ready=False)


async def _write(
    stub: Any, name: BlobName, source: Path | bytes, *, offset: int, idle_s: float, legs: Legs, progress: Progress | None
) -> None:
    call = stub.Write()
    over = asyncio.ensure_future(call.code())
    try:
        # A call that has ended refuses further parts; why it has ended is its own answer, awaited below.
        with suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
            spans = _spans(offset, name.size, step=lambda: min(part_bytes(name.size), legs.leg_bytes))
            async with aclosing(_parts(source, spans)) as parts:
                async for position, data, crc in parts:
                    end = position + len(data)
                    request = pb.WriteRequest(write_offset=position, data=data, crc32=crc, finish_write=end == name.size)
                    if position == offset:
                        request.resource_name = name.text
                    async with _moving(idle_s):
                        await call.write(request)
                    if progress:
                        progress(end, name.size)
                    await legs.sent(len(data), over=over, idle_s=idle_s)
            await call.done_writing()
        with faults.translated():
            async with _moving(idle_s):
                answer = await call
    finally:
        call.cancel()
        await legs.close()
        over.cancel()
    if not answer.complete:
        raise PeerLost(f"the receiver ended the transfer at {answer.committed_size} of {name.size} bytes")


async def _read_all(
    stub: Any, name: BlobName, writer: PartialWriter, *, idle_s: float, pace: Pace, clock: Clock, progress: Progress | None
) -> None:
    """Read to the end; what has arrived when that fails is made durable."""
    try:
        await _read(stub, name, writer, idle_s=idle_s, pace=pace, clock=clock, progress=progress)
    except HushtuneError:
        with suppress(HushtuneError):
            await writer.sync()
        raise


async def _read(
    stub: Any, name: BlobName, writer: PartialWriter, *, idle_s: float, pace: Pace, clock: Clock, progress: Progress | None
) -> None:
    """Ask for one leg after another: so much and no more is on its way."""
    offset = writer.committed_size
    while offset < name.size:
        began_s, end = clock.monotonic(), min(name.size, offset + pace.leg_bytes)
        offset = await _read_leg(stub, name, writer, offset=offset, end=end, idle_s=idle_s, progress=progress)
        pace.took(clock.monotonic() - began_s)
    await writer.finish()


async def _read_leg(
    stub: Any, name: BlobName, writer: PartialWriter, *, offset: int, end: int, idle_s: float, progress: Progress | None
) -> int:
    call = stub.Read(pb.ReadRequest(resource_name=name.text, read_offset=offset, read_limit=end - offset))
    try:
        with faults.translated():
            while offset < end:
                async with _moving(idle_s):
                    part = await call.read()
                if part is _END:
                    raise PeerLost(f"the sender ended the transfer at {offset} of {name.size} bytes")
                if part.offset != offset or not part.data:
                    raise MalformedUpdate(f"offset: {len(part.data)} bytes at {part.offset}, expected some at {offset}")
                _require_sound(part.data, part.crc32)
                await writer.write(offset, part.data)
                offset += len(part.data)
                if progress:
                    progress(offset, name.size)
        return offset
    finally:
        call.cancel()


def _spans(start: int, end: int, *, step: Callable[[], int]) -> Generator[tuple[int, int]]:
    """Yield where each part begins and how long it is, at least one; ``step`` is asked anew for each."""
    while True:
        count = min(step(), end - start)
        yield start, count
        start += count
        if start >= end:
            return


async def _parts(source: Path | bytes, spans: Iterator[tuple[int, int]]) -> AsyncGenerator[tuple[int, bytes, int]]:
    """Yield offset, bytes and CRC-32 of each part; the next is read while the current one is sent."""
    loop = asyncio.get_running_loop()
    span = next(spans, None)
    coming = loop.run_in_executor(None, _part, source, *span) if span else None
    try:
        while span and coming:
            (offset, _), (data, crc) = span, await coming
            span = next(spans, None)
            coming = loop.run_in_executor(None, _part, source, *span) if span else None
            yield offset, data, crc
    finally:
        if coming:
            coming.cancel()  # one that nobody will send


def _part(source: Path | bytes, offset: int, count: int) -> tuple[bytes, int]:
    if isinstance(source, bytes):
        data = source[offset : offset + count]
    else:
        # Opened for each part: a transfer that is cut leaves no descriptor behind.
        try:
            with source.open("rb", buffering=0) as stream:
                data = os.pread(stream.fileno(), count, offset)
        except FileNotFoundError:
            raise StaleRound("the blob was discarded") from None
    if len(data) != count:
        raise DigestMismatch(f"the source ends at {offset + len(data)}, before the size that its name announces")
    return data, zlib.crc32(data)


def _require_sound(data: bytes, crc: int) -> None:
    if len(data) > PART_BYTES_MAX:
        raise LimitExceeded(f"data: a part has at most {PART_BYTES_MAX} bytes, got {len(data)}")
    if zlib.crc32(data) != crc:
        raise PartCorrupt("the checksum of a part is wrong; nothing of it was kept")


@asynccontextmanager
async def _moving(idle_s: float) -> AsyncGenerator[None]:
    """Raise ``DeadlineExceeded`` when the block takes longer than ``idle_s``: nothing has moved."""
    try:
        async with asyncio.timeout(idle_s):
            yield
    except TimeoutError:
        raise DeadlineExceeded(f"nothing moved for {idle_s:g} s") from None
