"""Is it true at which distances docs/tutorial.md says that the secrecy gate closes?"""

import re
from pathlib import Path

import pytest

from hushtune_common import config
from hushtune_common.link.secrecy import tap_gain_bound
from hushtune_common.messages import Gate, GateDecision
from hushtune_common.seeding import SeedTree
from hushtune_common.units import to_db
from hushtune_server.coordinator.allocators.optimised import Optimised
from hushtune_server.coordinator.problems.secrecy import AllocationProblem
from tests.radio import report

ROOT = Path(__file__).resolve().parents[2]
SMALL = ROOT / "scenarios/small.toml"
SOUNDED = {"c1": 6.8466e-9, "c2": 3.8321e-10, "c3": 2.7285e-10}
"""Gains to the owner that the clients of the small scenario sound with seed 3 (`device_reported`)."""
ROWS = re.findall(r"^\| (\d+) \| (.+) \| (.+) \| (.+) \|$", (ROOT / "docs/tutorial.md").read_text(encoding="utf-8"), re.MULTILINE)


def gates(*settings: str) -> list[Gate]:
    """What the coordinator decides on the three clients, with updates as large as in the small scenario."""
    scenario = config.load(SMALL, overrides=settings)
    reports = [
        report(
            client.id,
            main_db=to_db(SOUNDED[client.id]),
            tap_db=to_db(tap_gain_bound(scenario, client)),
            power_max=client.power_max_w,
            update_bits=28_400_000,
        )
        for client in scenario.clients
    ]
    found = Optimised("global").allocate(AllocationProblem.of(scenario, reports), seeds=SeedTree(3))
    return [assignment.gate for assignment in found.assignments]


def said(gate: Gate) -> str:
    return f"{gate.rate_coded:.2f}" if gate.decision is GateDecision.GRANTED else str(gate.decision)


@pytest.mark.slow
@pytest.mark.parametrize(("x_m", "expected"), [(row[0], row[1:]) for row in ROWS], ids=[row[0] for row in ROWS])
def test_the_gate_decides_what_the_tutorials_table_says(x_m: str, expected: tuple[str, ...]) -> None:
    assert tuple(said(gate) for gate in gates(f"air.eavesdropper.x_m={x_m}")) == expected


def test_the_tutorials_table_shows_the_gates_closing() -> None:
    assert len(ROWS) >= 5
    assert {"deferred", "excluded"} <= {cell for row in ROWS for cell in row}


@pytest.mark.slow
def test_a_smaller_margin_or_encryption_alone_opens_the_gate_of_c3_and_a_key_does_not() -> None:
    near = "air.eavesdropper.x_m=300"
    assert said(gates(near, "secrecy.tap_margin_db=9")[2]) == "0.64"
    assert gates(near, 'secrecy.protections=["payload","crypto_only"]')[2].decision is GateDecision.GRANTED
    assert gates(near, 'secrecy.protections=["payload","key"]')[2].decision is GateDecision.DEFERRED
