"""Which curve of utility do measurements support, and how sure is it?

The form is ``u(phi) = offset - weight * phi**-shape``: what compression takes away falls as a power of the bytes. It is chosen,
not derived. Letters in shapes: K measured shares, R resamples, G shares at which a band is wanted.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hushtune_common.messages import CurvePoint, UtilityCurve

Floats = NDArray[np.float64]

SHAPES = np.geomspace(0.02, 8.0, 121)
"""Shapes among which the best is looked for, then refined between its neighbours. At the low end the form is a logarithm."""
WEIGHT_MIN = 1e-9
"""Weight of a curve that does not rise: the form has to, if only a little."""
FORM_ERROR = 0.005
"""By how much the form itself is taken to miss, in shares of the gain; no point weighs as if it were surer (chosen)."""
_HALVINGS = 40
_GOLDEN = (np.sqrt(5.0) - 1.0) / 2.0
_DEVIATIONS = 1.96
"""Standard deviations between a mean and the end of its 95 % interval."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Coefficients:
    """R curves at once: ``offset``, ``weight`` and ``shape`` are (R,)."""

    offset: Floats
    weight: Floats
    shape: Floats

    def values(self, shares: Floats) -> Floats:
        """Return what every curve says at shares (G,), as (R, G)."""
        return self.offset[:, None] - self.weight[:, None] * shares[None, :] ** -self.shape[:, None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Band:
    """Where 95 % of the curves run that resampled measurements give: ``low`` and ``high`` (G,) at ``shares`` (G,)."""

    shares: Floats
    low: Floats
    high: Floats


def fitted(shares: Floats, values: Floats, *, deviations: Floats) -> Coefficients:
    """Return the weighted least-squares curves through ``values`` (R, K) at ``shares`` (K,) with standard ``deviations`` (K,).

    For a given shape the form is linear in offset and weight, so the shape alone is searched for (variable projection, Golub and
    Pereyra 1973): the best of a grid, then by golden section between its neighbours. ``ValueError`` for fewer than three shares.
    """
    if shares.size < 3:
        raise ValueError(f"a curve with three coefficients needs at least three shares, got {shares.size}")
    precision = 1.0 / np.maximum(deviations, FORM_ERROR) ** 2
    grid = np.stack([_error(shares, values, np.full(len(values), s), precision=precision) for s in SHAPES])
    best = grid.argmin(axis=0)
    low, high = (np.log(SHAPES[np.clip(best + step, 0, SHAPES.size - 1)]) for step in (-1, 1))
    for _ in range(_HALVINGS):
        left, right = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
        falls = _error(shares, values, np.exp(left), precision=precision) < _error(
            shares, values, np.exp(right), precision=precision
        )
        low, high = np.where(falls, low, left), np.where(falls, right, high)
    shape = np.exp((low + high) / 2.0)
    offset, weight = _linear(shares, values, shape, precision=precision)
    return Coefficients(offset=offset, weight=weight, shape=shape)


def curve_through(points: Sequence[CurvePoint]) -> UtilityCurve:
    """Return the curve through measurements, each counting by its interval; it holds from the smallest share on.

    ``ValueError`` as `fitted` and as `UtilityCurve`: a plug-in that is worth nothing in full has no curve.
    """
    shares, values, deviations = columns(points)
    found = fitted(shares, values[None, :], deviations=deviations)
    return UtilityCurve(
        offset=float(found.offset[0]),
        weight=float(found.weight[0]),
        shape=float(found.shape[0]),
        share_min=float(shares.min()),
        points=tuple(points),
    )


def band(points: Sequence[CurvePoint], resampled: Floats, *, at: Floats) -> Band:
    """Return the band at shares ``at`` (G,) of the curves through ``resampled`` values (R, K) of the points' shares."""
    shares, _, deviations = columns(points)
    curves = fitted(shares, resampled, deviations=deviations).values(at)
    low, high = np.quantile(curves, [0.025, 0.975], axis=0)
    return Band(shares=at, low=low, high=high)


def columns(points: Sequence[CurvePoint]) -> tuple[Floats, Floats, Floats]:
    """Return shares, values and standard deviations of points, (K,) each."""
    table = np.array(points, dtype=np.float64)
    return table[:, 0], table[:, 1], (table[:, 3] - table[:, 2]) / (2.0 * _DEVIATIONS)


def _linear(shares: Floats, values: Floats, shape: Floats, *, precision: Floats) -> tuple[Floats, Floats]:
    """Return the best offset and weight (R,) for shapes (R,)."""
    x = shares[None, :] ** -shape[:, None]  # (R, K)
    x_mean, y_mean = (np.average(a, axis=1, weights=precision) for a in (x, values))
    spread = x - x_mean[:, None]
    covariance = (precision * spread * (values - y_mean[:, None])).sum(axis=1)
    weight = np.maximum(-covariance / (precision * spread**2).sum(axis=1), WEIGHT_MIN)
    return y_mean + weight * x_mean, weight


def _error(shares: Floats, values: Floats, shape: Floats, *, precision: Floats) -> Floats:
    """Return the weighted sum of squares (R,) that is left with these shapes."""
    offset, weight = _linear(shares, values, shape, precision=precision)
    curves = Coefficients(offset=offset, weight=weight, shape=shape).values(shares)
    return (precision * (values - curves) ** 2).sum(axis=1)
