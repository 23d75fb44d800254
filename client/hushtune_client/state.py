"""What does a client still know after a restart? Its events, its directives' number, and its sealed update.

The journal holds the round's events in order; folding them through ``rounds.advance`` gives back the state. The sealed bytes lie
beside it, so a restarted client sends the same bytes again instead of training once more.
"""

import asyncio
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from hushtune_client import phases, rounds
from hushtune_client.phases import Command, Event, Idle, State, Terms
from hushtune_common.errors import ConfigError, DigestMismatch
from hushtune_common.messages import ClientId, Digest, RunId, Verdict
from hushtune_common.store.journal import Journal

SCHEMA = "hushtune-client/1"

_EVENTS: dict[str, type[Any]] = {
    kind.__name__: kind
    for kind in (
        phases.RoundOpened,
        phases.AssignmentReceived,
        phases.TrainingStarted,
        phases.UpdateSealed,
        phases.FrameAnswered,
        phases.RoundFailed,
        phases.RoundClosed,
        phases.VerdictReached,
        phases.Drained,
    )
}


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundFiles:
    """Where the files of one round lie; the folder is made private on first use."""

    directory: Path

    @property
    def windows(self) -> Path:
        """Private token windows for the trainer."""
        return self.directory / "windows.npy"

    @property
    def adapter(self) -> Path:
        """The trained adapter."""
        return self.directory / "adapter.safetensors"

    @property
    def sealed(self) -> Path:
        """The sealed update."""
        return self.directory / "sealed.bin"


class ClientState:
    """The client's memory.

    Laws: an event is durable before ``record`` returns its commands; a directive at or below ``last_seen_seq`` is never recorded
    again; opening the same folder twice gives the same state.
    """

    def __init__(self, directory: Path, journal: Journal, *, client: ClientId, attempts_max: int) -> None:
        """Use `open`."""
        self._directory = directory
        self._journal = journal
        self._client = client
        self._attempts_max = attempts_max
        self._terms: Terms | None = None
        self._sealed: dict[int, Digest] = {}
        self.current: State = Idle()
        self.last_seen_seq = 0

    @staticmethod
    def open(directory: Path, *, client: ClientId, attempts_max: int) -> "ClientState":
        """Open or make the state folder and fold its journal; `ConfigError` when it is not usable or not this client's."""
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError("--state", f"cannot use the folder {directory} ({error.strerror})") from error
        journal = Journal.open(directory / "journal.sqlite", schema=SCHEMA)
        state = ClientState(directory, journal, client=client, attempts_max=attempts_max)
        for entry in journal.events():
            state._fold(entry.kind, entry.body)
        return state

    async def close(self) -> None:
        """Close the journal."""
        await self._journal.close()

    @property
    def restarted(self) -> bool:
        """Whether the folder already knew a run when it was opened."""
        return self._terms is not None

    async def join(self, run: RunId) -> None:
        """Remember the run; `ConfigError` when the folder belongs to another one."""
        if self._terms is None:
            await self._append("joined", {"run": run, "client": self._client})
        elif self._terms.run != run:
            raise ConfigError("--state", f"{self._directory} belongs to run {self._terms.run}, not {run}; choose an empty folder")

    @property
    def terms(self) -> Terms:
        """Whose rounds these are. Only after ``join``."""
        if self._terms is None:
            raise RuntimeError("join comes first")
        return self._terms

    async def record(self, event: Event, *, seq: int | None = None) -> tuple[Command, ...]:
        """Make ``event`` durable, advance, and return what to do now; ``seq`` is the directive that it came with.

        A directive that was seen already returns nothing to do.
        """
        if seq is not None and seq <= self.last_seen_seq:
            return ()
        before = self.current
        after, commands = rounds.advance(before, event, terms=self.terms)
        if after == before and seq is None:
            return ()
        # As text, because a gate may name minus infinity decibels, which plain JSON cannot.
        body = {"type": type(event).__name__, "event": json.dumps(msgspec.to_builtins(event)), "seq": seq}
        await self._append("advanced", body)
        return commands

    def files(self, round_id: int) -> RoundFiles:
        """Return where the files of a round lie."""
        directory = self._directory / "rounds" / str(round_id)
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        return RoundFiles(directory=directory)

    async def keep_sealed(self, round_id: int, data: bytes) -> None:
        """Write the sealed update of a round durably, and remember its digest."""
        await asyncio.to_thread(_write_durably, self.files(round_id).sealed, data)
        await self._append("sealed", {"round_id": round_id, "digest": Digest.of(data).hex})

    def sealed(self, round_id: int) -> bytes:
        """Return the sealed update of a round; `DigestMismatch` unless the file holds exactly what was sealed."""
        path = self.files(round_id).sealed
        try:
            data = path.read_bytes()
        except OSError as error:
            raise DigestMismatch(f"{path}: the sealed update is gone ({error.strerror})") from error
        if Digest.of(data) != self._sealed.get(round_id):
            raise DigestMismatch(f"{path}: not the bytes that were sealed")
        return data

    async def keep_verdict(self, verdict: Verdict) -> None:
        """Remember the owner's verdict."""
        await self._append("judged", {"verdict": msgspec.to_builtins(verdict)})

    def verdicts(self) -> tuple[Verdict, ...]:
        """Return the verdicts received so far, in order."""
        bodies = (e.body["verdict"] for e in self._journal.events() if e.kind == "judged")
        return tuple(msgspec.convert(body, Verdict) for body in bodies)

    def forget_private(self, round_id: int) -> None:
        """Delete the private windows and the unsealed adapter of a round that is over."""
        files = self.files(round_id)
        files.windows.unlink(missing_ok=True)
        files.adapter.unlink(missing_ok=True)

    async def _append(self, kind: str, body: Mapping[str, object]) -> None:
        entry = await self._journal.append(kind, body)
        self._fold(kind, entry.body)

    def _fold(self, kind: str, body: dict[str, Any]) -> None:
        match kind:
            case "joined":
                if body["client"] != self._client:
                    raise ConfigError("--state", f"{self._directory} belongs to client {body['client']}; choose an empty folder")
                self._terms = Terms(run=RunId(body["run"]), client=self._client, attempts_max=self._attempts_max)
            case "advanced":
                event: Event = msgspec.convert(json.loads(body["event"]), _EVENTS[body["type"]])
                self.current, _ = rounds.advance(self.current, event, terms=self.terms)
                self.last_seen_seq = max(self.last_seen_seq, body["seq"] or 0)
            case "sealed":
                self._sealed[body["round_id"]] = Digest.from_hex(body["digest"])
            case _:
                pass


def _write_durably(path: Path, data: bytes) -> None:
    partial = path.with_suffix(".partial")
    with partial.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
