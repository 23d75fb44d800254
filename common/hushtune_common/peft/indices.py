"""Which block of the original model does a number in a name mean: is it a position in a short model, or the original index?

An emulator that leaves blocks out counts those that are left; the model counts all of them. A file ``hushtune.json`` beside a
model or an adapter says which of the two its names mean. Without it a person has to say so: a guess could train block 4 into 9.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec

from hushtune_common.adapter import AdapterState, Float32
from hushtune_common.errors import ConfigError
from hushtune_common.messages import Digest
from hushtune_common.model.plan import Plan
from hushtune_common.model.weights import digest_parts

NOTE_FILE = "hushtune.json"
FORMAT: Literal["hushtune-peft/1"] = "hushtune-peft/1"
Counting = Literal["short", "original"]
"""``short``: positions among the blocks that the emulator runs. ``original``: indices of the full model."""


class Note(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What stands beside a model or an adapter that we wrote; digests as hexadecimal text."""

    format: Literal["hushtune-peft/1"] = FORMAT
    indices: Counting
    base: str
    """The full model."""
    blocks: tuple[int, ...]
    """For every block of the model that the names count: its original index."""
    adapter: tuple[int, ...]
    """Original indices of the blocks that may be trained."""
    layers_to_transform: tuple[int, ...]
    """The same blocks as the names count them: what a LoRA configuration says."""
    plan: str | None = None
    shipped: str | None = None
    """The adapter blocks before any training."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Meaning:
    """The original index of every number that names may hold, and how that is known."""

    originals: tuple[int, ...]
    counting: Counting
    why: str
    started_here: bool = False
    """Whether a note vouches that training started from the adapter blocks that were shipped."""


def write_note(folder: Path, note: Note) -> None:
    """Write the note into a folder that is there."""
    (folder / NOTE_FILE).write_bytes(msgspec.json.format(msgspec.json.encode(note), indent=1) + b"\n")


def read_note(folder: Path) -> Note | None:
    """Return a folder's note, none when it has none; `ConfigError` when it is not one of ours."""
    path = folder / NOTE_FILE
    try:
        return msgspec.json.decode(path.read_bytes(), type=Note)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, msgspec.DecodeError, RecursionError) as error:
        raise ConfigError(str(path), f"is not a note of hushtune's ({error}); export again, or take it away") from error


def note_of_emulator(plan: Plan, *, shipped: AdapterState) -> Note:
    """Return the note of an emulator that was written as a plain model."""
    position = {index: k for k, index in enumerate(plan.running)}
    return Note(
        indices="short",
        base=plan.base.hex,
        blocks=plan.running,
        adapter=plan.adapter,
        layers_to_transform=tuple(position[b] for b in plan.adapter),
        plan=plan.digest.hex,
        shipped=state_digest(shipped).hex,
    )


def state_digest(state: AdapterState) -> Digest:
    """Return what identifies adapter blocks: names, shapes and values."""
    total = hashlib.sha256(b"hushtune/adapter/1")
    for part in digest_parts(_Held(state)):
        total.update(part)
    return Digest(total.digest())


def meaning(
    folder: Path, *, trained_on: str | None, plan: Plan, shipped: AdapterState, counting: Counting | None = None
) -> Meaning:
    """Return what block numbers in the checkpoint in ``folder`` mean for the emulator of ``plan``.

    Known are, in this order: the note beside the checkpoint, the note in the local folder that it says it was ``trained_on``, and
    what a person says (``counting``). Where the emulator runs every block both ways of counting are one. `ConfigError` when
    nothing says it, when two of them say different things, and when a note is of another model or emulator.
    """
    full = tuple(range(len(plan.slots)))
    found = _note(folder, trained_on)
    if found is not None:
        where, note = found
        _require_same(where, note, plan=plan, shipped=shipped)
        if counting not in (None, note.indices):
            raise ConfigError("--indices", f"is {counting}, but {where} says that the names count {note.indices} blocks")
        originals = plan.running if note.indices == "short" else full
        return Meaning(originals=originals, counting=note.indices, why=f"{where} says so", started_here=note.shipped is not None)
    if counting is not None:
        return Meaning(originals=plan.running if counting == "short" else full, counting=counting, why="--indices says so")
    if plan.running == full:
        return Meaning(originals=full, counting="original", why="the emulator runs every block")
    raise ConfigError(
        "--indices",
        f"say `short` if the names count the {len(plan.running)} blocks of the emulator, `original` if they count the "
        f"{len(full)} of the full model; there is no {NOTE_FILE} beside the checkpoint, nor in the folder of the model "
        "that it was trained on",
    )


def _note(folder: Path, trained_on: str | None) -> tuple[Path, Note] | None:
    for place in [folder, *([Path(trained_on)] if trained_on else [])]:
        note = read_note(place)
        if note is not None:
            return place / NOTE_FILE, note
    return None


def _require_same(where: Path, note: Note, *, plan: Plan, shipped: AdapterState) -> None:
    if note.base != plan.base.hex:
        raise ConfigError(str(where), "is of another model; export this emulator and train again")
    if note.indices == "short" and (note.plan != plan.digest.hex or note.blocks != plan.running):
        raise ConfigError(str(where), "is of another emulator of the same model; export this one and train again")
    if note.shipped is not None and note.shipped != state_digest(shipped).hex:
        raise ConfigError(str(where), "is of an emulator whose adapter blocks started elsewhere; export this one and train again")


@dataclass(frozen=True, slots=True)
class _Held:
    """Adapter blocks as `Weights`."""

    state: AdapterState

    def names(self) -> Sequence[str]:
        return sorted(self.state.tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        return self.state.tensors[name].shape

    def tensor(self, name: str) -> Float32:
        return self.state.tensors[name]
