"""What is a peer: a published way to write an adapter down in few bytes, and what all of them are made of.

Every peer writes what training changed, returned minus shipped, since the receiver has the shipped adapter: the same start that
ours has. What it writes is a whole file, so that its length is what would be sent.
"""

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import zstandard
from numpy.typing import NDArray

Float32 = NDArray[np.float32]
Bytes = NDArray[np.uint8]
Tensors = Mapping[str, Float32]

LEVEL = 3
"""Zstandard level of every peer that has it on top."""


class Peer(Protocol):
    """Writes an adapter and reads it again, within some error.

    Laws: equal adapters give equal bytes; names and shapes survive; reading needs the bytes and the shipped adapter, nothing
    else.
    """

    @property
    def name(self) -> str:
        """What stands in tables, such as ``int4+zstd``."""
        ...

    @property
    def says(self) -> str:
        """What it does, and where it comes from, in a sentence."""
        ...

    def encode(self, returned: Tensors, *, shipped: Tensors) -> bytes:
        """Return the file."""
        ...

    def decode(self, blob: bytes, *, shipped: Tensors) -> dict[str, Float32]:
        """Return the adapter that the file stands for."""
        ...


class TensorCoder(Protocol):
    """Writes one tensor as parts of a file, and reads them again."""

    def encode(self, change: Float32) -> Sequence[bytes]:
        """Return the parts; every tensor has as many."""
        ...

    def decode(self, parts: Sequence[bytes], *, shape: tuple[int, ...]) -> Float32:
        """Return a tensor of this shape."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ByTensor:
    """A peer that writes the change of each tensor by itself, in the order of names, with or without zstandard on every part."""

    name: str
    says: str
    coder: TensorCoder
    packed: bool

    def encode(self, returned: Tensors, *, shipped: Tensors) -> bytes:
        """Return the file."""
        parts = [p for name in sorted(shipped) for p in self.coder.encode(returned[name] - shipped[name])]
        return joined([zipped(p) for p in parts] if self.packed else parts)

    def decode(self, blob: bytes, *, shipped: Tensors) -> dict[str, Float32]:
        """Return the adapter."""
        parts = [unzipped(p) for p in parted(blob)] if self.packed else parted(blob)
        each = len(parts) // len(shipped)
        own = {name: parts[k * each : (k + 1) * each] for k, name in enumerate(sorted(shipped))}
        return {name: start + self.coder.decode(own[name], shape=start.shape) for name, start in shipped.items()}


def joined(parts: Sequence[bytes]) -> bytes:
    """Return one file: the number of parts and their lengths, 4 bytes each, then the parts."""
    return b"".join([struct.pack(f"<{1 + len(parts)}I", len(parts), *(len(p) for p in parts)), *parts])


def parted(blob: bytes) -> list[bytes]:
    """Undo `joined`."""
    (count,) = struct.unpack_from("<I", blob)
    lengths = struct.unpack_from(f"<{count}I", blob, 4)
    ends = np.cumsum([4 + 4 * count, *lengths])
    return [blob[ends[k] : ends[k + 1]] for k in range(count)]


def zipped(data: bytes) -> bytes:
    """Return a zstandard frame."""
    return zstandard.ZstdCompressor(level=LEVEL).compress(data)


def unzipped(frame: bytes) -> bytes:
    """Undo `zipped`."""
    return zstandard.ZstdDecompressor().decompress(frame)


def in_planes(words: NDArray[np.generic]) -> bytes:
    """Return all first bytes, then all second ones and so on: exponents beside exponents, as an entropy coder needs them."""
    return np.ascontiguousarray(words.reshape(-1).view(np.uint8).reshape(-1, words.dtype.itemsize).T).tobytes()


def from_planes(data: bytes, *, dtype: type[np.generic]) -> NDArray[np.generic]:
    """Undo `in_planes`, flat."""
    planes = np.frombuffer(data, dtype=np.uint8).reshape(np.dtype(dtype).itemsize, -1)
    return np.ascontiguousarray(planes.T).reshape(-1).view(dtype)


def halves(values: Float32) -> bytes:
    """Return float16 values after a float32 factor that makes the largest 1: what training changed is small for float16."""
    largest = np.float32(max(np.abs(values).max(initial=0.0), np.finfo(np.float32).tiny))
    return largest.tobytes() + in_planes((values / largest).astype(np.float16))


def from_halves(data: bytes) -> Float32:
    """Undo `halves`, flat."""
    return from_planes(data[4:], dtype=np.float16).astype(np.float32) * np.frombuffer(data[:4], dtype=np.float32)[0]


def in_blocks(values: Float32, *, size: int) -> Float32:
    """Return values as rows of ``size``, zeros after the end."""
    return np.pad(values.reshape(-1), (0, -values.size % size)).reshape(-1, size)


def packed_codes(codes: Bytes, *, bits: int) -> bytes:
    """Return codes of 2, 4 or 8 bits without a gap, the first in the highest bits of its byte."""
    each = 8 // bits
    rows = np.pad(codes.reshape(-1), (0, -codes.size % each)).reshape(-1, each)
    packed = np.zeros(len(rows), dtype=np.uint8)
    for column in rows.T:
        packed = (packed << np.uint8(bits % 8)) | column
    return packed.tobytes()


def unpacked_codes(data: bytes, *, bits: int) -> Bytes:
    """Undo `packed_codes`; codes that filled up the last byte are there too."""
    packed, mask = np.frombuffer(data, dtype=np.uint8), np.uint8((1 << bits) - 1)
    columns = [(packed >> np.uint8(8 - bits * (k + 1))) & mask for k in range(8 // bits)]
    return np.stack(columns, axis=1).reshape(-1)
