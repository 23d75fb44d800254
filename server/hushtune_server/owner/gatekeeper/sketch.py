"""What is kept of each update of a round to hold the others against it? Its norm, and a sample of its changes."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hushtune_common.adapter import AdapterState, Float32
from hushtune_common.seeding import NoiseRng

WEIGHTS = 1 << 18
"""Weights in a sketch: cosines are then off by about 0.002, and 64 clients take 64 MiB."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Sketch:
    """One update: the Euclidean ``norm`` of its whole change, and a ``sample`` (S,) of its changes over that norm.

    The same weights for all; zero throughout when nothing changed.
    """

    norm: float
    sample: Float32


class Sampler:
    """Takes sketches of changes from one shipped adapter.

    Which weights are looked at is drawn from ``rng``, with repetition. Who trains must not know them: an update could behave well
    there and nowhere else.
    """

    def __init__(self, shipped: AdapterState, *, rng: NoiseRng, weights: int = WEIGHTS) -> None:
        """Draw the weights; of an adapter with fewer all are looked at, once."""
        drawn = np.sort(rng.integers(shipped.count, size=weights)) if shipped.count > weights else np.arange(shipped.count)
        self._indices = _by_tensor(drawn, shipped=shipped)
        self._start = self._values(shipped)

    def sketch(self, state: AdapterState, *, norm: float) -> Sketch:
        """Return what is kept of ``state``, whose change has this ``norm``."""
        change = self._values(state).astype(np.float64) - self._start  # float32 values can differ by more than float32 holds
        return Sketch(norm=norm, sample=(change / norm if norm > 0.0 else 0.0 * change).astype(np.float32))

    def _values(self, state: AdapterState) -> Float32:
        return np.concatenate([state.tensors[name].reshape(-1)[at] for name, at in self._indices.items()])


def _by_tensor(drawn: NDArray[np.int64], *, shipped: AdapterState) -> Mapping[str, NDArray[np.int64]]:
    """Split indices into all weights, which ascend, into indices into each tensor."""
    found: dict[str, NDArray[np.int64]] = {}
    begin = 0
    for name, tensor in shipped.tensors.items():
        low, high = np.searchsorted(drawn, [begin, begin + tensor.size])
        found[name] = drawn[low:high] - begin
        begin += tensor.size
    return found
