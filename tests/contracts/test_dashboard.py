"""The dashboard's state is what the logs add up to, however they are read; its server tells all of it, at once."""

import asyncio
import json
import random
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import reduce
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path
from threading import Thread
from time import monotonic
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hushtune_common.clock import SystemClock
from hushtune_common.errors import AddressInUse, ConfigError
from hushtune_common.events.catalogue import EVENTS
from hushtune_server.testbed.dashboard import about_clients, about_runs, commands, serving
from hushtune_server.testbed.dashboard.fold import HISTORY_MAX, ROUNDS_MAX, fold
from hushtune_server.testbed.dashboard.news import NEWS_MAX
from hushtune_server.testbed.dashboard.patches import difference, merged
from hushtune_server.testbed.dashboard.watching import Book, Watch
from hushtune_server.testbed.logbook.lines import Line, read
from tests.recorded import SCENARIO, append, tale

HOSTILE = """<img src=x onerror=alert(1)>"'</script>__proto__"""
TREES = st.recursive(
    st.integers() | st.text() | st.booleans() | st.lists(st.integers(), max_size=3),
    lambda below: st.dictionaries(st.text(max_size=2), below, max_size=4),
    max_leaves=12,
).filter(lambda tree: isinstance(tree, dict))


def folded(lines: list[Line]) -> Any:
    return reduce(fold, lines, {})


@pytest.fixture
def logs(tmp_path: Path) -> Path:
    folder = tmp_path / "gathered"
    folder.mkdir()
    append(folder, tale())
    return folder


@given(TREES, TREES)
def test_a_patch_makes_of_one_state_the_other(old: Any, new: Any) -> None:
    assert merged(old, difference(old, new)) == new


def test_equal_states_differ_by_nothing_and_a_number_is_no_truth() -> None:
    assert difference({"a": {"b": 1}}, {"a": {"b": 1}}) == {}
    assert difference({"a": 1}, {"a": True}) == {"a": True}


def test_what_is_followed_live_equals_what_is_read_when_all_is_over(tmp_path: Path) -> None:
    tmp_path.joinpath("logs").mkdir()
    book = Book(folder=tmp_path / "logs", files=None)  # type: ignore[arg-type]  # not asked for here
    for entry in tale():
        append(book.folder, [entry])
        book.look(ended=False)
    assert book.live == folded(read(book.folder))


@pytest.mark.parametrize("seed", range(5))
def test_processes_may_be_read_in_any_order(logs: Path, seed: int) -> None:
    lines = read(logs)
    by_process: dict[str, list[Line]] = {}
    for line in lines:
        by_process.setdefault(line.process, []).append(line)
    drawn, shuffled = random.Random(seed), list[Line]()
    while any(by_process.values()):
        shuffled.append(by_process[drawn.choice([p for p, left in by_process.items() if left])].pop(0))
    assert folded(shuffled) == folded(lines)


def test_a_round_says_of_a_client_what_every_role_says_of_it(logs: Path) -> None:
    c1 = folded(read(logs))["rounds"]["1"]["clients"]["c1"]
    assert c1["gate"]["decision"] == "granted"
    assert sorted(c1["curve"], key=int) == ["1", "2", "3", "4", "5", "6"]
    assert [c1["heard"][f"payload.{n}"]["blocks_sound"] for n in (1, 2)] == [2645, 4]
    assert c1["sealed"]["digest"] == c1["received"]["digest"] == "01" * 32
    assert c1["attacked"]["blocks_heard"] == 0
    assert c1["judged"] == {
        "accepted": True,
        "perplexity_public": 91.0,
        "perplexity_public_before": 93.5,
        "kept": True,
        "reason": "",
    }


def test_every_event_that_the_fold_knows_is_one_that_its_role_may_log() -> None:
    for table in (about_clients.CHANGES, about_runs.CHANGES, about_runs.ROUND_CHANGES, about_runs.HISTORY_CHANGES):
        for role, changes in table.items():
            assert all(role in EVENTS[event].by for event in changes), role


