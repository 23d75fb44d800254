"""What is a metric? A name with its unit, what it means, labels of which every value is known beforehand, and what feeds it.

Names follow Prometheus: base units (seconds, bytes, joules), and ``_total`` for what only rises.
"""

import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Final, Literal

from hushtune_common.events.catalogue import EVENTS

OTHER: Final = "other"
"""The value of a label whose own value is not one of those that were known beforehand: a peer cannot add a series."""

Kind = Literal["counter", "gauge", "histogram"]
_NAME = re.compile(r"hushtune(_[a-z0-9]+)+")
_NO_BASE_UNITS = re.compile(r"_(ms|milliseconds|minutes|hours|days|kb|mb|gb|kilobytes|megabytes|bits|percent|mw|db)(_total)?")
_NEVER_LABELS: Final = frozenset({"run", "round", "round_id", "digest", "problem", "version", "caller"})

SECONDS: Final = (0.005, 0.025, 0.1, 0.25, 1.0, 2.5, 10.0, 30.0, 60.0, 300.0, 1200.0)
"""Upper bounds of the buckets of a time, from a call on one machine to a round."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Label:
    """One label and all values that it can have beside ``other``: those ``allowed``, and the scenario's clients if it says so."""

    name: str
    allowed: frozenset[str]
    clients: bool = False

    def __post_init__(self) -> None:
        """Refuse labels that would grow with time."""
        if self.name in _NEVER_LABELS:
            raise ValueError(f"{self.name}: grows with time or comes from a peer, and is never a label")

    def bounded(self, value: object, *, clients: Collection[str]) -> str:
        """Return ``value`` as text if it is known beforehand, and `OTHER` if not."""
        text = str(value.value if isinstance(value, Enum) else value)
        return text if text in self.allowed or (self.clients and text in clients) else OTHER

    def values_max(self, clients: int) -> int:
        """Return how many values the label has at most, with so many clients."""
        return len(self.allowed) + 1 + (clients if self.clients else 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Feed:
    """Which event moves a metric: by one, or by (a gauge: to) the value of its field ``value``.

    Without ``value`` it moves by ``step``. ``read`` says which field a label is taken from, ``fixed`` what it is instead,
    ``only`` which values other fields must have.
    """

    event: str
    value: str = ""
    read: Mapping[str, str] = field(default_factory=dict[str, str])
    fixed: Mapping[str, str] = field(default_factory=dict[str, str])
    only: Mapping[str, str] = field(default_factory=dict[str, str])
    step: float = 1.0

    def __post_init__(self) -> None:
        """Hold the feed to the catalogue of events: what no process logs cannot be counted."""
        known = EVENTS.get(self.event)
        if known is None:
            raise ValueError(f"{self.event}: no such event")
        strange = sorted({*filter(None, [self.value]), *self.read.values(), *self.only} - {*known.fields})
        if strange:
            raise ValueError(f"{self.event} has no field {', '.join(strange)}")

    def amount(self, fields: Mapping[str, object]) -> float | None:
        """Return by how much the event moves the metric; none where it says nothing of it."""
        if any(_text(fields.get(name)) != wanted for name, wanted in self.only.items()):
            return None
        return number(fields.get(self.value)) if self.value else self.step


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """One metric of the table. ``by`` are the roles that have it; a gauge is fed by events, or read from the process's state.

    ``combinations`` is how many values its labels have together, where that is fewer than the product of each one's.
    """

    name: str
    kind: Kind
    help: str
    by: tuple[str, ...]
    labels: tuple[Label, ...] = ()
    feeds: tuple[Feed, ...] = ()
    buckets: tuple[float, ...] = ()
    combinations: int = 0

    def __post_init__(self) -> None:
        """Hold the entry to the rules of names, units and labels."""
        if not _NAME.fullmatch(self.name) or _NO_BASE_UNITS.search(self.name):
            raise ValueError(f"{self.name}: names are hushtune_..., in base units")
        if (self.kind == "counter") != self.name.endswith("_total"):
            raise ValueError(f"{self.name}: a counter's name ends in _total, and no other's")
        if not self.help.endswith("."):
            raise ValueError(f"{self.name}: its help is a sentence, with a full stop")
        if (self.kind == "histogram") != bool(self.buckets):
            raise ValueError(f"{self.name}: a histogram has buckets, and nothing else has")
        names = {label.name for label in self.labels}
        for feed in self.feeds:
            if {*feed.read, *feed.fixed} != names:
                raise ValueError(f"{self.name}: {feed.event} says nothing of label {names ^ {*feed.read, *feed.fixed}}")
            if not {*EVENTS[feed.event].by} & {*self.by}:
                raise ValueError(f"{self.name}: nobody that has it logs {feed.event}")

    def series_max(self, clients: int) -> int:
        """Return how many time series one process can have of it, with so many clients in its scenario."""
        combinations = self.combinations or math.prod(label.values_max(clients) for label in self.labels)
        return combinations * (len(self.buckets) + 3 if self.buckets else 1)

    def key(self, feed: Feed, fields: Mapping[str, object], *, clients: Collection[str]) -> dict[str, str]:
        """Return the labels of one event, each of a value known beforehand."""
        said = {name: fields.get(source, "") for name, source in feed.read.items()} | dict(feed.fixed)
        return {label.name: label.bounded(said[label.name], clients=clients) for label in self.labels}


def number(value: Any) -> float | None:
    """Return a field's value as a number: truth as 0 or 1, none for what is no number, or not a finite one."""
    if hasattr(value, "item"):
        value = value.item()
    if not isinstance(value, bool | int | float) or not math.isfinite(value):
        return None
    return float(value)


def _text(value: object) -> str:
    return str(value.value if isinstance(value, Enum) else value)
