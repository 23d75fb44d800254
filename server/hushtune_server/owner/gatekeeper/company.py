"""Which updates of a round do not go with the others? By size, and by direction.

Letters in shapes: K updates, S sampled weights.
"""

from collections.abc import Mapping
from statistics import median
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from hushtune_common.adapter import Float32
from hushtune_common.config import GateConfig
from hushtune_server.owner.gatekeeper.finding import Finding
from hushtune_server.owner.gatekeeper.sketch import Sketch

CLIENTS_MIN = 3
"""Of two that differ nobody can say which one is wrong."""

Who = TypeVar("Who", bound=str)


def misfits(round_of: Mapping[Who, Sketch], *, gate: GateConfig) -> Mapping[Who, Finding]:
    """Return which updates of a round are refused and why; none of fewer than `CLIENTS_MIN`.

    First those that are too large; then, as long as three are left, the one that points away most from the others, one at a time:
    a hostile update pulls at what the honest ones are compared with, so none of them is judged before it is gone. Sound while
    those that mean harm are fewer than half.
    """
    found = dict(_too_large(round_of, limit=gate.round_norm_max))
    left = {who: sketch for who, sketch in round_of.items() if who not in found}
    while (worst := _most_contrary(left, limit=gate.direction_min)) is not None:
        who, finding = worst
        found[who] = finding
        del left[who]
    return found


def _too_large(round_of: Mapping[Who, Sketch], *, limit: float) -> Mapping[Who, Finding]:
    if len(round_of) < CLIENTS_MIN:
        return {}
    typical = median(sketch.norm for sketch in round_of.values())
    if typical == 0.0:
        return {}
    ratios = {who: sketch.norm / typical for who, sketch in round_of.items()}
    return {who: _size_finding(ratio, limit=limit, count=len(ratios)) for who, ratio in ratios.items() if not ratio <= limit}


def _size_finding(ratio: float, *, limit: float, count: int) -> Finding:
    problem = f"the adapter changed by {ratio:.3g}x the median of the round's {count}"
    return Finding(setting="owner.gate.round_norm_max", value=ratio, limit=limit, problem=problem)


def _most_contrary(left: Mapping[Who, Sketch], *, limit: float) -> tuple[Who, Finding] | None:
    if len(left) < CLIENTS_MIN:
        return None
    cosines = dict(zip(left, alignments(np.stack([sketch.sample for sketch in left.values()])), strict=True))
    who = min(cosines, key=lambda w: cosines[w])
    if cosines[who] >= limit:
        return None
    problem = f"the change has a cosine of {cosines[who]:.3f} to the median of the round's {len(left) - 1} others"
    return who, Finding(setting="owner.gate.direction_min", value=cosines[who], limit=limit, problem=problem)


def alignments(samples: NDArray[np.float32]) -> list[float]:
    """Return the cosine of each row (K, S) to the coordinate-wise median of the other rows; 0 where either is zero."""
    ordered = np.sort(samples, axis=0)
    return [_cosine(row, _median_without(row, ordered)) for row in samples]


def _median_without(row: Float32, ordered: NDArray[np.float32]) -> Float32:
    """Return the median (S,) of all rows but ``row``, from all of them ``ordered`` along the first axis."""
    middle = (len(ordered) - 2) // 2
    lower = _without(row, ordered, at=middle)
    if len(ordered) % 2 == 0:
        return lower
    # An even number of rows is left when the total is odd: then their two middle ones are averaged.
    return ((lower + _without(row, ordered, at=middle + 1)) / np.float32(2)).astype(np.float32)


def _without(row: Float32, ordered: NDArray[np.float32], *, at: int) -> Float32:
    """Return what stands ``at`` a place once the value of ``row`` is taken out of each column."""
    return np.where(row > ordered[at], ordered[at], ordered[at + 1]).astype(np.float32)


def _cosine(a: Float32, b: Float32) -> float:
    x, y = a.astype(np.float64), b.astype(np.float64)
    length = float(np.sqrt(np.dot(x, x) * np.dot(y, y)))
    return float(np.dot(x, y)) / length if length > 0.0 else 0.0
