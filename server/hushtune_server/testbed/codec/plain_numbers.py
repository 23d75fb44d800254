"""Which peers write every number by itself? Half floats, integers with a scale per block, signs, and every bit as it is."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hushtune_server.testbed.codec.peer import (
    Float32,
    Tensors,
    from_halves,
    from_planes,
    halves,
    in_blocks,
    in_planes,
    joined,
    packed_codes,
    parted,
    unpacked_codes,
    unzipped,
    zipped,
)

BLOCK = 64


@dataclass(frozen=True, slots=True)
class Half:
    """float16 after one float32 factor per tensor."""

    def encode(self, change: Float32) -> Sequence[bytes]:
        """Return one part."""
        return [halves(change)]

    def decode(self, parts: Sequence[bytes], *, shape: tuple[int, ...]) -> Float32:
        """Return the tensor."""
        return from_halves(parts[0]).reshape(shape)


@dataclass(frozen=True, slots=True, kw_only=True)
class Integers:
    """Integers from -Q to Q, Q = 2^(bits - 1) - 1, with one float16 scale per block of 64: the largest magnitude over Q."""

    bits: int

    def __post_init__(self) -> None:
        """Refuse widths that leave gaps in bytes."""
        if self.bits not in (2, 4, 8):
            raise ValueError(f"integers have 2, 4 or 8 bits, got {self.bits}")

    @property
    def largest(self) -> int:
        """Q."""
        return (1 << (self.bits - 1)) - 1

    def encode(self, change: Float32) -> Sequence[bytes]:
        """Return scales, then codes."""
        blocks = in_blocks(change, size=BLOCK)
        written = halves(np.abs(blocks).max(axis=1) / np.float32(self.largest))
        scales = from_halves(written)
        codes = np.rint(blocks / np.where(scales > 0.0, scales, np.float32(1.0))[:, None])
        codes = np.clip(codes, -self.largest, self.largest) + self.largest
        return [written, packed_codes(codes.astype(np.uint8), bits=self.bits)]

    def decode(self, parts: Sequence[bytes], *, shape: tuple[int, ...]) -> Float32:
        """Return the tensor."""
        scales = from_halves(parts[0])
        codes = unpacked_codes(parts[1], bits=self.bits)[: scales.size * BLOCK].astype(np.float32) - np.float32(self.largest)
        return (codes.reshape(-1, BLOCK) * scales[:, None]).reshape(-1)[: int(np.prod(shape))].reshape(shape)


@dataclass(frozen=True, slots=True)
class Signs:
    """One bit per number, times the tensor's mean magnitude, which is the best factor (Liu et al. 2024, BitDelta, equation 3)."""

    def encode(self, change: Float32) -> Sequence[bytes]:
        """Return the factor, then the signs."""
        return [np.float32(np.abs(change).mean(dtype=np.float64)).tobytes(), np.packbits(change.reshape(-1) > 0.0).tobytes()]

    def decode(self, parts: Sequence[bytes], *, shape: tuple[int, ...]) -> Float32:
        """Return the tensor."""
        size = int(np.prod(shape))
        positive = np.unpackbits(np.frombuffer(parts[1], dtype=np.uint8), count=size).astype(np.float32)
        return ((2.0 * positive - 1.0) * np.frombuffer(parts[0], dtype=np.float32)[0]).astype(np.float32).reshape(shape)


@dataclass(frozen=True, slots=True)
class Lossless:
    """Every bit: the float32 patterns of returned and shipped, exclusive or, so that what did not change is zero."""

    name: str = "lossless"
    says: str = "float32 patterns against the shipped ones (exclusive or), byte planes, zstandard; exact"

    def encode(self, returned: Tensors, *, shipped: Tensors) -> bytes:
        """Return the file."""
        changed = (returned[name].view(np.uint32) ^ shipped[name].view(np.uint32) for name in sorted(shipped))
        return joined([zipped(in_planes(words)) for words in changed])

    def decode(self, blob: bytes, *, shipped: Tensors) -> dict[str, Float32]:
        """Return the adapter, bit for bit."""
        changed = dict(zip(sorted(shipped), parted(blob), strict=True))
        return {name: _restored(changed[name], start) for name, start in shipped.items()}


def _restored(frame: bytes, start: Float32) -> Float32:
    words = from_planes(unzipped(frame), dtype=np.uint32).view(np.uint32).reshape(start.shape)
    return (words ^ start.view(np.uint32)).view(np.float32)
