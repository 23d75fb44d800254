"""What the coordinator grants to a client, and with which numbers."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from hushtune_common.messages.identity import ClientId
from hushtune_common.messages.reports import Channel
from hushtune_common.messages.secrecy import Part, Protection, SecrecyDesign
from hushtune_common.units import Decibel, FlopPerSecond, Hertz, Second, Watt

_BUDGET_MOST: Final = 2**60


class GateDecision(StrEnum):
    """What the secrecy gate decided."""

    GRANTED = "granted"
    DEFERRED = "deferred"
    EXCLUDED = "excluded"


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """The secrecy gate's decision with the numbers that decided it.

    ``rate_coded`` is what the code delivers, ``rate_gaussian`` the textbook difference of logarithms (a labelled baseline); both
    in bit per complex symbol.
    """

    decision: GateDecision
    reason: str
    snr_main_db: Decibel
    snr_tap_bound_db: Decibel
    block_error_rate: float
    rate_coded: float
    rate_gaussian: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """What the coordinator expects of one client's round, to be compared with what came; a mean over retransmissions.

    ``wait_s`` is before training, ``plug_in_s`` the owner's work for this client; energies are modelled.
    """

    wait_s: float
    train_s: float
    airtime_s: float
    plug_in_s: float
    compute_j: float
    radio_j: float
    update_bits: float

    @property
    def total_s(self) -> float:
        """When the update is plugged in, after the round's start."""
        return self.wait_s + self.train_s + self.airtime_s + self.plug_in_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """What the coordinator assigns to one client for one round.

    ``adapter_share`` is phi, the share of the bytes that a full update may have; ``budget_bytes`` is what that comes to: the most
    bytes of the encoded adapter, before it is sealed. A granted assignment names its ``protection``: the wiretap ``design``
    carries the update or its key, the open ``carrier`` what travels without a hash. ``channel`` is what all of it was made for.
    """

    client: ClientId
    round_id: int
    gate: Gate
    adapter_share: float
    budget_bytes: int
    bandwidth: Hertz
    power: Watt
    clock: FlopPerSecond
    secrecy_rate_bps: float
    deadline: Second
    protection: Protection | None
    design: SecrecyDesign | None
    carrier: SecrecyDesign | None
    planned: Planned | None = None
    channel: Channel | None = None

    def __post_init__(self) -> None:
        """A granted assignment has the designs of its protection, any other has none."""
        if (self.gate.decision is GateDecision.GRANTED) != (self.protection is not None):
            raise ValueError("an assignment has a protection exactly when its gate is granted")
        if (self.design is not None) != (self.protection in {Protection.PAYLOAD, Protection.KEY}):
            raise ValueError("a wiretap design belongs to the protections payload and key")
        if (self.carrier is not None) != (self.protection in {Protection.KEY, Protection.CRYPTO_ONLY}):
            raise ValueError("an open carrier belongs to the protections key and crypto_only")
        if not (self.design is None or self.design.secret) or (self.carrier is not None and self.carrier.secret):
            raise ValueError("the wiretap design hides its message, the carrier does not")
        if not 0.0 < self.adapter_share <= 1.0:
            raise ValueError(f"adapter_share: must be in (0, 1], got {self.adapter_share}")
        if not 1 <= self.budget_bytes <= _BUDGET_MOST:
            raise ValueError(f"budget_bytes: from 1 to {_BUDGET_MOST}, got {self.budget_bytes}")

    @property
    def parts(self) -> tuple[Part, ...]:
        """What has to be sent, in order; nothing unless the gate granted."""
        match self.protection:
            case None:
                return ()
            case Protection.KEY:
                return (Part.KEY, Part.PAYLOAD)
            case Protection.PAYLOAD | Protection.CRYPTO_ONLY:
                return (Part.PAYLOAD,)

    def design_of(self, part: Part) -> SecrecyDesign:
        """Return how ``part`` is sent; ``ValueError`` when it is not."""
        design = self.carrier if part is Part.PAYLOAD and self.protection is not Protection.PAYLOAD else self.design
        if design is None or part not in self.parts:
            raise ValueError(f"this assignment sends no {part}")
        return design
