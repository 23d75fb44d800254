"""How precise may everything be, for a body to have so many bytes? Theta from variances, then from a census, then for sure."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp2, frexp, ldexp, log2, sqrt
from typing import Final

import numpy as np

from hushtune_common.adapter import Float32
from hushtune_common.codec import classes, levels
from hushtune_common.codec.body import Body, ClassHead, Codes, Head, grid_of, starts
from hushtune_common.codec.classes import CLASS_MAX, CLASS_MIN, CORRECTION_MAX, Float64
from hushtune_common.codec.coordinates import Coordinates
from hushtune_common.codec.entropy import Table
from hushtune_common.codec.levels import Census, Grid, Highs, Zones

_SAMPLED: Final = 1 << 20
"""Numbers above which a census takes every fourth run only, until the last."""
_CENSUSES: Final = 3
_ATTEMPTS: Final = 6
_LOG2_THETA_MIN: Final = -240.0
"""Least theta, as an exponent of two: its inverse square root stays within float32."""
_CLOSE: Final = 0.99
"""Share of the bytes granted that need not be improved upon."""
_AIM: Final = 0.997


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Field:
    """One tensor's change in its coordinates, and the variance of each column there."""

    coordinates: Coordinates
    turned: Float32
    variances: Float64

    @staticmethod
    def of(coordinates: Coordinates, turned: Float32) -> "Field":
        """Take what `Coordinates.forth` wrote."""
        return Field(coordinates=coordinates, turned=turned, variances=coordinates.variances(turned))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Plan:
    """The classes of all columns at one theta."""

    theta: float
    quarters: tuple[int, ...]
    corrections: Highs
    grids: Sequence[Grid]
    zones: Zones


def sized(fields: Sequence[Field], *, bytes_max: int, raised: bool = True) -> Body | None:
    """Return a body whose sections have at most ``bytes_max`` bytes, seldom under 99 % of them; None when none is so short.

    Its values are ``raised`` to keep averages, or the centroids, which never err by more than nothing at all would.
    """
    best = Body.silent([f.coordinates for f in fields])
    best_size = size_of(best)
    if best_size > bytes_max:
        return None
    curve = _Curve(fields)
    if not curve.moves:
        return best
    aim = _AIM * bytes_max
    inflation = _inflation(fields, curve, aim=8 * aim)
    for _ in range(_ATTEMPTS):
        theta = curve.theta(8.0 * aim / inflation)
        body = _body(fields, _planned(fields, theta=theta), raised=raised)
        size = size_of(body)
        if best_size < size <= bytes_max:
            best, best_size = body, size
        if size <= bytes_max and (size >= _CLOSE * bytes_max or theta <= curve.finest):
            break
        inflation = 8.0 * size / max(curve.bits(theta), 1.0)
    return best


def size_of(body: Body) -> int:
    """Return the bytes of all sections."""
    return sum(len(section) for section in body.sections())


class _Curve:
    """What normal numbers of the variances at hand would take at each theta."""

    def __init__(self, fields: Sequence[Field]) -> None:
        """Take the variances of all columns."""
        rows = [np.full(f.variances.size, f.coordinates.rows, dtype=np.float64) for f in fields]
        counts, variances = np.concatenate(rows), np.concatenate([f.variances for f in fields])
        moving = variances > 0.0
        self.moves = bool(moving.any())
        self._counts, self._log2 = counts[moving], np.log2(variances[moving])
        top = float(self._log2.max(initial=_LOG2_THETA_MIN))
        finest = max(top - CLASS_MAX, _LOG2_THETA_MIN)
        self._coarsest, self.finest = max(top - CLASS_MIN, finest) + 1.0, _short(exp2(finest))

    def bits(self, theta: float) -> float:
        """Return the bits of all codes."""
        return float((self._counts * classes.rate(self._log2 - log2(theta))).sum())

    def theta(self, bits: float) -> float:
        """Return the least theta that takes no more than ``bits``, by halving; within the finest and one that silences all."""
        low, high = log2(self.finest), self._coarsest
        if self.bits(exp2(low)) <= bits:
            return self.finest
        for _ in range(40):
            middle = (low + high) / 2
            low, high = (low, middle) if self.bits(exp2(middle)) <= bits else (middle, high)
        return _short(exp2(high))


def _short(theta: float) -> float:
    """Return theta to 16 bits, so that a logarithm's last place, which processors differ in, does not change every byte."""
    mantissa, exponent = frexp(theta)
    return ldexp(round(mantissa * 65536.0), exponent - 16)


def _inflation(fields: Sequence[Field], curve: _Curve, *, aim: float) -> float:
    """Return how many bits a body takes per bit of the curve, near a body of ``aim`` bits."""
    found, stride = 1.0, 4 if sum(f.turned.size for f in fields) > _SAMPLED else 1
    for _ in range(_CENSUSES):
        theta = curve.theta(aim / found)
        plan = _planned(fields, theta=theta)
        census = _census(fields, plan, stride=stride)
        bits = census.bits(levels.class_sizes(plan.grids)) + 8.0 * _head_size(plan, census)
        before, found = found, bits / max(curve.bits(theta), 1.0)
        if abs(found / before - 1.0) < 0.003:
            break
    return found


