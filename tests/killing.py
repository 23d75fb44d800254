"""What must be true of a run whose processes were killed at random, again and again, and started at once each time?

Everything is read from what the processes left behind, by the standard library and a reader of arrays: the journals' rows, the
version records, the adapters' files.
"""

import base64
import hashlib
import json
import random
import sqlite3
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors.numpy import load_file

from hushtune_common.clock import SystemClock
from tests.small import MODEL_AND_TEXTS, WIDE_GATE, clients
from tests.troupe import SERVERS, Troupe

Row = tuple[str, dict[str, Any]]
TAP = "eavesdropper"
_POLL_S = 0.05
CLIENTS = ("c1", "c2")
# Who is killed is to be waited for, however long a busy machine takes to start it again: ``idle_s`` is not what is tried here.
SCENARIO = f"""
name = "killed"
seed = 3
{MODEL_AND_TEXTS}
[owner]
emulator = {{ method = "uniform", drop = 2 }}
{WIDE_GATE}
[training]
learning_rate = 3e-3
epochs = 30
[codec]
bits = 4
[air]
fidelity = "abstract"
shadowing_db = 0.0
[coordinator]
rounds = {{rounds}}
stragglers = {{ kind = "everyone" }}
[timing]
connect_s = 300
idle_s = 300
round_s = 1800
{clients(*CLIENTS)}
"""


def begin(troupe: Troupe) -> None:
    """Start everybody; clients when there is somebody to connect to, since a busy machine may take minutes for the owner."""
    for name in (*SERVERS, TAP):
        troupe.start(name)
    troupe.wait_for(lambda: bool(troupe.told("owner", "serving_started")), within_s=600.0)
    for name in troupe.clients:
        troupe.start(name)


@dataclass
class Campaign:
    """Kills one process after the other, at moments and with victims that the seed draws, and starts each again at once."""

    troupe: Troupe
    rng: random.Random
    kills_max: int
    pause_max_s: float
    killed: list[tuple[float, str, str]] = field(default_factory=list[tuple[float, str, str]])

    def play(self, *, within_s: float) -> None:
        """Until the run is over; ``TimeoutError`` with the last words when it is not by then."""
        clock = SystemClock()
        began_s = clock.monotonic()
        due_s = None
        while not self.troupe.ended("coordinator", "owner", *self.troupe.clients):
            now_s = clock.monotonic()
            if now_s - began_s > within_s:
                raise TimeoutError(f"not over after {within_s:.0f} s: {self.troupe.words()}")
            if due_s is not None and now_s >= due_s and len(self.killed) < self.kills_max:
                self._kill(now_s - began_s)
                due_s = None
            if due_s is None and self.troupe.told("coordinator", "round_opened"):
                # Not before: what is killed while everybody starts is killed at the same few places again and again.
                due_s = now_s + self.rng.uniform(0.0, self.pause_max_s)
            clock.pause(_POLL_S)

    def _kill(self, at_s: float) -> None:
        # What has ended by itself is over, and so is a client that took its leave, though its process may take a moment to go:
        # started again it would look for a run that is not there any more. What ended badly is left for the checks.
        running = (name for name, process in self.troupe.running.items() if process.poll() is None)
        candidates = sorted(name for name in running if not self.troupe.told(name, "run_left"))
        if not candidates:
            return
        victim = self.rng.choice(candidates)
        said = self.troupe.events(victim)
        self.troupe.kill(victim)
        self.troupe.start(victim)
        self.killed.append((at_s, victim, _last_word(said)))


def _last_word(said: list[dict[str, Any]]) -> str:
    if not said:
        return "before its first word"
    round_id = next((e["round_id"] for e in reversed(said) if "round_id" in e), 0)
    return f"after {said[-1]['event']} {said[-1].get('phase', '')}".strip() + (f", round {round_id}" if round_id else "")


def rows(journal: Path) -> list[Row]:
    """The events of a journal, in order."""
    with sqlite3.connect(f"file:{journal}?mode=ro", uri=True) as database:
        found = database.execute("SELECT kind, body FROM events ORDER BY seq").fetchall()
    database.close()
    return [(kind, json.loads(body)) for kind, body in found]


def faults(troupe: Troupe, *, rounds: int) -> list[str]:
    """What does not hold of a run that is over; nothing, when all is well."""
    names = ["coordinator", "owner", *troupe.clients]
    codes = {name: troupe.running[name].returncode for name in names}
    found = [f"{name} ended with code {code}: {_last_line(troupe, name)}" for name, code in codes.items() if code != 0]
    expected = [(n, client) for n in range(1, rounds + 1) for client in troupe.clients]
    journals = {name: rows(troupe.folder / name / "journal.sqlite") for name in (*names, "air")}
    found += _once("the owner judged", (_slot(b["key"]) for k, b in journals["owner"] if k == "judged"), expected)
    accepted = [b for k, b in journals["owner"] if k == "judged" and b["accepted"]]
    found += _once("the owner accepted", (_slot(b["key"]) for b in accepted), expected)
    settled = [b["settlement"] for k, b in journals["coordinator"] if k == "settled"]
    found += _once("the coordinator counted", (_slot(b["key"]) for b in settled if b["accepted"]), expected)
    found += _same_bytes(accepted, journals, troupe.clients)
    closings = {b["round_id"]: b for k, b in journals["owner"] if k == "closed"}
    found += _rounds(troupe, closings, rounds=rounds)
    found += _adapters(troupe.folder / "owner" / "versions", closings)
    return found


