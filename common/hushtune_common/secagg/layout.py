"""How are a scenario's updates laid out as numbers that can be added? The same for owner and clients, from what both have."""

from collections.abc import Sequence

from hushtune_common.aggregation import SecureConfig, digits_for
from hushtune_common.codec.pipeline import codec_id
from hushtune_common.config import Scenario, weight_max
from hushtune_common.messages import TensorSpec
from hushtune_common.model.rates import reach
from hushtune_common.secagg.grid import Grid, grid_of
from hushtune_common.secagg.terms import Layout


def grid_for(scenario: Scenario, schema: Sequence[TensorSpec]) -> Grid:
    """Return the grid of a scenario's rounds; ``ValueError`` unless its aggregation is secure.

    The bound of a change is what training can move a weight at all, so an honest change is cut off only where error feedback or
    another training adds to it.
    """
    options = scenario.owner.aggregation
    if not isinstance(options, SecureConfig):
        raise ValueError("owner.aggregation.kind is not secure: updates are not added")
    # Beyond what the gate takes of a weight nothing may be said either.
    share = min(options.clip_share, scenario.owner.gate.reach_max)
    clip = share * reach(scenario.training, windows=scenario.data.train_windows)
    most = weight_max(scenario)
    digits = digits_for(options.bits, weight_max=most)
    return grid_of(schema, clips={spec.name: clip for spec in schema}, digits=digits, weight_max=most)


def layout_of(grid: Grid) -> Layout:
    """Return what the coordinator is told of a grid."""
    return Layout(grid=grid.digest, words=grid.words)


def payload_id(scenario: Scenario, schema: Sequence[TensorSpec]) -> str:
    """Return the name of the byte format of a scenario's payloads: that of its codec, or that of its sums."""
    if not isinstance(scenario.owner.aggregation, SecureConfig):
        return codec_id(scenario.codec)
    return f"sum-{grid_for(scenario, schema).digest.short}/1"
