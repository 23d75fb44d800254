"""Which bulk bytes do we hold, complete or in part? Files by digest, with durable offsets and a quota."""

import asyncio
import hashlib
import os
import re
import shutil
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Lock
from typing import NoReturn

from hushtune_common.errors import DigestMismatch, MalformedUpdate, OffsetMismatch, PeerLost, StaleRound, StorageFull
from hushtune_common.messages import Digest
from hushtune_common.store.disk import full_disk_is_typed
from hushtune_common.store.partial import Partial, install, make_folder, offset_path, read_offset

# A segment is shorter than a digest, so a folder is never taken for a blob.
_PREFIX = r"(?:[a-z0-9-]{1,63}/){0,5}[a-z0-9-]{1,63}"
_NAME = re.compile(rf"({_PREFIX})/([0-9a-f]{{64}})/(0|[1-9][0-9]{{0,17}})", re.ASCII)
_NAME_CHARS_MAX = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class BlobName:
    """The name of a blob fixes its content and its size in bytes before the first byte is there."""

    prefix: str
    digest: Digest
    size: int

    def __post_init__(self) -> None:
        """Refuse prefixes that could leave the store's folder."""
        require_prefix(self.prefix)
        if not 0 <= self.size < 10**18:
            raise ValueError(f"impossible blob size {self.size}")

    @property
    def text(self) -> str:
        """``PREFIX/SHA256/SIZE``."""
        return f"{self.prefix}/{self.digest.hex}/{self.size}"

    @staticmethod
    def parse(text: str) -> "BlobName":
        """Read the ``text`` form; ``MalformedUpdate`` on anything else."""
        found = _NAME.fullmatch(text) if len(text) <= _NAME_CHARS_MAX else None
        if found is None:
            raise MalformedUpdate("resource_name: use PREFIX/SHA256/SIZE, a prefix of 1 to 6 segments of a-z, 0-9 and '-'")
        return BlobName(prefix=found[1], digest=Digest.from_hex(found[2]), size=int(found[3]))


def require_prefix(prefix: str) -> None:
    """Raise ``ValueError`` unless ``prefix`` is 1 to 6 segments of a-z, 0-9 and '-', each of 1 to 63 characters."""
    if not re.fullmatch(_PREFIX, prefix, re.ASCII):
        raise ValueError(f"a blob prefix has 1 to 6 segments of a-z, 0-9 and '-', got {prefix!r}")


class _Slot:
    """One partial in this process: its file, the number of its newest writer, and the last job on the file."""

    def __init__(self, partial: Partial, executor: ThreadPoolExecutor) -> None:
        self.partial = partial
        self.generation = 0
        self._executor = executor
        self._job: asyncio.Future[None] | None = None

    async def idle(self, proceed: Callable[[], None]) -> None:
        """Wait until no thread works on the file; ``proceed`` is asked before and after each wait and may raise."""
        proceed()
        while self._job is not None and not self._job.done():
            await asyncio.wait({self._job})
            proceed()

    def start(self, work: Callable[[], None]) -> "asyncio.Future[None]":
        """Run ``work`` in a thread; only right after ``idle``, so that one thread at a time works on the file."""
        self._job = asyncio.get_running_loop().run_in_executor(self._executor, work)
        # Seen even when the transfer is cut before anyone asks.
        self._job.add_done_callback(lambda job: job.cancelled() or job.exception())
        return self._job


