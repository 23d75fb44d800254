"""Do all processes tell one trace of an adapter, with the right parents, and does a collector that is away cost spans only?"""

import logging
import time
from collections.abc import Generator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest, ExportTraceServiceResponse
from opentelemetry.proto.trace.v1.trace_pb2 import Span as Sent
from opentelemetry.proto.trace.v1.trace_pb2 import Status

from hushtune_common.errors import ConfigError, MissingPackage
from hushtune_common.logs import log_event
from hushtune_common.observed import observed
from hushtune_common.outlook import Outlook
from hushtune_common.traces.export import endpoint
from hushtune_common.traces.span import ADAPTER, Rule, Span, span_id, trace_id
from hushtune_common.traces.table import RULES
from hushtune_common.traces.tracer import BEGINNINGS_MAX, Tracer

CLIENTS = ("c1", "c2")
LOGGER = logging.getLogger("hushtune.test_traces")
KEY: dict[str, Any] = {"run": "r", "client": "c1", "round_id": 1, "attempt": 1, "part": "payload"}
Collected = list[tuple[str, Sent]]


def record(created: float) -> logging.LogRecord:
    made = logging.LogRecord("hushtune", logging.INFO, "", 0, "", None, None)
    made.created = created
    return made


def told(role: str, *events: tuple[float, str, dict[str, Any]]) -> list[Span]:
    done: list[Span] = []
    tracer = Tracer(role=role, name="c1" if role == "client" else role, clients=CLIENTS, done=done.append)
    for at, event, fields in events:
        tracer.told(event, fields, record(at))
    return done


def of_all_processes() -> list[Span]:
    mine: dict[str, Any] = {"round_id": 1}
    sent = {**mine, "attempt": 1, "part": "payload"}
    return [
        *told(
            "client",
            (0.0, "run_joined", {"run": "r"}),
            (1.0, "assignment_received", mine),
            (5.0, "training_finished", {**mine, "train_s": 3.0}),
            (6.0, "update_encoded", mine),
            (7.0, "update_sealed", mine),
            (8.0, "frame_encoded", {**sent, "seconds": 0.5}),
            (9.0, "transfer_finished", {"kind": "frame", "seconds": 0.7}),
            (12.0, "frame_transmitted", sent),
            (13.0, "round_completed", mine),
            (15.0, "verdict_received", {**mine, "accepted": True}),
        ),
        *told("coordinator", (0.0, "scenario_resolved", {"run": "r"}), (1.0, "gate_decided", {"client": "c1", **mine})),
        *told("air", (9.5, "frame_carried", KEY), (11.0, "reception_streamed", {**KEY, "listener": "main", "seconds": 1.0})),
        *told(
            "owner",
            (0.0, "run_joined", {"run": "r"}),
            (10.9, "transfer_finished", {**KEY, "kind": "reception", "seconds": 1.2}),
            (11.0, "reception_decoded", {**KEY, "seconds": 0.9}),
            (11.1, "update_received", KEY),
            (14.0, "update_accepted", KEY),
            (14.0, "plugin_evaluated", {"client": "c1", **mine, "kept": True}),
            (14.5, "plugin_evaluated", {"client": "aggregate", **mine}),
        ),
        *told(
            "eavesdropper",
            (11.2, "transfer_finished", {**KEY, "kind": "reception", "seconds": 1.5}),
            (20.0, "reception_attacked", KEY),
        ),
    ]


def test_every_span_of_every_process_is_of_one_trace_and_hangs_on_another() -> None:
    spans = of_all_processes()
    assert {span.name for span in spans} == {rule.name for rule in RULES}
    assert len({span.trace_id for span in spans}) == 1
    by_id = {span.span_id: span.name for span in spans}
    assert len(by_id) == len(spans)
    around = {span.name: by_id.get(span.parent_id, "") for span in spans}
    assert around == {rule.name: rule.parent for rule in RULES}


def test_a_span_begins_with_its_seconds_or_with_the_event_before_and_has_no_length_without() -> None:
    length = {span.name: (span.ended_ns - span.began_ns) / 1e9 for span in of_all_processes()}
    wanted = {"train": 3.0, "encode": 1.0, "seal": 1.0, "upload": 0.7, "transmit": 3.0, "verdict": 2.0, ADAPTER: 14.0}
    wanted |= {"carry": 0.0, "decode": 0.9, "verify": 2.9, "attack": 8.8, "assign": 0.0}
    assert {name: length[name] for name in wanted} == pytest.approx(wanted, abs=1e-6)


