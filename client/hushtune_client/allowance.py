"""How far may what is sent move one weight? As far as the owner's gate takes, or as far as the client's own training went."""

import numpy as np

from hushtune_common.adapter import AdapterState, Float32
from hushtune_common.config import Scenario
from hushtune_common.model.rates import allowed, furthest


def allowance(scenario: Scenario, *, round_id: int) -> float:
    """Return how far the owner's gate lets an update of ``round_id`` move a weight; infinite where it does not look."""
    reach = furthest(scenario.training, windows=scenario.data.train_windows, round_id=round_id)
    return allowed(reach, reach_max=scenario.owner.gate.reach_max)


def change_max(trained: AdapterState, *, shipped: AdapterState, gate: float) -> float:
    """Return how far the encoded change of ``trained`` may move a weight.

    What coding and the residual add is cut off at ``gate``; what training did is not. The owner's gate refuses training that went
    further, and says so, which a client with tools of its own had better hear.
    """
    went = max(_furthest(t, shipped.tensors[n]) for n, t in trained.tensors.items())
    return max(gate, went * (1.0 + 2.0**-20))  # a hair more, so that nothing that was trained is touched


def beyond(wanted: AdapterState, *, shipped: AdapterState, limit: float) -> int:
    """Return how many numbers of ``wanted`` lie further than ``limit`` from the shipped ones."""
    changes = (t.astype(np.float64) - shipped.tensors[n] for n, t in wanted.tensors.items())
    return sum(int(np.count_nonzero(np.abs(change) > limit)) for change in changes)


def _furthest(returned: Float32, start: Float32) -> float:
    return float(np.abs(returned.astype(np.float64) - start).max(initial=0.0))
