"""What the processes say to each other: ids, digests, manifests, reports, assignments, updates, verdicts.

Values are frozen and validated where they are made; whoever holds one may trust its form.
"""

import hashlib
import re
from dataclasses import dataclass, replace
from enum import StrEnum
from itertools import pairwise
from math import floor, isfinite
from typing import Final, NamedTuple, NewType

from hushtune_common.units import Decibel, FlopPerSecond, Hertz, Joule, PowerRatio, Second, Watt

RunId = NewType("RunId", str)
ClientId = NewType("ClientId", str)

_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
BITS_PER_SYMBOL: Final = {"qpsk": 2, "qam16": 4, "qam64": 6}
"""Coded bits per complex symbol, by modulation."""
SEALING_BYTES: Final = 1319
"""Most bytes that sealing adds to an encoded adapter; only the envelope knows why it is so many."""
BLOCKS_MAX: Final = 2**20
"""Most hash blocks of one part: bounds receipts and bookkeeping whatever a peer announces."""
_LEAST, _MOST = 1e-60, 1e60
"""No quantity of a device or link is outside; ratios and products of such numbers stay far inside a float."""
_START: Final = Second(0.0)
_BUDGET_MOST: Final = 2**60
CURVE_POINTS_MAX: Final = 64
"""Most measurements behind a curve."""
_CURVE_LEAST, _CURVE_MOST, _SHAPE_MOST = 1e-12, 1e12, 32.0
"""Of a curve's weight, offset and shape; a steeper curve would be a step."""


class Role(StrEnum):
    """Who a process is, as its certificate says."""

    OWNER = "owner"
    COORDINATOR = "coordinator"
    AIR = "air"
    EAVESDROPPER = "eavesdropper"
    CLIENT = "client"
    OPERATOR = "operator"


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """The identity in a peer's certificate, ``hushtune://ROLE/NAME``."""

    role: Role
    name: str

    def __post_init__(self) -> None:
        """Refuse names that could not stand in a path or a URI."""
        require_name(self.name, of="caller name")

    @property
    def uri(self) -> str:
        """The subject alternative name."""
        return f"hushtune://{self.role}/{self.name}"

    @staticmethod
    def from_uri(uri: str) -> "Caller":
        """Parse a subject alternative name; ``ValueError`` when it is not one of ours."""
        scheme, _, rest = uri.partition("://")
        role, _, name = rest.partition("/")
        if scheme != "hushtune" or role not in {*Role}:  # Python 3.11: ``str in StrEnum`` raises
            raise ValueError(f"not a Hushtune identity: {uri!r}")
        return Caller(role=Role(role), name=name)


def require_name(name: str, *, of: str) -> None:
    """Raise ``ValueError`` unless ``name`` is 1 to 63 of a-z, 0-9 and '-', not starting with '-'."""
    if not _NAME.fullmatch(name):
        raise ValueError(f"{of}: use 1 to 63 of a-z, 0-9 and '-', got {name!r}")


