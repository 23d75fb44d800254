"""What do a run's files say beside its logs? Its scenario, how it stands, the equal share, and a sample of the bytes on air.

A testbed keeps what all parties hold in one place, so that it alone can lay the bytes side by side; of folders with gathered logs
only the scenario is read, if there is one.
"""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, cast

from hushtune_common.config import Scenario, load
from hushtune_common.errors import HushtuneError
from hushtune_server.testbed import equal_share
from hushtune_server.testbed.dashboard.patches import Tree, at
from hushtune_server.testbed.dashboard.values import Json, chosen, number, word
from hushtune_server.testbed.link_referee import compare
from hushtune_server.testbed.rundir import RunDirectory, read_json

SAMPLE_BYTES: Final = 48
_COMPARED_MAX: Final = 4096
"""Hash blocks that are compared on the way: some 16 MB, a few milliseconds. The referee compares all."""

_SCENARIO: Final = "scenario.toml"
_FACTS: Final = ("id", "status", "scenario", "seed", "started", "wall_s", "problem")


@dataclass(slots=True)
class Files:
    """Reads what changes rarely, and only when it has changed."""

    folder: Path
    run: RunDirectory | None
    scenario_path: Path | None = None
    _scenario: Scenario | None = None
    _told: Json = field(default_factory=dict[str, Any])
    _marks: dict[str, object] = field(default_factory=dict[str, object])

    def facts(self) -> Json:
        """Return what the run is called and how it stands; of a folder with gathered logs, its name."""
        if self.run is None:
            return {"id": word(self.folder.name) or "?", "status": "gathered"}
        made = chosen(self.run.facts(), _FACTS)
        return {**made, "id": self.run.id, "status": self.run.status}

    def places(self) -> Json:
        """Return who stands where, in metres from the owner's receiver, and on what band; empty if unknown."""
        path = self._scenario_file()
        if path is None or not self._changed("scenario", path):
            return cast(Json, self._told.get("places", {}))
        try:
            tree: Json = tomllib.loads(path.read_text(encoding="utf-8", errors="replace"))
        except (OSError, tomllib.TOMLDecodeError):
            return {}
        self._told["places"] = _places(tree)
        self._scenario = _loaded(path)
        return self._told["places"]

    def _scenario_file(self) -> Path | None:
        choices = (self.scenario_path, self.run and self.run.scenario, self.folder / _SCENARIO, self.folder.parent / _SCENARIO)
        return next((path for path in choices if path is not None and path.is_file()), None)

    def baseline(self, state: Tree) -> Json:
        """Return by round what every client would have got in equal parts, made from the reports that the logs name."""
        if self._scenario is None:
            return {}
        made: Json = {}
        for round_id in at(state, "rounds"):
            reports = _reports(self._scenario, state, round_id)
            if reports and at(state, "rounds", round_id, "solved"):
                made[round_id] = self._equal(round_id, reports)
        last = max(at(state, "rounds"), key=int, default="1")
        written = {} if self.run is None else at(self._report(self.run), "equal_share")
        return {last: _equal_of(written), **made} if written else made

    def _equal(self, round_id: str, reports: list[Json]) -> Json:
        known = self._told.get(f"equal {round_id}")
        if known is None or self._marks.get(f"equal {round_id}") != reports:
            self._marks[f"equal {round_id}"] = reports
            known = self._told[f"equal {round_id}"] = _equal_share(cast(Scenario, self._scenario), reports)
        return known

    def bytes(self, state: Tree) -> Json:
        """Return by round and client the first bytes of a sealed update as sent and as Eve guesses them, with her bit errors."""
        if self.run is None:
            return {}
        made: Json = {}
        for round_id, entry in at(state, "rounds").items():
            found = {c: f for c in at(entry, "clients") if (f := self._laid_side_by_side(self.run, round_id, c))}
            made |= {round_id: found} if found else {}
        return made

    def _laid_side_by_side(self, run: RunDirectory, round_id: str, client: str) -> Json | None:
        if "/" in client or client.startswith("."):
            return None
        truth = run.state(client) / "rounds" / round_id / "sealed.bin"
        guess = run.state("eavesdropper") / "guesses" / f"{client}-{round_id}-payload.bin"
        name = f"bytes {round_id} {client}"
        if self._changed(name, truth, guess, guess.with_suffix(".json")):
            self._told[name] = _sample(truth, guess) or self._told.get(name)  # a finished run prunes what is big
        return cast(Json | None, self._told.get(name)) or self._judged(run, round_id, client)

    def _judged(self, run: RunDirectory, round_id: str, client: str) -> Json | None:
        """Return the bit errors that the referee counted."""
        link = at(self._report(run), "link")
        if str(link.get("round_id")) != round_id:
            return None
        entries = cast(list[Json], link.get("clients") or [])
        counted: Tree = next((at(e, "tap_bits") for e in entries if e.get("client") == client), {})
        low, high = counted.get("guessing_interval_99") or (None, None)
        made = chosen(counted, ("bits_wrong", "bits_compared"))
        return {**made, "guessing_low": low, "guessing_high": high} if low is not None and made else None

    def _report(self, run: RunDirectory) -> Json:
        if self._changed("report", run.report):
            self._told["report"] = read_json(run.report)
        return cast(Json, self._told.get("report") or {})

    def _changed(self, name: str, *paths: Path) -> bool:
        mark = tuple(_mark(path) for path in paths)
        if self._marks.get(name) == mark:
            return False
        self._marks[name] = mark
        return True


