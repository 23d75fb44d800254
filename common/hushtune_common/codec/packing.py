"""How do codes of 2 to 8 bits lie in bytes? Without a gap, and so that a byte-wise entropy coder still sees their statistics.

A code of fewer than 8 bits is first folded to an unsigned number: 0, -1, 1, -2, 2 ... to 0, 1, 2, 3, 4 ..., whose high bits are
nearly always zero. The N codes are then cut into G equal runs, G the fewest codes that fill whole bytes (8 for odd widths). The
codes at one position of all runs fill P = G * bits / 8 bytes, one in each of P planes. A byte holds as many whole codes as fit;
the codes that fit nowhere, the rest, are one number, cut into 8 % bits bits per plane. Planes follow one another, so all bytes of
a stretch have one distribution, and only the rest loses what its bits know of each other. The last N % G codes are packed bit by
bit.

Codes of 8 bits are their own bytes.
"""

from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from math import gcd

import numpy as np
from numpy.typing import NDArray

from hushtune_common.errors import MalformedUpdate

Codes = NDArray[np.int8]
Bytes = NDArray[np.uint8]
"""Packed codes, and folded ones, a byte each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Layout:
    """Where the codes of one width lie: ``group`` codes fill ``planes`` bytes, each with ``whole`` codes above ``spare`` bits."""

    bits: int
    group: int
    planes: int
    whole: int
    spare: int

    def body(self, count: int) -> int:
        """Return how many of ``count`` codes lie in planes."""
        return count - count % self.group


@cache
def _layout(bits: int) -> _Layout:
    group = 8 // gcd(8, bits)
    return _Layout(bits=bits, group=group, planes=group * bits // 8, whole=8 // bits, spare=8 % bits)


def packed_size(count: int, *, bits: int) -> int:
    """Return the bytes of ``count`` codes of ``bits`` bits."""
    return -(-count * bits // 8)


def pack_codes(codes_n: Codes, *, bits: int) -> Bytes:
    """Return codes (N,) from -2^(bits-1) to 2^(bits-1) - 1 as `packed_size` bytes."""
    if bits == 8:
        return codes_n.view(np.uint8)
    layout = _layout(bits)
    folded_n = ((codes_n << 1) ^ (codes_n >> 7)).view(np.uint8)
    body = layout.body(folded_n.size)
    packed = np.empty(packed_size(folded_n.size, bits=bits), dtype=np.uint8)
    end = body * bits // 8
    _pack_planes(folded_n[:body].reshape(layout.group, -1), layout=layout, out=packed[:end].reshape(layout.planes, -1))
    packed[end:] = _pack_tail(folded_n[body:], bits=bits, size=packed.size - end)
    return packed


def unpack_codes(packed: Bytes, count: int, *, bits: int) -> Codes:
    """Undo `pack_codes` of ``count`` codes; ``packed`` has their `packed_size`. ``MalformedUpdate`` when the last bits are not 0.

    A pattern that `pack_codes` gives to no code of a symmetric quantiser comes out as -2^(bits-1).
    """
    if bits == 8:
        return packed.view(np.int8)
    layout = _layout(bits)
    body = layout.body(count)
    folded_n = np.empty(count, dtype=np.uint8)
    end = body * bits // 8
    _unpack_planes(packed[:end].reshape(layout.planes, -1), layout=layout, out=folded_n[:body].reshape(layout.group, -1))
    folded_n[body:] = _unpack_tail(packed[end:], bits=bits, count=count - body)
    return (folded_n >> 1).view(np.int8) ^ -(folded_n & 1).view(np.int8)


def _pack_planes(runs: Bytes, *, layout: _Layout, out: Bytes) -> None:
    """Write runs (G, M) of folded codes to planes (P, M)."""
    rest = np.zeros(runs.shape[1], dtype=np.uint16)  # 15 bits at most, at 5 bits a code
    for position, run in enumerate(runs[layout.planes * layout.whole :]):
        rest |= run.astype(np.uint16) << np.uint16(position * layout.bits)
    for index, plane in enumerate(out):
        plane[:] = (rest >> np.uint16(index * layout.spare)) & np.uint16((1 << layout.spare) - 1)
        for position in range(layout.whole):
            plane |= runs[index * layout.whole + position] << np.uint8(layout.spare + position * layout.bits)


def _unpack_planes(planes: Bytes, *, layout: _Layout, out: Bytes) -> None:
    """Write planes (P, M) as runs (G, M) of folded codes."""
    mask = np.uint8((1 << layout.bits) - 1)
    rest = np.zeros(planes.shape[1], dtype=np.uint16)
    for index, plane in enumerate(planes):
        rest |= (plane & np.uint8((1 << layout.spare) - 1)).astype(np.uint16) << np.uint16(index * layout.spare)
        for position in range(layout.whole):
            np.right_shift(plane, layout.spare + position * layout.bits, out=out[index * layout.whole + position])
    out[: layout.planes * layout.whole] &= mask
    for position, run in enumerate(out[layout.planes * layout.whole :]):
        run[:] = (rest >> np.uint16(position * layout.bits)) & np.uint16(mask)


def _pack_tail(folded_n: Bytes, *, bits: int, size: int) -> Bytes:
    """Return fewer than a group of codes as ``size`` bytes, the first code in the lowest bits, zeros on top."""
    number = sum(int(code) << (bits * position) for position, code in enumerate(folded_n))
    return np.frombuffer(number.to_bytes(size, "little"), dtype=np.uint8)


def _unpack_tail(packed: Bytes, *, bits: int, count: int) -> Bytes:
    """Undo `_pack_tail` of ``count`` codes."""
    number = int.from_bytes(packed.tobytes(), "little")
    if number >> (bits * count):
        raise MalformedUpdate("the padding after the last code is not empty")
    edges = range(0, bits * (count + 1), bits)
    return np.array([(number >> low) & ((1 << (high - low)) - 1) for low, high in pairwise(edges)], dtype=np.uint8)
