"""Does the journal keep what it says it keeps?"""

import asyncio
import resource
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hushtune_common.errors import ConfigError, LimitExceeded, Replayed, ScenarioMismatch, StorageFull
from hushtune_common.store.journal import Event, Journal

SCHEMA = "test/1"
bodies = st.dictionaries(st.text(max_size=5), st.one_of(st.integers(), st.text(max_size=5), st.booleans(), st.none()), max_size=3)
appends = st.lists(st.tuples(st.sampled_from("ab"), bodies, st.none() | st.sampled_from(["k1", "k2"])), max_size=12)


def commits_of(path: Path) -> int:
    """Count the commit frames of a write-ahead log: those that state the size of the database (SQLite file format, section 4)."""
    log = path.with_name(path.name + "-wal").read_bytes()
    page = int.from_bytes(log[8:12], "big")
    return sum(log[at + 4 : at + 8] != bytes(4) for at in range(32, len(log), 24 + page))


def test_events_survive_closing_in_order(tmp_path: Path):
    async def run() -> None:
        journal = Journal.open(tmp_path / "state" / "j.db", schema=SCHEMA)
        written = [await journal.append("opened", {"round": n, "who": ["c1", "c2"]}) for n in (1, 2, 3)]
        await journal.close()
        again = Journal.open(tmp_path / "state" / "j.db", schema=SCHEMA)
        assert list(again.events()) == written
        assert [event.seq for event in written] == [1, 2, 3]
        assert list(again.events(after=2)) == written[2:]
        assert (await again.append("closed", {})).seq == 4
        await again.close()

    asyncio.run(run())


def test_a_repeated_key_gets_the_stored_event_and_other_content_is_refused(tmp_path: Path):
    async def run() -> None:
        journal = Journal.open(tmp_path / "j.db", schema=SCHEMA)
        first = await journal.append("settled", {"accepted": True}, key="run/1/c1/1")
        assert await journal.append("settled", {"accepted": True}, key="run/1/c1/1") == first
        for kind, body in (("settled", {"accepted": False}), ("closed", {"accepted": True})):
            with pytest.raises(Replayed, match="run/1/c1/1"):
                await journal.append(kind, body, key="run/1/c1/1")
        assert list(journal.events()) == [first]
        await journal.close()
        again = Journal.open(tmp_path / "j.db", schema=SCHEMA)
        with pytest.raises(Replayed):
            await again.append("settled", {"accepted": False}, key="run/1/c1/1")
        await again.close()

    asyncio.run(run())


def test_appends_of_one_loop_turn_share_a_commit(tmp_path: Path):
    async def run() -> None:
        journal = Journal.open(tmp_path / "j.db", schema=SCHEMA)
        before = commits_of(tmp_path / "j.db")
        events = await asyncio.gather(*(journal.append("reported", {"n": n}) for n in range(50)))
        assert [event.body["n"] for event in events] == list(range(50))
        assert commits_of(tmp_path / "j.db") - before == 1
        await journal.close()

    asyncio.run(run())


def test_a_cancelled_caller_does_not_harm_the_others(tmp_path: Path):
    async def run() -> None:
        journal = Journal.open(tmp_path / "j.db", schema=SCHEMA)
        cancelled, kept = (asyncio.create_task(journal.append("x", {"n": n})) for n in (1, 2))
        await asyncio.sleep(0)
        cancelled.cancel()
        assert (await kept).body == {"n": 2}
        await journal.close()
        assert cancelled.cancelled()

    asyncio.run(run())


def test_close_finishes_what_was_appended(tmp_path: Path):
    async def run() -> None:
        journal = Journal.open(tmp_path / "j.db", schema=SCHEMA)
        pending = asyncio.create_task(journal.append("x", {}))
        await asyncio.sleep(0)
        await journal.close()
        await journal.close()
        assert (await pending).seq == 1

    asyncio.run(run())


def test_another_schema_and_other_files_are_refused(tmp_path: Path):
    async def run() -> None:
        await Journal.open(tmp_path / "j.db", schema="owner/1").close()
        with pytest.raises(ConfigError, match="owner/1"):
            Journal.open(tmp_path / "j.db", schema="air/1")
        with pytest.raises(ConfigError, match="cannot be made"):
            Journal.open(tmp_path / "j.db" / "below-a-file" / "j.db", schema="air/1")
        (tmp_path / "text").write_text("not a database, but long enough to be looked at" * 10)
        with pytest.raises(ConfigError, match="text"):
            Journal.open(tmp_path / "text", schema="air/1")
        with sqlite3.connect(tmp_path / "other.db") as other:
            other.execute("CREATE TABLE cats (name TEXT)")
        with pytest.raises(ConfigError, match=r"other\.db"):
            Journal.open(tmp_path / "other.db", schema="air/1")

    asyncio.run(run())


