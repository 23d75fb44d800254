"""What did every process of a run write, in order of time? Damaged lines are counted, never fatal."""

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from heapq import merge
from pathlib import Path
from typing import IO, Any, Final, cast

from hushtune_common.errors import ConfigError
from hushtune_common.logfiles import predecessor
from hushtune_server.testbed import rundir

_LINE_BYTES_MAX: Final = 1 << 20
_NEVER: Final = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One event as it was written. ``moment`` is in seconds since 1970 (UTC); ``process`` names the file that it stood in."""

    moment: float
    process: str
    index: int
    record: Mapping[str, Any]

    @property
    def event(self) -> str:
        """The event's name; empty for a line of something else."""
        return str(self.record.get("event", ""))

    @property
    def role(self) -> str:
        """What the process is; its file's name where the line does not say."""
        return str(self.record.get("role") or self.process)

    @property
    def level(self) -> str:
        """How bad it is: info, warning or error."""
        return str(self.record.get("level", "info"))

    @property
    def client(self) -> str | None:
        """The client that wrote the line, or that it is about."""
        found = self.record.get("client")
        return found if isinstance(found, str) else None

    @property
    def round_id(self) -> int | None:
        """The round that it is about."""
        found = self.record.get("round_id")
        return found if isinstance(found, int) else None

    @property
    def order(self) -> tuple[float, str, int]:
        """What lines are sorted by: time, then the process, then its own order."""
        return self.moment, self.process, self.index


@dataclass(slots=True)
class Tail:
    """Reads a growing file of JSON lines: only what is whole, each line once. ``damaged`` counts what is no event.

    A file that was set aside for a new one (`hushtune_common.logfiles`) is read to its end first.
    """

    path: Path
    damaged: int = 0
    process: str = ""
    _inode: int | None = None
    _offset: int = 0
    _index: int = 0
    _moment: float = _NEVER

    def __post_init__(self) -> None:
        """Call the process as its file, unless told otherwise."""
        self.process = self.process or self.path.stem

    def fresh(self, *, ended: bool = False) -> Iterator[Line]:
        """Yield the lines that were added; one without its end waits for the next call, unless the writer has ``ended``."""
        try:
            file = self.path.open("rb")
        except OSError:
            return
        with file:
            inode = os.fstat(file.fileno()).st_ino
            if inode != self._inode:
                yield from self._set_aside(inode)
            self._inode = inode
            yield from self._rest(file, ended=ended)

    def _set_aside(self, inode: int) -> Iterator[Line]:
        """Yield what the predecessor has that was not read, if it is the file read so far, or if none was."""
        try:
            file = predecessor(self.path).open("rb")
        except OSError:
            return
        with file:
            found = os.fstat(file.fileno()).st_ino
            if found == self._inode or (self._inode is None and found != inode):
                yield from self._rest(file, ended=True)
                self._offset = 0

    def _rest(self, file: IO[bytes], *, ended: bool) -> Iterator[Line]:
        file.seek(self._offset)
        while (raw := file.readline(_LINE_BYTES_MAX)) and (raw.endswith(b"\n") or ended or len(raw) == _LINE_BYTES_MAX):
            if not raw.endswith(b"\n"):
                _skip_line(file)
            self._offset = file.tell()
            line = self._line(raw)
            if line is not None:
                yield line

    def _line(self, raw: bytes) -> Line | None:
        if not raw.strip():
            return None
        record = _object(raw)
        if record is None:
            self.damaged += 1
            return None
        self._moment = _moment(record.get("time"), otherwise=self._moment)
        self._index += 1
        return Line(moment=self._moment, process=self.process, index=self._index, record=record)


def _skip_line(file: IO[bytes]) -> None:
    while (rest := file.readline(_LINE_BYTES_MAX)) and not rest.endswith(b"\n"):
        pass


def _object(raw: bytes) -> Mapping[str, Any] | None:
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    return cast(Mapping[str, Any], value) if isinstance(value, dict) else None


def _moment(text: object, *, otherwise: float) -> float:
    """Return a line's time; one that says none that can be read happened when the one before it did."""
    try:
        found = datetime.fromisoformat(str(text))
    except ValueError:
        return otherwise
    return (found if found.tzinfo is not None else found.replace(tzinfo=UTC)).timestamp()


@dataclass(slots=True)
class Logbook:
    """The logs of one run: a folder with a file of JSON lines for each process, as `files` finds them."""

    folder: Path
    _tails: dict[str, Tail] = field(default_factory=dict[str, Tail])

    def processes(self) -> tuple[str, ...]:
        """Return the names of the processes that have written anything so far, in alphabetical order."""
        return tuple(sorted(files(self.folder)))

    def fresh(self, *, ended: bool = False) -> Iterator[Line]:
        """Yield in order of time what was added since the last call; everything, at the first one."""
        for name, path in sorted(files(self.folder).items()):
            self._tails.setdefault(name, Tail(path, process=name))
        yield from merge(*(_sorted(tail.fresh(ended=ended)) for tail in self._tails.values()), key=lambda line: line.order)

    @property
    def damaged(self) -> Mapping[str, int]:
        """How many lines of each process could not be read, where there were any."""
        return {name: tail.damaged for name, tail in self._tails.items() if tail.damaged}


def files(folder: Path) -> Mapping[str, Path]:
    """Return by process the files of JSON lines in a folder; where it has none, those in the folders below it.

    That is how logs are gathered that each process may write to a folder of its own only. Processes of the same name are told
    apart by their folders.
    """
    flat = {path.stem: path for path in folder.glob("*.jsonl")}
    if flat:
        return flat
    found: dict[str, Path] = {}
    for path in sorted(folder.glob("*/*.jsonl")):
        found[f"{path.parent.name}-{path.stem}" if path.stem in found else path.stem] = path
    return found


def is_anew(path: Path, *, inode: int, size: int) -> bool:
    """Whether a file that was read up to ``size`` is not the one, nor longer, any more: it has to be read from its beginning."""
    try:
        found = path.stat()
        if found.st_size >= size:
            return False
        return found.st_ino == inode or predecessor(path).stat().st_ino != inode
    except OSError:
        return True


def _sorted(lines: Iterable[Line]) -> list[Line]:
    """Return the lines of one process in order of time: a clock may have been set back, and merging needs the order."""
    return sorted(lines, key=lambda line: line.order)


def read(folder: Path) -> list[Line]:
    """Return all that lies in a folder of logs, in order of time."""
    return list(Logbook(folder).fresh(ended=True))


def find(runs: Path, run: str) -> tuple[Path, rundir.RunDirectory | None]:
    """Return the folder of logs that ``run`` means, and the run directory if it is one.

    A run's id below ``runs``, a unique beginning of one, ``latest``, a run directory anywhere, or a folder into which logs were
    gathered from several machines. `ConfigError` when there is nothing to read.
    """
    given = Path(run)
    if given.is_dir() and run != "latest":
        directory = rundir.RunDirectory(given) if (given / "logs").is_dir() else None
        folder = given / "logs" if directory is not None else given
    else:
        directory = rundir.find(runs, run)
        folder = directory.path / "logs"
    if not files(folder):
        raise ConfigError(run, f"no logs in {folder}: a process leaves NAME.jsonl there, one JSON object per line")
    return folder, directory
