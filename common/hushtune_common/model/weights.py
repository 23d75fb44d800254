"""Tensors in safetensors files, one at a time and always as float32."""

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Literal, Protocol, cast

import msgspec
import numpy as np

from hushtune_common.adapter import Float32
from hushtune_common.errors import MalformedUpdate

HEADER_MAX = 64 * 1024 * 1024
ALIGNMENT = 64
DType = Literal["F32", "F16", "BF16", "I8", "U8"]
_ITEM_BYTES: Mapping[str, int] = {"F32": 4, "F16": 2, "BF16": 2, "I8": 1, "U8": 1}
_BUFFER_BYTES: Mapping[str, int] = {"BOOL": 1, "I16": 2, "I32": 4, "I64": 8}
"""Types that no weights have, but masks and positions in checkpoints do."""
_DIMENSIONS_MAX = 8
_WRITTEN: Mapping[str, str] = {"F32": "<f4", "F16": "<f2", "I8": "i1", "U8": "u1"}


def stored_bytes(dtype: DType, shape: Sequence[int]) -> int:
    """Return how many bytes a tensor takes in a file."""
    return _ITEM_BYTES[dtype] * prod(shape)


class Weights(Protocol):
    """Named tensors that can be read one at a time.

    Laws: ``tensor(name)`` has ``shape(name)``, is float32, and belongs to the caller: changing it changes neither the source nor
    what another call returns; equal names give equal values every time.
    """

    def names(self) -> Sequence[str]:
        """Return every name, sorted."""
        ...

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of one tensor."""
        ...

    def tensor(self, name: str) -> Float32:
        """Return one tensor."""
        ...


class _Entry(msgspec.Struct, frozen=True):
    dtype: DType
    shape: tuple[int, ...]
    data_offsets: tuple[int, int]


class _Buffer(msgspec.Struct, frozen=True):
    dtype: Literal["BOOL", "I16", "I32", "I64"]
    shape: tuple[int, ...]
    data_offsets: tuple[int, int]


@dataclass(frozen=True, slots=True)
class TensorFile:
    """A safetensors file whose header was checked against the file's size before anything was allocated.

    float32 tensors are mapped copy-on-write: loading costs nothing, and processes that read the same file share its pages.
    """

    path: Path
    metadata: Mapping[str, str]
    entries: Mapping[str, _Entry]
    data_start: int

    @staticmethod
    def open(path: Path, *, buffers: bool = False) -> "TensorFile":
        """Read and check the header; `MalformedUpdate` says what is wrong with it. Missing files raise ``OSError``.

        With ``buffers`` the file may also hold truth values and wide integers, as checkpoints do; they are left out.
        """
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > min(HEADER_MAX, size - 8):
                raise MalformedUpdate(f"{path.name}: header of {length} bytes in a file of {size}")
            header = file.read(length)
        try:
            parts = msgspec.json.decode(header, type=dict[str, msgspec.Raw])
            metadata = msgspec.json.decode(parts.pop("__metadata__", msgspec.Raw(b"{}")), type=dict[str, str])
            entries = {name: _entry(raw, buffers=buffers) for name, raw in parts.items()}
        except (ValueError, RecursionError) as error:
            raise MalformedUpdate(f"{path.name}: header is not readable ({error})") from error
        _check_layout(path.name, entries, data_bytes=size - 8 - length)
        return TensorFile(path, metadata, {n: e for n, e in entries.items() if isinstance(e, _Entry)}, 8 + length)

    def names(self) -> Sequence[str]:
        """Return every name, sorted."""
        return sorted(self.entries)

    def parted(self, prefix: str) -> "tuple[TensorFile, TensorFile]":
        """Return the same file with the tensors whose names begin with ``prefix``, and with all others."""
        inside = {n: e for n, e in self.entries.items() if n.startswith(prefix)}
        outside = {n: e for n, e in self.entries.items() if n not in inside}
        return replace(self, entries=inside), replace(self, entries=outside)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of one tensor."""
        return self.entries[name].shape

    def dtype(self, name: str) -> DType:
        """Return how one tensor is stored."""
        return self.entries[name].dtype

    def tensor(self, name: str) -> Float32:
        """Return one tensor as float32, the caller's own; integers are whole numbers."""
        entry = self.entries[name]
        offset = self.data_start + entry.data_offsets[0]
        if entry.dtype == "F32" and offset % 4 == 0:
            return np.asarray(np.memmap(self.path, dtype="<f4", mode="c", offset=offset, shape=entry.shape))
        raw = np.fromfile(self.path, dtype=np.uint8, count=entry.data_offsets[1] - entry.data_offsets[0], offset=offset)
        match entry.dtype:
            case "F32":
                flat = raw.view("<f4")
            case "F16":
                flat = raw.view("<f2").astype(np.float32)
            case "BF16":
                # bfloat16 is the upper half of a float32.
                flat = (raw.view("<u2").astype(np.uint32) << 16).view(np.float32)
            case "I8":
                flat = raw.view("i1").astype(np.float32)
            case "U8":
                flat = raw.astype(np.float32)
        return flat.reshape(entry.shape)


