"""Does what clients begin and never finish take room for ever, when the air does not live for ever?"""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from hushtune_common.messages import Caller, Digest, Role
from hushtune_common.store.blobs import BlobName, BlobStore
from hushtune_common.store.journal import Journal
from hushtune_server.air.fading import Geography
from hushtune_server.air.sky import Sky
from tests.air_stage import CLOCK, MEDIA, SEEDS
from tests.radio import scenario

SIZE = 1 << 16
CLIENTS = ("c1", "c2", "c3")


def life(folder: Path, store: BlobStore) -> tuple[Sky, Journal]:
    setting = scenario(air={"shadowing_db": 0.0, "fidelity": "abstract"})
    journal = Journal.open(folder / "journal.sqlite", schema="test-air")
    geography, medium = Geography(setting, SEEDS), MEDIA["abstract"](setting)
    return Sky(setting, medium=medium, geography=geography, store=store, journal=journal, clock=CLOCK, seeds=SEEDS), journal


async def begun(sky: Sky, store: BlobStore, client: str, run: str, *, share: float) -> BlobName:
    """A frame of which a share has arrived."""
    content = f"{client} in {run}".encode().ljust(SIZE, b".")
    name = BlobName(prefix=f"frames/{run}/1/{client}/1", digest=Digest.of(content), size=SIZE)
    sky.client_writes(Caller(role=Role.CLIENT, name=client), name)
    writer = store.writer(name)
    await writer.write(0, content[: int(share * SIZE)])
    await (writer.finish() if share == 1.0 else writer.sync())
    return name


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_a_frame_that_was_begun_in_an_earlier_life_makes_room_for_the_next(tmp_path: Path, share: float) -> None:
    async def run() -> None:
        for n in range(4):
            store = BlobStore(tmp_path / "blobs", quota_bytes=2 * len(CLIENTS) * SIZE)
            sky, journal = life(tmp_path, store)
            names = [await begun(sky, store, client, f"run-{n}", share=share) for client in CLIENTS]
            assert store.used_bytes == len(CLIENTS) * SIZE
            assert all(store.committed_size(name) == share * SIZE for name in names)
            await journal.close()

    asyncio.run(run())


def test_what_was_begun_in_an_earlier_life_goes_on_and_that_of_others_stays(tmp_path: Path) -> None:
    async def run() -> Any:
        store = BlobStore(tmp_path / "blobs", quota_bytes=1 << 24)
        sky, journal = life(tmp_path, store)
        names = [await begun(sky, store, client, "run", share=0.5) for client in CLIENTS]
        await journal.close()
        store = BlobStore(tmp_path / "blobs", quota_bytes=1 << 24)
        sky, journal = life(tmp_path, store)
        sky.client_writes(Caller(role=Role.CLIENT, name="c1"), names[0])
        assert [store.committed_size(name) for name in names] == [SIZE // 2] * 3
        await journal.close()

    asyncio.run(run())
