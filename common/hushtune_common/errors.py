"""What can go wrong, and whose fault it is.

::

    HushtuneError
    ├── ConfigError                the user's: names the setting and the fix
    │   └── MissingPackage         an optional package is not installed
    ├── ProtocolFault              the peer's: drop, count, never retry
    │   ├── InvalidEnvelope        the seal does not open; no reason is given, on purpose
    │   ├── MalformedUpdate        bytes that are not what they claim to be
    │   ├── StaleRound             a message for a round that is over or was never opened
    │   ├── DigestMismatch         content differs from its name
    │   ├── NotYours               the certificate does not allow this
    │   ├── CertificateRevoked     the authority has withdrawn the certificate
    │   ├── Replayed               a key that was already used for other content
    │   ├── VersionMismatch        another protocol major
    │   ├── ScenarioMismatch       another experiment
    │   ├── UntrustedSigner        a signature that does not hold, or a signer who may not sign this
    │   ├── Equivocation           one thing said to one, another to another, or first this and then that
    │   └── LimitExceeded          larger, longer or more than the scenario allows
    ├── OperatingFault             the world's: bounded retry
    │   ├── AddressInUse           another process listens there
    │   ├── ChannelOutage          the air gave up on a block
    │   ├── DeadlineExceeded       no progress within the time allowed
    │   ├── OffsetMismatch         resume from another offset
    │   ├── PartCorrupt            a part arrived damaged
    │   ├── PeerLost               the other side went away
    │   ├── SolverFailed           an allocator gave no answer that passes its own check
    │   ├── StorageFull            no room left
    │   └── TrainerFailed          the training process died or diverged
    ├── Refusal                    nothing broke; the answer is no
    │   ├── BudgetTooSmall         no encoding of the adapter is so short
    │   ├── ExposureExceeded       a release would show somebody more of the model than the owner allows
    │   ├── Infeasible             no allocation satisfies the constraints
    │   ├── QuorumMissed           too few clients
    │   └── SecrecyUnavailable     no coding point is secret enough
    └── AbstractionContradicted    the simulation's: sampled bits disagree with the tables that stand for the rest

Anything else is a defect of ours and ends the process. ``reason`` is stable and travels on the wire; ``exit_code`` is stable
and never reused.
"""

from typing import ClassVar


class HushtuneError(Exception):
    """Root of every error raised on purpose."""

    reason: ClassVar[str] = "INTERNAL"
    exit_code: ClassVar[int] = 70


class ConfigError(HushtuneError):
    """A setting is wrong; the message names it and says what to do."""

    reason = "CONFIG"
    exit_code = 3

    def __init__(self, field: str, problem: str) -> None:
        """Name the ``field`` by its full path and the ``problem`` with its remedy."""
        super().__init__(f"{field}: {problem}")
        self.field = field
        self.problem = problem


class MissingPackage(ConfigError):
    """A package that the scenario needs is not installed."""

    reason = "MISSING_PACKAGE"
    exit_code = 4


class ProtocolFault(HushtuneError):
    """The peer broke the protocol. Raised before any side effect; never retried."""

    reason = "PROTOCOL"
    exit_code = 6


class InvalidEnvelope(ProtocolFault):
    """The seal does not open."""

    reason = "UPDATE_REFUSED"


class MalformedUpdate(ProtocolFault):
    """Bytes that do not decode to what was announced."""

    reason = "MALFORMED"


class StaleRound(ProtocolFault):
    """A message for a round that is not the current one."""

    reason = "STALE_ROUND"


class DigestMismatch(ProtocolFault):
    """Content that differs from its digest."""

    reason = "DIGEST_MISMATCH"


class NotYours(ProtocolFault):
    """The caller's certificate does not allow what it asks."""

    reason = "NOT_YOURS"


class CertificateRevoked(ProtocolFault):
    """The authority has withdrawn a certificate before its time, the caller's or our own."""

    reason = "CERTIFICATE_REVOKED"
    exit_code = 15


class Replayed(ProtocolFault):
    """An idempotency key was used again with other content."""

    reason = "REPLAYED"


