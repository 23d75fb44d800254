"""Is a measured utility one that can be planned with, and is any other refused?"""

from dataclasses import replace
from math import inf, nan

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hushtune_common.messages import CurvePoint, UtilityCurve

CURVE = UtilityCurve(
    offset=0.5,
    weight=0.02,
    shape=1.25,
    share_min=0.1,
    points=(CurvePoint(0.1, 0.15, 0.1, 0.2), CurvePoint(0.4, 0.43, 0.4, 0.46), CurvePoint(1.0, 0.48, 0.46, 0.5)),
)


@given(weight=st.floats(1e-3, 1e3), shape=st.floats(1e-3, 8.0), surplus=st.floats(1e-3, 1e3))
def test_every_curve_there_is_increases_and_is_concave(weight: float, shape: float, surplus: float) -> None:
    curve = replace(CURVE, offset=weight + surplus, weight=weight, shape=shape)
    values = np.array([curve.value(share) for share in np.linspace(0.1, 1.0, 50)])
    scale = 1e-9 * np.abs(values).max()
    assert np.all(np.diff(values) > -scale)
    assert np.all(np.diff(values, n=2) < scale)
    assert values[-1] > 0.0


@pytest.mark.parametrize(
    "wrong",
    [
        {"offset": nan},
        {"offset": inf},
        {"offset": 0.02},
        {"weight": -0.02},
        {"weight": 0.0},
        {"weight": nan},
        {"shape": 0.0},
        {"shape": -1.0},
        {"shape": 1e6},
        {"share_min": 0.0},
        {"share_min": 1.0},
        {"share_min": nan},
        {"points": ()},
        {"points": CURVE.points[:1]},
        {"points": CURVE.points[::-1]},
        {"points": (*CURVE.points[:2], CurvePoint(1.0, 0.48, 0.49, 0.5))},
        {"points": (*CURVE.points[:2], CurvePoint(1.0, nan, 0.4, 0.5))},
        {"points": (*CURVE.points[:2], CurvePoint(1.5, 0.48, 0.4, 0.5))},
        {"points": tuple(CurvePoint(k / 100, 0.1, 0.1, 0.1) for k in range(1, 70))},
    ],
)
def test_a_curve_that_nobody_can_plan_with_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"curve|share_min|points|worth"):
        replace(CURVE, **wrong)  # type: ignore[arg-type]
