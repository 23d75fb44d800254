"""How are all bits of an adapter written, given the shipped one? As the distance of each pattern from its shipped one.

Float32 patterns in the order of their values are whole numbers; the difference from the shipped number, its sign folded into the
last bit, has a length of n bits. A change of a given size is the longer, the finer the shipped number's last place, so n plus the
shipped exponent hardly varies: that sum is entropy coded. The bits below the leading one are written as they are.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from math import inf
from typing import Final

import numpy as np
from numpy.typing import NDArray

from hushtune_common.adapter import AdapterState, Float32
from hushtune_common.codec import container, entropy
from hushtune_common.codec.codec import AdapterCodec
from hushtune_common.codec.entropy import Highs, Reader, Table
from hushtune_common.codec.kernels import kernel
from hushtune_common.codec.shipped import Shipped
from hushtune_common.errors import BudgetTooSmall, MalformedUpdate
from hushtune_common.messages import Digest, TensorSpec

Patterns = NDArray[np.uint32]
Bytes = NDArray[np.uint8]

FORM: Final = 1
_PLAIN: Final = 2
FORMS: Final = (FORM, _PLAIN)
LOSSLESS_ID: Final = "delta-lossless-ans/1"
_SECTIONS: Final = 4


def lossless_bytes_max(schema: Sequence[TensorSpec]) -> int:
    """Return the bytes that no blob exceeds: four per number, for an adapter that has nothing in common with the shipped one."""
    return _label(Digest.of(b"")).overhead + 4 * sum(spec.count for spec in schema)


class LosslessCodec:
    """Every bit comes back, of changes within ``change_max``. Tensors travel in the order of their names."""

    def __init__(self, *, shipped: AdapterState, change_max: float = inf) -> None:
        """Take the adapter both sides hold; ``ValueError`` names a tensor of it that is not finite."""
        self._shipped = Shipped(shipped)
        self._label, self._change_max = _label(self._shipped.digest), change_max

    @property
    def id(self) -> str:
        """Name and version of the byte format."""
        return self._label.codec

    @property
    def bytes_max(self) -> int:
        """Largest blob that is made or read, in bytes."""
        return lossless_bytes_max(self._shipped.schema)

    def encode(self, state: AdapterState, *, budget_bytes: int) -> bytes:
        """Return the only blob of ``state``; `BudgetTooSmall` when it is too long, see `AdapterCodec`."""
        self._shipped.require_same(state)
        for name, tensor in state.tensors.items():
            if not np.isfinite(tensor).all():
                raise ValueError(f"{name}: holds values that are not finite")
        blob = encode(self._shipped, self._shipped.within(state, change_max=self._change_max), label=self._label)
        if len(blob) > budget_bytes:
            raise BudgetTooSmall(least_bytes=len(blob), budget_bytes=budget_bytes)
        return blob

    def decode(self, blob: bytes, expected: tuple[TensorSpec, ...]) -> AdapterState:
        """Return the tensors in the order of ``expected``; ``MalformedUpdate`` for bytes that ``encode`` does not make."""
        self._shipped.require_expected(expected)
        contents = container.read(blob, label=self._label, bytes_max=self.bytes_max)
        decoded = read(self._shipped, contents)
        return AdapterState({spec.name: decoded[spec.name] for spec in expected})

    def bound(self, blob: bytes) -> Mapping[str, float]:
        """Return 0 for each tensor; ``MalformedUpdate`` as `decode`."""
        contents = container.read(blob, label=self._label, bytes_max=self.bytes_max)
        return dict.fromkeys(read(self._shipped, contents), 0.0)


def encode(shipped: Shipped, state: AdapterState, *, label: container.Label) -> bytes:
    """Return a container with all bits of ``state``."""
    parts = [distances(state.tensors[n].reshape(-1), t.reshape(-1)) for n, t in shipped.tensors.items()]
    lengths = np.concatenate([np.zeros(0, np.int16), *(own for own, _ in parts)])
    table = Table.of(lengths)
    sizes = np.array([len(bits) for _, bits in parts], dtype="<u4").tobytes()
    rest = [b""] * (label.sections - _SECTIONS)
    sections = [table.to_bytes(), entropy.write([(table, lengths)]), sizes, b"".join(bits for _, bits in parts)]
    if sum(len(section) for section in sections) > state.bytes_raw:
        plain = b"".join(state.tensors[n].astype("<f4").tobytes() for n in shipped.tensors)
        return container.write(label, container.Contents(form=_PLAIN, sections=[b"", b"", b"", plain, *rest]))
    return container.write(label, container.Contents(form=FORM, sections=[*sections, *rest]))


def read(shipped: Shipped, contents: container.Contents) -> dict[str, Float32]:
    """Return the tensors that `encode` wrote; ``MalformedUpdate`` for what it does not write."""
    if contents.form not in FORMS:
        raise MalformedUpdate(f"form {contents.form} is not one of {FORMS}")
    if any(len(section) for section in contents.sections[_SECTIONS:]):
        raise MalformedUpdate("sections that mean nothing")
    found = (_read_plain if contents.form == _PLAIN else _read_distances)(shipped, contents.sections)
    for name, tensor in found.items():
        if not np.isfinite(tensor).all():
            raise MalformedUpdate(f"{name}: holds values that are not finite")
    return found


def _read_plain(shipped: Shipped, sections: Sequence[bytes | memoryview]) -> dict[str, Float32]:
    counts = [tensor.size for tensor in shipped.tensors.values()]
    if any(len(section) for section in sections[:3]) or len(sections[3]) != 4 * sum(counts):
        raise MalformedUpdate("not four bytes per number")
    flat = np.frombuffer(sections[3], dtype="<f4").astype(np.float32)
    parts = np.split(flat, np.cumsum(counts)[:-1])
    return {n: part.reshape(t.shape).copy() for (n, t), part in zip(shipped.tensors.items(), parts, strict=True)}


def _read_distances(shipped: Shipped, sections: Sequence[bytes | memoryview]) -> dict[str, Float32]:
    reader = Reader(sections[0])
    table = reader.table()
    reader.end()
    (lengths,) = entropy.read(sections[1], [(table, sum(t.size for t in shipped.tensors.values()))])
    if len(sections[2]) != 4 * len(shipped.tensors):
        raise MalformedUpdate("not a length per tensor")
    ends = np.cumsum([0, *np.frombuffer(sections[2], dtype="<u4").tolist()]).tolist()
    if ends[-1] != len(sections[3]):
        raise MalformedUpdate("the distances do not fill their section")
    found, at = dict[str, Float32](), 0
    for (name, tensor), (start, stop) in zip(shipped.tensors.items(), pairwise(ends), strict=True):
        restored = moved(tensor.reshape(-1), lengths[at : at + tensor.size], memoryview(sections[3])[start:stop])
        found[name], at = restored.reshape(tensor.shape), at + tensor.size
    return found


def _label(base: Digest) -> container.Label:
    return container.Label(codec=LOSSLESS_ID, shipped=base, sections=_SECTIONS)


def distances(returned_n: Float32, shipped_n: Float32) -> tuple[Highs, bytes]:
    """Return lengths plus exponents (N,), and the bits below the leading ones."""
    lengths: Highs = np.empty(returned_n.size, dtype=np.int16)
    bits = np.zeros(4 * returned_n.size + 8, dtype=np.uint8)
    used = _distances(returned_n.view(np.uint32), shipped_n.view(np.uint32), lengths, bits)
    return lengths, bits[:used].tobytes()


def moved(shipped_n: Float32, lengths: Highs, bits: bytes | memoryview) -> Float32:
    """Undo `distances`; ``MalformedUpdate`` when the lengths do not fit 32 bits, or not these ``bits``."""
    exponents = (shipped_n.view(np.uint32) >> 23 & 0xFF).astype(np.int16)
    own = lengths - exponents
    if own.size and (int(own.min()) < 0 or int(own.max()) > 32):
        raise MalformedUpdate("a distance has no length from 0 to 32 bits")
    wanted = int(np.maximum(own - 1, 0).sum(dtype=np.int64))
    if len(bits) != -(-wanted // 8):
        raise MalformedUpdate(f"{len(bits)} bytes of distances, expected {-(-wanted // 8)}")
    returned = np.empty(shipped_n.size, dtype=np.uint32)
    padded = np.concatenate([np.frombuffer(bits, dtype=np.uint8), np.zeros(8, np.uint8)])
    _moved(shipped_n.view(np.uint32), own, padded, returned)
    return returned.view(np.float32)


@kernel
def _ordered(pattern: np.uint32) -> np.uint32:
    """Return the pattern as a number in the order of the values."""
    return np.uint32(pattern ^ np.uint32(0xFFFFFFFF)) if pattern >> np.uint32(31) else np.uint32(pattern ^ np.uint32(0x80000000))


@kernel
def _pattern(ordered: np.uint32) -> np.uint32:
    """Undo `_ordered`."""
    return np.uint32(ordered ^ np.uint32(0x80000000)) if ordered >> np.uint32(31) else np.uint32(ordered ^ np.uint32(0xFFFFFFFF))


@kernel
def _distances(returned: Patterns, shipped: Patterns, lengths: Highs, bits: Bytes) -> int:
    held, count, at = np.uint64(0), 0, 0
    for i in range(returned.size):
        difference = np.int64(_ordered(returned[i])) - np.int64(_ordered(shipped[i]))
        difference = (difference + (1 << 31)) % (1 << 32) - (1 << 31)
        folded = np.uint64(2 * difference if difference >= 0 else -2 * difference - 1)
        length = 0
        while folded >> np.uint64(length):
            length += 1
        lengths[i] = length + ((shipped[i] >> 23) & 0xFF)
        if length > 1:
            held |= (folded ^ (np.uint64(1) << np.uint64(length - 1))) << np.uint64(count)
            count += length - 1
            while count >= 8:
                bits[at] = held & np.uint64(0xFF)
                held >>= np.uint64(8)
                count -= 8
                at += 1
    if count:
        bits[at] = held & np.uint64(0xFF)
        at += 1
    return at


@kernel
def _moved(shipped: Patterns, lengths: Highs, bits: Bytes, returned: Patterns) -> None:
    held, count, at = np.uint64(0), 0, 0
    for i in range(shipped.size):
        length = lengths[i]
        folded = np.uint64(0)
        if length:
            while count < length - 1:
                held |= np.uint64(bits[at]) << np.uint64(count)
                count += 8
                at += 1
            mask = (np.uint64(1) << np.uint64(length - 1)) - np.uint64(1)
            folded = (held & mask) | (np.uint64(1) << np.uint64(length - 1))
            held >>= np.uint64(length - 1)
            count -= length - 1
        difference = np.int64(folded >> np.uint64(1))
        if folded & np.uint64(1):
            difference = -difference - 1
        returned[i] = _pattern(np.uint32(np.int64(_ordered(shipped[i])) + difference & 0xFFFFFFFF))


_conforms: type[AdapterCodec] = LosslessCodec
