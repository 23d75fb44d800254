"""What is a span? A piece of work on one adapter: which event ends it, when it began, what it belongs to, and what its id is."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from hushtune_common.events.catalogue import EVENTS

ADAPTER = "adapter"
"""The root of every trace."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """Which event of ``by`` ends a span, and what else is known of it.

    It began ``seconds`` (a field) before, or at the last event ``since`` of the same adapter, else it has no length. ``per`` are
    the fields that tell spans of one name apart, ``parent`` the name of the span around it, which has a part of these fields.
    What an event lacks is taken from the last one ``like``; ``only`` are values that fields must have; ``tell`` goes
    with the span.
    """

    name: str
    by: str
    ends: str
    parent: str = ADAPTER
    seconds: str = ""
    since: str = ""
    per: tuple[str, ...] = ()
    like: str = ""
    only: Mapping[str, str] = field(default_factory=dict[str, str])
    tell: tuple[str, ...] = ()
    failed: bool = False

    def __post_init__(self) -> None:
        """Hold the rule to the catalogue of events."""
        for event in filter(None, (self.ends, self.since, self.like)):
            if event not in EVENTS or self.by not in EVENTS[event].by:
                raise ValueError(f"{self.name}: {self.by} logs no {event}")
        known = {*EVENTS[self.ends].fields, *(EVENTS[self.like].fields if self.like else ())}
        strange = {*filter(None, [self.seconds]), *self.per, *self.only, *self.tell} - known
        if strange:
            raise ValueError(f"{self.name}: {self.ends} has no field {', '.join(sorted(strange))}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """A piece of work that is over; times are nanoseconds since 1970, by this machine's clock. ``parent_id`` is 0 at the root."""

    name: str
    trace_id: int
    span_id: int
    parent_id: int
    began_ns: int
    ended_ns: int
    attributes: Mapping[str, str | int | float | bool]
    failed: bool


def trace_id(*, run: str, round_id: int, client: str) -> int:
    """Return the 128 bits that every process gives the trace of an adapter: a hash of what each of them knows anyway.

    Nothing of it travels, and it tells nobody more than the three names do.
    """
    return _bits(16, "trace", run, str(round_id), client)


def span_id(trace: int, name: str, *, per: Mapping[str, object]) -> int:
    """Return the 64 bits of a span, which other processes can name as a parent before it has ended."""
    return _bits(8, "span", f"{trace:032x}", name, *(f"{key}={plain(value)}" for key, value in sorted(per.items())))


def plain(value: object) -> str | int | float | bool:
    """Return a field's value as a trace can hold it."""
    inner = value.value if isinstance(value, Enum) else value
    inner = inner.item() if hasattr(inner, "item") else inner  # pyright: ignore[reportAttributeAccessIssue] - numbers of numpy
    return inner if isinstance(inner, str | int | float | bool) else str(inner)


def _bits(count: int, *words: str) -> int:
    digest = hashlib.sha256(b"hushtune" + b"".join(len(w.encode()).to_bytes(4, "big") + w.encode() for w in words)).digest()
    return int.from_bytes(digest[:count], "big") or 1
