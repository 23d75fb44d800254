"""Does a load play real rounds, and do its figures say what happened?"""

import json
from pathlib import Path
from typing import Any

import pytest

from hushtune_client.rehearsal.duties import SENT, report_of
from hushtune_common.clock import SystemClock
from hushtune_common.errors import ConfigError
from hushtune_common.messages import GateDecision
from hushtune_common.seeding import SeedTree
from hushtune_server.cli import main
from hushtune_server.coordinator.app import AllocatorSolver
from hushtune_server.testbed.transport import app, commands
from hushtune_server.testbed.transport.bench import PARTS
from hushtune_server.testbed.transport.crowd import Pace, scenario_of, summary
from hushtune_server.testbed.transport.document import document_text


def measured(waits: dict[str, list[float]]) -> dict[str, Any]:
    each = {name: {"assignment_s": values, "report_s": [0.1], "complete_s": [0.2]} for name, values in waits.items()}
    return {"bytes_per_client": 1000, "waits": json.dumps(each)}


def figures_of(waits: dict[str, list[float]]) -> dict[str, Any]:
    pace = Pace(ended_s=[10.0, 11.0, 14.0], empty_bytes=100, peak_bytes=700)
    return summary(pace, measured=[measured(waits)], clients=len(waits), rounds=3)


def test_the_first_round_in_which_everybody_connects_does_not_count() -> None:
    figures = figures_of({"c1": [1.0], "c2": [1.0]})

    assert figures["rounds_per_s"] == 2 / 4
    assert (figures["round_median_s"], figures["round_max_s"]) == (2.0, 3.0)
    assert figures["coordinator_bytes_per_client"] == 300


def test_fairness_is_one_when_all_wait_alike_and_one_over_n_when_one_does_all_the_waiting() -> None:
    assert figures_of({"c1": [2.0], "c2": [1.0, 3.0]})["fairness_jain"] == 1.0
    assert figures_of({"c1": [1.0], "c2": [0.0], "c3": [0.0], "c4": [0.0]})["fairness_jain"] == 0.25


def test_every_light_client_is_granted_an_upload_so_that_all_of_them_play_whole_rounds() -> None:
    scenario = scenario_of(clients=50, rounds=1, idle_s=30.0)
    reports = [report_of(device, round_id=1) for device in scenario.clients]

    solution = AllocatorSolver(scenario, clock=SystemClock(), seeds=SeedTree(1)).solve(1, reports)

    assert {a.gate.decision for a in solution.assignments} == {GateDecision.GRANTED}


@pytest.mark.slow
def test_light_clients_play_every_round_and_lose_none_when_the_coordinator_is_killed(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["testbed", "load", "--clients", "3", "--rounds", "6", "--kill", "--json"]) == 0

    figures = json.loads(capsys.readouterr().out)
    assert (figures["clients"], figures["rounds"]) == (3, 6)
    assert 0.0 < figures["restart_s"] < figures["round_max_s"] + 5.0
    assert 1 / 3 <= figures["fairness_jain"] <= 1.0
    assert figures["wait_call_s"]["max"] >= figures["wait_call_s"]["median"] > 0.0


@pytest.mark.slow
def test_a_bench_compares_in_one_run_and_writes_what_it_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document = tmp_path / "transport.md"
    command = ["testbed", "bench", "--parts", "upload,giant", "--giant-gb", "0.02", "--repetitions", "2"]

    assert main([*command, "--json", "--out", str(tmp_path), "--document", str(document)]) == 0

    found = json.loads(capsys.readouterr().out)
    assert found == json.loads((tmp_path / "transport.json").read_text())
    upload = found["upload"]
    assert len(upload["all_seconds"]) == len(upload["all_bare_seconds"]) == 2
    assert upload["ratio"] == pytest.approx(upload["seconds"] / upload["bare_seconds"], rel=0.01)
    assert 0 < found["giant"]["receiver_peak_bytes"] < 200e6
    assert found["date"][:10] in document.read_text()


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        (["load", "--clients", "0"], "--clients"),
        (["load", "--clients", "5", "--rounds", "1"], "--rounds"),
        (["load", "--rounds", "3", "--kill"], "--rounds"),
        (["bench", "--parts", "uplaod"], "upload"),
        (["bench", "--giant-gb", "0"], "--giant-gb"),
    ],
)
def test_settings_that_measure_nothing_are_refused_by_name(
    arguments: list[str], field: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["testbed", *arguments]) == ConfigError.exit_code
    assert field in capsys.readouterr().err


def test_a_document_has_a_row_for_every_target() -> None:
    transfer = {"seconds": 0.05, "bare_seconds": 0.04, "ratio": 1.25, "mb_per_s": 200.0, "bare_mb_per_s": 250.0}
    found: dict[str, Any] = {
        "command": "hushtune testbed bench",
        "date": "2026-01-01T00:00:00",
        "versions": {"grpcio": "1"},
        "seed": 1,
        "cores": 2,
        "load_average": 1.0,
        "upload": {"bytes": 10_000_000, **transfer},
        "rounds": {
            "clients": 20,
            "rounds_per_s": 9.9,
            "bare_rounds_per_s": 30.0,
            "ratio": 3.0,
            "coordinator_cpu_s_per_round": 0.05,
            "killed": {"kill_cost_s": 5.1, "restart_s": 0.6},
        },
        "giant": {"bytes": 10**10, "mb_per_s": 1.0, "sender_peak_bytes": 1, "receiver_peak_bytes": 200_000_001},
        "death": {"idle_s": 30.0, "killed_s": 15.0, "stopped_s": 31.5},
        "listener": {"noisy": transfer, "still": transfer},
        "load": figures_of({"c1": [1.0], "c2": [1.0]}),
    }
    text = document_text(found)

    assert set(PARTS) <= found.keys()
    assert text.count("missed") == 4
    assert "target 1.25: met" in text


def test_the_owner_of_a_load_knows_the_light_clients_events_by_their_names() -> None:
    # The two processes share no module but the common ones.
    from hushtune_client.rehearsal.app import MEASURED

    assert (SENT, MEASURED) == (app._SENT, app._MEASURED)  # pyright: ignore[reportPrivateUsage]
    assert commands.load.__doc__
