"""How are many small whole numbers written in hardly more bits than their entropy? By asymmetric numeral systems, with one
table each.

A stream is an array of numbers and a table of how often each occurs. All streams share one coder of the constriction library (ANS
with 32-bit words and 24-bit probabilities, Duda et al. 2015); its words are read by `ans`. Where the alphabet is small, several
neighbours are coded as one symbol, whose probability is the product of theirs: as few bits, and up to eight times as fast.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import constriction
import numpy as np
from numpy.typing import NDArray

from hushtune_common.codec.ans import Decoder, Quantiles
from hushtune_common.codec.kernels import kernel
from hushtune_common.codec.levels import Highs, Lows
from hushtune_common.errors import MalformedUpdate

_WEIGHT_BITS: Final = 20
ALPHABET_MAX: Final = 1023
_GROUPS: Final = ((3, 8), (8, 4), (64, 2), (ALPHABET_MAX, 1))
"""The largest alphabet of which so many neighbours make one symbol."""
Symbols = NDArray[np.int32]
Bytes = NDArray[np.uint8]


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """How often each number occurs: ``weights[k]`` is the share of ``low + k``, in no particular unit."""

    low: int
    weights: tuple[int, ...]

    def __post_init__(self) -> None:
        """Refuse an alphabet that is empty or too large, and one of which nothing occurs."""
        if not 1 <= len(self.weights) <= ALPHABET_MAX or sum(self.weights) <= 0 or min(self.weights) < 0:
            raise ValueError(f"an alphabet of {len(self.weights)} numbers that nothing can be written with")
        if self.low < -0x8000 or self.low + len(self.weights) > 0x8000:
            raise ValueError(f"numbers from {self.low} on do not fit 16 bits")

    @staticmethod
    def of(numbers: Highs) -> "Table":
        """Return the table of what occurs in ``numbers``; of none, that of zeros."""
        if not numbers.size:
            return Table(low=0, weights=(1,))
        low = int(numbers.min())
        counts = np.bincount(numbers.astype(np.int64) - low)
        scaled = np.rint(counts * (((1 << _WEIGHT_BITS) - 1) / counts.max())).astype(np.int64)
        return Table(low=low, weights=tuple(np.maximum(scaled, counts > 0).tolist()))

    @property
    def group(self) -> int:
        """Neighbours per symbol."""
        return next(group for alphabet, group in _GROUPS if len(self.weights) <= alphabet)

    def symbols(self, count: int) -> int:
        """Return how many symbols ``count`` numbers take; none when there is but one number."""
        return 0 if len(self.weights) == 1 else -(-count // self.group)

    def probabilities(self) -> NDArray[np.float64]:
        """Return the probability of each symbol."""
        single = np.array(self.weights, dtype=np.float64) / sum(self.weights)
        joint = single
        for _ in range(self.group - 1):
            joint = np.multiply.outer(joint, single).reshape(-1)
        return joint

    def digits(self) -> Highs:
        """Return (symbols, group): the numbers that each symbol stands for."""
        alphabet = len(self.weights)
        places = alphabet ** np.arange(self.group - 1, -1, -1)
        return (np.arange(alphabet**self.group)[:, None] // places % alphabet + self.low).astype(np.int16)

    def to_bytes(self) -> bytes:
        """Return its first number, how many follow, and their weights: 7 bits a byte, the last byte without its high bit."""
        return struct.pack("<hH", self.low, len(self.weights)) + b"".join(_varint(w) for w in self.weights)


def write(streams: Sequence[tuple[Table, Highs]]) -> bytes:
    """Return the words of all streams; every number must be in its table."""
    coder = constriction.stream.stack.AnsCoder()
    for table, numbers in reversed(streams):  # what is written last is read first
        if table.symbols(numbers.size):
            symbols = np.empty(table.symbols(numbers.size), dtype=np.int32)
            likeliest = int(np.argmax(table.weights))
            _join(numbers, table.low, len(table.weights), table.group, likeliest, symbols)
            coder.encode_reverse(symbols, constriction.stream.model.Categorical(table.probabilities(), perfect=False))
    return coder.get_compressed().astype("<u4").tobytes()


def read(data: bytes | memoryview, wanted: Sequence[tuple[Table, int]]) -> list[Highs]:
    """Return the numbers of streams of which tables and lengths are known; ``MalformedUpdate`` when more or less is there."""
    if len(data) % 4:
        raise MalformedUpdate(f"{len(data)} bytes are no whole number of words")
    words = np.frombuffer(data, dtype="<u4").astype(np.uint32)
    if words.size and words[-1] == 0:
        raise MalformedUpdate("the last word is zero, which no coder writes")
    decoder = Decoder(words)
    found = [_read_one(decoder, table, count) for table, count in wanted]
    if not decoder.is_empty:
        raise MalformedUpdate("words are left over")
    return found


def _read_one(decoder: Decoder, table: Table, count: int) -> Highs:
    numbers = np.full(count, table.low, dtype=np.int16)
    if table.symbols(count):
        decoder.read(Quantiles.of(table.probabilities()), table.digits(), out=numbers)
    return numbers


def pack_lows(parts: Sequence[tuple[Lows, int]]) -> bytes:
    """Return low bits, each part with so many per number, the first in the lowest bits; each part fills whole bytes."""
    packed = [np.zeros(packed_size(lows.size, bits=bits), dtype=np.uint8) for lows, bits in parts]
    for (lows, bits), out in zip(parts, packed, strict=True):
        _pack(lows, bits, out)
    return b"".join(out.tobytes() for out in packed)


def unpack_lows(data: bytes | memoryview, sizes: Sequence[tuple[int, int]]) -> list[Lows]:
    """Undo `pack_lows` of parts of which number and bits are known; ``MalformedUpdate`` when more or less is there."""
    edges = np.cumsum([0, *(packed_size(count, bits=bits) for count, bits in sizes)]).tolist()
    if edges[-1] != len(data):
        raise MalformedUpdate(f"{len(data)} bytes of low bits, expected {edges[-1]}")
    flat, found = np.frombuffer(data, dtype=np.uint8), list[Lows]()
    for (count, bits), (start, stop) in zip(sizes, pairwise(edges), strict=True):
        lows: Lows = np.empty(count, dtype=np.uint32)
        if used := count * bits % 8:
            _require_padding(int(flat[stop - 1]), used=used)
        _unpack(flat[start:stop], bits, lows)
        found.append(lows)
    return found


def packed_size(count: int, *, bits: int) -> int:
    """Return the bytes of ``count`` numbers of ``bits`` bits."""
    return -(-count * bits // 8)


def _require_padding(last: int, *, used: int) -> None:
    if last >> used:
        raise MalformedUpdate("the padding after the low bits is not zero")


class Reader:
    """Reads what `struct` and `Table` wrote, from front to back; ``MalformedUpdate`` at the end of the bytes."""

    def __init__(self, data: bytes | memoryview) -> None:
        """Start at the first byte."""
        self._data, self._at = bytes(data), 0

    def fields(self, layout: str) -> tuple[int | float, ...]:
        """Return the little-endian fields of ``layout``."""
        stop = self._at + struct.calcsize("<" + layout)
        if stop > len(self._data):
            raise MalformedUpdate("the head ends too early")
        start, self._at = self._at, stop
        return struct.unpack("<" + layout, self._data[start:stop])

    def whole(self, layout: str) -> tuple[int, ...]:
        """Return fields that are whole numbers."""
        return tuple(int(field) for field in self.fields(layout))

    def table(self) -> Table:
        """Return the next table."""
        low, size = self.whole("hH")
        if not 1 <= size <= ALPHABET_MAX:
            raise MalformedUpdate(f"an alphabet of {size} numbers")
        try:
            return Table(low=low, weights=tuple(self._varint() for _ in range(size)))
        except ValueError as error:
            raise MalformedUpdate(str(error)) from error

    def end(self) -> None:
        """Refuse bytes that nobody asked for."""
        if self._at != len(self._data):
            raise MalformedUpdate("the head goes on after its end")

    def _varint(self) -> int:
        number = 0
        for place in range(0, _WEIGHT_BITS + 1, 7):
            (byte,) = self.whole("B")
            number |= (byte & 0x7F) << place
            if byte < 0x80:
                return number
        raise MalformedUpdate("a weight is too large")


def _varint(number: int) -> bytes:
    out = bytearray()
    while number >= 0x80:
        out.append(0x80 | (number & 0x7F))
        number >>= 7
    out.append(number)
    return bytes(out)


@kernel
def _join(numbers: Highs, low: int, alphabet: int, group: int, filler: int, symbols: Symbols) -> None:
    whole = numbers.size // group
    for s in range(whole):
        symbol = 0
        for i in range(s * group, s * group + group):
            symbol = symbol * alphabet + (numbers[i] - low)
        symbols[s] = symbol
    if whole < symbols.size:
        symbol = 0
        for i in range(whole * group, (whole + 1) * group):
            symbol = symbol * alphabet + (numbers[i] - low if i < numbers.size else filler)
        symbols[whole] = symbol


@kernel
def _pack(lows: Lows, bits: int, out: Bytes) -> None:
    held, count, at = np.uint64(0), 0, 0
    for low in lows:
        held |= np.uint64(low) << np.uint64(count)
        count += bits
        while count >= 8:
            out[at] = held & np.uint64(0xFF)
            held >>= np.uint64(8)
            count -= 8
            at += 1
    if count:
        out[at] = held & np.uint64(0xFF)


@kernel
def _unpack(packed: Bytes, bits: int, lows: Lows) -> None:
    held, count, at = np.uint64(0), 0, 0
    mask = (np.uint64(1) << np.uint64(bits)) - np.uint64(1)
    for i in range(lows.size):
        while count < bits:
            held |= np.uint64(packed[at]) << np.uint64(count)
            count += 8
            at += 1
        lows[i] = held & mask
        held >>= np.uint64(bits)
        count -= bits
