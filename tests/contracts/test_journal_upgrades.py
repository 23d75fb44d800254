"""Does a state that an older release left go on, and is one of a newer release refused in words?"""

import asyncio
import json
import shutil
import sqlite3
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from hushtune_client.phases import Finished
from hushtune_client.state import ClientState
from hushtune_common.config import parse
from hushtune_common.errors import ConfigError, ScenarioMismatch
from hushtune_common.messages import ClientId, RunId
from hushtune_common.store.journal import Event, Journal
from hushtune_server.air.ledger import Ledger
from hushtune_server.coordinator.events import from_body
from hushtune_server.coordinator.phases import Closed, Rules
from hushtune_server.coordinator.rounds import fold
from hushtune_server.owner.book import Book
from tests.killing import SCENARIO

STATES = Path(__file__).parents[1] / "golden" / "states" / "layout-1"
"""Journals of a run of two rounds with two clients, as the release before layout 2 left them."""
NAMES = {"coordinator": "coordinator", "owner": "owner", "air": "air", "c1": "hushtune-client"}
VERSIONS = {"coordinator": 1, "owner": 1, "air": 2, "c1": 2}


def rows(path: Path) -> list[tuple[int, str, str | None, dict[str, Any]]]:
    """The events in a file, by SQLite alone."""
    database = sqlite3.connect(path)
    found = database.execute("SELECT seq, kind, key, body FROM events ORDER BY seq").fetchall()
    database.close()
    return [(seq, kind, key, json.loads(body)) for seq, kind, key, body in found]


def about(path: Path) -> tuple[int, tuple[Any, ...]]:
    database = sqlite3.connect(path)
    found = database.execute("PRAGMA user_version").fetchone()[0], database.execute("SELECT * FROM about").fetchone()
    database.close()
    return found


def old(folder: Path, name: str) -> tuple[Path, str]:
    """A copy of an old journal, and the digest of its scenario."""
    copy = Path(shutil.copy(STATES / f"{name}.sqlite", folder / "journal.sqlite"))
    words = about(copy)[1][0].split("/")
    return copy, words[-1] if len(words[-1]) == 64 else ""


def opened(path: Path, **asked: Any) -> list[Event]:
    async def run() -> list[Event]:
        journal = Journal.open(path, **asked)
        events = list(journal.events())
        await journal.close()
        return events

    return asyncio.run(run())


@pytest.mark.parametrize("name", NAMES)
def test_an_old_journal_has_the_same_events_when_it_is_opened_and_opened_again(tmp_path: Path, name: str) -> None:
    path, digest = old(tmp_path, name)
    before = rows(path)
    asked = {"schema": NAMES[name], "version": VERSIONS[name], "scenario": digest}
    for _ in range(2):
        assert [(e.seq, e.kind, e.key, e.body) for e in opened(path, **asked)] == before
    assert about(path) == (2, (NAMES[name], VERSIONS[name], digest))
    assert rows(path) == before


def test_an_old_coordinator_folds_to_the_closed_second_round(tmp_path: Path) -> None:
    path, _ = old(tmp_path, "coordinator")
    events = opened(path, schema="coordinator")
    assert events[0].kind == "started"
    rules = Rules.of(parse(tomllib.loads(SCENARIO.replace("{rounds}", "2"))), run=RunId("run-1"))
    state = fold([from_body(e.kind, e.body) for e in events if e.kind != "started"], rules=rules)
    assert state.round_id == 2
    assert isinstance(state.phase, Closed)
    assert sorted(state.phase.accepted) == ["c1", "c2"]


def test_an_old_owner_knows_its_judgements_and_an_old_air_its_transmissions(tmp_path: Path) -> None:
    path, digest = old(tmp_path, "owner")
    book = Book()
    for event in opened(path, schema="owner", scenario=digest):
        book.apply(event.kind, event.body)
    slots = [(n, c) for n in (1, 2) for c in ("c1", "c2")]
    assert sorted((j.key.round_id, j.key.client) for j in book.judgements if j.accepted) == slots
    assert [(c.round_id, sorted(c.merged)) for c in book.closings] == [(1, ["c1", "c2"]), (2, ["c1", "c2"])]
    path, digest = old(tmp_path, "air")
    ledger = Ledger()
    for event in opened(path, schema="air", version=2, scenario=digest):
        ledger.apply(event.kind, event.body)
    assert sorted({(s.transmission.key.round_id, s.transmission.key.client) for s in ledger.sent}) == slots


def test_an_old_client_knows_that_it_is_done(tmp_path: Path) -> None:
    old(tmp_path, "c1")

    async def run() -> None:
        state = ClientState.open(tmp_path, client=ClientId("c1"), attempts_max=8)
        assert isinstance(state.current, Finished)
        assert [v.key.round_id for v in state.verdicts()] == [1, 2]
        await state.close()

    asyncio.run(run())


