"""Does ``hushtune link`` say what it measured, in numbers a script can read, and refuse what it cannot do?"""

import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from math import ceil, log2
from pathlib import Path
from typing import Any

import msgspec
import pytest

from hushtune_common.clock import SystemClock
from hushtune_common.errors import ConfigError, SecrecyUnavailable
from hushtune_common.link.abstraction import required_snr_db
from hushtune_common.link.mcs import CODING_POINTS, BlockErrorTables, point_named
from hushtune_common.seeding import SeedTree
from hushtune_common.units import Decibel
from hushtune_server.cli import main
from hushtune_server.testbed.link import peer
from hushtune_server.testbed.link.bench import Setting, default_settings, measure

USAGE = 2
ALL_POINTS = [point.name for point in CODING_POINTS]
SMALL_TABLE = ["--point", "qpsk-0.5", "--blocks", "32", "--iterations", "8", "--threads", "1"]
SMALL_BENCH = ["--point", "qpsk-0.825", "--blocks", "2", "--repetitions", "1"]
SMALL_ATTACK = ["--train", "32", "--test", "64", "--no-neural", "--threads", "1"]
BLIND = ["--tap-db", "-40", "--train", "4", "--test", "32", "--no-neural", "--threads", "1"]
"""At this SNR nobody can tell anything apart from four examples, so the controls fail."""
HEAVY = {"torch", "transformers", "grpc", "cryptography", "scipy", "numpy", "numba", "matplotlib", "sklearn"}

Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def eighty_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")


@pytest.fixture
def own_log() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:], root.level = handlers, level


def told(capsys: Capture, *arguments: str, code: int = 0) -> dict[str, Any]:
    assert main(["link", *arguments, "--json"]) == code
    return json.loads(capsys.readouterr().out)


# -- design ------------------------------------------------------------------------------------------------------------


def test_a_design_is_told_with_the_numbers_of_the_theory(capsys: Capture) -> None:
    found = told(capsys, "design", "--point", "qpsk-0.825", "--main-db", "6", "--tap-db", "-5", "--bandwidth-mhz", "2")
    (row,) = found["designs"]
    assert (row["point"], row["random_bits"], row["message_bits"]) == ("qpsk-0.825", 9408, 4 * 8448 - 9408)
    symbols, blocks = 4 * 10240 // 2, ceil(10e6 / ((4 * 8448 - 9408) / 8 - 4))
    assert row["secret_bits_per_symbol"] == pytest.approx(row["message_bits"] / symbols)
    assert row["rate_gaussian"] == pytest.approx(log2(1 + 10**0.6) - log2(1 + 10**-0.5))
    assert row["upload_blocks"] == blocks
    assert row["upload_blocks_sent"] == pytest.approx(blocks / (1 - row["block_error_rate"]))
    assert row["upload_airtime_s"] == pytest.approx(row["upload_blocks_sent"] * symbols / 2e6)
    assert row["upload_log2_delta"] == pytest.approx(-64 + log2(row["upload_blocks_sent"]))
    assert found["request"]["upload_bytes"] == 10_000_000


def test_a_bound_on_rayleigh_peaks_costs_what_the_same_bound_costs_without_fading(capsys: Capture) -> None:
    asked = ("design", "--point", "qpsk-0.5", "--main-db", "20", "--tap-db", "-10")
    (still,), (outage,), (mean,) = (
        told(capsys, *asked, "--tap-model", model)["designs"] for model in ("fixed", "outage", "interleaved")
    )
    assert outage["random_bits"] == still["random_bits"]
    assert mean["random_bits"] > still["random_bits"]  # a tap of this mean is at times far better
    assert mean["block_error_rate"] == outage["block_error_rate"]
    assert told(capsys, *asked)["request"]["subbands"] == 0


