"""What does a client still know after a restart? Its events, its directives' number, its sealed update, and its frames.

The journal holds the round's events in order; folding them through ``rounds.advance`` gives back the state. What is to be sent
lies beside it in files, so a restarted client sends the same bytes again instead of training, sealing or coding once more.
"""

import asyncio
import hashlib
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from shutil import rmtree
from typing import Any, TypeVar

import msgspec

from hushtune_client import phases, rounds
from hushtune_client.feedback import Residuals
from hushtune_client.phases import Command, Event, Idle, State, Terms
from hushtune_common.adapter import AdapterState, load_adapter
from hushtune_common.config import LimitsConfig
from hushtune_common.errors import ConfigError, DigestMismatch, LimitExceeded, MalformedUpdate, StorageFull
from hushtune_common.messages import ClientId, Digest, LinkSeed, Part, RunId, SecrecyDesign, TensorSpec, UpdateKey, Verdict
from hushtune_common.model.weights import write_tensors
from hushtune_common.store.disk import full_disk_is_typed
from hushtune_common.store.files import write_durably
from hushtune_common.store.journal import Durability, Journal
from hushtune_common.store.partial import make_folder
from hushtune_common.store.room import Room

_T = TypeVar("_T")
_SCHEMA, _VERSION = "hushtune-client", 2

_DIRECTIVES_MAX = LimitsConfig().directives_max

