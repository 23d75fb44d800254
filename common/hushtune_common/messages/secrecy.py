"""How a part of an update is sent: the design of its hash blocks, what protects it, and its public randomness."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from hushtune_common.units import Decibel

BITS_PER_SYMBOL: Final = {"qpsk": 2, "qam16": 4, "qam64": 6}
"""Coded bits per complex symbol, by modulation."""


class TapModel(StrEnum):
    """What a secrecy design assumes of the tap's channel; decides what its design SNR means."""

    FIXED = "fixed"
    """White noise: the SNR is never above the design SNR."""
    OUTAGE = "outage"
    """Rayleigh fading: the SNR of a coherence block is above the design SNR with the outage probability."""
    INTERLEAVED = "interleaved"
    """Rayleigh fading averaged over the coherence blocks of a hash block: the design SNR bounds the mean; no outage."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SecrecyDesign:
    """One hash block of the wiretap code, as designed for an assumed tap SNR.

    A hash block carries ``message_bits`` (payload and CRC-32) beside ``random_bits`` over ``codewords`` words of ``code_bits``
    coded bits each. ``rate`` is message bits per complex symbol; ``log2_delta`` bounds the leakage of one block (total
    variation, mean over the public seed) as long as the tap is no better than ``tap_model`` and ``snr_tap_design_db`` say.
    ``subbands`` counts the coherence blocks of a codeword (0 without fading). Without random bits the block is open: plain
    error correction that hides nothing, with a ``log2_delta`` of 0.
    """

    modulation: str
    code_bits: int
    info_bits: int
    codewords: int
    message_bits: int
    random_bits: int
    snr_tap_design_db: Decibel
    log2_delta: float
    rho: float
    rate: float
    tap_model: TapModel = TapModel.FIXED
    subbands: int = 0

    def __post_init__(self) -> None:
        """Check the accounting of bits."""
        if self.message_bits + self.random_bits != self.codewords * self.info_bits:
            raise ValueError("message and random bits must fill the information words exactly")
        if self.message_bits < 64 or self.message_bits % 8 or self.random_bits % 8 or self.random_bits < 0:
            raise ValueError(f"impossible split: {self.message_bits} message and {self.random_bits} random bits")
        if self.modulation not in BITS_PER_SYMBOL or self.code_bits % 8:
            raise ValueError(f"impossible code: {self.modulation!r} with {self.code_bits} bits")
        if (self.random_bits == 0) != (self.log2_delta >= 0.0):
            raise ValueError("a leakage bound needs random bits, and only an open block has neither")
        if self.subbands < 0 or (self.tap_model is not TapModel.FIXED and self.subbands == 0):
            raise ValueError(f"a design for a fading tap counts its coherence blocks, got {self.subbands}")

    @property
    def secret(self) -> bool:
        """Whether the block hides anything from the tap."""
        return self.random_bits > 0

    @property
    def payload_bytes(self) -> int:
        """Payload of one hash block: message bits less the CRC-32."""
        return self.message_bits // 8 - 4

    @property
    def symbols(self) -> int:
        """Complex symbols of one hash block."""
        return self.codewords * self.code_bits // BITS_PER_SYMBOL[self.modulation]

    @property
    def coded_bytes(self) -> int:
        """Coded bits of one hash block, packed."""
        return self.codewords * self.code_bits // 8

    @property
    def toeplitz_bytes(self) -> int:
        """Bytes of the public seed that fixes the hash; none for an open block."""
        return -(-(self.message_bits + self.random_bits - 1) // 8) if self.secret else 0


class Part(StrEnum):
    """What a transmission carries."""

    PAYLOAD = "payload"
    """The sealed update."""
    KEY = "key"
    """Secret bytes that the seal of the update depends on."""


class Protection(StrEnum):
    """What the physical layer contributes to the secrecy of an update; encryption is there in every case."""

    PAYLOAD = "payload"
    """The sealed update itself travels over the wiretap code."""
    KEY = "key"
    """A key of 32 bytes travels over the wiretap code; the update, sealed with it, over plain error correction."""
    CRYPTO_ONLY = "crypto_only"
    """Nothing: encryption alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkSeed:
    """The public randomness of one part of one update, drawn once by its sender after the message was fixed.

    ``toeplitz`` fixes the hash and ``dither`` whitens the symbols (one bit per coded bit of a hash block); ``tag`` is the
    sender's authenticator, which only the owner can check.
    """

    toeplitz: bytes
    dither: bytes
    tag: bytes

    def __post_init__(self) -> None:
        """Check the tag's form; the other lengths follow from the design."""
        if len(self.tag) != 32:
            raise ValueError(f"an authenticator has 32 bytes, got {len(self.tag)}")

    def require_fits(self, design: SecrecyDesign) -> None:
        """Raise ``ValueError`` unless seed and dither have the lengths that ``design`` asks for."""
        found, wanted = (len(self.toeplitz), len(self.dither)), (design.toeplitz_bytes, design.coded_bytes)
        if found != wanted:
            raise ValueError(
                f"seed and dither of {found[0]} and {found[1]} bytes, the design asks for {wanted[0]} and {wanted[1]}"
            )
