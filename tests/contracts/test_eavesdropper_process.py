"""Does the eavesdropper keep honest evidence, and does it end when told to?"""

import asyncio
import json
import logging
import signal
import subprocess
import sys
from collections.abc import AsyncGenerator, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from hushtune_common.config import EavesdropperConfig, Scenario
from hushtune_common.errors import LimitExceeded, MalformedUpdate, PeerLost, StaleRound
from hushtune_common.link.fidelity import Fidelity
from hushtune_common.link.reception import Reception
from hushtune_common.link.wiretap import open_design
from hushtune_common.messages import Part, ReceptionNotice, Role
from hushtune_common.seeding import SeedTree
from hushtune_server.eavesdropper.app import attack_all
from hushtune_server.eavesdropper.case import Case
from tests.kits import Kits
from tests.radio import POINTS, qpsk_design, random_update, scenario
from tests.tap import Overheard, overhear

DESIGN = qpsk_design(codewords=2)
OPEN = open_design(POINTS["qpsk-0.825"], codewords=2)
UPDATE = random_update(20 * DESIGN.payload_bytes)


def world(**eavesdropper: Any) -> Scenario:
    settings = EavesdropperConfig(**{"distinguish_blocks": 0, **eavesdropper})
    return msgspec.structs.replace(scenario(), eavesdropper=settings)


def case(folder: Path, **eavesdropper: Any) -> Case:
    return Case(world(**eavesdropper), state_dir=folder, seeds=SeedTree(0))


def take(book: Case, heard: Overheard) -> None:
    """Attack a whole transmission, as the process does."""
    assert book.begin(heard.notice)
    for chunk in heard.chunks:
        book.take(heard.notice, chunk)
    for trial in book.trials(heard.notice):
        book.play(heard.notice, trial)
    book.conclude(heard.notice)


def evidence(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "evidence.json").read_text(encoding="utf-8"))


def test_a_tap_below_the_design_hears_nothing_and_says_so(tmp_path: Path) -> None:
    take(case(tmp_path), overhear(UPDATE, DESIGN, snr_db=-15.0, fidelity=Fidelity.ABSTRACT))
    (update,) = evidence(tmp_path)["updates"]
    assert (update["blocks_heard"], update["bytes_known"], update["valid"]) == (0, 0, True)
    assert update["assumption_held"]
    assert set((tmp_path / "guesses" / "c1-1-payload.bin").read_bytes()) == {0}


def test_a_tap_with_ample_snr_recovers_the_update_and_the_broken_assumption_is_told(tmp_path: Path) -> None:
    take(case(tmp_path), overhear(UPDATE, DESIGN, snr_db=20.0))
    (update,) = evidence(tmp_path)["updates"]
    assert update["bytes_known"] == len(UPDATE)
    assert not update["assumption_held"]
    assert (tmp_path / "guesses" / "c1-1-payload.bin").read_bytes() == UPDATE
    assert "FAILED" in evidence(tmp_path)["summary"]


def test_a_key_and_the_open_part_that_it_protects_are_two_pieces_of_evidence(tmp_path: Path) -> None:
    book = case(tmp_path, distinguish_blocks=90)
    take(book, overhear(b"k" * 32, DESIGN, part=Part.KEY, snr_db=-15.0))
    take(book, overhear(UPDATE, OPEN, snr_db=20.0, attempt=2))
    key, payload = evidence(tmp_path)["updates"]
    assert (key["part"], key["secret"], key["bytes_known"], key["bytes_total"]) == ("key", True, 0, 32)
    assert (payload["part"], payload["secret"], payload["bytes_known"]) == ("payload", False, len(UPDATE))
    assert (key["distinguish"]["valid"], payload["distinguish"]) == (True, None)
    assert f"{len(UPDATE)} of the known bytes travelled open" in evidence(tmp_path)["summary"]


def test_retransmissions_are_attacked_together(tmp_path: Path) -> None:
    book = case(tmp_path)
    for attempt in (1, 2):
        take(book, overhear(UPDATE, DESIGN, snr_db=-15.0, attempt=attempt))
    (update,) = evidence(tmp_path)["updates"]
    assert (update["transmissions"], update["blocks_sent"], update["blocks_decoded"]) == (2, 40, 40)


