"""Whom does the owner deal with while a round runs, and what does it ask of each?"""

from collections.abc import AsyncGenerator, Callable, Sequence
from pathlib import Path
from typing import Protocol

from hushtune_common.messages import ClientId, Directive, Receipt, ReceptionNotice, Settlement, UpdateKey
from hushtune_server.owner.book import Judgement
from hushtune_server.owner.plugin import Trial


class CoordinatorPort(Protocol):
    """The coordinator.

    Laws: directives come in rising ``seq`` and none is missed across reconnects; settling twice has no second effect.
    """

    def follow(self, phase: Callable[[], str]) -> AsyncGenerator[Directive, None]:
        """Yield directives until the coordinator ends the stream, telling it our ``phase``; `PeerLost` if it stays away."""
        ...

    async def settle(self, settlement: Settlement) -> None:
        """Say whether an update was accepted, and nothing else about it."""
        ...


class AirPort(Protocol):
    """The owner's receiver.

    Laws: notices come in rising ``seq`` and none is missed across reconnects; a fetched file has the digest of its notice;
    acknowledging twice has no second effect.
    """

    def notices(self) -> AsyncGenerator[ReceptionNotice, None]:
        """Yield what was heard, for ever; `PeerLost` when the air stays away."""
        ...

    async def fetch(self, notice: ReceptionNotice) -> Path:
        """Return the file of a reception, downloaded at most once."""
        ...

    async def acknowledge(self, receipt: Receipt) -> None:
        """Say which blocks are still missing."""
        ...


class Bench(Protocol):
    """Where weights are handled. Blocks while it works, and is used from one thread only.

    Laws: `judge` leaves the model as it was; `merge` changes it only when it keeps the mean.
    """

    def judge(self, blob: bytes, *, key: UpdateKey) -> Judgement:
        """Decide about one whole sealed update."""
        ...

    def merge(self, clients: Sequence[ClientId]) -> Trial:
        """Average these clients' adapters and try the mean in the model."""
        ...
