"""What does a page about a run start from? Its report, its scenario and its logs, as far as they have come."""

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from hushtune_common import config
from hushtune_common.errors import ConfigError
from hushtune_server.testbed import report as reports
from hushtune_server.testbed.logbook.lines import Line, Logbook
from hushtune_server.testbed.rundir import RunDirectory, read_json

Json = dict[str, Any]


_NEEDED: Final = frozenset(
    {"run", "status", "problem", "scenario", "scenario_digest", "seed", "fidelity", "clients", "settings", "test_windows"}
)
"""What a report has at least; one of an earlier version that lacks any of it is gathered anew."""


_HEARD: Final[Json] = dict.fromkeys(
    (
        "protection",
        "owner_has_every_byte",
        "design",
        "snr_tap_true_db",
        "tap_bits",
        "tap_crc_passes",
        "tap_assumption_held",
        "log2_delta_total",
        "log2_delta_all_rounds",
        "bound_void",
        "density",
        "constellation",
    )
)
"""What the referee says of each client's transmissions; nothing where it did not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """One round: what each client was assigned and came to (``clients``), and what both ears made of it (``heard``)."""

    round_id: int | None
    clients: Sequence[Json]
    heard: Sequence[Json]
    allocation: Json
    equal_share: Json

    def on_air(self, client: str) -> Json:
        """The referee's entry of one client; empty without one."""
        return next((entry for entry in self.heard if entry.get("client") == client), {})


@dataclass(frozen=True, slots=True, kw_only=True)
class Material:
    """All that a page is made from. ``scenario`` is the resolved file as plain tables, ``scenario_text`` as it stands there."""

    run: RunDirectory
    report: Json
    facts: Json
    scenario: Json
    scenario_text: str
    lines: Sequence[Line]
    damaged: Mapping[str, int]

    @property
    def clients(self) -> Sequence[Json]:
        """The report's entry of each client."""
        return self.report.get("clients") or []

    @property
    def link(self) -> Json:
        """What the referee found out about the bits on air; empty where it did not get that far."""
        return self.report.get("link") or {}

    def on_air(self, client: str) -> Json:
        """The referee's entry of one client; empty without one."""
        return next((entry for entry in self.link.get("clients") or () if entry.get("client") == client), {})

    @property
    def coded(self) -> Sequence[Json]:
        """The referee's entries of all updates that went over the wiretap code, of every round that it judged, the last first."""
        judged = [self.link, *reversed(self.link.get("earlier") or ())]
        entries = [{**c, "round_id": each.get("round_id")} for each in judged for c in each.get("clients") or ()]
        return [entry for entry in entries if entry.get("log2_delta_total") is not None]

    @property
    def rounds(self) -> Sequence[Round]:
        """The rounds that the report tells of one by one, the latest last; one at least."""
        told: list[Json] = self.report.get("shared_out") or []
        if len(told) < 2:
            return [self._round({**self.report, "round_id": self.link.get("round_id", 1)})]
        return [self._round(entry) for entry in told]

    def _round(self, entry: Json) -> Round:
        number = entry.get("round_id")
        heard = [self.link, *(self.link.get("earlier") or ())]
        return Round(
            round_id=number,
            clients=entry.get("clients") or [],
            heard=next((each.get("clients") or [] for each in heard if each.get("round_id") == number), []),
            allocation=entry.get("allocation") or {},
            equal_share=entry.get("equal_share") or {},
        )

    def setting(self, *path: str) -> Any:
        """Return a value of the scenario by its path, `None` where there is none."""
        found: Any = self.scenario
        for name in path:
            found = found.get(name) if isinstance(found, dict) else None
        return found


def gather(run: RunDirectory) -> Material:
    """Read a run directory, finished or not; `ConfigError` when it holds no run that can be told of.

    A run without a report that can be used, because it still goes on or was killed, is reported as far as it has come; nothing
    is written.
    """
    if not run.facts():
        raise ConfigError(str(run.path), "holds no run.json, so it is no run directory, or the run was lost in its first moment")
    text = _text(run)
    found = _report(run)
    book = Logbook(run.path / "logs")
    lines = list(book.fresh(ended=True))
    return Material(
        run=run, report=found, facts=run.facts(), scenario=_tables(text), scenario_text=text, lines=lines, damaged=book.damaged
    )


def _report(run: RunDirectory) -> Json:
    found = read_json(run.report)
    if {*found} >= _NEEDED:
        return _completed(found)
    try:
        fresh = reports.gather(run, config.load(run.scenario))
    except OSError as error:
        raise ConfigError(str(run.path), f"has neither a report nor a scenario that can be read ({error})") from error
    return {**fresh, "status": run.status}


def _completed(found: Json) -> Json:
    """Return a report with nothing missing that pages rely on: earlier versions knew less."""
    clients: list[Json] = [{"gate_numbers": {}, "update": {}, **client} for client in found["clients"]]
    link: Json = found.get("link") or {}
    heard: list[Json] = [{**_HEARD, **entry} for entry in link.get("clients") or ()]
    return {**found, "clients": clients, "link": {"round_id": 1, **link, "clients": heard} if heard else None}


def _text(run: RunDirectory) -> str:
    try:
        return run.scenario.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _tables(text: str) -> Json:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return {}