_EVENTS: dict[str, type[Any]] = {
    kind.__name__: kind
    for kind in (
        phases.RoundOpened,
        phases.AssignmentReceived,
        phases.TrainingStarted,
        phases.ChannelMoved,
        phases.UpdateSealed,
        phases.FrameAnswered,
        phases.RoundFailed,
        phases.RoundClosed,
        phases.VerdictReached,
        phases.SumHeard,
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

    @property
    def secret(self) -> Path:
        """The secret that the seal needs, when a key part brings it to the owner."""
        return self.directory / "secret.bin"

    @property
    def sum_state(self) -> Path:
        """What is known of the round's sum, the member's secrets among it."""
        return self.directory / "sum.bin"

    def link_seed(self, part: Part) -> Path:
        """Public seed and dither of a part, with their tag."""
        return self.directory / f"link-{part}.json"

    def frame(self, attempt: int) -> Path:
        """The frame of one attempt; it is there once it is whole and durable."""
        return self.directory / f"frame-{attempt}.bin"

    def forget_frames(self, *, before: int | None = None) -> None:
        """Delete the frames of the attempts below ``before``, or every frame, unfinished ones included."""
        for path in self.directory.glob("frame-*"):
            attempt = int(path.name.removeprefix("frame-").partition(".")[0])
            if before is None or attempt < before:
                path.unlink(missing_ok=True)


async def seen_through(work: Awaitable[_T], *, cancel: Callable[[], None] | None = None) -> _T:
    """Return what ``work`` in a thread returns; when cancelled, ask it to end (``cancel``) and wait until it has.

    A thread cannot be cancelled, and what it writes after its round was given up would be deleted by nobody.
    """
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        if cancel is not None:
            cancel()
        await asyncio.gather(task, return_exceptions=True)
        raise


class ClientState:
    """The client's memory.

    Laws: an event is durable before ``record`` returns its commands; a directive at or below ``last_seen_seq`` is never recorded
    again, and no more than ``directives_max`` ever are; opening the same folder twice gives the same state.
    """

    def __init__(
        self,
        directory: Path,
        journal: Journal,
        *,
        client: ClientId,
        attempts_max: int,
        directives_max: int = _DIRECTIVES_MAX,
        room: Callable[[], Room] | None = None,
    ) -> None:
        """Use `open`."""
        self._room = room
        self._directory = directory
        self._journal = journal
        self._client = client
        self._attempts_max = attempts_max
        self._directives_max = directives_max
        self._directives = 0
        self._terms: Terms | None = None
        self._sealed: dict[int, Digest] = {}
        self._verdicts: list[Verdict] = []
        self._residuals = Residuals()
        self.current: State = Idle()
        self.last_seen_seq = 0

    @staticmethod
    def open(
        directory: Path,
        *,
        client: ClientId,
        attempts_max: int,
        directives_max: int = _DIRECTIVES_MAX,
        durability: Durability = "process",
        room: Callable[[], Room] | None = None,
    ) -> "ClientState":
        """Open or make the state folder and fold its journal; `ConfigError` when it is not usable or not this client's.

        An event that the disk has no room for waits as long as what ``room`` makes; without it ``StorageFull`` is raised at once.
        """
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError("--state", f"cannot use the folder {directory} ({error.strerror})") from error
        journal = Journal.open(directory / "journal.sqlite", schema=_SCHEMA, version=_VERSION, durability=durability)
        state = ClientState(
            directory, journal, client=client, attempts_max=attempts_max, directives_max=directives_max, room=room
        )
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

    def key(self, round_id: int, *, attempt: int) -> UpdateKey:
        """Return the key of one attempt of this client in a round."""
        return UpdateKey(run=self.terms.run, round_id=round_id, client=self._client, attempt=attempt)

    async def record(self, event: Event, *, seq: int | None = None) -> tuple[Command, ...]:
        """Make ``event`` durable, advance, and return what to do now; ``seq`` is the directive that it came with.

        A directive that was seen already returns nothing to do; `LimitExceeded` for one too many.
        """
        if seq is not None and seq <= self.last_seen_seq:
            return ()
        if seq is not None and self._directives >= self._directives_max:
            most = f"{self._directives_max} directives in this run, which is limits.directives_max"
            raise LimitExceeded(f"the coordinator has sent more than {most}")
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
        make_folder(directory, mode=0o700)
        return RoundFiles(directory=directory)

    async def keep_sealed(
        self,
        round_id: int,
        data: bytes,
        *,
        secret: bytes,
        links: Mapping[Part, LinkSeed],
        residual: AdapterState | None = None,
    ) -> None:
        """Keep a sealed update durably with all that its transmission needs; ``secret`` is empty where no key part is sent.

        ``residual`` is what its decoder does not get back, for a later round. Only what was kept as a whole is given back: the
        digests are remembered last.
        """
        files = self.files(round_id)
        await seen_through(asyncio.to_thread(_write_update, files, data=data, secret=secret, links=links))
        body = {"round_id": round_id, "digest": Digest.of(data).hex}
        if residual is not None:
            path = self._residual(round_id)
            body["residual"] = (await seen_through(asyncio.to_thread(_write_residual, path, residual))).hex
        await self._append("sealed", body)

    def sealed(self, round_id: int) -> bytes:
        """Return the sealed update of a round; `DigestMismatch` unless the file holds exactly what was sealed."""
        path = self.files(round_id).sealed
        data = _read_kept(path)
        if Digest.of(data) != self._sealed.get(round_id):
            raise DigestMismatch(f"{path}: not the bytes that were sealed")
        return data

    def message(self, round_id: int, part: Part) -> bytes:
        """Return what ``part`` of a round's update carries: the sealed bytes, or the secret that they open with.

        `DigestMismatch` when it is not there as it was kept.
        """
        sealed = self.sealed(round_id)
        return sealed if part is Part.PAYLOAD else _read_kept(self.files(round_id).secret)

    def link_seed(self, round_id: int, part: Part, *, design: SecrecyDesign) -> LinkSeed:
        """Return the public parameters of ``part``; `DigestMismatch` when they are not there as they were kept."""
        path = self.files(round_id).link_seed(part)
        try:
            seed = msgspec.json.decode(_read_kept(path), type=LinkSeed)
            seed.require_fits(design)
        except ValueError as error:
            raise DigestMismatch(f"{path}: not what was kept ({error})") from error
        return seed

    async def keep_verdict(self, verdict: Verdict) -> None:
        """Remember the owner's verdict, once; residuals that it makes useless go."""
        if verdict in self._verdicts:
            return
        await self._append("judged", {"verdict": msgspec.to_builtins(verdict)})
        for path in (self._directory / "residuals").glob("*"):
            if int(path.name.partition(".")[0]) not in self._residuals.needed:
                path.unlink(missing_ok=True)

    def verdicts(self) -> tuple[Verdict, ...]:
        """Return the verdicts received so far, in order."""
        return tuple(self._verdicts)

    def unanswered(self, *, before: int) -> tuple[int, ...]:
        """Return the rounds below ``before`` whose verdict decides what the residual is, and has not come."""
        return self._residuals.unanswered(before=before)

    def residual(self, round_id: int, expected: Sequence[TensorSpec]) -> AdapterState | None:
        """Return what is owed to the update of a round, none when nothing is; only once no round before it is unanswered.

        `DigestMismatch` when it is not there as it was kept.
        """
        of = self._residuals.current(before=round_id)
        if of is None:
            return None
        path = self._residual(of)
        try:
            if digest_of(path) == self._residuals.files[of]:
                return load_adapter(path, expected)
        except (OSError, MalformedUpdate) as error:
            raise DigestMismatch(f"{path}: the residual of round {of} cannot be used ({error})") from error
        raise DigestMismatch(f"{path}: not the residual that was kept of round {of}")

    def _residual(self, round_id: int) -> Path:
        directory = self._directory / "residuals"
        make_folder(directory, mode=0o700)
        return directory / f"{round_id}.safetensors"

    def forget_private(self, round_id: int) -> None:
        """Delete what nobody needs once a round is over: windows, unsealed adapter, secret (private), frames (large).

        The sealed update and its public seeds stay, and what is known of the round's sum: shares are opened after the upload.
        """
        files = self.files(round_id)
        for path in (files.windows, files.adapter, files.secret):
            path.unlink(missing_ok=True)
        files.forget_frames()

    def forget_sums(self) -> None:
        """Delete the secrets of sums, of every round but one whose sum may still have to be opened."""
        state = self.current
        open_ = isinstance(state, phases.Reported | phases.Assigned | phases.Training | phases.Uploading | phases.Completed)
        kept = state.round_id if open_ else None
        for path in (self._directory / "rounds").glob("*/sum.bin*"):
            if int(path.parent.name) != kept:
                path.unlink(missing_ok=True)

    def forget_ended(self) -> None:
        """Delete what `forget_private` does, of every round but one that goes on: an earlier life may have ended too soon.

        After the last round nothing is owed to anybody any more, and residuals go as well.
        """
        state = self.current
        if isinstance(state, phases.Finished):
            rmtree(self._directory / "residuals", ignore_errors=True)
        going_on = isinstance(state, phases.Reported | phases.Assigned | phases.Training | phases.Uploading)
        kept = state.round_id if going_on else None
        for directory in (self._directory / "rounds").glob("*"):
            if (round_id := int(directory.name)) != kept:
                self.forget_private(round_id)
        self.forget_sums()

    async def _append(self, kind: str, body: Mapping[str, object]) -> None:
        room = None if self._room is None else self._room()
        while True:
            try:
                entry = await self._journal.append(kind, body)
            except StorageFull as error:
                if room is None:
                    raise
                await room.wait(error)
            else:
                return self._fold(kind, entry.body)

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
                self._directives += body["seq"] is not None
            case "sealed":
                self._sealed[body["round_id"]] = Digest.from_hex(body["digest"])
                if "residual" in body:
                    self._residuals = self._residuals.sealed(body["round_id"], Digest.from_hex(body["residual"]))
            case "judged":
                verdict = msgspec.convert(body["verdict"], Verdict)
                self._verdicts.append(verdict)
                self._residuals = self._residuals.judged(verdict.key.round_id, kept=verdict.kept)
            case _:
                pass


def _write_update(files: RoundFiles, *, data: bytes, secret: bytes, links: Mapping[Part, LinkSeed]) -> None:
    for part, seed in links.items():
        write_durably(files.link_seed(part), [msgspec.json.encode(seed)])
    if secret:
        write_durably(files.secret, [secret])
    write_durably(files.sealed, [data])


def _write_residual(path: Path, residual: AdapterState) -> Digest:
    shapes = {name: tensor.shape for name, tensor in residual.tensors.items()}
    with full_disk_is_typed():
        write_tensors(path, shapes=shapes, tensor=residual.tensors.__getitem__, metadata={"format": "hushtune-residual/1"})
    return digest_of(path)


def digest_of(path: Path) -> Digest:
    """Return the digest of a file."""
    with path.open("rb") as file:
        return Digest(hashlib.file_digest(file, "sha256").digest())


def _read_kept(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DigestMismatch(f"{path}: what was kept for sending is gone ({error.strerror})") from error