def test_what_was_heard_to_its_end_outlives_the_process_and_is_not_attacked_twice(tmp_path: Path) -> None:
    first, second = (overhear(UPDATE, DESIGN, snr_db=snr_db, attempt=k) for k, snr_db in ((1, -15.0), (2, 20.0)))
    take(case(tmp_path, distinguish_blocks=90), first)
    before = evidence(tmp_path)
    book = case(tmp_path, distinguish_blocks=90)
    book.write()
    assert evidence(tmp_path) == before
    assert not book.begin(first.notice)
    take(book, second)
    (update,) = evidence(tmp_path)["updates"]
    assert (update["transmissions"], update["blocks_decoded"], update["bytes_known"]) == (2, 40, len(UPDATE))


def test_a_transmission_that_broke_off_is_counted_as_sent_and_attacked_anew(tmp_path: Path) -> None:
    heard = overhear(random_update(200 * DESIGN.payload_bytes), DESIGN, snr_db=20.0)
    book = case(tmp_path)
    book.begin(heard.notice)
    book.take(heard.notice, heard.chunks[0])
    book.write()
    (update,) = evidence(tmp_path)["updates"]
    assert (update["blocks_sent"], update["blocks_decoded"]) == (200, heard.chunks[0].count)
    take(case(tmp_path), heard)
    (update,) = evidence(tmp_path)["updates"]
    assert (update["blocks_sent"], update["blocks_decoded"]) == (200, 200)


def test_what_the_scenario_does_not_allow_is_refused_before_anything_is_kept(tmp_path: Path) -> None:
    book, heard = case(tmp_path), overhear(UPDATE, DESIGN, snr_db=-15.0)
    with pytest.raises(LimitExceeded):
        book.begin(replace(heard.notice, update_bytes=world().limits.update_bytes_max + 1))
    with pytest.raises(MalformedUpdate):
        book.begin(replace(heard.notice, fidelity="perfect"))
    assert [*(tmp_path / "guesses").iterdir()] == []


def test_evidence_written_while_an_attack_goes_on_is_whole_and_has_the_attack_in_it(tmp_path: Path) -> None:
    book = case(tmp_path)
    receptions = [overhear(UPDATE[:5000], DESIGN, snr_db=-15.0, attempt=attempt) for attempt in range(1, 6)]
    with ThreadPoolExecutor(max_workers=2) as threads:
        attacks = threads.submit(lambda: [take(book, reception) for reception in receptions])
        writes = threads.submit(lambda: [book.write() for _ in range(40)])
        assert (len(attacks.result()), len(writes.result())) == (5, 40)
    (update,) = evidence(tmp_path)["updates"]
    assert update["transmissions"] == 5


class Scripted:
    """Ears that hear what the test says; what has no chunks can no longer be heard."""

    def __init__(self, heard: Sequence[Overheard]) -> None:
        self._heard = {h.notice.transmission.key: h for h in heard}

    async def notices(self) -> AsyncGenerator[ReceptionNotice, None]:
        for heard in self._heard.values():
            yield heard.notice

    async def receive(self, notice: ReceptionNotice) -> AsyncGenerator[Reception, None]:
        chunks = self._heard[notice.transmission.key].chunks
        if not chunks:
            raise StaleRound("gone")
        for chunk in chunks:
            yield chunk


def test_every_frame_is_attacked_once_and_what_cannot_be_heard_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    good, gone = (overhear(UPDATE, DESIGN, snr_db=-15.0, attempt=attempt) for attempt in (1, 2))
    other = overhear(UPDATE[:-1], DESIGN, snr_db=-15.0, attempt=3)
    with caplog.at_level(logging.INFO):
        asyncio.run(attack_all(case(tmp_path), Scripted([good, replace(gone, chunks=()), other])))
    told = [record.getMessage() for record in caplog.records]
    assert (told.count("reception_attacked"), told.count("reception_unreadable")) == (1, 2)
    (update,) = evidence(tmp_path)["updates"]
    assert (update["transmissions"], update["blocks_sent"], update["blocks_decoded"]) == (2, 40, 20)


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
