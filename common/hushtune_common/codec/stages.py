"""The stages of a codec: blockwise absmax integers with their error bound, planes of scales, entropy coding."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
import zstandard
from numpy.typing import NDArray

from hushtune_common.codec.packing import Codes
from hushtune_common.errors import MalformedUpdate

Float32 = NDArray[np.float32]
Scales = NDArray[np.uint16]

WIDTHS: Final = range(2, 9)
"""Bits that a code may have."""

DELTA_MAX: Final = 2.0**120
"""Largest difference that is encoded; beyond it a scaled code could leave float32."""
_CHUNK: Final = 1 << 17
"""Elements worked on at a time: the temporaries stay in the second-level cache."""
_INFINITE: Final = 0x7F80
"""The first bfloat16 pattern that is not a finite, non-negative number."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockQuantiser:
    """Differences to integers of ``bits`` bits, one scale per block of ``block_size`` elements.

    A block with largest magnitude A gets the scale A / Q, Q = 2^(bits-1) - 1, rounded *up* to bfloat16, so that no code leaves
    [-Q, Q]. bfloat16 keeps the whole range of float32, so small deltas need no second scale, and costs less after entropy coding
    than float16, whose low mantissa bits are noise. The error of an element is at most half a scale: A / (2 Q) (1 + 2^-7).
    """

    bits: int
    block_size: int

    def __post_init__(self) -> None:
        """Check the ranges."""
        if self.bits not in WIDTHS or self.block_size < 1:
            raise ValueError(f"codes have 2 to 8 bits and blocks at least 1 element, got {self.bits} and {self.block_size}")

    @property
    def code_max(self) -> int:
        """Q, the largest code: from 1 (2 bits) to 127 (8 bits)."""
        return (1 << (self.bits - 1)) - 1

    def block_count(self, count: int) -> int:
        """Return the number of blocks, and scales, of ``count`` elements; the last one may be partial."""
        return -(-count // self.block_size)

    def quantise(self, returned_n: Float32, shipped_n: Float32) -> tuple[Scales, Codes]:
        """Return bfloat16 scales and codes of ``returned_n - shipped_n``; ``ValueError`` beyond `DELTA_MAX` or not finite."""
        codes_n: Codes = np.empty(returned_n.size, dtype=np.int8)
        scales: Scales = np.empty(self.block_count(returned_n.size), dtype=np.uint16)
        for elements, blocks in self._chunks(returned_n.size):
            delta = self._delta(returned_n[elements], shipped_n[elements])
            absmax = np.abs(delta).max(axis=1)
            if not (absmax <= DELTA_MAX).all():
                raise ValueError("holds values that are not finite, or differences beyond 2**120")
            scale_patterns = _round_up(absmax / np.float32(self.code_max))
            scales[blocks] = scale_patterns
            scale = _widen(scale_patterns)
            np.divide(delta, np.where(scale > 0.0, scale, np.float32(1.0))[:, None], out=delta)
            np.rint(delta, out=delta)
            codes_n[elements] = delta.reshape(-1)[: elements.stop - elements.start]
        return scales, codes_n

    def restore(self, scales: Scales, codes_n: Codes, shipped_n: Float32, *, out: Float32) -> float:
        """Write ``shipped_n`` plus the scaled codes to ``out`` (N,); ``MalformedUpdate`` for what `quantise` cannot give.

        Returns the largest scale.
        """
        if scales.size and int(scales.max()) >= _INFINITE:
            raise MalformedUpdate("a scale is negative or not finite")
        for elements, blocks in self._chunks(codes_n.size):
            codes = codes_n[elements]
            if int(codes.min()) < -self.code_max:
                raise MalformedUpdate(f"a code is below {-self.code_max}")
            scaled = self._padded(codes.size)
            scaled.reshape(-1)[: codes.size] = codes
            with np.errstate(over="ignore", invalid="ignore"):
                np.multiply(scaled, _widen(scales[blocks])[:, None], out=scaled)
                np.add(scaled.reshape(-1)[: codes.size], shipped_n[elements], out=out[elements])
            if not np.isfinite(out[elements]).all():
                raise MalformedUpdate("holds values that are not finite")
        return float(_widen(scales).max(initial=np.float32(0.0)))

    def bound(self, returned_n: Float32, shipped_n: Float32) -> Float32:
        """Return the largest error of each element (N,), with the float32 rounding of difference, quotient and sum included."""
        bound_n = np.empty(returned_n.size, dtype=np.float32)
        for elements, _ in self._chunks(returned_n.size):
            absmax = np.abs(self._delta(returned_n[elements], shipped_n[elements])).max(axis=1).astype(np.float64)
            # Half a scale, rounded up by at most 2^-7 of itself. A subnormal scale may count as zero, where a library has set
            # the processor to flush subnormals: then the whole block, below 127 * 2^-126, is lost.
            half = absmax / (2 * self.code_max) * (1.0 + 2.0**-7) + 2.0**-118
            rounding = 2.0**-22 * (np.abs(returned_n[elements], dtype=np.float64) + np.abs(shipped_n[elements]))
            bound_n[elements] = np.repeat(half, self.block_size)[: rounding.size] + rounding
        return bound_n

    def _chunks(self, count: int) -> Iterator[tuple[slice, slice]]:
        """Yield matching slices of elements and blocks; every chunk but the last is a whole number of blocks."""
        step = max(1, _CHUNK // self.block_size)
        for first in range(0, self.block_count(count), step):
            last = min(first + step, self.block_count(count))
            yield slice(first * self.block_size, min(last * self.block_size, count)), slice(first, last)

    def _delta(self, returned_n: Float32, shipped_n: Float32) -> Float32:
        """Return the difference as (blocks, block_size), zeros after the end."""
        delta = self._padded(returned_n.size)
        with np.errstate(over="ignore", invalid="ignore"):  # the caller refuses what overflows, with a better message
            np.subtract(returned_n, shipped_n, out=delta.reshape(-1)[: returned_n.size])
        return delta

    def _padded(self, count: int) -> Float32:
        blocks = np.empty((self.block_count(count), self.block_size), dtype=np.float32)
        blocks.reshape(-1)[count:] = 0.0
        return blocks


@dataclass(frozen=True, slots=True, kw_only=True)
class EntropyCoder:
    """Zstandard frames that state their size: Huffman coding, within 2 % of the codes' entropy at 3 bits and more.

    Repetitions are looked for half-heartedly, since those that codes of few bits have by chance, taken as matches, cost more than
    their Huffman codes: at 2 bits this saves 15 %. Stretches that training left alone still vanish.
    """

    level: int

    def compress(self, data: NDArray[np.uint8]) -> bytes:
        """Return one frame of ``data``."""
        parameters = zstandard.ZstdCompressionParameters.from_level(
            self.level, source_size=data.size, min_match=7, hash_log=6, chain_log=6, write_checksum=False
        )
        return zstandard.ZstdCompressor(compression_params=parameters).compress(data.tobytes())

    @staticmethod
    def size_max(size: int) -> int:
        """Return the longest frame of ``size`` bytes (zstandard's own bound for incompressible data, rounded up)."""
        return size + (size >> 8) + 128

    @staticmethod
    def decompress(frame: bytes | memoryview, *, size: int) -> NDArray[np.uint8]:
        """Return exactly ``size`` bytes; ``MalformedUpdate`` before anything larger is allocated."""
        try:
            # The library allocates what the frame's header claims, so the claim is compared first.
            if zstandard.frame_content_size(frame) != size:
                raise MalformedUpdate(f"a frame does not announce {size} bytes")
            data = zstandard.ZstdDecompressor().decompress(frame, max_output_size=size, allow_extra_data=False)
        except zstandard.ZstdError as error:
            raise MalformedUpdate("not a zstandard frame") from error
        if len(data) != size:
            raise MalformedUpdate(f"a frame holds {len(data)} bytes instead of {size}")
        return np.frombuffer(data, dtype=np.uint8)


def split_planes(scales: Scales) -> NDArray[np.uint8]:
    """Return all high bytes (exponents, nearly constant), then all low bytes (mantissas, noise)."""
    return np.concatenate([(scales >> 8).astype(np.uint8), (scales & 0xFF).astype(np.uint8)])


def join_planes(planes: NDArray[np.uint8]) -> Scales:
    """Undo `split_planes`."""
    high, low = np.split(planes, 2)
    return (high.astype(np.uint16) << np.uint16(8)) | low.astype(np.uint16)


def _round_up(scale: Float32) -> Scales:
    """Return the bit patterns of the next bfloat16 values at or above the non-negative ``scale``."""
    return ((scale.view(np.uint32) + np.uint32(0xFFFF)) >> 16).astype(np.uint16)


def _widen(patterns: Scales) -> Float32:
    """Return bfloat16 bit patterns as float32."""
    return (patterns.astype(np.uint32) << 16).view(np.float32)
