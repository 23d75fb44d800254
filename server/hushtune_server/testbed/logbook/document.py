"""What does the catalogue of events look like on paper? docs/EVENTS.md, made from the catalogue and from nothing else."""

from collections.abc import Iterable, Iterator

from hushtune_common.errors import ConfigError
from hushtune_common.events.catalogue import CONTEXT, EVENTS, GROUPS, similar
from hushtune_common.events.event import ROLES, Event, unit_of

_INTRODUCTION = """# Events

Made by `hushtune logs catalogue --document docs/EVENTS.md`; edit `common/hushtune_common/events` instead of this page.

Every process writes one JSON object per line, for each thing that has happened. Names are past participles. The name of a field
carries its unit: `_s` seconds, `_j` joules, `_db` decibels, `_hz`, `_w`, `bytes_`, `share` of 1; digests are SHA-256 in
hexadecimal. Secrets never stand in a line: keys print as masked, bytes as their length.

To add an event, add an entry to the file of the process that logs it, log it, and run the command above; a test compares them.

Every line has, or may have:

"""


def document() -> str:
    """Return the whole page."""
    return "".join([_INTRODUCTION, *_rows(CONTEXT.items()), *(part for title in GROUPS for part in _group(title))])


def _group(title: str) -> Iterator[str]:
    yield f"\n## {title}\n"
    for entry in GROUPS[title]:
        yield f"\n### `{entry.name}`\n\n{entry.meaning}"
        yield f" By: {_by(entry)}.\n\n" if entry.fields else f" By: {_by(entry)}. No fields.\n"
        yield from _rows((name, _with_unit(name, meaning)) for name, meaning in entry.fields.items())


def _rows(pairs: Iterable[tuple[str, str]]) -> Iterator[str]:
    for name, meaning in pairs:
        yield f"- `{name}`: {meaning}\n"


def _with_unit(name: str, meaning: str) -> str:
    unit = unit_of(name)
    return f"{meaning} [{unit}]" if unit else meaning


def _by(entry: Event) -> str:
    return "every process" if {*entry.by} == {*ROLES} else ", ".join(entry.by)


def explanation(name: str) -> str:
    """Return what there is to know about one event, for a terminal; `ConfigError` names similar ones for an unknown one."""
    entry = EVENTS.get(name)
    if entry is None:
        raise ConfigError("--explain", f"no event {name!r}; {similar(name)}")
    width = max((len(field) for field in entry.fields), default=0)
    lines = [f"{entry.name}   by {_by(entry)}", f"  {entry.meaning}"]
    return "\n".join([*lines, *(f"    {f:<{width}}  {_with_unit(f, meaning)}" for f, meaning in entry.fields.items())])


def as_json() -> list[dict[str, object]]:
    """Return the catalogue as plain values."""
    return [
        {
            "event": entry.name,
            "by": list(entry.by),
            "meaning": entry.meaning,
            "fields": {name: {"meaning": text, "unit": unit_of(name)} for name, text in entry.fields.items()},
        }
        for entry in EVENTS.values()
    ]
