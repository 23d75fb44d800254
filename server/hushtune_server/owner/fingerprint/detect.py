"""Whose copy was leaked?

The leaked weights are compared with the emulator that all copies were made of, and what is left is held against each recipient's
signs. Let d be any numbers that do not depend on somebody's signs s, which the key draws evenly and independently. Then the score
``sum s d / sqrt(sum d^2)`` exceeds t with a chance of at most ``exp(-t^2 / 2)`` (Hoeffding 1963), whatever d is: so a false alarm
is bounded without any assumption about what was done to the file. What follows only makes the score of the true recipient large.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import exp, sqrt
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hushtune_common.adapter import Float32
from hushtune_common.errors import MalformedUpdate
from hushtune_common.model.naming import block_of, inner_of
from hushtune_common.model.weights import TensorFile
from hushtune_server.owner.fingerprint.key import CHUNK, MarkKey
from hushtune_server.owner.fingerprint.marking import Push, amplitude, places, unpacked
from hushtune_server.owner.fingerprint.register import Copy, Reference

ALIKE = 0.5
"""A tensor whose cosine to ours is smaller is another one, or beyond recognition."""

_BLOCKS = tuple(2**n for n in range(4, 11))
_SAMPLE = 4096
_CLIP = 4.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Suspicion:
    """What a file says about one recipient.

    ``chance`` is an upper bound of the chance that a file without this recipient's mark gives such a ``score``, everything that
    was tried counted in. ``left`` estimates how much of the mark is there: 1 in an untouched copy, 0.5 in the average of two.
    """

    recipient: str
    score: float
    chance: float
    left: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """Everybody's suspicion, the strongest first, and how much of the file could be compared."""

    suspicions: tuple[Suspicion, ...]
    tensors: int
    weights: int

    def carried(self, *, false_alarm_max: float) -> tuple[Suspicion, ...]:
        """Return those whose mark the file carries; the chance that any of them is wrong is at most ``false_alarm_max``."""
        return tuple(s for s in self.suspicions if s.chance <= false_alarm_max)


def detect(leaked: Path, *, references: Sequence[Reference], key: MarkKey) -> Report:
    """Compare a safetensors file with every reference; `MalformedUpdate` when it is none, or holds nothing of ours.

    A part of the tensors is enough, blocks may be numbered otherwise, and the numbers may be stored in any way.
    """
    file = TensorFile.open(leaked, buffers=True)
    tests = sum(len(reference.copies) for reference in references)
    found: list[Suspicion] = []
    tensors = weights = 0
    for reference in references:
        tally = _compared(file, reference, key=key)
        tensors, weights = max(tensors, tally.tensors), max(weights, tally.weights)
        found += [tally.suspicion(copy, tests=tests) for copy in reference.copies if tally.tensors]
    if not found:
        raise MalformedUpdate(f"{leaked.name}: none of its tensors resembles one of an emulator with marks")
    ordered = sorted(_strongest(found), key=lambda s: (-s.score, s.recipient))
    return Report(suspicions=tuple(ordered), tensors=tensors, weights=weights)


def _strongest(found: Sequence[Suspicion]) -> Sequence[Suspicion]:
    best: dict[str, Suspicion] = {}
    for suspicion in found:
        if suspicion.recipient not in best or suspicion.score > best[suspicion.recipient].score:
            best[suspicion.recipient] = suspicion
    return [*best.values()]


class _Tally:
    """Sums over the tensors of one reference, by copy."""

    def __init__(self, copies: Sequence[Copy]) -> None:
        self._signal = dict.fromkeys(copies, 0.0)
        self._energy = dict.fromkeys(copies, 0.0)
        self._full = dict.fromkeys(copies, 0.0)
        self.tensors = 0
        self.weights = 0

    def add(self, copy: Copy, *, signal: float, energy: float, count: int, step: float) -> None:
        """Add one tensor: ``sum s d`` and ``sum d^2`` over the ``count`` weights that are pushed by ``step``."""
        # The matched filter: a tensor counts by its step over the variance of what is left there; d alone decides, no sign.
        weight = step * count / energy if energy > 0.0 else 0.0
        self._signal[copy] += weight * signal
        self._energy[copy] += weight * weight * energy
        self._full[copy] += weight * step * count

    def suspicion(self, copy: Copy, *, tests: int) -> Suspicion:
        energy, full = self._energy[copy], self._full[copy]
        score = self._signal[copy] / sqrt(energy) if energy > 0.0 else 0.0
        chance = min(1.0, tests * exp(-0.5 * score * score)) if score > 0.0 else 1.0
        left = self._signal[copy] / full if full > 0.0 else 0.0
        return Suspicion(recipient=copy.recipient, score=score, chance=chance, left=left)


def _compared(file: TensorFile, reference: Reference, *, key: MarkKey) -> _Tally:
    tally = _Tally(reference.copies)
    leak = _Leak(file)
    for name in reference.file.names():
        if name.endswith(".scales"):
            continue
        original = _original(reference, name)
        values = leak.like(original)
        if values is None:
            continue
        tally.tensors += 1
        tally.weights += values.size
        rest = _rest(values, original)
        for copy in reference.copies:
            push = amplitude(original.stored, strength=copy.strength, whole=original.steps is not None)
            signal, energy, count = _sums(_clipped(rest, step=push.step), name, copy, key=key, push=push)
            tally.add(copy, signal=signal, energy=energy, count=count, step=push.step)
    return tally


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class _Original:
    """A tensor without a mark: as it is ``stored`` (codes unpacked), its ``values``, and how large a ``step`` of each code is."""

    name: str
    stored: Float32
    values: Float32
    steps: Float32 | None


