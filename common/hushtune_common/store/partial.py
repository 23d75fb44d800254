"""How do the bytes of one unfinished blob get to disk so that their number can be trusted?"""

import hashlib
import os
from pathlib import Path
from threading import Lock

from hushtune_common.store.disk import full_disk_is_typed, sync_data
from hushtune_common.store.pieces import opened, write_all

SYNC_BYTES = 4 << 20
"""A crash costs at most this much of a transfer."""

_CHUNK_BYTES = 1 << 20
_OFFSET_DIGITS = 18
_folders = Lock()


class Partial:
    """One unfinished file with its durable offset and the hash of what it holds.

    Every method blocks for the disk, so it runs in a thread, one at a time. Laws: ``committed`` never exceeds what would survive
    a crash of the process; bytes below it are never written again.
    """

    def __init__(self, file: Path, *, size: int) -> None:
        """Take the ``file``, which need not exist, and the announced ``size`` of the whole blob in bytes."""
        self._file = file
        self._hash = hashlib.sha256()
        self._durable_hash = hashlib.sha256()
        self._hash_known = False
        self.committed = read_offset(file, size=size)
        self.position = self.committed

    def resume(self) -> None:
        """Go back to the committed size; after a restart that hashes the durable bytes again."""
        if self.committed == 0:
            self._start_afresh()
        elif not self._hash_known:
            self._durable_hash = hashlib.sha256()
            left = self.committed
            with self._file.open("rb") as stream:
                while left > 0 and (chunk := stream.read(min(left, _CHUNK_BYTES))):
                    self._durable_hash.update(chunk)
                    left -= len(chunk)
        self._hash_known = True
        self._hash = self._durable_hash.copy()
        self.position = self.committed

    def add(self, data: bytes) -> None:
        """Write ``data`` behind what is there; every 4 MiB it becomes durable. ``StorageFull`` when the disk is."""
        # Not created here: a file that was discarded meanwhile stays away.
        with opened(self._file) as descriptor:
            write_all(descriptor, data, offset=self.position)
            self._hash.update(data)
            self.position += len(data)
            if self.position - self.committed >= SYNC_BYTES:
                self._commit(descriptor)

    def sync(self) -> None:
        """Make everything durable, then record how much that is."""
        if self.position > self.committed:
            with opened(self._file) as descriptor:
                self._commit(descriptor)

    def digest(self) -> bytes:
        """Return the SHA-256 of everything written."""
        return self._hash.digest()

    def install(self, target: Path) -> None:
        """Make everything durable and rename the file to ``target``."""
        with opened(self._file) as descriptor:
            sync_data(descriptor)
        install(self._file, target)
        offset_path(self._file).unlink(missing_ok=True)

    def _start_afresh(self) -> None:
        with full_disk_is_typed():
            self._file.parent.mkdir(parents=True, exist_ok=True)
            offset_path(self._file).unlink(missing_ok=True)
            self._file.write_bytes(b"")

    def _commit(self, descriptor: int) -> None:
        # The order is the point: the bytes first, then the number that vouches for them.
        sync_data(descriptor)
        with opened(offset_path(self._file), create=True) as sidecar:
            write_all(sidecar, f"{self.position:0{_OFFSET_DIGITS}d}".encode(), offset=0)
        self.committed = self.position
        self._durable_hash = self._hash.copy()


def offset_path(file: Path) -> Path:
    """Return where the durable offset of a partial file is recorded."""
    return file.with_suffix(".offset")


def read_offset(file: Path, *, size: int) -> int:
    """Return the recorded offset of a partial file; 0 when there is none that can be believed."""
    try:
        offset = int(offset_path(file).read_bytes()[:_OFFSET_DIGITS])
        held = file.stat().st_size
    except (OSError, ValueError):
        return 0
    return offset if 0 <= offset <= min(held, size) else 0


def install(file: Path, target: Path) -> None:
    """Rename ``file`` to ``target`` so that the new name is durable, and those of the folders that are made for it."""
    with full_disk_is_typed():
        make_folder(target.parent)
        file.replace(target)
        sync_folder(target.parent)


def make_folder(folder: Path, *, mode: int = 0o777) -> None:
    """Have ``folder``, and those above it that are missing; what was made would survive a loss of power.

    A file may be durable and the folder that names it not: a name is safe once the folder that it stands in was synced.
    """
    with _folders:  # else another thread finds a folder that is there, and not yet safe
        missing: list[Path] = []
        while not folder.exists():
            missing.append(folder)
            folder = folder.parent
        for made in reversed(missing):
            made.mkdir(mode=mode, exist_ok=True)
            sync_folder(made.parent)


def sync_folder(folder: Path) -> None:
    """Make durable which names stand in a folder."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
