"""Does a run end as if nothing had been when processes drawn at random are killed in it, and would we notice if not?"""

import json
import random
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.killing import CLIENTS, SCENARIO, Campaign, begin, faults
from tests.troupe import Troupe, on_stage

ROUNDS = 2


@pytest.fixture
def troupe(tmp_path: Path) -> Iterator[Troupe]:
    with on_stage(tmp_path, scenario=SCENARIO.replace("{rounds}", str(ROUNDS)), clients=CLIENTS) as made:
        yield made


def tampered(journal: Path, statement: str) -> None:
    database = sqlite3.connect(journal, isolation_level=None)
    database.execute(statement)
    database.close()


@pytest.mark.slow
def test_what_is_left_of_a_run_does_not_tell_that_its_processes_were_killed(troupe: Troupe) -> None:
    begin(troupe)
    campaign = Campaign(troupe, random.Random(5), kills_max=6, pause_max_s=2.5)
    campaign.play(within_s=600.0)
    troupe.stop()  # the air and the eavesdropper know of no end
    assert campaign.killed
    assert faults(troupe, rounds=ROUNDS) == []

    # The comparison is worth something: what it exists for is noticed.
    owner = troupe.folder / "owner"
    shutil.copy(owner / "journal.sqlite", owner / "kept.sqlite")
    tampered(
        owner / "journal.sqlite",
        "INSERT INTO events SELECT (SELECT max(seq) + 1 FROM events), kind, NULL, body FROM events WHERE kind = 'judged' LIMIT 1",
    )
    assert any("2 times" in fault for fault in faults(troupe, rounds=ROUNDS)), "an update that counts twice"
    shutil.copy(owner / "kept.sqlite", owner / "journal.sqlite")
    tampered(owner / "journal.sqlite", "DELETE FROM events WHERE seq = (SELECT max(seq) FROM events WHERE kind = 'judged')")
    assert any("0 times" in fault for fault in faults(troupe, rounds=ROUNDS)), "an update that is lost"
    shutil.copy(owner / "kept.sqlite", owner / "journal.sqlite")
    current = owner / "versions" / "current.json"
    current.write_bytes(json.dumps({**json.loads(current.read_bytes()), "current": None}).encode())
    assert any("in the model sits" in fault for fault in faults(troupe, rounds=ROUNDS)), "a model without its adapter"