@dataclass(frozen=True, slots=True)
class Digest:
    """A SHA-256 digest."""

    value: bytes

    def __post_init__(self) -> None:
        """Refuse other lengths."""
        if len(self.value) != 32:
            raise ValueError(f"a SHA-256 digest has 32 bytes, got {len(self.value)}")

    @property
    def hex(self) -> str:
        """Lower-case hexadecimal, 64 characters."""
        return self.value.hex()

    @property
    def short(self) -> str:
        """The first 12 hexadecimal characters, for people."""
        return self.value.hex()[:12]

    @staticmethod
    def of(data: bytes | bytearray | memoryview) -> "Digest":
        """Return the digest of ``data``."""
        return Digest(hashlib.sha256(data).digest())

    @staticmethod
    def from_hex(text: str) -> "Digest":
        """Parse 64 hexadecimal characters."""
        return Digest(bytes.fromhex(text))


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateKey:
    """The idempotency key of everything about one client's update. ``attempt`` counts from 1."""

    run: RunId
    round_id: int
    client: ClientId
    attempt: int

    def __post_init__(self) -> None:
        """Check names and ranges."""
        require_name(self.run, of="run")
        require_name(self.client, of="client")
        if self.round_id < 1 or self.attempt < 1:
            raise ValueError(f"rounds and attempts count from 1, got {self.round_id} and {self.attempt}")

    @property
    def text(self) -> str:
        """``run/round/client/attempt``: the form used in blob names and logs."""
        return f"{self.run}/{self.round_id}/{self.client}/{self.attempt}"


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSpec:
    """One tensor of the adapter blocks; ``name`` and ``block`` use original block indices."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    block: int

    def __post_init__(self) -> None:
        """Check the form before anything is allocated from it."""
        if self.dtype not in {"F32", "F16", "BF16"}:
            raise ValueError(f"{self.name}: dtype {self.dtype!r} is not F32, F16 or BF16")
        if not self.shape or any(d < 1 for d in self.shape) or self.block < 0:
            raise ValueError(f"{self.name}: impossible shape {self.shape} or block {self.block}")

    @property
    def count(self) -> int:
        """Number of elements."""
        total = 1
        for d in self.shape:
            total *= d
        return total


@dataclass(frozen=True, slots=True, kw_only=True)
class Revision:
    """The way from an emulator that was published before, ``base``, to another: a blob that holds what changed."""

    base: Digest
    base_bytes: int
    blob: Digest
    size_bytes: int

    def __post_init__(self) -> None:
        """Check the form."""
        if self.base_bytes < 1 or self.size_bytes < 1:
            raise ValueError("a revision is a blob, and leads from an emulator")


@dataclass(frozen=True, slots=True, kw_only=True)
class EmulatorManifest:
    """What the owner publishes about the emulator of a round.

    ``emulator`` is the digest of the bundle blob; ``base``, ``plan`` and ``tokenizer`` identify what it was made from;
    ``sealing_key`` is the owner's public hybrid key that updates are sealed to. ``round_id`` is the round that it is for;
    ``revision`` leads to it from the emulator of an earlier round.
    """

    emulator: Digest
    size_bytes: int
    base: Digest
    plan: Digest
    tokenizer: Digest
    adapter: tuple[TensorSpec, ...]
    sealing_key: bytes
    codec: str
    round_id: int = 1
    revision: Revision | None = None

    def __post_init__(self) -> None:
        """Check the form."""
        if self.size_bytes < 1 or not self.adapter:
            raise ValueError("a manifest names a bundle and at least one adapter tensor")
        if self.round_id < 1:
            raise ValueError(f"rounds count from 1, got {self.round_id}")


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


class CurvePoint(NamedTuple):
    """What a plug-in was worth with an update of this share of its bytes: the mean, and an interval around it."""

    share: float
    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class UtilityCurve:
    """What the owner found an update to be worth by the share phi of its bytes: ``offset - weight * phi**-shape``.

    The form is a scaling law in the bytes spent (chosen, not derived); it holds from ``share_min`` to 1. ``points`` are the
    measurements that it was fitted to, for people to judge the fit. Laws: positive weight and shape make it increase, and
    concave; it is worth something in full.
    """

    offset: float
    weight: float
    shape: float
    share_min: float
    points: tuple[CurvePoint, ...]

    def __post_init__(self) -> None:
        """Refuse a curve that nobody could plan with."""
        if not 0.0 < self.share_min < 1.0:
            raise ValueError(f"share_min: must be in (0, 1), got {self.share_min}")
        if not (_CURVE_LEAST <= self.weight <= _CURVE_MOST and _CURVE_LEAST <= self.shape <= _SHAPE_MOST):
            raise ValueError(f"the curve has to increase and be concave, got weight {self.weight} and shape {self.shape}")
        if not abs(self.offset) <= _CURVE_MOST or not isfinite(self.value(self.share_min)):
            raise ValueError(f"the curve has to be finite, got offset {self.offset}")
        if not self.value(1.0) > 0.0:
            raise ValueError(f"an update is worth {self.value(1.0):g} in full: there is nothing to share resources out for")
        self._check_points()

    def _check_points(self) -> None:
        if not 2 <= len(self.points) <= CURVE_POINTS_MAX:
            raise ValueError(f"points: 2 to {CURVE_POINTS_MAX}, got {len(self.points)}")
        for share, value, low, high in self.points:
            if not (0.0 < share <= 1.0 and -_CURVE_MOST <= low <= value <= high <= _CURVE_MOST):
                raise ValueError(f"points: {value} at share {share} is not a number within its interval, {low} to {high}")
        if any(b.share <= a.share for a, b in pairwise(self.points)):
            raise ValueError("points: shares have to increase")

    @property
    def share_worthless(self) -> float:
        """The share at which the curve is zero; 0 where it never is. Below 1."""
        return (self.weight / self.offset) ** (1.0 / self.shape)

    def value(self, share: float) -> float:
        """Return what an update of this share is worth."""
        return self.offset - self.weight * share**-self.shape


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """A client's word to the coordinator that its update of this round is out (or will not come, with the reason)."""

    key: UpdateKey
    uploaded: bool
    reason: str
    bytes_raw: int
    bytes_uploaded: int
    airtime: Second
    train_seconds: Second
    energy: Joule


@dataclass(frozen=True, slots=True, kw_only=True)
class Settlement:
    """The owner's word to the coordinator: accepted or refused, no more."""

    key: UpdateKey
    accepted: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Conclusion:
    """The owner's word to the coordinator that it is through with a round; ``last`` if it wants no further one, and then why."""

    run: RunId
    round_id: int
    last: bool
    reason: str = ""

    def __post_init__(self) -> None:
        """Check the form."""
        require_name(self.run, of="run")
        if self.round_id < 1 or bool(self.reason) != self.last:
            raise ValueError("a conclusion is of a round, and one that ends the run says why")


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The owner's word to the client. ``score`` is the plug-in perplexity on public text; ``kept`` whether the model keeps it."""

    key: UpdateKey
    accepted: bool
    kept: bool
    reason: str
    score: float | None


class DirectiveKind(StrEnum):
    """What the coordinator pushes."""

    ROUND_OPENED = "round_opened"
    ASSIGNED = "assigned"
    ROUND_CLOSED = "round_closed"
    DRAIN = "drain"
    CONCLUDE = "conclude"
    """To the owner alone: no more is accepted in this round; average, publish what the next one starts from, and say so."""
    SUM = "sum"
    """A word of secure aggregation."""


class SumWord:
    """What the coordinator carries between the roles of secure aggregation; ``secagg.messages`` has the kinds."""

    __slots__ = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Directive:
    """A numbered push from the coordinator. ``accepted`` lists the clients of a closed round; ``last`` ends the run."""

    seq: int
    kind: DirectiveKind
    round_id: int
    assignment: Assignment | None = None
    accepted: tuple[ClientId, ...] = ()
    failed_reason: str = ""
    last: bool = False
    sum: SumWord | None = None


SENDING_PHASES: Final = frozenset({"coding a frame", "uploading", "on air"})
"""What a client's signs of life call what it does once its assignment can no longer be changed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Beat:
    """A sign of life with what is being done; ``last_seen_seq`` acknowledges directives; ``progress`` only ever rises."""

    last_seen_seq: int
    phase: str
    progress: int