def _rounds(troupe: Troupe, closings: dict[int, dict[str, Any]], *, rounds: int) -> Iterable[str]:
    """Each round is closed at coordinator and owner, with every client's update in it."""
    everyone = sorted(troupe.clients)
    for n in range(1, rounds + 1):
        path = troupe.folder / "coordinator" / f"round-{n}.json"
        record = json.loads(path.read_bytes()) if path.exists() else {}
        if (record.get("state"), sorted(record.get("accepted", []))) != ("closed", everyone):
            yield f"round {n} is {record.get('state')} with {record.get('accepted')} ({record.get('reasons')})"
        closing = closings.get(n, {})
        if (sorted(closing.get("accepted", [])), sorted(closing.get("merged", []))) != (everyone, everyone):
            yield f"the owner closed round {n} with {closing.get('accepted')}, averaged {closing.get('merged')}"


def _same_bytes(accepted: list[dict[str, Any]], journals: dict[str, list[Row]], clients: Iterable[str]) -> Iterable[str]:
    """What was accepted is what its client sealed, and the air carried it, each attempt under one frame."""
    sealed = {(b["round_id"], c): b["digest"] for c in clients for k, b in journals[c] if k == "sealed"}
    carried = [b["transmission"] for k, b in journals["air"] if k == "transmitted"]
    for body in accepted:
        slot = _slot(body["key"])
        if _hex(body["digest"]) != sealed.get(slot):
            yield f"the owner accepted {_hex(body['digest'])} of {slot}, sealed was {sealed.get(slot)}"
        if slot not in {_slot(t["key"]) for t in carried}:
            yield f"the air never carried {slot}"
    again = [key for key, count in Counter((_slot(t["key"]), t["key"]["attempt"]) for t in carried).items() if count > 1]
    if again:
        yield f"carried twice under one key: {again}"


def _adapters(folder: Path, closings: dict[int, dict[str, Any]]) -> Iterable[str]:
    """The stored average of each round is the mean of the updates that its closing names, and the last kept one is seated."""
    records = [json.loads(path.read_bytes()) for path in sorted((folder / "records").glob("*.json"))]
    seated = ""
    for n, closing in sorted(closings.items()):
        mine = {r["who"]: r for r in records if r["round_id"] == n}
        if "aggregate" not in mine or not {*closing["merged"]} <= {*mine}:
            yield f"round {n} has versions of {sorted(mine)}, averaged were {closing['merged']}"
            continue
        average = _load(folder, mine["aggregate"])
        parts = [_load(folder, mine[who]) for who in closing["merged"]]
        for name, tensor in average.items():
            mean = sum(part[name].astype("float64") for part in parts) / len(parts)
            if abs(tensor - mean).max() > 1e-6:
                yield f"round {n}: {name} is not the mean of its parts"
        if closing["kept"]:
            seated = _id(mine["aggregate"])
    current = json.loads((folder / "current.json").read_bytes())["current"] if (folder / "current.json").exists() else ""
    if current != seated:
        yield f"in the model sits {current!r}, the journal says {seated!r}"


def _load(folder: Path, record: dict[str, Any]) -> dict[str, Any]:
    file = folder / "adapters" / f"{record['digest']}.safetensors"
    if hashlib.sha256(file.read_bytes()).hexdigest() != record["digest"]:
        raise AssertionError(f"{file} does not have the content that its name says")
    return load_file(file)


def _id(record: dict[str, Any]) -> str:
    return f"{record['run']}.{record['round_id']}.{record['who']}.{record['digest'][:12]}"


def _once(what: str, found: Iterable[tuple[int, str]], expected: list[tuple[int, str]]) -> Iterable[str]:
    counts = Counter(found)
    yield from (f"{what} {slot} {counts[slot]} times" for slot in {*counts, *expected} if counts[slot] != (slot in expected))


def _slot(key: dict[str, Any]) -> tuple[int, str]:
    return key["round_id"], key["client"]


def _hex(digest: Any) -> str | None:
    """A digest as the journals write it: a table with its bytes in base 64, or nothing."""
    return None if digest is None else base64.b64decode(digest["value"]).hex()


def _last_line(troupe: Troupe, name: str) -> str:
    lines = (troupe.folder / f"{name}.err").read_text(errors="replace").strip().splitlines()
    return lines[-1] if lines else ""
