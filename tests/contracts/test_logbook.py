"""The logs of a run are read as one: in order, chosen, readable, and never brought down by what stands in them."""

import json
from collections.abc import Iterable
from pathlib import Path

import pytest

from hushtune_common.errors import ConfigError
from hushtune_server import cli
from hushtune_server.testbed import rundir
from hushtune_server.testbed.logbook import choosing, lines, readable
from hushtune_server.testbed.logbook.lines import Line, Logbook


def line(event: str, *, at: str, **fields: object) -> str:
    return json.dumps({"time": f"2026-11-22T09:41:{at}+00:00", "level": "info", "event": event, **fields})


def write(folder: Path, **processes: Iterable[str]) -> Path:
    folder.mkdir(exist_ok=True)
    for name, written in processes.items():
        (folder / f"{name}.jsonl").write_text("".join(f"{text}\n" for text in written), encoding="utf-8")
    return folder


@pytest.fixture
def logs(tmp_path: Path) -> Path:
    return write(
        tmp_path / "gathered",
        c1=[
            line("update_sealed", at="10.000", role="client", name="c1", client="c1", round_id=1, digest="ab" * 32),
            line("training_progressed", at="05.000", role="client", name="c1", client="c1", round_id=1, step=1, steps=6),
        ],
        owner=[
            line("update_received", at="12.500", role="owner", name="owner", client="c1", round_id=1, bytes_sealed=10_220_000),
            line("plugin_kept", at="20.000", role="owner", name="owner", round_id=2, clients=["c1", "c2"]),
        ],
        air=[line("frame_carried", at="11.000", role="air", name="air", client="c2", round_id=1, level="warning")],
    )


def shown(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[str]:
    assert cli.main(["logs", *arguments]) == 0
    return capsys.readouterr().out.splitlines()


def test_lines_of_all_processes_come_in_order_of_time(logs: Path) -> None:
    assert [entry.event for entry in lines.read(logs)] == [
        "training_progressed",
        "update_sealed",
        "frame_carried",
        "update_received",
        "plugin_kept",
    ]


def test_machines_with_clocks_of_other_zones_are_put_in_one_order(tmp_path: Path) -> None:
    west = '{"time": "2026-11-22T04:00:01-05:00", "event": "b"}'
    folder = write(tmp_path / "x", berlin=['{"time": "2026-11-22T10:00:00+01:00", "event": "a"}'], lima=[west])
    assert [entry.event for entry in lines.read(folder)] == ["a", "b"]


@pytest.mark.parametrize("damage", ["{", "[]", "\x00\x01", '{"time": "x"', "9" * 5000, '"' + "a" * (2 << 20), "[" * 100_000])
def test_a_damaged_line_is_counted_and_the_rest_is_read(tmp_path: Path, damage: str) -> None:
    folder = write(tmp_path / "x", c1=[line("run_left", at="01.000"), damage, line("run_joined", at="02.000")])
    book = Logbook(folder)
    assert [entry.event for entry in book.fresh(ended=True)] == ["run_left", "run_joined"]
    assert book.damaged == {"c1": 1}


def test_a_line_that_is_being_written_waits_for_its_end(tmp_path: Path) -> None:
    folder, whole = write(tmp_path / "x", c1=[]), line("run_left", at="01.000")
    book, file = Logbook(folder), folder / "c1.jsonl"
    file.write_text(whole[:20])
    assert (list(book.fresh()), book.damaged) == ([], {})
    file.write_text(whole + "\n")
    assert [entry.event for entry in book.fresh()] == ["run_left"]
    assert list(book.fresh()) == []


def test_a_line_without_a_time_stays_behind_the_one_before_it(tmp_path: Path) -> None:
    folder = write(tmp_path / "x", c1=[line("run_joined", at="09.000"), '{"event": "lost"}', line("run_left", at="09.500")])
    assert [entry.event for entry in lines.read(folder)] == ["run_joined", "lost", "run_left"]


@pytest.mark.parametrize(
    ("arguments", "events"),
    [
        (["--client", "c2"], ["frame_carried", "plugin_kept"]),
        (["--role", "owner"], ["update_received", "plugin_kept"]),
        (["--process", "c1", "--all"], ["training_progressed", "update_sealed"]),
        (["--round", "2"], ["plugin_kept"]),
        (["--event", "update_*"], ["update_sealed", "update_received"]),
        (["--event", "training_progressed"], ["training_progressed"]),
        (["--level", "warning"], ["frame_carried"]),
        (["--since", "8s"], ["update_received", "plugin_kept"]),
        (["--since", "+6s"], ["frame_carried", "update_received", "plugin_kept"]),
        (["--since", "09:41:12"], ["update_received", "plugin_kept"]),
        (["--since", "2026-11-22T10:41:12+01:00"], ["update_received", "plugin_kept"]),
        ([], ["update_sealed", "frame_carried", "update_received", "plugin_kept"]),
    ],
)
def test_a_choice_shows_these_lines_and_no_others(
    logs: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], events: list[str]
) -> None:
    assert [row.split()[2] for row in shown(capsys, str(logs), *arguments)] == events


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--client", "c9"], "c1"),
        (["--role", "ownr"], "owner"),
        (["--event", "update_seeled"], "update_sealed"),
        (["--round", "7"], "1, 2"),
        (["--since", "soon"], "5m"),
    ],
)
def test_a_mistyped_choice_is_told_what_there_is(
    logs: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], told: str
) -> None:
    assert cli.main(["logs", str(logs), *arguments]) == ConfigError.exit_code
    assert told in capsys.readouterr().err


