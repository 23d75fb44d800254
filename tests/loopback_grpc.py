"""The same scripted counterparts behind real gRPC servers, so that the gateway passes the suite of the fakes."""

# ruff: noqa: N802 - gRPC method names

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc

from hushtune_client.gateway import Addresses, Manners, open_ports
from hushtune_client.ports import Ports
from hushtune_common.clock import SystemClock
from hushtune_common.messages import ClientId, Digest, Role, RunId
from hushtune_common.metrics.watch import Watch
from hushtune_common.seeding import SeedTree
from hushtune_common.store.blobs import BlobName, BlobStore
from hushtune_common.wire import convert, convert_sums, endpoint
from hushtune_common.wire.interceptors import caller_of
from hushtune_common.wire.transfer import BlobsService, register_blobs
from hushtune_common.wire.v1 import (
    air_pb2,
    air_pb2_grpc,
    coordinator_pb2,
    coordinator_pb2_grpc,
    owner_pb2,
    owner_pb2_grpc,
)
from tests.kits import Kits
from tests.loopback import CLIENT, RUN, SCENARIO, World

_BLOB_BYTES_MAX = 1 << 26


class _Owner(owner_pb2_grpc.OwnerServicer):
    def __init__(self, world: World) -> None:
        self._world = world

    async def GetManifest(self, request: owner_pb2.GetManifestRequest, context: Any) -> owner_pb2.GetManifestResponse:
        self._world.require_scenario(Digest(request.scenario_digest))
        assert request.run == RUN
        return convert.manifest_to_wire(await self._world.manifest_for(request.round_id))

    async def GetVerdict(self, request: owner_pb2.GetVerdictRequest, context: Any) -> owner_pb2.GetVerdictResponse:
        client = ClientId(caller_of(context).name)
        return convert.verdict_to_wire(await self._world.verdict(RunId(request.run), request.round_id, client))

    async def Open(self, request: owner_pb2.OpenRequest, context: Any) -> owner_pb2.OpenResponse:
        client = ClientId(caller_of(context).name)
        self._world.opened(client, request.round_id, convert_sums.opening_from_wire(request, caller=client))
        return owner_pb2.OpenResponse()


class _Coordinator(coordinator_pb2_grpc.CoordinatorServicer):
    def __init__(self, world: World) -> None:
        self._world = world

    async def Join(self, request: coordinator_pb2.JoinRequest, context: Any) -> coordinator_pb2.JoinResponse:
        self._world.require_scenario(Digest(request.scenario_digest))
        timing = self._world.timing
        return coordinator_pb2.JoinResponse(
            run=RUN,
            protocol_minor=convert.PROTOCOL_MINOR,
            connect_s=timing.connect_s,
            idle_s=timing.idle_s,
            round_s=timing.round_s,
        )

    async def Follow(self, request_iterator: Any, context: Any) -> AsyncIterator[coordinator_pb2.FollowResponse]:
        first = convert.beat_from_wire(await anext(request_iterator))
        self._world.heard(first)
        listening = _Listening(self._world, request_iterator)
        try:
            async for directive in self._world.directives_after(first.last_seen_seq):
                yield convert.directive_to_wire(directive)
                if self._world.cuts_streams:
                    return
        finally:
            listening.stop()

    async def Report(self, request: coordinator_pb2.ReportRequest, context: Any) -> coordinator_pb2.ReportResponse:
        caller = caller_of(context)
        keys = convert.keys_from_wire(request, caller=caller)
        self._world.report(convert.report_from_wire(request, caller=caller), advertisement=keys)
        return coordinator_pb2.ReportResponse()

    async def ReportChannel(
        self, request: coordinator_pb2.ReportChannelRequest, context: Any
    ) -> coordinator_pb2.ReportChannelResponse:
        self._world.change_channel(ClientId(caller_of(context).name), *convert.new_channel_from_wire(request))
        return coordinator_pb2.ReportChannelResponse()

    async def AskToSend(self, request: coordinator_pb2.AskToSendRequest, context: Any) -> coordinator_pb2.AskToSendResponse:
        await self._world.asked(request.round_id)
        return coordinator_pb2.AskToSendResponse()

    async def Deal(self, request: coordinator_pb2.DealRequest, context: Any) -> coordinator_pb2.DealResponse:
        self._world.dealt(*convert_sums.deal_from_wire(request, caller=caller_of(context).name))
        return coordinator_pb2.DealResponse()

    async def Vow(self, request: coordinator_pb2.VowRequest, context: Any) -> coordinator_pb2.VowResponse:
        self._world.vowed(*convert_sums.vow_from_wire(request, caller=caller_of(context).name))
        return coordinator_pb2.VowResponse()

    async def Complete(self, request: coordinator_pb2.CompleteRequest, context: Any) -> coordinator_pb2.CompleteResponse:
        self._world.complete(convert.completion_from_wire(request, caller=caller_of(context)))
        return coordinator_pb2.CompleteResponse()

    async def Leave(self, request: coordinator_pb2.LeaveRequest, context: Any) -> coordinator_pb2.LeaveResponse:
        self._world.leave(request.reason)
        return coordinator_pb2.LeaveResponse()


