"""How do events, readings and calls become the numbers that Prometheus asks for? Nobody else knows its library."""

from collections import Counter as Counts
from collections.abc import Collection, Iterable, Mapping
from logging import LogRecord
from threading import Lock

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from hushtune_common.events.catalogue import EVENTS
from hushtune_common.metrics.metric import Feed, Metric, number
from hushtune_common.metrics.table import BY_EVENT, CALLS, METRICS, TRAINER
from hushtune_common.metrics.watch import Watch

_EVENTS = "hushtune_events_total"
_TOLD, _TOOK, _OPEN = (metric.name for metric in CALLS)


class Board:
    """All metrics of one process of ``role``, in a registry of their own.

    Laws: nothing that a peer or a field says adds a series beyond `Metric.series_max`; nothing that it is told makes it raise.
    """

    def __init__(self, *, role: str, clients: Collection[str]) -> None:
        """Take the ``clients`` of the scenario: the only ones that a label names."""
        disable_created_metrics()  # the moment of each counter's beginning, which nobody asks for, as a series of its own
        self.registry = CollectorRegistry()
        self.watch = Watch(calls=self)
        self._clients = frozenset(clients)
        mine = [m for m in (*BY_EVENT, *CALLS) if role in m.by]
        # A gauge begins when something was said of it: a zero of nobody would be taken for a measurement.
        self._metrics = {metric.name: self._registered(metric) for metric in mine if metric.kind != "gauge"}
        self._feeds: dict[str, list[tuple[Metric, Feed]]] = {}
        for metric in mine:
            for feed in metric.feeds:
                self._feeds.setdefault(feed.event, []).append((metric, feed))
        self._trainer = ""
        self._open: Counts[tuple[str, ...]] = Counts()
        self._lock = Lock()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        ProcessCollector(namespace=TRAINER, pid=self._trainer_pid, registry=self.registry)
        self.registry.register(_Readings(self.watch))

    def told(self, event: str, fields: Mapping[str, object], record: LogRecord) -> None:
        """Count one event of the catalogue, and move what it feeds."""
        if event not in EVENTS:
            return
        said: Mapping[str, str] = {"event": event, "level": record.levelname.lower()}
        every = METRICS[_EVENTS]
        self._move(every, {label.name: label.bounded(said[label.name], clients=()) for label in every.labels}, 1.0)
        for metric, feed in self._feeds.get(event, ()):
            amount = feed.amount(fields)
            if amount is not None:
                self._move(metric, metric.key(feed, fields, clients=self._clients), amount)
        if event == "trainer_started":
            self._trainer = str(fields.get("pid", ""))
        elif event == "trainer_stopped":
            self._trainer = ""

    def began(self, *, side: str, service: str, method: str) -> None:
        """Note that a call began."""
        self._call(_OPEN, 1.0, side=side, service=service, method=method)

    def ended(self, *, side: str, service: str, method: str, status: str, seconds: float) -> None:
        """Note its end."""
        self._call(_OPEN, -1.0, side=side, service=service, method=method)
        self._call(_TOOK, seconds, side=side, service=service, method=method)
        self._call(_TOLD, 1.0, side=side, service=service, method=method, status=status)

    def _call(self, name: str, amount: float, **said: str) -> None:
        metric = METRICS[name]
        labels = {label.name: label.bounded(said[label.name], clients=()) for label in metric.labels}
        if name == _OPEN:
            self._open[tuple(labels.values())] += int(amount)
            amount = float(self._open[tuple(labels.values())])
        self._move(metric, labels, amount)

    def _move(self, metric: Metric, labels: Mapping[str, str], amount: float) -> None:
        with self._lock:
            parent = self._metrics.get(metric.name) or self._registered(metric)
            self._metrics[metric.name] = parent
        child = parent.labels(**labels) if labels else parent
        if isinstance(child, Gauge):
            child.set(amount)
        elif isinstance(child, Histogram):
            child.observe(amount)
        elif amount >= 0.0:
            child.inc(amount)

    def _registered(self, metric: Metric) -> Counter | Gauge | Histogram:
        names = [label.name for label in metric.labels]
        if metric.kind == "histogram":
            return Histogram(metric.name, metric.help, names, buckets=metric.buckets, registry=self.registry)
        return {"counter": Counter, "gauge": Gauge}[metric.kind](metric.name, metric.help, names, registry=self.registry)

    def _trainer_pid(self) -> str:
        return self._trainer or "none"


class _Readings(Collector):
    """What is read of the process's state at the moment of the scrape."""

    def __init__(self, watch: Watch) -> None:
        self._watch = watch

    def collect(self) -> Iterable[GaugeMetricFamily]:
        """Yield one family for each reading that can be taken now."""
        for name, value in self._watch.readings().items():
            metric = METRICS[name]
            family = GaugeMetricFamily(name, metric.help, labels=[label.name for label in metric.labels])
            if isinstance(value, Mapping):
                for said, reading in value.items():
                    family.add_metric([metric.labels[0].bounded(said, clients=())], reading)
            elif (reading := number(value)) is not None:
                family.add_metric([], reading)
            yield family