@pytest.mark.parametrize(
    "text",
    ["", "nonsense\n", "[1, 2]\n", '{"event": ["x"]}\n', '{"event": "gate_decided", "client": 7, "role": "coordinator"}\n',
     '{"event": "training_progressed", "role": "client", "round_id": 1e400, "step": -1, "steps": NaN, "loss": "low"}\n',
     '{"event": "setting_evaluated", "role": "referee", "setting": "\\ud800", "perplexity": Infinity}\n',
     '{"event": "round_closed", "role": "coordinator", "round_id": 1, "accepted": {"a": 1}}\n',
     '{"event": "update_accepted", "role": "owner", "round_id": ' + "9" * 400 + ', "client": "c1"}\n',
     '{"event": "transfer_progressed", "role": "owner", "round_id": 1, "client": "c1", "kind": "reception", "bytes_do'],
)  # fmt: skip
def test_broken_lines_change_nothing_that_was_said(tmp_path: Path, logs: Path, text: str) -> None:
    before = folded(read(logs))
    (logs / "zz.jsonl").write_text(text, encoding="utf-8")
    after = folded(read(logs))
    json.dumps(after, allow_nan=False)
    assert after["rounds"]["1"]["clients"]["c1"] == before["rounds"]["1"]["clients"]["c1"]
    assert after["settings"] == before["settings"]


@pytest.mark.slow
def test_the_state_stays_small_however_long_the_run_is() -> None:
    def line(i: int) -> Line:
        record = {
            "event": "training_progressed",
            "role": "client",
            "round_id": 1 + i // 1000,
            "step": i % 1000,
            "steps": 1000,
            "loss": 1.0,
        }
        return Line(moment=float(i), process="c1", index=i, record=record)

    def warning(i: int) -> Line:
        return Line(moment=float(i), process="c1", index=i, record={"event": "call_refused", "level": "warning"})

    state = folded([*map(line, range(20_000)), *map(warning, range(500))])
    assert sorted(map(int, state["rounds"])) == list(range(9, 21))
    assert max(len(r["clients"]["c1"]["curve"]) for r in state["rounds"].values()) <= about_clients.CURVE_POINTS_MAX + 2
    assert len(state["news"]) == NEWS_MAX


def closing(round_id: int, *, moment: float, missing: tuple[str, ...] = ()) -> list[Line]:
    """What coordinator and owner say at the end of a round."""
    told = {"role": "coordinator", "round_id": round_id, "accepted": ["c1"], "missing": list(missing)}
    why = {name: "died: silent for 12.0 s" for name in missing}
    mean = {
        "role": "owner",
        "round_id": round_id,
        "client": "aggregate",
        "perplexity_public": 90.0,
        "perplexity_public_before": 93.0,
    }
    said: list[tuple[str, dict[str, Any]]] = [
        ("coordinator", {"event": "round_opened", **told}),
        ("coordinator", {"event": "round_closed", "reasons": why, **told}),
        ("owner", {"event": "plugin_evaluated", **mean}),
        ("owner", {"event": "plugin_kept", "role": "owner", "round_id": round_id}),
    ]
    return [Line(moment=moment, process=process, index=round_id, record=record) for process, record in said]


def test_every_round_leaves_a_line_that_stays_when_the_rest_of_it_is_forgotten() -> None:
    state = folded([line for n in range(1, HISTORY_MAX + 3) for line in closing(n, moment=float(n))])
    assert len(state["rounds"]) == ROUNDS_MAX
    assert sorted(map(int, state["history"])) == list(range(3, HISTORY_MAX + 3))
    assert state["history"]["3"] == {
        "opened": 3.0, "closed": 3.0, "accepted": 1, "missing": [], "before": 93.0, "after": 90.0, "kept": True,
    }  # fmt: skip


def test_a_round_that_closed_by_quorum_names_who_is_missing_and_why() -> None:
    died = {"event": "client_died", "role": "coordinator", "client": "c2", "silent_s": 12.0}
    opened, *rest = closing(1, moment=1.0, missing=("c2",))
    state = folded([opened, Line(moment=2.0, process="coordinator", index=9, record=died), *rest])
    assert state["rounds"]["1"]["clients"]["c2"]["died"] == {"silent_s": 12.0}
    assert (state["rounds"]["1"]["missing"], state["rounds"]["1"]["reasons"]) == (["c2"], {"c2": "died: silent for 12.0 s"})
    assert state["history"]["1"]["missing"] == ["c2"]