class VersionMismatch(ProtocolFault):
    """The peer speaks another protocol major."""

    reason = "VERSION_MISMATCH"
    exit_code = 8


class ScenarioMismatch(ProtocolFault):
    """The peer runs another experiment."""

    reason = "SCENARIO_MISMATCH"
    exit_code = 7


class LimitExceeded(ProtocolFault):
    """A stated maximum was exceeded."""

    reason = "LIMIT_EXCEEDED"


class UntrustedSigner(ProtocolFault):
    """A signature does not hold, or its signer is not who may sign this; the message begins with the field that is wrong."""

    reason = "UNTRUSTED_SIGNER"


class Equivocation(ProtocolFault):
    """A peer says what contradicts what it said before, or what it must have said to others."""

    reason = "EQUIVOCATION"


class OperatingFault(HushtuneError):
    """The world failed; a bounded retry may succeed."""

    reason = "OPERATING"
    exit_code = 10


class AddressInUse(OperatingFault):
    """The listening address is taken."""

    reason = "ADDRESS_IN_USE"
    exit_code = 5


class ChannelOutage(OperatingFault):
    """The air could not deliver within the attempts allowed."""

    reason = "CHANNEL_OUTAGE"


class DeadlineExceeded(OperatingFault):
    """Nothing moved within the time allowed."""

    reason = "DEADLINE_EXCEEDED"
    exit_code = 11


class OffsetMismatch(OperatingFault):
    """The receiver holds another number of bytes than the sender assumed."""

    reason = "OFFSET_MISMATCH"

    def __init__(self, committed_size: int) -> None:
        """Carry the number of bytes that the receiver has durably."""
        super().__init__(f"resume at offset {committed_size}")
        self.committed_size = committed_size


class PartCorrupt(OperatingFault):
    """A part failed its checksum; nothing of it was kept."""

    reason = "PART_CORRUPT"


class PeerLost(OperatingFault):
    """The connection to the peer is gone."""

    reason = "PEER_LOST"
    exit_code = 12


class SolverFailed(OperatingFault):
    """An allocator gave no answer, or one that violates its own constraints."""

    reason = "SOLVER_FAILED"


class StorageFull(OperatingFault):
    """The disk or the quota is full. After ``retry_after_s`` it is worth another try."""

    reason = "STORAGE_FULL"

    def __init__(self, problem: str = "", *, retry_after_s: float = 5.0) -> None:
        """Say what is full, and when to come back."""
        super().__init__(problem)
        self.retry_after_s = retry_after_s


class TrainerFailed(OperatingFault):
    """The training process died, or its numbers stopped being finite."""

    reason = "TRAINER_FAILED"
    exit_code = 13


class Refusal(HushtuneError):
    """Nothing broke; the answer is no."""

    reason = "REFUSED"
    exit_code = 9


class BudgetTooSmall(Refusal):
    """No encoding of the adapter fits the bytes granted for it."""

    reason = "BUDGET_TOO_SMALL"

    def __init__(self, *, least_bytes: int, budget_bytes: int) -> None:
        """Carry the shortest encoding there is, in bytes."""
        super().__init__(f"the adapter needs at least {least_bytes} bytes, {budget_bytes} are granted")
        self.least_bytes = least_bytes


class ExposureExceeded(Refusal):
    """A release would lift what somebody has seen of the model over the owner's cap. Raised before anything is distributed."""

    reason = "EXPOSURE_EXCEEDED"


class Infeasible(Refusal):
    """No allocation satisfies the constraints."""

    reason = "INFEASIBLE"


class QuorumMissed(Refusal):
    """Too few clients took part."""

    reason = "QUORUM_MISSED"


class SecrecyUnavailable(Refusal):
    """No coding point is decodable for the owner and secret from the tap."""

    reason = "SECRECY_UNAVAILABLE"


class AbstractionContradicted(HushtuneError):
    """The blocks of a hybrid transmission that travelled bit by bit fail at another rate than the tables say.

    Nothing that rests on those tables may be believed, least of all the blocks that were drawn from them.
    """

    reason = "ABSTRACTION_CONTRADICTED"
    exit_code = 14
