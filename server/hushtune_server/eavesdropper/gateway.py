"""How does the eavesdropper hear? It listens on the air and reads what its own receiver got, nothing else."""

import asyncio
import logging
from collections.abc import AsyncGenerator
from dataclasses import dataclass

from hushtune_common.errors import ProtocolFault
from hushtune_common.link.channel import Reception
from hushtune_common.logs import log_event
from hushtune_common.messages import ReceptionNotice
from hushtune_common.wire.listening import AirListener

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Overhearing:
    """One transmission as the tap has it: who sent what how, and the blocks that came through."""

    notice: ReceptionNotice
    reception: Reception


class TapGateway:
    """The tap's receiver.

    Laws: overhearings come in the order of the air's notices; one that cannot be read is told in the log and left out.
    """

    def __init__(self, listener: AirListener) -> None:
        """Hear through ``listener``."""
        self._listener = listener

    async def overhearings(self) -> AsyncGenerator[Overhearing, None]:
        """Yield what the tap hears, for ever; `PeerLost` when the air stays away."""
        async for notice in self._listener.notices():
            try:
                path = await self._listener.fetch(notice)
                reception = Reception.from_bytes(await asyncio.to_thread(path.read_bytes))
            except ProtocolFault as fault:
                key = notice.transmission.key
                log_event(_log, "reception_unreadable", level=logging.WARNING, client=key.client, reason=fault.reason)
                continue
            yield Overhearing(notice=notice, reception=reception)
