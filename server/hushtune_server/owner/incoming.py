"""Where do the blocks of one part wait for the others, so that nothing that was acknowledged is ever lost?"""

import os
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from hushtune_common.errors import ConfigError
from hushtune_common.link.frame import Bytes, Flags, Indices, bitmap, flags_of
from hushtune_common.messages import LinkSeed, SecrecyDesign
from hushtune_common.store.disk import full_disk_is_typed, sync_data
from hushtune_common.store.partial import install
from hushtune_common.store.pieces import opened, write_all


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """How one part travels, fixed by its first transmission: the code of its hash blocks and its public randomness."""

    design: SecrecyDesign
    seed: LinkSeed


@dataclass(frozen=True, slots=True, kw_only=True)
class _Record:
    """What is durable of a part. ``known`` and the answer to each attempt, its missing blocks, are one bit per block."""

    link: Link
    total_bytes: int
    known: bytes
    answers: dict[int, bytes]


class PartFile:
    """The blocks of one part in a file, each at its own place, and beside it the record of which are there.

    Laws: what `conclude` returned is there again after the process was killed at any instant; blocks that came after it may be
    lost together, never one of them half; a block that is there is never written again; memory is one flag per block and
    attempt. Every method blocks for the disk, so it runs in a thread, one at a time.
    """

    def __init__(self, file: Path, *, link: Link, total_bytes: int) -> None:
        """Expect ``total_bytes`` in ``file``, of which nothing is there yet; the caller has checked that this is not too much."""
        self.link, self.total_bytes = link, total_bytes
        self._file = file
        self._row_bytes = link.design.payload_bytes
        self._known: Flags = np.zeros(-(-total_bytes // self._row_bytes), dtype=np.bool_)
        self._answers: dict[int, bytes] = {}

    @staticmethod
    def resume(file: Path) -> "PartFile | None":
        """Return the part that an earlier life left in ``file``; ``ConfigError`` when its record cannot be read."""
        path = _record_path(file)
        if not path.exists():
            return None
        try:
            record = msgspec.msgpack.decode(path.read_bytes(), type=_Record)
            part = PartFile(file, link=record.link, total_bytes=record.total_bytes)
            part._known = _unpacked(record.known, count=part.count)
            part._answers = record.answers
        except (msgspec.DecodeError, ValueError) as error:
            raise ConfigError(str(path), f"is damaged ({error}); start again with an empty state folder") from None
        return part

    @property
    def count(self) -> int:
        """Blocks of the whole part."""
        return int(self._known.size)

    @property
    def whole(self) -> bool:
        """Whether no block is missing."""
        return bool(self._known.all())

    @property
    def attempts(self) -> int:
        """How many transmissions have been concluded."""
        return len(self._answers)

    def answer(self, attempt: int) -> tuple[int, ...] | None:
        """Return which blocks were missing when ``attempt`` was concluded, if it was."""
        missing = self._answers.get(attempt)
        return None if missing is None else _listed(_unpacked(missing, count=self.count))

    def put(self, indices: Indices, payloads: Bytes) -> None:
        """Write the ``payloads`` (blocks, payload bytes) of the blocks ``indices`` (blocks,) that are not there yet."""
        fresh = ~self._known[indices]
        if not fresh.any():
            return
        indices, payloads = indices[fresh], payloads[fresh]
        breaks = np.flatnonzero(np.diff(indices) != 1) + 1
        with _opened(self._file) as descriptor:
            for run, rows in zip(np.split(indices, breaks), np.split(payloads, breaks), strict=True):
                write_all(descriptor, rows.tobytes(), offset=int(run[0]) * self._row_bytes)
        self._known[indices] = True

    def conclude(self, attempt: int) -> tuple[int, ...]:
        """End the transmission ``attempt``: make everything durable, and return which blocks of the part are missing."""
        if attempt not in self._answers:
            answers = {**self._answers, attempt: bitmap(~self._known)}
            # The order is the point: the blocks first, then in one step the record that vouches for them.
            with _opened(self._file) as descriptor:
                sync_data(descriptor)
            self._save(answers)
            self._answers = answers
        return _listed(_unpacked(self._answers[attempt], count=self.count))

    def data(self) -> bytes:
        """Return the whole part; ``ValueError`` while blocks are missing."""
        if not self.whole:
            raise ValueError(f"{int((~self._known).sum())} of {self.count} blocks are missing")
        with self._file.open("rb") as stream:
            return stream.read(self.total_bytes)

    def _save(self, answers: dict[int, bytes]) -> None:
        record = _Record(link=self.link, total_bytes=self.total_bytes, known=bitmap(self._known), answers=answers)
        path = _record_path(self._file)
        fresh = path.with_suffix(".fresh")
        with _opened(fresh) as descriptor:
            os.ftruncate(descriptor, 0)
            write_all(descriptor, msgspec.msgpack.encode(record), offset=0)
            os.fsync(descriptor)
        install(fresh, path)


def _record_path(file: Path) -> Path:
    return file.with_suffix(".known")


def _unpacked(packed: bytes, *, count: int) -> Flags:
    if len(packed) != -(-count // 8):
        raise ValueError(f"{len(packed)} bytes of flags for {count} blocks")
    return flags_of(packed, count=count)


def _listed(flags: Flags) -> tuple[int, ...]:
    return tuple(int(i) for i in np.flatnonzero(flags))


@contextmanager
def _opened(file: Path) -> Generator[int]:
    """Open ``file`` for writing in a folder that is made, readable by this user only: one of the parts is a secret."""
    with full_disk_is_typed():
        file.parent.mkdir(parents=True, exist_ok=True)
    with opened(file, create=True) as descriptor:
        yield descriptor
