"""Did one tensor change out of all proportion to the others of the same update?"""

from collections.abc import Mapping
from math import exp, log
from statistics import median

from hushtune_server.owner.gatekeeper.finding import Finding
from hushtune_server.owner.gatekeeper.measure import Change, Changes

NORMAL_MAD = 1.4826
"""The standard deviation of a normal variable over its median absolute deviation."""

_SMALL = 0.1
"""Weights smaller than this share of the usual size are taken to have that size: zeros have no relative change."""


def outstanding(found: Changes, *, norm_max: float, spread_max: float) -> Finding | None:
    """Refuse an update of which a tensor's relative change exceeds ``norm_max`` times the median over its tensors ...

    ... and lies, on a logarithmic scale, more than ``spread_max`` robust standard deviations (1.4826 times the median absolute
    deviation) above it. Tensors that did not change count for neither. Both are multiples, so the size of the update as a whole
    does not matter; fewer than half of the tensors cannot move either limit far.
    """
    sizes = relative_sizes(found)
    if not sizes:
        return None
    typical = median(sizes.values())
    spread = median(abs(log(size / typical)) for size in sizes.values())
    name = max(sizes, key=lambda n: sizes[n])
    ratio, limit = sizes[name] / typical, max(norm_max, exp(min(spread_max * NORMAL_MAD * spread, 700.0)))
    if ratio <= limit:
        return None
    problem = f"{name} changed by {ratio:.3g}x the median of the tensors"
    return Finding(setting="owner.gate.tensor_norm_max", value=ratio, limit=limit, problem=problem)


def relative_sizes(found: Changes) -> Mapping[str, float]:
    """Return the relative change of each tensor that changed, by name."""
    usual = median(change.rms_start for change in found.values())
    return {name: _size(change, usual=usual) for name, change in found.items() if change.energy > 0.0}


def _size(change: Change, *, usual: float) -> float:
    start = max(change.rms_start, _SMALL * usual)
    return change.rms / start if start > 0.0 else change.rms
