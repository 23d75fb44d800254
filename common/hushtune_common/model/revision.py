"""What changed from one emulator to the next, as a file: who holds the one makes the other of it, bit for bit.

A marker, a JSON header behind its length, and one compressed frame per tensor that changed. What is compressed are differences of
the stored values as whole numbers in the order of their size (for floating point: how many representable numbers lie between),
laid out byte plane by byte plane: training moves a weight by little, so the upper planes are nearly empty.
"""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate, pairwise
from math import prod
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
import zstandard
from numpy.typing import NDArray

from hushtune_common.adapter import Float32
from hushtune_common.errors import MalformedUpdate
from hushtune_common.model.weights import DType, TensorFile, write_tensors

MARKER: Final = b"hushtune-revision/1\n"
_HEADER_MAX: Final = 1 << 26
_LENGTH_BYTES: Final = 8
_LEVEL: Final = 3
_STORED: Final[Mapping[DType, str]] = {"F32": "<f4", "F16": "<f2", "I8": "i1", "U8": "u1"}
_WIDTH: Final[Mapping[DType, int]] = {"F32": 4, "F16": 2, "I8": 1, "U8": 1}

Raw = NDArray[Any]
"""A tensor as it lies in the file, flat, as unsigned numbers of its width."""


class _Header(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``notes`` are the entries of the metadata that are new or other than before, ``dropped`` those that are gone; ``frames``
    gives the names and sizes of the frames that follow, in order."""

    notes: dict[str, str]
    dropped: list[str]
    frames: list[tuple[str, int]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """What a revision came to: tensors that changed, and the bytes of its file and of the emulator that it leads to."""

    tensors: int
    size_bytes: int
    whole_bytes: int


def revise(path: Path, *, base: TensorFile, changed: Mapping[str, Float32], notes: Mapping[str, str]) -> None:
    """Write the emulator in ``base`` with other values of some tensors, and other entries of its metadata.

    Names, shapes and storage stay. ``ValueError`` for a tensor that ``base`` does not have in that shape.
    """
    for name, tensor in changed.items():
        if name not in base.entries or base.shape(name) != tensor.shape:
            raise ValueError(f"{name}: the emulator has no such tensor of shape {tensor.shape}")
    write_tensors(
        path,
        shapes={name: base.shape(name) for name in base.names()},
        tensor=lambda name: changed[name] if name in changed else base.tensor(name),
        metadata={**base.metadata, **notes},
        dtype=base.dtype,
    )


def write_revision(path: Path, *, base: Path, result: Path) -> Written:
    """Write the way from the emulator in ``base`` to that in ``result``; equal files give equal bytes.

    One tensor is in memory at a time. ``ValueError`` when the two do not have the same tensors, stored alike.
    """
    before, after = TensorFile.open(base), TensorFile.open(result)
    if _storage(before) != _storage(after):
        raise ValueError("a revision leads to an emulator of the same tensors, stored alike")
    frames: list[tuple[str, int]] = []
    body = path.with_name(f"{path.name}.frames")
    try:
        with body.open("wb") as file:
            for name, frame in _frames(before, after):
                frames.append((name, file.write(frame)))
        header = msgspec.json.encode(
            _Header(
                notes={k: v for k, v in sorted(after.metadata.items()) if before.metadata.get(k) != v},
                dropped=sorted(before.metadata.keys() - after.metadata.keys()),
                frames=frames,
            )
        )
        _join(path, MARKER + len(header).to_bytes(_LENGTH_BYTES, "little") + header, body)
    finally:
        body.unlink(missing_ok=True)
    return Written(tensors=len(frames), size_bytes=path.stat().st_size, whole_bytes=result.stat().st_size)


def apply_revision(revision: Path, *, base: Path, to: Path) -> None:
    """Write the emulator that ``revision`` makes of the one in ``base``.

    Raises `MalformedUpdate` for a file that is no revision of such an emulator. Whether it is one of exactly this emulator shows
    in the digest of what was written and in nothing else, so whoever calls has to look at that.
    """
    before = TensorFile.open(base)
    header, start = _read_header(revision)
    changed = {name: span for (name, _), span in zip(header.frames, _spans(header, start), strict=True)}
    for name in changed:
        if name not in before.entries:
            raise MalformedUpdate(f"{revision.name}: changes {name}, which the emulator does not have")

    def tensor(name: str) -> Float32:
        if name not in changed:
            return before.tensor(name)
        begin, end = changed[name]
        with revision.open("rb", buffering=0) as file:
            frame = os.pread(file.fileno(), end - begin, begin)
        return _moved(before, name, frame, of=revision.name)

    metadata = {k: v for k, v in before.metadata.items() if k not in header.dropped} | header.notes
    shapes = {name: before.shape(name) for name in before.names()}
    write_tensors(to, shapes=shapes, tensor=tensor, metadata=metadata, dtype=before.dtype)


def _storage(file: TensorFile) -> list[tuple[str, DType, tuple[int, ...]]]:
    return [(name, file.dtype(name), file.shape(name)) for name in file.names()]


def _frames(before: TensorFile, after: TensorFile) -> Iterator[tuple[str, bytes]]:
    for name in after.names():
        old, new = _raw(before, name), _raw(after, name)
        if np.array_equal(old, new):
            continue
        floating = after.dtype(name).startswith("F")
        apart = _ranks(new, floating=floating) - _ranks(old, floating=floating)
        planes = _folded(apart).view(np.uint8).reshape(-1, apart.itemsize).T
        yield name, zstandard.ZstdCompressor(level=_LEVEL, write_checksum=False).compress(planes.tobytes())


def _moved(before: TensorFile, name: str, frame: bytes, *, of: str) -> Float32:
    """Return a changed tensor; nothing larger than the tensor is allocated whatever the frame claims."""
    old, dtype = _raw(before, name), before.dtype(name)
    try:
        if zstandard.frame_content_size(frame) != old.nbytes:
            raise MalformedUpdate(f"{of}: {name}: a frame does not announce {old.nbytes} bytes")
        planes = zstandard.ZstdDecompressor().decompress(frame, max_output_size=old.nbytes, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise MalformedUpdate(f"{of}: {name}: not a zstandard frame") from error
    if len(planes) != old.nbytes:
        raise MalformedUpdate(f"{of}: {name}: a frame holds {len(planes)} bytes instead of {old.nbytes}")
    folded = np.frombuffer(planes, dtype=np.uint8).reshape(old.itemsize, -1).T.copy().view(old.dtype).reshape(-1)
    floating = dtype.startswith("F")
    new = _unranked(_ranks(old, floating=floating) + _unfolded(folded), floating=floating)
    return new.view(_STORED[dtype]).reshape(before.shape(name)).astype(np.float32, copy=False)


def _raw(file: TensorFile, name: str) -> Raw:
    entry = file.entries[name]
    if entry.dtype not in _STORED:
        raise ValueError(f"{name}: emulators hold no {entry.dtype}")
    width, offset = _WIDTH[entry.dtype], file.data_start + entry.data_offsets[0]
    return np.fromfile(file.path, dtype=f"<u{width}", count=prod(entry.shape), offset=offset)


def _ranks(raw: Raw, *, floating: bool) -> Raw:
    """Return each value's place in the order of all values of its type: of negative floating point, all bits count downwards."""
    if not floating:
        return raw
    sign = raw.dtype.type(1 << (8 * raw.itemsize - 1))
    return np.where(raw & sign, ~raw, raw | sign)


def _unranked(ranks: Raw, *, floating: bool) -> Raw:
    if not floating:
        return ranks
    sign = ranks.dtype.type(1 << (8 * ranks.itemsize - 1))
    return np.where(ranks & sign, ranks ^ sign, ~ranks)


def _folded(apart: Raw) -> Raw:
    """Return differences modulo the width with small ones of both signs as small numbers: 0, -1, 1, -2, 2, ..."""
    one, top = apart.dtype.type(1), apart.dtype.type(8 * apart.itemsize - 1)
    return (apart << one) ^ (apart.dtype.type(0) - (apart >> top))


def _unfolded(folded: Raw) -> Raw:
    one = folded.dtype.type(1)
    return (folded >> one) ^ (folded.dtype.type(0) - (folded & one))


def _join(path: Path, head: bytes, body: Path) -> None:
    """Write head and body as one file, which appears under its name when it is complete."""
    partial = path.with_name(f"{path.name}.partial")
    with partial.open("wb") as file, body.open("rb") as frames:
        file.write(head)
        while piece := frames.read(1 << 20):
            file.write(piece)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def _read_header(revision: Path) -> tuple[_Header, int]:
    """Return the header and where the frames begin."""
    size = revision.stat().st_size
    with revision.open("rb") as file:
        marker, length = file.read(len(MARKER)), int.from_bytes(file.read(_LENGTH_BYTES), "little")
        start = len(MARKER) + _LENGTH_BYTES + length
        if marker != MARKER or length > _HEADER_MAX or start > size:
            raise MalformedUpdate(f"{revision.name}: not a revision of an emulator")
        text = file.read(length)
    try:
        header = msgspec.json.decode(text, type=_Header)
    except (ValueError, RecursionError) as error:
        raise MalformedUpdate(f"{revision.name}: header is not readable ({error})") from error
    sizes = [count for _, count in header.frames]
    if any(count < 1 for count in sizes) or start + sum(sizes) != size or len(dict(header.frames)) != len(sizes):
        raise MalformedUpdate(f"{revision.name}: frames do not fill the file, each name once; is it truncated?")
    return header, start


def _spans(header: _Header, start: int) -> Iterator[tuple[int, int]]:
    return pairwise(accumulate((count for _, count in header.frames), initial=start))
