"""Are block error tables repeatable, of the right shape, and the ones that the link carries with it?"""

from dataclasses import replace
from importlib.resources import files
from math import sqrt
from pathlib import Path
from typing import Any

import msgspec
import pytest

from hushtune_common.link.mcs import CODING_POINTS, BlockErrorTables, PointTable, point_named
from hushtune_server.testbed.link.bler import (
    BlerOptions,
    fading_loss_db,
    falling,
    measure,
    measure_all,
    to_json,
    waterfall,
    write,
)

QUICK = BlerOptions(blocks=256, errors_enough=64, step_db=0.2)


def test_a_row_is_repeatable_whatever_was_measured_before_and_on_however_many_threads() -> None:
    point = point_named("qpsk-0.825")
    told: list[str] = []
    both = measure(point, snr_db=[5.0, 5.1], options=QUICK, progress=told.append)
    (alone,) = measure(point, snr_db=[5.1], options=replace(QUICK, threads=2), progress=told.append)
    assert both[1] == alone
    assert told[1] == told[2] == f"qpsk-0.825 5.10 dB: {round(alone[1] * alone[2])} of {alone[2]} codewords failed"
    (other,) = measure(point, snr_db=[5.1], options=replace(QUICK, seed=2), progress=told.append)
    assert other != alone


def test_nothing_is_decoded_in_noise_and_everything_without() -> None:
    rows = measure(point_named("qam16-0.5"), snr_db=[-10.0, 25.0], options=QUICK, progress=_ignore)
    assert [rate for _, rate, _ in rows] == [1.0, 0.0]
    assert rows[1][2] == 256


@pytest.mark.slow
@pytest.mark.parametrize("name", ["qpsk-0.5", "qam64-0.825"])
def test_a_waterfall_falls_from_all_to_none_where_the_committed_table_does(name: str) -> None:
    point = point_named(name)
    rows = waterfall(point, options=QUICK, progress=_ignore)
    assert rows[0][1] > 0.95
    assert rows[-1][1] == 0.0
    committed = {snr_db: (rate, blocks) for snr_db, rate, blocks in point.bler}
    shared = [(row, committed[row[0]]) for row in rows if row[0] in committed]
    assert len(shared) >= 3
    for (_, rate, count), (expected, blocks) in shared:
        spread = max(expected * (1.0 - expected), 1.0 / count)
        assert abs(rate - expected) < 4.0 * sqrt(spread * (1.0 / count + 1.0 / blocks))


def test_fewer_iterations_cost_more_errors() -> None:
    point = point_named("qpsk-0.5")
    few, many = (measure(point, snr_db=[1.6], options=replace(QUICK, iterations=n), progress=_ignore)[0][1] for n in (12, 50))
    assert few > many + 0.2


def test_rows_that_chance_made_rise_share_their_mean() -> None:
    rows = [(1.0, 0.5, 100), (1.1, 0.1, 100), (1.2, 0.4, 300), (1.3, 0.0, 50)]
    assert falling(rows) == [(1.0, 0.5, 100), (1.1, 0.325, 100), (1.2, 0.325, 300), (1.3, 0.0, 50)]
    assert falling([(0.0, 0.1, 10), (0.1, 0.2, 10), (0.2, 0.3, 20)]) == [
        (s, 0.225, n) for s, n in ((0.0, 10), (0.1, 10), (0.2, 20))
    ]


@pytest.mark.slow
def test_a_table_that_promises_half_a_decibel_too_much_shows_as_half_a_decibel_of_fading_loss() -> None:
    point, options = point_named("qpsk-0.825"), BlerOptions(blocks=3000)
    early = tuple((snr_db - 0.5, rate, blocks) for snr_db, rate, blocks in point.bler)
    true, shifted = (fading_loss_db(p, options=options, progress=_ignore) for p in (point, replace(point, bler=early)))
    assert abs(true - point.fading_loss_db) < 0.15
    assert shifted - true == pytest.approx(0.5, abs=0.15)


def test_a_written_table_is_read_back_and_two_writings_are_equal(tmp_path: Path) -> None:
    point = point_named("qpsk-0.825")
    tables = {point.name: PointTable(iterations=16, fading_loss_db=0.03, rows=point.bler)}
    for name in ("a.json", "b.json"):
        write(tmp_path / name, to_json(tables, options=QUICK))
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    read = msgspec.json.decode(text, type=BlockErrorTables)
    assert text == (tmp_path / "b.json").read_text(encoding="utf-8")
    assert read.points == tables
    assert read.provenance["seed"] == 1
    assert sum("[" in line and "]" in line for line in text.splitlines()) == len(point.bler)


@pytest.mark.slow
def test_a_measurement_covers_the_points_asked_for() -> None:
    options = BlerOptions(blocks=64, errors_enough=16, step_db=0.5, iterations=8)
    tables = measure_all([point_named("qpsk-0.825")], options=options, progress=_ignore)
    assert list(tables) == ["qpsk-0.825"]
    assert tables["qpsk-0.825"].iterations == 8
    assert "--iterations 8" in str(to_json(tables, options=options)["provenance"]["command"])


def test_the_committed_tables_say_how_they_were_made_and_cover_every_point() -> None:
    packed = files("hushtune_common.link").joinpath("bler.json").read_bytes()
    document = msgspec.json.decode(packed, type=BlockErrorTables)
    assert set(document.points) == {point.name for point in CODING_POINTS}
    assert str(document.provenance["command"]).startswith("hushtune link bler --seed 1 --blocks ")
    assert all(str(document.provenance["command"]) in point.provenance for point in CODING_POINTS)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bler": ((1.0, 0.1, 10), (2.0, 0.2, 10))}, "must fall"),
        ({"bler": ((2.0, 0.1, 10), (1.0, 0.0, 10))}, "must fall"),
        ({"bler": ((2.0, 0.1, 10),)}, "must fall"),
        ({"iterations": 0}, "iterations"),
        ({"modulation": "psk8"}, "unknown modulation"),
    ],
)
def test_an_impossible_point_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(point_named("qpsk-0.5"), **changes)


def test_an_unknown_point_is_told_what_there_is() -> None:
    with pytest.raises(ValueError, match="there are qam64-0\\.825, "):
        point_named("qpsk-0.9")


@pytest.mark.parametrize("changes", [{"blocks": 0}, {"threads": 0}, {"iterations": 0}, {"step_db": 0.0}, {"errors_enough": 0}])
def test_impossible_options_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"count from 1|steps of"):
        BlerOptions(**changes)


def _ignore(text: str) -> None:
    assert text
