"""What of a training is kept on disk, so that one that was killed goes on bit for bit and one that is over is not repeated?

A folder per training, named by the digest of everything that the result depends on.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray

from hushtune_common.adapter import Float32
from hushtune_common.errors import MalformedUpdate
from hushtune_common.model.language import LanguageModel
from hushtune_common.model.weights import TensorFile, Weights, write_tensors

FORMAT = "hushtune-training/1"


class Held:
    """Arrays in memory, as `Weights`."""

    def __init__(self, tensors: Mapping[str, Float32]) -> None:
        """Take arrays by name."""
        self._tensors = tensors

    def names(self) -> Sequence[str]:
        """Return every name, sorted."""
        return sorted(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of one array."""
        return self._tensors[name].shape

    def tensor(self, name: str) -> Float32:
        """Return a copy of one array."""
        return np.array(self._tensors[name])


class Ledger(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is not a tensor: the loss of every step so far, how often each parameter was changed, and numbers of the method."""

    losses: tuple[float, ...]
    updates: dict[str, int]
    numbers: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """Tensors and the ledger that belongs to them; nothing is read before it is asked for."""

    tensors: Weights
    ledger: Ledger


@dataclass(frozen=True, slots=True)
class Shelf:
    """The folder of one training. Laws: what `running` and `finished` return is complete; `finish` leaves the result only."""

    folder: Path

    def running(self) -> Stored | None:
        """Return the last checkpoint; none when there is none that can be read."""
        return _read(self._running)

    def finished(self) -> Stored | None:
        """Return the result; none when there is none that can be read."""
        return _read(self._finished)

    def save(self, tensors: Weights, ledger: Ledger) -> None:
        """Put down a checkpoint in place of the last one."""
        _write(self._running, tensors, ledger)

    def finish(self, tensors: Weights, ledger: Ledger) -> None:
        """Put down the result and drop the checkpoint."""
        _write(self._finished, tensors, ledger)
        self._running.unlink(missing_ok=True)

    @property
    def _running(self) -> Path:
        return self.folder / "running.safetensors"

    @property
    def _finished(self) -> Path:
        return self.folder / "finished.safetensors"


def shelf(work: Path, *, facts: Mapping[str, object]) -> Shelf:
    """Return the place below ``work`` of the training that depends on these plain JSON ``facts`` and on nothing else."""
    text = json.dumps({"format": FORMAT, **facts}, sort_keys=True, separators=(",", ":"))
    return Shelf(work / hashlib.sha256(text.encode()).hexdigest()[:32])


def digest_of_arrays(arrays: Mapping[str, NDArray[Any]]) -> str:
    """Return what identifies named arrays: names, kinds, shapes and values."""
    total = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        total.update(f"{name}\0{array.dtype.str}\0{','.join(map(str, array.shape))}\0".encode())
        total.update(array.tobytes())
    return total.hexdigest()


def arithmetic_facts(model: LanguageModel) -> list[object]:
    """Return what the last bits of a training of this model depend on beside its inputs."""
    with model.arithmetic():
        half = torch.is_autocast_enabled(model.device.type)
    return [model.device.type, half, torch.get_num_threads(), torch.__version__]


def _write(path: Path, tensors: Weights, ledger: Ledger) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    metadata = {"format": FORMAT, "ledger": msgspec.json.encode(ledger).decode()}
    write_tensors(path, shapes={n: tensors.shape(n) for n in tensors.names()}, tensor=tensors.tensor, metadata=metadata)


def _read(path: Path) -> Stored | None:
    # A file that is not ours or not whole is no checkpoint; training starts again and writes over it.
    try:
        file = TensorFile.open(path)
        if file.metadata.get("format") != FORMAT:
            return None
        return Stored(tensors=file, ledger=msgspec.json.decode(file.metadata["ledger"], type=Ledger))
    except (FileNotFoundError, MalformedUpdate, KeyError, msgspec.DecodeError):
        return None
