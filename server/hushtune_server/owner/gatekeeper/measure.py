"""How much did each tensor of an update change? Measured once, for every screen."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf, sqrt

import numpy as np

from hushtune_common.adapter import AdapterState, Float32


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """The change of one tensor.

    ``energy`` is its sum of squares, ``start`` that of the shipped values, ``peak`` the largest magnitude of a change, ``count``
    how many weights there are. Computed in float64, which no float32 values can overflow.
    """

    energy: float
    start: float
    peak: float
    count: int

    @property
    def rms(self) -> float:
        """Root mean square of the change."""
        return sqrt(self.energy / self.count)

    @property
    def rms_start(self) -> float:
        """Root mean square of the shipped values."""
        return sqrt(self.start / self.count)


Changes = Mapping[str, Change]
"""By tensor name."""


def changes(state: AdapterState, *, shipped: AdapterState) -> Changes:
    """Return the change of every tensor of ``state`` from ``shipped``, which has the same tensors; all values are finite."""
    return {name: _change(state.tensors[name], start=tensor) for name, tensor in shipped.tensors.items()}


def whole(found: Changes) -> Change:
    """Return the change of all tensors together."""
    return Change(
        energy=sum(c.energy for c in found.values()),
        start=sum(c.start for c in found.values()),
        peak=max(c.peak for c in found.values()),
        count=sum(c.count for c in found.values()),
    )


def relative(found: Change) -> float:
    """Return |returned - shipped| / |shipped| (Euclidean); infinite for a change from zero."""
    if found.start == 0.0:
        return inf if found.energy > 0.0 else 0.0
    return sqrt(found.energy / found.start)


def _change(tensor: Float32, *, start: Float32) -> Change:
    before = start.astype(np.float64).ravel()
    delta = tensor.ravel() - before
    return Change(
        energy=float(np.dot(delta, delta)),
        start=float(np.dot(before, before)),
        peak=float(np.abs(delta).max()),
        count=tensor.size,
    )
