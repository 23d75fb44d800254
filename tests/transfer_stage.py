"""A blob service over loopback with a client of it, for tests of how bulk bytes travel."""

import hashlib
import zlib
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hushtune_common.clock import SystemClock
from hushtune_common.config import TimingConfig
from hushtune_common.messages import Caller, Digest, Role
from hushtune_common.seeding import SeedTree
from hushtune_common.store.blobs import BlobName, BlobStore
from hushtune_common.wire import faults, transfer
from hushtune_common.wire.endpoint import connect, serve
from hushtune_common.wire.v1 import blobs_pb2 as pb
from hushtune_common.wire.v1 import blobs_pb2_grpc
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


def sent(data: bytes, offset: int, *, crc: int | None = None) -> Any:
    return pb.ReadResponse(offset=offset, data=data, crc32=zlib.crc32(data) if crc is None else crc)
