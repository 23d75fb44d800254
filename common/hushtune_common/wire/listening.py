"""How does a receiver hear from the air? The owner and the eavesdropper alike: notices, then reception blobs."""

import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc

from hushtune_common.clock import Clock
from hushtune_common.config import Scenario
from hushtune_common.errors import LimitExceeded, MalformedUpdate
from hushtune_common.logs import log_event
from hushtune_common.messages import Listener, ReceptionNotice
from hushtune_common.seeding import SeedTree
from hushtune_common.store.blobs import BlobName, BlobStore
from hushtune_common.wire import convert
from hushtune_common.wire.streams import resumed
from hushtune_common.wire.transfer import download
from hushtune_common.wire.v1 import air_pb2 as pb
from hushtune_common.wire.v1 import air_pb2_grpc

_log = logging.getLogger(__name__)
_TELL_EVERY_S = 0.5


def reception_name(notice: ReceptionNotice) -> BlobName:
    """Return the name of the blob that a notice announces."""
    prefix = f"receptions/{notice.listener.value}/{notice.transmission.key.text}"
    return BlobName(prefix=prefix, digest=notice.reception, size=notice.reception_bytes)


class AirListener:
    """One receiver of the air, over a channel; which one, the certificate says.

    Laws: notices come in rising ``seq`` and none is missed across reconnects; a fetched file has the digest of its notice.
    """

    def __init__(
        self,
        channel: grpc.aio.Channel,
        scenario: Scenario,
        *,
        listener: Listener,
        store: BlobStore,
        clock: Clock,
        seeds: SeedTree,
    ) -> None:
        """Listen as ``listener`` and keep receptions in ``store``."""
        self._channel = channel
        self._scenario = scenario
        self._listener = listener
        self._store = store
        self._clock = clock
        self._seeds = seeds
        self._stub: Any = air_pb2_grpc.AirStub(channel)

    async def notices(self) -> AsyncGenerator[ReceptionNotice, None]:
        """Yield every notice from the first on, for ever; `PeerLost` when the air stays away."""
        seen = 0

        def begin() -> AsyncIterator[pb.ListenResponse]:
            # Not waiting for a connection: a dead air must be noticed here, where the tries are counted.
            return self._stub.Listen(pb.ListenRequest(last_seen_seq=seen), wait_for_ready=False)

        async for response in resumed(
            begin,
            clock=self._clock,
            seeds=self._seeds.child("listen"),
            attempts_max=self._scenario.limits.attempts_max,
            lasting_s=self._scenario.timing.idle_s,
            ends=False,
        ):
            notice = convert.notice_from_wire(response)
            if notice.listener is not self._listener:
                raise MalformedUpdate(f"listener: the air announces {notice.listener}, we are {self._listener}")
            if notice.seq > seen:
                seen = notice.seq
                yield notice

    async def fetch(self, notice: ReceptionNotice) -> Path:
        """Return the file of what was heard, downloaded at most once; `LimitExceeded` when it is larger than any update."""
        name = reception_name(notice)
        if name.size > self._scenario.limits.update_bytes_max:
            raise LimitExceeded(f"a reception of {name.size} bytes, at most limits.update_bytes_max are read")
        if self._store.complete(name):
            return self._store.path(name)
        started_s = self._clock.monotonic()
        path = await download(
            self._channel,
            name,
            self._store,
            clock=self._clock,
            seeds=self._seeds.child("fetch", notice.transmission.key.text),
            timing=self._scenario.timing,
            attempts_max=self._scenario.limits.attempts_max,
            progress=_teller(self._clock, client=notice.transmission.key.client),
        )
        seconds = self._clock.monotonic() - started_s
        client = notice.transmission.key.client
        log_event(_log, "transfer_finished", kind="reception", client=client, bytes_total=name.size, seconds=seconds)
        return path


def _teller(clock: Clock, *, client: str) -> Callable[[int, int], None]:
    told_s = clock.monotonic()

    def tell(done: int, total: int) -> None:
        nonlocal told_s
        if clock.monotonic() - told_s >= _TELL_EVERY_S:
            told_s = clock.monotonic()
            log_event(_log, "transfer_progressed", kind="reception", client=client, bytes_done=done, bytes_total=total)

    return tell
