"""What do bytes look like that no encoder made, but that know its formats, and what may come of them?"""

import struct
import time
import tracemalloc
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import zstandard

from hushtune_common.adapter import AdapterState
from hushtune_common.codec import container
from hushtune_common.codec.body import Head
from hushtune_common.codec.codec import AdapterCodec
from hushtune_common.codec.entropy import Reader
from hushtune_common.codec.pipeline import make_codec
from hushtune_common.codec.sensitivity import Sensitivity, TensorSensitivity
from hushtune_common.codec.staircase import SEED_BYTES
from hushtune_common.config import CodecConfig, NoiseConfig
from hushtune_common.errors import MalformedUpdate
from hushtune_common.messages import Digest, TensorSpec

SHAPES = {"b.matrix": (67, 4), "a.vector": (9,), "c.one": (1, 3)}
SCHEMA = tuple(TensorSpec(name=n, shape=s, dtype="F32", block=0) for n, s in SHAPES.items())
INTERESTING = {
    1: (0, 1, 2, 3, 4, 22, 23, 0x7F, 0x80, 0xE7, 0xE8, 0xFF),
    2: (0, 1, 2, 0x3FF, 0x400, 0x7F7F, 0x7F80, 0x7FC0, 0x7FFF, 0x8000, 0xFFD8, 0xFFFF),
    4: (0, 1, 0x7F7FFFFF, 0x7F800000, 0x7FC00000, 0x80000000, 0xFF800000, 0xFFFFFFFF, 0x1F, 0x20, 0x21),
    8: (0, 1, 0x7FEFFFFFFFFFFFFF, 0x7FF0000000000000, 0x7FF8000000000000, 1 << 63, (1 << 64) - 1, 0x0010000000000000),
}
"""Edges of whole numbers, of floats and of what the formats allow, by their size in bytes."""
NOISE = NoiseConfig(epsilon=8.0, clip=0.05, block=2)
JOPEQ_FRONT = 4 + SEED_BYTES + 1
MEMORY_MAX = 4 << 20
"""Bytes that decoding any blob of this adapter may take beside the interpreter's own: tables of 6,561 symbols, several times."""

Sections = list[bytes]


@dataclass(frozen=True, kw_only=True)
class Target:
    """A codec and blobs that it made, cut into form and sections."""

    name: str
    codec: AdapterCodec
    label: container.Label
    made: Sequence[tuple[int, Sections]]


@dataclass(kw_only=True)
class Tally:
    """What came of the tries so far."""

    outcomes: Counter[str] = field(default_factory=Counter[str])
    slowest_s: float = 0.0
    memory: int = 0


class Broken(Exception):
    """A blob did what none may do."""


def adapter(seed: int, *, scale: float) -> AdapterState:
    """Return a small adapter of normal numbers."""
    rng = np.random.default_rng(seed)
    return AdapterState({n: (scale * rng.standard_normal(s)).astype(np.float32) for n, s in SHAPES.items()})


def sensitivity() -> Sensitivity:
    """Return one with a direction in the matrix."""
    tensors = dict(Sensitivity.flat(SCHEMA).tensors)
    columns = np.array([4.0, 1.0, 0.25, 1.0], dtype=np.float32)
    along = np.full((1, 4), 0.5, dtype=np.float32)
    tensors["b.matrix"] = TensorSensitivity(rows=np.ones(67, np.float32), columns=columns, directions=along)
    return Sensitivity(tensors)


def targets() -> list[Target]:
    """Return the four codecs with blobs of all their forms, from few levels to codes with low bits."""
    shipped, change = adapter(1, scale=0.05), adapter(2, scale=1e-3)
    near = AdapterState({n: t + change.tensors[n] for n, t in shipped.tensors.items()})
    far = adapter(3, scale=1e6)
    found: list[Target] = []
    for config, states, budgets in (
        (CodecConfig(kind="rate_distortion", bits=30.0), (near, far), (190, 260, 350, 480, 560, 2000)),
        (CodecConfig(kind="lossless"), (near, far), (2000,)),
        (CodecConfig(kind="blockwise", bits=8.0), (near,), (290, 350, 420, 600)),
        (CodecConfig(kind="jopeq", bits=30.0, noise=NOISE), (near, far), (480, 560, 2000)),
    ):
        codec = make_codec(config, shipped=shipped, sensitivity=sensitivity())
        blobs = {codec.encode(state, budget_bytes=budget) for state in states for budget in budgets}
        label = label_of(next(iter(blobs)))
        made = sorted((c.form, [bytes(s) for s in c.sections]) for c in (read(b, label) for b in blobs))
        found.append(Target(name=config.kind, codec=codec, label=label, made=made))
    return found


def label_of(blob: bytes) -> container.Label:
    """Return the label that a blob carries."""
    length = blob[6]
    codec, rest = blob[7 : 7 + length].decode(), blob[7 + length :]
    (sections,) = struct.unpack_from("<I", rest, 32)
    return container.Label(codec=codec, shipped=Digest(rest[:32]), sections=sections)