def _original(reference: Reference, name: str) -> _Original:
    stored = reference.file.tensor(name)
    quant = reference.quants.get(name)
    if quant is None:
        return _Original(name=name, stored=stored, values=stored, steps=None)
    scales = reference.file.tensor(f"{name.removesuffix('.codes')}.scales")
    codes = stored if quant.bits == 8 else unpacked(stored)
    steps = np.repeat(scales, quant.block, axis=1)[:, : codes.shape[1]]
    return _Original(name=name.removesuffix(".codes") + ".weight", stored=codes, values=codes * steps, steps=steps)


class _Leak:
    """The tensors of a file, found by what they resemble."""

    def __init__(self, file: TensorFile) -> None:
        self._file = file

    def like(self, original: _Original) -> Float32 | None:
        """Return the values that stand for a tensor, in its shape; none when nothing in the file resembles it."""
        best, found = ALIKE, None
        for name in self._candidates(original.name):
            for values in _ways(self._values(name), original.values.shape):
                alike = _cosine(_sampled(values), _sampled(original.values))
                if alike > best:
                    best, found = alike, values
            if found is not None and name == original.name:
                break
        return found

    def _candidates(self, name: str) -> Sequence[str]:
        """Return the same name first, then the same tensor of other blocks: a thief may count blocks anew."""
        block = block_of(name)
        others = [] if block is None else self._by_inner.get(inner_of(name), [])
        return [name, *(other for other in others if other != name)] if name in self._names else others

    @cached_property
    def _names(self) -> Mapping[str, str]:
        """How each tensor is called by its values: ``X.weight`` for integers in ``X.codes``, too."""
        names = [name for name in self._file.names() if not name.endswith(".scales")]
        return {_weight(name): name for name in names}

    @cached_property
    def _by_inner(self) -> Mapping[str, Sequence[str]]:
        found: dict[str, list[str]] = {}
        for name in self._names:
            if block_of(name) is not None:
                found.setdefault(inner_of(name), []).append(name)
        return found

    def _values(self, name: str) -> Float32:
        stored = self._names[name]
        scales = stored.removesuffix(".codes") + ".scales"
        if stored == name or scales not in self._file.entries:
            return self._file.tensor(stored)
        return _from_codes(self._file, stored, scales)


def _from_codes(file: TensorFile, codes: str, scales: str) -> Float32:
    """Return the numbers that integers of ours stand for; with other scales than one for 2^n weights they resemble nothing."""
    per_byte = 2 if file.dtype(codes) == "U8" else 1
    columns, count = file.shape(codes)[-1] * per_byte, file.shape(scales)[-1]
    block = next((b for b in _BLOCKS if b * count >= columns), columns)
    values = file.tensor(codes) if per_byte == 1 else unpacked(file.tensor(codes))
    return values * np.repeat(file.tensor(scales), block, axis=1)[:, :columns]


def _weight(name: str) -> str:
    return name.removesuffix(".codes") + ".weight" if name.endswith(".codes") else name


def _ways(values: Float32, shape: tuple[int, ...]) -> Iterator[Float32]:
    """Yield a matrix as it is and turned, where that has the ``shape``: models differ in how they store one."""
    if values.shape == shape:
        yield values
    if values.ndim == 2 and values.shape[::-1] == shape:
        yield np.ascontiguousarray(values.T)


def _sampled(values: Float32) -> NDArray[np.float64]:
    flat = values.reshape(-1)
    taken = flat[:: max(1, flat.size // _SAMPLE)].astype(np.float64)
    return np.where(np.isfinite(taken), taken, 0.0)


def _cosine(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    length = sqrt(float(np.dot(a, a)) * float(np.dot(b, b)))
    return float(np.dot(a, b)) / length if length > 0.0 else 0.0


def _rest(values: Float32, original: _Original) -> Float32:
    """Return what a file's tensor has beside the original, flat; integers in steps of their codes.

    A factor on the whole tensor is taken out first. What is zero, or no number, was pruned or spoilt and counts as unchanged.
    """
    ours = original.values.reshape(-1)
    theirs = np.where(np.isfinite(values) & (values != 0), values, original.values).reshape(-1)
    factor = float(np.dot(theirs, ours)) / float(np.dot(ours, ours))
    rest = theirs - np.float32(factor) * ours
    if original.steps is None:
        return rest
    steps = original.steps.reshape(-1)
    return np.divide(rest, steps, out=np.zeros_like(rest), where=steps > 0)


def _clipped(rest: Float32, *, step: float) -> Float32:
    """Cut off what is far beyond mark and noise: a few huge values would drown everything."""
    usual = float(np.median(np.abs(rest[:: max(1, rest.size // (16 * _SAMPLE))])))
    limit = np.float32(_CLIP * (usual + step))
    return np.clip(rest, -limit, limit)


def _sums(rest: Float32, name: str, copy: Copy, *, key: MarkKey, push: Push) -> tuple[float, float, int]:
    """Return ``sum s d``, ``sum d^2`` and the number of weights, over those that are pushed."""
    signal = energy = 0.0
    count = 0
    signs = key.signs(copy.recipient, name, count=rest.size)
    for begin, bits, chosen in zip(range(0, rest.size, CHUNK), signs, places(key, name, count=rest.size, push=push), strict=True):
        part = rest[begin : begin + CHUNK][chosen].astype(np.float64)
        signal += 2.0 * float(np.dot(part, bits[chosen])) - float(part.sum())
        energy += float(np.dot(part, part))
        count += part.size
    return signal, energy, count
