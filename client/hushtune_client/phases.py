"""What can a client's round be in, what can happen to it, and what can it ask for?

States, events and commands of ``rounds``, as values.
"""

from dataclasses import dataclass

from hushtune_common.messages import Assignment, Channel, ClientId, Completion, Part, RunId
from hushtune_common.units import Joule, Second


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What does not change during a run: whose rounds these are, and how often it may transmit in a round, all parts together."""

    run: RunId
    client: ClientId
    attempts_max: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """What the client's part of a round has cost so far.

    ``bytes_uploaded`` counts the bytes of the frames handed to the air, coded bits and all; an attempt that was interrupted and
    sent again counts once.
    """

    bytes_raw: int
    bytes_uploaded: int
    airtime: Second
    train_seconds: Second
    energy: Joule


NOTHING = Tally(bytes_raw=0, bytes_uploaded=0, airtime=Second(0.0), train_seconds=Second(0.0), energy=Joule(0.0))


# --- states -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Idle:
    """Between rounds; ``closed_round`` is the last one that ended (0 before the first)."""

    closed_round: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Reported:
    """The round is open; the device reports and waits for its assignment."""

    round_id: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Assigned:
    """Granted; the trainer has not started yet. ``moved`` as in ``Training``."""

    assignment: Assignment
    moved: Channel | None = None

    @property
    def round_id(self) -> int:
        """The round of the assignment."""
        return self.assignment.round_id


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """The trainer is at work. ``moved`` is the channel for which an assignment is still to come; nothing is sent before it."""

    assignment: Assignment
    moved: Channel | None = None

    @property
    def round_id(self) -> int:
        """The round of the assignment."""
        return self.assignment.round_id


@dataclass(frozen=True, slots=True, kw_only=True)
class Uploading:
    """The sealed update is on its way, part by part; ``only`` are the part's blocks of this attempt, ``None`` for all.

    ``attempt`` counts the transmissions of all parts.
    """

    assignment: Assignment
    part: Part
    attempt: int
    only: tuple[int, ...] | None
    tally: Tally

    @property
    def round_id(self) -> int:
        """The round of the assignment."""
        return self.assignment.round_id


@dataclass(frozen=True, slots=True, kw_only=True)
class Completed:
    """This client's part is done, well or badly; the round is still open for others."""

    completion: Completion

    @property
    def round_id(self) -> int:
        """The round that was completed."""
        return self.completion.key.round_id


@dataclass(frozen=True, slots=True, kw_only=True)
class Closed:
    """The round is over and the owner's verdict is awaited; ``last`` if no round follows."""

    round_id: int
    last: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """The run is over."""

    round_id: int


State = Idle | Reported | Assigned | Training | Uploading | Completed | Closed | Finished

# --- events -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundOpened:
    """The coordinator opened a round."""

    round_id: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AssignmentReceived:
    """The coordinator said what this client may use, and whether it may send at all."""

    assignment: Assignment


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingStarted:
    """The trainer accepted the order."""

    round_id: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelMoved:
    """The channel is another one than the assignment was made for, and the coordinator will be told."""

    round_id: int
    channel: Channel


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateSealed:
    """Training is done; the sealed update and all that its transmission needs are safe on disk.

    ``assignment`` is what it was encoded and sealed for, and so what it is sent with, whatever was assigned since.
    """

    round_id: int
    bytes_raw: int
    train_seconds: Second
    energy: Joule
    assignment: Assignment | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameAnswered:
    """One attempt went over the air and the owner named the blocks of its part still ``missing``."""

    round_id: int
    part: Part
    attempt: int
    frame_bytes: int
    airtime: Second
    energy: Joule
    missing: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundFailed:
    """This client cannot finish the round."""

    round_id: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundClosed:
    """The coordinator closed the round; ``accepted`` if this client's update was among those accepted.

    ``failed`` says why the round as a whole came to nothing, and is empty otherwise.
    """

    round_id: int
    accepted: bool
    failed: str
    last: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class VerdictReached:
    """The owner's verdict has arrived, or it is certain that none will."""

    round_id: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SumHeard:
    """A word on the sum of a round was taken in; what follows from it is written down elsewhere."""

    round_id: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Drained:
    """The coordinator is going away."""


Event = (
    RoundOpened
    | AssignmentReceived
    | TrainingStarted
    | ChannelMoved
    | UpdateSealed
    | FrameAnswered
    | RoundFailed
    | RoundClosed
    | VerdictReached
    | SumHeard
    | Drained
)

# --- commands ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    """Get the emulator, sound the channel, report."""

    round_id: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Train:
    """Fine-tune at the assigned clock, then encode and seal."""

    assignment: Assignment


@dataclass(frozen=True, slots=True, kw_only=True)
class Watch:
    """Keep an eye on the channel while training."""

    round_id: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Retune:
    """Go on training at the clock of a newer assignment; the rest of it counts when the update is sealed."""

    assignment: Assignment


@dataclass(frozen=True, slots=True, kw_only=True)
class Send:
    """Code these blocks of a part into a frame, unless that was done before a restart, and put it on air."""

    assignment: Assignment
    part: Part
    attempt: int
    only: tuple[int, ...] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Conclude:
    """Tell the coordinator how this client's part ended."""

    completion: Completion


@dataclass(frozen=True, slots=True, kw_only=True)
class AskVerdict:
    """Fetch the owner's verdict."""

    round_id: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Abandon:
    """Stop whatever is still being done for this round."""

    round_id: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Stop:
    """End the process."""


Command = Measure | Train | Watch | Retune | Send | Conclude | AskVerdict | Abandon | Stop
