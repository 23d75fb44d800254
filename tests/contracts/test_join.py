"""What does ``join`` ask for, what does it remember, and what keeps it from starting?"""

import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from hushtune_client.cli import main
from hushtune_common.errors import ConfigError, OperatingFault
from hushtune_common.messages import Caller, Role
from tests.contracts.test_kit_archive import made

NOWHERE = {Role.OWNER: "127.0.0.1:1", Role.COORDINATOR: "127.0.0.1:1", Role.AIR: "127.0.0.1:1"}


@pytest.fixture(autouse=True)
def _log_as_before() -> Iterator[None]:  # pyright: ignore[reportUnusedFunction] - a fixture for all
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.fixture
def kit(tmp_path: Path) -> Path:
    (tmp_path / "mine.txt").write_text("one\ntwo\n", encoding="utf-8")
    (tmp_path / "more.JSONL").write_text('{"text": "three"}\n', encoding="utf-8")
    return made(tmp_path, places=NOWHERE)


def test_a_client_whose_servers_do_not_answer_does_not_start_and_hears_why(kit: Path, capsys: pytest.CaptureFixture[str]):
    state = kit.parent / "state"
    data = [str(kit.parent / "mine.txt"), str(kit.parent / "more.JSONL")]
    assert main(["join", str(kit), "--state", str(state), "--data", *data]) == OperatingFault.exit_code
    told = capsys.readouterr().err
    assert "start the owner there" in told
    assert "--skip-doctor" in told
    assert not (state / "run").exists(), "nothing was begun"
    assert json.loads((state / "data.json").read_text()) == [f"txt:{data[0]}", f"jsonl:{data[1]}"]


def test_a_doctor_finds_kit_and_addresses_in_the_file_and_in_the_folder_of_a_client(
    kit: Path, capsys: pytest.CaptureFixture[str]
):
    state = kit.parent / "state"
    assert main(["join", str(kit), "--state", str(state)]) == OperatingFault.exit_code
    for patient in (kit, state, state / "kit"):
        capsys.readouterr()
        assert main(["doctor", str(patient), "--json"]) == 1
        failed = [entry["check"] for entry in json.loads(capsys.readouterr().out) if entry["verdict"] == "fail"]
        assert sorted(failed) == ["air", "coordinator", "owner"]
    (state / "kit" / "kit.toml").write_text('identity = "hushtune://client/bob"\n')
    assert main(["doctor", str(state)]) == 1
    assert "not_before" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "advice"),
    [
        (["--data", "none.txt"], "--data: there is no file"),
        (["--addresses", "air=nowhere"], "is HOST:PORT"),
        (["--scenario", "s2.toml"], "leave it away"),
    ],
)
def test_a_mistake_is_named_with_its_fix(
    kit: Path, arguments: list[str], advice: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(kit.parent)
    text = (kit.parent / "s.toml").read_text(encoding="utf-8")
    (kit.parent / "s2.toml").write_text(text.replace("drop = 2", "drop = 1"), encoding="utf-8")
    assert main(["join", str(kit), *arguments]) == ConfigError.exit_code
    assert advice in capsys.readouterr().err


def test_a_servers_kit_and_a_file_that_is_none_are_refused(kit: Path, capsys: pytest.CaptureFixture[str]):
    owner = made(kit.parent, Caller(role=Role.OWNER, name="owner"), name="owner.zip")
    assert main(["join", str(owner)]) == ConfigError.exit_code
    assert "hushtune kit unpack" in capsys.readouterr().err
    assert main(["join", str(kit.parent / "mine.txt")]) == ConfigError.exit_code
    assert "is not a kit file" in capsys.readouterr().err
    assert main(["join", str(kit.parent / "nothing.zip")]) == ConfigError.exit_code


def test_a_second_kit_for_the_same_folder_is_refused(kit: Path, capsys: pytest.CaptureFixture[str]):
    state = str(kit.parent / "state")
    main(["join", str(kit), "--state", state])
    (kit.parent / "s.toml").write_text((kit.parent / "s.toml").read_text().replace('id = "alice"', 'id = "bob"'))
    other = made(kit.parent, Caller(role=Role.CLIENT, name="bob"), name="bob.zip", places=NOWHERE)
    assert main(["join", str(other), "--state", state]) == ConfigError.exit_code
    assert "take another --state folder for hushtune://client/bob" in capsys.readouterr().err