@pytest.mark.slow
def test_points_side_by_side_are_all_there_and_one_that_works_is_enough(capsys: Capture) -> None:
    rows = told(capsys, "design", "--main-db", "6", "--tap-db", "-5")["designs"]
    assert [row["point"] for row in rows] == ALL_POINTS
    least = {p.name: required_snr_db(p, codewords=4, block_error_max=1e-2) for p in CODING_POINTS}
    assert {row["point"] for row in rows if not row["problem"]} == {name for name, snr_db in least.items() if snr_db <= 6.0}
    for row in rows:
        assert row["problem"] in ("", f"the owner needs {least[row['point']]:.2f} dB")


def test_a_point_that_the_owner_cannot_decode_has_no_rate_and_has_one_at_the_snr_that_it_asks_for(capsys: Capture) -> None:
    asked = ("design", "--point", "qam64-0.825", "--tap-db", "-5", "--main-db")
    (low,) = told(capsys, *asked, "6", code=9)["designs"]
    assert not {"secret_bits_per_symbol", "message_bits", "upload_airtime_s"} & set(low)
    assert low["shortfall_db"] == pytest.approx(low["snr_main_least_db"] - 6.0)
    (enough,) = told(capsys, *asked, str(low["snr_main_least_db"]))["designs"]
    assert enough["block_error_rate"] <= 1e-2
    (short,) = told(capsys, *asked, str(low["snr_main_least_db"] - 0.1), code=9)["designs"]
    assert short["block_error_rate"] > 1e-2


def test_a_point_that_hides_nothing_from_a_tap_hides_something_from_the_tap_that_it_names(capsys: Capture) -> None:
    asked = ("design", "--point", "qpsk-0.5", "--main-db", "6", "--tap-db")
    (loud,) = told(capsys, *asked, "5", code=9)["designs"]
    assert loud["shortfall_db"] == pytest.approx(5.0 - loud["snr_tap_most_db"])
    assert not told(capsys, *asked, str(loud["snr_tap_most_db"]))["designs"][0]["problem"]
    assert told(capsys, *asked, str(loud["snr_tap_most_db"] + 0.2), code=9)["designs"][0]["problem"]


def test_whoever_may_lose_more_blocks_decodes_at_a_lower_snr(capsys: Capture) -> None:
    asked = ("design", "--point", "qpsk-0.825", "--main-db", "5.3", "--block-error-max")
    assert told(capsys, *asked, "0.01", code=9)["request"]["block_error_max"] == 0.01
    (row,) = told(capsys, *asked, "0.5")["designs"]
    assert 0.01 < row["block_error_rate"] <= 0.5
    assert row["upload_blocks_sent"] == pytest.approx(row["upload_blocks"] / (1 - row["block_error_rate"]))


def test_an_impossible_design_is_refused_with_the_nearest_possible_one(capsys: Capture) -> None:
    lines = told(capsys, "design", "--main-db", "4", "--tap-db", "6", code=9)["designs"]
    nearest = min(lines, key=lambda line: line["shortfall_db"])["point"]
    assert main(["link", "design", "--main-db", "4", "--tap-db", "6", "--json"]) == 9
    said = capsys.readouterr().err
    assert f"the nearest is {nearest}, which needs the owner at " in said
    assert len(said) < 300


@pytest.mark.slow
def test_where_no_snr_would_do_json_has_no_number_and_the_refusal_says_so(capsys: Capture) -> None:
    hopeless = ["design", "--tap-model", "outage", "--subbands", "1", "--block-error-max", "1e-9"]
    assert main(["link", *hopeless, "--json"]) == 9
    captured = capsys.readouterr()
    assert "no coding point serves at any SNR" in captured.err
    assert all(row["snr_main_least_db"] is row["shortfall_db"] is None for row in json.loads(captured.out)["designs"])
    assert "Infinity" not in captured.out


@pytest.mark.parametrize(
    ("levels", "numbers"),
    [
        (("--main-db", "6", "--tap-db", "5"), "owner 6 dB, tap 5 dB (fixed)"),
        (("--main-db", "0", "--tap-db", "-5"), "owner 0 dB, tap -5 dB (fixed)"),
    ],
)
def test_when_no_design_is_usable_the_answer_is_no_with_numbers(capsys: Capture, levels: tuple[str, ...], numbers: str) -> None:
    assert SecrecyUnavailable.exit_code == 9
    assert main(["link", "design", "--point", "qpsk-0.825", *levels, "--json"]) == 9
    captured = capsys.readouterr()
    assert captured.err.startswith(f"hushtune: {numbers}")
    (row,) = json.loads(captured.out)["designs"]
    assert row["problem"]
    assert captured.err.endswith(f": qpsk-0.825: {row['problem']}\n")


