"""What does scripts/compose-test say where it cannot work? Needs no engine: commands that answer badly stand in its way."""

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def script(tmp_path: Path) -> Path:
    """A copy of the script in a folder that looks set up: nothing it writes reaches the repository."""
    for folder in ("scripts", ".venv/bin", "bin"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / ".venv/bin/python").symlink_to("/bin/true")
    copy = tmp_path / "scripts/compose-test"
    copy.write_bytes((ROOT / "scripts/compose-test").read_bytes())
    return copy


def ran(script: Path, **commands: str) -> subprocess.CompletedProcess[str]:
    bin_ = script.parents[1] / "bin"
    for name, body in commands.items():
        (bin_ / name).write_text(f"#!/bin/sh\n[ -t 0 ] || cat > /dev/null\n{body}\n", encoding="utf-8")
        (bin_ / name).chmod(0o755)
    environment = {"PATH": f"{bin_}:/usr/bin:/bin", "HOME": str(bin_)}
    return subprocess.run(
        ["bash", str(script)], env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=30, check=False
    )


def test_without_an_engine_it_says_aloud_that_nothing_was_tested_and_does_not_pass(script: Path) -> None:
    done = ran(script, id="echo 1000", docker="exit 1", awk="echo 99999")
    assert done.returncode == 77
    assert "NOT TESTED" in done.stderr
    assert "install Docker" in done.stderr


@pytest.mark.parametrize("what", ["memory", "disk"])
def test_too_little_memory_or_disk_is_told_before_anything_is_built(script: Path, what: str) -> None:
    answers = {"memory": "echo 512", "disk": 'case "$*" in *MemAvailable*) echo 99999;; *) echo 512;; esac'}
    done = ran(script, id="echo 1000", docker="exit 0", awk=answers[what])
    assert done.returncode == 3
    assert f"512 MB of {what} are free" in done.stderr


def test_without_a_virtual_environment_it_names_the_command_that_makes_one(script: Path) -> None:
    (script.parents[1] / ".venv/bin/python").unlink()
    done = ran(script)
    assert (done.returncode, "make setup" in done.stderr) == (3, True)