def write_tensors(
    path: Path,
    *,
    shapes: Mapping[str, tuple[int, ...]],
    tensor: Callable[[str], Float32],
    metadata: Mapping[str, str],
    dtype: Callable[[str], DType] = lambda _: "F32",
) -> None:
    """Write a safetensors file with one tensor in memory at a time; equal content gives equal bytes.

    Names and metadata are sorted and data starts at a multiple of 64. The file appears under ``path`` only when it is complete.
    Values that ``dtype`` cannot hold exactly are a mistake of the caller, except that float16 rounds.
    """
    kinds: Mapping[str, DType] = {name: dtype(name) for name in shapes}
    # Two processes may convert the same model at once; each completes its own file, and the last one to finish wins.
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            file.write(_header(shapes, kinds, metadata))
            for name in sorted(shapes):
                data = np.ascontiguousarray(tensor(name).astype(_WRITTEN[kinds[name]], copy=False))
                if data.shape != shapes[name]:
                    raise ValueError(f"{name}: shape {data.shape}, announced {shapes[name]}")
                file.write(data.data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _header(shapes: Mapping[str, tuple[int, ...]], kinds: Mapping[str, DType], metadata: Mapping[str, str]) -> bytes:
    entries: dict[str, object] = {"__metadata__": dict(sorted(metadata.items()))}
    end = 0
    for name in sorted(shapes):
        begin, end = end, end + stored_bytes(kinds[name], shapes[name])
        entries[name] = {"dtype": kinds[name], "shape": list(shapes[name]), "data_offsets": [begin, end]}
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


def _entry(raw: msgspec.Raw, *, buffers: bool) -> _Entry | _Buffer:
    try:
        return msgspec.json.decode(raw, type=_Entry)
    except msgspec.ValidationError:
        if not buffers:
            raise
        return msgspec.json.decode(raw, type=_Buffer)


def _check_layout(file: str, entries: Mapping[str, _Entry | _Buffer], *, data_bytes: int) -> None:
    for name, entry in entries.items():
        begin, end = entry.data_offsets
        if len(entry.shape) > _DIMENSIONS_MAX:
            raise MalformedUpdate(f"{file}: {name}: {len(entry.shape)} dimensions, at most {_DIMENSIONS_MAX} are allowed")
        item = _ITEM_BYTES[entry.dtype] if isinstance(entry, _Entry) else _BUFFER_BYTES[entry.dtype]
        if any(d < 1 for d in entry.shape) or end - begin != item * prod(entry.shape):
            raise MalformedUpdate(f"{file}: {name}: shape {entry.shape} does not fit {end - begin} bytes")
    ranges = sorted(e.data_offsets for e in entries.values())
    gaps = any(a[1] != b[0] for a, b in pairwise([(0, 0), *ranges]))
    if gaps or (ranges[-1][1] if ranges else 0) != data_bytes:
        raise MalformedUpdate(f"{file}: tensors do not fill the file exactly; is it truncated?")


def digest_parts(weights: Weights) -> Iterator[bytes]:
    """Yield what identifies a model: names in order, shapes and values."""
    for name in weights.names():
        yield f"{name}\0F32\0{','.join(map(str, weights.shape(name)))}\0".encode()
        yield cast(bytes, np.ascontiguousarray(weights.tensor(name), dtype="<f4").data)
