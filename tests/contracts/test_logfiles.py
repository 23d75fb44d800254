"""Is what a process logs kept whole, bounded, and read once, while its file is set aside for a new one?"""

import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hushtune_common import logs
from hushtune_common.clock import SystemClock
from hushtune_common.errors import ConfigError
from hushtune_common.logfiles import LogFile, predecessor
from hushtune_server import cli
from hushtune_server.testbed.dashboard.files import Files
from hushtune_server.testbed.dashboard.watching import Book
from hushtune_server.testbed.logbook import lines
from hushtune_server.testbed.logbook.lines import Logbook

SMALL = 400
Writer = Callable[[Path], logging.Logger]


@pytest.fixture(autouse=True)
def root_logger() -> Iterator[None]:
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    yield
    for handler in set(root.handlers) - set(before):
        handler.close()
    root.handlers[:] = before
    root.setLevel(level)


@pytest.fixture
def writer() -> Iterator[Writer]:
    """Makes loggers that write to files of their own."""
    made: list[LogFile] = []

    def write_to(path: Path) -> logging.Logger:
        made.append(LogFile(path, bytes_max=SMALL))
        made[-1].setFormatter(logs.JsonFormatter(clock=SystemClock(), bound={"role": "client"}))
        logger = logging.Logger("hushtune.here")
        logger.addHandler(made[-1])
        return logger

    yield write_to
    for handler in made:
        handler.close()


def seen(book: Logbook) -> list[str]:
    return [line.event for line in book.fresh()]


def test_a_reader_that_follows_gets_every_line_once_although_files_are_set_aside(writer: Writer, tmp_path: Path) -> None:
    logger, book = writer(tmp_path / "c1.jsonl"), Logbook(tmp_path)
    told: list[str] = []
    for number in range(40):
        logger.info(f"happened_{number}")
        if number % 3 == 0:
            told += seen(book)
    assert predecessor(tmp_path / "c1.jsonl").is_file()
    assert told + seen(book) == [f"happened_{number}" for number in range(40)]
    assert book.damaged == {}


def test_a_late_reader_begins_with_what_was_set_aside(writer: Writer, tmp_path: Path) -> None:
    logger = writer(tmp_path / "c1.jsonl")
    for number in range(40):
        logger.info(f"happened_{number}")
    told = seen(Logbook(tmp_path))
    assert told == [f"happened_{number}" for number in range(40 - len(told), 40)]
    assert len(told) > len((tmp_path / "c1.jsonl").read_text().splitlines())


def test_a_log_never_takes_more_than_two_files(writer: Writer, tmp_path: Path) -> None:
    logger = writer(tmp_path / "c1.jsonl")
    for number in range(200):
        logger.info(f"happened_{number}")
    files = [*tmp_path.iterdir()]
    assert len(files) == 2
    assert sum(file.stat().st_size for file in files) <= 2 * SMALL


def test_a_page_that_follows_keeps_what_it_knows_when_a_file_is_set_aside(writer: Writer, tmp_path: Path) -> None:
    logger = writer(tmp_path / "c1.jsonl")
    book = Book(folder=tmp_path, files=Files(folder=tmp_path, run=None))
    for number in range(40):
        logger.info(f"happened_{number}")
        assert book.look(ended=False)
    assert book.live["seen"]["lines"] == 40


def test_a_page_reads_a_file_anew_that_somebody_replaced_by_a_shorter_one(tmp_path: Path) -> None:
    file, line = tmp_path / "c1.jsonl", '{"event": "x"}\n'
    book = Book(folder=tmp_path, files=Files(folder=tmp_path, run=None))
    for count in (5, 2):
        (tmp_path / "fresh").write_text(line * count)
        (tmp_path / "fresh").replace(file)
        book.look(ended=False)
    assert book.live["seen"]["lines"] == 2


def test_a_line_that_a_crash_cut_short_does_not_spoil_the_first_of_the_next_life(writer: Writer, tmp_path: Path) -> None:
    (tmp_path / "c1.jsonl").write_text('{"event": "cut_sh')
    writer(tmp_path / "c1.jsonl").info("run_joined")
    book = Logbook(tmp_path)
    assert (seen(book), book.damaged) == (["run_joined"], {"c1": 1})


def test_everything_is_kept_in_the_folder_while_the_console_shows_the_bad_only(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    logs.configure(clock=SystemClock(), level="warning", folder=tmp_path, role="client", name="c1")
    logging.getLogger("hushtune.here").info("run_joined")
    logging.getLogger("hushtune.here").warning("run_left")
    console = [json.loads(row)["event"] for row in capsys.readouterr().out.splitlines()]
    assert (console, [line.event for line in lines.read(tmp_path)]) == (["run_left"], ["run_joined", "run_left"])


def test_a_folder_that_cannot_be_written_is_told_with_its_option(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"--log-folder.*give a folder"):
        LogFile(tmp_path / "file" / "c1.jsonl")


def test_a_full_disk_costs_lines_and_is_told_once(writer: Writer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    logger = writer(tmp_path / "c1.jsonl")
    (handler,) = logger.handlers
    assert isinstance(handler, LogFile)
    handler.close()
    handler.stream = Path("/dev/full").open("w", buffering=1)  # noqa: SIM115 - the handler closes it
    logger.info("run_joined")
    logger.info("run_left")
    assert capsys.readouterr().err.count("cannot be written") == 1


def test_logs_that_were_gathered_in_a_folder_each_are_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder, name in (("c1", "c1"), ("owner", "owner"), ("other", "owner")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / f"{name}.jsonl").write_text('{"event": "run_joined"}\n')
    assert {line.process for line in lines.read(tmp_path)} == {"c1", "owner", "owner-owner"}
    assert cli.main(["logs", str(tmp_path), "--role", "c1"]) == 0
    assert capsys.readouterr().out.count("run_joined") == 1


def test_headlines_tell_the_run_in_words_and_every_trouble(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    granted = {"event": "gate_decided", "role": "coordinator", "client": "c1", "decision": "granted"}
    trouble = {"event": "call_refused", "role": "air", "level": "warning", "problem": "a part was damaged"}
    steps = {"event": "training_progressed", "role": "client", "step": 1, "steps": 9}
    rows = [granted, trouble, steps, {"event": "phase_changed", "role": "owner", "phase": "loading the model"}]
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert cli.main(["logs", str(tmp_path), "--headlines"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert len(shown) == 3
    assert "secrecy gate for c1: GRANTED" in shown[0]
    assert "a part was damaged" in shown[1]
    assert "loading the model" in shown[2]


def test_headlines_and_json_lines_exclude_each_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["logs", str(tmp_path), "--headlines", "--json"]) == ConfigError.exit_code
    assert "--headlines" in capsys.readouterr().err
