"""The private codec: an update whose bytes promise local differential privacy, where rounding is a part of the noise.

After JoPEQ (Lang, Sofer, Shaked and Shlezinger 2022): what changed is clipped block by block, rounded to a grid that a dither
known to both sides has shifted, and only the noise that the rounding error leaves missing is added. Reconstructed, and other
than published in two respects. Theirs is to make the whole error Laplace's; there is no such noise, since a uniform error's
characteristic function has zeros where Laplace's has none. And theirs counts the dither's error as hidden from a receiver who
has the dither, from whom it hides nothing. Here the noise is whole steps drawn after rounding (`staircase`): the whole error has
a known density all the same, and what is promised holds for all bytes of a blob, seed of the dither included.

Nothing of a blob but the noisy codes depends on what is private: grid and precision follow from the settings and the bytes
granted, alphabet and table from the codes.

Head, little endian: u32 steps of the grid, 16 bytes seed of the dither, u8 low bits per code, the table of high parts. Then the
high parts, then the low bits; tensors in the order of their names.
"""

import struct
from collections.abc import Iterator, Mapping, Sequence
from math import ceil, floor, inf
from typing import Final

import numpy as np

from hushtune_common.adapter import AdapterState, Float32
from hushtune_common.codec import container, entropy, staircase
from hushtune_common.codec.codec import AdapterCodec
from hushtune_common.codec.entropy import Reader, Table
from hushtune_common.codec.levels import HIGH_MAX, Highs, Lows
from hushtune_common.codec.shipped import Shipped
from hushtune_common.codec.staircase import SEED_BYTES, Codes, Dither
from hushtune_common.config import NoiseConfig
from hushtune_common.errors import BudgetTooSmall, MalformedUpdate
from hushtune_common.messages import Digest, TensorSpec
from hushtune_common.noise import STEPS_MAX, GridNoise, Promise

_FORM: Final = 0
_SECTIONS: Final = 3
_RAW_MAX: Final = 22


def jopeq_id(config: NoiseConfig) -> str:
    """Return the id of the byte format with all that is promised, such as ``jopeq-eps4-clip0.001-b1/1``."""
    return f"jopeq-eps{config.epsilon:g}-clip{config.clip:g}-b{config.block}/1"


def jopeq_bytes_max(schema: Sequence[TensorSpec], *, config: NoiseConfig, bits: float) -> int:
    """Return the bytes of a full update with ``bits`` per number.

    The parts that do not grow with the number of weights are raised until a share ``promise.bits_least / bits`` of all is
    always enough.
    """
    promise, counts = config.promise, tuple(spec.count for spec in schema)
    fixed = _least_bytes(promise, counts, config=config) - promise.bits_least * sum(counts) / 8
    return ceil((fixed + 2.0) * max(1.0, bits / promise.bits_least) + bits * sum(counts) / 8)


