"""What a client says of its device and its links."""

from dataclasses import dataclass, replace
from math import floor
from typing import Final

from hushtune_common.messages.identity import ClientId, require_name
from hushtune_common.units import FlopPerSecond, Joule, PowerRatio, Second, Watt

SEALING_BYTES: Final = 1319
"""Most bytes that sealing adds to an encoded adapter; only the envelope knows why it is so many."""
_LEAST, _MOST = 1e-60, 1e60
"""No quantity of a device or link is outside; ratios and products of such numbers stay far inside a float."""
_START: Final = Second(0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Channel:
    """A client's two links at one moment of the air's time, as linear power gains.

    ``gain_tap`` is the *assumed* upper bound on the eavesdropper's gain from where the client then stands, not a measurement.
    """

    at: Second
    gain_main: PowerRatio
    gain_tap: PowerRatio

    def __post_init__(self) -> None:
        """Refuse what no link can be."""
        if not _LEAST <= self.gain_main <= _MOST:
            raise ValueError(f"gain_main: must be from {_LEAST:g} to {_MOST:g}, got {self.gain_main}")
        if not 0.0 <= self.gain_tap <= _MOST:
            raise ValueError(f"gain_tap: must be from 0 to {_MOST:g}, got {self.gain_tap}")
        if not 0.0 <= self.at <= _MOST:
            raise ValueError(f"at: must be from 0 to {_MOST:g} s, got {self.at}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientReport:
    """What a client tells the coordinator about its device and its links.

    ``gain_main`` and ``gain_tap`` are linear power gains; ``gain_tap`` is the *assumed* upper bound on the eavesdropper's gain,
    not a measurement. ``update_bits`` is the size of the sealed update when all bytes of the codec are granted; ``train_flops``
    is the work of training in this round, counted from the emulator and the client's tokens; ``energy_w_per_flops3`` is kappa
    of power = kappa * clock**3. ``sounded_at`` is when the gains were measured, in the air's time.
    """

    client: ClientId
    round_id: int
    gain_main: PowerRatio
    gain_tap: PowerRatio
    power_max: Watt
    clock_max: FlopPerSecond
    energy_max: Joule
    sample_count: int
    update_bits: int
    train_flops: float
    energy_w_per_flops3: float
    sounded_at: Second = _START

    def __post_init__(self) -> None:
        """Refuse values that no device can have."""
        require_name(self.client, of="client")
        for name in ("gain_main", "power_max", "clock_max", "energy_max", "train_flops", "energy_w_per_flops3"):
            value = getattr(self, name)
            if not _LEAST <= value <= _MOST:
                raise ValueError(f"{name}: must be from {_LEAST:g} to {_MOST:g}, got {value}")
        if not 0.0 <= self.gain_tap <= _MOST:
            raise ValueError(f"gain_tap: must be from 0 to {_MOST:g}, got {self.gain_tap}")
        if not 0.0 <= self.sounded_at <= _MOST:
            raise ValueError(f"sounded_at: must be from 0 to {_MOST:g} s, got {self.sounded_at}")
        if self.sample_count < 1 or self.update_bits < 1 or self.round_id < 1:
            raise ValueError("sample_count, update_bits and round_id count from 1")

    @property
    def bytes_full(self) -> int:
        """Bytes of the encoded adapter at a full share: what the sealed update has beside its seal."""
        return max(1, self.update_bits // 8 - SEALING_BYTES)

    def budget_bytes(self, share: float) -> int:
        """Return the most bytes of the encoded adapter that a share of it grants."""
        return max(1, floor(share * self.bytes_full))

    def sealed_bits(self, budget_bytes: int) -> int:
        """Return the size of the sealed update when the encoded adapter has so many bytes."""
        return self.update_bits - 8 * (self.bytes_full - budget_bytes)

    @property
    def channel(self) -> Channel:
        """Both links, as this report has them."""
        return Channel(at=self.sounded_at, gain_main=self.gain_main, gain_tap=self.gain_tap)

    def on(self, channel: Channel) -> "ClientReport":
        """Return the report of the same device on another channel."""
        return replace(self, gain_main=channel.gain_main, gain_tap=channel.gain_tap, sounded_at=channel.at)
