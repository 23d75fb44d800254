"""How does what a listener hears come out of a frame on disk? Chunk by chunk, computed when asked, the same every time."""

import os
from pathlib import Path
from threading import Lock

from hushtune_common.errors import StaleRound
from hushtune_common.link.frame import FrameReader
from hushtune_common.messages import Listener, Transmission
from hushtune_common.seeding import SeedTree
from hushtune_common.units import PowerRatio
from hushtune_server.air.medium import Medium


class FrameFile:
    """A frame on disk, read piece by piece. Any thread may read; none reads on once it is closed."""

    def __init__(self, path: Path) -> None:
        """Open the file; `StaleRound` when it is gone."""
        try:
            self._file = path.open("rb", buffering=0)
        except FileNotFoundError:
            raise StaleRound("the frame was discarded") from None
        self._lock = Lock()

    def reader(self) -> FrameReader:
        """Return a reader of the frame, its layout read; ``MalformedUpdate`` when this is none."""
        return FrameReader(self._read, os.fstat(self._file.fileno()).st_size)

    def close(self) -> None:
        """Close the file; a reading that is under way in another thread ends first."""
        with self._lock:
            self._file.close()

    def __enter__(self) -> "FrameFile":
        """Return this file."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close."""
        self.close()

    def _read(self, offset: int, size: int) -> bytes:
        with self._lock:
            return os.pread(self._file.fileno(), size, offset)


class Replay:
    """One transmission as one listener hears it.

    Laws: the same number gives the same bytes, in any order; nothing but the chunk asked for is in memory.
    """

    def __init__(
        self,
        frame: FrameReader,
        *,
        medium: Medium,
        listener: Listener,
        transmission: Transmission,
        gain: PowerRatio,
        seeds: SeedTree,
    ) -> None:
        """Hear ``frame`` through ``medium``."""
        self._frame = frame
        self._medium = medium
        self._listener = listener
        self._transmission = transmission
        self._gain = gain
        self._seeds = seeds
        self.chunk_count = frame.chunk_count(transmission.design)

    def chunk(self, number: int) -> tuple[int, bytes]:
        """Return the blocks of chunk ``number``, from 0 on, and its reception as a blob."""
        chunk = self._frame.chunk(number, design=self._transmission.design)
        reception = self._medium.hear(
            chunk, listener=self._listener, transmission=self._transmission, gain=self._gain, seeds=self._seeds
        )
        return chunk.count, reception.to_bytes()
