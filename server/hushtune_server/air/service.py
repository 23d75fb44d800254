"""What may each caller ask of the air? Clients send, the two receivers listen, the owner acknowledges."""

from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from typing import Any

import grpc

from hushtune_common.errors import MalformedUpdate, NotYours
from hushtune_common.messages import Caller, Listener, Role
from hushtune_common.store.blobs import BlobName, BlobStore
from hushtune_common.wire import convert
from hushtune_common.wire.interceptors import caller_of
from hushtune_common.wire.transfer import BlobsService
from hushtune_common.wire.v1 import air_pb2 as pb
from hushtune_common.wire.v1 import air_pb2_grpc, blobs_pb2
from hushtune_server.air.permission import require_allowed
from hushtune_server.air.sky import Sky, writer_of

_LISTENERS = {Role.OWNER: Listener.MAIN, Role.EAVESDROPPER: Listener.TAP}
Context = grpc.aio.ServicerContext[Any, Any]


class AirService(air_pb2_grpc.AirServicer):
    """The calls of ``hushtune.v1.Air``."""

    def __init__(self, sky: Sky) -> None:
        """Serve what ``sky`` holds."""
        self._sky = sky

    async def Sound(self, request: pb.SoundRequest, context: Context) -> pb.SoundResponse:
        """Tell a client its own gain to the owner's receiver, as a pilot would."""
        client = self._sky.client(caller_of(context))
        if not 1 <= request.round_id <= self._sky.scenario.coordinator.rounds:
            raise MalformedUpdate(f"round_id: {request.round_id} is not a round of this scenario")
        gain, at = await self._sky.sound(client, request.round_id)
        return pb.SoundResponse(gain_main=gain, at_s=at)

    async def Transmit(self, request: pb.TransmitRequest, context: Context) -> AsyncIterator[pb.TransmitResponse]:
        """Carry the caller's frame, say how long it was on air, and end with the owner's receipt."""
        client = self._sky.client(caller_of(context))
        transmission = convert.transmission_from_wire(request.transmission)
        require_allowed(transmission, client, self._sky.scenario)
        sent = await self._sky.send(transmission)
        yield convert.receipt_to_transmit(None, airtime=sent.airtime)
        receipt = await self._sky.answered(transmission.key)
        yield convert.receipt_to_transmit(receipt, airtime=sent.airtime)

    async def Listen(self, request: pb.ListenRequest, context: Context) -> AsyncIterator[pb.ListenResponse]:
        """Announce transmissions: as heard by main to the owner, by the tap to the eavesdropper, by certificate."""
        listener = _listener_of(context)
        seen = request.last_seen_seq
        while not self._sky.draining:
            notices = self._sky.ledger.notices_after(seen, listener)
            for notice in notices:
                yield convert.notice_to_wire(notice)
                seen = notice.seq
            if not notices:
                await self._sky.bell.wait()

    async def Receive(self, request: pb.ReceiveRequest, context: Context) -> AsyncIterator[pb.ReceiveResponse]:
        """Stream what the caller's own receiver hears of a transmission, as fast as the caller takes it."""
        listener = _listener_of(context)
        key, first = convert.receive_from_wire(request)
        async with aclosing(self._sky.receptions(key, listener, first=first)) as chunks:
            async for number, blob in chunks:
                yield pb.ReceiveResponse(chunk=number, reception=blob)

    async def Acknowledge(self, request: pb.AcknowledgeRequest, context: Context) -> pb.AcknowledgeResponse:
        """Take the owner's receipt for one transmission."""
        caller_of(context, Role.OWNER)
        await self._sky.acknowledge(convert.receipt_from_ack(request))
        return pb.AcknowledgeResponse()


class AirBlobs(BlobsService):
    """The blobs of the air: clients write frames of their own, and nobody reads any back."""

    def __init__(self, sky: Sky, store: BlobStore) -> None:
        """Serve ``store`` under the rules of ``may_read`` and ``may_write``, to clients of the scenario."""
        known, scenario = frozenset(c.id for c in sky.scenario.clients), sky.scenario

        def may_write_here(caller: Caller, name: BlobName) -> bool:
            # Room on the disk is counted by client, so nobody else may take any.
            return caller.name in known and may_write(caller, name)

        size_max, idle_s = scenario.limits.frame_bytes_max, scenario.timing.idle_s
        super().__init__(store, may_read=may_read, may_write=may_write_here, size_max=size_max, idle_s=idle_s)
        self._sky = sky

    async def Write(self, request_iterator: AsyncIterator[blobs_pb2.WriteRequest], context: Context) -> blobs_pb2.WriteResponse:
        """Receive a frame; one that the client wrote before and never sent is forgotten."""
        caller = caller_of(context)

        async def watched() -> AsyncIterator[blobs_pb2.WriteRequest]:
            async for part in request_iterator:
                if part.resource_name and may_write(caller, name := BlobName.parse(part.resource_name)):
                    self._sky.client_writes(caller, name)
                yield part

        return await super().Write(watched(), context)


def may_write(caller: Caller, name: BlobName) -> bool:
    """Clients write frames below their own name, ``frames/RUN/ROUND/CLIENT/ATTEMPT``; nobody writes anything else."""
    return caller.role is Role.CLIENT and caller.name == writer_of(name)


def may_read(caller: Caller, name: BlobName) -> bool:
    """Nobody: a frame is heard, through noise, never read."""
    return False


def register_air(service: AirService) -> Callable[[grpc.aio.Server], None]:
    """Return the function that adds ``service`` to a server."""

    def register(server: grpc.aio.Server) -> None:
        air_pb2_grpc.add_AirServicer_to_server(service, server)

    return register


def _listener_of(context: Context) -> Listener:
    caller = caller_of(context)
    listener = _LISTENERS.get(caller.role)
    if listener is None:
        raise NotYours(f"{caller.uri} has no receiver; the owner and the eavesdropper have")
    return listener