def test_a_journal_of_another_scenario_is_refused_as_such(tmp_path: Path):
    async def run() -> None:
        await Journal.open(tmp_path / "j.db", schema="owner", scenario="a" * 64).close()
        with pytest.raises(ScenarioMismatch, match="run of scenario aaaaaaaaaaaa, this is scenario bbbbbbbbbbbb"):
            Journal.open(tmp_path / "j.db", schema="owner", scenario="b" * 64)
        with pytest.raises(ConfigError, match="a journal of 'owner', not of 'air'"):
            Journal.open(tmp_path / "j.db", schema="air", scenario="b" * 64)

    asyncio.run(run())


def test_a_body_is_bounded_and_finite(tmp_path: Path):
    async def run() -> None:
        journal = Journal.open(tmp_path / "j.db", schema=SCHEMA)
        with pytest.raises(LimitExceeded):
            await journal.append("x", {"blob": "a" * (8 << 20)})
        with pytest.raises(ValueError, match="JSON"):
            await journal.append("x", {"loss": float("nan")})
        assert not journal.events()
        await journal.close()

    asyncio.run(run())


@pytest.mark.slow
def test_a_journal_that_is_open_is_refused_to_a_second_and_free_again_when_closed(tmp_path: Path):
    async def run() -> None:
        journal = Journal.open(tmp_path / "j.db", schema=SCHEMA)
        with pytest.raises(ConfigError, match="in use by another process"):
            Journal.open(tmp_path / "j.db", schema=SCHEMA)
        await journal.append("opened", {})
        await journal.close()
        await Journal.open(tmp_path / "j.db", schema=SCHEMA).close()

    asyncio.run(run())


def test_a_disk_that_takes_no_more_is_a_typed_fault_and_keeps_what_was_there(tmp_path: Path):
    async def run() -> None:
        journal = Journal.open(tmp_path / "j.db", schema=SCHEMA)
        first = await journal.append("opened", {})
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, ((tmp_path / "j.db-wal").stat().st_size, before[1]))
        try:
            with pytest.raises(StorageFull, match="cannot be written"):
                await journal.append("x", {"text": "a" * 10_000})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert await journal.append("closed", {}) == journal.events(after=first.seq)[0]
        await journal.close()

    asyncio.run(run())


@pytest.mark.slow
def test_what_append_returned_survives_sigkill(tmp_path: Path):
    script = """
import asyncio, sys
from pathlib import Path
from hushtune_common.store.journal import Journal
async def run():
    journal = Journal.open(Path(sys.argv[1]), schema="test/1")
    for n in range(1000):
        print((await journal.append("x", {"n": n})).seq, flush=True)
asyncio.run(run())
"""
    with subprocess.Popen([sys.executable, "-c", script, str(tmp_path / "j.db")], stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        last = [int(writer.stdout.readline()) for _ in range(100)][-1]
        writer.kill()

    async def survivors() -> list[Event]:
        journal = Journal.open(tmp_path / "j.db", schema=SCHEMA)
        events = list(journal.events())
        await journal.close()
        return events

    events = asyncio.run(survivors())
    assert len(events) >= last == 100
    assert [event.body["n"] for event in events] == list(range(len(events)))


@settings(max_examples=20)
@given(steps=appends)
def test_a_journal_is_a_list_with_unique_keys(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, dict[str, object], str | None]]
):
    path = tmp_path_factory.mktemp("journal") / "j.db"

    async def run() -> list[tuple[str, dict[str, object], str | None]]:
        journal = Journal.open(path, schema=SCHEMA)
        for kind, body, key in steps:
            if key is not None and any(k == key and (m, b) != (kind, body) for m, b, k in model):
                with pytest.raises(Replayed):
                    await journal.append(kind, body, key=key)
                continue
            await journal.append(kind, body, key=key)
            if key is None or all(k != key for _, _, k in model):
                model.append((kind, body, key))
        await journal.close()
        again = Journal.open(path, schema=SCHEMA)
        events = [(event.kind, event.body, event.key) for event in again.events()]
        await again.close()
        return events

    model: list[tuple[str, dict[str, object], str | None]] = []
    assert asyncio.run(run()) == model
