"""Which lines does a person want to see? By role, client, round, event, level and time; a mistyped name gets the likely one."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, time
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any, Final, cast

from hushtune_common.errors import ConfigError
from hushtune_common.events.catalogue import EVENTS, similar
from hushtune_common.events.event import ROLES
from hushtune_server.testbed.logbook.lines import Line

LEVELS: Final = ("info", "warning", "error")
PROGRESS: Final = frozenset({"transfer_progressed", "training_progressed", "profile_progressed"})
"""Events that come many times and say only that it goes on."""
_UNITS: Final = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_LISTS: Final = ("clients", "accepted", "missing")


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """What to show; an empty tuple, or nothing, means any. ``since`` is in seconds since 1970."""

    roles: tuple[str, ...] = ()
    clients: tuple[str, ...] = ()
    rounds: tuple[int, ...] = ()
    events: tuple[str, ...] = ()
    level: str = "info"
    since: float | None = None

    def takes(self, line: Line) -> bool:
        """Whether this line is wanted."""
        return (
            (not self.roles or line.role in self.roles or line.process in self.roles)
            and (not self.clients or any(is_about(line, client) for client in self.clients))
            and (not self.rounds or line.round_id in self.rounds)
            and (not self.events or any(fnmatchcase(line.event, wanted) for wanted in self.events))
            and (self.since is None or line.moment >= self.since)
            and _severity(line.level) >= _severity(self.level)
        )


def is_about(line: Line, client: str) -> bool:
    """Whether ``client`` wrote the line, or is named in it."""
    named = (cast(Sequence[Any], found) for key in _LISTS if isinstance(found := line.record.get(key), list))
    return client in (line.client, line.process) or any(client in names for names in named)


def _severity(level: str) -> int:
    return LEVELS.index(level) if level in LEVELS else len(LEVELS)


def require_known(choice: Choice, lines: Sequence[Line]) -> None:
    """Raise `ConfigError`, with the likely name, for a role, client, event or round that is neither known nor in ``lines``."""
    roles = {*ROLES, *(line.process for line in lines), *(line.role for line in lines)}
    _require("--role", choice.roles, lambda name: name in roles, sorted(roles))
    clients = {c for line in lines for c in [line.client] if c is not None}
    _require("--client", choice.clients, lambda name: name in clients, sorted(clients))
    rounds = {str(line.round_id) for line in lines if line.round_id is not None}
    _require("--round", [str(r) for r in choice.rounds], lambda name: name in rounds, sorted(rounds))
    for wanted in choice.events:
        known = {*EVENTS, *(line.event for line in lines)}
        if not any(fnmatchcase(name, wanted) for name in known):
            raise ConfigError("--event", f"no event {wanted!r}; {similar(wanted)} A pattern such as 'update_*' takes several")


def _require(option: str, wanted: Sequence[str], known: Callable[[str], bool], names: Sequence[str]) -> None:
    for name in wanted:
        if not known(name):
            close = get_close_matches(name, names, n=1)
            hint = f"did you mean {close[0]}?" if close else f"there is {', '.join(names) or 'none'}"
            raise ConfigError(option, f"nothing here is of {name!r}; {hint}")


def since(text: str, *, first: float, last: float) -> float:
    """Return the time that ``text`` means, in seconds since 1970, for a log from ``first`` to ``last``.

    ``90s``, ``5m``, ``2h``, ``1d``: before the last line. ``+30s``: after the first one. ``09:41`` or ``09:41:30``: on the day of
    the last line, in UTC as the lines are shown. Or a date with time, ``2026-11-22T09:41:30+00:00``.
    """
    span = re.fullmatch(r"(\+?)(\d+(?:\.\d+)?)([smhd])", text.strip())
    if span is not None:
        seconds = float(span[2]) * _UNITS[span[3]]
        return first + seconds if span[1] else last - seconds
    for parse in (_time_of_day, _date):
        try:
            return parse(text.strip(), datetime.fromtimestamp(last, UTC))
        except ValueError:
            continue
    raise ConfigError(
        "--since", f"{text!r} is no time; say 5m (before the end), +30s (after the start), 09:41:30 or a date with time"
    )


def _time_of_day(text: str, day: datetime) -> float:
    return datetime.combine(day.date(), time.fromisoformat(text), tzinfo=UTC).timestamp()


def _date(text: str, day: datetime) -> float:
    found = datetime.fromisoformat(text)
    return (found if found.tzinfo is not None else found.replace(tzinfo=UTC)).timestamp()


def counted(lines: Sequence[Line]) -> Mapping[str, int]:
    """Return how often each event occurs, the most frequent first."""
    found: dict[str, int] = {}
    for line in lines:
        found[line.event] = found.get(line.event, 0) + 1
    return dict(sorted(found.items(), key=lambda item: (-item[1], item[0])))