def _mark(path: Path) -> object:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns


def _loaded(path: Path) -> Scenario | None:
    try:
        return load(path)
    except (HushtuneError, OSError):
        return None


def _places(tree: Json) -> Json:
    entries = cast(list[Tree], [c for c in cast(list[object], tree.get("clients") or []) if isinstance(c, Mapping)])
    clients = {word(c.get("id")) or "?": _place(c.get("position")) for c in entries}
    air = cast(Json, tree.get("air") or {})
    return {
        "clients": {name: place for name, place in clients.items() if place},
        "eavesdropper": _place(air.get("eavesdropper")),
        "air": {**chosen(air, ("bandwidth_hz", "fidelity")), "moves": bool(air.get("moves") or air.get("coherence_s"))},
    }


def _place(given: object) -> Json:
    if not isinstance(given, Mapping):
        return {}
    x, y = (number(cast(Mapping[str, Any], given).get(name)) for name in ("x_m", "y_m"))
    return {} if x is None or y is None else {"x_m": x, "y_m": y}


def _reports(scenario: Scenario, state: Tree, round_id: str) -> list[Json]:
    """Return the reports of a round as the coordinator had them, from what clients logged and the scenario says of devices."""
    found: list[Json] = []
    for client in scenario.clients:
        said = at(state, "rounds", round_id, "clients", client.id, "report")
        if "flops" in said:
            found.append(
                {
                    "client": client.id,
                    "round_id": int(round_id),
                    "gain_main": said.get("gain_main"),
                    "gain_tap": said.get("gain_tap_bound"),
                    "power_max": client.power_max_w,
                    "clock_max": client.clock_max_flops,
                    "energy_max": client.energy_max_j,
                    "sample_count": said.get("sample_count"),
                    "update_bits": said.get("update_bits"),
                    "train_flops": said.get("flops"),
                    "energy_w_per_flops3": client.energy_w_per_flops3,
                }
            )
    return found


def _equal_share(scenario: Scenario, reports: list[Json]) -> Json:
    return _equal_of(equal_share.of(scenario, {"reports": reports}) or {})


def _equal_of(found: Tree) -> Json:
    names = ("decision", "bandwidth_hz", "power_w", "clock_flops", "adapter_share", "airtime_s", "train_s", "energy_j")
    made: Json = {"clients": {c: chosen(a, names) for c, a in at(found, "clients").items()}}
    return made | chosen(found, ("objective", "problem"))


def _sample(truth: Path, guess: Path) -> Json | None:
    """Return the first bytes of both as hexadecimal, the digest of what was sent, and the bit errors of the guess so far."""
    sent = _head(truth)
    if sent is None:
        return None
    made: Json = {"sent": sent.hex(), "bytes": truth.stat().st_size}
    guessed = _head(guess)
    if guessed is None:
        return made
    made["guessed"] = guessed.hex()
    errors = _errors(truth, guess)
    return made if errors is None else {**made, **errors}


def _errors(truth: Path, guess: Path) -> Json | None:
    tale: Json = read_json(guess.with_suffix(".json"))
    design = at(tale, "public", "design")
    try:
        found = compare(truth, guess, guess.with_suffix(".decoded"), design=design, blocks_max=_COMPARED_MAX)
    except (OSError, ValueError, KeyError, TypeError):  # written at this very moment
        return None
    if found is None:
        return None
    low, high = found.interval_99
    return {"bits_wrong": found.wrong, "bits_compared": found.of, "guessing_low": low, "guessing_high": high}


def _head(path: Path) -> bytes | None:
    try:
        with path.open("rb") as file:
            return file.read(SAMPLE_BYTES) or None
    except OSError:
        return None