def _head_size(plan: _Plan, census: Census) -> float:
    """Return about what is not codes, in bytes."""
    used = (census.counts > 0).sum(axis=1)
    tables = float((10 + np.where(used > 3, 16, 8) + 5 * used)[used > 0].sum())
    corrections = np.unique(plan.corrections, return_counts=True)[1]
    entropy = float(-(corrections * np.log2(corrections / plan.corrections.size)).sum()) / 8
    gains = sum(np.unique(grid.column_class).size for grid in plan.grids)
    return 20.0 + 4.0 * len(plan.quarters) + gains + tables + entropy


def _planned(fields: Sequence[Field], *, theta: float) -> _Plan:
    """Return the classes that the columns take at ``theta``: the ones that a decoder expects, or as near as need be."""
    quarters, corrections, grids = list[int](), list[Highs](), list[Grid]()
    for field in fields:
        own = field.coordinates.columns.astype(np.float64)
        mean = float(field.variances.sum() / own.sum()) / theta
        quarter = round(4.0 * log2(mean)) if mean > 0.0 else 8 * CLASS_MIN
        quarter = max(-1000, min(1000, quarter))
        expected = classes.bounded(classes.foretold(field.coordinates.columns, quarter=quarter))
        with np.errstate(divide="ignore"):
            taken = classes.wanted(np.log2(field.variances / theta), expected=expected)
        correction = np.clip(taken - expected, -CORRECTION_MAX, CORRECTION_MAX).astype(np.int32)
        quarters.append(quarter)
        corrections.append(correction.astype(np.int16))
        grids.append(grid_of(field.coordinates, quarter=quarter, corrections=correction))
    return _Plan(
        theta=theta,
        quarters=tuple(quarters),
        corrections=np.concatenate(corrections),
        grids=grids,
        zones=_zones(fields, grids, theta=theta),
    )


def _zones(fields: Sequence[Field], grids: Sequence[Grid], *, theta: float) -> Zones:
    """Return the zones: thresholds for each column's own variance, so that none loses more than others of its class."""
    total, count = np.zeros(levels.CLASSES + 1), np.zeros(levels.CLASSES + 1)
    for field, grid in zip(fields, grids, strict=True):
        total += grid.rows * np.bincount(grid.column_class + 1, weights=field.variances, minlength=levels.CLASSES + 1)
        count += grid.rows * np.bincount(grid.column_class + 1, minlength=levels.CLASSES + 1)
    mean = np.where((count > 0) & (total > 0), total / np.maximum(count, 1), theta)[1:] / theta
    least = exp2(CLASS_MIN)
    return Zones(
        thresholds=[classes.thresholds(np.log2(np.maximum(f.variances / theta, least))).astype(np.float32) for f in fields],
        steps=classes.steps(np.log2(mean)).astype(np.float32),
    )


def _census(fields: Sequence[Field], plan: _Plan, *, stride: int = 1) -> Census:
    census, scale = Census.empty(plan.zones), 1.0 / sqrt(plan.theta)
    for tensor, (field, grid) in enumerate(zip(fields, plan.grids, strict=True)):
        levels.take_census(census, field.turned, grid, tensor=tensor, zones=plan.zones, scale=scale, stride=stride)
    return census


def _body(fields: Sequence[Field], plan: _Plan, *, raised: bool) -> Body:
    """Return the body of a plan; its bounds and largest changes are still zero."""
    census, sizes = _census(fields, plan), levels.class_sizes(plan.grids)
    limits = [levels.code_limit(census, k) for k in range(levels.CLASSES)]
    raw_bits = np.array([levels.raw_bits(m, count=int(n)) for m, n in zip(limits, sizes, strict=True)], dtype=np.int32)
    codes = _codes(fields, plan, raw_bits=raw_bits, sizes=sizes)
    begin, values = starts(sizes), census.level_values(raised=raised)
    heads = tuple(
        ClassHead(
            of_class=k + CLASS_MIN,
            raw_bits=int(raw_bits[k]),
            values=tuple(values[k, : 2 if limits[k] <= 3 else 4].tolist()),
            table=Table.of(codes.highs[begin[k] : begin[k] + sizes[k]]),
        )
        for k in np.flatnonzero(sizes).tolist()
    )
    head = Head(
        root=sqrt(plan.theta),
        quarters=plan.quarters,
        bounds=(0.0,) * len(plan.quarters),
        tops=(0.0,) * len(plan.quarters),
        corrections=Table.of(plan.corrections),
        classes=heads,
    )
    gains = census.gains(values) if raised else np.zeros((len(fields), levels.CLASSES), np.int8)
    return Body(head=head, corrections=plan.corrections, gains=gains, grids=plan.grids, codes=codes)


def _codes(fields: Sequence[Field], plan: _Plan, *, raw_bits: classes.Classes, sizes: levels.Counts) -> Codes:
    count = int(sizes.sum())
    codes = Codes(
        highs=np.empty(count, dtype=np.int16),
        lows=np.zeros(count if raw_bits.any() else 0, dtype=np.uint32),
    )
    offsets, scale = starts(sizes), 1.0 / sqrt(plan.theta)
    for tensor, (field, grid) in enumerate(zip(fields, plan.grids, strict=True)):
        levels.emit(
            field.turned,
            grid,
            tensor=tensor,
            zones=plan.zones,
            scale=scale,
            raw_bits=raw_bits,
            offsets=offsets,
            highs=codes.highs,
            lows=codes.lows,
        )
    return codes
