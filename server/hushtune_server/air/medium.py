"""What the air does to a frame: one transmission, two receivers, chunk by chunk."""

from dataclasses import dataclass
from typing import Final, Protocol

from hushtune_common.config import Scenario
from hushtune_common.errors import MalformedUpdate
from hushtune_common.link.fidelity import Fidelity
from hushtune_common.link.frame import FrameChunk, FrameLayout
from hushtune_common.link.mcs import point_of
from hushtune_common.link.reception import Reception
from hushtune_common.link.secrecy import snr
from hushtune_common.messages import Listener, Transmission
from hushtune_common.seeding import SeedTree
from hushtune_common.units import PowerRatio

_SNR_RANGE: Final = (1e-30, 1e30)
"""Linear; outside, single-precision arithmetic says nothing about a signal."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gains:
    """Linear mean power gains of one client's two links in one round."""

    main: PowerRatio
    tap: PowerRatio

    def __post_init__(self) -> None:
        """Refuse what no link can be."""
        if not (self.main > 0.0 and self.tap >= 0.0):
            raise ValueError(f"gains are positive (the tap's may be zero), got {self.main} and {self.tap}")

    def of(self, listener: Listener) -> PowerRatio:
        """Return the gain of one of the two links."""
        return self.main if listener is Listener.MAIN else self.tap


class Medium(Protocol):
    """Carries a chunk of a frame to one of the two receivers.

    Laws: replaying a chunk gives an equal reception, whatever was heard before or in between; main and tap draw independently;
    indices and sizes are kept; a chunk that is not of the transmission's design, part or the scenario's fidelity raises
    ``MalformedUpdate`` before anything is drawn. A frame's receptions are the same however its chunks are ordered.
    """

    def hear(
        self, chunk: FrameChunk, *, listener: Listener, transmission: Transmission, gain: PowerRatio, seeds: SeedTree
    ) -> Reception:
        """Return what ``listener`` hears over its link of mean power ``gain``; ``seeds`` are the air's own."""
        ...


def stream_of(transmission: Transmission, listener: Listener, seeds: SeedTree) -> SeedTree:
    """Return the randomness of one listener of one transmission; no two share any."""
    key = transmission.key
    return seeds.child(key.run, str(key.round_id), key.client, str(key.attempt), listener.value)


def level(transmission: Transmission, gain: PowerRatio) -> PowerRatio:
    """Return the mean symbol SNR at a receiver (linear); ``MalformedUpdate`` when nothing can be heard there."""
    ratio = snr(power=transmission.power, gain=gain, bandwidth=transmission.bandwidth)
    if not _SNR_RANGE[0] <= ratio <= _SNR_RANGE[1]:
        raise MalformedUpdate(f"power_w: nothing can be heard at {transmission.power:g} W over {transmission.bandwidth:g} Hz")
    return ratio


def require_known(layout: FrameLayout, *, transmission: Transmission, scenario: Scenario) -> None:
    """Raise ``MalformedUpdate`` unless a frame is what its transmission announces and what this air can carry."""
    design, fidelity = transmission.design, Fidelity(scenario.air.fidelity)
    if layout.fidelity is not fidelity:
        raise MalformedUpdate(f"the air runs {fidelity}, the frame is {layout.fidelity}")
    if layout.part is not transmission.part:
        raise MalformedUpdate(f"part: the frame holds the {layout.part}, the {transmission.part} was announced")
    if (layout.block_bytes, layout.coded_bytes) != (design.payload_bytes, design.coded_bytes):
        raise MalformedUpdate(
            f"blocks of {layout.block_bytes} bytes, {layout.coded_bytes} when coded, but the design carries "
            f"{design.payload_bytes} in {design.coded_bytes}"
        )
    # Work grows with the codewords of a block: their number is the scenario's to choose, not a client's.
    if design.codewords != scenario.secrecy.codewords:
        raise MalformedUpdate(f"design.codewords: secrecy.codewords is {scenario.secrecy.codewords}, got {design.codewords}")
    try:
        point_of(design)
    except ValueError as error:
        raise MalformedUpdate(f"design: {error}") from error
