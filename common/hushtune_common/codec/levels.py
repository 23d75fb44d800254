"""How do turned numbers become levels, and levels numbers again? One dead-zone quantiser per class, with values for its levels.

Codes are whole numbers with a sign, 0 in the dead zone. A code is split into a high part, which is entropy coded, and
``raw_bits`` low bits, which at fine steps nothing can be saved of. Codes lie class by class, and within a class in the order of
tensors, runs, columns and rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from hushtune_common.adapter import Float32
from hushtune_common.codec.classes import CLASS_MAX, CLASS_MIN, SILENT, Classes, Float64
from hushtune_common.codec.kernels import kernel

Highs = NDArray[np.int16]
Lows = NDArray[np.uint32]
Counts = NDArray[np.int64]
Gains = NDArray[np.int8]

CLASSES: Final = CLASS_MAX - CLASS_MIN + 1
BINS: Final = 1024
GAINS_PER_OCTAVE: Final = 64
HIGH_MAX: Final = 510
"""Largest high part of a positive code. That of a negative one, rounded down as well, may lie one further from zero, so with zero
there are 1022, which an alphabet holds."""
_VALUE_MAX: Final = 16.0
"""Largest value of the first level, over sqrt(theta): what few numbers stand for many must not drown them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """A stretch of turned numbers: a matrix of ``rows`` and the class of each column, counted from `CLASS_MIN`; -1 is silent."""

    rows: int
    column_class: Classes

    @property
    def columns(self) -> int:
        """Number of columns."""
        return self.column_class.size


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Zones:
    """Where each tensor's columns stop being zero, (C,) each, and the step of every class (classes,), in units of sqrt(theta)."""

    thresholds: Sequence[Float32]
    steps: Float32


@dataclass(frozen=True, slots=True, kw_only=True)
class Census:
    """What a pass over turned numbers finds, per class: how many, how large, and what a decoder should put for each level."""

    steps: Float32
    counts: Counts
    """(classes, BINS): numbers by magnitude of their code, shifted down by the class's `shift`."""
    excess: Float64
    """(classes,): by how much the largest magnitude exceeds its threshold."""
    moments: Float64
    """(tensors, classes, 9): sum of squares; of levels 1, 2 and 3 or more each number and sum of magnitudes; of the last also the
    sum of codes, and of codes times magnitudes."""

    @staticmethod
    def empty(zones: Zones) -> "Census":
        """Return a census of nothing."""
        return Census(
            steps=zones.steps,
            counts=np.zeros((CLASSES, BINS), np.int64),
            excess=np.zeros(CLASSES),
            moments=np.zeros((len(zones.thresholds), CLASSES, 9)),
        )

    def bits(self, sizes: Counts) -> float:
        """Return the bits of an ideal coder for classes of these ``sizes``, of which the census may have seen a part."""
        counts = self.counts.astype(np.float64)
        totals = np.maximum(counts.sum(axis=1), 1.0)
        share = np.divide(counts, totals[:, None], out=np.ones_like(counts), where=counts > 0)
        magnitudes = -(counts * np.log2(share)).sum(axis=1)
        signs = totals - counts[:, 0]
        return float(((magnitudes + signs) / totals * sizes + sizes * _SHIFTS).sum())

    def level_values(self, *, raised: bool = True) -> Float32:
        """Return the values (classes, 4) of levels 1, 2 and 3 and the step beyond: centroids, scaled up if ``raised``.

        The scale makes the values of a class correlate with its numbers as these do with themselves: ``sum |x| value = sum x^2``.
        """
        totals = self.moments.sum(axis=0)
        found = [_values(m, width=float(w), raised=raised) for m, w in zip(totals, self.steps, strict=True)]
        return np.array(found, dtype=np.float32)

    def gains(self, values: Float32) -> Gains:
        """Return by how much to raise the values of a class for each tensor (tensors, classes), for the same to hold there."""
        wide = values.astype(np.float64)
        squares, s1, s2, s3, weighed3 = (self.moments[:, :, k] for k in (0, 2, 4, 6, 8))
        products = s1 * wide[:, 0] + s2 * wide[:, 1] + s3 * wide[:, 2] + (weighed3 - 3.0 * s3) * wide[:, 3]
        ratio = np.divide(squares, products, out=np.ones_like(squares), where=products > 0.0)
        return np.clip(np.rint(GAINS_PER_OCTAVE * np.log2(np.maximum(ratio, 1e-9))), -127, 127).astype(np.int8)


