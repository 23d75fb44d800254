"""Whom does the owner deal with while a round runs, and what does it ask of each?"""

from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from hushtune_common.link.reception import Reception
from hushtune_common.messages import (
    ClientId,
    Conclusion,
    Directive,
    EmulatorManifest,
    Part,
    Receipt,
    ReceptionNotice,
    RunId,
    Settlement,
    UpdateKey,
    UtilityCurve,
)
from hushtune_common.secagg.messages import Survivors
from hushtune_server.owner.book import Copy, Judgement
from hushtune_server.owner.incoming import Link
from hushtune_server.owner.plugin import Trial


class CoordinatorPort(Protocol):
    """The coordinator.

    Laws: directives come in rising ``seq`` and none is missed across reconnects; settling, announcing or concluding twice has no
    second effect.
    """

    def follow(self, phase: Callable[[], str]) -> AsyncGenerator[Directive, None]:
        """Yield directives until the coordinator ends the stream, telling it our ``phase``; `PeerLost` if it stays away."""
        ...

    async def tell_worth(self, curve: UtilityCurve) -> None:
        """Say what updates are worth from now on; the newest word counts, and the same again has no effect."""
        ...

    async def settle(self, settlement: Settlement) -> None:
        """Say whether an update was accepted, and nothing else about it."""
        ...

    async def announce(self, run: RunId, round_id: int, survivors: Survivors) -> None:
        """Name those whose payloads are going to be added."""
        ...

    async def conclude(self, conclusion: Conclusion) -> None:
        """Say that a round is dealt with, and whether another one shall follow."""
        ...


class AirPort(Protocol):
    """The owner's receiver.

    Laws: notices come in rising ``seq`` and none is missed across reconnects; a transmission is heard in order, chunk by chunk,
    and the same again until it is acknowledged; acknowledging twice has no second effect.
    """

    def notices(self) -> AsyncGenerator[ReceptionNotice, None]:
        """Yield what was heard, for ever; `PeerLost` when the air stays away."""
        ...

    def receive(self, notice: ReceptionNotice) -> AsyncGenerator[Reception, None]:
        """Yield what is heard of a transmission, the next chunk on its way; `StaleRound` when it can no longer be heard."""
        ...

    async def acknowledge(self, receipt: Receipt) -> None:
        """Say which blocks are still missing."""
        ...


class VerdictDesk(Protocol):
    """Where clients wait for verdicts and emulators.

    Law: after `ring`, everyone who waits looks at the book again.
    """

    def ring(self) -> None:
        """Say that the book has changed."""
        ...

    async def until(self, holds: Callable[[], bool]) -> None:
        """Wait until ``holds``, looked at after every `ring`."""
        ...

    async def all_fetched(self, run: RunId, round_id: int, clients: frozenset[ClientId], *, within_s: float) -> bool:
        """Wait until each of ``clients`` has its verdict; return false when ``within_s`` was not enough."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Renewal:
    """Another emulator, and the way to it from the one before: files that nobody else has yet."""

    bundle: Path
    revision: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Merged(Trial):
    """What an average did, whose blocks are in it, and who was left out of it and why."""

    clients: tuple[ClientId, ...]
    left_out: Mapping[ClientId, str]


class Press(Protocol):
    """Puts emulators on offer.

    Laws: what is on offer for a round can be fetched when `publish` has returned; ``None`` offers what the round before had.
    """

    async def publish(self, round_id: int, renewal: Renewal | None) -> EmulatorManifest:
        """Offer the emulator of a round, and return its manifest."""
        ...

    def path(self, manifest: EmulatorManifest) -> Path:
        """Return where the emulator lies."""
        ...

    def copies(self, manifest: EmulatorManifest) -> Mapping[ClientId, Copy]:
        """Return which clients have a copy of their own of the newest emulator, and which."""
        ...


class Bench(Protocol):
    """Where weights are handled. Blocks while it works, and is used from one thread only.

    Laws: `judge` and `worth` leave the model as it was; `merge` changes it only when it keeps the mean, `renew` and `take_up`
    never; what `renew` writes has the adapter blocks that the model has.
    """

    @property
    def bytes_max(self) -> int:
        """Largest sealed update that can be genuine; may be read from any thread."""
        ...

    def judge(self, blob: bytes, *, key: UpdateKey, links: Mapping[Part, Link], secret: bytes) -> Judgement:
        """Decide about one whole sealed update, given how its parts travelled and what its key part brought."""
        ...

    def merge(self, clients: Sequence[ClientId]) -> Merged:
        """Average these clients' adapters, those that go together, and try the mean in the model."""
        ...

    def renew(self, round_id: int) -> Renewal | None:
        """Write the emulator that a round starts from; nothing when that is the one that updates are judged against now."""
        ...

    def worth(self) -> UtilityCurve:
        """Measure what updates are worth with the model as it is and the emulator that they are judged against now.

        `ConfigError` or `TrainerFailed` when that is nothing to plan with.
        """
        ...

    def take_up(self, manifest: EmulatorManifest, bundle: Path, *, copies: Mapping[ClientId, Copy]) -> None:
        """Judge updates against this emulator from now on; those of clients with ``copies`` name these."""
        ...
