"""Do accepted adapters stay what they were, does what sits in the model survive a kill, and can a person move it?"""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hushtune_common.adapter import AdapterState
from hushtune_common.errors import ConfigError
from hushtune_common.messages import ClientId, Digest, RunId, TensorSpec, UpdateKey
from hushtune_server.cli import main
from hushtune_server.owner.gatekeeper.finding import Finding
from hushtune_server.owner.gatekeeper.quarantine import Quarantine
from hushtune_server.owner.versions import AGGREGATE, About, Version, Versions
from tests.fakes import FakeClock

SCHEMA = (TensorSpec(name="layers.0.w", shape=(3, 5), dtype="F32", block=0),)
ABOUT = About(
    run=RunId("run-1"),
    round_id=1,
    who="c1",
    base=Digest.of(b"model"),
    parents=(),
    kept=True,
    reason="",
    loss_before=2.0,
    loss_after=1.5,
    profile={"layers.0.w": 0.25},
)


def state(value: float) -> AdapterState:
    return AdapterState({"layers.0.w": np.full((3, 5), value, np.float32)})


def opened(folder: Path, *, count_max: int = 100, bytes_max: int = 1 << 20) -> Versions:
    return Versions(folder / "versions", count_max=count_max, bytes_max=bytes_max, clock=FakeClock())


def added(versions: Versions, value: float, *, who: str = "c1", round_id: int = 1) -> Version:
    return versions.add(state(value), replace(ABOUT, who=who, round_id=round_id))


def test_what_was_added_comes_back_bit_for_bit_in_another_life(tmp_path: Path) -> None:
    version = added(opened(tmp_path), 0.1)
    again = opened(tmp_path)
    assert again.all() == [version]
    assert (version.about, version.id, version.date) == (
        ABOUT,
        f"run-1.1.c1.{version.digest.short}",
        "2026-01-01T00:00:00+00:00",
    )
    assert (again.load(version, SCHEMA).tensors["layers.0.w"] == np.float32(0.1)).all()


def test_content_lies_under_its_digest_and_equal_adapters_are_stored_once(tmp_path: Path) -> None:
    versions = opened(tmp_path)
    first, average = added(versions, 0.1), added(versions, 0.1, who=AGGREGATE)
    assert first.digest == average.digest == Digest.of(versions.file(first).read_bytes())
    assert first.id != average.id
    assert len([*(tmp_path / "versions" / "adapters").iterdir()]) == 1


def test_adding_again_changes_nothing(tmp_path: Path) -> None:
    versions = opened(tmp_path)
    first = added(versions, 0.1)
    other = versions.add(state(0.1), replace(ABOUT, kept=False, reason="judged again, otherwise"))
    assert other == first
    assert versions.all() == [first]


def test_what_is_current_can_be_moved_and_moved_back(tmp_path: Path) -> None:
    versions = opened(tmp_path)
    a, b = added(versions, 0.1), added(versions, 0.2)
    assert versions.current is None
    for target in (a, b, None, b, b):
        versions.promote(target)
    assert versions.current == b
    assert [versions.rollback() for _ in range(4)] == [None, b, a, None]
    with pytest.raises(ConfigError, match="nothing sat in the model before"):
        versions.rollback()
    assert opened(tmp_path).current is None


@pytest.mark.slow
@settings(max_examples=15)
@given(st.lists(st.sampled_from(["a", "b", "own", "back"]), max_size=12))
def test_promotions_and_rollbacks_are_a_stack(tmp_path_factory: pytest.TempPathFactory, moves: list[str]) -> None:
    versions = opened(tmp_path_factory.mktemp("state"))
    by_name = {"a": added(versions, 0.1), "b": added(versions, 0.2), "own": None}
    stack: list[Version | None] = [None]
    for move in moves:
        if move != "back" and by_name[move] != stack[-1]:
            stack.append(by_name[move])
        elif move == "back" and len(stack) > 1:
            stack.pop()
        elif move == "back":
            continue
        versions.rollback() if move == "back" else versions.promote(by_name[move])
        assert versions.current == stack[-1]


