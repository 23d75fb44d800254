"""How does a piece of a file get to its place? Opened for one piece and closed again, and written to its last byte."""

import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from hushtune_common.store.disk import full_disk_is_typed


@contextmanager
def opened(file: Path, *, create: bool = False) -> Generator[int]:
    """Open ``file`` for writing; one that is made is readable by this user only. ``StorageFull`` when the disk is.

    It is opened for each piece: a transfer that is cut leaves no descriptor behind, and beside a piece's hash it costs nothing.
    """
    with full_disk_is_typed():
        descriptor = os.open(file, os.O_WRONLY | (os.O_CREAT if create else 0), 0o600)
        try:
            yield descriptor
        finally:
            os.close(descriptor)


def write_all(descriptor: int, data: bytes, *, offset: int) -> None:
    """Write all of ``data`` at ``offset``, in as many calls as that takes."""
    rest = memoryview(data)
    while rest:
        written = os.pwrite(descriptor, rest, offset)
        rest, offset = rest[written:], offset + written
