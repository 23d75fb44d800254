"""Which adapters has the owner accepted, which of them sits in the model, and which sat there before?

Content lies under its digest, so that equal adapters are stored once; a small record says where each version came from. Every
file appears under its name only when it is complete and on the disk: a process that is killed leaves the state before or the one
after.
"""

import fcntl
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import file_digest
from pathlib import Path
from shutil import copyfile
from typing import Final, Literal

import msgspec

from hushtune_common.adapter import AdapterState, load_adapter
from hushtune_common.clock import Clock
from hushtune_common.errors import ConfigError, MalformedUpdate
from hushtune_common.messages import ClientId, Digest, RunId, TensorSpec, require_name
from hushtune_common.model.weights import write_tensors

FOLDER: Final = "versions"
"""Name of the folder in the owner's state."""
AGGREGATE: Final = "aggregate"
"""Who an average is from; no client can be called so."""
OWN: Final = "own"
"""What stands for the model's own adapter blocks, as they were before any round."""

_BEFORE_MAX = 64
_METADATA = {"format": "hushtune-adapter/1"}


@dataclass(frozen=True, slots=True, kw_only=True)
class About:
    """Where a version came from and what was found.

    ``who`` is a client, or `AGGREGATE`. ``base`` is the model it belongs to. ``parents`` are ids: of an average its parts, of a
    client's version what sat in the model when it was judged. Losses are on public text, in nats per token, none when they are
    not finite. ``kept``: it did no harm there; a client's may then enter the average, an average stays in the model.
    ``profile`` is the root mean square change of each tensor, for the gatekeeper.
    """

    run: RunId
    round_id: int
    who: str
    base: Digest
    parents: tuple[str, ...]
    kept: bool
    reason: str
    loss_before: float | None
    loss_after: float | None
    profile: Mapping[str, float] = field(default_factory=dict[str, float])

    def __post_init__(self) -> None:
        """Check the form: it becomes a file's name."""
        require_name(self.run, of="run")
        require_name(self.who, of="who")
        if self.round_id < 1:
            raise ValueError(f"rounds count from 1, got {self.round_id}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Version:
    """One accepted adapter: the ``digest`` and ``size`` in bytes of its file, its number in order of arrival, and the day."""

    about: About
    digest: Digest
    size: int
    seq: int
    date: str

    @property
    def id(self) -> str:
        """``RUN.ROUND.WHO.DIGEST``, with the digest's first characters: what a person calls it."""
        return f"{self.about.run}.{self.about.round_id}.{self.about.who}.{self.digest.short}"


class _Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    format: Literal["hushtune-version/1"] = "hushtune-version/1"
    seq: int
    date: str
    digest: str
    size: int
    run: str
    round_id: int
    who: str
    base: str
    parents: tuple[str, ...]
    kept: bool
    reason: str
    loss_before: float | None
    loss_after: float | None
    profile: dict[str, float]


class _Pointer(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What sits in the model, none for its own blocks, and what sat there before, the latest last."""

    format: Literal["hushtune-current/1"] = "hushtune-current/1"
    current: str | None
    before: tuple[str | None, ...]


class Versions:
    """The accepted adapters of one owner, in a folder.

    Laws: a version, once added, never changes, and adding it again changes nothing; `rollback` undoes the last `promote`; what
    sits in the model, what it would be rolled back to and the latest round are never dropped. Reading needs no lock; before
    anything is changed the folder is to be held, by one process at a time.
    """

    def __init__(self, folder: Path, *, count_max: int, bytes_max: int, clock: Clock) -> None:
        """Take the ``folder``, made when something is first put there, and how much may lie in it."""
        self._folder = folder
        self._count_max = count_max
        self._bytes_max = bytes_max
        self._clock = clock
        self._lock: int | None = None

    def hold(self) -> None:
        """Take the folder for this process until `release`, or its end; `ConfigError` while another one has it."""
        if self._lock is not None:
            return
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(self._folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(descriptor)
            raise ConfigError(str(self._folder), "is in use by a running owner; stop it first") from error
        self._lock = descriptor
        for leftover in [*self._folder.rglob("*.partial")]:
            leftover.unlink(missing_ok=True)

    def release(self) -> None:
        """Let other processes change the folder; without `hold` before it, nothing happens."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def all(self) -> Sequence[Version]:
        """Return every version, in order of arrival; `ConfigError` names a record that is damaged."""
        found = (_read(file) for file in (self._folder / "records").glob("*.json"))
        return sorted((version for version in found if version is not None), key=lambda v: v.seq)

    def of_round(self, run: RunId, round_id: int) -> Mapping[ClientId, Version]:
        """Return the clients' versions of a round."""
        mine = (v for v in self.all() if (v.about.run, v.about.round_id) == (run, round_id) and v.about.who != AGGREGATE)
        return {ClientId(v.about.who): v for v in mine}

    def latest(self, who: str) -> Version | None:
        """Return the last version of a client, or of `AGGREGATE`."""
        return next((v for v in reversed(self.all()) if v.about.who == who), None)

    def find(self, name: str) -> Version:
        """Return the version whose id or digest begins with ``name``; `ConfigError` when that is none, or several."""
        found = [v for v in self.all() if v.id.startswith(name) or v.digest.hex.startswith(name)]
        exact = [v for v in found if v.id == name] or found
        if not name or not exact:
            raise ConfigError(name or "ID", "no such version; `hushtune owner adapters list` shows all")
        if len(exact) > 1:
            raise ConfigError(name, f"could be any of {', '.join(v.id for v in exact)}; give more of it")
        return exact[0]

    @property
    def current(self) -> Version | None:
        """What sits in the model, or will when the owner starts; none for the model's own blocks."""
        pointer = self._pointer
        return None if pointer.current is None else self.find(pointer.current)

    def add(self, state: AdapterState, about: About) -> Version:
        """Store an adapter durably and return its version; the oldest go when there are too many. Blocks for the disk."""
        digest, size = self._store(state)
        known = self.all()
        version = Version(
            about=about,
            digest=digest,
            size=size,
            seq=1 + max((v.seq for v in known), default=0),
            date=self._clock.wall().isoformat(timespec="seconds"),
        )
        same = next((v for v in known if v.id == version.id), None)
        if same is None:
            _write(self._record(version), msgspec.json.format(msgspec.json.encode(_record(version)), indent=1))
        self._drop_oldest()
        return same or version

    def load(self, version: Version, expected: Sequence[TensorSpec]) -> AdapterState:
        """Return the adapter of a version, in the order of ``expected``.

        `ConfigError` when its file is not what it was, or holds other tensors.
        """
        self.require_whole(version)
        try:
            return load_adapter(self.file(version), expected)
        except MalformedUpdate as error:
            raise ConfigError(version.id, f"cannot be used ({error}); promote another version") from error

    def require_whole(self, version: Version) -> None:
        """Raise `ConfigError` unless the adapter's file is what it was."""
        file = self.file(version)
        try:
            with file.open("rb") as stream:
                found = file_digest(stream, "sha256").digest()
        except OSError as error:
            raise ConfigError(version.id, f"cannot be used ({error}); promote another version") from error
        if found != version.digest.value:
            raise ConfigError(version.id, f"{file} is damaged; restore it from a backup, or promote another version")

    def file(self, version: Version) -> Path:
        """Return where the adapter of a version lies: a safetensors file that is not to be changed."""
        return self._adapter(version.digest)

    def copy(self, version: Version, target: Path) -> None:
        """Let the adapter appear as ``target``, too, without taking room twice where the disk can do that."""
        partial = target.with_name(f"{target.name}.partial")
        partial.unlink(missing_ok=True)
        try:
            os.link(self.file(version), partial)
        except OSError:
            copyfile(self.file(version), partial)
        partial.replace(target)

    def promote(self, version: Version | None) -> None:
        """Let ``version`` sit in the model from the owner's next start or merge on; none stands for the model's own blocks."""
        pointer, name = self._pointer, None if version is None else version.id
        if pointer.current != name:
            self._point(_Pointer(current=name, before=(*pointer.before, pointer.current)[-_BEFORE_MAX:]))

    def rollback(self) -> Version | None:
        """Go back to what sat in the model before and return it, none for the model's own blocks; `ConfigError` at the end."""
        pointer, known = self._pointer, {v.id: v for v in self.all()}
        before = [name for name in pointer.before if name is None or name in known]
        if not before:
            raise ConfigError("rollback", f"nothing sat in the model before; `hushtune owner adapters promote {OWN}` empties it")
        name = before.pop()
        self._point(_Pointer(current=name, before=tuple(before)))
        return None if name is None else known[name]

    @property
    def _pointer(self) -> _Pointer:
        file = self._folder / "current.json"
        try:
            return msgspec.json.decode(file.read_bytes(), type=_Pointer)
        except FileNotFoundError:
            return _Pointer(current=None, before=())
        except ValueError as error:
            raise ConfigError(
                str(file), f"is damaged ({error}); restore it, or delete it to go back to the model's own"
            ) from error

    def _point(self, pointer: _Pointer) -> None:
        _write(self._folder / "current.json", msgspec.json.encode(pointer))

    def _record(self, version: Version) -> Path:
        return self._folder / "records" / f"{version.id}.json"

    def _adapter(self, digest: Digest) -> Path:
        return self._folder / "adapters" / f"{digest.hex}.safetensors"

    def _store(self, state: AdapterState) -> tuple[Digest, int]:
        folder = self._folder / "adapters"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        shapes = {name: tensor.shape for name, tensor in state.tensors.items()}
        fresh = folder / "new.partial"
        write_tensors(fresh, shapes=shapes, tensor=lambda name: state.tensors[name], metadata=_METADATA)
        with fresh.open("rb") as stream:
            digest = Digest(file_digest(stream, "sha256").digest())
        size = fresh.stat().st_size
        fresh.replace(self._adapter(digest))
        _sync(folder)
        return digest, size

    def _drop_oldest(self) -> None:
        """Drop the oldest versions until the rest fits, and then every adapter that no version is left of."""
        known = list(self.all())
        for version in _superfluous(known, spared=self._spared(known), count_max=self._count_max, bytes_max=self._bytes_max):
            self._record(version).unlink(missing_ok=True)
            known.remove(version)
        held = {v.digest.hex for v in known}
        for file in (self._folder / "adapters").glob("*.safetensors"):
            if file.stem not in held:
                file.unlink(missing_ok=True)

    def _spared(self, known: Sequence[Version]) -> frozenset[str]:
        pointer, latest = self._pointer, known[-1].about
        seats = [name for name in (pointer.current, *pointer.before[-1:]) if name is not None]
        return frozenset([*seats, *(v.id for v in known if (v.about.run, v.about.round_id) == (latest.run, latest.round_id))])


def _superfluous(known: Sequence[Version], *, spared: frozenset[str], count_max: int, bytes_max: int) -> Sequence[Version]:
    """Return which versions have to go, the oldest first, so that number and bytes fit as far as what is spared lets them."""
    left, gone = list(known), list[Version]()
    for version in known:
        if len(left) <= count_max and sum({v.digest: v.size for v in left}.values()) <= bytes_max:
            break
        if version.id not in spared:
            left.remove(version)
            gone.append(version)
    return gone


def _record(version: Version) -> _Record:
    about = version.about
    return _Record(
        seq=version.seq,
        date=version.date,
        digest=version.digest.hex,
        size=version.size,
        run=about.run,
        round_id=about.round_id,
        who=about.who,
        base=about.base.hex,
        parents=about.parents,
        kept=about.kept,
        reason=about.reason,
        loss_before=about.loss_before,
        loss_after=about.loss_after,
        profile=dict(about.profile),
    )


def _read(file: Path) -> Version | None:
    """Return the version that a record is of; none when a running owner has just dropped it."""
    try:
        record = msgspec.json.decode(file.read_bytes(), type=_Record)
        about = About(
            run=RunId(record.run),
            round_id=record.round_id,
            who=record.who,
            base=Digest.from_hex(record.base),
            parents=record.parents,
            kept=record.kept,
            reason=record.reason,
            loss_before=record.loss_before,
            loss_after=record.loss_after,
            profile=record.profile,
        )
        digest = Digest.from_hex(record.digest)
        return Version(about=about, digest=digest, size=record.size, seq=record.seq, date=record.date)
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise ConfigError(str(file), f"this record of a version is damaged ({error}); restore it, or delete it") from error


def _write(file: Path, data: bytes) -> None:
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    partial = file.with_name(f"{file.name}.partial")
    with partial.open("wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())
    partial.replace(file)
    _sync(file.parent)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
