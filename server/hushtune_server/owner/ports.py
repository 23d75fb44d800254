"""Whom does the owner deal with while a round runs, and what does it ask of each?"""

from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from typing import Protocol

from hushtune_common.link.reception import Reception
from hushtune_common.messages import ClientId, Directive, Part, Receipt, ReceptionNotice, Settlement, UpdateKey
from hushtune_server.owner.book import Judgement
from hushtune_server.owner.incoming import Link
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


class Bench(Protocol):
    """Where weights are handled. Blocks while it works, and is used from one thread only.

    Laws: `judge` leaves the model as it was; `merge` changes it only when it keeps the mean.
    """

    @property
    def bytes_max(self) -> int:
        """Largest sealed update that can be genuine; may be read from any thread."""
        ...

    def judge(self, blob: bytes, *, key: UpdateKey, links: Mapping[Part, Link], secret: bytes) -> Judgement:
        """Decide about one whole sealed update, given how its parts travelled and what its key part brought."""
        ...

    def merge(self, clients: Sequence[ClientId]) -> Trial:
        """Average these clients' adapters and try the mean in the model."""
        ...
