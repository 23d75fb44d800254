"""What the owner found an update to be worth by its bytes."""

from dataclasses import dataclass
from itertools import pairwise
from math import isfinite
from typing import Final, NamedTuple

CURVE_POINTS_MAX: Final = 64
"""Most measurements behind a curve."""
_CURVE_LEAST, _CURVE_MOST, _SHAPE_MOST = 1e-12, 1e12, 32.0
"""Of a curve's weight, offset and shape; a steeper curve would be a step."""


class CurvePoint(NamedTuple):
    """What a plug-in was worth with an update of this share of its bytes: the mean, and an interval around it."""

    share: float
    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class UtilityCurve:
    """What the owner found an update to be worth by the share phi of its bytes: ``offset - weight * phi**-shape``.

    The form is a scaling law in the bytes spent (chosen, not derived); it holds from ``share_min`` to 1. ``points`` are the
    measurements that it was fitted to, for people to judge the fit. Laws: positive weight and shape make it increase, and
    concave; it is worth something in full.
    """

    offset: float
    weight: float
    shape: float
    share_min: float
    points: tuple[CurvePoint, ...]

    def __post_init__(self) -> None:
        """Refuse a curve that nobody could plan with."""
        if not 0.0 < self.share_min < 1.0:
            raise ValueError(f"share_min: must be in (0, 1), got {self.share_min}")
        if not (_CURVE_LEAST <= self.weight <= _CURVE_MOST and _CURVE_LEAST <= self.shape <= _SHAPE_MOST):
            raise ValueError(f"the curve has to increase and be concave, got weight {self.weight} and shape {self.shape}")
        if not abs(self.offset) <= _CURVE_MOST or not isfinite(self.value(self.share_min)):
            raise ValueError(f"the curve has to be finite, got offset {self.offset}")
        if not self.value(1.0) > 0.0:
            raise ValueError(f"an update is worth {self.value(1.0):g} in full: there is nothing to share resources out for")
        self._check_points()

    def _check_points(self) -> None:
        if not 2 <= len(self.points) <= CURVE_POINTS_MAX:
            raise ValueError(f"points: 2 to {CURVE_POINTS_MAX}, got {len(self.points)}")
        for share, value, low, high in self.points:
            if not (0.0 < share <= 1.0 and -_CURVE_MOST <= low <= value <= high <= _CURVE_MOST):
                raise ValueError(f"points: {value} at share {share} is not a number within its interval, {low} to {high}")
        if any(b.share <= a.share for a, b in pairwise(self.points)):
            raise ValueError("points: shares have to increase")

    @property
    def share_worthless(self) -> float:
        """The share at which the curve is zero; 0 where it never is. Below 1."""
        return (self.weight / self.offset) ** (1.0 / self.shape)

    def value(self, share: float) -> float:
        """Return what an update of this share is worth."""
        return self.offset - self.weight * share**-self.shape
