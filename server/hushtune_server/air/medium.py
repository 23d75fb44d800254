"""What the air does to a frame: one transmission, two receivers."""

from dataclasses import dataclass
from typing import Protocol

from hushtune_common.link.channel import Frame, Reception
from hushtune_common.messages import Transmission
from hushtune_common.seeding import SeedTree
from hushtune_common.units import Decibel, PowerRatio, Second


@dataclass(frozen=True, slots=True, kw_only=True)
class Gains:
    """Linear mean power gains of one client's two links in one round."""

    main: PowerRatio
    tap: PowerRatio

    def __post_init__(self) -> None:
        """Refuse what no link can be."""
        if not (self.main > 0.0 and self.tap >= 0.0):
            raise ValueError(f"gains are positive (the tap's may be zero), got {self.main} and {self.tap}")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Overheard:
    """Both receptions of one transmission, its time on air and the mean SNRs it met."""

    main: Reception
    tap: Reception
    airtime: Second
    snr_main_db: Decibel
    snr_tap_db: Decibel


class Medium(Protocol):
    """Carries a frame to the owner's receiver and to the tap.

    Laws: replaying a key gives equal receptions; main and tap draw independently; indices and sizes of the frame are kept; a
    frame that is not of the transmission's design raises ``MalformedUpdate`` before anything is drawn.
    """

    def carry(self, frame: Frame, *, transmission: Transmission, gains: Gains, seeds: SeedTree) -> Overheard:
        """Return what both listeners hear."""
        ...
