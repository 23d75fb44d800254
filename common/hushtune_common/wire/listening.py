"""How does a receiver hear from the air? The owner and the eavesdropper alike: notices, then receptions chunk by chunk."""

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, suppress
from typing import Any, TypeVar

import grpc

from hushtune_common.clock import Clock
from hushtune_common.config import Scenario
from hushtune_common.errors import DeadlineExceeded, LimitExceeded, MalformedUpdate, OperatingFault, StaleRound
from hushtune_common.link.frame import chunk_blocks
from hushtune_common.link.reception import Reception
from hushtune_common.logs import log_event
from hushtune_common.messages import BLOCKS_MAX, Listener, ReceptionNotice
from hushtune_common.seeding import SeedTree
from hushtune_common.wire import convert, faults
from hushtune_common.wire.streams import PATIENCE, reconnected, resumed
from hushtune_common.wire.v1 import air_pb2 as pb
from hushtune_common.wire.v1 import air_pb2_grpc

T = TypeVar("T")

_log = logging.getLogger(__name__)
_TELL_EVERY_S = 0.5


class AirListener:
    """One receiver of the air, over a channel; which one, the certificate says.

    Laws: notices come in rising ``seq`` and none is missed across reconnects; receptions come in order of their chunks, each
    once, whatever breaks in between; what does not belong to its notice is refused.
    """

    def __init__(
        self, channel: grpc.aio.Channel, scenario: Scenario, *, listener: Listener, clock: Clock, seeds: SeedTree
    ) -> None:
        """Listen as ``listener``."""
        self._scenario = scenario
        self._listener = listener
        self._clock = clock
        self._seeds = seeds
        self._channel = channel
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
            back=lambda: reconnected(self._channel),
            patience_s=PATIENCE * self._scenario.timing.idle_s,
        ):
            notice = convert.notice_from_wire(response)
            if notice.listener is not self._listener:
                raise MalformedUpdate(f"listener: the air announces {notice.listener}, we are {self._listener}")
            if notice.seq > seen:
                seen = notice.seq
                yield notice

    async def receive(self, notice: ReceptionNotice) -> AsyncGenerator[Reception, None]:
        """Yield what we hear of a transmission, chunk by chunk; the next chunk is fetched while one is worked on.

        A broken stream goes on at the chunk that is missing, as long as chunks get through. Whoever takes everything as the tap
        has told the air so at the end.

        Raises:
            StaleRound: this can no longer be heard.
            PeerLost: the air stays away.
            LimitExceeded: the update is larger than any may be.
            MalformedUpdate: the air sends something else than it announced, or bits of another fidelity than the scenario's.
        """
        _require_bounded(notice, self._scenario)
        expected = _Expected(notice)
        progress = _Progress(notice, clock=self._clock)
        async with aclosing(_ahead(self._chunks(expected))) as chunks:
            async for reception, size in chunks:
                progress.told(size, blocks=reception.count)
                yield reception
        progress.finished()
        if self._listener is Listener.TAP:
            await self._tell_heard(expected)

    async def _chunks(self, expected: "_Expected") -> AsyncGenerator[tuple[Reception, int], None]:
        try:
            async with aclosing(self._resumed(expected)) as responses:
                async for response in responses:
                    yield expected.take(response), len(response.reception)
        except StaleRound:
            if not expected.complete:  # else only the end of the stream was missed
                raise
        if not expected.complete:
            raise MalformedUpdate(f"chunk: the air ended after {expected.next} of {expected.count}")

    async def _tell_heard(self, expected: "_Expected") -> None:
        # The air keeps a frame until its listeners have all of it. A single try: nothing is lost when it fails, only room.
        with suppress(OperatingFault, StaleRound), faults.translated():
            async for _ in self._stub.Receive(expected.request(), wait_for_ready=False, timeout=self._scenario.timing.idle_s):
                raise MalformedUpdate(f"chunk: more than the {expected.count} that there are")

    def _resumed(self, expected: "_Expected") -> AsyncGenerator[pb.ReceiveResponse, None]:
        def begin() -> AsyncIterator[pb.ReceiveResponse]:
            return _Moving(self._stub.Receive(expected.request(), wait_for_ready=False), idle_s=self._scenario.timing.idle_s)

        return resumed(
            begin,
            clock=self._clock,
            seeds=self._seeds.child("receive", expected.notice.transmission.key.text),
            attempts_max=self._scenario.limits.attempts_max,
            lasting_s=self._scenario.timing.idle_s,
            ends=True,
            back=lambda: reconnected(self._channel),
        )


