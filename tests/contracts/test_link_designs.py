"""Do the commands for the link alone tell what can be had, refuse what cannot, and compare like with like?"""

import json
from pathlib import Path
from typing import Any

import pytest

from hushtune_server.cli import main

USAGE, WRONG_SETTING, REFUSED = 2, 3, 9


def designs(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, dict[str, Any]]:
    """Return what ``hushtune link design --json`` says, by coding point."""
    main(["link", "design", "--json", *arguments])
    return {row["point"]: row for row in json.loads(capsys.readouterr().out)["designs"]}


@pytest.mark.parametrize(
    "command",
    [
        "design --main-db nan",
        "design --tap-db inf",
        "design --codewords 0",
        "design --log2-delta 1",
        "design --megabytes 0",
        "design --bandwidth-mhz 0",
        "design --subbands 0",
        "bler --blocks 0",
        "bler --iterations 0",
        "bench --repetitions 0",
        "bench --threads 0",
        "attack --train 1",
        "attack --tap-db nan",
    ],
)
def test_a_number_that_cannot_be_is_refused_as_a_command_line(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["link", *command.split()]) == USAGE
    assert command.split()[1] in "".join(capsys.readouterr())


def test_a_design_that_nobody_can_decode_has_no_rate_and_says_what_would_help(capsys: pytest.CaptureFixture[str]) -> None:
    found = designs(capsys, "--main-db", "6", "--tap-db", "-5")
    assert found["qpsk-0.825"]["secret_bits_per_symbol"] >= 1.19  # the quoted figure
    assert "secret_bits_per_symbol" not in found["qam64-0.825"]
    least = found["qam64-0.825"]["snr_main_least_db"]
    assert not designs(capsys, "--main-db", str(least), "--point", "qam64-0.825")["qam64-0.825"]["problem"]
    assert designs(capsys, "--main-db", str(least - 0.1), "--point", "qam64-0.825")["qam64-0.825"]["problem"]


def test_an_impossible_design_is_refused_with_the_nearest_possible_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["link", "design", "--main-db", "4", "--tap-db", "6"]) == REFUSED
    said = capsys.readouterr().err
    assert "the nearest is qpsk-0.667, which needs the owner at 3." in said or "the nearest is qpsk-0.825" in said
    assert len(said) < 300


def test_tables_that_cannot_be_written_are_not_measured_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["link", "bler", "--out", str(tmp_path / "missing" / "bler.json")]) == WRONG_SETTING
    assert "--out" in capsys.readouterr().err


def test_more_blocks_than_the_neural_network_takes_are_refused_with_the_most_it_does(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["link", "attack", "--train", "900000"]) == WRONG_SETTING
    assert "52428" in capsys.readouterr().err  # 2^29 soft values of 10240


@pytest.mark.slow
def test_the_peer_is_compared_at_its_own_coding_point_only(capsys: pytest.CaptureFixture[str]) -> None:
    main(["link", "bench", "--point", "qpsk-0.5", "--blocks", "4", "--repetitions", "1", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["peer"] is None
    assert found["settings"][0]["blocks"] == 4
