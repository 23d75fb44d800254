"""Which errors are the disk's, and what is the person in front of it to do?"""

import os
import re
from collections.abc import Generator
from contextlib import contextmanager
from errno import EACCES, EDQUOT, EFBIG, EIO, ENOSPC, EPERM, EROFS
from os import strerror

from hushtune_common.errors import ConfigError, StorageFull

_FULL = frozenset({ENOSPC, EDQUOT, EFBIG})
_CLOSED = frozenset({EACCES, EPERM, EROFS})
_RUST = re.compile(r"\(os error (\d+)\)")
"""How libraries written in Rust, such as safetensors, quote the operating system inside errors of their own."""


def sync_data(descriptor: int) -> None:
    """Make the bytes of an open file durable; where there is no ``fdatasync``, as on macOS, its metadata with them."""
    getattr(os, "fdatasync", os.fsync)(descriptor)


def disk_fault(error: BaseException) -> StorageFull | ConfigError | None:
    """Return what ``error`` means when a full, failing or closed disk is behind it, and `None` when nothing says so."""
    number, where = (error.errno, error.filename) if isinstance(error, OSError) else (_quoted(error), None)
    if number is None:
        return None
    at = f" at {where}" if where else ""
    if number in _FULL:
        return StorageFull(f"the disk is full{at} ({strerror(number)}); make room and start again")
    if number == EIO:
        return StorageFull(f"the disk fails{at} ({strerror(number)})")
    if number in _CLOSED and where:
        return ConfigError(str(where), f"{strerror(number)}; choose a place that this user may read and write")
    return None


@contextmanager
def full_disk_is_typed() -> Generator[None]:
    """Raise ``StorageFull`` instead of the operating system's errors for a full or failing disk."""
    try:
        yield
    except OSError as error:
        fault = disk_fault(error)
        if isinstance(fault, StorageFull):
            raise fault from error
        raise


def _quoted(error: BaseException) -> int | None:
    found = _RUST.search(str(error))
    return None if found is None else int(found[1])
