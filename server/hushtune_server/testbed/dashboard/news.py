"""How does a line of a log read to a person? In words where the live view has words for it, else by its fields."""

from typing import Final

from hushtune_common.events.catalogue import CONTEXT, EVENTS
from hushtune_server.testbed.dashboard.values import Json, word
from hushtune_server.testbed.logbook import readable
from hushtune_server.testbed.logbook.choosing import PROGRESS
from hushtune_server.testbed.logbook.lines import Line
from hushtune_server.testbed.view import headline

NEWS_MAX: Final = 80
_TEXT_MAX: Final = 300
_SAID: Final = frozenset({"client", "round_id", "energy_kind", "fidelity", "digest_frame", "digest"})
_LEFT_OUT: Final = PROGRESS | {"phase_changed", "directive_received", "reception_streamed", "frame_encoded", "scenario_resolved"}
_ECHOES: Final = frozenset({"round_opened", "round_closed"})


def told(line: Line) -> Json | None:
    """Return the entry for the list of events; nothing for what only says that it goes on."""
    if line.event in _LEFT_OUT or (line.event in _ECHOES and line.role != "coordinator"):
        return None
    entry: Json = {"at": line.moment, "who": word(line.process) or "?", "role": word(line.role) or "?"}
    entry |= {"level": word(line.level) or "info", "event": word(line.event) or "?", "text": _text(line)}
    if (client := word(line.client)) is not None and client != entry["who"]:
        entry["about"] = client
    if line.event in EVENTS:
        entry["means"] = EVENTS[line.event].meaning
    return entry


def _text(line: Line) -> str:
    try:
        said = headline(line.record)
    except (ValueError, TypeError, KeyError, OverflowError, AttributeError):  # a line may say anything at all
        said = ""
    return readable.plain(said) if said else _fields(line)


def _fields(line: Line) -> str:
    shown = [
        _field(name, given) for name, given in line.record.items() if name not in CONTEXT and name not in _SAID and given != ""
    ]
    text = ", ".join(shown)
    return text if len(text) <= _TEXT_MAX else text[: _TEXT_MAX - 1] + "…"


def _field(name: str, given: object) -> str:
    try:
        return f"{readable.plain(readable.label(name)).replace('_', ' ')} {readable.value(name, given)}"
    except (ValueError, TypeError, OverflowError):
        return readable.plain(name)
