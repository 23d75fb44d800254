"""Do metrics follow from events and calls, within bounds that no peer can move, and are they served where they were asked for?"""

import asyncio
import logging
import re
import urllib.request
from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.core import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from hushtune_common.clock import SystemClock
from hushtune_common.config import TimingConfig
from hushtune_common.errors import AddressInUse, ConfigError, HushtuneError, MissingPackage, NotYours
from hushtune_common.events.catalogue import EVENTS
from hushtune_common.logs import EventHandler, log_event
from hushtune_common.messages import Role
from hushtune_common.metrics.board import Board
from hushtune_common.metrics.labels import METHODS, STATES, STATUSES, STEPS
from hushtune_common.metrics.metric import OTHER, Feed, Label, Metric
from hushtune_common.metrics.serving import Place
from hushtune_common.metrics.table import METRICS, READINGS
from hushtune_common.metrics.watch import Watch
from hushtune_common.observed import observed
from hushtune_common.outlook import Outlook
from hushtune_common.wire import endpoint
from hushtune_common.wire.calls import split
from hushtune_common.wire.v1 import air_pb2, blobs_pb2, coordinator_pb2, owner_pb2
from tests.kits import Kits

ROOT = Path(__file__).resolve().parents[2]
CLIENTS = ("c1", "c2")
LOGGER = logging.getLogger("hushtune.test_metrics")
ANYTHING = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=20), st.lists(st.text(max_size=3)))


@contextmanager
def counting(board: Board) -> Generator[None]:
    handler, root = EventHandler(board.told), logging.getLogger()
    before = root.level
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    try:
        yield
    finally:
        root.removeHandler(handler)
        root.setLevel(before)


def samples(registry: CollectorRegistry) -> dict[str, float]:
    """Return every time series of ours by its name and labels."""
    return {
        sample.name + str(sorted(sample.labels.items())): sample.value
        for family in registry.collect()
        for sample in family.samples
        if sample.name.startswith("hushtune_") and "_process_" not in sample.name
    }


def value(board: Board, name: str, **labels: str) -> float | None:
    return board.registry.get_sample_value(name, labels)


def series(board: Board) -> Counter[str]:
    """Return how many time series there are of each metric."""
    bare = (name.partition("[")[0] for name in samples(board.registry))
    return Counter(name if name in METRICS else re.sub(r"_(bucket|sum|count)$", "", name) for name in bare)


def test_an_event_is_counted_as_often_as_it_is_logged_and_moves_what_it_feeds() -> None:
    board = Board(role="owner", clients=CLIENTS)
    with counting(board):
        for bytes_sealed in (1000, 500):
            log_event(LOGGER, "update_received", client="c1", bytes_sealed=bytes_sealed)
        log_event(LOGGER, "update_refused", level=logging.WARNING, client="c2", reason="INVALID_ENVELOPE")
    assert value(board, "hushtune_events_total", event="update_received", level="info") == 2
    assert value(board, "hushtune_events_total", event="update_refused", level="warning") == 1
    assert value(board, "hushtune_received_bytes_total", client="c1") == 1500
    assert value(board, "hushtune_updates_judged_total", client="c2", outcome="refused") == 1


@pytest.mark.slow
def test_every_metric_of_an_event_is_moved_by_it() -> None:
    for role in ("client", "owner", "coordinator", "air", "eavesdropper"):
        board = Board(role=role, clients=CLIENTS)
        with counting(board):
            for name, event in EVENTS.items():
                only = [feed.only for metric in METRICS.values() for feed in metric.feeds if feed.event == name]
                for said in only or [{}] if role in event.by else []:
                    fields: dict[str, Any] = {**dict.fromkeys(event.fields, 3), **said}
                    log_event(LOGGER, name, **fields)
        wanted = {m.name for m in METRICS.values() if role in m.by and any(role in EVENTS[f.event].by for f in m.feeds)}
        assert sorted(wanted - {*series(board)}) == []


