"""Which columns are coded alike, and how finely? Columns of about the same weighted variance are one class, with one quantiser.

A number x of weighted variance s^2 that a decoder gets back as x + n, n without correlation to x, costs the loss E[n^2] and the
channel R bits; the sum ``E[n^2] / theta + R`` is least when every class is quantised for its own ratio ``s^2 / theta`` alone,
and theta is the one number that a budget decides. A class is the whole number nearest to ``log2(s^2 / theta)``. For each there
is a uniform quantiser with a wide dead zone: zero up to the threshold, then a level per step. The values that a decoder puts
for the levels are scaled up until they correlate with x as x does with itself (`levels`), so that an average of many weights
stays what it was: even classes far below theta, of which a reverse water-filling would send nothing, send their few largest
numbers.

Thresholds and steps below are the best for normal numbers, found by minimising the sum numerically; the tests repeat it. In
between they are interpolated, beyond the last the step is ``sqrt(6 theta / ln 2)``, where theory is exact.
"""

from math import log, sqrt
from typing import Final

import numpy as np
from numpy.typing import NDArray

from hushtune_common.adapter import Float32

Classes = NDArray[np.int32]
Float64 = NDArray[np.float64]

CLASS_MIN: Final = -24
"""The least class that sends anything: one number in 80,000."""
CLASS_MAX: Final = 44
"""The finest: steps at the resolution of float32."""
SILENT: Final = CLASS_MIN - 1
"""The class of columns of which nothing is sent."""
CORRECTION_MAX: Final = 40
"""Furthest that a column's class may lie from the one foretold."""

_STEP: Final = sqrt(6.0 / log(2.0))
# Threshold over sqrt(theta), then step over sqrt(theta), of the classes from CLASS_MIN.
_THRESHOLDS: Final = (
    *(0.001068, 0.001481, 0.002054, 0.002844, 0.003935, 0.005440, 0.007511, 0.01036, 0.01426, 0.01961, 0.02691),
    *(0.03686, 0.05038, 0.06867, 0.09332, 0.1264, 0.1704, 0.2285, 0.3044, 0.4022, 0.5256, 0.6764),
    *(0.8513, 1.0353, 1.1919, 1.2878, 1.3550, 1.4041, 1.4347, 1.4521, 1.4614, 1.4662, 1.4686),
    0.5 * _STEP,
)
_STEPS: Final = (
    *(2.5 * threshold for threshold in _THRESHOLDS[:17]),
    *(0.5828, 0.8470, 1.2326, 1.5147, 2.0153, 2.3205, 2.5713, 2.7175, 2.7515, 2.7848, 2.8415, 2.8854, 2.9118, 2.9264, 2.9341),
    *(2.9381, _STEP),
)
_RATES: Final = (
    *(0.0002289, 0.0003245, 0.0004601, 0.0006523, 0.0009251, 0.001312, 0.001861, 0.002641, 0.003748),
    *(0.005320, 0.007554, 0.01073, 0.01524, 0.02166, 0.03080, 0.04381, 0.06235, 0.08877),
    *(0.1265, 0.1802, 0.2569, 0.3660, 0.5206, 0.7356, 1.0182, 1.3409, 1.6976),
    *(2.1052, 2.5512, 3.0217, 3.5062, 3.9983, 4.4943, 4.9913),
)
"""Bits per number of normal numbers, from CLASS_MIN."""
_PLACES: Final = np.arange(CLASS_MIN, CLASS_MIN + len(_THRESHOLDS), dtype=np.float64)


def thresholds(log2_ratio: Float64) -> Float64:
    """Return the largest magnitudes that become zero, in units of sqrt(theta), for variances of ``2**log2_ratio * theta``."""
    return np.exp2(np.interp(log2_ratio, _PLACES, np.log2(_THRESHOLDS)))


def steps(log2_ratio: Float64) -> Float64:
    """Return the widths of the levels above the threshold, in units of sqrt(theta)."""
    return np.exp2(np.interp(log2_ratio, _PLACES, np.log2(_STEPS)))


def rate(log2_ratio: Float64) -> Float64:
    """Return the bits per number that normal numbers of variance ``2**log2_ratio * theta`` take; 0 below the least class."""
    finer = np.maximum(log2_ratio - _PLACES[-1], 0.0) / 2
    found = np.exp2(np.interp(log2_ratio, _PLACES, np.log2(_RATES))) + finer
    return np.where(log2_ratio < CLASS_MIN - 0.5, 0.0, found)


def foretold(columns: Float32, *, quarter: int) -> Classes:
    """Return the class of each column (C,) that both sides expect: of the column's sensitivity times 2**(quarter / 4).

    Made of exact operations only, so that no two machines ever disagree.
    """
    whole, part = divmod(quarter, 4)
    mantissa, exponent = np.frexp(columns.astype(np.float64) * _QUARTERS[part])
    return exponent.astype(np.int32) + whole - np.where(mantissa < _HALF_ROOT, 1, 0).astype(np.int32)


_QUARTERS: Final = (1.0, 1.189207115002721, 1.4142135623730951, 1.681792830507429)
_HALF_ROOT: Final = 0.7071067811865476


def wanted(log2_ratio: Float64, *, expected: Classes) -> Classes:
    """Return the class that each column takes, given log2 of its variance over theta: the expected one if that is near enough."""
    near = np.abs(log2_ratio - expected) <= 0.9
    nearest = np.rint(np.clip(log2_ratio, SILENT, CLASS_MAX)).astype(np.int32)
    return bounded(expected + np.clip(np.where(near, expected, nearest) - expected, -CORRECTION_MAX, CORRECTION_MAX))


def bounded(classes: Classes) -> Classes:
    """Return classes within those that there are; what lies below is silent."""
    return np.clip(classes, SILENT, CLASS_MAX).astype(np.int32)
