"""What can happen to a run, as values that a journal can hold.

Every event carries ``at``: seconds of *run time*, which stands still while the coordinator is down. A run is the fold of its
events and of nothing else.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any, NewType, cast

import msgspec

from hushtune_common.errors import ConfigError
from hushtune_common.messages import Assignment, Channel, ClientId, ClientReport, Completion, Settlement, UtilityCurve
from hushtune_common.secagg.messages import Advertisement, Deal, Survivors, Vow
from hushtune_common.secagg.terms import Layout
from hushtune_common.units import Second

Member = NewType("Member", str)
"""Somebody who takes part: a client by its id, or the owner."""
OWNER = Member("@owner")
"""The owner; the at-sign keeps it apart from every client, whose names cannot hold one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Solution:
    """What an allocator answered: one assignment per report, the method, and its certificate (``gap``, if it has one)."""

    assignments: tuple[Assignment, ...]
    method: str
    violation: float
    gap: float | None
    solve_s: Second
    objective: float | None = None
    """Utility over cost of what is planned; ``upper_bound`` is what no choice for the same clients exceeds."""
    upper_bound: float | None = None
    claim: str = "none"
    tier: int = 0
    sweeps: int = 0
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse two answers for one client."""
        clients = [a.client for a in self.assignments]
        if len(set(clients)) != len(clients):
            raise ValueError("a solution assigns to each client once")
        if not (isfinite(self.violation) and self.violation >= 0.0):
            raise ValueError(f"violation: must be finite and not negative, got {self.violation}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Joined:
    """A member entered the run, or came back; the owner may bring what updates are worth by its measurement, and their layout."""

    at: Second
    member: Member
    curve: UtilityCurve | None = None
    layout: Layout | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Left:
    """A member said goodbye."""

    at: Second
    member: Member
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Died:
    """A member gave no sign of life for ``silent_s``, or its stream broke and did not come back."""

    at: Second
    member: Member
    silent_s: Second


@dataclass(frozen=True, slots=True, kw_only=True)
class Reported:
    """A client told what its device can do, and its keys where updates are only added."""

    at: Second
    report: ClientReport
    advertisement: Advertisement | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelChanged:
    """A client that has not begun to transmit told its new channel; it sends nothing before it is assigned anew."""

    at: Second
    round_id: int
    client: ClientId
    channel: Channel


@dataclass(frozen=True, slots=True, kw_only=True)
class Solved:
    """The allocator answered for ``round_id``; ``order`` is 0 for its first solution and counts the re-allocations after it."""

    at: Second
    round_id: int
    solution: Solution
    order: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class SolvingFailed:
    """The allocator gave up on ``round_id``."""

    at: Second
    round_id: int
    reason: str
    order: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Sending:
    """A client's sign of life said that it is about to transmit; or it ``asked`` whether it may, and is told so."""

    at: Second
    round_id: int
    client: ClientId
    asked: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Dealt:
    """A client dealt shares of its secrets of a round to its neighbours."""

    at: Second
    round_id: int
    deal: Deal


@dataclass(frozen=True, slots=True, kw_only=True)
class Announced:
    """The owner named those whose payloads it is going to add."""

    at: Second
    round_id: int
    survivors: Survivors


@dataclass(frozen=True, slots=True, kw_only=True)
class Vowed:
    """A client vowed to open shares for these survivors alone."""

    at: Second
    round_id: int
    vow: Vow


@dataclass(frozen=True, slots=True, kw_only=True)
class Completed:
    """A client is through with its part of a round, with or without an upload."""

    at: Second
    completion: Completion


@dataclass(frozen=True, slots=True, kw_only=True)
class Settled:
    """The owner accepted or refused a client's update."""

    at: Second
    settlement: Settlement


@dataclass(frozen=True, slots=True, kw_only=True)
class Concluded:
    """The owner is through with ``round_id``; ``last`` if it wants no further round, and then why."""

    at: Second
    round_id: int
    last: bool
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ticked:
    """Time passed."""

    at: Second


Event = (
    Joined
    | Left
    | Died
    | Reported
    | ChannelChanged
    | Solved
    | SolvingFailed
    | Dealt
    | Sending
    | Completed
    | Settled
    | Announced
    | Vowed
    | Concluded
    | Ticked
)

_KINDS: Mapping[str, type[Event]] = {
    "joined": Joined,
    "left": Left,
    "died": Died,
    "reported": Reported,
    "channel_changed": ChannelChanged,
    "solved": Solved,
    "solving_failed": SolvingFailed,
    "dealt": Dealt,
    "sending": Sending,
    "completed": Completed,
    "settled": Settled,
    "announced": Announced,
    "vowed": Vowed,
    "concluded": Concluded,
    "ticked": Ticked,
}
_NAMES: Mapping[type[Event], str] = {made: kind for kind, made in _KINDS.items()}


def kind_of(event: Event) -> str:
    """Return the name under which a journal keeps this kind of event."""
    return _NAMES[type(event)]


def to_body(event: Event) -> dict[str, object]:
    """Return the event's fields as plain JSON values; numbers that JSON does not know (a gain of zero is -inf dB) as text."""
    return cast(dict[str, object], _finite(msgspec.to_builtins(event)))


def from_body(kind: str, body: Mapping[str, object]) -> Event:
    """Return the event that ``to_body`` took apart. Raises ``ConfigError``: a journal that does not fold is not ours to mend."""
    made = _KINDS.get(kind)
    if made is None:
        raise ConfigError("state_dir", f"the journal holds an unknown kind of event {kind!r}; start with an empty directory")
    try:
        return msgspec.convert(body, made, strict=False)
    except msgspec.ValidationError as error:
        problem = f"the journal holds a damaged {kind!r} event ({error}); start with an empty directory"
        raise ConfigError("state_dir", problem) from error


def _finite(value: Any) -> object:
    match value:
        case float():
            return value if isfinite(value) else str(value)
        case dict():
            return {k: _finite(v) for k, v in cast(dict[str, object], value).items()}
        case list() | tuple():
            return [_finite(v) for v in cast(Sequence[object], value)]
        case _:
            return value
