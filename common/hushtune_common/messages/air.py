"""What goes on air: the sealed update, the order to transmit it, and what comes back of it."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from hushtune_common.messages.identity import Digest, UpdateKey
from hushtune_common.messages.secrecy import LinkSeed, Part, SecrecyDesign
from hushtune_common.units import Hertz, Second, Watt

BLOCKS_MAX: Final = 2**20
"""Most hash blocks of one part: bounds receipts and bookkeeping whatever a peer announces."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SealedUpdate:
    """An encrypted adapter: authenticated public parameters and an opaque body."""

    key: UpdateKey
    emulator: Digest
    public: bytes
    body: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Transmission:
    """A client's order to the air: which frame to send, and how. ``key.attempt`` counts the transmissions of all parts."""

    key: UpdateKey
    part: Part
    frame: Digest
    frame_bytes: int
    design: SecrecyDesign
    seed: LinkSeed
    power: Watt
    bandwidth: Hertz

    def __post_init__(self) -> None:
        """Check the form."""
        if self.frame_bytes < 1 or not (self.power > 0.0 and self.bandwidth > 0.0):
            raise ValueError("a transmission needs a frame, power and bandwidth")
        self.seed.require_fits(self.design)


class Listener(StrEnum):
    """Which of the air's two receivers."""

    MAIN = "main"
    TAP = "tap"


@dataclass(frozen=True, slots=True, kw_only=True)
class ReceptionNotice:
    """The air's announcement that a listener can hear a transmission. ``seq`` numbers the transmissions from 1.

    ``blocks`` counts the hash blocks of its frame, ``update_bytes`` is the size of the whole part; ``acknowledged`` says that the
    owner has answered before, so that what was sent can no longer be heard.
    """

    seq: int
    listener: Listener
    transmission: Transmission
    blocks: int
    update_bytes: int
    fidelity: str
    airtime: Second
    acknowledged: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """The owner's answer to one transmission: which blocks of its part are still missing, by index in the whole part."""

    key: UpdateKey
    missing: tuple[int, ...]
