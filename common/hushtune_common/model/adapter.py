"""Adapter blocks out of a model and into it, by original index."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from hushtune_common.adapter import AdapterState, require_matches
from hushtune_common.messages import TensorSpec
from hushtune_common.model.naming import block_of

if TYPE_CHECKING:  # torch stays out of processes that only need the schema
    from hushtune_common.model.indexed import IndexedModel
    from hushtune_common.model.weights import Weights


def adapter_specs(weights: "Weights", blocks: Sequence[int]) -> tuple[TensorSpec, ...]:
    """Return the schema of the given blocks, in order of the blocks and then of the names."""
    named = [(block, name) for name in weights.names() if (block := block_of(name)) in blocks and block is not None]
    return tuple(TensorSpec(name=n, shape=weights.shape(n), dtype="F32", block=b) for b, n in sorted(named))


def extract(model: "IndexedModel", blocks: Sequence[int]) -> AdapterState:
    """Return a copy of the adapter blocks, in the order of `adapter_specs`."""
    parameters = model.adapter_parameters(sorted(blocks))
    ordered = sorted(parameters, key=lambda name: (block_of(name) or 0, name))
    return AdapterState(
        {name: np.array(parameters[name].detach().cpu().numpy(), dtype=np.float32, order="C") for name in ordered}
    )


def insert(model: "IndexedModel", state: AdapterState, *, expected: Sequence[TensorSpec]) -> None:
    """Put the adapter blocks into the model, in place.

    Raises `MalformedUpdate`, naming the tensor and before anything changes, for missing, extra, misshapen or non-finite ones.
    """
    require_matches(state, expected)
    model.set_adapter(state.tensors)
