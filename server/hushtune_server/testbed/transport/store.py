"""The two ends of a blob that is measured: ``python -m ... serve|send FOLDER``, an order in JSON on standard input.

``serve``: blobs and the bare peer, until standard input ends. ``send``: uploads one large sparse file and tells its own memory.
Nothing is imported that moving bytes does not need: the memory of these processes is what is measured.
"""

import asyncio
import hashlib
import json
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from hushtune_common.clock import SystemClock
from hushtune_common.config import TimingConfig
from hushtune_common.messages import Caller, Digest, Role
from hushtune_common.seeding import SeedTree
from hushtune_common.store.blobs import BlobName, BlobStore
from hushtune_common.wire.endpoint import Kit, connect, ready, serve
from hushtune_common.wire.transfer import BlobsService, register_blobs, upload
from hushtune_server.testbed.transport.bare import serve_bare
from hushtune_server.testbed.transport.memory import peak_bytes

CLOCK = SystemClock()
TIMING = TimingConfig()
SEEDS = SeedTree(1)

Json = dict[str, Any]


def main() -> None:
    """Do what the command line says."""
    folder, order = Path(sys.argv[2]), json.loads(sys.stdin.readline())
    work: dict[str, Callable[[Path, Json], Coroutine[Any, Any, None]]] = {"serve": _serve, "send": _send}
    asyncio.run(work[sys.argv[1]](folder, order))


def _say(about: Json) -> None:
    print(json.dumps(about), flush=True)


async def _serve(folder: Path, order: Json) -> None:
    kit = Kit.load(folder / "kits" / "owner")
    store = BlobStore(folder / "served", quota_bytes=order["quota_bytes"])
    size_max, idle_s = order["quota_bytes"], TIMING.idle_s
    service = BlobsService(store, may_read=_anyone, may_write=_anyone, size_max=size_max, idle_s=idle_s)
    ours = await serve([register_blobs(service)], names=[], listen="127.0.0.1:0", kit=kit, clock=CLOCK, timing=TIMING)
    bare, address = await serve_bare(kit, file=folder / "bare.bin", messages=())
    _say({"ours": ours.address, "bare": address})
    await asyncio.to_thread(sys.stdin.read)
    await ours.stop(0.0)
    await bare.stop(0.0)


def _anyone(caller: Caller, name: BlobName) -> bool:
    return True


async def _send(folder: Path, order: Json) -> None:
    """Upload a sparse file of ``size`` bytes: zeros, so that the disk of the sender holds nothing."""
    source = folder / "giant.bin"
    with source.open("wb") as file:
        file.truncate(order["size"])
    with source.open("rb") as file:
        digest = Digest(await asyncio.to_thread(lambda: hashlib.file_digest(file, "sha256").digest()))
    name = BlobName(prefix="giants", digest=digest, size=order["size"])
    channel = connect(order["address"], role=Role.OWNER, kit=Kit.load(folder / "kits" / "client"), timing=TIMING)
    await ready(channel, address=order["address"], role=Role.OWNER, timing=TIMING)
    began_at = CLOCK.monotonic()
    await upload(channel, name, source, clock=CLOCK, seeds=SEEDS, timing=TIMING, attempts_max=2)
    _say({"seconds": CLOCK.monotonic() - began_at, "peak_bytes": peak_bytes()})
    await channel.close()


if __name__ == "__main__":
    main()
