"""Who hears whom how well: path loss from the map, shadowing from the seeds."""

from hushtune_common.config import Scenario
from hushtune_common.link.secrecy import distance_between, path_gain
from hushtune_common.messages import Listener
from hushtune_common.seeding import SeedTree
from hushtune_common.units import Metre, PowerRatio, from_db
from hushtune_server.air.medium import Gains


class Geography:
    """Mean gains of every link: deterministic path loss times log-normal shadowing, drawn per link and round.

    The owner's receiver stands at the origin. The same seeds give the same gains, whatever the order of calls.
    """

    def __init__(self, scenario: Scenario, seeds: SeedTree) -> None:
        """Take the map from the scenario and the air's own seeds."""
        self._scenario = scenario
        self._seeds = seeds.child("shadowing")

    def gain_main(self, client_id: str, round_id: int) -> PowerRatio:
        """Return the client's gain to the owner in a round, as its pilot shows it; ``ConfigError`` for an unknown client."""
        place = self._scenario.client(client_id).position
        distance = Metre((place.x_m**2 + place.y_m**2) ** 0.5)
        return PowerRatio(path_gain(distance) * self._shadowing(client_id, round_id, Listener.MAIN))

    def gain_tap(self, client_id: str, round_id: int) -> PowerRatio:
        """Return the client's true gain to the eavesdropper in a round, known to nobody but the air and the tap itself."""
        place = self._scenario.client(client_id).position
        distance = distance_between(place, self._scenario.air.eavesdropper)
        return PowerRatio(path_gain(distance) * self._shadowing(client_id, round_id, Listener.TAP))

    def gains(self, client_id: str, round_id: int) -> Gains:
        """Return both."""
        return Gains(main=self.gain_main(client_id, round_id), tap=self.gain_tap(client_id, round_id))

    def _shadowing(self, client_id: str, round_id: int, listener: Listener) -> PowerRatio:
        rng = self._seeds.child(listener.value, client_id, str(round_id)).generator()
        return from_db(self._scenario.air.shadowing_db * float(rng.standard_normal()))