def read(blob: bytes, label: container.Label) -> container.Contents:
    """Return the contents of a blob of ours."""
    return container.read(blob, label=label, bytes_max=len(blob))


def mutated(target: Target, rng: np.random.Generator) -> bytes:
    """Return a blob with one to three changes."""
    form, original = target.made[int(rng.integers(len(target.made)))]
    sections = list(original)
    for _ in range(1 + int(rng.integers(3))):
        where = int(rng.integers(20))
        if where == 0:
            form = int(rng.choice(INTERESTING[1]))
        elif where <= 4:
            change_inside(target, form, sections, rng)
        elif where == 5:
            _, others = target.made[int(rng.integers(len(target.made)))]
            at = int(rng.integers(len(sections)))
            sections[at] = others[at]
        elif where == 6:
            left, right = rng.integers(len(sections), size=2)
            sections[left], sections[right] = sections[right], sections[left]
        else:
            at = int(rng.integers(len(sections)))
            sections[at] = WAYS[int(rng.integers(len(WAYS)))](sections[at], rng)
    blob = container.write(target.label, container.Contents(form=form, sections=sections))
    where = int(rng.integers(40))
    if where < 2:
        return outside(blob, target, rng, signed=where == 0)
    return blob


def change_inside(target: Target, form: int, sections: Sections, rng: np.random.Generator) -> None:
    """Change what a random damage of bytes would hardly reach: tables, and what frames hold."""
    if target.name == "blockwise":
        at = int(rng.integers(len(sections)))
        sections[at] = other_frame(sections[at], rng)
    elif target.name == "jopeq":
        front, table = sections[0][:JOPEQ_FRONT], sections[0][JOPEQ_FRONT:]
        if rng.integers(3):
            sections[0] = front + other_lone_table(table, rng)
        else:  # other steps of the grid, other low bits
            steps = int(rng.choice(np.array(INTERESTING[4], dtype=np.uint64)))
            sections[0] = struct.pack("<I", steps) + front[4:-1] + bytes([int(rng.integers(40))]) + table
    elif form == 0:
        sections[0] = other_head(sections[0], rng)
    elif form == 1:
        sections[0] = other_lone_table(sections[0], rng)


def other_frame(section: bytes, rng: np.random.Generator) -> bytes:
    """Return a zstandard frame that holds something near what the given one holds; or the section, if it is none."""
    try:
        if zstandard.frame_content_size(section) > 1 << 12:
            return section
        held = zstandard.ZstdDecompressor().decompress(section, max_output_size=1 << 12)
    except zstandard.ZstdError:
        return section
    return zstandard.ZstdCompressor(level=1).compress(WAYS[int(rng.integers(len(WAYS)))](held, rng))


def other_lone_table(section: bytes, rng: np.random.Generator) -> bytes:
    """Return a section with another table; or as it is, if it holds none."""
    try:
        table = Reader(section).table()
    except MalformedUpdate:
        return section
    if rng.integers(3):
        return struct.pack("<H", (table.low + int(rng.integers(-3, 4))) % 0x10000) + section[2:]
    return other_table(table.low, list(table.weights), rng)


def outside(blob: bytes, target: Target, rng: np.random.Generator, *, signed: bool) -> bytes:
    """Return a blob with other bytes in its header or its length table, or anywhere; with a right digest or a wrong one."""
    body = bytearray(blob if not signed else blob[:-32])
    last = len(target.label.to_bytes()) + 1 + 8 * target.label.sections if signed else len(body)
    at, size = int(rng.integers(last)), int(rng.choice([1, 2, 4, 8]))
    body[at : at + size] = int(rng.choice(np.array(INTERESTING[size], dtype=np.uint64))).to_bytes(size, "little")
    return bytes(body) + (Digest.of(bytes(body)).value if signed else b"")


def flipped(section: bytes, rng: np.random.Generator) -> bytes:
    """Return a section with one bit changed."""
    if not section:
        return section
    found, at = bytearray(section), int(rng.integers(len(section)))
    found[at] ^= 1 << int(rng.integers(8))
    return bytes(found)


def overwritten(section: bytes, rng: np.random.Generator) -> bytes:
    """Return a section with an interesting number somewhere."""
    size = int(rng.choice([1, 2, 4, 8]))
    if len(section) < size:
        return section
    at = int(rng.integers(len(section) - size + 1))
    number = INTERESTING[size][int(rng.integers(len(INTERESTING[size])))]
    return section[:at] + number.to_bytes(size, "little") + section[at + size :]


def randomised(section: bytes, rng: np.random.Generator) -> bytes:
    """Return a section with a stretch of random bytes."""
    if not section:
        return section
    at = int(rng.integers(len(section)))
    size = min(len(section) - at, int(rng.integers(1, 17)))
    return section[:at] + rng.bytes(size) + section[at + size :]


def cut(section: bytes, rng: np.random.Generator) -> bytes:
    """Return the first part of a section."""
    return section[: int(rng.integers(len(section) + 1))]