@pytest.mark.slow
@given(event=st.sampled_from(sorted(EVENTS)), values=st.lists(ANYTHING, min_size=30, max_size=30))
def test_nothing_that_an_event_says_raises_or_adds_a_series_beyond_the_bound(event: str, values: list[Any]) -> None:
    board = BOARDS.setdefault(event, {role: Board(role=role, clients=CLIENTS) for role in EVENTS[event].by if role != "referee"})
    record = logging.LogRecord("hushtune", logging.INFO, "", 0, event, None, None)
    for each in board.values():
        each.told(event, dict(zip(EVENTS[event].fields, values, strict=False)), record)
        assert all(count <= METRICS[name].series_max(len(CLIENTS)) for name, count in series(each).items())


BOARDS: dict[str, dict[str, Board]] = {}
"""Kept over examples: what is hostile is the sum of all that was ever said."""


@pytest.mark.slow
def test_a_peer_that_makes_up_a_thousand_names_fills_one_series() -> None:
    board = Board(role="owner", clients=CLIENTS)
    with counting(board):
        for number in range(1000):
            log_event(LOGGER, "update_refused", client=f"c{number + 10}", reason=f'x"}}\n{number}', attempt=number)
            log_event(LOGGER, "call_refused", reason=f"REASON_{number}", method=f"/x/{number}", caller=f"uri:{number}")
    judged = [name for name in samples(board.registry) if name.startswith("hushtune_updates_judged_total")]
    assert len(judged) == 1
    assert value(board, "hushtune_updates_judged_total", client=OTHER, outcome="refused") == 1000
    assert value(board, "hushtune_calls_refused_total", fault=OTHER) == 1000


def test_no_label_is_named_after_what_grows_and_no_value_of_one_comes_from_free_text() -> None:
    for name in ("run", "round", "round_id", "digest", "problem"):
        with pytest.raises(ValueError, match="never a label"):
            Label(name=name, allowed=frozenset())
    free = {feed.read[label.name] for m in METRICS.values() for feed in m.feeds for label in m.labels if label.name in feed.read}
    assert not free & {"problem", "digest", "run", "round_id", "path", "terms", "reasons", "why", "caller"}


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({"name": "hushtune_wait_ms"}, "base units"),
        ({"name": "hushtune_waits_total"}, "ends in _total"),
        ({"help": "no stop"}, "full stop"),
        ({"buckets": (1.0,)}, "buckets"),
        ({"feeds": (Feed(event="frame_carried"),)}, "nobody that has it logs frame_carried"),
        ({"labels": (Label(name="part", allowed=frozenset()),), "feeds": (Feed(event="owner_died"),)}, "says nothing of label"),
    ],
)
def test_an_entry_against_the_rules_is_refused(changed: dict[str, Any], problem: str) -> None:
    entry: dict[str, Any] = {"name": "hushtune_wait_seconds", "kind": "gauge", "help": "A wait.", "by": ("coordinator",)}
    with pytest.raises(ValueError, match=problem):
        Metric(**(entry | changed))


def test_a_feed_of_an_event_or_a_field_that_there_is_not_is_refused() -> None:
    with pytest.raises(ValueError, match="no such event"):
        Feed(event="frame_karried")
    with pytest.raises(ValueError, match="has no field airtime"):
        Feed(event="frame_carried", value="airtime")


def test_the_gate_is_open_or_closed_as_the_last_solution_says() -> None:
    board = Board(role="coordinator", clients=CLIENTS)
    with counting(board):
        for decision in ("granted", "excluded", "granted", "deferred"):
            log_event(LOGGER, "gate_decided", client="c1", decision=decision)
            assert value(board, "hushtune_gate_open", client="c1") == (decision == "granted")


def test_what_can_be_read_is_read_and_what_cannot_is_left_out() -> None:
    board, held = Board(role="coordinator", clients=CLIENTS), {"alive": 2.0, "dead": 1.0, "made-up": 7.0}
    board.watch.offer("hushtune_clients", lambda: held)
    board.watch.offer("hushtune_streams", lambda: 1 / 0)
    board.watch.offer_state("hushtune_round_state", lambda: "solving")
    assert value(board, "hushtune_clients", health="alive") == 2
    assert value(board, "hushtune_clients", health=OTHER) == 7
    assert value(board, "hushtune_streams") is None
    assert sum(value(board, "hushtune_round_state", state=state) or 0.0 for state in STATES) == 1.0
    assert value(board, "hushtune_round_state", state="solving") == 1.0
    with pytest.raises(LookupError, match="no reading"):
        board.watch.offer("hushtune_made_up", lambda: 1.0)