class JopeqCodec:
    """See the module, and `AdapterCodec`. No two blobs are alike; whoever encodes an adapter twice promises half as much.

    Laws of its own: the blob of any adapter is at most ``exp(epsilon)`` times as likely as that of one with another block in
    one place; `bound` is about the `clipped` adapter, since to say how much was clipped off would tell what is private. Noise
    minds no ``change_max``, so it is the decoder that cuts off there.
    """

    def __init__(self, *, shipped: AdapterState, config: NoiseConfig, bytes_max: int, change_max: float = inf) -> None:
        """Take the adapter both sides hold; ``ValueError`` names a tensor of it that is not finite."""
        self._shipped = Shipped(shipped)
        self._config, self._promise = config, config.promise
        self._counts = tuple(t.size for t in self._shipped.tensors.values())
        self._blocks = self._promise.blocks(self._counts)
        self._bytes_max, self._change_max = bytes_max, change_max
        self._label = _label(config, shipped=self._shipped.digest)

    @property
    def id(self) -> str:
        """Name and version of the byte format."""
        return self._label.codec

    @property
    def bytes_max(self) -> int:
        """Largest blob that is made or read, in bytes."""
        return self._bytes_max

    def noise_for(self, budget_bytes: int) -> GridNoise:
        """Return the grid and the noise of a blob of so many bytes; `BudgetTooSmall` when any grid may take more."""
        budget = min(budget_bytes, self._bytes_max)
        noise = self._promise.best(numbers=sum(self._counts), blocks=self._blocks, bytes_max=budget - _overhead(self._label))
        if noise is None:
            least = _least_bytes(self._promise, self._counts, config=self._config)
            raise BudgetTooSmall(least_bytes=ceil(least), budget_bytes=budget)
        return noise

    def encode(self, state: AdapterState, *, budget_bytes: int) -> bytes:
        """Return a blob of at most ``budget_bytes``, see `AdapterCodec`; other noise every time."""
        noise = self.noise_for(budget_bytes)
        changes = self._changes(state, noise)
        seed, tables = staircase.fresh_seed(), staircase.NoiseTables.of(noise)
        dithers = staircase.dithers(seed, self._counts)
        hidden = [staircase.hidden(c, d, noise=noise, tables=tables) for c, d in zip(changes, dithers, strict=True)]
        codes = np.concatenate([np.zeros(0, np.int32), *hidden])
        return self._written(codes, noise=noise, seed=seed, bytes_max=min(budget_bytes, self._bytes_max))

    def decode(self, blob: bytes, expected: tuple[TensorSpec, ...]) -> AdapterState:
        """Return the tensors in the order of ``expected``; ``MalformedUpdate`` for bytes that ``encode`` does not make."""
        self._shipped.require_expected(expected)
        noise, parts = self._read(blob)
        decoded = dict[str, Float32]()
        for (name, shipped), (codes, dither) in zip(self._shipped.tensors.items(), parts, strict=True):
            restored = staircase.shown(codes, dither, shipped.reshape(-1), noise=noise)
            if not np.isfinite(restored).all():
                raise MalformedUpdate(f"{name}: holds values that are not finite")
            decoded[name] = restored.reshape(shipped.shape)
        found = AdapterState({spec.name: decoded[spec.name] for spec in expected})
        return self._shipped.within(found, change_max=self._change_max)

    def bound(self, blob: bytes) -> Mapping[str, float]:
        """Return per tensor how far any element may be from that of the `clipped` adapter: all that was said, and the clip."""
        noise, parts = self._read(blob)
        found = dict[str, float]()
        for (name, shipped), (codes, _) in zip(self._shipped.tensors.items(), parts, strict=True):
            said = (float(np.abs(codes).max(initial=0)) + 0.5) * noise.step + self._promise.clip
            found[name] = said + 2.0**-22 * (float(np.abs(shipped).max(initial=0.0)) + said)
        return found

    def clipped(self, state: AdapterState) -> AdapterState:
        """Return the adapter of which the noisy one is sent."""
        noise = GridNoise(promise=self._promise, steps=1)
        changes = zip(self._shipped.tensors.items(), self._changes(state, noise), strict=True)
        return AdapterState({n: (t + change.reshape(t.shape)).astype(np.float32) for (n, t), change in changes})

    def _changes(self, state: AdapterState, noise: GridNoise) -> Iterator[staircase.Float64]:
        self._shipped.require_same(state)
        for name in self._shipped.tensors:
            if not np.isfinite(state.tensors[name]).all():
                raise ValueError(f"{name}: holds values that are not finite")
        for name, shipped in self._shipped.tensors.items():
            change = state.tensors[name].astype(np.float64) - shipped
            yield staircase.clipped(change.reshape(-1), noise=noise)

    def _written(self, codes: Codes, *, noise: GridNoise, seed: bytes, bytes_max: int) -> bytes:
        """Return the blob of noisy codes.

        In one of 10^9 blobs they take more bytes than there are. Then the largest are cut off, which is done to what is no
        longer private.
        """
        most = int(np.abs(codes).max(initial=0))
        while True:
            blob = container.write(self._label, container.Contents(form=_FORM, sections=_sections(codes, noise, seed)))
            if len(blob) <= bytes_max or not most:
                return blob
            most = floor(0.9 * most)
            codes = np.clip(codes, -most, most)

    def _read(self, blob: bytes) -> tuple[GridNoise, list[tuple[Codes, Dither]]]:
        """Return the grid of a blob, and codes and dither of each tensor; ``MalformedUpdate`` as `decode`."""
        contents = container.read(blob, label=self._label, bytes_max=self._bytes_max)
        if contents.form != _FORM:
            raise MalformedUpdate(f"form {contents.form}, expected {_FORM}")
        reader = Reader(contents.sections[0])
        (steps,) = reader.whole("I")
        seed = bytes(reader.whole(f"{SEED_BYTES}B"))
        (raw,) = reader.whole("B")
        table = reader.table()
        reader.end()
        if not 1 <= steps <= STEPS_MAX or raw > _RAW_MAX:
            raise MalformedUpdate("a grid that there is not")
        noise = GridNoise(promise=self._promise, steps=steps)
        count = sum(self._counts)
        (highs,) = entropy.read(contents.sections[1], [(table, count)])
        lows = entropy.unpack_lows(contents.sections[2], [(count, raw)] if raw else [])
        codes = highs.astype(np.int32) << raw
        codes |= lows[0].astype(np.int32) if lows else 0
        parts = np.split(codes, np.cumsum(np.array(self._counts, dtype=np.int64))[:-1])
        return noise, list(zip(parts, staircase.dithers(seed, self._counts), strict=True))


def _sections(codes: Codes, noise: GridNoise, seed: bytes) -> list[bytes]:
    most, raw = int(np.abs(codes).max(initial=0)), 0
    while most >> raw > HIGH_MAX:
        raw += 1
    highs: Highs = (codes >> raw).astype(np.int16)
    lows: Lows = (codes & ((1 << raw) - 1)).astype(np.uint32)
    table = Table.of(highs)
    head = struct.pack(f"<I{SEED_BYTES}sB", noise.steps, seed, raw) + table.to_bytes()
    return [head, entropy.write([(table, highs)]), entropy.pack_lows([(lows, raw)] if raw else [])]


def _least_bytes(promise: Promise, counts: Sequence[int], *, config: NoiseConfig) -> float:
    """Return the bytes of which the coarsest grid is sure, container included."""
    coarsest, blocks = GridNoise(promise=promise, steps=1), promise.blocks(counts)
    label = _label(config, shipped=Digest.of(b""))
    return coarsest.bytes_most(numbers=sum(counts), blocks=blocks) + _overhead(label)


def _overhead(label: container.Label) -> int:
    """Return the bytes beside codes and their table."""
    return label.overhead + struct.calcsize(f"<I{SEED_BYTES}sB")


def _label(config: NoiseConfig, *, shipped: Digest) -> container.Label:
    return container.Label(codec=jopeq_id(config), shipped=shipped, sections=_SECTIONS)


_conforms: type[AdapterCodec] = JopeqCodec
