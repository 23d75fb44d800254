"""What do updates that were accepted say about the curve that was measured before them?

A round's updates come from text that nobody calibrated on, so what they gain in full is not known. What can be compared is the
gain of one update with that of another with another share: every round has a scale of its own, found together with the curve.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite

import numpy as np

from hushtune_common.messages import CURVE_POINTS_MAX, CurvePoint, UtilityCurve
from hushtune_server.owner.calibration.fit import Floats, columns, curve_through, point

_STEPS_MAX = 100
_CLOSE = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundGain:
    """What one accepted update gained on public text: of which round, with which share of its bytes, by how many nats per token.

    ``deviation_nats`` is the standard error of the gain over the windows that it was measured on.
    """

    round: int
    share: float
    gain_nats: float
    deviation_nats: float

    def __post_init__(self) -> None:
        """Refuse what no measurement gives."""
        if not 0.0 < self.share <= 1.0:
            raise ValueError(f"a share lies above 0 and is at most 1, got {self.share}")
        if not (isfinite(self.gain_nats) and isfinite(self.deviation_nats) and self.deviation_nats > 0.0):
            raise ValueError(f"a gain is finite and its deviation above 0, got {self.gain_nats} and {self.deviation_nats}")


def refined(measured: UtilityCurve, rounds: Sequence[RoundGain]) -> UtilityCurve:
    """Return the curve through what was measured on public text and what accepted updates gained since, all of them at once.

    Laws: the order of updates changes nothing; a round changes nothing in which all updates had the same share, or which gained
    nothing as a whole, since neither says what one share is worth beside another. Scales and curve are found in turn, by weighted
    least squares, until neither moves. ``measured`` is the curve as it was calibrated, and ``rounds`` are all there are so far.
    ``ValueError`` when what results is no curve that can be planned with.
    """
    telling = _telling(rounds)
    if not telling:
        return measured
    curve = measured
    for _ in range(_STEPS_MAX):
        before, curve = curve, curve_through(_together(measured, _scaled(curve, telling)))
        if _distance(before, curve) < _CLOSE:
            break
    return curve


def _telling(rounds: Sequence[RoundGain]) -> list[RoundGain]:
    """Return the updates of rounds with more than one share, in an order of their own."""
    shares: dict[int, set[float]] = {}
    for each in rounds:
        shares.setdefault(each.round, set()).add(each.share)
    return sorted(
        (r for r in rounds if len(shares[r.round]) > 1), key=lambda r: (r.round, r.share, r.gain_nats, r.deviation_nats)
    )


def _scaled(curve: UtilityCurve, rounds: Sequence[RoundGain]) -> list[CurvePoint]:
    """Return the updates as points: their gains over what their round gains in full, if the curve is right."""
    points: list[CurvePoint] = []
    for number in sorted({r.round for r in rounds}):
        own = [r for r in rounds if r.round == number]
        share, gain, deviation = np.array([(r.share, r.gain_nats, r.deviation_nats) for r in own]).T
        worth = curve.offset - curve.weight * share**-curve.shape
        scale = _scale(worth, gain, deviation)
        if scale > 0.0:
            points += [point(r.share, r.gain_nats / scale, deviation=r.deviation_nats / scale) for r in own]
    return points


def _scale(worth: Floats, gain: Floats, deviation: Floats) -> float:
    """Return the factor that turns what the curve says into a round's gains, by weighted least squares."""
    precision = deviation**-2.0
    squares = float((precision * worth**2).sum())
    return float((precision * worth * gain).sum()) / squares if squares > 0.0 else 0.0


def _together(measured: UtilityCurve, points: Sequence[CurvePoint]) -> list[CurvePoint]:
    """Return all points, one for each share: those with the same share become their mean, weighted by precision."""
    by_share: dict[float, list[CurvePoint]] = {}
    for each in (*measured.points, *points):
        by_share.setdefault(each.share, []).append(each)
    if len(by_share) > CURVE_POINTS_MAX:
        raise ValueError(f"a curve has at most {CURVE_POINTS_MAX} shares, these are {len(by_share)}; leave out the oldest rounds")
    return [_mean(by_share[share]) for share in sorted(by_share)]


def _mean(points: Sequence[CurvePoint]) -> CurvePoint:
    if len(points) == 1:
        return points[0]
    _, values, deviations = columns(points)
    precision = np.maximum(deviations, 1e-9) ** -2.0
    value = float((precision * values).sum() / precision.sum())
    return point(points[0].share, value, deviation=float(precision.sum() ** -0.5))


def _distance(before: UtilityCurve, after: UtilityCurve) -> float:
    shares = [p.share for p in after.points]
    return max(abs(before.value(share) - after.value(share)) for share in shares)
