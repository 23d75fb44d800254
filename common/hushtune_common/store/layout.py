"""In which form does a journal's file hold its events, and how does a file of an older release come to it?

The number of the form is the file's ``user_version``, where every release finds it. The events have a version of their own, which
belongs to whoever writes them.
"""

import json
import re
import sqlite3
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from hushtune_common.errors import ConfigError, ScenarioMismatch

LAYOUT: Final = 2
"""1: one text said whose events these are; 2: name, version and scenario each have a column."""

Upgrade = Callable[[str, dict[str, Any]], tuple[str, dict[str, Any]]]
"""Turns kind and body of one event into those of the next version. Number and key of the event stay."""

_TABLES: Final = (
    "CREATE TABLE about (name TEXT NOT NULL, version INTEGER NOT NULL, scenario TEXT NOT NULL)",
    "CREATE TABLE events (seq INTEGER PRIMARY KEY, kind TEXT NOT NULL, key TEXT UNIQUE, body TEXT NOT NULL)",
)
_OLD_NAME: Final = re.compile(r"(?P<name>[a-z-]+)(?:/(?P<version>[0-9]{1,4}))?(?:/(?P<scenario>[0-9a-f]{64}))?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Schema:
    """Whose events a journal holds (``name``), of which ``version``, and of which scenario; its digest, or nothing.

    ``upgrades`` are by the version that they start from. Events that are older than the first of them are refused.
    """

    name: str
    version: int = 1
    scenario: str = ""
    upgrades: Mapping[int, Upgrade] = field(default_factory=dict[int, Upgrade])

    def __post_init__(self) -> None:
        """Refuse upgrades with a gap, or beyond the version: what is accepted at all has to come all the way."""
        if self.version < 1 or [*self.upgrades] != [*range(self.version - len(self.upgrades), self.version)]:
            raise ValueError(f"upgrades from {[*self.upgrades]} do not lead to version {self.version}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Raised:
    """What a file was when it was opened, and is no more."""

    layout: int
    version: int


def prepare(database: sqlite3.Connection, path: Path, schema: Schema) -> Raised | None:
    """Give a new file its tables, bring an old one to today's form; return what it was if it was another.

    All in one transaction: a process that is killed, or an upgrade that fails, leaves the file as it was. ``ConfigError`` and
    ``ScenarioMismatch`` as for `Journal.open`, before anything is changed.
    """
    database.execute("BEGIN IMMEDIATE")
    try:
        raised = _prepare(database, path, schema)
    except BaseException:
        database.execute("ROLLBACK")
        raise
    database.execute("COMMIT")
    return raised


def _prepare(database: sqlite3.Connection, path: Path, schema: Schema) -> Raised | None:
    if database.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] == 0:
        for statement in _TABLES:
            database.execute(statement)
        _write_about(database, schema)
        return None
    layout = _layout(database, path)
    held = _about(database, path, layout)
    _require_own(path, held, schema)
    if (layout, held.version) == (LAYOUT, schema.version):
        return None
    if layout < LAYOUT:
        database.execute("DROP TABLE about")
        database.execute(_TABLES[0])
    for version in range(held.version, schema.version):
        _rewrite(database, schema.upgrades[version])
    database.execute("DELETE FROM about")
    _write_about(database, schema)
    return Raised(layout=layout, version=held.version)


def _write_about(database: sqlite3.Connection, schema: Schema) -> None:
    database.execute("INSERT INTO about VALUES (?, ?, ?)", (schema.name, schema.version, schema.scenario))
    database.execute(f"PRAGMA user_version={LAYOUT}")


def _layout(database: sqlite3.Connection, path: Path) -> int:
    layout = int(database.execute("PRAGMA user_version").fetchone()[0])
    if layout > LAYOUT:
        raise _newer(path, f"layout {layout} of its tables, this one knows {LAYOUT}")
    if layout:
        return layout
    known = database.execute("SELECT count(*) FROM sqlite_master WHERE name IN ('about', 'events')").fetchone()[0]
    if known != 2:
        raise _foreign(path, "tables of something else")
    return 1


def _about(database: sqlite3.Connection, path: Path, layout: int) -> Schema:
    row = database.execute("SELECT * FROM about").fetchone() or ("",)
    if layout == LAYOUT and len(row) == 3 and isinstance(row[1], int) and row[1] >= 1:
        return Schema(name=str(row[0]), version=row[1], scenario=str(row[2]))
    found = _OLD_NAME.fullmatch(str(row[0])) if layout == 1 else None
    if found is None:
        raise _foreign(path, f"a journal of {row[0]!r}")
    return Schema(name=found["name"], version=int(found["version"] or 1), scenario=found["scenario"] or "")


def _require_own(path: Path, held: Schema, wanted: Schema) -> None:
    if held.name != wanted.name:
        raise _foreign(path, f"a journal of {held.name!r}, not of {wanted.name!r}")
    if held.version > wanted.version:
        raise _newer(path, f"version {held.version} of its events, this one knows {wanted.version}")
    oldest = min(wanted.upgrades, default=wanted.version)
    if held.version < oldest:
        problem = f"was written by an older release (version {held.version} of its events, this one reads {oldest} and later)"
        raise ConfigError(str(path), f"{problem}; end that run with the release that began it, or start with an empty folder")
    if held.scenario != wanted.scenario:
        remedy = f"start with an empty state folder, or go on with the scenario that {path.parent} holds"
        whose = f"of a run of scenario {held.scenario[:12] or '?'}, this is scenario {wanted.scenario[:12] or '?'}"
        raise ScenarioMismatch(f"{path} is {whose}: {remedy}")


def _rewrite(database: sqlite3.Connection, upgrade: Upgrade) -> None:
    for seq, kind, body in database.execute("SELECT seq, kind, body FROM events ORDER BY seq").fetchall():
        made, content = upgrade(kind, json.loads(body))
        text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
        database.execute("UPDATE events SET kind = ?, body = ? WHERE seq = ?", (made, text, seq))


def _newer(path: Path, what: str) -> ConfigError:
    return ConfigError(str(path), f"was written by a newer release ({what}); start that release, or begin with an empty folder")


def _foreign(path: Path, what: str) -> ConfigError:
    return ConfigError(str(path), f"holds {what}; move it away to start afresh")