def test_a_bound_that_grew_beyond_one_is_no_bound(capsys: Capture) -> None:
    (row,) = told(capsys, "design", "--point", "qpsk-0.825", "--log2-delta", "-3")["designs"]
    assert (row["log2_delta"], row["upload_log2_delta"]) == (-3.0, 0.0)


def test_an_upload_of_less_than_a_byte_is_one_block(capsys: Capture) -> None:
    (row,) = told(capsys, "design", "--point", "qpsk-0.825", "--megabytes", "1e-9")["designs"]
    assert row["upload_blocks"] == 1


# -- what every command refuses ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["design", "bler", "bench", "attack"])
def test_an_unknown_point_is_answered_with_those_there_are(capsys: Capture, command: str) -> None:
    assert main(["link", command, "--point", "qpsk-0.9"]) == ConfigError.exit_code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("hushtune: --point: ")
    assert all(name in captured.err for name in ALL_POINTS)


@pytest.mark.parametrize(
    ("command", "option", "value"),
    [
        ("design", "--main-db", "nan"),
        ("design", "--tap-db", "inf"),
        ("design", "--codewords", "0"),
        ("design", "--log2-delta", "0"),
        ("design", "--log2-delta", "1"),
        ("design", "--subbands", "0"),
        ("design", "--block-error-max", "0"),
        ("design", "--block-error-max", "1"),
        ("design", "--megabytes", "0"),
        ("design", "--bandwidth-mhz", "0"),
        ("design", "--bandwidth-mhz", "-1"),
        ("bler", "--blocks", "0"),
        ("bler", "--iterations", "0"),
        ("bler", "--threads", "0"),
        ("bench", "--blocks", "0"),
        ("bench", "--repetitions", "0"),
        ("bench", "--threads", "0"),
        ("attack", "--train", "3"),
        ("attack", "--test", "0"),
        ("attack", "--tap-db", "nan"),
        ("attack", "--codewords", "17"),
        ("attack", "--log2-delta", "nan"),
    ],
)
def test_an_impossible_number_is_a_mistake_in_the_command_line(capsys: Capture, command: str, option: str, value: str) -> None:
    assert main(["link", command, option, value]) == USAGE
    captured = capsys.readouterr()
    assert captured.out == ""
    assert option in captured.err


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [["--help"], ["design", "--help"], ["attack", "--help"]], ids=" ".join)
def test_help_teaches_and_imports_nothing_heavy(arguments: list[str]) -> None:
    command = [sys.executable, "-X", "importtime", "-m", "hushtune_server", "link", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0
    expected = ["design", "bler", "bench", "attack", "prepare"] if len(arguments) == 1 else ["--point", "--json", "Example:"]
    assert all(word in done.stdout for word in expected)
    assert not {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()} & HEAVY


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [
        ["design"],
        ["design", "--tap-model", "interleaved", "--main-db", "22", "--tap-db", "-12"],
        ["bler", *SMALL_TABLE],
        ["bench", *SMALL_BENCH],
        ["attack", *SMALL_ATTACK],
    ],
    ids=lambda a: " ".join(a[:2]),
)
def test_a_table_fits_eighty_columns_and_cuts_no_word(capsys: Capture, arguments: list[str]) -> None:
    assert main(["link", *arguments]) == 0
    shown = capsys.readouterr().out
    assert len(shown.splitlines()) > 5
    assert max(len(line) for line in shown.splitlines()) <= 80
    assert "…" not in shown


