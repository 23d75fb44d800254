"""Do the faults of the suite that a small machine can play in a minute pass, and does the command say what it found?"""

import asyncio
import json
from pathlib import Path

import pytest

from hushtune_common.clock import SystemClock
from hushtune_common.errors import ConfigError
from hushtune_server.cli import main
from hushtune_server.testbed.chaos.case import Finding
from hushtune_server.testbed.chaos.suite import ACTS, FAULTS, run_suite
from hushtune_server.testbed.chaos.table import to_markdown


def failures(findings: list[Finding]) -> list[str]:
    return [f"fault {f.number}: {c.claim} (found: {c.found})" for f in findings for c in f.checks if not c.held]


@pytest.mark.slow
@pytest.mark.parametrize("only", [(1, 2, 8), (10,)], ids=["bytes", "certificates"])
def test_what_the_suite_does_to_a_run_costs_no_more_than_its_rules_say(
    tmp_path: Path, only: tuple[int, ...], caplog: pytest.LogCaptureFixture
) -> None:
    told: list[str] = []
    findings = asyncio.run(run_suite(tmp_path, only=only, clock=SystemClock(), tell=told.append))
    assert [f.number for f in findings] == list(only)
    assert failures(findings) == []
    assert all(f.passed for f in findings)
    assert sum("passed" in line for line in told) == len(only)
    assert [r.getMessage() for r in caplog.records if r.name == "asyncio"] == [], "the suite leaves nothing of its own behind"


def test_each_fault_is_played_once_and_there_are_ten() -> None:
    assert sorted(number for act in ACTS for number in act.faults) == list(FAULTS) == list(range(1, 11))


@pytest.mark.parametrize("only", ["0", "11", "1,12", "one", "1,,2", "-1"])
def test_a_fault_that_is_none_is_a_setting_to_correct(tmp_path: Path, only: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["testbed", "chaos", f"--only={only}", "--out", str(tmp_path)]) == ConfigError.exit_code
    assert "--only" in capsys.readouterr().err


def test_a_claim_that_does_not_hold_fails_its_fault_and_is_named_in_the_table() -> None:
    good = Finding(number=1, title="cuts", rule="resumes")
    good.check("resumed", held=True)
    bad = Finding(number=2, title="lost | replies", rule="counted once", recovery_s=1.25)
    bad.check("counted once", held=False, found="2")
    assert (good.passed, bad.passed, Finding(number=3, title="", rule="").passed) == (True, False, False)
    timing = {"connect": 1.0, "idle": 2.0, "idle_where_killed": 4.0, "round": 3.0}
    about = {"wall_s": 1.0, "timing_s": timing, "versions": {}, "cores": 2, "load_average": [0.5, 17.25]}
    body = {"faults": [good.to_json(), bad.to_json()], **about}
    table = to_markdown(json.loads(json.dumps(body)))
    assert "| 2 | lost / replies |" in table
    assert "- fault 2: counted once (found: 2)" in table
    assert "2 cores; its load average was 0.5 when it began and 17.25 at the end" in table
