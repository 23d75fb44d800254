"""What does a blob of quantised changes hold? A head, the classes of columns, and the codes, class by class.

Head, little endian: f64 square root of theta; per tensor an i16 (its scale in quarters of an octave, from which both sides tell
the classes of its columns) and two u16 (the upper halves of float32: its largest error, and its largest change, which a decoder
cuts off at); the table of corrections to these classes; u8 number of classes, and per class an i8 (its number), u8 (low bits per
code), u8 (2 or 4) and so many f32 (values of levels 1, 2 and 3 and the step beyond), and the table of high parts. The sections
that follow are the corrections; an i8 per tensor and class that it has columns of (by how much the values are raised there, in
64ths of an octave); the high parts; the low bits.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import isfinite
from typing import Final

import numpy as np
from numpy.typing import NDArray

from hushtune_common.adapter import Float32
from hushtune_common.codec import classes, entropy, levels
from hushtune_common.codec.classes import CLASS_MAX, CLASS_MIN, CORRECTION_MAX, Classes
from hushtune_common.codec.coordinates import Coordinates
from hushtune_common.codec.entropy import Reader, Table
from hushtune_common.codec.levels import Gains, Grid, Highs, Lows
from hushtune_common.errors import MalformedUpdate

SECTIONS: Final = 5
_Bytes = bytes | memoryview
_QUARTER_MAX: Final = 2000
_RAW_MAX: Final = 22


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassHead:
    """How one class is coded: low bits per code, table of high parts, values of levels 1 and 2 (and 3, and the step beyond)."""

    of_class: int
    raw_bits: int
    values: tuple[float, ...]
    table: Table

    def to_bytes(self) -> bytes:
        """Return its part of the head."""
        numbers = struct.pack(f"<bBB{len(self.values)}f", self.of_class, self.raw_bits, len(self.values), *self.values)
        return numbers + self.table.to_bytes()

    @staticmethod
    def read(reader: Reader) -> "ClassHead":
        """Read one; ``MalformedUpdate`` for what no encoder writes."""
        of_class, raw_bits, count = reader.whole("bBB")
        if not CLASS_MIN <= of_class <= CLASS_MAX or raw_bits > _RAW_MAX or count not in (2, 4):
            raise MalformedUpdate("a class that there is not")
        values = reader.fields(f"{count}f")
        if not all(isfinite(value) for value in values):
            raise MalformedUpdate("a level's value is not finite")
        return ClassHead(of_class=of_class, raw_bits=raw_bits, values=values, table=reader.table())


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """All that is said before the codes; ``quarters``, ``bounds`` and ``tops`` in the order of the tensors.

    ``bounds`` are the largest errors, ``tops`` the largest changes.
    """

    root: float
    quarters: tuple[int, ...]
    bounds: tuple[float, ...]
    tops: tuple[float, ...]
    corrections: Table
    classes: tuple[ClassHead, ...]

    def to_bytes(self) -> bytes:
        """Return the head; bounds and tops are rounded up."""
        per_tensor = zip(self.quarters, self.bounds, self.tops, strict=True)
        tensors = b"".join(
            struct.pack("<hHH", quarter, _upper_half(bound), _upper_half(top)) for quarter, bound, top in per_tensor
        )
        parts = (c.to_bytes() for c in self.classes)
        return b"".join([struct.pack("<d", self.root), tensors, self.corrections.to_bytes(), bytes([len(self.classes)]), *parts])

    @staticmethod
    def read(data: _Bytes, *, tensors: int) -> "Head":
        """Read the head of so many tensors; ``MalformedUpdate`` for what no encoder writes."""
        reader = Reader(data)
        (root,) = reader.fields("d")
        per_tensor = [reader.whole("hHH") for _ in range(tensors)]
        corrections = reader.table()
        (count,) = reader.whole("B")
        found = tuple(ClassHead.read(reader) for _ in range(count))
        reader.end()
        bounds = tuple(_whole(bound) for _, bound, _ in per_tensor)
        tops = tuple(_whole(top) for _, _, top in per_tensor)
        if not (isfinite(root) and root > 0.0 and all(isfinite(b) and b >= 0.0 for b in bounds + tops)):
            raise MalformedUpdate("a scale, a bound or a largest change is not a number")
        if any(abs(quarter) > _QUARTER_MAX for quarter, _, _ in per_tensor):
            raise MalformedUpdate("a tensor's scale is out of range")
        if corrections.low < -CORRECTION_MAX or corrections.low + len(corrections.weights) > CORRECTION_MAX + 1:
            raise MalformedUpdate("a correction is out of range")
        quarters = tuple(quarter for quarter, _, _ in per_tensor)
        return Head(root=root, quarters=quarters, bounds=bounds, tops=tops, corrections=corrections, classes=found)


@dataclass(frozen=True, slots=True, kw_only=True)
class Codes:
    """Codes of all classes behind one another, each class in the order of tensors, runs, columns and rows.

    ``lows`` are as many as ``highs`` when any class has low bits, else none.
    """

    highs: Highs
    lows: Lows


@dataclass(frozen=True, slots=True, kw_only=True)
class Body:
    """What travels: the head, how far the class of each column lies from the expected one, and the codes."""

    head: Head
    corrections: Highs
    gains: Gains
    """(tensors, classes), in parts of an octave; 0 where a tensor has no column of a class."""
    grids: Sequence[Grid]
    codes: Codes

    @staticmethod
    def silent(coordinates: Sequence[Coordinates]) -> "Body":
        """Return the shortest body: nothing changes."""
        nothing = Table(low=0, weights=(1,))
        count = len(coordinates)
        quarters, zeros = (-_QUARTER_MAX,) * count, (0.0,) * count
        return Body(
            head=Head(root=1.0, quarters=quarters, bounds=zeros, tops=zeros, corrections=nothing, classes=()),
            corrections=np.zeros(sum(c.columns.size for c in coordinates), np.int16),
            gains=np.zeros((count, levels.CLASSES), np.int8),
            grids=[Grid(rows=c.rows, column_class=np.full(c.columns.size, -1, np.int32)) for c in coordinates],
            codes=Codes(highs=np.zeros(0, np.int16), lows=np.zeros(0, np.uint32)),
        )

    def cut_off(self, tops: Sequence[float]) -> "Body":
        """Return the body with these largest changes in its head, as a decoder reads them."""
        return replace(self, head=replace(self.head, tops=tuple(_whole(_upper_half(top)) for top in tops)))

    def bounded(self, bounds: Sequence[float]) -> "Body":
        """Return the body with these largest errors in its head."""
        return replace(self, head=replace(self.head, bounds=tuple(bounds)))

    def sections(self) -> list[bytes]:
        """Return the sections of a container."""
        parts = split(self.codes, self.head, sizes=levels.class_sizes(self.grids))
        words = entropy.write([(plan.table, highs) for plan, (highs, _) in zip(self.head.classes, parts, strict=True)])
        lows = [(lows, p.raw_bits) for p, (_, lows) in zip(self.head.classes, parts, strict=True) if p.raw_bits]
        corrections = entropy.write([(self.head.corrections, self.corrections)])
        gains = self.gains[_present(self.grids)].tobytes()
        return [self.head.to_bytes(), corrections, gains, words, entropy.pack_lows(lows)]

    @staticmethod
    def read(sections: Sequence[_Bytes], coordinates: Sequence[Coordinates]) -> "Body":
        """Read the sections of a body of these tensors; ``MalformedUpdate`` for what no encoder writes."""
        head = Head.read(sections[0], tensors=len(coordinates))
        (corrections,) = entropy.read(sections[1], [(head.corrections, sum(c.columns.size for c in coordinates))])
        grids = _grids(head, corrections, coordinates)
        sizes = levels.class_sizes(grids)
        if [c.of_class - CLASS_MIN for c in head.classes] != np.flatnonzero(sizes).tolist():
            raise MalformedUpdate("the classes are not those of the columns")
        counts = sizes[sizes > 0].tolist()
        gains, present = np.zeros((len(grids), levels.CLASSES), np.int8), _present(grids)
        if len(sections[2]) != int(present.sum()):
            raise MalformedUpdate("not a gain for every class of every tensor")
        gains[present] = np.frombuffer(sections[2], dtype=np.int8)
        highs = entropy.read(sections[3], [(p.table, n) for p, n in zip(head.classes, counts, strict=True)])
        raw = [(n, p.raw_bits) for p, n in zip(head.classes, counts, strict=True)]
        lows = entropy.unpack_lows(sections[4], [(n, bits) for n, bits in raw if bits])
        return Body(head=head, corrections=corrections, gains=gains, grids=grids, codes=_joined(highs, lows, raw=raw))

    def turned(self) -> list[Float32]:
        """Return what a decoder puts for the numbers of each tensor, in units of the square root of theta."""
        values = np.zeros((levels.CLASSES, 4), dtype=np.float32)
        raw_bits = np.zeros(levels.CLASSES, dtype=np.int32)
        for plan in self.head.classes:
            values[plan.of_class - CLASS_MIN, : len(plan.values)] = plan.values
            raw_bits[plan.of_class - CLASS_MIN] = plan.raw_bits
        offsets = starts(levels.class_sizes(self.grids))
        found: list[Float32] = []
        for grid, gains in zip(self.grids, self.gains, strict=True):
            out = np.empty(grid.rows * grid.columns, dtype=np.float32)
            levels.restore(
                grid,
                values=levels.raised(values, gains),
                raw_bits=raw_bits,
                offsets=offsets,
                highs=self.codes.highs,
                lows=self.codes.lows,
                out=out,
            )
            found.append(out)
        return found


def starts(sizes: levels.Counts) -> levels.Counts:
    """Return where each class begins."""
    return np.concatenate([[0], np.cumsum(sizes)[:-1]]).astype(np.int64)


def _present(grids: Sequence[Grid]) -> NDArray[np.bool_]:
    """Return which classes each tensor has columns of, (tensors, classes)."""
    found = [np.bincount(grid.column_class + 1, minlength=levels.CLASSES + 1)[1:] > 0 for grid in grids]
    return np.array(found, dtype=np.bool_).reshape(len(grids), levels.CLASSES)


def split(codes: Codes, head: Head, *, sizes: levels.Counts) -> list[tuple[Highs, Lows]]:
    """Return the codes of each class of the head."""
    begin = starts(sizes)
    places = [(int(begin[k]), int(begin[k] + sizes[k])) for k in (c.of_class - CLASS_MIN for c in head.classes)]
    return [(codes.highs[a:b], codes.lows[a:b]) for a, b in places]


def _joined(highs: Sequence[Highs], lows: Sequence[Lows], *, raw: Sequence[tuple[int, int]]) -> Codes:
    """Return codes of which only classes with low bits brought any."""
    joined = np.concatenate([np.zeros(0, np.int16), *highs])
    if not lows:
        return Codes(highs=joined, lows=np.zeros(0, np.uint32))
    left = iter(lows)
    filled = [next(left) if bits else np.zeros(count, np.uint32) for count, bits in raw]
    return Codes(highs=joined, lows=np.concatenate(filled))


def _grids(head: Head, corrections: Highs, coordinates: Sequence[Coordinates]) -> list[Grid]:
    edges = np.cumsum([0, *(c.columns.size for c in coordinates)]).tolist()
    return [
        grid_of(c, quarter=quarter, corrections=corrections[a:b].astype(np.int32))
        for c, quarter, a, b in zip(coordinates, head.quarters, edges, edges[1:], strict=False)
    ]


def grid_of(coordinates: Coordinates, *, quarter: int, corrections: Classes) -> Grid:
    """Return the classes of a tensor's columns as both sides tell them."""
    expected = classes.bounded(classes.foretold(coordinates.columns, quarter=quarter))
    return Grid(rows=coordinates.rows, column_class=levels.indices(classes.bounded(expected + corrections)))


def _upper_half(bound: float) -> int:
    """Return the upper half of the pattern of the least float32 of 8 significant bits that is no smaller."""
    if bound <= 0.0:
        return 0
    wide = np.float32(bound)
    if float(wide) < bound:
        wide = np.nextafter(wide, np.float32(np.inf))
    return int((int(wide.view(np.uint32)) + 0xFFFF) >> 16)


def top_within(limit: float) -> float:
    """Return the largest change, as a head can say it, that is no more than ``limit``."""
    if limit <= 0.0:
        return 0.0
    narrow = np.float32(limit)
    if float(narrow) > limit:
        narrow = np.nextafter(narrow, np.float32(0.0))
    return _whole(int(narrow.view(np.uint32)) >> 16)


def _whole(half: int) -> float:
    return float(np.uint32(half << 16).view(np.float32))
