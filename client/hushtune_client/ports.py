"""Which counterparts does a client talk to, and what may it ask of each?

Ports carry our own values only. The adapter over gRPC is ``gateway``; tests use one in process. Both pass the same suite.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from hushtune_common.config import TimingConfig
from hushtune_common.messages import (
    Beat,
    Channel,
    ClientReport,
    Completion,
    Digest,
    Directive,
    EmulatorManifest,
    RunId,
    Transmission,
    UpdateKey,
    Verdict,
)
from hushtune_common.secagg.messages import Advertisement, Deal, Opening, Vow
from hushtune_common.units import PowerRatio, Second

Progress = Callable[[int, int], None]
"""Called with ``(bytes_done, bytes_total)``; the first number never falls."""
Cleared = Callable[[], Awaitable[None]]
"""Returns once this client may begin to transmit; raises when it may not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Welcome:
    """The coordinator's answer to ``join``: which run this is, and the timeouts that the server owns."""

    run: RunId
    timing: TimingConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Sounding:
    """This client's own gain to the owner's receiver (linear), and when it was so, in the air's time."""

    gain_main: PowerRatio
    at: Second


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameOutcome:
    """The owner's receipt for one transmission: time on air, and the blocks of its part that are still missing."""

    airtime: Second
    missing: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fetched:
    """An emulator on this client's disk: what it took to get it there, and whether only what had changed was fetched.

    ``problem`` is why the whole was fetched although there was a shorter way.
    """

    path: Path
    bytes_fetched: int
    revised: bool = False
    problem: str = ""


class OwnerPort(Protocol):
    """The model owner.

    Laws: ``manifest`` waits until the owner has the emulator of that round and never returns another round's; ``fetch`` returns
    a file whose SHA-256 is the manifest's emulator digest or raises ``DigestMismatch``; fetching twice gives the same content;
    ``verdict`` waits until the owner has judged and always returns the caller's own verdict; repeating ``open`` with the same
    value has no second effect.
    """

    async def manifest(self, run: RunId, round_id: int) -> EmulatorManifest:
        """Wait for what the owner publishes for a round.

        ``ScenarioMismatch`` if it runs another scenario, ``DeadlineExceeded`` after the round's time.
        """
        ...

    async def fetch(self, manifest: EmulatorManifest, *, progress: Progress | None = None) -> Fetched:
        """Have the emulator bundle on disk, fetched at most once; resumes where an earlier try stopped.

        Of an emulator of which this client has an earlier one, it fetches what changed.
        """
        ...

    async def verdict(self, run: RunId, round_id: int) -> Verdict:
        """Wait for the owner's judgement of this client's update; ``DeadlineExceeded`` after the round's time."""
        ...

    async def open(self, run: RunId, round_id: int, opening: Opening) -> None:
        """Give out shares for the sum of a round; ``MalformedUpdate`` for shares that are not this client's to open."""
        ...


class CoordinatorPort(Protocol):
    """The coordinator.

    Laws: ``follow`` yields directives in rising ``seq``, each above the ``last_seen_seq`` of the beat that opened the stream,
    and misses none across reconnects; repeating ``report``, ``report_channel``, ``ask_to_send``, ``deal``, ``vow`` or
    ``complete`` with the same value has no second effect.
    """

    async def join(self) -> Welcome:
        """Enter the run; ``ScenarioMismatch`` or ``VersionMismatch`` when this process does not belong there."""
        ...

    def follow(self, beat: Callable[[], Beat]) -> AsyncIterator[Directive]:
        """Yield directives while sending ``beat()`` every sixth of ``idle_s``; ``PeerLost`` when reconnecting is hopeless."""
        ...

    async def report(self, report: ClientReport, *, advertisement: Advertisement | None = None) -> None:
        """Tell what this device can do, and the keys for a sum; ``StaleRound`` when the round no longer gathers reports."""
        ...

    async def deal(self, round_id: int, deal: Deal) -> None:
        """Hand over the parcels for this client's neighbours in the sum of a round."""
        ...

    async def vow(self, round_id: int, vow: Vow) -> None:
        """Hand over the vow to open shares for the survivors of a round alone."""
        ...

    async def report_channel(self, round_id: int, channel: Channel) -> None:
        """Tell that the channel is no longer the one assigned for: nothing is sent before an assignment for the new one comes."""
        ...

    async def ask_to_send(self, round_id: int) -> None:
        """Return once this client may begin to transmit, which it then does within ``idle_s`` of having asked, or asks again.

        ``StaleRound`` when it may not any more: its band was given to others, or the round is over. While the coordinator cannot
        be reached there is no answer, for at most ``round_s``.
        """
        ...

    async def complete(self, completion: Completion) -> None:
        """Say that the update is out, or that none will come."""
        ...

    async def leave(self, reason: str) -> None:
        """Say goodbye before the process ends."""
        ...


class AirPort(Protocol):
    """The air.

    Laws: ``write_frame`` returns the digest of the file's bytes; transmitting the same attempt twice gives the same outcome;
    nothing is on air before ``cleared`` has returned; the moment of a sounding is never before that of an earlier one.
    """

    async def sound(self, round_id: int) -> Sounding:
        """Return this client's own channel gain to the owner's receiver in that round, as it is now."""
        ...

    async def write_frame(self, key: UpdateKey, frame: Path, *, progress: Progress | None = None) -> Digest:
        """Hand over the frame file of one attempt; resumable, and never the whole of it in memory."""
        ...

    async def transmit(self, transmission: Transmission, *, cleared: Cleared) -> FrameOutcome:
        """Send a frame that was written, and wait for the owner's receipt; ``cleared`` comes before every try, and may raise."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Ports:
    """The three counterparts together."""

    owner: OwnerPort
    coordinator: CoordinatorPort
    air: AirPort
