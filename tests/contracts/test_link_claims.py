"""Does the referee count what went on air, whatever the tap has come to hear, and say when a bound is none?"""

import io
from datetime import UTC, datetime
from math import log2
from pathlib import Path
from typing import Any

import msgspec
import pytest
from rich.console import Console

from hushtune_common import config
from hushtune_common.link.mcs import point_named
from hushtune_common.link.wiretap import design
from hushtune_server.testbed import link_referee, report, rundir, tables

ROOT = Path(__file__).resolve().parents[2]
DESIGN: dict[str, Any] = msgspec.to_builtins(design(point_named("qpsk-0.825"), codewords=4, snr_tap_db=-5.0, log2_delta=-64.0))
Run = tuple[rundir.RunDirectory, config.Scenario]


def transmission(client: str, *, blocks: int, part: str = "payload") -> dict[str, Any]:
    levels = {"snr_main_db": 6.0, "snr_tap_db": -9.0}
    return {"client": client, "round_id": 1, "part": part, "blocks": blocks, "blocks_coded": blocks, **levels}


def heard(client: str, *, held: bool | None) -> dict[str, Any]:
    bound = {"assumption_held": held, "log2_delta_total": -62.0, "outage": 0.0, "crc_passes": 0}
    return {"client": client, "round_id": 1, "secret": True, **bound}


def finished(run: rundir.RunDirectory, *, protection: str = "payload", held: bool | None = True) -> None:
    """Leave behind what a run leaves whose tap was stopped after the first of three transmissions."""
    sent = [transmission("c1", blocks=100), transmission("c1", blocks=20), transmission("c1", blocks=8)]
    for process, name, body in (
        (
            "coordinator",
            "round-1.json",
            {"round_id": 1, "assignments": [{"client": "c1", "protection": protection, "design": DESIGN}]},
        ),
        ("air", "air.json", {"transmissions": sent}),
        ("eavesdropper", "evidence.json", {"updates": [heard("c1", held=held)]}),
    ):
        run.state(process).mkdir(parents=True, exist_ok=True)
        rundir.write_json(run.state(process) / name, body)


@pytest.fixture
def prepared(tmp_path: Path) -> Run:
    scenario = config.load(ROOT / "scenarios" / "demo.toml")
    return rundir.create(tmp_path, scenario, now=datetime(2026, 1, 2, tzinfo=UTC)), scenario


def table_of(run: rundir.RunDirectory, scenario: config.Scenario, link: dict[str, Any]) -> str:
    stream = io.StringIO()
    tables.print_report({**report.write(run, scenario), "link": link}, console=Console(file=stream, width=80))
    return stream.getvalue()


def test_the_bound_counts_every_block_on_air_also_those_that_the_tap_was_stopped_before(prepared: Run) -> None:
    run, scenario = prepared
    finished(run)
    first = link_referee.judge(run, scenario)["clients"][0]
    assert first["log2_delta_total"] == pytest.approx(-64.0 + log2(128))
    assert first["bound_void"] is None


def test_no_bound_is_shown_for_random_bits_that_are_not_secret(prepared: Run) -> None:
    run, scenario = prepared
    finished(run)
    seeded = msgspec.structs.replace(scenario, secrecy=msgspec.structs.replace(scenario.secrecy, randomness="seeded"))
    shown = table_of(run, seeded, link_referee.judge(run, seeded))
    assert " void " in shown
    assert "-57.0" not in shown
    assert "not secret" in " ".join(shown.split())


def test_no_bound_is_shown_when_the_tap_was_better_than_assumed(prepared: Run) -> None:
    run, scenario = prepared
    finished(run, held=False)
    link = link_referee.judge(run, scenario)
    assert link["clients"][0]["tap_assumption_held"] is False
    assert " void " in table_of(run, scenario, link)


def test_an_assumption_that_nothing_was_heard_to_check_is_not_said_to_have_held(prepared: Run) -> None:
    run, scenario = prepared
    finished(run, held=None)
    assert link_referee.judge(run, scenario)["clients"][0]["tap_assumption_held"] is None


def test_an_update_that_travels_open_is_not_shown_like_one_that_the_code_hides(prepared: Run) -> None:
    run, scenario = prepared
    finished(run, protection="crypto_only")
    link = link_referee.judge(run, scenario)
    link["clients"][0]["tap_bits"] = {"bit_error_rate": 0.25}
    shown = table_of(run, scenario, link)
    assert "(0.25000)" in shown
    assert "in brackets" in shown


def test_the_table_of_bits_on_air_fits_eighty_columns_with_long_numbers(prepared: Run) -> None:
    run, scenario = prepared
    finished(run)
    link = link_referee.judge(run, scenario)
    density = {"max_bits": 33791.0, "budget_bits": 33792}
    link["clients"][0] |= {"density": density, "tap_bits": {"bit_error_rate": 0.49999}, "protection": "crypto_only"}
    shown = table_of(run, scenario, link)
    assert "…" not in shown
    assert max(len(line) for line in shown.splitlines()) <= 80
