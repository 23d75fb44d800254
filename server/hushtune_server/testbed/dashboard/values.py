"""Which values of a log line may enter the page's state? Finite numbers and short plain words; the rest is as if not said."""

from collections.abc import Iterable, Mapping
from math import isfinite
from typing import Any, Final, cast

from hushtune_server.testbed.logbook import readable

_INTEGER_MAX: Final = 1 << 53
"""Beyond this a browser's numbers are no longer exact."""

_NAMES_MAX: Final = 64

Json = dict[str, Any]


def number(given: object) -> float | int | None:
    """Return a finite number that a browser can hold, or nothing."""
    if isinstance(given, bool) or not isinstance(given, int | float):
        return None
    if isinstance(given, int):
        return given if abs(given) <= _INTEGER_MAX else None
    return given if isfinite(given) else None


def count(given: object) -> int:
    """Return a whole number from 0 on, 0 for anything else."""
    found = number(given)
    return max(0, int(found)) if found is not None else 0


def word(given: object) -> str | None:
    """Return a text in one line, cut where it is long, without what could steer anything; nothing for what is no text."""
    return readable.plain(given) if isinstance(given, str) else None


def value(given: object) -> Any:
    """Return a number, a truth, a text or a list of texts; nothing for anything else."""
    if isinstance(given, bool):
        return given
    if isinstance(given, list):
        return [w for w in (word(item) for item in cast(list[object], given)[:_NAMES_MAX]) if w is not None]
    return word(given) if isinstance(given, str) else number(given)


def chosen(record: Mapping[str, Any], names: Iterable[str]) -> Json:
    """Return those fields of a line that are there and can be used."""
    found = ((name, value(record.get(name))) for name in names)
    return {name: each for name, each in found if each is not None}