class BlobStore:
    """Blobs below one folder: ``complete/PREFIX/DIGEST``, and partials with their durable offset.

    Laws: a complete blob has the content and size of its name; only bytes that would survive a crash count as committed; the sum
    of complete blobs and announced partials never exceeds the quota. One process owns the folder. Writers belong to one event
    loop; ``put``, ``adopt``, ``discard`` and ``retain`` may run in any thread.
    """

    def __init__(self, root: Path, *, quota_bytes: int) -> None:
        """Open the folder ``root``, made when missing, and count what it holds against ``quota_bytes``."""
        self._complete = root / "complete"
        self._partial = root / "partial"
        self._quota_bytes = quota_bytes
        self._slots: dict[str, _Slot] = {}
        self._sizes: dict[Path, int] = {}
        self._lock = Lock()
        self._executor = ThreadPoolExecutor(max_workers=4, thread_name_prefix="blobs")
        for folder in (self._complete, self._partial):
            make_folder(folder)
        for file in self._partial.rglob("*.whole*"):
            file.unlink()  # a put that a crash interrupted
        for file in self._complete.rglob("*"):
            if file.is_file():
                self._sizes[file] = file.stat().st_size
        for file in self._partial.rglob("*.part"):
            self._sizes[file] = int(file.stem.partition(".")[2])

    @property
    def used_bytes(self) -> int:
        """Bytes that count against the quota: complete blobs, and partials at their announced size."""
        return sum(list(self._sizes.values()))  # copied in one step: another thread may add to it

    def names(self) -> Sequence[BlobName]:
        """Return what is held, complete or begun."""
        return [self._name(path, size) for path, size in list(self._sizes.items()) if path.suffix != ".whole"]

    @property
    def held_bytes(self) -> dict[str, float]:
        """Bytes on disk: ``complete`` blobs, and ``partial`` ones as far as this process knows them to be durable."""
        complete = sum(size for file, size in list(self._sizes.items()) if file.is_relative_to(self._complete))
        partial = sum(slot.partial.committed for slot in list(self._slots.values()))
        return {"complete": float(complete), "partial": float(partial)}

    @property
    def quota_bytes(self) -> int:
        """How much may be held in all."""
        return self._quota_bytes

    def complete(self, name: BlobName) -> bool:
        """Return whether the whole blob is held."""
        return self._sizes.get(self._complete_path(name)) == name.size

    def committed_size(self, name: BlobName) -> int:
        """Return how many bytes from the start are held durably."""
        if self.complete(name):
            return name.size
        slot = self._slots.get(name.text)
        return slot.partial.committed if slot else read_offset(self._part_path(name), size=name.size)

    async def settle(self, name: BlobName) -> int:
        """Make durable what a cut or stalled writer has left, and return the committed size."""
        slot = self._slots.get(name.text)
        if slot is not None:
            await slot.idle(lambda: None)
            if slot.partial.position > slot.partial.committed:
                await asyncio.wait({slot.start(slot.partial.sync)})  # when it fails, less is committed
        return self.committed_size(name)

    async def settle_begun(self) -> None:
        """Make durable what every writer has left; for a process that ends, so that nothing has to be sent to the next again."""
        for text in list(self._slots):
            await self.settle(BlobName.parse(text))

    def path(self, name: BlobName) -> Path:
        """Return the file of a complete blob; ``StaleRound`` when it is not held (any more)."""
        if not self.complete(name):
            raise StaleRound(f"blob {name.text} is not held here")
        return self._complete_path(name)

    def put(self, prefix: str, data: bytes) -> BlobName:
        """Store ``data`` durably and return its name. Blocks for the disk; ``StorageFull`` when it does not fit."""
        name = BlobName(prefix=prefix, digest=Digest.of(data), size=len(data))
        self._take_whole(name, lambda file: file.write_bytes(data))
        return name

    def adopt(self, prefix: str, file: Path) -> BlobName:
        """Move ``file`` into the store and return its name. Hashes it, blocking; ``StorageFull`` when it does not fit."""
        with file.open("rb") as stream:
            digest = Digest(hashlib.file_digest(stream, "sha256").digest())
        name = BlobName(prefix=prefix, digest=digest, size=file.stat().st_size)
        self._take_whole(name, lambda target: shutil.move(file, target))
        file.unlink(missing_ok=True)
        return name

    def require_room(self, name: BlobName) -> None:
        """Raise ``StorageFull`` when the blob is neither held, nor begun, nor fits."""
        with self._lock:
            self._require_room(self._part_path(name), 0 if self.complete(name) else name.size)

    def writer(self, name: BlobName) -> "PartialWriter":
        """Return a writer that continues at the committed size; an older writer of the same name loses its place.

        The whole size is reserved first: ``StorageFull`` when it does not fit.
        """
        part = self._part_path(name)
        slot = self._slots.get(name.text) or _Slot(Partial(part, size=name.size), self._executor)
        target = None if self.complete(name) else self._complete_path(name)
        if target is not None:
            self._reserve(part, name.size)
            self._slots[name.text] = slot
        slot.generation += 1
        promote, drop = partial(self._promote, name, slot), partial(self._drop_partial, name)
        return PartialWriter(name, slot, target=target, promote=promote, drop=drop)

    def discard(self, prefix: str) -> None:
        """Delete every blob and partial at and below ``prefix``; running writers of them lose their place."""
        require_prefix(prefix)
        for text in [text for text in list(self._slots) if text.startswith(prefix + "/")]:
            self._lose(text)
        # Partials first: what a running job renames in between is then found among the complete ones.
        for folder in (self._partial / prefix, self._complete / prefix):
            shutil.rmtree(folder, ignore_errors=True)
            for file in [file for file in list(self._sizes) if file.is_relative_to(folder)]:
                self._sizes.pop(file, None)

    def retain(self, prefix: str, names: Collection[BlobName]) -> None:
        """Delete every blob and partial at ``prefix`` but these; running writers of the others lose their place."""
        require_prefix(prefix)
        kept = {path for n in names for path in (self._complete_path(n), self._part_path(n), offset_path(self._part_path(n)))}
        texts = {n.text for n in names}
        for text in [text for text in list(self._slots) if BlobName.parse(text).prefix == prefix and text not in texts]:
            self._lose(text)
        # Partials first, as above.
        for folder in (self._partial / prefix, self._complete / prefix):
            for file in [file for file in folder.glob("*") if file.is_file() and file not in kept]:
                file.unlink(missing_ok=True)
                self._sizes.pop(file, None)

    def scratch(self, name: str) -> Path:
        """Return a place on the store's disk for a file to be adopted; what a crash leaves there goes with the next start."""
        return self._partial / f"{name}.whole"

    def _name(self, path: Path, size: int) -> BlobName:
        root = self._complete if path.is_relative_to(self._complete) else self._partial
        prefix = path.parent.relative_to(root).as_posix()
        return BlobName(prefix=prefix, digest=Digest.from_hex(path.name.partition(".")[0]), size=size)

    def _complete_path(self, name: BlobName) -> Path:
        return self._complete / name.prefix / name.digest.hex

    def _part_path(self, name: BlobName) -> Path:
        return self._partial / name.prefix / f"{name.digest.hex}.{name.size}.part"

    def _reserve(self, file: Path, size: int) -> None:
        with self._lock:
            self._require_room(file, size)
            self._sizes[file] = size

    def _require_room(self, file: Path, size: int) -> None:
        if file not in self._sizes and self.used_bytes + size > self._quota_bytes:
            raise StorageFull(f"{size} bytes do not fit: {self.used_bytes} of {self._quota_bytes} are in use")

    def _take_whole(self, name: BlobName, fill: Callable[[Path], object]) -> None:
        if self.complete(name):
            return
        file = self._part_path(name).with_suffix(".whole")
        self._drop_partial(name)
        self._reserve(file, name.size)
        try:
            with full_disk_is_typed():
                file.parent.mkdir(parents=True, exist_ok=True)
                fill(file)
                with file.open("rb") as stream:
                    os.fsync(stream.fileno())
            install(file, self._complete_path(name))
        finally:
            self._sizes.pop(file, None)
            file.unlink(missing_ok=True)
        self._sizes[self._complete_path(name)] = name.size

    def _lose(self, text: str) -> None:
        slot = self._slots.pop(text, None)
        if slot is not None:
            slot.generation += 1

    def _drop_partial(self, name: BlobName) -> None:
        self._lose(name.text)
        part = self._part_path(name)
        for file in (part, offset_path(part)):
            file.unlink(missing_ok=True)
        self._sizes.pop(part, None)

    def _promote(self, name: BlobName, slot: _Slot) -> bool:
        """Take a partial for complete, unless it was discarded while it was made durable; return whether that is so."""
        if self._slots.get(name.text) is not slot:
            return False
        self._drop_partial(name)
        self._sizes[self._complete_path(name)] = name.size
        return True


