"""Does the command line teach, answer at once, and end with the code and the line that a fault deserves?"""

import json
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from hushtune_common.errors import ConfigError
from hushtune_common.helptext import default_worth_showing
from hushtune_server import cli
from hushtune_server.cli import main

SCENARIO = """
name = "cli"
seed = 1
[model]
source = "random:blocks=4,hidden=16,heads=2,vocab=256,seed=1"
adapter_bottom = 1
adapter_top = 1
[data]
private = "txt:a"
public = "txt:b"
[[clients]]
id = "c1"
position = { x_m = -60.0, y_m = 40.0 }
"""


def hushtune(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "hushtune_server", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_every_command_has_its_place_on_the_help_page() -> None:
    grouped = [name for names in cli.GROUPS.values() for name in names]
    assert sorted(grouped) == sorted(set(cli.app) - {"-h"})
    panels = hushtune("--help").stdout
    assert "Commands" not in panels
    assert [panels.index(title) for title in cli.GROUPS] == sorted(panels.index(title) for title in cli.GROUPS)


def test_switches_that_are_off_by_default_have_no_opposite_and_empty_defaults_are_not_shown() -> None:
    shown = hushtune("testbed", "run", "--help").stdout
    assert "--no-live" in shown
    assert "--no-bound" not in shown
    assert "--empty-set" not in shown
    assert "[default: False]" not in shown
    shown_defaults = [default_worth_showing(value) for value in (False, (), "", None, 0, ("a", "b"))]
    assert shown_defaults == [None, None, None, None, "0", "a, b"]


def own_lines(stderr: str) -> list[str]:
    return [line for line in stderr.splitlines() if not line.startswith("import time:")]


@pytest.mark.slow
def test_help_names_every_command_and_imports_nothing_heavy() -> None:
    done = hushtune("--help")
    assert done.returncode == 0
    for command in ("owner", "coordinator", "air", "eavesdropper", "pki", "emulator", "health"):
        assert command in done.stdout
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert not imported & {"torch", "transformers", "grpc", "cryptography", "scipy", "numpy"}


@pytest.mark.slow
def test_a_misspelt_setting_ends_with_one_line_one_record_and_its_code(tmp_path: Path) -> None:
    path = tmp_path / "s.toml"
    path.write_text(SCENARIO, encoding="utf-8")
    kit, state = str(tmp_path / "kit"), str(tmp_path / "state")
    done = hushtune("air", "serve", str(path), "--kit", kit, "--state", state, "--set", "air.bandwith_hz=1e6", "--json-logs")
    assert done.returncode == ConfigError.exit_code
    (line,) = own_lines(done.stderr)
    assert "air.bandwith_hz" in line
    assert "air.bandwidth_hz" in line
    (record,) = [json.loads(line) for line in done.stdout.splitlines()]
    assert (record["event"], record["exit_code"], record["reason"]) == ("process_failed", 3, "CONFIG")


@pytest.mark.slow
def test_the_state_of_a_role_is_for_its_user_only(tmp_path: Path) -> None:
    (tmp_path / "s.toml").write_text(SCENARIO, encoding="utf-8")
    state = tmp_path / "state"
    hushtune("air", "serve", str(tmp_path / "s.toml"), "--kit", str(tmp_path / "nowhere"), "--state", str(state))
    assert stat.S_IMODE(state.stat().st_mode) == 0o700


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no device that is always full")
def test_a_state_folder_that_cannot_be_made_is_named_even_when_the_log_has_no_room(tmp_path: Path) -> None:
    path, taken = tmp_path / "s.toml", tmp_path / "taken"
    path.write_text(SCENARIO, encoding="utf-8")
    taken.touch()
    command = [sys.executable, "-m", "hushtune_server", "air", "serve", str(path), "--kit", str(tmp_path), "--state", str(taken)]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False, timeout=60)
    assert (done.returncode, done.stderr.splitlines()[-1].partition(str(taken))[0]) == (
        ConfigError.exit_code,
        "hushtune: --state: cannot use the folder ",
    )


def test_a_missing_kit_is_named_with_the_command_that_makes_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["health", "127.0.0.1:1", "--role", "air", "--kit", str(tmp_path / "nowhere")])
    captured = capsys.readouterr()
    assert code == ConfigError.exit_code
    assert "hushtune pki issue" in captured.err


def test_a_usage_error_ends_with_two(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["air", "serve"]) == 2
    assert "requires" in capsys.readouterr().err


def test_a_kit_can_be_made_and_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    authority, kit = str(tmp_path / "ca"), str(tmp_path / "kit")
    assert main(["pki", "init", authority]) == 0
    assert main(["pki", "issue", authority, "--role", "client", "--name", "c1", "--out", kit, "--host", "10.0.0.7"]) == 0
    assert main(["pki", "show", kit]) == 0
    shown = capsys.readouterr().out
    assert "hushtune://client/c1" in shown
    assert "10.0.0.7" in shown
    assert main(["pki", "init", authority]) == ConfigError.exit_code


def test_a_plan_is_computed_shown_and_the_same_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    public = tmp_path / "public.txt"
    public.write_text("\n".join(f"line {k} of a text that anybody may read" for k in range(60)), encoding="utf-8")
    options = ["--model", "random:blocks=6,hidden=16,heads=2,vocab=256,seed=1", "--public", f"txt:{public}"]
    options += [
        "--adapter-bottom",
        "1",
        "--adapter-top",
        "1",
        "--drop",
        "2",
        "--window-tokens",
        "17",
        "--option",
        "profile_tokens=34",
    ]
    plans = [tmp_path / "a.json", tmp_path / "b.json"]
    for plan in plans:
        assert main(["emulator", "plan", *options, "--out", str(plan), "--cache", str(tmp_path)]) == 0
    assert plans[0].read_bytes() == plans[1].read_bytes()
    assert "blocks 6: 2 dropped, 2 kept, 2 trained" in capsys.readouterr().out
    assert main(["emulator", "inspect", str(plans[0])]) == 0
    shown = capsys.readouterr().out
    assert shown.count("dropped") == 3  # two blocks and the line that counts them
    assert "nats without it" in shown


def test_a_file_that_is_no_plan_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x.json").write_text("{}", encoding="utf-8")
    assert main(["emulator", "inspect", str(tmp_path / "x.json")]) == 6
    assert "not a plan" in capsys.readouterr().err
