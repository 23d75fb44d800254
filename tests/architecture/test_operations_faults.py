"""Does the operator's table of faults have every fault that is played, and does what it names exist?"""

import re
from pathlib import Path

import pytest

from hushtune_common import errors
from hushtune_common.config import TimingConfig
from hushtune_common.errors import HushtuneError
from hushtune_common.events.catalogue import EVENTS
from hushtune_server.testbed.chaos.case import Case
from hushtune_server.testbed.chaos.suite import CASES

ROOT = Path(__file__).resolve().parents[2]
ERRORS = [e for e in vars(errors).values() if isinstance(e, type) and issubclass(e, HushtuneError)]


def section(file: str, title: str) -> list[list[str]]:
    """Return the cells of every row of the tables in a section, without heads and rules."""
    text = (ROOT / file).read_text(encoding="utf-8").split(f"\n## {title}\n", 1)[1].split("\n## ", 1)[0]
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in text.splitlines() if line.startswith("|")]
    rules = {i for i, row in enumerate(rows) if set("".join(row)) <= set("-| ")}
    return [row for i, row in enumerate(rows) if i not in rules and i + 1 not in rules]


FAULTS = section("docs/OPERATIONS.md", "Faults")
CODES = {code.strip() for row in section("README.md", "Exit codes") for code in row[0].split(",")}


def quoted(row: list[str]) -> list[str]:
    """Return the words of a row that are set as code."""
    return [word for span in re.findall(r"`([^`]*)`", " | ".join(row)) for word in span.split()]


def test_a_fault_has_one_row_of_three_cells_that_all_say_something() -> None:
    assert [row for row in FAULTS if len(row) != 3 or not all(row)] == []
    assert len({row[0] for row in FAULTS}) == len(FAULTS)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"fault {case.number}")
def test_every_fault_that_is_played_names_its_rows_in_the_table(case: Case) -> None:
    assert case.rows
    assert [row for row in case.rows if row not in {first for first, *_ in FAULTS}] == []


def test_no_row_is_claimed_by_two_faults() -> None:
    claimed = [row for case in CASES for row in case.rows]
    assert len(claimed) == len({*claimed})


@pytest.mark.parametrize("row", FAULTS, ids=lambda row: row[0])
def test_every_event_setting_reason_and_code_in_a_row_exists(row: list[str]) -> None:
    settings = {*TimingConfig.__struct_fields__}
    named = {w for w in quoted(row) if re.fullmatch(r"[a-z]+(_[a-z]+)+", w)}
    assert named - {*EVENTS} - settings == set()
    reasons = {w for w in quoted(row) if re.fullmatch(r"[A-Z]+(_[A-Z]+)+", w)}
    assert reasons <= {error.reason for error in ERRORS}
    codes = set(re.findall(r"\bcode (\d+)", " ".join(row)))
    assert codes <= {str(error.exit_code) for error in ERRORS}
    assert codes <= CODES


def test_the_checks_can_find_something() -> None:
    assert sum(any(word in EVENTS for word in quoted(row)) for row in FAULTS) >= 8
    assert sum("code " in " ".join(row) for row in FAULTS) >= 4
