"""How the adapters of several clients become one: the weighted mean."""

from collections.abc import Sequence
from math import isfinite

import numpy as np

from hushtune_common.adapter import AdapterState, Float32


def mean(states: Sequence[tuple[AdapterState, float]]) -> AdapterState:
    """Return the mean of the states, weighted by the positive number beside each (McMahan et al. 2017, federated averaging).

    Laws: the mean of equal states is that state, bit for bit; only ratios of weights matter; every element lies between the
    smallest and the largest. ``ValueError`` without states, for other weights, or for states of different tensors.
    """
    if not states:
        raise ValueError("a mean needs at least one state")
    total = sum(weight for _, weight in states)
    if not isfinite(total) or any(not weight > 0.0 for _, weight in states):
        raise ValueError(f"weights are positive and finite, got {[weight for _, weight in states]}")
    first = states[0][0]
    for state, _ in states[1:]:
        _require_same_tensors(state, first)
    shares = [weight / total for _, weight in states]
    return AdapterState({name: _tensor_mean([s.tensors[name] for s, _ in states], shares) for name in first.tensors})


def _tensor_mean(tensors: Sequence[Float32], shares: Sequence[float]) -> Float32:
    # Deviations from the first tensor, not values: where all agree nothing is rounded.
    start = tensors[0].astype(np.float64)
    total = np.zeros_like(start)
    for tensor, share in zip(tensors[1:], shares[1:], strict=True):
        total += share * (tensor - start)
    return (start + total).astype(np.float32)


def _require_same_tensors(state: AdapterState, first: AdapterState) -> None:
    for name in first.tensors.keys() | state.tensors.keys():
        known, found = first.tensors.get(name), state.tensors.get(name)
        if known is None or found is None or known.shape != found.shape:
            raise ValueError(f"{name}: not the same tensor in every state")
