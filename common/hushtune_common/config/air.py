"""What a scenario says of places, channels and the eavesdropper, and what secrecy assumes of them."""

from typing import Annotated, Literal

from msgspec import Meta

from hushtune_common.schema import Name, NotNegative, Positive, Section, Share


class Position(Section, frozen=True):
    """A place on the map, in metres; the owner's receiver stands at the origin."""

    x_m: float
    """Metres east of the owner's receiver."""
    y_m: float
    """Metres north of it."""


class ClientConfig(Section, frozen=True):
    """One data owner: its device and its place."""

    id: Name
    """Its name in certificates, logs and reports."""
    position: Position
    clock_max_flops: Positive = 2.0e12
    """Fastest that its processor computes; what it is assigned is at most this."""
    power_max_w: Positive = 0.2
    """Most that its transmitter radiates."""
    energy_max_j: Positive = 5_000.0
    """Modelled energy for one round's training; a client that would need more takes no part in the round."""
    energy_w_per_flops3: Positive = 1.0e-36
    """kappa of ``power = kappa * clock**3``; 1e-36 gives 8 W at 2 TFLOP/s."""


class MoveConfig(Section, frozen=True):
    """A client that stands somewhere else from a moment on."""

    client: Name
    """Which one, by its id."""
    after_s: NotNegative
    """Seconds after anybody first sounded the air."""
    position: Position


class AirConfig(Section, frozen=True):
    """Physics of the wiretap link."""

    fidelity: Literal["bit_exact", "abstract", "hybrid"] = "bit_exact"
    """``bit_exact`` modulates and decodes every bit, ``abstract`` draws block errors from tables and hands bytes over, ``hybrid``
    does the first on a share of the blocks and the second on the rest, and checks that the two agree."""
    hybrid_share: Share = 0.05
    """Share of hash blocks that travel bit by bit, with ``hybrid``."""
    metered_blocks: Annotated[int, Meta(ge=0, le=1_048_576)] = 256
    """Hash blocks per transmission whose realised information density at the tap is computed, for the referee."""
    fading: Literal["none", "rayleigh_block"] = "none"
    """Beside shadowing: none, or Rayleigh fading that stays as it is for the length of a coherence block."""
    bandwidth_hz: Positive = 20e6
    """Band that the clients of a round share."""
    shadowing_db: NotNegative = 4.0
    """Standard deviation of log-normal shadowing; 4 dB is 3GPP's urban micro cell in line of sight, about 8 without."""
    eavesdropper: Position = Position(x_m=450.0, y_m=0.0)
    subbands: Annotated[int, Meta(ge=1, le=256)] = 16
    """Coherence blocks that a codeword is interleaved over, with ``rayleigh_block``."""
    coherence_s: NotNegative = 0.0
    """Shadowing wanders: after this time it resembles itself by 1/e, on both links of every client; 0: it stays for a round."""
    moves: tuple[MoveConfig, ...] = ()
    """Who stands somewhere else later on; both gains follow."""
    sounding_s: Annotated[float, Meta(ge=0.1)] = 5.0
    """How often a client that trains measures its channel anew; it always does before it sends."""

    def __post_init__(self) -> None:
        """Bound the work of following the channel through time."""
        if 0.0 < self.coherence_s < 1.0:
            raise ValueError(f"coherence_s: 0, or at least 1 s, got {self.coherence_s:g}")

    @property
    def changes(self) -> bool:
        """Whether gains depend on time."""
        return bool(self.moves) or (self.coherence_s > 0.0 and self.shadowing_db > 0.0)

    def place(self, client: ClientConfig, *, at: float) -> Position:
        """Return where a client stands ``at`` seconds after the first sounding."""
        own = (m for m in sorted(self.moves, key=lambda m: m.after_s) if m.client == client.id and m.after_s <= at)
        return next(reversed([client.position, *(m.position for m in own)]))


class EavesdropperConfig(Section, frozen=True):
    """How hard the eavesdropper tries."""

    decode_share: Share = 1.0
    """Share of the hash blocks that it decodes, drawn at random; what it says then holds for the sample."""
    iterations: Annotated[int, Meta(ge=1, le=200)] = 24
    """Decoder iterations, at most."""
    distinguish_blocks: Annotated[int, Meta(ge=0, le=100_000)] = 1500
    """Hash blocks of its own making, per update, on which it learns and tests to tell two messages apart; 0 leaves it out."""


class SecrecyConfig(Section, frozen=True):
    """What the secrecy gate demands and assumes."""

    protections: Annotated[tuple[Literal["payload", "key", "crypto_only"], ...], Meta(min_length=1)] = ("payload",)
    """What may protect an update, the preferred first: the first that can be met is taken; when none can, the client is refused.
    ``payload``: the sealed update over the wiretap code. ``key``: a key over the wiretap code, the update sealed with it over
    plain error correction. ``crypto_only``: encryption alone, marked as such."""
    randomness: Literal["os", "seeded"] = "os"
    """Where random bits, hash seed and dither come from. ``seeded`` makes runs repeatable and nothing secret, and says so."""
    log2_delta: Annotated[float, Meta(le=-1.0, ge=-512.0)] = -64.0
    """Leakage bound per hash block."""
    block_error_max: Annotated[float, Meta(gt=0.0, lt=1.0)] = 1e-2
    """Error rate of hash blocks at the owner up to which a coding point counts as decodable; lost blocks are coded anew."""
    message_bits_min: Annotated[int, Meta(ge=64)] = 512
    """Fewest secret bits of a hash block that make a design worth sending."""
    tap_margin_db: float = 12.0
    """Added to the tap's deterministic path gain to get the assumed upper bound (3 sigma of 4 dB shadowing by default)."""
    fading_design: Literal["outage", "interleaved"] = "outage"
    """With fading: bound the tap's SNR in each coherence block, up to ``tap_outage``, or average over all of a hash block."""
    tap_outage: Annotated[float, Meta(gt=0.0, lt=1.0)] = 1e-3
    """Secrecy outage probability of the ``outage`` design."""
    main_margin_db: NotNegative = 0.5
    """Power kept above the coding point's threshold."""
    codewords: Annotated[int, Meta(ge=1, le=16)] = 4
    """LDPC codewords that one hash block is spread over; more hide better and are decoded later."""