class _Expected:
    """Checks that chunks are the next ones of what a notice announces."""

    def __init__(self, notice: ReceptionNotice) -> None:
        self.notice = notice
        self._step = chunk_blocks(notice.transmission.design)
        self.count = -(-notice.blocks // self._step)
        self.next = 0
        self._last_index = -1

    @property
    def complete(self) -> bool:
        return self.next == self.count

    def request(self) -> pb.ReceiveRequest:
        return convert.receive_to_wire(self.notice.transmission.key, first_chunk=self.next)

    def take(self, response: pb.ReceiveResponse) -> Reception:
        reception = Reception.from_bytes(response.reception)
        self._require_announced(reception)
        blocks = min(self._step, self.notice.blocks - self.next * self._step)
        if not response.chunk == reception.chunk == self.next < self.count or reception.count != blocks:
            raise MalformedUpdate(
                f"chunk: {reception.count} blocks as chunk {response.chunk}, expected chunk {self.next} of {self.count}"
            )
        if int(reception.indices[0]) <= self._last_index:
            raise MalformedUpdate(f"reception: block {int(reception.indices[0])} after block {self._last_index}")
        self._last_index = int(reception.indices[-1])
        self.next += 1
        return reception

    def _require_announced(self, reception: Reception) -> None:
        reception.require_design(self.notice.transmission.design)
        came = (reception.listener, reception.part, reception.fidelity.value, reception.update_bytes)
        announced = (self.notice.listener, self.notice.transmission.part, self.notice.fidelity, self.notice.update_bytes)
        if came != announced:
            raise MalformedUpdate(f"reception: {announced} was announced, {came} came")


class _Progress:
    """Tells the log how far a reception is; its size is known for sure at the end only."""

    def __init__(self, notice: ReceptionNotice, *, clock: Clock) -> None:
        self._notice = notice
        self._clock = clock
        self._started_s = self._told_s = clock.monotonic()
        self._bytes = self._blocks = 0
        key = notice.transmission.key
        self._about: dict[str, Any] = {
            "kind": "reception",
            "run": key.run,
            "client": key.client,
            "round_id": key.round_id,
            "attempt": key.attempt,
            "part": notice.transmission.part.value,
            "blocks": notice.blocks,
        }

    def told(self, size: int, *, blocks: int) -> None:
        self._bytes += size
        self._blocks += blocks
        if self._clock.monotonic() - self._told_s >= _TELL_EVERY_S:
            self._told_s = self._clock.monotonic()
            total = self._bytes * self._notice.blocks // self._blocks
            done = {"blocks_done": self._blocks, "bytes_done": self._bytes, "bytes_total": total}
            log_event(_log, "transfer_progressed", **self._about, **done)

    def finished(self) -> None:
        seconds = self._clock.monotonic() - self._started_s
        log_event(_log, "transfer_finished", **self._about, bytes_total=self._bytes, seconds=seconds)


class _Moving:
    """The items of a call, each of which must come within ``idle_s``: else nothing has moved."""

    def __init__(self, call: Any, *, idle_s: float) -> None:
        self._call = call
        self._items = aiter(call)
        self._idle_s = idle_s

    def __aiter__(self) -> "_Moving":
        return self

    async def __anext__(self) -> Any:
        try:
            async with asyncio.timeout(self._idle_s):
                return await anext(self._items)
        except TimeoutError:
            raise DeadlineExceeded(f"nothing moved for {self._idle_s:g} s") from None

    def cancel(self) -> None:
        self._call.cancel()


async def _ahead(items: AsyncGenerator[T, None]) -> AsyncGenerator[T, None]:
    """Yield ``items``, of which the next one is on its way while one is worked on."""
    coming = asyncio.ensure_future(anext(items, None))
    try:
        while (item := await coming) is not None:
            coming = asyncio.ensure_future(anext(items, None))
            yield item
    finally:
        coming.cancel()
        await asyncio.wait({coming})
        if not coming.cancelled():
            coming.exception()  # seen: nobody will ask for it
        await items.aclose()


def _require_bounded(notice: ReceptionNotice, scenario: Scenario) -> None:
    if notice.fidelity != scenario.air.fidelity:  # else bytes handed over in the open would pass for decoded bits
        raise MalformedUpdate(f"fidelity: the air announces {notice.fidelity}, air.fidelity is {scenario.air.fidelity}")
    if notice.update_bytes > scenario.limits.update_bytes_max:
        raise LimitExceeded(f"an update of {notice.update_bytes} bytes is above limits.update_bytes_max")
    if notice.blocks > min(BLOCKS_MAX, -(-notice.update_bytes // notice.transmission.design.payload_bytes)):
        raise MalformedUpdate(f"blocks: {notice.blocks} are more than an update of {notice.update_bytes} bytes has")
