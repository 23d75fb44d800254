"""Which marked copies has the owner given to whom? And what did the weights look like without a mark?

A mark is found by comparing a leaked file with the emulator that it was made of, so that is kept: once for all recipients and for
all rounds in which only adapter blocks change. Nothing here is ever dropped, or a leak could no longer be traced.
"""

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import msgspec
import numpy as np

from hushtune_common.errors import ConfigError
from hushtune_common.messages import Digest, require_name
from hushtune_common.model.bundle import Bundle, read_bundle
from hushtune_common.model.naming import block_of
from hushtune_common.model.slots import Compress, Quant
from hushtune_common.model.weights import TensorFile, write_tensors
from hushtune_server.owner.fingerprint.key import MarkKey
from hushtune_server.owner.fingerprint.marking import carries, write_marked

FOLDER: Final = "fingerprint"
"""Name of the folder in the owner's state."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Copy:
    """One marked copy: whose it is, and how strong its mark."""

    recipient: str
    strength: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """The frozen tensors that copies were made of: a file, how the integers in it are scaled by name, and the copies."""

    file: TensorFile
    quants: Mapping[str, Quant]
    copies: tuple[Copy, ...]


class _Quant(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    bits: Literal[4, 8]
    block: int


class _Copy(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    recipient: str
    strength: float


class _Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    format: Literal["hushtune-fingerprints/1"]
    quants: dict[str, _Quant]
    copies: tuple[_Copy, ...]


class Register:
    """The owner's secret and what it was used for, in a folder. One process at a time writes.

    Law: what `write_copy` has begun to write can be traced from then on, also after a crash.
    """

    def __init__(self, folder: Path) -> None:
        """Take the ``folder``, made when the first copy is."""
        self._folder = folder

    @property
    def key(self) -> MarkKey:
        """The secret; `ConfigError` when there is none yet."""
        return MarkKey.load(self._key)

    @property
    def references(self) -> Sequence[Reference]:
        """Everything that copies were made of, in order of names; `ConfigError` names what is damaged."""
        return [self._reference(record) for record in sorted(self._folder.glob("*.json"))]

    def write_copy(self, target: Path, *, bundle: Path, recipient: str, strength: float) -> None:
        """Write the recipient's marked copy of the emulator in the file ``bundle`` to ``target``, and remember it first.

        The same again gives equal bytes. `MalformedUpdate` when it is no emulator; ``ValueError`` for a recipient that is no
        name.
        """
        require_name(recipient, of="recipient")
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not self._key.exists():
            MarkKey.generate().save(self._key)
        self._remember(read_bundle(bundle), _Copy(recipient, strength))
        write_marked(target, bundle=bundle, key=self.key, recipient=recipient, strength=strength)

    @property
    def _key(self) -> Path:
        return self._folder / "key"

    def _remember(self, bundle: Bundle, copy: _Copy) -> None:
        names = _kept(bundle)
        digest = _digest(bundle.file, names)
        record, weights = (self._folder / f"{digest.hex}.{kind}" for kind in ("json", "safetensors"))
        if not weights.exists():
            shapes = {name: bundle.file.shape(name) for name in names}
            write_tensors(weights, shapes=shapes, tensor=bundle.file.tensor, metadata={}, dtype=bundle.file.dtype)
        known = _parsed(record).copies if record.exists() else ()
        if copy not in known:
            copies = (*known, copy)
            _write(record, _Record(format="hushtune-fingerprints/1", quants=_quants(bundle, names), copies=copies))

    def _reference(self, record: Path) -> Reference:
        about = _parsed(record)
        return Reference(
            file=TensorFile.open(record.with_suffix(".safetensors")),
            quants={name: Quant(bits=quant.bits, block=quant.block) for name, quant in about.quants.items()},
            copies=tuple(Copy(recipient=copy.recipient, strength=copy.strength) for copy in about.copies),
        )


def _kept(bundle: Bundle) -> Sequence[str]:
    """Return the tensors that marks are found by: those that carry one, and the scales of those that are integers."""
    file, adapter = bundle.file, bundle.plan.adapter
    marked = [name for name in file.names() if carries(name, file.shape(name), adapter=adapter)]
    scales = [name.removesuffix(".codes") + ".scales" for name in marked if name.endswith(".codes")]
    return sorted([*marked, *scales])


def _quants(bundle: Bundle, names: Sequence[str]) -> dict[str, _Quant]:
    found: dict[str, _Quant] = {}
    by_block = {slot.index: slot.quant for slot in bundle.plan.slots if isinstance(slot, Compress) and slot.quant is not None}
    for name in names:
        block = block_of(name)
        if name.endswith(".codes") and block is not None:
            found[name] = _Quant(by_block[block].bits, by_block[block].block)
    return found


def _digest(file: TensorFile, names: Sequence[str]) -> Digest:
    total = hashlib.sha256(b"hushtune/fingerprint-reference/1")
    for name in names:
        total.update(f"\0{name}\0{file.dtype(name)}\0{','.join(map(str, file.shape(name)))}\0".encode())
        total.update(np.ascontiguousarray(file.tensor(name), dtype="<f4").data)
    return Digest(total.digest())


def _parsed(record: Path) -> _Record:
    try:
        return msgspec.json.decode(record.read_bytes(), type=_Record)
    except (OSError, ValueError) as error:
        raise ConfigError(str(record), f"is damaged ({error}); restore it from a backup") from error


def _write(file: Path, record: _Record) -> None:
    partial = file.with_name(f"{file.name}.partial")
    with partial.open("wb") as stream:
        stream.write(msgspec.json.encode(record))
        stream.flush()
        os.fsync(stream.fileno())
    partial.replace(file)
    folder = os.open(file.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