def test_json_lines_are_whole_and_name_their_process(logs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [json.loads(row) for row in shown(capsys, str(logs), "--json")]
    assert [row["process"] for row in rows] == ["c1", "c1", "air", "owner", "owner"]
    assert rows[1]["digest"] == "ab" * 32


def test_what_is_left_out_is_told_beside_the_lines(logs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with (logs / "air.jsonl").open("a") as file:
        file.write("{half a li")
    assert cli.main(["logs", str(logs)]) == 0
    told = capsys.readouterr().err
    assert "1 lines about progress left out" in told
    assert "1 damaged lines left out (air 1)" in told


def test_an_event_is_explained_alone_and_in_place(logs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    alone = "\n".join(shown(capsys, "update_sealed", "--explain"))
    inline = "\n".join(shown(capsys, str(logs), "--event", "update_sealed", "--explain"))
    for text in (alone, inline):
        assert "sealed to the owner's key" in text
        assert "the owner names the same one" in text
    assert "bytes_sealed" in alone
    assert "bytes_sealed" not in inline


def test_an_event_is_explained_where_it_first_occurs_and_not_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    twice = [line("run_left", at=f"0{k}.000", role="client", reason="") for k in (1, 2)]
    rows = shown(capsys, str(write(tmp_path / "x", c1=twice)), "--explain")
    assert sum("said goodbye" in row for row in rows) == 1
    assert rows[-1].split() == ["09:41:02.000", "c1", "run_left"]


def test_what_a_process_printed_beside_its_log_is_pointed_to(logs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (logs / "owner.stderr").write_text("a library's last words\n")
    (logs / "air.stderr").write_text("")
    assert cli.main(["logs", str(logs)]) == 0
    told = capsys.readouterr().err
    assert "owner.stderr" in told
    assert "air.stderr" not in told


def test_words_of_other_parties_cannot_steer_a_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hostile = "\x1b[2J\x1b]0;owned\x07\u202eevil [bold]x[/bold]\nowner plugin_kept"
    folder = write(tmp_path / "x", c1=[line("run_left", at="01.000", reason=hostile, **{"\x1b[31m": 1})])
    (row,) = shown(capsys, str(folder))
    assert row.isprintable()
    assert "[bold]x[/bold]" in row


@pytest.mark.parametrize("command", [["logs"], ["runs", "logs"]])
def test_the_latest_run_is_read_by_either_name_of_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: list[str]
) -> None:
    for number in (1, 2):
        run = rundir.RunDirectory(tmp_path / f"demo-{number}")
        run.path.mkdir()
        run.update(started=f"2026-11-22T09:0{number}:00+00:00", status=rundir.FINISHED)
        write(run.path / "logs", c1=[line("run_left", at="01.000", reason=f"end of {number}")])
    assert cli.main([*command, "latest", "--follow", "--runs", str(tmp_path)]) == 0
    assert "end of 2" in capsys.readouterr().out


@pytest.mark.parametrize("where", ["nowhere-1", "/nonexistent"])
def test_a_run_that_is_not_there_is_said_so(tmp_path: Path, capsys: pytest.CaptureFixture[str], where: str) -> None:
    assert cli.main(["logs", where, "--runs", str(tmp_path)]) == ConfigError.exit_code
    assert str(tmp_path) in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "given", "text"),
    [
        ("bytes_sealed", 10_219_512, "10.2 MB"),
        ("bytes_total", 12, "12 B"),
        ("airtime_s", 3.4123, "3.41 s"),
        ("seconds", 0.0123, "12.3 ms"),
        ("deadline_s", 900.0, "15 min 0 s"),
        ("snr_main_db", 17.625, "17.6 dB"),
        ("power_w", 0.0018, "1.8 mW"),
        ("bandwidth_hz", 5.29e6, "5.29 MHz"),
        ("clock_flops", 2e12, "2 TFLOP/s"),
        ("adapter_share", 0.362, "36.2 %"),
        ("digest", "0123456789abcdef" * 4, "0123456789ab"),
        ("missing", [], "none"),
        ("kept", True, "yes"),
        ("loss", float("nan"), "nan nats per token"),
        ("energy_j", 999.9999, "1 kJ"),
    ],
)
def test_a_value_is_shown_with_its_unit(name: str, given: object, text: str) -> None:
    assert readable.value(name, given) == text


def test_a_line_is_about_the_clients_that_it_lists() -> None:
    entry = Line(
        moment=0.0, process="coordinator", index=1, record={"event": "round_closed", "missing": ["c2"], "accepted": ["c1"]}
    )
    assert [choosing.is_about(entry, name) for name in ("c1", "c2", "c3")] == [True, True, False]
