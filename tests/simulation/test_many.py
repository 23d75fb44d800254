"""Are many worlds played whatever becomes of single ones, and is what came of them told?"""

import subprocess
import sys

import pytest

from tests.simulation import coordination
from tests.simulation.many import Counts, Kind, run, tallied
from tests.simulation.simulator import Violation


def odd_ones_break(seed: int) -> Counts:
    """Play a world that breaks a law for odd seeds, and cannot be played for 4."""
    if seed % 2:
        raise Violation(f"seed {seed}: broken")
    return {"halves": seed // (seed - 4)}


def shown(seed: int) -> None:
    """Show nothing."""


ODD = Kind(name="odd", play=odd_ones_break, replay=shown)


@pytest.mark.parametrize("jobs", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_broken_world_is_counted_and_the_others_are_played(jobs: int) -> None:
    told: list[str] = []

    tally = tallied(ODD, range(20, 45), jobs=jobs, tell=told.append)

    assert tally.played == tally.of == 25
    assert {outcome.seed for outcome in tally.failures} == {seed for seed in range(20, 45) if seed % 2}
    assert tally.counts == {"halves": sum(seed // (seed - 4) for seed in range(20, 45, 2))}
    assert sum("broken" in line for line in told) == 12


def test_a_world_that_cannot_be_played_is_a_failure_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(ODD, range(4, 5), jobs=1) == 1

    line = capsys.readouterr().out
    assert line.startswith("odd: 1 worlds (seeds 4 to 4, commit ")
    assert "1 failures (seeds 4)" in line


@pytest.mark.slow
def test_worlds_in_other_processes_are_the_same_worlds() -> None:
    seeds = range(7, 20)

    elsewhere = tallied(coordination.KIND, seeds, jobs=2, tell=print)

    assert elsewhere.counts == tallied(coordination.KIND, seeds, jobs=1, tell=print).counts


@pytest.mark.slow
def test_the_command_plays_worlds_in_two_processes_and_ends_with_one_line() -> None:
    words = [sys.executable, "-m", "tests.simulation.coordination", "0", "25", "--jobs", "2", "adds"]

    done = subprocess.run(words, capture_output=True, text=True, check=True)

    assert done.stdout.count("\n") == 1
    assert "coordination adds: 25 worlds" in done.stdout
    assert "0 failures" in done.stdout