def longer(section: bytes, rng: np.random.Generator) -> bytes:
    """Return a section with more bytes in it, at its end most often; whole words most often."""
    at = len(section) if rng.integers(3) else int(rng.integers(len(section) + 1))
    return section[:at] + rng.bytes(4 * int(rng.integers(1, 5)) if rng.integers(3) else int(rng.integers(1, 9))) + section[at:]


def shorter(section: bytes, rng: np.random.Generator) -> bytes:
    """Return a section without some of its bytes; whole words most often."""
    at = int(rng.integers(len(section) + 1))
    return section[:at] + section[at + (4 if rng.integers(3) else 1) :]


Way = Callable[[bytes, np.random.Generator], bytes]
WAYS: tuple[Way, ...] = (flipped, overwritten, overwritten, randomised, randomised, cut, longer, shorter)


def other_head(section: bytes, rng: np.random.Generator) -> bytes:
    """Return a head of the rate-distortion codec with one of its tables or classes another, whatever its numbers; or as it is."""
    try:
        head = Head.read(section, tensors=len(SHAPES))
    except MalformedUpdate:
        return section
    tensors = struct.Struct("<hHH")
    front = 8 + len(SHAPES) * tensors.size
    parts = [head.corrections.to_bytes(), *(c.to_bytes() for c in head.classes)]
    which = int(rng.integers(len(parts)))
    tables = [head.corrections, *(c.table for c in head.classes)]
    kept = parts[which][: len(parts[which]) - len(tables[which].to_bytes())]
    table = other_table(tables[which].low, list(tables[which].weights), rng) if rng.integers(4) else tables[which].to_bytes()
    if kept and not rng.integers(3):
        kept = bytes([kept[0], int(rng.integers(26))]) + kept[2:]  # other low bits
    parts[which] = kept + table
    if not rng.integers(6) and len(parts) > 2:
        del parts[int(rng.integers(1, len(parts)))]
    return section[:front] + parts[0] + bytes([len(parts) - 1]) + b"".join(parts[1:])


def other_table(low: int, weights: list[int], rng: np.random.Generator) -> bytes:
    """Return the bytes of a table near the given one, valid or not."""
    way = int(rng.integers(6))
    if way == 0:
        low = int(rng.choice([-0x8000, -512, -40, -1, 0, 1, 511, 0x7FF0, 0x7FFF]))
    elif way == 1:
        weights[int(rng.integers(len(weights)))] = int(rng.choice([0, 1, (1 << 20) - 1, (1 << 21) - 1, 1 << 21]))
    elif way == 2:
        weights = weights + [int(w) for w in rng.integers(0, 1 << 20, int(rng.choice([1, 2, 5, 60, 1000])))]
    elif way == 3:
        weights = weights[: int(rng.integers(len(weights))) + 1]
    elif way == 4:
        weights = [0] * len(weights)
    else:
        weights = [w if rng.integers(2) else 0 for w in weights]
    return struct.pack("<hH", low, len(weights)) + b"".join(_varint(w) for w in weights)


def _varint(number: int) -> bytes:
    out = bytearray()
    while number >= 0x80:
        out.append(0x80 | (number & 0x7F))
        number >>= 7
    return bytes([*out, number])


def attempt(target: Target, blob: bytes, *, both: bool) -> str:
    """Return what came of decoding; `Broken` for what may not be."""
    try:
        decoded = target.codec.decode(blob, SCHEMA)
    except MalformedUpdate:
        outcome = "refused"
    else:
        outcome = "decoded"
        if [(n, t.shape) for n, t in decoded.tensors.items()] != list(SHAPES.items()):
            raise Broken("other tensors than expected")
        if not all(np.isfinite(t).all() for t in decoded.tensors.values()):
            raise Broken("numbers that are not finite")
    if both:
        _compare_bound(target, blob, outcome)
    return outcome


def _compare_bound(target: Target, blob: bytes, outcome: str) -> None:
    try:
        bound = target.codec.bound(blob)
    except MalformedUpdate:
        bound = None
    if (bound is None) != (outcome == "refused"):
        raise Broken("a bound for what cannot be decoded, or none for what can")
    if bound is not None and not all(0.0 <= b < float("inf") for b in bound.values()):
        raise Broken("a bound that is none")


def run(seed: int, *, first: int, count: int, tally: Tally, known: Sequence[Target]) -> None:
    """Try ``count`` blobs from number ``first`` on; `Broken` names the number that failed."""
    for number in range(first, first + count):
        rng = np.random.default_rng((seed, number))
        target = known[number % len(known)]
        blob = mutated(target, rng)
        measured = number % 200 == 0
        if measured:
            tracemalloc.start()
        start = time.process_time()
        try:
            outcome = attempt(target, blob, both=number % 10 == 0)
        except BaseException as error:
            raise Broken(f"--seed {seed} --first {number} --blobs 1: {target.name}: {error!r}; blob {blob.hex()}") from error
        if measured:
            tally.memory = max(tally.memory, tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
        else:
            tally.slowest_s = max(tally.slowest_s, time.process_time() - start)
        tally.outcomes[f"{target.name} {outcome}"] += 1