class _Listening:
    """Takes the beats of one stream beside its directives."""

    def __init__(self, world: World, beats: Any) -> None:
        async def listen() -> None:
            async for beat in beats:
                world.heard(convert.beat_from_wire(beat))

        self._task = asyncio.create_task(listen())

    def stop(self) -> None:
        self._task.cancel()


class _Air(air_pb2_grpc.AirServicer):
    def __init__(self, world: World, store: BlobStore) -> None:
        self._world, self._store = world, store

    async def Sound(self, request: air_pb2.SoundRequest, context: Any) -> air_pb2.SoundResponse:
        sounding = self._world.sounded(request.round_id)
        return air_pb2.SoundResponse(gain_main=sounding.gain_main, at_s=sounding.at)

    async def Transmit(self, request: air_pb2.TransmitRequest, context: Any) -> AsyncIterator[air_pb2.TransmitResponse]:
        wanted = convert.transmission_from_wire(request.transmission)
        name = BlobName(prefix=f"frames/{wanted.key.text}", digest=wanted.frame, size=wanted.frame_bytes)
        frame = self._store.path(name).read_bytes() if self._store.complete(name) else None
        outcome = self._world.transmit(wanted, frame)
        yield air_pb2.TransmitResponse(airtime_s=outcome.airtime)
        await self._world.receipts()
        yield air_pb2.TransmitResponse(airtime_s=outcome.airtime, acknowledged=True, missing=outcome.missing)


_Register = Callable[[grpc.aio.Server], None]


def _owner(world: World) -> _Register:
    return lambda server: owner_pb2_grpc.add_OwnerServicer_to_server(_Owner(world), server)


def _coordinator(world: World) -> _Register:
    servicer = _Coordinator(world)  # pyright: ignore[reportAbstractUsage] - only the calls of a client are served
    return lambda server: coordinator_pb2_grpc.add_CoordinatorServicer_to_server(servicer, server)


def _air(world: World, store: BlobStore) -> _Register:
    servicer = _Air(world, store)  # pyright: ignore[reportAbstractUsage] - only the calls of a client are served
    return lambda server: air_pb2_grpc.add_AirServicer_to_server(servicer, server)


def _blobs(store: BlobStore) -> _Register:
    def anyone(*_: object) -> bool:
        return True

    return register_blobs(BlobsService(store, may_read=anyone, may_write=anyone, size_max=_BLOB_BYTES_MAX, idle_s=30.0))


@asynccontextmanager
async def serving(world: World, *, kits: Kits, folder: Path, watch: Watch | None = None) -> AsyncGenerator[Addresses]:
    """Serve the three counterparts on free ports; ``watch`` hears of every call."""
    clock, timing = SystemClock(), world.timing
    stores = {role: BlobStore(folder / role, quota_bytes=_BLOB_BYTES_MAX) for role in (Role.OWNER, Role.AIR)}
    stored = stores[Role.OWNER].put("emulators", world.emulator)
    for prefix, blobs in (("emulators", world.emulators), ("revisions", world.revisions)):
        for blob in blobs.values():
            stores[Role.OWNER].put(prefix, blob)
    if world.tampered is not None:
        stores[Role.OWNER].path(stored).write_bytes(world.tampered)

    registrations: dict[Role, list[_Register]] = {
        Role.OWNER: [_owner(world), _blobs(stores[Role.OWNER])],
        Role.COORDINATOR: [_coordinator(world)],
        Role.AIR: [_air(world, stores[Role.AIR]), _blobs(stores[Role.AIR])],
    }
    async with AsyncExitStack() as stack:
        addresses: dict[Role, str] = {}
        for role, register in registrations.items():
            server = await endpoint.serve(
                register, names=[], listen="127.0.0.1:0", kit=kits.kit(role), clock=clock, timing=timing, watched=watch
            )
            stack.push_async_callback(server.stop, 0.0)
            addresses[role] = server.address
        yield Addresses(owner=addresses[Role.OWNER], coordinator=addresses[Role.COORDINATOR], air=addresses[Role.AIR])


@asynccontextmanager
async def grpc_ports(
    world: World, *, kits: Kits, folder: Path, scenario: Digest = SCENARIO, watch: Watch | None = None
) -> AsyncGenerator[Ports]:
    """Return ports to ``world`` over gRPC with mutual TLS; ``watch`` hears of every call, on both sides."""
    manners = Manners(timing=world.timing, attempts_max=3, clock=SystemClock(), seeds=SeedTree(0))
    store = BlobStore(folder / "client", quota_bytes=_BLOB_BYTES_MAX)
    kit, calls = kits.kit(Role.CLIENT, CLIENT), None if watch is None else watch.calls
    async with (
        serving(world, kits=kits, folder=folder, watch=watch) as addresses,
        open_ports(addresses, kit=kit, manners=manners, scenario=scenario, store=store, calls=calls) as ports,
    ):
        yield ports