def test_a_log_that_became_shorter_is_read_anew(logs: Path) -> None:
    book = Book(folder=logs, files=None)  # type: ignore[arg-type]  # not asked for here
    book.look(ended=False)
    (logs / "referee.jsonl").write_text("", encoding="utf-8")
    book.look(ended=False)
    assert "settings" not in book.live
    assert book.live == folded(read(logs))


def test_gathered_logs_have_a_map_when_the_scenario_is_named(logs: Path, tmp_path: Path) -> None:
    scenario = tmp_path / "elsewhere.toml"
    scenario.write_text(SCENARIO, encoding="utf-8")
    watch = serving.watch_of(tmp_path, str(logs), scenario=scenario, clock=SystemClock())
    state: Any = watch.look()
    assert state["places"]["clients"]["c1"] == {"x_m": -60.0, "y_m": 40.0}
    assert state["run"] == {"id": "gathered", "status": "gathered"}


@pytest.mark.parametrize("text", ["", "here", "1.2.3.4:", "localhost:99999", ":80"])
def test_an_address_that_is_none_is_refused_by_name(text: str) -> None:
    with pytest.raises(ConfigError, match="--listen"):
        serving.address_of(text)


def test_only_loopback_checks_names_and_needs_no_warning() -> None:
    assert serving.address_of("8123") == serving.address_of("127.0.0.1:8123")
    assert [serving.address_of(a).is_loopback for a in ("127.0.0.1:1", "[::1]:1", "localhost:1", "0.0.0.0:1", "10.0.0.7:1")] == [
        True, True, True, False, False,
    ]  # fmt: skip


def test_behind_a_published_port_only_the_given_names_are_served() -> None:
    address = serving.address_of("0.0.0.0:8080", names="localhost, 127.0.0.1")
    assert address.hosts == {"localhost", "127.0.0.1"}
    assert serving.address_of("0.0.0.0:8080").hosts is None


def test_a_taken_address_is_told_as_such() -> None:
    with serving.bound(serving.address_of("127.0.0.1:0")) as first:
        port = first.getsockname()[1]
        with pytest.raises(AddressInUse, match=f"{port} is taken.*port 0"):
            serving.bound(serving.address_of(str(port)))


# The server ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Server:
    """A dashboard on a free port; closes what was asked of it when it ends."""

    port: int
    open: ExitStack

    def asked(self, path: str, *, method: str = "GET", host: str | None = None) -> HTTPResponse:
        connection = HTTPConnection("127.0.0.1", self.port, timeout=5)
        self.open.callback(connection.close)
        connection.request(method, path, headers={} if host is None else {"Host": host})
        answer = connection.getresponse()
        self.open.callback(answer.close)
        return answer


@contextmanager
def served(watch: Watch) -> Generator[Server]:
    address = serving.address_of("127.0.0.1:0")
    with serving.bound(address) as listening:
        web = serving.server(watch, address, own_signals=False)
        thread = Thread(target=lambda: asyncio.run(web.serve(sockets=[listening])), daemon=True)
        thread.start()
        try:
            with ExitStack() as stack:
                yield Server(int(listening.getsockname()[1]), stack)
        finally:
            web.should_exit = True
            thread.join(timeout=10)
            assert not thread.is_alive()


def heard(stream: HTTPResponse) -> tuple[str, Any]:
    """Return the next event of a stream and what it says."""
    kind = ""
    while True:
        line = stream.readline().decode()
        assert line, "the stream ended"
        if line.startswith("event: "):
            kind = line[7:].strip()
        if line.startswith("data: "):
            return kind, json.loads(line[6:])


@pytest.fixture
def watch(logs: Path, tmp_path: Path) -> Watch:
    return serving.watch_of(tmp_path, str(logs), scenario=None, clock=SystemClock())


def until_told(stream: HTTPResponse, state: Any, told: str) -> Any:
    while told not in json.dumps(state):
        kind, said = heard(stream)
        state = said if kind == "state" else merged(state, said)
    return state


