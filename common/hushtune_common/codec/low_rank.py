"""The low-rank stage: matrices as coded factors, where that harms less in the same bytes than coding all of their numbers.

The codec behind it writes the change once as it is and once per candidate rank as factors of every matrix (`factors`), with the
tensors that are no matrices beside them, and what harms least is sent; so nothing is ever worse than without this stage, but for
the bytes of a second header. The more of a spectrum the budget can pay for, the more components a candidate has: those that take
most harm away per number come first, whichever matrix they are of.

What is in no component is lost in the direction of training, and loss minds that more than an error of the same length that
resembles noise, as rounding makes it. So the harm of what is left out counts `LEFT_OUT` times.

Form 0 holds the blob of the codec behind it. Form 1 has a head, little endian: per matrix in the order of names u16 components
and an i16 each, its size in half octaves; then per tensor a f32, its largest error. The blob that follows is of the factors.
"""

import struct
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import inf, isfinite, isinf
from typing import Final

import numpy as np

from hushtune_common.adapter import AdapterState, Float32
from hushtune_common.codec import container
from hushtune_common.codec.codec import AdapterCodec
from hushtune_common.codec.coordinates import Coordinates
from hushtune_common.codec.entropy import Reader
from hushtune_common.codec.factors import HALF_OCTAVE_MAX, Spectrum, half_octave, scale, unweighed, weighed
from hushtune_common.codec.sensitivity import SENSITIVITY_MAX, SENSITIVITY_MIN, Sensitivity, TensorSensitivity
from hushtune_common.codec.shipped import Shipped
from hushtune_common.errors import BudgetTooSmall, MalformedUpdate
from hushtune_common.messages import Digest, TensorSpec

Maker = Callable[[AdapterState, Sensitivity, int, float], AdapterCodec]
"""Makes the codec behind the stage for a shipped adapter, its sensitivity, the most bytes and the largest change."""
_PLAIN: Final = 0
_FACTORED: Final = 1
_SECTIONS: Final = 2
_BITS_TRIED: Final = (1.5, 2.5, 4.0, 6.0, 10.0)
"""Bits per number of a factor: more components with fewer, or fewer with more."""
LEFT_OUT: Final = 16.0
"""How much more what is left out harms than noise of the same weighed length. On SmolLM2, whose adapters were cut to ranks 4 and
16 and coded in 0.05 to 0.25 bits per weight: 2.1 nats per share of the change, against 0.10 to 0.16."""
_LARGEST: Final = 2.0**60
"""Largest weighed number of which products stay within float32."""


def low_rank_id(inner: str, *, rank: int) -> str:
    """Return the id of the byte format, such as ``low-rank16+delta-turned-ans/1``."""
    return f"low-rank{rank}+{inner}"


def low_rank_overhead(inner: str, *, rank: int) -> int:
    """Return the bytes that the stage adds to a blob of the codec behind it."""
    return container.Label(codec=low_rank_id(inner, rank=rank), shipped=Digest.of(b""), sections=_SECTIONS).overhead


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """How many components of each matrix travel, and how large each is, in half octaves; a matrix without any does not change."""

    halves: Mapping[str, tuple[int, ...]]

    def to_bytes(self) -> bytes:
        """Return its part of the head."""
        return b"".join(struct.pack(f"<H{len(found)}h", len(found), *found) for found in self.halves.values())

    @staticmethod
    def read(reader: Reader, most: Mapping[str, int]) -> "Cut":
        """Read one of matrices of which each has at most so many components; ``MalformedUpdate`` for what no encoder writes."""
        found = dict[str, tuple[int, ...]]()
        for name, limit in most.items():
            (count,) = reader.whole("H")
            if count > limit:
                raise MalformedUpdate(f"{name}: {count} components, at most {limit}")
            found[name] = reader.whole(f"{count}h")
            if any(abs(half) > HALF_OCTAVE_MAX for half in found[name]):
                raise MalformedUpdate(f"{name}: the size of a component is out of range")
        return Cut(halves=found)

    @property
    def largest(self) -> float:
        """Size of the largest component, 1 where there is none."""
        return max((scale(half) for found in self.halves.values() for half in found), default=1.0)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Part:
    """A weighed matrix (R, C), the sum of its squares, and its components."""

    matrix: Float32
    squares: float
    spectrum: Spectrum

    def left_out(self, count: int) -> float:
        """Return the squares of all but the first components."""
        return max(0.0, self.squares - float(np.square(self.spectrum.values[:count]).sum()))

    def error(self, left: Float32, right: Float32) -> float:
        """Return the squared length of what a product of factors (R, r) and (C, r) lacks."""
        across = float(((self.matrix.T @ left).astype(np.float64) * right).sum())
        within = (left.T.astype(np.float64) @ left) * (right.T.astype(np.float64) @ right)
        return max(0.0, self.squares - 2.0 * across + float(within.sum()))


