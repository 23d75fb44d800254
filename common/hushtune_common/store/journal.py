"""What has happened, durably and in order? Append-only events in SQLite, one writer thread."""

import asyncio
import json
import logging
import sqlite3
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from hushtune_common.errors import ConfigError, LimitExceeded, Replayed, StorageFull
from hushtune_common.logs import log_event
from hushtune_common.store.layout import Raised, Schema, Upgrade, prepare
from hushtune_common.store.partial import make_folder, sync_folder

_log = logging.getLogger(__name__)
Durability = Literal["process", "power"]
_SYNCHRONOUS: Final[Mapping[Durability, str]] = {"process": "NORMAL", "power": "FULL"}
_NO_UPGRADES: Final[Mapping[int, Upgrade]] = {}
_BODY_CHARS_MAX = 8 << 20
"""Journals hold metadata, of which the longest is a list of 2**20 blocks; bulk bytes are blobs."""

_PREDECESSOR_S = 2.0
"""How long opening waits for a process that is just giving the journal up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One event. ``seq`` counts from 1 without gaps; ``body`` is what JSON makes of what was appended."""

    seq: int
    kind: str
    key: str | None
    body: dict[str, Any]


@dataclass(frozen=True, slots=True)
class _Entry:
    kind: str
    key: str | None
    body: str
    done: "asyncio.Future[Event]"


class Journal:
    """An append-only list of events that survives the process.

    Laws: an event that ``append`` returned is there after a crash of the process, and, where that was asked for, of the machine;
    events are never changed or reordered but by the upgrade of a file that an older release left; a key has at most one event;
    one process at a time has it open. Without durability against a loss of power the last commits may be lost by it, never the
    order.
    """

    def __init__(self, writer: "_Writer", executor: ThreadPoolExecutor, events: list[Event]) -> None:
        """Take what ``open`` has made."""
        self._writer = writer
        self._executor = executor
        self._events = events
        self._pending: list[_Entry] = []
        self._flushes: set[asyncio.Task[None]] = set()
        self._closed = False

    @staticmethod
    def open(
        path: Path,
        *,
        schema: str,
        version: int = 1,
        scenario: str = "",
        upgrades: Mapping[int, Upgrade] = _NO_UPGRADES,
        durability: Durability = "process",
    ) -> "Journal":
        """Open or make the journal at ``path``, of what ``schema`` names, of a scenario by its digest, or of none.

        Events of an older version are upgraded, for good and in one step. What ``append`` returned survives the end of the
        process, or a loss of ``power`` as well, at the price of one wait for the disk per commit.

        ``ConfigError`` when the file is no journal of ``schema``, is of a newer release or of one too old, cannot be written, or
        is open in another process; ``ScenarioMismatch`` when it is one of another scenario.
        """
        wanted = Schema(name=schema, version=version, scenario=scenario, upgrades=upgrades)
        try:
            make_folder(path.parent)
        except OSError as error:
            raise ConfigError(
                str(path.parent), f"cannot be made ({error.strerror}); choose a folder that can be written"
            ) from None
        executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="journal")
        try:
            writer = executor.submit(_Writer, path, wanted, durability).result()
            _tell(path, writer.raised, wanted)
            return Journal(writer, executor, executor.submit(writer.read).result())
        except BaseException:
            executor.shutdown()
            raise

    async def append(self, kind: str, body: Mapping[str, object], *, key: str | None = None) -> Event:
        """Write one event and return it once it is durable; calls of one loop turn share a commit.

        With a ``key`` that was used before: returns the stored event when kind and body are equal, raises ``Replayed`` when they
        are not. ``StorageFull`` when the disk is, or fails; ``LimitExceeded`` for a body above 8 MiB.
        """
        if self._closed:
            raise RuntimeError("the journal is closed")
        text = json.dumps(body, sort_keys=True, separators=(",", ":"), allow_nan=False)
        if len(text) > _BODY_CHARS_MAX:
            raise LimitExceeded(f"event {kind}: the body has {len(text)} characters, at most {_BODY_CHARS_MAX}")
        done = asyncio.get_running_loop().create_future()
        if not self._pending:
            task = asyncio.get_running_loop().create_task(self._flush())
            self._flushes.add(task)
            task.add_done_callback(self._flushes.discard)
        self._pending.append(_Entry(kind, key, text, done))
        # Shielded: a caller that is cancelled does not undo what others share, and the event is durable or absent as a whole.
        return await asyncio.shield(done)

    def events(self, after: int = 0) -> Sequence[Event]:
        """Return the durable events with ``seq`` above ``after``, in order."""
        start = bisect_right(self._events, after, key=lambda event: event.seq)
        return tuple(self._events[start:])

    async def close(self) -> None:
        """Finish what was appended and close the file. Closing twice changes nothing."""
        if self._closed:
            return
        self._closed = True
        if self._flushes:
            await asyncio.wait(self._flushes)
        await asyncio.get_running_loop().run_in_executor(self._executor, self._writer.close)
        self._executor.shutdown()

    async def _flush(self) -> None:
        entries, self._pending = self._pending, []
        loop = asyncio.get_running_loop()
        try:
            outcomes = await loop.run_in_executor(self._executor, self._writer.write, entries)
        except BaseException:
            for entry in entries:
                entry.done.cancel()  # nobody waits for ever
            raise
        for entry, outcome in zip(entries, outcomes, strict=True):
            match outcome:
                case Event():
                    if outcome.seq > len(self._events):
                        self._events.append(outcome)
                    entry.done.set_result(outcome)
                case _:
                    entry.done.set_exception(outcome)
                    entry.done.exception()  # seen: a caller that was cancelled leaves nobody to read it


