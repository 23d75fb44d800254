"""Is every figure drawn that there is data for, none that there is not, and does it show what it says?"""

import re
from dataclasses import asdict
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from hushtune_common.link.mcs import point_of
from hushtune_common.link.wiretap import design, open_design
from hushtune_common.messages import SecrecyDesign, TapModel
from hushtune_server.testbed import plots
from tests.radio import POINTS, qpsk_design

QPSK = qpsk_design()
QAM16 = design(POINTS["qam16-0.825"], codewords=4, snr_tap_db=0.0, log2_delta=-64.0)
FADED = design(POINTS["qpsk-0.5"], codewords=4, snr_tap_db=-10.0, log2_delta=-64.0, tap_model=TapModel.INTERLEAVED, subbands=16)
ALL = {"block_errors", "secret_rate", "information_density", "constellation"}


def sender(name: str = "c1", *, secrecy: SecrecyDesign = QPSK, snr_main_db: float = 6.0) -> dict[str, Any]:
    """What the referee tells of a client that sent."""
    rng = np.random.default_rng(len(name))
    values = rng.normal(8099.0, 133.0, size=60).round(1).tolist()
    points = {who: rng.normal(size=(64, 2)).round(3).tolist() for who in ("main", "tap")}
    return {
        "client": name,
        "design": asdict(secrecy),
        "transmissions": 1,
        "snr_main_db": snr_main_db,
        "density": {"values_bits": values},
        "constellation": points,
    }


def drawn(folder: Path, *clients: dict[str, Any]) -> dict[str, str]:
    """The words of each figure by what it shows: its texts are kept as comments beside their outlines."""
    names = plots.draw({"clients": list(clients)}, folder / "plots")
    assert {p.name for p in (folder / "plots").iterdir()} == {f"{what}.svg" for what in names}
    for what, name in names.items():
        assert name == f"plots/{what}.svg"
        assert ElementTree.parse(folder / name).getroot().tag.endswith("svg")
    return {what: "\n".join(re.findall("<!-- (.*?) -->", (folder / name).read_text("utf-8"))) for what, name in names.items()}


@pytest.mark.slow
def test_a_full_report_has_every_figure_and_each_names_what_it_shows(tmp_path: Path) -> None:
    found = drawn(tmp_path, sender("c1"), sender("c2", secrecy=QAM16, snr_main_db=12.5))
    assert set(found) == ALL
    assert all(name in found["block_errors"] for name in ("qpsk-0.825", "qam16-0.825", "c1", "c2"))
    assert "qpsk-0.5" not in found["block_errors"]
    assert all(words in found["secret_rate"] for words in ("Secret rate at 6.0 dB", "assumed tap", "this code: qpsk-0.825"))
    assert all(words in found["information_density"] for words in ("budget r", "c1", "c2"))
    assert all(words in found["constellation"] for words in ("owner", "eavesdropper", "One hash block of c1"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("missing", "left"),
    [
        ({"density": None}, ALL - {"information_density"}),
        ({"constellation": None}, ALL - {"constellation"}),
        ({"density": None, "constellation": None}, {"block_errors", "secret_rate"}),
    ],
)
def test_a_figure_without_data_is_left_out(tmp_path: Path, missing: dict[str, None], left: set[str]) -> None:
    assert set(drawn(tmp_path, sender() | missing)) == left


def test_without_a_sender_over_the_wiretap_code_there_is_no_figure(tmp_path: Path) -> None:
    assert drawn(tmp_path) == {}
    assert drawn(tmp_path, sender() | {"design": None}, sender() | {"transmissions": 0}) == {}


@pytest.mark.slow
def test_a_client_that_sent_nothing_does_not_keep_another_from_its_figures(tmp_path: Path) -> None:
    silent = dict.fromkeys(sender(), None) | {"client": "silent", "transmissions": 0}
    found = drawn(tmp_path, silent, sender("c2"))
    assert set(found) == ALL
    assert "One hash block of c2" in found["constellation"]
    assert not any("silent" in words for words in found.values())


@pytest.mark.slow
def test_equal_reports_give_equal_files(tmp_path: Path) -> None:
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        drawn(folder, sender())
    first, second = ({p.name: p.read_bytes() for p in (folder / "plots").iterdir()} for folder in folders)
    assert first == second


@pytest.mark.slow
def test_sixty_clients_with_long_names_still_fit(tmp_path: Path) -> None:
    names = [f"{'long-name-' * 5}{k:02d}" for k in range(60)]
    found = drawn(tmp_path, *(sender(name) for name in names))  # a figure that does not fit warns, and warnings are errors
    assert "(4 of 60 clients)" in found["information_density"]
    assert "and 56 more" in found["block_errors"]


@pytest.mark.slow
def test_a_tap_beyond_the_usual_range_is_still_on_the_curve(tmp_path: Path) -> None:
    loud = design(POINTS["qam64-0.825"], codewords=4, snr_tap_db=9.0, log2_delta=-64.0)
    found = drawn(tmp_path, sender(secrecy=loud, snr_main_db=18.0))
    assert set(found) == ALL
    ticks = re.findall("^.?[0-9]+$", found["secret_rate"].replace("\u2212", "-"), flags=re.MULTILINE)
    assert {"-10", "10"} <= set(ticks)


@pytest.mark.parametrize("made", [QPSK, QAM16, FADED], ids=lambda d: f"{d.modulation}-{d.tap_model}")
def test_the_curve_of_this_code_goes_through_the_design_and_falls_with_the_taps_snr(made: SecrecyDesign) -> None:
    levels = made.snr_tap_design_db + np.arange(-6.0, 25.0, 3.0)
    rates = [plots.coded_rate(point_of(made), snr_tap_db=float(level), design=asdict(made)) for level in levels]
    assert rates[2] == made.rate
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] == 0.0
    assert rates[0] < open_design(point_of(made), codewords=4).rate
