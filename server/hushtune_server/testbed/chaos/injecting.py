"""What does the suite itself send and fetch in a client's name? Bytes from a seed, by the loops that clients use."""

import asyncio
import hashlib
import tempfile
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from hushtune_common.messages import Digest, Role
from hushtune_common.seeding import SeedTree
from hushtune_common.store.blobs import BlobName, BlobStore
from hushtune_common.wire.endpoint import Kit, connect
from hushtune_common.wire.transfer import download, upload
from hushtune_server.testbed.chaos.stage import RUN, Stage

_SPARE_ATTEMPT = 8
"""The last attempt, which the client itself does not come to, for uploads that are made in its name beside it."""


async def upload_as(stage: Stage, client: str, size: int, *, address: str = "") -> None:
    """Upload ``size`` bytes to the air with the client's kit, over its own way, or to ``address``."""
    data = hashlib.shake_256(client.encode()).digest(size)
    name = BlobName(prefix=f"frames/{RUN}/1/{client}/{_SPARE_ATTEMPT}", digest=Digest.of(data), size=size)
    async with _reaching(stage, client, Role.AIR, address or stage.way(client, "air")) as (channel, how):
        await upload(channel, name, data, **how)


async def fetch_as(stage: Stage, client: str, name: BlobName, count: int, *, address: str) -> None:
    """Download the first ``count`` bytes of a blob of the owner's with the client's kit, and then leave off."""
    enough = asyncio.Event()

    def note(done: int, total: int) -> None:
        if done >= min(count, total):
            enough.set()

    with tempfile.TemporaryDirectory(prefix="hushtune-chaos-") as folder:
        store = BlobStore(Path(folder), quota_bytes=name.size)
        async with _reaching(stage, client, Role.OWNER, address) as (channel, how):
            fetching = asyncio.create_task(download(channel, name, store, progress=note, **how))
            waiting = asyncio.create_task(enough.wait())
            await asyncio.wait({fetching, waiting}, return_when=asyncio.FIRST_COMPLETED)
            waiting.cancel()
            if fetching.done():
                fetching.result()
            fetching.cancel()
            await asyncio.wait({fetching, waiting})


@asynccontextmanager
async def _reaching(stage: Stage, client: str, role: Role, address: str) -> AsyncGenerator[tuple[Any, dict[str, Any]]]:
    timing = stage.scenario.timing
    channel = connect(address, role=role, kit=Kit.load(stage.run.kit(client)), timing=timing)
    seeds = SeedTree(stage.scenario.seed).child("chaos", role.value, client)
    try:
        yield (
            channel,
            {
                "clock": stage.clock,
                "seeds": seeds,
                "timing": timing,
                "attempts_max": stage.scenario.limits.attempts_max,
            },
        )
    finally:
        await channel.close()
