"""Does the eavesdropper keep honest evidence, and does it end when told to?"""

import json
import signal
import subprocess
import sys
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from hushtune_common.errors import PeerLost
from hushtune_common.link.abstraction import NO_FADING, hear
from hushtune_common.link.channel import Reception, cut
from hushtune_common.messages import Digest, Listener, ReceptionNotice, Role
from hushtune_common.seeding import SeedTree
from hushtune_common.units import Second, from_db
from hushtune_server.eavesdropper.app import Case
from hushtune_server.eavesdropper.attack import AbstractDecoder
from hushtune_server.eavesdropper.gateway import Overhearing
from tests.kits import Kits
from tests.radio import qpsk_design, random_update, scenario, transmission

DESIGN = qpsk_design()
UPDATE = random_update(20 * DESIGN.payload_bytes)


def overheard(*, snr_db: float, attempt: int = 1, update: bytes = UPDATE) -> Overhearing:
    frame = cut(update, design=DESIGN)
    reception = hear(
        frame, listener=Listener.TAP, design=DESIGN, snr=from_db(snr_db), fading=NO_FADING, seeds=SeedTree(attempt).child("tap")
    )
    order = transmission(frame, DESIGN, attempt=attempt)
    blob = reception.to_bytes()
    notice = ReceptionNotice(
        seq=attempt,
        listener=Listener.TAP,
        transmission=order,
        reception=Digest.of(blob),
        reception_bytes=len(blob),
        fidelity="abstract",
        airtime=Second(1.0),
    )
    return Overhearing(notice=notice, reception=Reception.from_bytes(blob))


def case(folder: Path) -> Case:
    return Case(scenario(), state_dir=folder, attack=AbstractDecoder(seeds=SeedTree(0)))


def evidence(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "evidence.json").read_text(encoding="utf-8"))


def test_a_tap_below_the_design_hears_nothing_and_says_so(tmp_path: Path) -> None:
    case(tmp_path).take(overheard(snr_db=-15.0))
    (update,) = evidence(tmp_path)["updates"]
    assert (update["blocks_heard"], update["bytes_known"], update["valid"]) == (0, 0, True)
    assert update["assumption_held"]
    assert set((tmp_path / "guesses" / "c1-1.bin").read_bytes()) == {0}


def test_a_tap_with_ample_snr_recovers_the_update_and_the_broken_assumption_is_told(tmp_path: Path) -> None:
    case(tmp_path).take(overheard(snr_db=20.0))
    (update,) = evidence(tmp_path)["updates"]
    assert update["bytes_known"] == len(UPDATE)
    assert not update["assumption_held"]
    assert (tmp_path / "guesses" / "c1-1.bin").read_bytes() == UPDATE
    assert "FAILED" in evidence(tmp_path)["summary"]


def test_retransmissions_are_attacked_together(tmp_path: Path) -> None:
    book = case(tmp_path)
    for attempt in (1, 2):
        book.take(overheard(snr_db=-15.0, attempt=attempt))
    (update,) = evidence(tmp_path)["updates"]
    assert (update["transmissions"], update["blocks_sent"]) == (2, 40)


def test_a_reception_of_another_update_is_left_out(tmp_path: Path) -> None:
    book = case(tmp_path)
    book.take(overheard(snr_db=-15.0))
    book.take(overheard(snr_db=-15.0, attempt=2, update=UPDATE[:-1]))
    (update,) = evidence(tmp_path)["updates"]
    assert update["transmissions"] == 1


def test_evidence_written_while_an_attack_goes_on_is_whole_and_has_the_attack_in_it(tmp_path: Path) -> None:
    book = case(tmp_path)
    receptions = [overheard(snr_db=-15.0, attempt=attempt) for attempt in range(1, 21)]
    with ThreadPoolExecutor(max_workers=2) as threads:
        attacks = threads.submit(lambda: [book.take(reception) for reception in receptions])
        writes = threads.submit(lambda: [book.write() for _ in range(500)])
        assert (len(attacks.result()), len(writes.result())) == (20, 500)
    (update,) = evidence(tmp_path)["updates"]
    assert update["transmissions"] == 20


TOML = """
name = "tap"
seed = 9
[model]
source = "random:blocks=4"
[data]
private = "txt:a"
public = "txt:b"
[[clients]]
id = "c1"
position = { x_m = -60.0, y_m = 40.0 }
"""


@contextmanager
def started(*arguments: str) -> Generator["subprocess.Popen[str]"]:
    """Start a role as its own process; its log is on standard output. Never leaves it behind."""
    command = [sys.executable, "-m", "hushtune_server", *arguments, "--json-logs"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def told(process: "subprocess.Popen[str]", event: str, **wanted: object) -> dict[str, Any]:
    """Read the log until it tells ``event`` with the wanted fields."""
    assert process.stdout is not None
    for line in process.stdout:
        record = json.loads(line)
        if record["event"] == event and wanted.items() <= record.items():
            return record
    pytest.fail(f"the log ended without {event}")


def stopped(process: "subprocess.Popen[str]", number: signal.Signals) -> int:
    process.send_signal(number)
    return process.wait(timeout=5)


@pytest.mark.slow
def test_air_and_tap_end_on_a_signal_with_code_zero_and_leave_their_files(tmp_path: Path) -> None:
    kits, toml = Kits(tmp_path / "kits"), tmp_path / "tap.toml"
    toml.write_text(TOML, encoding="utf-8")
    homes = {role: ["--kit", str(kits.folder(role)), "--state", str(tmp_path / role)] for role in (Role.AIR, Role.EAVESDROPPER)}
    with started("air", "serve", str(toml), *homes[Role.AIR]) as air:
        first = told(air, "scenario_resolved")
        address = told(air, "serving_started")["address"]
        with started("eavesdropper", "listen", str(toml), "--air", address, *homes[Role.EAVESDROPPER]) as tap:
            assert told(tap, "scenario_resolved")["digest"] == first["digest"]
            told(tap, "phase_changed", phase="listening on the tap")
            assert stopped(tap, signal.SIGINT) == 0
        assert stopped(air, signal.SIGTERM) == 0
    assert evidence(tmp_path / "eavesdropper")["summary"] == "heard nothing"
    assert json.loads((tmp_path / "air" / "air.json").read_text(encoding="utf-8"))["transmissions"] == []


@pytest.mark.slow
def test_a_tap_without_an_air_says_which_address_does_not_answer(tmp_path: Path) -> None:
    kits, toml = Kits(tmp_path / "kits"), tmp_path / "tap.toml"
    toml.write_text(TOML, encoding="utf-8")
    home = ["--kit", str(kits.folder(Role.EAVESDROPPER)), "--state", str(tmp_path / "tap"), "--set", "timing.connect_s=0.3"]
    with started("eavesdropper", "listen", str(toml), "--air", "127.0.0.1:9", *home) as tap:
        problem = told(tap, "process_failed")
        assert tap.wait(timeout=5) == problem["exit_code"] == PeerLost.exit_code
    assert "127.0.0.1:9" in problem["problem"]