@pytest.mark.slow
def test_the_vocabularies_are_those_of_the_code() -> None:
    from typing import get_args

    from hushtune_client import phases as client
    from hushtune_server.coordinator import phases

    served = {
        service.name: {method.name for method in service.methods}
        for module in (air_pb2, blobs_pb2, coordinator_pb2, owner_pb2)
        for service in module.DESCRIPTOR.services_by_name.values()
    }
    assert served == {service: {*methods} for service, methods in METHODS.items() if service != "Health"}
    assert {*STATES} == {kind.__name__.lower() for kind in get_args(phases.Phase)}
    assert {*STEPS} == {kind.__name__.lower() for kind in get_args(client.State)}
    assert {*STATUSES} == {code.name for code in grpc.StatusCode}


@pytest.mark.parametrize("path", ["", "/", "//", "/a", "hushtune.v1.Air/Sound/x", "/hushtune.v1.Air/" + "S" * 9000, "/é/ü"])
def test_a_path_that_is_none_of_ours_is_other(path: str) -> None:
    assert split(path) == (OTHER, OTHER)
    assert split("/hushtune.v1.Air/Sound") == ("Air", "Sound")


@pytest.mark.slow
def test_calls_are_counted_on_both_sides_by_status_and_unknown_ones_in_one_series(tmp_path: Path) -> None:
    kits, clock, timing = Kits(tmp_path), SystemClock(), TimingConfig(connect_s=2.0, idle_s=5.0)
    answering, asking = Board(role="air", clients=CLIENTS), Board(role="client", clients=CLIENTS)

    async def refused(request: bytes, context: Any) -> bytes:
        raise NotYours("not for you")

    def register(server: grpc.aio.Server) -> None:
        handlers = {"Sound": grpc.unary_unary_rpc_method_handler(refused)}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("hushtune.v1.Air", handlers),))

    async def go() -> None:
        kit = kits.kit(Role.AIR)
        server = await endpoint.serve(
            [register], names=["x"], listen="127.0.0.1:0", kit=kit, clock=clock, timing=timing, watched=answering.watch
        )
        mine = kits.kit(Role.CLIENT, "c1")
        channel = endpoint.connect(server.address, role=Role.AIR, kit=mine, timing=timing, clock=clock, calls=asking)
        await endpoint.ready(channel, address=server.address, role=Role.AIR, timing=timing)
        for path in ("/hushtune.v1.Air/Sound", *(f"/hushtune.v1.Air/{n}" for n in range(50)), "/a.b/c"):
            with pytest.raises(grpc.aio.AioRpcError):
                await channel.unary_unary(path)(b"", timeout=5.0)
        await channel.close()
        await server.stop(0.0)

    asyncio.run(go())
    for board, side in ((answering, "server"), (asking, "client")):
        told = {"side": side, "service": "Air", "method": "Sound", "status": "PERMISSION_DENIED"}
        assert value(board, "hushtune_grpc_calls_total", **told) == 1
        unknown = {"side": side, "service": OTHER, "method": OTHER, "status": "UNIMPLEMENTED"}
        assert value(board, "hushtune_grpc_calls_total", **unknown) == 51
        assert value(board, "hushtune_grpc_calls_open", side=side, service="Air", method="Sound") == 0
        assert value(board, "hushtune_grpc_call_seconds_count", side=side, service="Air", method="Sound") == 1
        assert value(board, "hushtune_grpc_calls_total", side=side, service="Health", method="Check", status="OK") == 1
    remaining_s = value(answering, "hushtune_certificate_remaining_seconds")
    assert remaining_s is not None
    assert 89 * 86_400 < remaining_s <= 90 * 86_400


def fetched(address: str, path: str = "/metrics") -> str:
    with urllib.request.urlopen(f"http://{address}{path}", timeout=5.0) as answer:
        return answer.read().decode()