def test_run_round_and_client_make_the_trace_and_nothing_else_does() -> None:
    names: dict[str, Any] = {"run": "r", "round_id": 1, "client": "c1"}
    others: list[dict[str, Any]] = [{}, {"run": "q"}, {"round_id": 2}, {"client": "c2"}, {"client": "1c1"}]
    ids = {trace_id(**(names | other)) for other in others}
    assert len(ids) == 5
    assert all(0 < found < 1 << 128 for found in ids)
    # By the definition: SHA-256 of the words, each after its length.
    words = b"".join(len(w).to_bytes(4, "big") + w for w in (b"trace", b"r", b"1", b"c1"))
    assert trace_id(run="r", round_id=1, client="c1") == int.from_bytes(
        __import__("hashlib").sha256(b"hushtune" + words).digest()[:16], "big"
    )
    assert span_id(1, "a", per={}) != span_id(1, "b", per={}) != span_id(2, "b", per={})


def test_a_peer_that_makes_up_names_makes_no_spans_and_fills_no_memory() -> None:
    done: list[Span] = []
    tracer = Tracer(role="owner", name="owner", clients=CLIENTS, done=done.append)
    for number in range(2 * BEGINNINGS_MAX):
        tracer.told("update_received", {**KEY, "round_id": number}, record(1.0))
        tracer.told("update_refused", {**KEY, "client": f"x{number}"}, record(1.0))
    assert done == []
    assert len(tracer._began) == BEGINNINGS_MAX  # pyright: ignore[reportPrivateUsage] - that it is bounded is the point


def test_a_rule_of_an_event_that_its_role_does_not_log_is_refused() -> None:
    with pytest.raises(ValueError, match="air logs no update_sealed"):
        Rule(name="x", by="air", ends="update_sealed")
    with pytest.raises(ValueError, match="has no field codecs"):
        Rule(name="x", by="client", ends="update_encoded", tell=("codecs",))


@contextmanager
def collector() -> Generator[tuple[str, Collected]]:
    """A receiver of OTLP over HTTP on loopback; yields its URL and all spans it got, with the process that sent each."""
    got: Collected = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            assert self.path == "/v1/traces"
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                about = {a.key: a.value.string_value for a in resource.resource.attributes}
                got.extend((about["service.instance.id"], span) for scope in resource.scope_spans for span in scope.spans)
            self.send_response(200)
            self.send_header("Content-Type", "application/x-protobuf")
            self.end_headers()
            self.wfile.write(ExportTraceServiceResponse().SerializeToString())

        def log_message(self, format: str, *args: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", got
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def log_one(tmp_path: Path, url: str) -> None:
    with observed(Outlook(traces=url), role="air", clients=CLIENTS, state_dir=tmp_path):
        log_event(LOGGER, "frame_carried", **KEY, blocks=7)


@pytest.mark.slow
def test_a_real_receiver_gets_the_span_with_its_parent_its_process_and_what_it_tells(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with collector() as (url, got), caplog.at_level(logging.INFO):
        log_one(tmp_path, url)
    ((process, span),) = got
    trace = trace_id(run="r", round_id=1, client="c1")
    around = {"attempt": 1, "part": "payload"}
    assert (process, span.name, span.trace_id) == ("air", "carry", trace.to_bytes(16, "big"))
    assert span.parent_span_id == span_id(trace, "transmit", per=around).to_bytes(8, "big")
    assert span.status.code == Status.STATUS_CODE_OK
    assert {a.key: a.value for a in span.attributes}["hushtune.blocks"].int_value == 7
    assert "tracing_started" in caplog.messages
    assert "traces_lost" not in caplog.messages


@pytest.mark.slow
def test_a_collector_that_is_away_delays_nothing_and_is_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with collector() as (url, _):
        pass  # nobody listens there any more
    with caplog.at_level(logging.INFO):
        began = time.monotonic()
        with observed(Outlook(traces=url), role="air", clients=CLIENTS, state_dir=tmp_path):
            for number in range(5000):  # more than the queue takes
                log_event(LOGGER, "frame_carried", **(KEY | {"attempt": number}))
            assert time.monotonic() - began < 5.0
        assert time.monotonic() - began < 12.0
    assert caplog.messages.count("traces_lost") == 1
    assert not any(r.name.startswith("opentelemetry") for r in caplog.records)


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("127.0.0.1:4318", "use the address of an OTLP collector, such as http://"),
        ("ftp://a", "use the address"),
        ("http://", "use the address"),
        ("http://a:99999", "use the address"),
        ("http://me:secret@a:4318", "password"),
    ],
)
def test_a_url_that_is_none_of_a_collector_says_what_one_is(url: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=f"--traces: .*{problem}"):
        endpoint(url)
    assert endpoint("http://a:4318") == endpoint("http://a:4318/") == "http://a:4318/v1/traces"
    assert endpoint("https://a/otlp/v1/traces") == "https://a/otlp/v1/traces"


def test_a_missing_library_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    for name in [n for n in sys.modules if n.startswith(("opentelemetry", "hushtune_common.traces.export"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    with pytest.raises(MissingPackage, match=r"'hushtune-server\[otel\]'"):
        log_one(tmp_path, "http://127.0.0.1:1")
