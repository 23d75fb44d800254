"""How does a whole file appear under its name, so that whoever reads it finds all of it, or what was there before?"""

import os
from collections.abc import Iterable
from pathlib import Path

from hushtune_common.store.disk import full_disk_is_typed
from hushtune_common.store.partial import install


def write_durably(path: Path, pieces: Iterable[bytes], *, mode: int = 0o600) -> None:
    """Write a file front to back, by default for its user's eyes only; it gets its name once it would survive a loss of power.

    ``StorageFull`` when the disk is. Whatever interrupts the writing leaves nothing under the name, or what was there.
    """
    partial = path.with_name(path.name + ".partial")
    partial.unlink(missing_ok=True)
    try:
        with full_disk_is_typed(), os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
            for piece in pieces:
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    install(partial, path)