# -- bler --------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_measured_tables_are_written_in_the_form_that_the_link_reads(tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "tables.json"
    printed = told(capsys, "bler", *SMALL_TABLE, "--out", str(out))
    read = msgspec.json.decode(out.read_bytes(), type=BlockErrorTables)
    assert printed == json.loads(out.read_bytes())
    table = read.points["qpsk-0.5"]
    point = replace(point_named("qpsk-0.5"), bler=table.rows, iterations=table.iterations)  # checks that it falls
    assert (table.iterations, point.bler[0][1], point.bler[-1][1]) == (8, 1.0, 0.0)
    assert read.provenance["command"] == "hushtune link bler --seed 1 --blocks 32 --iterations 8"
    assert required_snr_db(point, codewords=1, block_error_max=0.1) == pytest.approx(2.1, abs=0.3)


@pytest.mark.parametrize("place", [".", "nowhere/tables.json"])
def test_a_file_that_cannot_be_written_is_refused_before_anything_is_measured(
    tmp_path: Path, capsys: Capture, place: str
) -> None:
    assert main(["link", "bler", *SMALL_TABLE, "--out", str(tmp_path / place)]) == ConfigError.exit_code
    said = capsys.readouterr().err
    assert said.startswith("hushtune: --out: ")
    assert "codewords failed" not in said


# -- bench -------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_benchmark_names_machine_design_and_every_stage(capsys: Capture) -> None:
    found = told(capsys, "bench", *SMALL_BENCH)
    assert found["peer"] is None or found["peer"]["name"] == "Sionna"
    assert set(found["machine"]) == {"processor", "python", "cores"}
    first, second = found["settings"]
    assert [first["setting"], second["setting"]] == ["qpsk-0.825 6/-5 dB L_c=4", "qpsk-0.825 6/-5 dB L_c=1"]
    assert (second["random_bits"], second["message_bits"], second["log2_delta"]) == (2704, 5744, -64.0)
    assert (first["blocks"], first["block_errors"], first["threads"]) == (2, 0, 1)
    assert 3.0 < first["iterations_mean"] < 8.0
    rates = first["mbit_per_s"]
    assert set(rates) == {"hash", "encode", "ldpc encode", "channel", "ldpc decode", "decode", "bob total"}
    assert 1 / rates["bob total"] == pytest.approx(sum(1 / rates[s] for s in ("encode", "channel", "decode")), rel=0.05)


@pytest.mark.slow
def test_lost_blocks_are_counted_over_the_blocks_that_are_told() -> None:
    drowned = Setting(point=point_named("qpsk-0.825"), snr_main_db=Decibel(-5.0), snr_tap_db=Decibel(-9.0), codewords=1)
    found = measure(drowned, blocks=3, repetitions=2, threads=1, clock=SystemClock(), seeds=SeedTree(1))
    assert (found.block_errors, found.blocks) == (6, 6)
    assert found.iterations_mean == drowned.point.iterations


def test_a_point_without_a_benchmark_is_answered_with_those_that_have_one(capsys: Capture) -> None:
    assert main(["link", "bench", "--point", "qam64-0.5"]) == ConfigError.exit_code
    said = capsys.readouterr().err
    assert "qpsk-0.825" in said
    assert "qam64-0.667" not in said


def test_the_peer_is_compared_at_its_own_point_on_one_thread_only() -> None:
    assert "qpsk-0.825 only" in peer.left_out({"qpsk-0.5"}, threads=1)
    assert "one thread" in peer.left_out({"qpsk-0.5", "qpsk-0.825"}, threads=2)
    assert (peer.left_out({"qpsk-0.825"}, threads=1) == "") == peer.available()
    first = default_settings()[0]
    assert (first.point.name, first.snr_main_db) == (peer.POINT, peer.SNR_DB)  # the speeds that are divided by the peer's