def raised(values: Float32, gains: Gains) -> Float32:
    """Return the values (classes, 4) with the gains (classes,) of one tensor; infinite beyond float32."""
    with np.errstate(over="ignore"):  # only forged values are so large, and whoever restores them looks at the result
        return (values * np.exp2(gains.astype(np.float64) / GAINS_PER_OCTAVE)[:, None]).astype(np.float32)


def shift(of_class: int) -> int:
    """Return the low bits that a census leaves out, for the magnitudes of a class to fit its bins."""
    return max(0, (of_class - 8) // 2)


_SHIFTS: Final = np.array([shift(c) for c in range(CLASS_MIN, CLASS_MAX + 1)], dtype=np.int64)


def take_census(census: Census, turned: Float32, grid: Grid, *, tensor: int, zones: Zones, scale: float, stride: int = 1) -> None:
    """Add the turned numbers of a tensor, times ``scale``, to a census; of the runs only every ``stride``-th."""
    _census(
        *(turned, grid.rows, grid.column_class, stride, np.float32(scale)),
        *(zones.thresholds[tensor], 1.0 / zones.steps, _SHIFTS),
        *(census.counts, census.excess, census.moments[tensor]),
    )


def code_limit(census: Census, k: int) -> int:
    """Return a magnitude that no code of the class of index ``k`` exceeds."""
    return 0 if census.excess[k] <= 0.0 else int(census.excess[k] / float(census.steps[k]) * (1.0 + 2.0**-20)) + 2


def raw_bits(limit: int, *, count: int) -> int:
    """Return the low bits of codes up to ``limit`` of which there are ``count``: so many that the table of high parts pays."""
    most = max(1, min(HIGH_MAX, count // 16))
    bits = 0
    while limit >> bits > most:
        bits += 1
    return bits


def _values(moments: Float64, *, width: float, raised: bool) -> tuple[float, float, float, float]:
    """Return the values of one class from its moments."""
    squares, n1, s1, n2, s2, n3, s3, codes3, weighed3 = moments.tolist()
    if n1 + n2 + n3 == 0.0:
        return 0.0, 0.0, 0.0, 0.0
    # The third level and those beyond share one distance from the lower ends of their steps; levels that are empty take it on.
    third = s3 / n3 - (codes3 / n3 - 3.0) * width if n3 else 0.0
    second = s2 / n2 if n2 else max(third - width, 0.0)
    first = s1 / n1 if n1 else max(second - width, 0.0)
    if not raised:
        return first, second, third, width
    product = s1 * first + s2 * second + s3 * third + width * (weighed3 - 3.0 * s3)
    gain = max(1.0, squares / product) if product > 0.0 else 1.0
    if first > 0.0:
        gain = max(1.0, min(gain, _VALUE_MAX / first))
    return gain * first, gain * second, gain * third, gain * width


def emit(
    turned: Float32,
    grid: Grid,
    *,
    tensor: int,
    zones: Zones,
    scale: float,
    raw_bits: Classes,
    offsets: Counts,
    highs: Highs,
    lows: Lows,
) -> None:
    """Write a grid's codes: high parts to ``highs``, low bits to ``lows``, each class from ``offsets`` on, which advance."""
    _emit(
        *(turned, grid.rows, grid.column_class, np.float32(scale)),
        *(zones.thresholds[tensor], 1.0 / zones.steps),
        *(raw_bits, offsets, highs, lows),
    )


def restore(grid: Grid, *, values: Float32, raw_bits: Classes, offsets: Counts, highs: Highs, lows: Lows, out: Float32) -> None:
    """Write the turned numbers of a grid, in units of sqrt(theta), to ``out``.

    ``values`` (classes, 4) are those of `Census.level_values`, `raised`.
    """
    _restore(grid.rows, grid.column_class, values, raw_bits, offsets, highs, lows, out)


def class_sizes(grids: Sequence[Grid]) -> Counts:
    """Return how many numbers every class has."""
    sizes = np.zeros(CLASSES + 1, dtype=np.int64)
    for grid in grids:
        sizes += grid.rows * np.bincount(grid.column_class + 1, minlength=CLASSES + 1)
    return sizes[1:]


def indices(classes: Classes) -> Classes:
    """Return the classes counted from `CLASS_MIN`, -1 for silent ones."""
    return np.where(classes <= SILENT, -1, classes - CLASS_MIN).astype(np.int32)


@kernel
def _census(
    turned: Float32,
    rows: int,
    column_class: Classes,
    stride: int,
    scale: np.float32,
    thresholds: Float32,
    inverse_steps: Float32,
    shifts: Counts,
    counts: Counts,
    excess: Float64,
    moments: Float64,
) -> None:
    columns = column_class.size
    for first in range(0, rows, 64 * stride):
        run = min(64, rows - first)
        for j in range(columns):
            k = column_class[j]
            if k < 0:
                continue
            limit, inverse, down = thresholds[j], inverse_steps[k], shifts[k]
            at = first * columns + j * run
            squares = 0.0
            top = np.float32(0.0)
            for i in range(at, at + run):
                magnitude = abs(turned[i] * scale)
                squares += magnitude * magnitude
                top = max(top, magnitude)
            moments[k, 0] += squares
            excess[k] = max(excess[k], np.float64(top) - np.float64(limit))
            if top <= limit:
                counts[k, 0] += run
                continue
            for i in range(at, at + run):
                magnitude = abs(turned[i] * scale)
                if magnitude <= limit:
                    counts[k, 0] += 1
                    continue
                code = 1 + np.int64((magnitude - limit) * inverse)
                counts[k, min(code >> down, 1023)] += 1
                slot = 2 * min(code, 3) - 1
                moments[k, slot] += 1.0
                moments[k, slot + 1] += magnitude
                if code >= 3:
                    moments[k, 7] += code
                    moments[k, 8] += code * magnitude


@kernel
def _emit(
    turned: Float32,
    rows: int,
    column_class: Classes,
    scale: np.float32,
    thresholds: Float32,
    inverse_steps: Float32,
    raw_bits: Classes,
    offsets: Counts,
    highs: Highs,
    lows: Lows,
) -> None:
    columns = column_class.size
    for first in range(0, rows, 64):
        run = min(64, rows - first)
        for j in range(columns):
            k = column_class[j]
            if k < 0:
                continue
            limit, inverse, raw = thresholds[j], inverse_steps[k], raw_bits[k]
            at, to = first * columns + j * run, offsets[k]
            for i in range(run):
                number = turned[at + i] * scale
                magnitude = abs(number)
                code = np.int64(0)
                if magnitude > limit:
                    code = 1 + np.int64((magnitude - limit) * inverse)
                if number < 0:
                    code = -code
                highs[to + i] = code >> raw
                if raw:
                    lows[to + i] = code & ((1 << raw) - 1)
            offsets[k] = to + run


@kernel
def _restore(
    rows: int,
    column_class: Classes,
    values: Float32,
    raw_bits: Classes,
    offsets: Counts,
    highs: Highs,
    lows: Lows,
    out: Float32,
) -> None:
    columns = column_class.size
    for first in range(0, rows, 64):
        run = min(64, rows - first)
        for j in range(columns):
            k = column_class[j]
            at = first * columns + j * run
            if k < 0:
                for i in range(at, at + run):
                    out[i] = 0.0
                continue
            start, raw = offsets[k], raw_bits[k]
            first_value, second_value, third_value, step = values[k, 0], values[k, 1], values[k, 2], values[k, 3]
            if raw:
                for i in range(run):
                    code = np.int64(highs[start + i]) << raw | np.int64(lows[start + i])
                    out[at + i] = _value(np.int64(code), first_value, second_value, third_value, step)
            else:
                for i in range(run):
                    out[at + i] = _value(np.int32(highs[start + i]), first_value, second_value, third_value, step)
            offsets[k] = start + run


@kernel
def _value(code: np.signedinteger, first: np.float32, second: np.float32, third: np.float32, step: np.float32) -> np.float32:
    """Return what a decoder puts for a code; without a branch, so that the compiler does several at once."""
    level = abs(code)
    value = third + np.float32(level - 3) * step
    value = second if level == 2 else value
    value = first if level == 1 else value
    value = np.float32(0.0) if level == 0 else value
    return -value if code < 0 else value