def test_a_version_is_found_by_the_start_of_its_name_or_digest_and_never_guessed(tmp_path: Path) -> None:
    versions = opened(tmp_path)
    a, b = added(versions, 0.1), added(versions, 0.2, who="c10")
    assert versions.find("run-1.1.c1.") == versions.find(a.digest.hex[:8]) == a
    assert versions.find("run-1.1.c10") == b
    for unclear, problem in (("run-1.1.c1", "could be any of"), ("run-2", "no such version"), ("", "no such version")):
        with pytest.raises(ConfigError, match=problem):
            versions.find(unclear)


def test_the_versions_of_a_round_are_those_of_its_clients(tmp_path: Path) -> None:
    versions = opened(tmp_path)
    a, b = added(versions, 0.1), added(versions, 0.2, who="c2")
    added(versions, 0.3, who=AGGREGATE)
    later = added(versions, 0.4, round_id=2)
    assert versions.of_round(RunId("run-1"), 1) == {ClientId("c1"): a, ClientId("c2"): b}
    assert (versions.latest("c1"), versions.latest("c9")) == (later, None)


def test_the_oldest_go_and_what_sits_in_the_model_or_would_stays(tmp_path: Path) -> None:
    versions = opened(tmp_path, count_max=4)
    first = added(versions, 1.0)
    versions.promote(first)
    second = added(versions, 2.0, round_id=2)
    versions.promote(second)
    kept = [added(versions, float(r), round_id=r) for r in range(3, 9)]
    assert versions.all() == [first, second, *kept[-2:]]
    assert {f.stem for f in (tmp_path / "versions" / "adapters").iterdir()} == {v.digest.hex for v in versions.all()}


def test_the_latest_round_stays_whole_however_little_may_be_kept(tmp_path: Path) -> None:
    versions = opened(tmp_path, bytes_max=1)
    added(versions, 0.0)
    latest = [added(versions, float(n), who=f"c{n}", round_id=2) for n in range(1, 4)]
    assert versions.all() == latest


def test_bytes_count_once_for_equal_adapters(tmp_path: Path) -> None:
    size = added(opened(tmp_path / "scales"), 0.1).size
    versions = opened(tmp_path, bytes_max=2 * size)
    for round_id in (1, 2, 3):
        added(versions, 0.5, round_id=round_id)
    added(versions, 0.7, round_id=4)
    assert len(versions.all()) == 4
    added(versions, 0.9, round_id=5)
    assert [v.about.round_id for v in versions.all()] == [4, 5]


def test_a_damaged_adapter_is_not_used(tmp_path: Path) -> None:
    versions = opened(tmp_path)
    version = added(versions, 0.1)
    data = bytearray(versions.file(version).read_bytes())
    data[-1] ^= 1
    versions.file(version).write_bytes(data)
    with pytest.raises(ConfigError, match="is damaged; restore it"):
        versions.load(version, SCHEMA)


def test_an_adapter_of_another_shape_or_that_is_gone_is_not_used(tmp_path: Path) -> None:
    versions = opened(tmp_path)
    version = added(versions, 0.1)
    with pytest.raises(ConfigError, match=r"cannot be used.*shape \(3, 5\)"):
        versions.load(version, (replace(SCHEMA[0], shape=(5, 3)),))
    versions.file(version).unlink()
    with pytest.raises(ConfigError, match="cannot be used"):
        versions.load(version, SCHEMA)


@pytest.mark.parametrize("name", ["current.json", "records/*.json"])
def test_a_damaged_record_is_named(tmp_path: Path, name: str) -> None:
    versions = opened(tmp_path)
    versions.promote(added(versions, 0.1))
    (file,) = (tmp_path / "versions").glob(name)
    file.write_text("{}")
    with pytest.raises(ConfigError, match=f"{file}: .*damaged"):
        assert versions.current


