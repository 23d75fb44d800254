"""Is a sender or receiver that does not keep its word left in time, and one that is slow not?"""

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from hushtune_common.config import TimingConfig
from hushtune_common.errors import DeadlineExceeded, DigestMismatch, MalformedUpdate, PeerLost
from hushtune_common.store.blobs import BlobName, BlobStore
from hushtune_common.wire import transfer
from hushtune_common.wire.v1 import blobs_pb2 as pb
from hushtune_common.wire.v1 import blobs_pb2_grpc
from tests.fakes import FakeClock
from tests.transfer_stage import MIB, QUOTA, bench, name_of, options, sent


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