class _Writer:
    """The connection; every method runs in the writer thread."""

    def __init__(self, path: Path, schema: Schema, durability: Durability) -> None:
        self._keys: dict[str, Event] = {}
        self._last = 0
        try:
            with ExitStack() as undo:
                self._db = sqlite3.connect(path, isolation_level=None, timeout=_PREDECESSOR_S)
                undo.callback(self._db.close)
                # Two processes with one state folder would each number their events without the other's.
                self._db.execute("PRAGMA locking_mode=EXCLUSIVE")
                self._db.execute("PRAGMA journal_mode=WAL")
                self._db.execute(f"PRAGMA synchronous={_SYNCHRONOUS[durability]}")
                self.raised = prepare(self._db, path, schema)
                sync_folder(path.parent)  # the file's name as well would survive a loss of power
                undo.pop_all()
        except sqlite3.DatabaseError as error:
            raise ConfigError(str(path), _open_problem(error)) from None

    def read(self) -> list[Event]:
        """Return all events, and remember their keys."""
        rows = self._db.execute("SELECT seq, kind, key, body FROM events ORDER BY seq").fetchall()
        events = [Event(seq=seq, kind=kind, key=key, body=json.loads(body)) for seq, kind, key, body in rows]
        self._keys = {event.key: event for event in events if event.key is not None}
        self._last = events[-1].seq if events else 0
        return events

    def write(self, entries: Sequence[_Entry]) -> list[Event | Exception]:
        """Commit all entries at once; one outcome for each."""
        fresh: dict[str, Event] = {}
        outcomes: list[Event | Exception] = []
        last = self._last
        try:
            self._db.execute("BEGIN IMMEDIATE")
            for entry in entries:
                body = json.loads(entry.body)
                known = None if entry.key is None else fresh.get(entry.key, self._keys.get(entry.key))
                if known is not None:
                    same = (known.kind, known.body) == (entry.kind, body)
                    outcomes.append(known if same else Replayed(f"{entry.kind} {entry.key}: the key was used for other content"))
                    continue
                last += 1
                event = Event(seq=last, kind=entry.kind, key=entry.key, body=body)
                self._db.execute("INSERT INTO events VALUES (?, ?, ?, ?)", (last, entry.kind, entry.key, entry.body))
                if entry.key is not None:
                    fresh[entry.key] = event
                outcomes.append(event)
            self._db.execute("COMMIT")
        except sqlite3.Error as error:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            return [_write_error(error)] * len(entries)
        self._keys.update(fresh)
        self._last = last
        return outcomes

    def close(self) -> None:
        """Close the connection."""
        self._db.close()


def _tell(path: Path, raised: Raised | None, schema: Schema) -> None:
    if raised is not None:
        was = {"layout": raised.layout, "version": raised.version}
        log_event(_log, "journal_upgraded", path=str(path), schema=schema.name, **was, version_now=schema.version)


def _open_problem(error: sqlite3.DatabaseError) -> str:
    match _primary(error):
        case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
            return "is in use by another process; stop that one, or give this one a state folder of its own"
        case sqlite3.SQLITE_FULL | sqlite3.SQLITE_IOERR | sqlite3.SQLITE_READONLY | sqlite3.SQLITE_CANTOPEN:
            return f"cannot be written ({error}); make room, or choose a state folder that can be written"
        case _:
            return f"cannot be used as a journal ({error}); move it away to start afresh"


def _write_error(error: sqlite3.Error) -> Exception:
    if _primary(error) in {sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_READONLY}:
        return StorageFull(f"the journal cannot be written ({error}): its disk is full, failing or read-only")
    return error


def _primary(error: sqlite3.Error) -> int:
    """Return the class of an error; the code itself says more, such as which operation on the file failed."""
    return error.sqlite_errorcode & 0xFF
