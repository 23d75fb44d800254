"""A disk that loses what nobody synced: below one folder, a power cut leaves what POSIX promises and a drawn rest.

What ``fsync`` or ``fdatasync`` was called for stays. Of a file's other changes each sector of 512 bytes is old or new by the toss
of a coin, and so is its length; of a folder's, each name. A rename is atomic: never is a file found under neither name. A name in
a folder that was lost is lost with it.
"""

import os
import shutil
import stat
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

import numpy as np

SECTOR = 512
Image = dict[str, bytes | None]
"""Content by path relative to the folder; ``None`` for a folder."""


class PowerCut(BaseException):
    """The machine is off: whatever was under way does not go on."""


@dataclass
class _Known:
    """What is durable: contents by inode, entries (name to inode) by inode of the folder."""

    contents: dict[int, bytes] = field(default_factory=dict[int, bytes])
    entries: dict[int, dict[str, int]] = field(default_factory=dict[int, dict[str, int]])


class StrictDisk:
    """The disk of one machine, below ``root``; ``strikes`` is asked at every sync whether the power fails just then."""

    def __init__(self, root: Path, *, rng: np.random.Generator, strikes: Callable[[], bool]) -> None:
        root.mkdir(parents=True)
        self.root = root
        self.syncs = 0
        self._rng = rng
        self._strikes = strikes
        self._known = _Known()
        self._remember_all()

    def synced(self, descriptor: int) -> None:
        """Take a sync of a file or folder below the root; raises ``PowerCut`` before or after it, when the weather says so."""
        place = Path(f"/proc/self/fd/{descriptor}").readlink()
        if not place.is_relative_to(self.root):
            return
        if self._strikes():
            if self._rng.random() < 0.5:
                self._remember(place)
            raise PowerCut
        self.syncs += 1
        self._remember(place)

    def image(self, *, power: bool) -> Image:
        """Return what a restart finds: all of it after a kill, what survives when the ``power`` failed."""
        if not power:
            return {str(p.relative_to(self.root)): None if p.is_dir() else p.read_bytes() for p in sorted(self.root.rglob("*"))}
        survived: Image = {}
        chosen = self._chosen()
        self._collect(self.root.stat().st_ino, "", chosen, survived)
        return survived

    def restore(self, image: Image) -> None:
        """Have exactly ``image`` below the root, all of it durable."""
        for path in self.root.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        for name in sorted(image):
            content, path = image[name], self.root / name
            if content is None:
                path.mkdir()
            else:
                path.write_bytes(content)
        self._remember_all()

    def _remember_all(self) -> None:
        self._known = _Known()
        for path in (self.root, *self.root.rglob("*")):
            self._remember(path)

    def _remember(self, place: Path) -> None:
        about = place.stat()
        if stat.S_ISDIR(about.st_mode):
            self._known.entries[about.st_ino] = _entries(place)
        else:
            self._known.contents[about.st_ino] = place.read_bytes()

    def _chosen(self) -> dict[int, dict[str, int]]:
        """Return the entries of every folder, old or new each; an inode that had a name and has one keeps one."""
        chosen: dict[int, dict[str, int]] = {}
        for folder in sorted(self._folders()):
            old, new = self._known.entries.get(folder, {}), self._live.get(folder, {})
            mixed = {name: (old, new)[int(self._rng.random() < 0.5)].get(name) for name in sorted(old.keys() | new.keys())}
            chosen[folder] = {name: inode for name, inode in mixed.items() if inode is not None}
        kept = {inode for entries in chosen.values() for inode in entries.values()}
        alive = {inode for entries in self._live.values() for inode in entries.values()}
        for folder, entries in self._known.entries.items():
            for name, inode in entries.items():
                if inode in alive and inode not in kept and folder in chosen:
                    chosen[folder][name] = inode
        return chosen

    def _folders(self) -> set[int]:
        self._live: dict[int, dict[str, int]] = {}
        self._now: dict[int, bytes | None] = {}
        for path in (self.root, *sorted(self.root.rglob("*"))):
            inode = path.stat().st_ino
            self._now[inode] = None if path.is_dir() else path.read_bytes()
            if path.is_dir():
                self._live[inode] = _entries(path)
        return {*self._live, *self._known.entries}

    def _collect(self, folder: int, prefix: str, chosen: dict[int, dict[str, int]], into: Image) -> None:
        for name, inode in sorted(chosen.get(folder, {}).items()):
            path = f"{prefix}{name}"
            if inode in self._live or inode in self._known.entries:
                into[path] = None
                self._collect(inode, f"{path}/", chosen, into)
            else:
                into[path] = self._torn(self._known.contents.get(inode, b""), self._now.get(inode))

    def _torn(self, old: bytes, new: bytes | None) -> bytes:
        if new is None or new == old:
            return old
        length = len(new) if self._rng.random() < 0.5 else len(old)
        sectors = range(0, length, SECTOR)
        pieces = [(old, new)[int(self._rng.random() < 0.5)][at : at + SECTOR].ljust(SECTOR, b"\0") for at in sectors]
        return b"".join(pieces)[:length]


def _entries(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_ino for path in folder.iterdir()}


@contextmanager
def watched(disks: Sequence[StrictDisk]) -> Generator[None]:
    """Tell the disks, also those that come to the list later, of every sync of this process."""

    def synced(descriptor: int) -> None:
        # The real call would wait for a real disk, whose power nobody cuts.
        for disk in disks:
            disk.synced(descriptor)

    with mock.patch.object(os, "fsync", synced), mock.patch.object(os, "fdatasync", synced):
        yield