def renamed(kind: str, body: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    return ("counted", {"number": body["n"]}) if kind == "count" else (kind, body)


def doubled(kind: str, body: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    return kind, {"number": 2 * body["number"]}


def of_version_1(path: Path) -> None:
    async def run() -> None:
        journal = Journal.open(path, schema="test")
        for n in (1, 2):
            await journal.append("count", {"n": n}, key=f"key-{n}")
        await journal.close()

    asyncio.run(run())


def test_events_go_through_every_upgrade_between_and_keep_number_and_key(tmp_path: Path) -> None:
    of_version_1(tmp_path / "j.db")
    asked = {"schema": "test", "version": 3, "upgrades": {1: renamed, 2: doubled}}
    found = opened(tmp_path / "j.db", **asked)
    assert [(e.seq, e.kind, e.key, e.body) for e in found] == [
        (1, "counted", "key-1", {"number": 2}),
        (2, "counted", "key-2", {"number": 4}),
    ]
    assert opened(tmp_path / "j.db", **asked) == found


def test_an_upgrade_that_fails_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    of_version_1(tmp_path / "j.db")
    before = rows(tmp_path / "j.db"), about(tmp_path / "j.db")
    with pytest.raises(KeyError):
        opened(tmp_path / "j.db", schema="test", version=2, upgrades={1: doubled})
    assert (rows(tmp_path / "j.db"), about(tmp_path / "j.db")) == before
    assert len(opened(tmp_path / "j.db", schema="test")) == 2


@pytest.mark.slow
def test_a_process_that_is_killed_in_an_upgrade_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    of_version_1(tmp_path / "j.db")
    script = """
import os, signal, sys
from pathlib import Path
from hushtune_common.store.journal import Journal
def upgrade(kind, body):
    if body["n"] == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return "counted", body
Journal.open(Path(sys.argv[1]), schema="test", version=2, upgrades={1: upgrade})
"""
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path / "j.db")], check=False)
    assert done.returncode == -9
    assert [e.kind for e in opened(tmp_path / "j.db", schema="test")] == ["count", "count"]


def test_newer_and_too_old_files_are_refused_with_the_remedy(tmp_path: Path) -> None:
    of_version_1(tmp_path / "j.db")
    opened(tmp_path / "j.db", schema="test", version=2, upgrades={1: renamed})
    with pytest.raises(ConfigError, match=r"j\.db: was written by a newer release \(version 2 .* knows 1\); start that release"):
        opened(tmp_path / "j.db", schema="test")
    with pytest.raises(ConfigError, match=r"older release \(version 2 of its events, this one reads 3 and later\); end that run"):
        opened(tmp_path / "j.db", schema="test", version=4, upgrades={3: renamed})
    database = sqlite3.connect(tmp_path / "j.db")
    database.execute("PRAGMA user_version=3")
    database.execute("DROP TABLE about")
    database.close()
    with pytest.raises(ConfigError, match=r"newer release \(layout 3 of its tables, this one knows 2\)"):
        opened(tmp_path / "j.db", schema="test", version=2, upgrades={1: renamed})


@pytest.mark.parametrize("row", ["", "INSERT INTO about VALUES ('test', 0, '')", "INSERT INTO about VALUES ('test', 'x', '')"])
def test_a_file_that_says_nothing_sensible_about_itself_is_refused(tmp_path: Path, row: str) -> None:
    of_version_1(tmp_path / "j.db")
    database = sqlite3.connect(tmp_path / "j.db", isolation_level=None)
    database.execute("DELETE FROM about")
    database.execute(row)
    database.close()
    with pytest.raises(ConfigError, match="move it away"):
        opened(tmp_path / "j.db", schema="test")


def test_an_old_journal_of_another_scenario_is_refused_unchanged(tmp_path: Path) -> None:
    path, _ = old(tmp_path, "owner")
    before = path.read_bytes()
    with pytest.raises(ScenarioMismatch, match="this is scenario bbbbbbbbbbbb"):
        opened(path, schema="owner", scenario="b" * 64)
    with pytest.raises(ConfigError, match="not of 'air'"):
        opened(path, schema="air", version=2, scenario="b" * 64)
    assert path.read_bytes()[100:] == before[100:], "but for counters in the header"


def test_upgrades_with_a_gap_are_a_defect(tmp_path: Path) -> None:
    for upgrades in ({1: renamed}, {2: renamed, 1: renamed}, {3: renamed}):
        with pytest.raises(ValueError, match="do not lead to version 3"):
            Journal.open(tmp_path / "j.db", schema="test", version=3, upgrades=upgrades)


def test_what_a_machine_makes_sure_of_is_no_part_of_the_experiment() -> None:
    tree = tomllib.loads(SCENARIO.replace("{rounds}", "2"))
    careful = parse({**tree, "state": {"durability": "power"}})
    assert careful.state.durability == "power"
    assert careful.digest == parse(tree).digest
    with pytest.raises(ConfigError, match=r"state\.durability"):
        parse({**tree, "state": {"durability": "always"}})


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
@pytest.mark.parametrize(("durability", "least", "most"), [("process", 0, 3), ("power", 20, 45)])
def test_a_commit_waits_for_the_disk_where_power_may_fail(tmp_path: Path, durability: str, least: int, most: int) -> None:
    script = """
import asyncio, os, sys
from pathlib import Path
from hushtune_common.store.journal import Journal
async def run():
    journal = Journal.open(Path(sys.argv[1]), schema="test", durability=sys.argv[2])
    await journal.append("x", {})
    os.write(2, b"BEGIN")
    for n in range(20):
        await journal.append("x", {"n": n})
    os.write(2, b"END")
    await journal.close()
asyncio.run(run())
"""
    trace = tmp_path / "trace"
    calls = ["strace", "-f", "-e", "trace=fsync,fdatasync,write", "-o", str(trace)]
    done = subprocess.run(
        [*calls, sys.executable, "-c", script, str(tmp_path / "j.db"), durability], capture_output=True, check=False, timeout=60
    )
    if done.returncode != 0 and b"ptrace" in done.stderr:
        pytest.skip("ptrace is not allowed here")
    between = trace.read_text().partition('"BEGIN"')[2].partition('"END"')[0]
    assert least <= sum(between.count(call) for call in ("fsync(", "fdatasync(")) <= most
