"""What does the eavesdropper believe one part of an update to be? Her best guess of every block, in files."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from hushtune_common.link.frame import bitmap, flags_of
from hushtune_common.store.files import write_durably

Bytes = NDArray[np.uint8]
Indices = NDArray[np.uint32]
Flags = NDArray[np.bool_]

_READ_BLOCKS: Final = 1024


class GuessFile:
    """The best guess of one part: ``STEM.bin`` with block ``i`` at ``i * block_bytes``, zeros where nothing was tried.

    Beside it two bitmaps, one bit per block, the first the least significant of the first byte: ``STEM.known`` for blocks whose
    checksum held, ``STEM.decoded`` for blocks whose bytes came out of the decoder, right or wrong: those are what a referee may
    compare with the truth, bit by bit.

    Laws: a known block is never overwritten, and a guess only by a known block; memory holds the flags and what is being put.
    """

    def __init__(self, stem: Path, *, update_bytes: int, block_bytes: int) -> None:
        """Go on with the files at ``stem`` if they are of this size, else begin anew."""
        self._stem = stem
        self._update_bytes, self._block_bytes = update_bytes, block_bytes
        self.count: Final = -(-update_bytes // block_bytes)
        stem.parent.mkdir(parents=True, exist_ok=True)
        fresh = not self.path.exists() or self.path.stat().st_size != update_bytes
        if fresh:
            self.path.write_bytes(b"")
            os.truncate(self.path, update_bytes)  # a hole: disk is taken as guesses come
        self.known: Final = self._flags("known", fresh=fresh)
        self.decoded: Final = self._flags("decoded", fresh=fresh)

    @property
    def path(self) -> Path:
        """The file of bytes."""
        return self._sibling("bin")

    @property
    def bytes_known(self) -> int:
        """Bytes of blocks whose checksum held."""
        padding = self.count * self._block_bytes - self._update_bytes
        return int(self.known.sum()) * self._block_bytes - (padding if self.known[-1] else 0)

    def put(self, indices: Indices, rows: Bytes, *, sound: Flags, decoded: bool) -> None:
        """Take rows (n, block_bytes) for blocks ``indices`` (n,); ``sound`` says whose checksum held, ``decoded`` where from."""
        better = ~self.known[indices] & (sound | ~self.decoded[indices])
        handle = os.open(self.path, os.O_WRONLY)
        try:
            for index, row in zip(indices[better].tolist(), rows[better], strict=True):
                start = index * self._block_bytes
                os.pwrite(handle, row[: self._update_bytes - start].tobytes(), start)
        finally:
            os.close(handle)
        self.known[indices[better & sound]] = True
        self.decoded[indices[better]] = decoded

    def save(self) -> None:
        """Write the bitmaps, each as a whole."""
        for kind, flags in (("known", self.known), ("decoded", self.decoded)):
            write_durably(self._sibling(kind), [bitmap(flags)], mode=0o644)

    def known_bytes(self) -> Iterator[bytes]:
        """Yield what is known, from front to back, in pieces."""
        with self.path.open("rb") as file:
            for first in range(0, self.count, _READ_BLOCKS):
                known = self.known[first : first + _READ_BLOCKS]
                if known.any():
                    file.seek(first * self._block_bytes)
                    data = np.frombuffer(file.read(known.size * self._block_bytes), dtype=np.uint8)
                    yield data[np.repeat(known, self._block_bytes)[: data.size]].tobytes()

    def _flags(self, kind: str, *, fresh: bool) -> Flags:
        path = self._sibling(kind)
        if not fresh and path.exists() and path.stat().st_size == -(-self.count // 8):
            return flags_of(path.read_bytes(), count=self.count)
        return np.zeros(self.count, dtype=np.bool_)

    def _sibling(self, kind: str) -> Path:
        return self._stem.with_name(f"{self._stem.name}.{kind}")