@pytest.mark.slow
def test_an_event_is_on_the_page_of_every_viewer_within_a_second(watch: Watch, logs: Path) -> None:
    with served(watch) as server:
        viewers = [server.asked("/events") for _ in range(3)]
        states = [until_told(viewer, {}, "plug_in") for viewer in viewers]
        begun = monotonic()
        append(logs, [(40.0, "owner", {"event": "run_stopped", "round_id": 1, "reason": "told at once"})])
        after = [until_told(viewer, state, "told at once") for viewer, state in zip(viewers, states, strict=True)]
        assert monotonic() - begun < 1.0
        late = until_told(server.asked("/events"), {}, "plug_in")
        assert after[0]["live"] == after[2]["live"] == late["live"] == folded(read(logs))


@pytest.mark.slow
def test_every_answer_forbids_what_is_not_of_the_page_itself(watch: Watch) -> None:
    with served(watch) as server:
        for path in ("/", "/main.js", "/style.css", "/state", "/nowhere", "/../files.py"):
            policy = server.asked(path).getheader("content-security-policy") or ""
            assert "default-src 'none'" in policy
            assert "script-src 'self';" in policy
            assert "unsafe" not in policy
        assert server.asked("/nowhere").status == 404


@pytest.mark.slow
def test_a_foreign_name_for_this_machine_is_not_served_and_nothing_can_be_posted(watch: Watch) -> None:
    with served(watch) as server:
        assert server.asked("/state", host="evil.example").status == 421
        assert server.asked("/state", host=f"localhost:{server.port}").status == 200
        assert server.asked("/state", method="POST").status == 405


@pytest.mark.slow
def test_a_page_beside_a_run_turns_to_that_run_and_not_to_an_older_one(tmp_path: Path) -> None:
    def begun(name: str) -> None:
        (tmp_path / name / "logs").mkdir(parents=True)
        (tmp_path / name / "run.json").write_text('{"status": "finished", "started": "2026"}', encoding="utf-8")
        append(tmp_path / name / "logs", tale())

    def looked(port: int) -> str:
        begun("told-2")
        with ExitStack() as stack:
            return until_told(Server(port, stack).asked("/events"), {}, "told-2")["run"]["id"]

    begun("told-1")
    told: list[str] = []
    work = lambda: asyncio.to_thread(looked, int(told[0].rstrip("/").rpartition(":")[2]))  # noqa: E731 - said where it is used
    assert asyncio.run(commands.beside(work, runs=tmp_path, listen="127.0.0.1:0", tell=told.append)) == "told-2"


def test_a_folder_without_logs_is_waited_for_and_one_that_is_not_there_is_refused(tmp_path: Path) -> None:
    watch = serving.watch_of(tmp_path, str(tmp_path), scenario=None, clock=SystemClock())
    assert watch.look() == {"run": {"status": "waiting"}}
    append(tmp_path, tale())
    state: Any = next(state for state in (watch.look() for _ in range(5)) if "live" in state)
    assert state["live"]["settings"]["plug_in"] == 216.2
    with pytest.raises(ConfigError, match="no runs"):
        serving.watch_of(tmp_path, "nosuch", scenario=None, clock=SystemClock())


@pytest.mark.slow
def test_a_run_that_has_not_begun_is_waited_for(tmp_path: Path) -> None:
    watch = serving.watch_of(tmp_path, "latest", scenario=None, clock=SystemClock())
    with served(watch) as server:
        stream = server.asked("/events")
        assert heard(stream) == ("state", {"run": {"status": "waiting"}})
        (tmp_path / "told-1" / "logs").mkdir(parents=True)
        (tmp_path / "told-1" / "run.json").write_text('{"id": "told-1", "status": "running"}', encoding="utf-8")
        append(tmp_path / "told-1" / "logs", tale([HOSTILE, "c2", "c3"]), files={HOSTILE: "c1"})
        state = until_told(stream, {}, "setting_evaluated")
        assert HOSTILE in state["live"]["rounds"]["1"]["clients"]


def test_the_served_page_names_no_other_place_and_never_makes_markup_of_text() -> None:
    static = Path(serving.__file__).parent / "static"
    for file in static.iterdir():
        text = file.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
        assert "//www" not in text
        assert "http" not in text
        assert not any(
            word in text for word in ("innerHTML", "outerHTML", "insertAdjacent", "document.write", "eval(", "style=")
        ), file