@pytest.mark.slow
def test_a_process_serves_its_metrics_on_this_machine_and_logs_where(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with (
        caplog.at_level(logging.INFO),
        observed(Outlook(metrics="0"), role="air", clients=CLIENTS, state_dir=tmp_path) as watch,
    ):
        watch.offer_journal(tmp_path / "journal.sqlite")
        (tmp_path / "journal.sqlite").write_bytes(bytes(123))
        address: str = next(r.__dict__["hushtune_fields"]["address"] for r in caplog.records if r.message == "metrics_served")
        assert address.startswith("127.0.0.1:")
        families = {f.name: f for f in text_string_to_metric_families(fetched(address))}
    assert families["hushtune_journal_bytes"].samples[0].value == 123
    assert families["hushtune_disk_free_bytes"].samples[0].value > 0
    assert families["process_resident_memory_bytes"].samples[0].value > 1e6
    named = {m.name.removesuffix("_total"): m for m in METRICS.values()}
    for name, family in families.items():
        assert name not in named or family.documentation == named[name].help
    with pytest.raises(OSError, match="refused"):
        fetched(address)


def test_where_nobody_asked_nothing_is_served_and_nothing_is_counted(tmp_path: Path) -> None:
    before = list(logging.getLogger().handlers)
    with observed(Outlook(), role="air", clients=CLIENTS, state_dir=tmp_path) as watch:
        assert logging.getLogger().handlers == before
        assert watch.calls is None


@pytest.mark.parametrize(
    ("text", "place"),
    [("9100", ("127.0.0.1", 9100)), (":9100", ("127.0.0.1", 9100)), ("0.0.0.0:0", ("0.0.0.0", 0)), ("[::1]:9", ("::1", 9))],
)
def test_an_address_without_a_host_is_of_this_machine(text: str, place: tuple[str, int]) -> None:
    found = Place.parse(text)
    assert (found.host, found.port) == place


@pytest.mark.parametrize("text", ["", "host", "host:", "1:2:3", "host:99999", "http://a:1", "a b:1", "-1"])
def test_an_address_that_is_none_names_the_option_and_examples(text: str) -> None:
    with pytest.raises(ConfigError, match=r"--metrics: use PORT or HOST:PORT, such as 9100"):
        Place.parse(text)


@pytest.mark.slow
def test_a_taken_port_and_a_foreign_address_say_what_to_do(tmp_path: Path) -> None:
    with observed(Outlook(metrics="0"), role="air", clients=(), state_dir=tmp_path) as watch:
        assert watch.calls is not None
    with pytest.raises(ConfigError, match="use an address of this machine"):
        _open(Outlook(metrics="192.0.2.1:0"), tmp_path)
    with pytest.raises(ConfigError, match="no host that can be found"):
        _open(Outlook(metrics="no-such-host.invalid:0"), tmp_path)


@pytest.mark.slow
def test_a_taken_port_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO), observed(Outlook(metrics="0"), role="air", clients=(), state_dir=tmp_path):
        address = next(r.__dict__["hushtune_fields"]["address"] for r in caplog.records if r.message == "metrics_served")
        with pytest.raises(AddressInUse, match="choose another port for --metrics"):
            _open(Outlook(metrics=address), tmp_path)


def _open(outlook: Outlook, state_dir: Path) -> None:
    with observed(outlook, role="air", clients=(), state_dir=state_dir):
        pass


@pytest.mark.parametrize(("role", "remedy"), [("client", "'hushtune-client[metrics]'"), ("air", "'hushtune-server[metrics]'")])
def test_a_missing_library_names_the_extra(role: str, remedy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    for name in [n for n in sys.modules if n.startswith(("prometheus_client", "hushtune_common.metrics.board"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delitem(sys.modules, "hushtune_common.metrics.serving", raising=False)
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with (
        pytest.raises(MissingPackage, match=re.escape(remedy)),
        observed(Outlook(metrics="0"), role=role, clients=(), state_dir=tmp_path),
    ):
        pass


def test_a_watch_that_nobody_looks_at_reads_nothing() -> None:
    def never() -> float:
        raise AssertionError("nobody asked")

    watch = Watch()
    for metric in READINGS:
        watch.offer(metric.name, never)


def test_faults_are_labels_by_their_stable_names() -> None:
    def all_of(kind: type[HushtuneError]) -> set[str]:
        return {kind.reason}.union(*(all_of(below) for below in kind.__subclasses__()))

    (fault,) = METRICS["hushtune_calls_refused_total"].labels
    assert {"NOT_YOURS", "STALE_ROUND"} <= fault.allowed <= all_of(HushtuneError)