KILLED = """
import sys
from pathlib import Path
from tests.contracts.test_versions import added, opened
folder = Path(sys.argv[1])
versions = opened(folder, count_max=6)
versions.hold()
print("ready", flush=True)
for n in range(10_000):
    version = added(versions, float(n), round_id=n + 1)
    versions.promote(version)
    if n % 3 == 2:
        versions.rollback()
"""


@pytest.mark.slow
def test_a_kill_at_any_moment_leaves_versions_that_can_be_used(tmp_path: Path) -> None:
    for wait_s in (0.01, 0.03, 0.1):
        command = [sys.executable, "-c", KILLED, str(tmp_path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            with pytest.raises(ConfigError, match="running owner"):
                opened(tmp_path).hold()
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(timeout=wait_s)
            os.kill(process.pid, signal.SIGKILL)
        versions = opened(tmp_path)
        versions.hold()
        for version in versions.all():
            versions.load(version, SCHEMA)
        assert versions.current in (None, *versions.all())
        assert not [*tmp_path.rglob("*.partial")]
        versions.release()


def test_the_table_shows_what_sits_in_the_model_and_what_lies_aside(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    versions = opened(tmp_path)
    first, second = added(versions, 0.1), added(versions, 0.2, who="c2")
    versions.promote(second)
    finding = Finding(setting="owner.gate.reach_max", value=8.6, limit=1.5, problem="a weight moved by 8.6x")
    quarantine = Quarantine(tmp_path / "quarantine", count_max=4, bytes_max=1 << 20)
    key = UpdateKey(run=ABOUT.run, round_id=1, client=ClientId("c3"), attempt=1)
    quarantine.keep(state(9.0), key=key, digest=Digest.of(b"sealed"), findings=[finding], date="2026-01-01")
    assert main(["owner", "adapters", "list", "--state", str(tmp_path)]) == 0
    own, one, two, aside = capsys.readouterr().out.splitlines()
    assert (own[0], one[:2], two[:2], aside[:2]) == (" ", "  ", "* ", "! ")
    assert first.id in one
    assert "perplexity 7.389 -> 4.482" in one
    assert "refused: owner.gate.reach_max: a weight moved by 8.6x, limit 1.5" in aside
    assert main(["owner", "adapters", "list", "--state", str(tmp_path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["current"], [v["who"] for v in found["versions"]]) == (second.id, ["c1", "c2"])
    assert found["quarantine"][0]["screens"][0]["value"] == 8.6


def test_a_version_is_promoted_and_taken_back_by_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    versions = opened(tmp_path)
    first = added(versions, 0.1)
    for arguments in (["promote", first.id], ["promote", "own"], ["rollback"]):
        assert main(["owner", "adapters", *arguments, "--state", str(tmp_path)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"{first.id} sits in the model from the owner's next start on"
    assert versions.current == first
    assert main(["owner", "adapters", "show", "run-1.1.c1", "--state", str(tmp_path), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["current"], shown["profile"], shown["digest"]) == (True, ABOUT.profile, first.digest.hex)


@pytest.mark.parametrize("arguments", [["promote", "run-9"], ["show", "run-9"], ["rollback"]])
def test_what_is_not_there_is_a_wrong_setting(tmp_path: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["owner", "adapters", *arguments, "--state", str(tmp_path)]) == ConfigError.exit_code
    assert capsys.readouterr().err.startswith("hushtune: ")


def test_a_damaged_version_is_not_promoted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    versions = opened(tmp_path)
    version = added(versions, 0.1)
    versions.file(version).write_bytes(b"")
    assert main(["owner", "adapters", "promote", version.id, "--state", str(tmp_path)]) == ConfigError.exit_code
    assert "is damaged" in capsys.readouterr().err
    assert versions.current is None
