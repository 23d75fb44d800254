"""Does the whole system start, talk, finish, survive a dead client, and stop when told?"""

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.small import MODEL_AND_TEXTS, WIDE_GATE, clients

TINY = (
    'name = "tiny"\nseed = 3'
    + MODEL_AND_TEXTS
    + """[owner]
emulator = { method = "uniform", drop = 2 }
"""
    + WIDE_GATE
    + """[training]
learning_rate = 1e-2
batch_windows = 8
[air]
shadowing_db = 0.0
[coordinator]
allocator = { clock_share = 1.0 }
stragglers = { kind = "quorum", share = 0.6, wait_after_s = 10.0 }
[timing]
connect_s = 20
idle_s = 6
round_s = 120
"""
    + clients("c1", "c2", "c3")
)

_SUBJECTS = (
    "the river",
    "my brother",
    "a small dog",
    "our teacher",
    "the old clock",
    "every neighbour",
    "the captain",
    "one friend",
)
_VERBS = ("forgets", "carries", "hides", "paints", "borrows", "follows", "repairs", "remembers")
_OBJECTS = ("a green letter", "the last train", "some warm bread", "an empty boat", "the quiet song", "two wooden chairs")


def sentences() -> Iterator[str]:
    for subject, verb, thing in product(_SUBJECTS, _VERBS, _OBJECTS):
        yield f"{subject} {verb} {thing} before the evening comes"


@pytest.fixture
def scenario(tmp_path: Path) -> Path:
    lines = list(sentences())
    (tmp_path / "private.txt").write_text("\n".join(lines), encoding="utf-8")
    (tmp_path / "public.txt").write_text("\n".join(line.replace("the", "any") for line in lines[::5]), encoding="utf-8")
    path = tmp_path / "tiny.toml"
    path.write_text(TINY, encoding="utf-8")
    return path


def start_testbed(scenario: Path, *arguments: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "hushtune_server", "testbed", "run", str(scenario), "--runs", str(scenario.parent / "runs")]
    command += ["--cache", str(scenario.parent / "cache"), "--no-live", *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True)


def finish(process: "subprocess.Popen[str]", *, within_s: float) -> str:
    try:
        output, _ = process.communicate(timeout=within_s)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=30)
        pytest.fail(f"not finished after {within_s} s:\n{output}")
    return output


def report_of(scenario: Path) -> dict[str, Any]:
    (path,) = (scenario.parent / "runs").glob("*/report.json")
    return json.loads(path.read_text(encoding="utf-8"))


def wait_for(process: "subprocess.Popen[str]", condition: Callable[[], bool], *, polls: int = 1200) -> None:
    for _ in range(polls):
        if condition():
            return
        try:
            process.wait(timeout=0.05)
        except subprocess.TimeoutExpired:
            continue
        pytest.fail(f"ended too early:\n{process.communicate()[0]}")
    pytest.fail("the condition did not come true in time")


def pids_of(scenario: Path) -> dict[str, int]:
    found = list((scenario.parent / "runs").glob("*/run.json"))
    return json.loads(found[0].read_text(encoding="utf-8")).get("pids", {}) if found else {}


def log_has(scenario: Path, name: str, event: str) -> bool:
    logs = list((scenario.parent / "runs").glob(f"*/logs/{name}.jsonl"))
    return bool(logs) and f'"event": "{event}"' in logs[0].read_text(encoding="utf-8")


def log_of(scenario: Path, name: str) -> list[dict[str, Any]]:
    (path,) = (scenario.parent / "runs").glob(f"*/logs/{name}.jsonl")
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.slow
def test_a_round_runs_from_emulator_to_verdict_and_is_reported(scenario: Path) -> None:
    process = start_testbed(scenario)
    output = finish(process, within_s=120)
    assert process.returncode == 0, output
    report = report_of(scenario)
    assert report["fidelity"] == "bit_exact"
    assert report["seed"] == 3
    assert report["allocation"]["method"] == "global"
    scores = {name: report["settings"][name]["perplexity"] for name in ("full_zero_shot", "emulator_zero_shot")}
    tuned = {name: report["settings"][name]["perplexity"] for name in ("emulator_fine_tuned", "plug_in")}
    assert tuned["emulator_fine_tuned"] < scores["emulator_zero_shot"]
    assert tuned["plug_in"] < scores["full_zero_shot"]
    assert [c["id"] for c in report["clients"]] == ["c1", "c2", "c3"]
    for client in report["clients"]:
        assert (client["gate"], client["accepted"]) == ("granted", True), client
        assert 0 < client["bytes_uploaded"] < client["bytes_raw"]
        assert min(client["airtime_s"], client["train_s"], client["energy_j"]) > 0
    assert (report["eavesdropper"]["fidelity"], report["eavesdropper"]["complete"]) == ("bit_exact", True)
    for client in report["link"]["clients"]:
        assert (client["owner_has_every_byte"], client["tap_crc_passes"], client["tap_assumption_held"]) == (True, 0, True)
        assert abs(client["tap_bits"]["bit_error_rate"] - 0.5) < 0.01  # about four deviations at this size
        assert client["density"]["max_bits"] < client["density"]["budget_bits"]
    run = next((scenario.parent / "runs").iterdir())
    assert all((run / figure).stat().st_size > 1000 for figure in report["figures"].values())
    assert len(report["figures"]) == 4
    assert not [p for p in run.rglob("*.key")], "the run's keys are deleted"


