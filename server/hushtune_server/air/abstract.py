"""The abstract medium: block errors drawn from tables, bytes handed over as they are."""

from hushtune_common.config import Scenario
from hushtune_common.errors import MalformedUpdate
from hushtune_common.link.abstraction import Fading, hear
from hushtune_common.link.channel import Frame, Reception
from hushtune_common.link.fidelity import Fidelity
from hushtune_common.link.mcs import point_of
from hushtune_common.link.secrecy import snr
from hushtune_common.link.wiretap import airtime
from hushtune_common.messages import Listener, Transmission
from hushtune_common.seeding import SeedTree
from hushtune_common.units import PowerRatio, to_db
from hushtune_server.air.medium import Gains, Medium, Overheard


class AbstractMedium:
    """Draws which hash blocks each listener decodes at its own SNR; makes no claim about bits."""

    def __init__(self, scenario: Scenario) -> None:
        """Take from the scenario the fading that both links go through, each with its own draws."""
        self._fading = Fading.of(scenario.air)

    def carry(self, frame: Frame, *, transmission: Transmission, gains: Gains, seeds: SeedTree) -> Overheard:
        """Return what both listeners hear; the draws depend on the key and the listener only."""
        _check_design(frame, transmission)
        snr_main = snr(power=transmission.power, gain=gains.main, bandwidth=transmission.bandwidth)
        snr_tap = snr(power=transmission.power, gain=gains.tap, bandwidth=transmission.bandwidth)
        return Overheard(
            main=self._hear(frame, Listener.MAIN, snr_main, transmission, seeds),
            tap=self._hear(frame, Listener.TAP, snr_tap, transmission, seeds),
            airtime=airtime(transmission.design, blocks=frame.count, bandwidth=transmission.bandwidth),
            snr_main_db=to_db(snr_main),
            snr_tap_db=to_db(snr_tap),
        )

    def _hear(self, frame: Frame, who: Listener, level: PowerRatio, transmission: Transmission, seeds: SeedTree) -> Reception:
        key = transmission.key
        own = seeds.child(key.run, str(key.round_id), key.client, str(key.attempt), who.value)
        return hear(frame, listener=who, design=transmission.design, snr=level, fading=self._fading, seeds=own)


def _check_design(frame: Frame, transmission: Transmission) -> None:
    design = transmission.design
    if frame.fidelity is not Fidelity.ABSTRACT:
        raise MalformedUpdate(f"the air runs {Fidelity.ABSTRACT.value}, the frame is {frame.fidelity.value}")
    if frame.block_bytes != design.payload_bytes:
        raise MalformedUpdate(f"blocks of {frame.block_bytes} bytes, but the design carries {design.payload_bytes}")
    try:
        point_of(design)
    except ValueError as error:
        raise MalformedUpdate(f"transmission: {error}") from error


_conforms: type[Medium] = AbstractMedium
