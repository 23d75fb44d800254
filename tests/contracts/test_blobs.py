"""Does the blob store hold exactly what the names say, and know what is durable?"""

import asyncio
import hashlib
import os
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hushtune_common.errors import DigestMismatch, MalformedUpdate, OffsetMismatch, PeerLost, StaleRound, StorageFull
from hushtune_common.messages import Digest
from hushtune_common.store.blobs import BlobName, BlobStore
from hushtune_common.store.partial import Partial

MIB = 1 << 20
QUOTA = 64 * MIB
segments = st.text("abcz019-", min_size=1, max_size=63)


def name_of(data: bytes, prefix: str = "frames/run-1/1/c1/1") -> BlobName:
    return BlobName(prefix=prefix, digest=Digest(hashlib.sha256(data).digest()), size=len(data))


def files_below(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


@given(st.lists(segments, min_size=1, max_size=6), st.binary(min_size=32, max_size=32), st.integers(0, 10**18 - 1))
def test_a_name_survives_its_text(parts: list[str], digest: bytes, size: int):
    name = BlobName(prefix="/".join(parts), digest=Digest(digest), size=size)
    assert BlobName.parse(name.text) == name
    assert name.text == f"{'/'.join(parts)}/{digest.hex()}/{size}"


@pytest.mark.parametrize(
    "text",
    [
        "",
        f"{'0' * 64}/5",
        f"/{'0' * 64}/5",
        f"../{'0' * 64}/5",
        f"a/../b/{'0' * 64}/5",
        f"a//b/{'0' * 64}/5",
        f"A/{'0' * 64}/5",
        f"a.b/{'0' * 64}/5",
        f"a/{'0' * 63}/5",
        f"a/{'A' * 64}/5",
        f"a/{'0' * 64}/05",
        f"a/{'0' * 64}/-5",
        f"a/{'0' * 64}/٣",
        f"a/{'0' * 64}/5\n",
        f"a/{'0' * 64}/5/",
        f"a/{'0' * 64}/{10**18}",
        f"{'a/' * 7}{'0' * 64}/5",
        f"{'a' * 64}/{'0' * 64}/5",
    ],
)
def test_other_names_are_refused(text: str):
    with pytest.raises(MalformedUpdate, match="resource_name"):
        BlobName.parse(text)


def test_what_is_put_is_held_after_a_restart(tmp_path: Path):
    name = BlobStore(tmp_path, quota_bytes=QUOTA).put("emulators", b"weights")
    store = BlobStore(tmp_path, quota_bytes=QUOTA)
    assert store.complete(name)
    assert store.path(name).read_bytes() == b"weights"
    assert name.digest.value == hashlib.sha256(b"weights").digest()
    assert store.put("emulators", b"weights") == name
    assert store.used_bytes == 7


def test_a_name_with_another_size_or_prefix_is_another_blob(tmp_path: Path):
    store = BlobStore(tmp_path, quota_bytes=QUOTA)
    name = store.put("emulators", b"weights")
    for other in (BlobName(prefix="emulators", digest=name.digest, size=8), BlobName(prefix="x", digest=name.digest, size=7)):
        assert not store.complete(other)
        with pytest.raises(StaleRound):
            store.path(other)


def test_an_adopted_file_moves_in(tmp_path: Path):
    store = BlobStore(tmp_path / "store", quota_bytes=QUOTA)
    (tmp_path / "bundle").write_bytes(b"bundle")
    name = store.adopt("emulators", tmp_path / "bundle")
    assert name == name_of(b"bundle", "emulators")
    assert store.path(name).read_bytes() == b"bundle"
    assert not (tmp_path / "bundle").exists()


def test_the_quota_counts_announced_bytes_before_they_arrive(tmp_path: Path):
    store = BlobStore(tmp_path, quota_bytes=100)
    store.put("a", bytes(40))
    store.writer(name_of(bytes(50)))
    with pytest.raises(StorageFull, match="90 of 100"):
        store.put("b", bytes(11))
    with pytest.raises(StorageFull):
        store.writer(BlobName(prefix="c", digest=Digest(bytes(32)), size=10**15))
    store.discard("frames")
    assert store.complete(store.put("b", bytes(60)))
    assert store.used_bytes == 100


def test_only_synced_bytes_count_as_committed(tmp_path: Path):
    data = os.urandom(6 * MIB)
    name = name_of(data)

    async def run() -> None:
        writer = BlobStore(tmp_path, quota_bytes=QUOTA).writer(name)
        await writer.write(0, data[: 3 * MIB])
        with pytest.raises(OffsetMismatch) as refused:
            await writer.write(0, b"again")
        assert refused.value.committed_size == 0
        await writer.write(3 * MIB, data[3 * MIB : 5 * MIB])
        with pytest.raises(OffsetMismatch) as refused:
            await writer.write(4 * MIB, b"gap")
        assert refused.value.committed_size == 5 * MIB  # four mebibytes had come together, so all of it was synced

    asyncio.run(run())
    assert BlobStore(tmp_path, quota_bytes=QUOTA).committed_size(name) == 5 * MIB


@pytest.mark.parametrize("tampered", [False, True])
def test_a_restarted_store_goes_on_from_durable_bytes_and_hashes_them_again(tmp_path: Path, tampered: bool):
    data = os.urandom(3 * MIB)
    name = name_of(data)

    async def begin() -> None:
        writer = BlobStore(tmp_path, quota_bytes=QUOTA).writer(name)
        await writer.write(0, data[:MIB])
        await writer.sync()
        await writer.write(MIB, data[MIB : 2 * MIB])  # never synced, so it does not count

    async def go_on(store: BlobStore) -> None:
        writer = store.writer(name)
        assert writer.committed_size == store.committed_size(name) == MIB
        await writer.write(MIB, data[MIB:])
        await writer.finish()

    asyncio.run(begin())
    if tampered:
        (part,) = tmp_path.rglob("*.part")
        part.write_bytes(b"?" + part.read_bytes()[1:])
    store = BlobStore(tmp_path, quota_bytes=QUOTA)
    if tampered:
        with pytest.raises(DigestMismatch):
            asyncio.run(go_on(store))
        assert not files_below(tmp_path)
        assert store.used_bytes == 0
    else:
        asyncio.run(go_on(store))
        assert store.path(name).read_bytes() == data
        assert files_below(tmp_path) == [store.path(name)]


def test_an_offset_that_the_file_does_not_back_is_not_believed(tmp_path: Path):
    data = os.urandom(MIB)
    name = name_of(data)

    async def begin() -> None:
        writer = BlobStore(tmp_path, quota_bytes=QUOTA).writer(name)
        await writer.write(0, data)
        await writer.sync()

    asyncio.run(begin())
    (part,) = tmp_path.rglob("*.part")
    part.write_bytes(data[:1000])
    assert BlobStore(tmp_path, quota_bytes=QUOTA).committed_size(name) == 0


def test_a_newer_writer_takes_over_at_the_committed_size(tmp_path: Path):
    data = os.urandom(2 * MIB)

    async def run() -> None:
        store = BlobStore(tmp_path, quota_bytes=QUOTA)
        older = store.writer(name_of(data))
        await older.write(0, data[:MIB])
        await older.sync()
        await older.write(MIB, b"?" * MIB)
        newer = store.writer(name_of(data))
        await newer.write(MIB, data[MIB:])
        for use in (older.write(2 * MIB, b""), older.sync(), older.finish()):
            with pytest.raises(PeerLost, match="taken over"):
                await use
        await newer.finish()
        assert store.path(name_of(data)).read_bytes() == data

    asyncio.run(run())


@pytest.mark.parametrize("content", [b"other bytes", b"short", b"longer than announced"])
def test_content_that_differs_from_its_name_is_deleted(tmp_path: Path, content: bytes):
    async def run() -> None:
        store = BlobStore(tmp_path, quota_bytes=QUOTA)

        async def write() -> None:
            writer = store.writer(name_of(b"right bytes"))
            await writer.write(0, content)
            await writer.finish()

        with pytest.raises(DigestMismatch):
            await write()
        assert not files_below(tmp_path)
        assert store.used_bytes == store.committed_size(name_of(b"right bytes")) == 0

    asyncio.run(run())


def test_a_transfer_that_is_cut_at_its_very_end_completes_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    begun, go_on, data = threading.Event(), threading.Event(), bytes(5 * MIB)
    install = Partial.install

    def slow(self: Partial, target: Path) -> None:
        begun.set()
        go_on.wait(10.0)
        install(self, target)

    async def story() -> None:
        store = BlobStore(tmp_path, quota_bytes=QUOTA)
        writer = store.writer(name_of(data))
        await writer.write(0, data)
        ending = asyncio.create_task(writer.finish())
        await asyncio.to_thread(begun.wait, 10.0)
        ending.cancel()
        await asyncio.wait({ending})
        go_on.set()
        # Whoever sends again waits for the work that is under way, and learns that nothing is left to send.
        assert await store.settle(name_of(data)) == len(data)
        assert store.complete(name_of(data))
        await store.writer(name_of(data)).write(4 * MIB, data[4 * MIB :])

    monkeypatch.setattr(Partial, "install", slow)
    asyncio.run(story())


def test_what_is_discarded_while_it_is_made_durable_is_lost_to_its_writer_and_not_taken_for_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    begun, go_on, data = threading.Event(), threading.Event(), bytes(MIB)
    install = Partial.install

    def slow(self: Partial, target: Path) -> None:
        begun.set()
        go_on.wait(10.0)
        install(self, target)

    async def story() -> None:
        store = BlobStore(tmp_path, quota_bytes=QUOTA)
        writer = store.writer(name_of(data))
        await writer.write(0, data)
        ending = asyncio.create_task(writer.finish())
        await asyncio.to_thread(begun.wait, 10.0)
        store.discard(name_of(data).prefix)
        go_on.set()
        with pytest.raises(PeerLost):
            await ending
        assert (store.complete(name_of(data)), store.used_bytes) == (False, 0)

    monkeypatch.setattr(Partial, "install", slow)
    asyncio.run(story())


def test_a_complete_blob_needs_no_second_writing(tmp_path: Path):
    async def run() -> None:
        store = BlobStore(tmp_path, quota_bytes=10)
        name = store.put("a", b"0123456789")
        writer = store.writer(name)
        assert writer.committed_size == 10
        await writer.write(0, b"ignored")
        await writer.finish()
        assert store.path(name).read_bytes() == b"0123456789"

    asyncio.run(run())


def test_settling_keeps_what_a_cut_writer_has_left(tmp_path: Path):
    data = os.urandom(2 * MIB)

    async def run() -> None:
        store = BlobStore(tmp_path, quota_bytes=QUOTA)
        await store.writer(name_of(data)).write(0, data[:MIB])
        assert await store.settle(name_of(data)) == MIB
        assert await store.settle(name_of(b"unknown")) == 0

    asyncio.run(run())
    assert BlobStore(tmp_path, quota_bytes=QUOTA).committed_size(name_of(data)) == MIB


def test_a_process_that_ends_keeps_what_all_its_writers_have_left(tmp_path: Path):
    names = [BlobName(prefix=f"frames/c{n}", digest=Digest.of(b"%d" % n * 3000), size=3000) for n in (1, 2)]

    async def life() -> list[int]:
        store = BlobStore(tmp_path, quota_bytes=1 << 20)
        before = [store.committed_size(name) for name in names]
        for n, name in enumerate(names, start=1):
            if not before[0]:
                await store.writer(name).write(0, b"%d" % n * 1000)
        await store.settle_begun()
        return before

    assert asyncio.run(life()) == [0, 0]
    assert asyncio.run(life()) == [1000, 1000]


def test_discarding_deletes_a_subtree_and_ends_its_writers(tmp_path: Path):
    async def run() -> None:
        store = BlobStore(tmp_path, quota_bytes=QUOTA)
        kept = store.put("receptions/main/run-1/11", b"kept")
        gone = store.put("receptions/main/run-1/1/c1/1", b"gone")
        writer = store.writer(name_of(b"coming", "receptions/main/run-1/1/c2/1"))
        await writer.write(0, b"com")
        store.discard("receptions/main/run-1/1")
        with pytest.raises(PeerLost):
            await writer.write(3, b"ing")
        assert store.complete(kept)
        assert not store.complete(gone)
        assert files_below(tmp_path) == [store.path(kept)]
        assert store.used_bytes == 4
        with pytest.raises(ValueError, match="prefix"):
            store.discard("../elsewhere")

    asyncio.run(run())


def test_what_is_retained_stays_and_its_neighbours_go(tmp_path: Path):
    async def play() -> None:
        store = BlobStore(tmp_path, quota_bytes=QUOTA)
        kept, other, elsewhere = store.put("emulators", b"kept"), store.put("emulators", b"other"), store.put("ways", b"a way")
        begun, dropped = name_of(b"begun half", "emulators"), name_of(b"dropped half", "emulators")
        writers = [store.writer(name) for name in (begun, dropped)]
        for writer in writers:
            await writer.write(0, b"xx")
            await writer.sync()
        store.retain("emulators", [kept, begun])
        assert [store.complete(n) for n in (kept, other, elsewhere)] == [True, False, True]
        assert [store.committed_size(n) for n in (begun, dropped)] == [2, 0]
        with pytest.raises(PeerLost):
            await writers[1].write(2, b"xx")
        await writers[0].write(2, b"xx")
        assert store.used_bytes == kept.size + elsewhere.size + begun.size

    asyncio.run(play())


def test_a_scratch_file_is_adopted_or_goes_with_the_next_start(tmp_path: Path):
    store = BlobStore(tmp_path, quota_bytes=QUOTA)
    for name in ("one", "two"):
        store.scratch(name).write_bytes(name.encode())
    store.scratch("two").with_name("two.whole.123.partial").write_bytes(b"half")
    adopted = store.adopt("emulators", store.scratch("one"))
    again = BlobStore(tmp_path, quota_bytes=QUOTA)
    assert (again.complete(adopted), again.used_bytes) == (True, 3)
    assert files_below(tmp_path) == [again.path(adopted)]


@settings(max_examples=20)
@given(data=st.binary(max_size=2000), cuts=st.lists(st.integers(0, 2000), max_size=6), seed=st.integers(0, 99))
def test_any_parts_with_any_restarts_give_the_blob(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, cuts: list[int], seed: int
):
    root = tmp_path_factory.mktemp("blobs")
    name = name_of(data)

    async def run() -> BlobStore:
        store = BlobStore(root, quota_bytes=QUOTA)
        for index, end in enumerate([*sorted(cut % (len(data) + 1) for cut in cuts), len(data)]):
            writer = store.writer(name)
            start = writer.committed_size
            await writer.write(start, data[start:end])
            await writer.sync()
            if (seed >> index) % 2:
                store = BlobStore(root, quota_bytes=QUOTA)
        await store.writer(name).finish()
        return store

    assert asyncio.run(run()).path(name).read_bytes() == data
