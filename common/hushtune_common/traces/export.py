"""How do spans get to a collector? In batches, from a thread of their own; a collector that is away costs spans only."""

import logging
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from threading import Thread
from urllib.parse import urlsplit

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags

from hushtune_common.errors import ConfigError
from hushtune_common.logs import log_event
from hushtune_common.traces.span import Span

_TIMEOUT_S = 2.0
_FAREWELL_S = 3.0
_BATCH_EVERY_MS = 1000
_QUEUE_MAX = 2048
_BATCH_MAX = 256
_PATH = "/v1/traces"
_SCOPE = InstrumentationScope("hushtune")
_log = logging.getLogger(__name__)


def endpoint(url: str) -> str:
    """Return the address to send to, `/v1/traces` unless ``url`` has a path; `ConfigError` for what is none of a collector."""
    try:
        parts = urlsplit(url)
        named = bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        named, parts = False, urlsplit("")
    if parts.scheme not in {"http", "https"} or not named:
        raise ConfigError("--traces", f"use the address of an OTLP collector, such as http://127.0.0.1:4318, got {url!r}")
    if parts.username is not None or parts.password is not None:
        raise ConfigError("--traces", "others on this machine can read a password in a command; have the collector ask for none")
    return parts._replace(path=_PATH).geturl() if parts.path in {"", "/"} else url


class _Patient(SpanExporter):
    """Hands batches on, and tells the log once when they are lost, and once more when they are not lost any longer."""

    def __init__(self, inner: SpanExporter, *, where: str) -> None:
        self._inner = inner
        self._where = where
        self.lost = 0
        self._told = False

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        result = self._inner.export(spans)
        if result is SpanExportResult.SUCCESS:
            self._told = False
        else:
            self.lost += len(spans)
            if not self._told:
                self._told = True
                log_event(_log, "traces_lost", level=logging.WARNING, address=self._where, spans=self.lost)
        return result

    def shutdown(self) -> None:
        self._inner.shutdown()


class Exporter:
    """Sends spans of one process to ``where``. Taking one in never waits and never raises."""

    def __init__(self, where: str, *, role: str, name: str) -> None:
        """Begin with nothing to send."""
        about = {"service.name": f"hushtune-{role}", "service.namespace": "hushtune", "service.instance.id": name}
        self._resource = Resource(about)
        self._patient = _Patient(OTLPSpanExporter(endpoint=where, timeout=_TIMEOUT_S), where=where)
        self._batches = BatchSpanProcessor(
            self._patient,
            max_queue_size=_QUEUE_MAX,
            schedule_delay_millis=_BATCH_EVERY_MS,
            max_export_batch_size=_BATCH_MAX,
        )

    def take(self, span: Span) -> None:
        """Queue one span; where the queue is full, the oldest goes."""
        self._batches.on_end(
            ReadableSpan(
                name=span.name,
                context=_context(span.trace_id, span.span_id, remote=False),
                parent=_context(span.trace_id, span.parent_id, remote=True) if span.parent_id else None,
                resource=self._resource,
                attributes=span.attributes,
                kind=SpanKind.INTERNAL,
                status=Status(StatusCode.ERROR if span.failed else StatusCode.OK),
                start_time=span.began_ns,
                end_time=span.ended_ns,
                instrumentation_scope=_SCOPE,
            )
        )

    def close(self) -> None:
        """Send what is queued, for a few seconds at most."""
        ending = Thread(target=self._batches.shutdown, name="traces", daemon=True)
        ending.start()
        ending.join(_FAREWELL_S)


@contextmanager
def exporting(where: str, *, role: str, name: str) -> Generator[Exporter]:
    """Send spans while the context lasts; what the library itself says about lost batches is left to our own event."""
    library = logging.getLogger("opentelemetry")
    level = library.level
    library.setLevel(logging.CRITICAL + 1)
    exporter = Exporter(where, role=role, name=name)
    try:
        yield exporter
    finally:
        exporter.close()
        library.setLevel(level)


def _context(trace: int, span: int, *, remote: bool) -> SpanContext:
    return SpanContext(trace_id=trace, span_id=span, is_remote=remote, trace_flags=TraceFlags(TraceFlags.SAMPLED))
