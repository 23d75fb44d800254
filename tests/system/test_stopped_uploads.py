"""Does an upload lose a byte when the air is told to stop in the middle of it?"""

import asyncio
import signal
import zlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from hushtune_common.clock import SystemClock
from hushtune_common.config import TimingConfig
from hushtune_common.messages import Digest, Role
from hushtune_common.seeding import SeedTree
from hushtune_common.store.blobs import BlobName
from hushtune_common.wire import endpoint, transfer
from hushtune_common.wire.v1 import blobs_pb2, blobs_pb2_grpc
from tests.killing import CLIENTS, SCENARIO
from tests.troupe import Troupe, on_stage

PART = 64 << 10
CONTENT = SeedTree(1).child("frame").generator().bytes(40 * PART)
"""Less than is made durable by itself: 4 MiB."""
NAME = BlobName(prefix="frames/run-1/1/c1/1", digest=Digest.of(CONTENT), size=len(CONTENT))
TIMING = TimingConfig(connect_s=60.0, idle_s=30.0)


@pytest.fixture
def troupe(tmp_path: Path) -> Iterator[Troupe]:
    with on_stage(tmp_path, scenario=SCENARIO.replace("{rounds}", "2"), clients=CLIENTS) as made:
        yield made


async def begin(troupe: Troupe, *, parts: int) -> None:
    """Send some parts of the frame, and tell the air to stop while the rest is awaited."""
    sent = asyncio.Event()

    async def stream() -> AsyncIterator[Any]:
        for at in range(0, parts * PART, PART):
            data = CONTENT[at : at + PART]
            name = NAME.text if at == 0 else ""
            yield blobs_pb2.WriteRequest(resource_name=name, write_offset=at, data=data, crc32=zlib.crc32(data))
        sent.set()
        await asyncio.Event().wait()

    async with channel_of(troupe) as channel:
        stub: Any = blobs_pb2_grpc.BlobsStub(channel)
        call = stub.Write(stream())
        await sent.wait()
        # Answered once what was sent before has left this process; unlike a question for the size, it makes nothing durable.
        await stub.FindMissing(blobs_pb2.FindMissingRequest(resource_names=[NAME.text]), timeout=30)
        troupe.signal("air", signal.SIGTERM)
        await asyncio.wait({asyncio.ensure_future(call.code())})


async def committed(troupe: Troupe) -> int:
    async with channel_of(troupe) as channel:
        stub: Any = blobs_pb2_grpc.BlobsStub(channel)
        request = blobs_pb2.QueryWriteStatusRequest(resource_name=NAME.text)
        return (await stub.QueryWriteStatus(request, timeout=30, wait_for_ready=True)).committed_size


async def finish(troupe: Troupe) -> int:
    """Send the rest; how many bytes that were."""
    seen: list[int] = []
    async with channel_of(troupe) as channel:
        await transfer.upload(
            channel,
            NAME,
            CONTENT,
            clock=SystemClock(),
            seeds=SeedTree(2),
            timing=TIMING,
            attempts_max=3,
            progress=lambda done, total: seen.append(done),
        )
    return len(CONTENT) - (min(seen) - PART)


def channel_of(troupe: Troupe) -> Any:
    kit = troupe.kits.kit(Role.CLIENT, "c1")
    return endpoint.connect(f"127.0.0.1:{troupe.ports['air']}", role=Role.AIR, kit=kit, timing=TIMING)


@pytest.mark.slow
def test_what_had_arrived_when_the_air_was_stopped_is_there_when_it_is_started_again(troupe: Troupe) -> None:
    troupe.start("air")
    troupe.wait_for(lambda: bool(troupe.told("air", "serving_started")))
    asyncio.run(begin(troupe, parts=30))
    troupe.wait_for(lambda: troupe.ended("air"))
    assert troupe.running["air"].returncode == 0
    troupe.start("air")
    troupe.wait_for(lambda: len(troupe.told("air", "serving_started")) == 2)
    held = asyncio.run(committed(troupe))
    assert 20 * PART <= held <= 30 * PART, "all but what was on its way"
    assert asyncio.run(finish(troupe)) <= len(CONTENT) - held + PART
    (file,) = (p for p in (troupe.folder / "air" / "blobs" / "complete").rglob("*") if p.is_file())
    assert file.read_bytes() == CONTENT