@pytest.mark.slow
def test_a_benchmark_of_another_point_says_why_it_has_no_peer(capsys: Capture) -> None:
    assert main(["link", "bench", "--point", "qpsk-0.5", "--blocks", "2", "--repetitions", "1", "--json"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["peer"] is None
    assert "the peer is left out: it is measured at qpsk-0.825 only" in captured.err


# -- attack ------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_an_attack_is_told_next_to_its_controls(capsys: Capture) -> None:
    found = told(capsys, "attack", *SMALL_ATTACK)
    assert found["design"] == {"point": "qpsk-0.825", "log2_delta": -64.0, "random_bits": 2704, "message_bits": 5744}
    assert found["valid"] is True
    roles = {row["name"]: (row["control"], row["verdict"]) for row in found["results"]}
    assert roles == {
        "no hash, linear": (True, "told apart"),
        "the design, linear": (False, "not told apart"),
        "hash with 8 random bits, likelihood": (True, "told apart"),
    }
    for row in found["results"]:
        low, high = row["interval_95"]
        assert low <= row["accuracy"] <= high
        assert (row["trials"], row["snr_db"]) == (64, -5.0)


@pytest.mark.slow
def test_an_attack_whose_controls_fail_is_invalid_and_ends_with_one(capsys: Capture) -> None:
    found = told(capsys, "attack", *BLIND, code=1)
    assert found["valid"] is False
    assert "CONTROL FAILED" in {row["verdict"] for row in found["results"]}
    assert main(["link", "attack", *BLIND]) == 1
    assert "INVALID" in capsys.readouterr().out


def test_an_attack_on_a_design_that_does_not_exist_is_refused(capsys: Capture) -> None:
    assert main(["link", "attack", "--tap-db", "20", *SMALL_ATTACK]) == SecrecyUnavailable.exit_code
    assert "a tap at 20.0 dB" in capsys.readouterr().err


def test_more_blocks_than_the_network_can_hold_are_refused_before_they_are_made(capsys: Capture) -> None:
    assert main(["link", "attack", "--train", "1000000"]) == ConfigError.exit_code
    said = capsys.readouterr().err
    assert "--train: 1000000 blocks are 10240000000 soft values" in said
    assert "at most 52428 blocks" in said  # 2^29 soft values of 10240 a block
    assert "--no-neural" in said


# -- prepare -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.usefixtures("own_log")
def test_preparing_says_what_it_does(capsys: Capture) -> None:
    assert main(["link", "prepare"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert "compiling the link's machine code" in line


SENDS_AFTER_PREPARING = """
import numpy as np
from numba.core.dispatcher import Dispatcher
from hushtune_common.clock import SystemClock
from hushtune_common.link import ldpc, modem, noise, toeplitz
from hushtune_common.link.abstraction import Fading
from hushtune_common.seeding import SeedTree
from hushtune_server.testbed.link.bench import Setting, measure
from hushtune_server.testbed.link.prepare import prepare
from tests.radio import POINTS, design, random_update
from tests.tap import overhear

def compiled():
    found = [v for m in (ldpc, modem, noise, toeplitz) for v in vars(m).values() if isinstance(v, Dispatcher)]
    return {(d.__qualname__, str(s)) for d in found for s in d.signatures}

prepare()
before = compiled()
assert before
for name in ("qpsk-0.825", "qam16-0.667", "qam64-0.5"):
    setting = Setting(point=POINTS[name], snr_main_db=25.0, snr_tap_db=-8.0, codewords=2)
    measure(setting, blocks=3, repetitions=1, threads=2, clock=SystemClock(), seeds=SeedTree(1))
    made = design(POINTS[name], codewords=2, snr_tap_db=-8.0, log2_delta=-64.0)
    overhear(random_update(40_000), made, snr_db=25.0, fading=Fading(subbands=16))
    words = np.zeros((3, made.code_bits // 8), dtype=np.uint8)
    for gains in (None, np.ones((3, 16), dtype=np.float32)):
        path = modem.Path(snr=1.0, gains=gains, key=noise.NoiseKey.of(SeedTree(1)), first=0)
        for look in (modem.densities, modem.received):
            look(words, dither=words[:1], modulation=made.modulation, path=path)
assert not compiled() - before, compiled() - before
"""


@pytest.mark.slow
def test_what_was_prepared_is_all_that_sending_needs() -> None:
    command = [sys.executable, "-c", SENDS_AFTER_PREPARING]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr[-2000:]