@pytest.mark.slow
def test_a_key_over_the_wiretap_code_protects_an_update_that_travels_open_and_partly_bit_by_bit(scenario: Path) -> None:
    process = start_testbed(
        scenario,
        "--set",
        'secrecy.protections=["key"]',
        "--set",
        "air.fidelity=hybrid",
        "--set",
        "air.hybrid_share=0.3",
        "--set",
        "codec.bits=8",
    )
    output = finish(process, within_s=120)
    assert process.returncode == 0, output
    report = report_of(scenario)
    assert [(c["accepted"], c["assignment"]["protection"]) for c in report["clients"]] == [(True, "key")] * 3
    for client in report["link"]["clients"]:
        assert client["owner_has_every_byte"] is True
        assert 0 < client["blocks_sent_bit_exact"] < client["blocks_sent"]
    assert {(e["part"], e["secret"]) for e in report["eavesdropper"]["updates"]} == {("key", True), ("payload", False)}


@pytest.mark.slow
def test_what_updates_are_worth_is_measured_before_the_round_and_planned_with(scenario: Path) -> None:
    settings = ("air.fidelity=abstract", 'coordinator.allocator.utility.kind="measured"', "coordinator.allocator.share_min=0.3")
    process = start_testbed(scenario, *(word for setting in settings for word in ("--set", setting)))
    output = finish(process, within_s=120)
    assert process.returncode == 0, output
    report = report_of(scenario)
    (told,) = (e for e in log_of(scenario, "owner") if e["event"] == "utility_calibrated")
    assert report["utility"]["kind"] == "measured"
    assert report["utility"]["measured"]["points"] == told["points"]
    assert report["utility"]["measured"]["shape"] == told["shape"] > 0.0
    events = [e["event"] for e in log_of(scenario, "coordinator")]
    assert events.index("utility_told") < events.index("round_opened")
    for client in report["clients"]:
        assert client["accepted"], client
        assert 0.3 <= client["update"]["share"] <= 1.0
        assert client["update"]["bytes_encoded"] <= client["update"]["budget_bytes"]
    assert "measured by the owner" in output


@pytest.mark.slow
def test_a_client_that_moves_while_it_trains_is_assigned_anew_and_its_update_arrives(scenario: Path) -> None:
    moves = '[{ client = "c1", after_s = 1.5, position = { x_m = -140.0, y_m = 90.0 } }]'
    settings = ("air.fidelity=abstract", f"air.moves={moves}", "air.sounding_s=0.2", "training.epochs=300")
    process = start_testbed(scenario, "--clients", "2", *(word for setting in settings for word in ("--set", setting)))
    output = finish(process, within_s=120)
    assert process.returncode == 0, output
    report = report_of(scenario)
    assert [c["accepted"] for c in report["clients"]] == [True] * 2
    first, *later = report["rounds"][0]["solutions"]
    assert (first["occasion"], [s["occasion"] for s in later]) == ("first", ["after channel change of c1"])
    power = {c["id"]: c["assignment"]["power_w"] / c["assignment"]["bandwidth_hz"] for c in report["clients"]}
    assigned = [a for a in log_of(scenario, "c1") if a["event"] == "assignment_received"]
    densities = [a["power_w"] / a["bandwidth_hz"] for a in assigned]
    assert densities[-1] == pytest.approx(power["c1"])
    assert densities[-1] > 2 * densities[0], "further away it takes more power"
    (sent,) = (c for c in report["link"]["clients"] if c["client"] == "c1")
    assert (sent["owner_has_every_byte"], sent["tap_assumption_held"]) == (True, True)


@pytest.mark.slow
def test_a_client_killed_during_training_is_left_out_and_named(scenario: Path) -> None:
    process = start_testbed(scenario, "--set", "training.epochs=400")
    wait_for(process, lambda: log_has(scenario, "c2", "training_progressed"))
    psutil.Process(pids_of(scenario)["c2"]).kill()
    output = finish(process, within_s=150)
    assert process.returncode == 0, output
    report = report_of(scenario)
    assert {c["id"]: c["accepted"] for c in report["clients"]} == {"c1": True, "c2": False, "c3": True}
    assert "died" in report["clients"][1]["outcome"]
    assert report["settings"]["plug_in"]["perplexity"] > 0


@pytest.mark.slow
def test_a_referee_that_is_killed_fails_the_run_with_one_line_and_a_listed_code(scenario: Path) -> None:
    process = start_testbed(scenario)
    wait_for(process, lambda: "referee" in pids_of(scenario))
    psutil.Process(pids_of(scenario)["referee"]).kill()
    output = finish(process, within_s=60)
    assert process.returncode == 10, output
    report = report_of(scenario)
    assert (report["status"], report["problem"].partition(" (")[0]) == ("failed", "referee: was killed by SIGKILL")


@pytest.mark.slow
def test_ctrl_c_stops_every_process_and_leaves_a_readable_run(scenario: Path) -> None:
    process = start_testbed(scenario, "--set", "training.epochs=4000")
    wait_for(process, lambda: log_has(scenario, "c1", "training_progressed"))
    pids = pids_of(scenario)
    family = [child for pid in pids.values() for child in psutil.Process(pid).children(recursive=True)]
    process.send_signal(signal.SIGINT)
    output = finish(process, within_s=12)
    assert process.returncode == 130, output
    left = [p for p in pids.values() if psutil.pid_exists(p)] + [c.pid for c in family if c.is_running()]
    assert left == []
    assert report_of(scenario)["status"] == "interrupted"
    listing = subprocess.run(
        [sys.executable, "-m", "hushtune_server", "runs", "list", "--runs", str(scenario.parent / "runs")],
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    assert "interrupted" in listing.stdout
