"""Who hears whom how well, and when: path loss from the map, shadowing from the seeds, either over time if a scenario says so."""

from math import exp, sqrt
from typing import Final

import numpy as np
import numpy.typing as npt

from hushtune_common.config import Scenario
from hushtune_common.link.secrecy import distance_between, path_gain
from hushtune_common.messages import Listener
from hushtune_common.seeding import SeedTree
from hushtune_common.units import Metre, PowerRatio, Second, from_db
from hushtune_server.air.medium import Gains

_STEPS_PER_COHERENCE: Final = 32
"""Shadowing stands still in between: with 4 dB it then steps by about 1 dB."""
_STEPS_FELT: Final = 64 * _STEPS_PER_COHERENCE
"""What is longer ago weighs less than exp(-64), so nothing in a float."""
_KEPT: Final = exp(-1.0 / _STEPS_PER_COHERENCE)
_START: Final = Second(0.0)

Values = npt.NDArray[np.float64]


class Geography:
    """Mean gains of every link: deterministic path loss times log-normal shadowing.

    The owner's receiver stands at the origin. Shadowing is drawn per link and round; with ``air.coherence_s`` it wanders instead,
    through all rounds, from what a still channel has in the first. The same seeds give the same gains, whatever the order of
    calls; ``at`` is seconds after the first sounding.
    """

    def __init__(self, scenario: Scenario, seeds: SeedTree) -> None:
        """Take the map from the scenario and the air's own seeds."""
        self._scenario = scenario
        self._seeds = seeds.child("shadowing")

    def gain_main(self, client_id: str, round_id: int, *, at: Second = _START) -> PowerRatio:
        """Return the client's gain to the owner in a round, as its pilot shows it; ``ConfigError`` for an unknown client."""
        place = self._scenario.air.place(self._scenario.client(client_id), at=at)
        distance = Metre((place.x_m**2 + place.y_m**2) ** 0.5)
        return PowerRatio(path_gain(distance) * self._shadowing(client_id, round_id, Listener.MAIN, at))

    def gain_tap(self, client_id: str, round_id: int, *, at: Second = _START) -> PowerRatio:
        """Return the client's true gain to the eavesdropper in a round, known to nobody but the air and the tap itself."""
        place = self._scenario.air.place(self._scenario.client(client_id), at=at)
        distance = distance_between(place, self._scenario.air.eavesdropper)
        return PowerRatio(path_gain(distance) * self._shadowing(client_id, round_id, Listener.TAP, at))

    def gains(self, client_id: str, round_id: int, *, at: Second = _START) -> Gains:
        """Return both."""
        return Gains(main=self.gain_main(client_id, round_id, at=at), tap=self.gain_tap(client_id, round_id, at=at))

    def _shadowing(self, client_id: str, round_id: int, listener: Listener, at: Second) -> PowerRatio:
        air = self._scenario.air
        if air.coherence_s == 0.0:
            rng = self._seeds.child(listener.value, client_id, str(round_id)).generator()
            return from_db(air.shadowing_db * float(rng.standard_normal()))
        # Gudmundson (1991): shadowing in dB is a Gauss-Markov process, here over time instead of way.
        steps = int(at * _STEPS_PER_COHERENCE / air.coherence_s)
        recent = self._fresh(self._seeds.child(listener.value, client_id, "1"), steps)
        return from_db(air.shadowing_db * float(_KEPT ** np.arange(len(recent) - 1.0, -1.0, -1.0) @ recent))

    def _fresh(self, seeds: SeedTree, step: int) -> Values:
        """Return what each of the latest steps brings, of at most two blocks: the work does not grow with time."""
        block, within = divmod(step, _STEPS_FELT)
        parts = [_steps(seeds, block, within + 1)]
        if block:
            parts.insert(0, _steps(seeds, block - 1, _STEPS_FELT))
        return np.concatenate(parts)


def _steps(seeds: SeedTree, block: int, count: int) -> Values:
    """Return the first ``count`` steps of a block; the very first of all is the whole of a still channel's shadowing."""
    fresh = (seeds.child(str(block)) if block else seeds).generator().standard_normal(count)
    fresh[0 if block else 1 :] *= sqrt(1.0 - _KEPT**2)
    return fresh