class PartialWriter:
    """Writes one blob from its committed size on; made by ``BlobStore.writer``.

    A part is hashed and written in a thread while the next one arrives. Every method raises ``PeerLost`` once a newer writer of
    the same name exists, and ``StorageFull`` when the disk is full. Bytes for a blob that is complete already are ignored.
    """

    def __init__(
        self, name: BlobName, slot: _Slot, *, target: Path | None, promote: Callable[[], bool], drop: Callable[[], None]
    ) -> None:
        """Take the newest place in ``slot``; the finished file goes to ``target``, which is absent when it is there already."""
        self._name = name
        self._slot = slot
        self._generation = slot.generation
        self._target = target
        self._promote = promote
        self._drop = drop
        self._job: asyncio.Future[None] | None = None
        self._position: int | None = None

    @property
    def committed_size(self) -> int:
        """Bytes from the start that are durable."""
        return self._name.size if self._target is None else self._slot.partial.committed

    async def write(self, offset: int, data: bytes) -> None:
        """Add ``data`` at ``offset``, which must be where the last part ended; at first, the committed size.

        ``OffsetMismatch`` carries the committed size; ``DigestMismatch`` when there is more than the name announces. An error of
        the disk may surface at the next call only.
        """
        if self._target is None:
            return
        position = await self._settled()
        if offset != position:
            raise OffsetMismatch(self.committed_size)
        if offset + len(data) > self._name.size:
            self._refuse(f"more than the {self._name.size} bytes that the name announces")
        self._position = position + len(data)
        self._start(lambda: self._slot.partial.add(data))

    async def sync(self) -> None:
        """Make everything written so far durable."""
        if self._target is not None:
            await self._settled()
            self._start(self._slot.partial.sync)
            await self._settled()

    async def finish(self) -> None:
        """Check size and digest, and make the blob complete; ``DigestMismatch`` deletes the partial."""
        if (target := self._target) is None:
            return
        position = await self._settled()
        if position != self._name.size or self._slot.partial.digest() != self._name.digest.value:
            self._refuse("other bytes than the name announces")
        job = self._slot.start(lambda: self._slot.partial.install(target))
        # Not left to whoever waits: a transfer that is cut now would leave a complete blob that the store takes for a partial.
        job.add_done_callback(self._installed)
        await asyncio.wait({job})
        if not self._is_installed():
            self._require_place()  # it may have been discarded meanwhile, with its file or just before that had its name
        job.result()

    def _is_installed(self) -> bool:
        return self._target is None

    def _installed(self, job: "asyncio.Future[None]") -> None:
        if not job.cancelled() and job.exception() is None:
            self._target = None if self._promote() else self._target

    async def _settled(self) -> int:
        """Wait until no thread works on the file, and return the next offset; raises what our last job raised."""
        await self._idle()
        if self._position is None:
            self._start(self._slot.partial.resume)
            await self._idle()
            self._position = self._slot.partial.position
        return self._position

    async def _idle(self) -> None:
        await self._slot.idle(self._require_place)
        if self._job is not None:
            self._job.result()

    def _require_place(self) -> None:
        if self._slot.generation != self._generation:
            raise PeerLost("a newer transfer of the same blob has taken over")

    def _start(self, work: Callable[[], None]) -> None:
        self._job = self._slot.start(work)

    def _refuse(self, problem: str) -> NoReturn:
        self._drop()
        raise DigestMismatch(f"blob {self._name.digest.short}: {problem}")