class LowRankCodec:
    """See the module, and `AdapterCodec`. ``rank`` is the most components of a matrix.

    Factors whose product moves a number by more than ``change_max`` are not sent; the codec behind keeps within it by itself.
    """

    def __init__(
        self,
        *,
        shipped: AdapterState,
        sensitivity: Sensitivity,
        rank: int,
        make: Maker,
        standing: bool,
        bytes_max: int,
        change_max: float = inf,
    ) -> None:
        """Take what both sides hold; errors as those of the codec behind.

        ``standing`` factors have a column per component, lying ones a row: what the codec behind codes alike is a component.
        """
        self._shipped, self._sensitivity = Shipped(shipped), sensitivity
        sensitivity.require_matches(self._shipped.schema)
        self._coordinates = {n: Coordinates.of(t.shape, sensitivity.tensors[n]) for n, t in self._shipped.tensors.items()}
        self._most = {n: min(rank, c.rows, c.columns.size) for n, c in self._coordinates.items() if _is_matrix(c)}
        self._make, self._standing, self._bytes_max = make, standing, bytes_max
        self._change_max = change_max
        self._plain = make(shipped, sensitivity, bytes_max, change_max)
        base = Digest.of(self._shipped.digest.value + sensitivity.digest.value)
        self._label = container.Label(codec=low_rank_id(self._plain.id, rank=rank), shipped=base, sections=_SECTIONS)

    @property
    def id(self) -> str:
        """Name and version of the byte format."""
        return self._label.codec

    @property
    def bytes_max(self) -> int:
        """Largest blob that is made or read, in bytes."""
        return self._bytes_max

    def encode(self, state: AdapterState, *, budget_bytes: int) -> bytes:
        """Return the blob that harms least of those that were tried, see `AdapterCodec`."""
        self._shipped.require_same(state)
        state = self._shipped.within(state, change_max=self._change_max)
        budget = min(budget_bytes, self._bytes_max)
        best, least, refused = None, inf, BudgetTooSmall(least_bytes=self._bytes_max, budget_bytes=budget)
        try:
            best = self._written(b"", self._plain.encode(state, budget_bytes=budget - self._label.overhead), form=_PLAIN)
            least = self._harm(state, self.decode(best, self._shipped.schema).tensors, self._coordinates)
        except BudgetTooSmall as error:
            refused = BudgetTooSmall(least_bytes=error.least_bytes + self._label.overhead, budget_bytes=budget)
        parts = self._parts(state)
        for cut in self._cuts(parts, budget=budget):
            try:
                inner, harm = self._tried(state, parts, cut, budget=budget, less_than=least)
            except BudgetTooSmall:
                continue
            if harm < least and self._is_near(cut, inner):
                best, least = self._written(_head(cut, self._errors(state, cut, inner)), inner, form=_FACTORED), harm
        if best is None:
            raise refused
        return best

    def decode(self, blob: bytes, expected: tuple[TensorSpec, ...]) -> AdapterState:
        """Return the tensors in the order of ``expected``; ``MalformedUpdate`` for bytes that ``encode`` does not make."""
        self._shipped.require_expected(expected)
        decoded, _ = self._read(blob)
        return AdapterState({spec.name: decoded[spec.name] for spec in expected})

    def bound(self, blob: bytes) -> Mapping[str, float]:
        """Return what the codec behind says, or of factors what the encoder found when it decoded the blob itself."""
        return self._read(blob)[1]

    def is_factored(self, blob: bytes) -> bool:
        """Say whether the matrices of a blob travel as factors; ``MalformedUpdate`` as `decode`."""
        return container.read(blob, label=self._label, bytes_max=self._bytes_max).form == _FACTORED

    def _read(self, blob: bytes) -> tuple[dict[str, Float32], Mapping[str, float]]:
        contents = container.read(blob, label=self._label, bytes_max=self._bytes_max)
        head, inner = contents.sections[0], bytes(contents.sections[1])
        if contents.form == _PLAIN and not len(head):
            return dict(self._plain.decode(inner, self._shipped.schema).tensors), self._plain.bound(inner)
        if contents.form != _FACTORED:
            raise MalformedUpdate(f"form {contents.form}, or a head that means nothing")
        reader = Reader(head)
        cut = Cut.read(reader, self._most)
        bounds = reader.fields(f"{len(self._shipped.tensors)}f")
        reader.end()
        if not all(isfinite(bound) and bound >= 0.0 for bound in bounds):
            raise MalformedUpdate("a bound is not a number")
        return dict(self._restored(cut, inner)), dict(zip(self._shipped.tensors, bounds, strict=True))

    def _restored(self, cut: Cut, inner: bytes) -> Iterator[tuple[str, Float32]]:
        """Yield the tensors of factors; ``MalformedUpdate`` for what is not finite."""
        base, codec = self._behind(cut)
        parts = codec.decode(inner, base.schema).tensors
        for name, shipped in self._shipped.tensors.items():
            if name not in cut.halves:
                yield name, parts[name]
                continue
            if not cut.halves[name]:
                yield name, shipped.copy()
                continue
            left, right = (self._turned(parts[key]).astype(np.float64) for key in _keys(name))
            change = unweighed(left @ right.T, self._coordinates[name])
            with np.errstate(over="ignore", invalid="ignore"):
                np.add(change, shipped, out=change)
            if not np.isfinite(change).all():
                raise MalformedUpdate(f"{name}: holds values that are not finite")
            yield name, change

    def _behind(self, cut: Cut) -> tuple[Shipped, AdapterCodec]:
        """Return the adapter of factors that both sides start from, zeros, and its codec, which minds errors as ``cut`` says."""
        tensors, found = dict[str, Float32](), dict[str, TensorSensitivity]()
        unit = 1.0 / cut.largest
        for name, shipped in self._shipped.tensors.items():
            own = self._sensitivity.tensors[name]
            if name not in cut.halves:
                tensors[name] = shipped
                found[name] = TensorSensitivity(rows=_within(own.rows * unit), columns=own.columns, directions=own.directions)
            elif halves := cut.halves[name]:
                scales = _within(np.array([scale(half) * unit for half in halves]))
                for key, size in zip(_keys(name), (own.rows.size, own.columns.size), strict=True):
                    ones = np.ones(size, np.float32)
                    rows, columns = (ones, scales) if self._standing else (scales, ones)
                    tensors[key] = np.zeros((rows.size, columns.size), np.float32)
                    found[key] = TensorSensitivity(rows=rows, columns=columns)
        return Shipped(AdapterState(tensors)), self._make(AdapterState(tensors), Sensitivity(found), self._bytes_max, inf)

    def _parts(self, state: AdapterState) -> dict[str, "_Part"]:
        """Take all matrices apart; none at all when numbers are so large that products may leave float32."""
        found = dict[str, _Part]()
        for name, most in self._most.items():
            with np.errstate(over="ignore", invalid="ignore"):
                matrix = weighed(state.tensors[name] - self._shipped.tensors[name], self._coordinates[name])
            if not np.abs(matrix).max() < _LARGEST:
                return {}
            if matrix.any():
                squares = float(np.square(matrix, dtype=np.float64).sum())
                found[name] = _Part(matrix=matrix, squares=squares, spectrum=Spectrum.of(matrix, most=most))
        return found

    def _cuts(self, parts: Mapping[str, "_Part"], *, budget: int) -> Iterator[Cut]:
        """Yield candidates, each with the components that take most harm away per number."""
        components = [(float(v) ** 2 / sum(p.matrix.shape), name) for name, p in parts.items() for v in p.spectrum.values]
        components.sort(reverse=True)
        numbers = np.cumsum([sum(parts[name].matrix.shape) for _, name in components])
        counts = {int(np.searchsorted(numbers, 8.0 * budget / bits, side="right")) for bits in _BITS_TRIED}
        for count in sorted(counts - {0}):
            taken = Counter(name for _, name in components[:count])
            halves = {name: p.spectrum.values[: taken[name]] for name, p in parts.items()}
            yield Cut(halves={name: tuple(half_octave(float(v)) for v in halves.get(name, ())) for name in self._most})

    def _tried(
        self, state: AdapterState, parts: Mapping[str, "_Part"], cut: Cut, *, budget: int, less_than: float
    ) -> tuple[bytes, float]:
        """Return the blob of a candidate's factors and its harm, nothing where that cannot be ``less_than``; `BudgetTooSmall`."""
        left_out = sum(part.left_out(len(cut.halves[name])) for name, part in parts.items())
        if LEFT_OUT * left_out >= less_than:
            return b"", inf
        base, codec = self._behind(cut)
        others = {n: t for n, t in state.tensors.items() if n not in cut.halves}
        factors = {n: parts[n].spectrum.factors(halves) for n, halves in cut.halves.items() if halves}
        sent = {key: self._turned(f) for n, both in factors.items() for key, f in zip(_keys(n), both, strict=True)}
        head_bytes = len(_head(cut, (0.0,) * len(self._shipped.tensors)))
        inner = codec.encode(AdapterState(others | sent), budget_bytes=budget - self._label.overhead - head_bytes)
        heard = codec.decode(inner, base.schema).tensors
        harm = self._harm(state, heard, others) + (LEFT_OUT - 1.0) * left_out
        for name, part in parts.items():
            harm += part.error(*(self._turned(heard[key]) for key in _keys(name))) if cut.halves[name] else part.squares
        return inner, harm

    def _harm(self, state: AdapterState, decoded: Mapping[str, Float32], names: Iterable[str]) -> float:
        """Return what the loss minds about the errors of these tensors."""
        harm = 0.0
        for name in names:
            error = weighed(decoded[name] - state.tensors[name], self._coordinates[name])
            harm += float(np.square(error, dtype=np.float64).sum())
        return harm

    def _is_near(self, cut: Cut, inner: bytes) -> bool:
        """Say whether no number of what is decoded lies beyond the largest change."""
        if isinf(self._change_max):
            return True
        changes = (tensor.astype(np.float64) - self._shipped.tensors[n] for n, tensor in self._restored(cut, inner))
        return all(float(np.abs(change).max()) <= self._change_max for change in changes)

    def _errors(self, state: AdapterState, cut: Cut, inner: bytes) -> list[float]:
        """Return the largest error of each tensor, and room for a decoder that rounds otherwise than this machine."""
        found: list[float] = []
        for name, tensor in self._restored(cut, inner):
            shipped, restored = self._shipped.tensors[name], tensor.astype(np.float64)
            largest = max(float(np.abs(restored).max()), float(np.abs(shipped).max()))
            error, change = (float(np.abs(restored - other).max()) for other in (state.tensors[name], shipped))
            found.append(error * (1.0 + 2.0**-20) + 2.0**-22 * largest + 2.0**-16 * change)
        return found

    def _turned(self, factor: Float32) -> Float32:
        return np.ascontiguousarray(factor if self._standing else factor.T)

    def _written(self, head: bytes, inner: bytes, *, form: int) -> bytes:
        return container.write(self._label, container.Contents(form=form, sections=[head, inner]))


def _head(cut: Cut, bounds: Sequence[float]) -> bytes:
    upwards = np.nextafter(np.array(bounds, dtype=np.float32), np.float32(np.inf))
    return cut.to_bytes() + upwards.astype("<f4").tobytes()


def _keys(name: str) -> tuple[str, str]:
    return f"{name}/left", f"{name}/right"


def _is_matrix(coordinates: Coordinates) -> bool:
    rows, columns = coordinates.rows, coordinates.columns.size
    return rows + columns < rows * columns


def _within(found: np.ndarray[tuple[int, ...], np.dtype[np.floating]]) -> Float32:
    return np.clip(found, SENSITIVITY_MIN, SENSITIVITY_MAX).astype(np.float32)


_conforms: type[AdapterCodec] = LowRankCodec
