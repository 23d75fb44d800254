"""What does a server tell a doctor about itself? Its date, protocol and scenario, as metadata of the answer to a health check."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from hushtune_common.clock import Clock
from hushtune_common.messages import Digest
from hushtune_common.wire.convert import PROTOCOL_MAJOR, PROTOCOL_MINOR

PROTOCOL: Final = f"{PROTOCOL_MAJOR}.{PROTOCOL_MINOR}"
_DATE, _PROTOCOL, _SCENARIO = "hushtune-date", "hushtune-protocol", "hushtune-scenario"


@dataclass(frozen=True, slots=True, kw_only=True)
class About:
    """What a server said of itself; ``None`` for what it did not, or not in a way that can be read.

    ``date`` is for a person's eyes: nothing in the protocol compares the clocks of two machines.
    """

    date: datetime | None
    protocol: str | None
    scenario: Digest | None


def about(*, clock: Clock, scenario: Digest | None) -> list[tuple[str, str]]:
    """Return the metadata that says it."""
    told = [(_DATE, clock.wall().astimezone(UTC).isoformat(timespec="milliseconds")), (_PROTOCOL, PROTOCOL)]
    return told if scenario is None else [*told, (_SCENARIO, scenario.hex)]


def read_about(metadata: Iterable[tuple[str, str | bytes]]) -> About:
    """Return what the metadata of an answer says; whatever else is in it is passed over."""
    told = {key: value for key, value in metadata if isinstance(value, str)}
    return About(date=_date(told.get(_DATE)), protocol=told.get(_PROTOCOL), scenario=_digest(told.get(_SCENARIO)))


def _date(text: str | None) -> datetime | None:
    try:
        found = datetime.fromisoformat(text or "")
        return found.astimezone(UTC) if found.tzinfo is not None else None
    except (ValueError, OverflowError):  # the second for a date that another zone does not have
        return None


def _digest(text: str | None) -> Digest | None:
    try:
        return Digest(bytes.fromhex(text or ""))
    except ValueError:
        return None
