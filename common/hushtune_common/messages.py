"""What the processes say to each other: ids, digests, manifests, reports, assignments, updates, verdicts.

Values are frozen and validated where they are made; whoever holds one may trust its form.
"""

import hashlib
import re
from dataclasses import dataclass
from enum import StrEnum
from typing import NewType

from hushtune_common.units import Decibel, FlopPerSecond, Hertz, Joule, PowerRatio, Second, Watt

RunId = NewType("RunId", str)
ClientId = NewType("ClientId", str)

_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
_LEAST, _MOST = 1e-60, 1e60
"""No quantity of a device or link is outside; ratios and products of such numbers stay far inside a float."""


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
class EmulatorManifest:
    """What the owner publishes about an emulator.

    ``emulator`` is the digest of the bundle blob; ``base``, ``plan`` and ``tokenizer`` identify what it was made from;
    ``sealing_key`` is the owner's public hybrid key that updates are sealed to.
    """

    emulator: Digest
    size_bytes: int
    base: Digest
    plan: Digest
    tokenizer: Digest
    adapter: tuple[TensorSpec, ...]
    sealing_key: bytes
    codec: str

    def __post_init__(self) -> None:
        """Check the form."""
        if self.size_bytes < 1 or not self.adapter:
            raise ValueError("a manifest names a bundle and at least one adapter tensor")


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientReport:
    """What a client tells the coordinator about its device and its links.

    ``gain_main`` and ``gain_tap`` are linear power gains; ``gain_tap`` is the *assumed* upper bound on the eavesdropper's gain,
    not a measurement. ``update_bits`` is the size the client expects to upload.
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

    def __post_init__(self) -> None:
        """Refuse values that no device can have."""
        require_name(self.client, of="client")
        for name in ("gain_main", "power_max", "clock_max", "energy_max"):
            value = getattr(self, name)
            if not _LEAST <= value <= _MOST:
                raise ValueError(f"{name}: must be from {_LEAST:g} to {_MOST:g}, got {value}")
        if not 0.0 <= self.gain_tap <= _MOST:
            raise ValueError(f"gain_tap: must be from 0 to {_MOST:g}, got {self.gain_tap}")
        if self.sample_count < 1 or self.update_bits < 1 or self.round_id < 1:
            raise ValueError("sample_count, update_bits and round_id count from 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class SecrecyDesign:
    """One hash block of the wiretap code, as designed for an assumed tap SNR.

    A hash block carries ``message_bits`` (payload and CRC-32) beside ``random_bits`` over ``codewords`` words of ``code_bits``
    coded bits each. ``rate`` is message bits per complex symbol; ``log2_delta`` bounds the leakage of one block (total
    variation, mean over the public seed) as long as the tap's SNR stays at or below ``snr_tap_design_db``.
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

    def __post_init__(self) -> None:
        """Check the accounting of bits."""
        if self.message_bits + self.random_bits != self.codewords * self.info_bits:
            raise ValueError("message and random bits must fill the information words exactly")
        if self.message_bits < 64 or self.message_bits % 8 or self.random_bits % 8 or self.random_bits < 0:
            raise ValueError(f"impossible split: {self.message_bits} message and {self.random_bits} random bits")

    @property
    def payload_bytes(self) -> int:
        """Payload of one hash block: message bits less the CRC-32."""
        return self.message_bits // 8 - 4

    @property
    def symbols(self) -> int:
        """Complex symbols of one hash block."""
        per_symbol = {"qpsk": 2, "qam16": 4}[self.modulation]
        return self.codewords * self.code_bits // per_symbol


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
class Assignment:
    """What the coordinator assigns to one client for one round.

    ``adapter_share`` is phi, the share of the adapter's bits to upload (1 is all); ``design`` is absent unless the gate granted.
    """

    client: ClientId
    round_id: int
    gate: Gate
    adapter_share: float
    bandwidth: Hertz
    power: Watt
    clock: FlopPerSecond
    secrecy_rate_bps: float
    deadline: Second
    design: SecrecyDesign | None

    def __post_init__(self) -> None:
        """A granted assignment has a design, any other has none."""
        if (self.gate.decision is GateDecision.GRANTED) != (self.design is not None):
            raise ValueError("an assignment has a design exactly when its gate is granted")
        if not 0.0 < self.adapter_share <= 1.0:
            raise ValueError(f"adapter_share: must be in (0, 1], got {self.adapter_share}")


@dataclass(frozen=True, slots=True, kw_only=True)
class SealedUpdate:
    """An encrypted adapter: authenticated public parameters and an opaque body."""

    key: UpdateKey
    emulator: Digest
    public: bytes
    body: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Transmission:
    """A client's order to the air: which frame to send, and how."""

    key: UpdateKey
    frame: Digest
    frame_bytes: int
    design: SecrecyDesign
    power: Watt
    bandwidth: Hertz

    def __post_init__(self) -> None:
        """Check the form."""
        if self.frame_bytes < 1 or not (self.power > 0.0 and self.bandwidth > 0.0):
            raise ValueError("a transmission needs a frame, power and bandwidth")


class Listener(StrEnum):
    """Which of the air's two receivers."""

    MAIN = "main"
    TAP = "tap"


@dataclass(frozen=True, slots=True, kw_only=True)
class ReceptionNotice:
    """The air's announcement that a listener can read what it heard. ``seq`` numbers the notices of one listener from 1."""

    seq: int
    listener: Listener
    transmission: Transmission
    reception: Digest
    reception_bytes: int
    fidelity: str
    airtime: Second


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """The owner's answer to one transmission: which of its blocks are still missing, by index in the whole update."""

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Beat:
    """A sign of life with what is being done; ``last_seen_seq`` acknowledges directives; ``progress`` only ever rises."""

    last_seen_seq: int
    phase: str
    progress: int
