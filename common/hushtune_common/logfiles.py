"""Where do a process's events stay when nobody reads its output? In a file of bounded size, with one predecessor."""

import logging
import os
import sys
from contextlib import suppress
from io import TextIOWrapper
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Final

from hushtune_common.errors import ConfigError

FILE_BYTES_MAX: Final = 8 << 20
"""A run of the demo logs some 60 KB per round; a file that is full becomes the predecessor, and the one before that goes."""


def predecessor(path: Path) -> Path:
    """Return where the lines before those of ``path`` are, once there are so many."""
    return path.with_name(path.name + ".1")


class LogFile(RotatingFileHandler):
    """Appends to ``path``, which grows to ``bytes_max`` and is then set aside as its `predecessor`.

    Laws: a line is whole or, after a crash, the last one; the next life of the process begins a line of its own; both files
    together never hold more than twice ``bytes_max``; a disk that is full costs lines, never the process.
    """

    def __init__(self, path: Path, *, bytes_max: int = FILE_BYTES_MAX) -> None:
        """Open the file, or make it; `ConfigError` where that cannot be."""
        self._complained = False
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            super().__init__(path, maxBytes=bytes_max, backupCount=1, encoding="utf-8")
            self._end_torn_line()
        except OSError as error:
            problem = f"cannot write {path} ({error.strerror}); give a folder that can be written"
            raise ConfigError("--log-folder", problem) from error

    def _end_torn_line(self) -> None:
        path = Path(self.baseFilename)
        if path.stat().st_size:
            with path.open("rb") as file:
                file.seek(-1, os.SEEK_END)
                torn = file.read(1) != b"\n"
            if torn and isinstance(self.stream, TextIOWrapper):
                self.stream.write("\n")
                self.stream.flush()

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - the name is the library's
        """Say once that lines are lost; the process goes on."""
        if not self._complained:
            self._complained = True
            with suppress(OSError):
                print(f"the log file {self.baseFilename} cannot be written: {sys.exc_info()[1]}", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Close the file; what a full disk did not take was told already."""
        with suppress(OSError):
            super().close()
