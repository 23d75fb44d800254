"""How do the events of one process become spans? It remembers when things began, for as many as it may, and nothing else."""

from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping
from logging import LogRecord
from typing import Final

from hushtune_common.events.catalogue import EVENTS
from hushtune_common.traces.span import Rule, Span, plain, span_id, trace_id
from hushtune_common.traces.table import RULES

BEGINNINGS_MAX: Final = 4096
"""So many events may be remembered as beginnings; the oldest are forgotten first."""

_PER: Final[Mapping[str, tuple[str, ...]]] = {rule.name: rule.per for rule in RULES}
_NS: Final = 1_000_000_000


class Tracer:
    """Turns the events of a process of ``role`` into spans, and hands each to ``done`` when it is over.

    Laws: two processes give the same adapter the same trace and name each other's spans alike; an event that lacks a name (a run,
    a round, a client of the scenario) makes no span; what is remembered is bounded.
    """

    def __init__(self, *, role: str, name: str, clients: Collection[str], done: Callable[[Span], None]) -> None:
        """Take the process's ``name``, which at a client is the client's, and the ``clients`` of the scenario."""
        self._clients = frozenset(clients)
        self._own = name if role == "client" else ""
        self._done = done
        self._run = ""
        self._mine = [rule for rule in RULES if rule.by == role]
        self._starts = frozenset(rule.since for rule in self._mine if rule.since)
        self._models = frozenset(rule.like for rule in self._mine if rule.like)
        self._began: OrderedDict[tuple[str, int, int, str], int] = OrderedDict()
        self._last: dict[str, Mapping[str, object]] = {}

    def told(self, event: str, fields: Mapping[str, object], record: LogRecord) -> None:
        """Take one event in, at the time of its ``record``."""
        if event not in EVENTS:
            return
        if isinstance(run := fields.get("run"), str) and run and event in {"scenario_resolved", "run_joined"}:
            self._run = run
        now_ns = int(record.created * _NS)
        for rule in self._mine:
            if rule.ends == event and all(plain(fields.get(key)) == value for key, value in rule.only.items()):
                self._end(rule, {**self._last.get(rule.like, {}), **fields}, now_ns=now_ns)
        if event == "frame_reused":
            event = "frame_encoded"
        if event in self._models:
            self._last[event] = dict(fields)
        if event in self._starts:
            self._note(event, {**self._last.get("frame_encoded", {}), **fields}, now_ns=now_ns)

    def _end(self, rule: Rule, fields: Mapping[str, object], *, now_ns: int) -> None:
        trace = self._trace(fields)
        if trace is None:
            return
        seconds = fields.get(rule.seconds)
        began_ns = self._began.get(self._key(rule.since, trace, fields, per=rule.per), now_ns)
        if isinstance(seconds, int | float) and seconds > 0.0:
            began_ns = now_ns - int(seconds * _NS)
        per = {key: fields.get(key, "") for key in rule.per}
        around = {key: value for key, value in per.items() if key in _PER.get(rule.parent, ())}
        self._done(
            Span(
                name=rule.name,
                trace_id=trace,
                span_id=span_id(trace, rule.name, per=per),
                parent_id=span_id(trace, rule.parent, per=around) if rule.parent else 0,
                began_ns=min(began_ns, now_ns),
                ended_ns=now_ns,
                attributes=self._attributes(rule, fields),
                failed=rule.failed,
            )
        )

    def _attributes(self, rule: Rule, fields: Mapping[str, object]) -> Mapping[str, str | int | float | bool]:
        named = {"run": fields.get("run", self._run), "round": fields["round_id"], "client": fields.get("client", self._own)}
        more = {key: fields[key] for key in (*rule.per, *rule.tell) if fields.get(key) is not None}
        return {f"hushtune.{key}": plain(value) for key, value in (named | more).items()}

    def _trace(self, fields: Mapping[str, object]) -> int | None:
        run, client, round_id = fields.get("run", self._run), fields.get("client", self._own), fields.get("round_id")
        if not (isinstance(run, str) and run and isinstance(round_id, int) and isinstance(client, str)):
            return None
        return trace_id(run=run, round_id=round_id, client=client) if client in self._clients else None

    def _note(self, event: str, fields: Mapping[str, object], *, now_ns: int) -> None:
        trace = self._trace(fields)
        if trace is None:
            return
        for per in {rule.per for rule in self._mine if rule.since == event}:
            self._began[self._key(event, trace, fields, per=per)] = now_ns
        while len(self._began) > BEGINNINGS_MAX:
            self._began.popitem(last=False)

    @staticmethod
    def _key(event: str, trace: int, fields: Mapping[str, object], *, per: tuple[str, ...]) -> tuple[str, int, int, str]:
        return event, trace, len(per), "/".join(str(plain(fields.get(key, ""))) for key in per)
