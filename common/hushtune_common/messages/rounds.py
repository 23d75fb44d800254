"""What keeps a round going: signs of life, directives, and the word of who is through with it."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from hushtune_common.messages.assignments import Assignment
from hushtune_common.messages.identity import ClientId, RunId, UpdateKey, require_name
from hushtune_common.units import Joule, Second


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """A client's word to the coordinator that its update of this round is out (or will not come, with the reason)."""

    key: UpdateKey
    uploaded: bool
    reason: str
    bytes_raw: int
    bytes_uploaded: int
    airtime: Second
    train_seconds: Second
    energy: Joule


@dataclass(frozen=True, slots=True, kw_only=True)
class Settlement:
    """The owner's word to the coordinator: accepted or refused, no more."""

    key: UpdateKey
    accepted: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Conclusion:
    """The owner's word to the coordinator that it is through with a round; ``last`` if it wants no further one, and then why."""

    run: RunId
    round_id: int
    last: bool
    reason: str = ""

    def __post_init__(self) -> None:
        """Check the form."""
        require_name(self.run, of="run")
        if self.round_id < 1 or bool(self.reason) != self.last:
            raise ValueError("a conclusion is of a round, and one that ends the run says why")


class DirectiveKind(StrEnum):
    """What the coordinator pushes."""

    ROUND_OPENED = "round_opened"
    ASSIGNED = "assigned"
    ROUND_CLOSED = "round_closed"
    DRAIN = "drain"
    CONCLUDE = "conclude"
    """To the owner alone: no more is accepted in this round; average, publish what the next one starts from, and say so."""
    SUM = "sum"
    """A word of secure aggregation."""


class SumWord:
    """What the coordinator carries between the roles of secure aggregation; ``secagg.messages`` has the kinds."""

    __slots__ = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Directive:
    """A numbered push from the coordinator. ``accepted`` lists the clients of a closed round; ``last`` ends the run."""

    seq: int
    kind: DirectiveKind
    round_id: int
    assignment: Assignment | None = None
    accepted: tuple[ClientId, ...] = ()
    failed_reason: str = ""
    last: bool = False
    sum: SumWord | None = None


SENDING_PHASES: Final = frozenset({"coding a frame", "uploading", "on air"})
"""What a client's signs of life call what it does once its assignment can no longer be changed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Beat:
    """A sign of life with what is being done; ``last_seen_seq`` acknowledges directives; ``progress`` only ever rises."""

    last_seen_seq: int
    phase: str
    progress: int
