"""How does a line look on a terminal? When, who, what, and the numbers with their units; its meaning where asked."""

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Final

from rich.text import Text

from hushtune_common.events.catalogue import CONTEXT, EVENTS
from hushtune_common.events.event import unit_of
from hushtune_server.testbed.logbook import readable
from hushtune_server.testbed.logbook.lines import Line
from hushtune_server.testbed.view import headline

COLOURS: Final[Mapping[str, str]] = {
    "owner": "blue",
    "coordinator": "magenta",
    "air": "cyan",
    "eavesdropper": "red",
    "client": "green",
    "referee": "yellow",
}
"""What colour a role has on a terminal."""
_LEVELS: Final = {"warning": "yellow", "error": "bold red", "critical": "bold red"}
_EVENT_WIDTH: Final = 21
_TRACE_LINES_MAX: Final = 40


def render(line: Line, *, width: int = 12) -> Text:
    """Return one line for a terminal; ``width`` is the room for the process's name."""
    shown = Text(datetime.fromtimestamp(line.moment, UTC).strftime("%H:%M:%S.%f")[:12], style="dim")
    shown.append(f"  {readable.plain(line.process):<{width}}", style=COLOURS.get(line.role, ""))
    shown.append(f"  {readable.plain(line.event):<{_EVENT_WIDTH}}", style=_LEVELS.get(line.level, "bold"))
    for name, text in _fields(line):
        shown.append(f"  {name} ", style="dim")
        shown.append(text)
    trace = line.record.get("exception")
    if isinstance(trace, str):
        for row in trace.splitlines()[-_TRACE_LINES_MAX:]:
            shown.append(f"\n{'':14}{readable.plain(row)}", style="red")
    return shown


def explained(line: Line, *, width: int = 12) -> Text:
    """Return the line with the meaning of its event and fields below it."""
    entry, shown = EVENTS.get(line.event), render(line, width=width)
    if entry is None:
        return shown.append("\n              not in the catalogue: a newer or older version wrote it", style="italic dim")
    shown.append(f"\n              {entry.meaning}", style="italic")
    for name in (n for n in entry.fields if n in line.record):
        unit = unit_of(name)
        shown.append(f"\n                {readable.label(name)}: {entry.fields[name]}{f' [{unit}]' if unit else ''}", style="dim")
    return shown


def told(line: Line, *, width: int = 12) -> Text | None:
    """Return in words what a person wants to know first; nothing for the rest, which is most.

    Trouble is always told; of what a process is doing, only what servers say, since clients do the same side by side.
    """
    try:
        said = headline(line.record)
    except (ValueError, TypeError, KeyError, OverflowError, AttributeError):  # a line may say anything at all
        said = line.event
    if line.event == "phase_changed" and line.role != "client":
        said = f"{line.record.get('phase', '')} ..."
    if not said:
        return None
    shown = Text(datetime.fromtimestamp(line.moment, UTC).strftime("%H:%M:%S"), style="dim")
    shown.append(f"  {readable.plain(line.process):<{width}}", style=COLOURS.get(line.role, ""))
    return shown.append(f"  {readable.plain(said)}", style=_LEVELS.get(line.level, ""))


def _fields(line: Line) -> Iterator[tuple[str, str]]:
    """Yield what is neither context, nor said by the process's name already, nor empty."""
    for name, given in line.record.items():
        if name not in CONTEXT and given != "" and not (name == "client" and given == line.process):
            yield readable.plain(readable.label(name)), readable.value(name, given)
