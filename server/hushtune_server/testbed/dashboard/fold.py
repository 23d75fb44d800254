"""What do the lines of a run's logs add up to? One tree of plain values, grown line by line: the state of the page.

Laws: the fold is a pure function; lines of *different* processes may come in any order and give the same state, since each role
writes to places of its own, so what was followed live equals what is read afterwards; unknown and broken lines change nothing but
the count; the state's size is bounded.

::

    seen        how many lines, the first and last moment (seconds since 1970)
    processes   by name: role, phase, since, lives, warnings, how far it is
    rounds      by number: opened, closed, accepted …; clients by id, each with what every role says about it
    settings    perplexity by setting;  settings_of: of one client's plug-in
    emulator    what clients are given
    history     by number of the round: one line about it, kept when the rest is not any more
    news        the latest events in words, by a key that sorts by time
"""

from collections.abc import Callable, Mapping
from typing import Any, Final

from hushtune_server.testbed.dashboard import about_clients, about_runs
from hushtune_server.testbed.dashboard.news import NEWS_MAX, told
from hushtune_server.testbed.dashboard.patches import Tree, at, merged
from hushtune_server.testbed.dashboard.values import Json, number, word
from hushtune_server.testbed.logbook.lines import Line

ROUNDS_MAX: Final = 12
"""Rounds that are kept, the latest ones; the finished report has all of them."""

HISTORY_MAX: Final = 400
"""Rounds of which one line is kept."""

CLIENTS_MAX: Final = 128
PROCESSES_MAX: Final = 256

Change = Callable[[Mapping[str, Any], float], Json]
_IN_ROUNDS: Final[Mapping[str, Mapping[str, Change]]] = about_clients.CHANGES
_OF_RUNS: Final[Mapping[str, Mapping[str, Change]]] = about_runs.CHANGES


def fold(state: Tree, line: Line) -> Tree:
    """Return the state after one more line."""
    changed = merged(state, {"seen": _seen(state, line)})
    if not line.event:
        return changed
    name = word(line.process) or "?"
    if name in at(changed, "processes") or len(at(changed, "processes")) < PROCESSES_MAX:
        changed = merged(changed, {"processes": {name: _process(changed, name, line)}})
    changed = merged(changed, _of_run(line))
    changed = _of_round(changed, line, process=name)
    return _news(changed, line)


def _seen(state: Tree, line: Line) -> Json:
    seen = at(state, "seen")
    made: Json = {"lines": seen.get("lines", 0) + 1}
    if line.moment > 0:
        made["first"] = min(seen.get("first", line.moment), line.moment)
        made["last"] = max(seen.get("last", line.moment), line.moment)
    return made


def _process(state: Tree, name: str, line: Line) -> Json:
    before = at(state, "processes", name)
    made: Json = {"at": line.moment}
    if line.level != "info":
        made["warnings"] = before.get("warnings", 0) + 1
    if (round_id := _round_id(line)) is not None:
        made["round"] = round_id
    if line.event == "scenario_resolved":
        made["lives"] = before.get("lives", 0) + 1
    return made | about_runs.process_change(line.record, line.moment, role=word(line.role) or "?")


def _round_id(line: Line) -> int | None:
    found = number(line.round_id)
    return int(found) if found is not None and found >= 1 else None


def _of_run(line: Line) -> Json:
    change = _OF_RUNS.get(line.role, {}).get(line.event)
    return change(line.record, line.moment) if change is not None else {}


def _of_round(state: Tree, line: Line, *, process: str) -> Tree:
    of_round = about_runs.ROUND_CHANGES.get(line.role, {}).get(line.event)
    of_client = _IN_ROUNDS.get(line.role, {}).get(line.event)
    client = word(line.client) or (process if line.role == "client" else None)
    of_client = None if client is None or client == "aggregate" else of_client
    round_id = _round_id(line) or at(state, "processes", process).get("round")
    if round_id is None or (of_round is None and of_client is None):
        return state
    made: Json = {} if of_round is None else of_round(line.record, line.moment)
    if of_client is not None and client is not None and _has_room(state, str(round_id), client):
        made["clients"] = {client: of_client(line.record, line.moment)}
    line_of = about_runs.HISTORY_CHANGES.get(line.role, {}).get(line.event)
    changes: Json = {"rounds": {str(round_id): made}}
    if line_of is not None and (told := line_of(line.record, line.moment)):
        changes["history"] = {str(round_id): told}
    return _latest(_latest(merged(state, changes), "rounds", ROUNDS_MAX), "history", HISTORY_MAX)


def _has_room(state: Tree, round_id: str, client: str) -> bool:
    known = at(state, "rounds", round_id, "clients")
    return client in known or len(known) < CLIENTS_MAX


def _latest(state: Tree, part: str, most: int) -> Tree:
    """Return the state with the latest ``most`` rounds of ``part``."""
    rounds = at(state, part)
    if len(rounds) <= most:
        return state
    kept = sorted(rounds, key=int)[-most:]
    return {**state, part: {key: rounds[key] for key in kept}}


def _news(state: Tree, line: Line) -> Tree:
    item = told(line)
    if item is None:
        return state
    key = f"{line.moment:017.3f}/{word(line.process)}/{line.index:08d}"
    news = {**at(state, "news"), key: item}
    if len(news) > NEWS_MAX:
        news = {kept: news[kept] for kept in sorted(news)[-NEWS_MAX:]}
    return {**state, "news": news}
