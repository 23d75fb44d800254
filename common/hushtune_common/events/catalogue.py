"""Which events are there, and is this one of them? All entries by name, and what is wrong with a call that fits none."""

from collections.abc import Collection, Mapping
from difflib import get_close_matches
from types import MappingProxyType
from typing import Final

from hushtune_common.events.client import CLIENT_EVENTS
from hushtune_common.events.event import Event
from hushtune_common.events.servers import AIR_EVENTS, COORDINATOR_EVENTS, EAVESDROPPER_EVENTS, OWNER_EVENTS
from hushtune_common.events.shared import CERTIFICATE_EVENTS, PROXY_EVENTS, REFEREE_EVENTS, SHARED_EVENTS
from hushtune_common.events.sums import SUM_EVENTS

GROUPS: Final[Mapping[str, tuple[Event, ...]]] = MappingProxyType(
    {
        "Every process": SHARED_EVENTS,
        "Certificates": CERTIFICATE_EVENTS,
        "Clients": CLIENT_EVENTS,
        "Secure aggregation": SUM_EVENTS,
        "Owner": OWNER_EVENTS,
        "Coordinator": COORDINATOR_EVENTS,
        "Air": AIR_EVENTS,
        "Eavesdropper": EAVESDROPPER_EVENTS,
        "Referee (testbed only)": REFEREE_EVENTS,
        "Proxy (a bad network)": PROXY_EVENTS,
    }
)


def _by_name() -> dict[str, Event]:
    found: dict[str, Event] = {}
    for entry in (e for group in GROUPS.values() for e in group):
        if entry.name in found:
            raise ValueError(f"{entry.name} is in the catalogue twice; several roles may share one entry")
        found[entry.name] = entry
    return found


EVENTS: Final[Mapping[str, Event]] = MappingProxyType(_by_name())

CONTEXT: Final[Mapping[str, str]] = MappingProxyType(
    {
        "time": "wall clock of the machine that wrote the line, with its offset from UTC",
        "level": "info, warning, error",
        "event": "the name, as below",
        "role": "what the process is",
        "name": "which one: a client's id, else the role",
        "logger": "the library that wrote the line, where it was none of ours",
        "exception": "the trace of a defect",
    }
)
"""What stands in every line, or may."""


def similar(name: str) -> str:
    """Return names like ``name`` for an error message, or where all of them are."""
    close = get_close_matches(name, EVENTS, n=3, cutoff=0.5)
    return f"did you mean {', '.join(close)}?" if close else "docs/EVENTS.md lists them all"


def objection(name: str, fields: Collection[str]) -> str:
    """Return why a line of event ``name`` with ``fields`` is not in the catalogue; empty when it is."""
    known = EVENTS.get(name)
    if known is None:
        return f"no event {name!r}; {similar(name)} A new one goes into hushtune_common/events"
    strange = sorted({*fields} - {*known.fields})
    return f"{name}: no field {', '.join(strange)}; it has {', '.join(known.fields)}" if strange else ""
