"""What may each caller ask of the air? Clients send, the two receivers listen, the owner acknowledges."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from math import isfinite
from pathlib import Path
from typing import Any

import grpc

from hushtune_common.config import ClientConfig, Scenario
from hushtune_common.errors import DeadlineExceeded, LimitExceeded, MalformedUpdate, NotYours, PeerLost
from hushtune_common.link.channel import Frame
from hushtune_common.logs import log_event
from hushtune_common.messages import Caller, Digest, Listener, Receipt, Role, Transmission, UpdateKey
from hushtune_common.seeding import SeedTree
from hushtune_common.store.blobs import BlobName, BlobStore
from hushtune_common.store.journal import Journal
from hushtune_common.units import Decibel, Second
from hushtune_common.wire import convert
from hushtune_common.wire.bell import Bell
from hushtune_common.wire.interceptors import caller_of
from hushtune_common.wire.transfer import BlobsService
from hushtune_common.wire.v1 import air_pb2 as pb
from hushtune_common.wire.v1 import air_pb2_grpc, blobs_pb2
from hushtune_server.air.fading import Geography
from hushtune_server.air.ledger import ACKNOWLEDGED, TRANSMITTED, Heard, Ledger, Sent, receipt_body
from hushtune_server.air.medium import Medium, Overheard

_log = logging.getLogger(__name__)
_ROUNDING = 1.0 + 1e-9
_BANDWIDTH_LEAST_HZ = 1.0
_RUNS_MAX = 64
"""Runs that one client may send in, over the life of a state folder: only the owner knows which of them it takes part in."""
_UNREAD_PER_CLIENT = 1
"""Receptions of the largest size that wait for the tap, beside the one that is being written."""
_LISTENERS = {Role.OWNER: Listener.MAIN, Role.EAVESDROPPER: Listener.TAP}

Context = grpc.aio.ServicerContext[Any, Any]


class Sky:
    """What the servicers share: carries frames once, remembers outcomes, wakes listeners."""

    def __init__(
        self,
        scenario: Scenario,
        *,
        medium: Medium,
        geography: Geography,
        store: BlobStore,
        journal: Journal,
        seeds: SeedTree,
    ) -> None:
        """Fold the journal: outcomes of an earlier life of this process stay what they were."""
        self.scenario = scenario
        self.geography = geography
        self.ledger = Ledger()
        self.bell = Bell()
        self.draining = False
        self._medium = medium
        self._store = store
        self._journal = journal
        self._seeds = seeds
        self._carrying: dict[UpdateKey, asyncio.Task[Sent]] = {}
        self._commit = asyncio.Lock()
        self._writing: dict[str, BlobName] = {}
        self._unread_bytes_max = _UNREAD_PER_CLIENT * len(scenario.clients) * scenario.limits.update_bytes_max
        for event in journal.events():
            self.ledger.apply(event.kind, event.body)

    def client(self, caller: Caller) -> ClientConfig:
        """Return the scenario's entry of a calling client; `NotYours` for anyone else."""
        known = {c.id: c for c in self.scenario.clients}
        if caller.role is not Role.CLIENT or caller.name not in known:
            raise NotYours(f"{caller.uri} is no client of scenario {self.scenario.name!r}")
        return known[caller.name]

    async def send(self, transmission: Transmission) -> Sent:
        """Put a written frame on air, once: the same key again returns the stored outcome, also while it is being carried."""
        known = self.ledger.find(transmission)
        if known is not None:
            self._store.discard(f"frames/{transmission.key.text}")  # a client that restarted may have written it again
            return known
        self._require_known_run(transmission.key)
        task = self._carrying.get(transmission.key)
        if task is None:
            task = asyncio.create_task(self._carry(transmission))
            self._carrying[transmission.key] = task
            task.add_done_callback(lambda _: self._carrying.pop(transmission.key, None))
        # Shielded: a client that hangs up must not undo a transmission that a listener may already have heard.
        await asyncio.shield(task)
        sent = self.ledger.find(transmission)
        if sent is None:
            raise MalformedUpdate(f"{transmission.key.text} was not carried")
        return sent

    async def answered(self, key: UpdateKey) -> Receipt:
        """Wait for the owner's receipt, at most the time of a round."""
        try:
            async with asyncio.timeout(self.scenario.timing.round_s):
                while (receipt := self.ledger.receipt(key)) is None:
                    self.require_open()
                    await self.bell.wait()
                return receipt
        except TimeoutError as error:
            raise DeadlineExceeded(f"the owner has not acknowledged {key.text}") from error

    async def acknowledge(self, receipt: Receipt) -> None:
        """Record the owner's receipt, wake the sender, and forget what only the owner would have read."""
        self.ledger.require_sent(receipt.key)
        await self._record(ACKNOWLEDGED, receipt_body(receipt), key=f"ack/{receipt.key.text}")
        self._store.discard(f"receptions/main/{receipt.key.text}")
        self.bell.ring()

    def client_writes(self, caller: Caller, name: BlobName) -> None:
        """Forget the frame that this client wrote before: it sends one at a time, and must not fill the disk of the others."""
        before = self._writing.get(caller.name)
        if before is not None and before != name:
            self._store.discard(before.prefix)
        self._writing[caller.name] = name

    def tap_reads(self, name: BlobName) -> None:
        """Forget the tap's receptions before ``name``."""
        prefixes = [f"receptions/tap/{sent.transmission.key.text}" for sent in self.ledger.sent]
        if name.prefix in prefixes:
            for prefix in prefixes[: prefixes.index(name.prefix)]:
                self._store.discard(prefix)

    def drain(self) -> None:
        """End every waiting call."""
        self.draining = True
        self.bell.ring()

    def require_open(self) -> None:
        """Raise `PeerLost` once the process is stopping, so that callers reconnect elsewhere or give up."""
        if self.draining:
            raise PeerLost("the air is stopping")

    def _require_known_run(self, key: UpdateKey) -> None:
        runs = self.ledger.runs(key.client)
        if key.run not in runs and len(runs) >= _RUNS_MAX:
            raise LimitExceeded(f"{key.client} has sent in {_RUNS_MAX} runs; start the air with an empty state folder for more")

    def _make_room(self, transmission: Transmission) -> None:
        """Forget what could fill the disk of the others: receptions that the owner did not want, or the tap did not read."""
        for key in self.ledger.unanswered(transmission.key.client):
            self._store.discard(f"receptions/main/{key.text}")  # a client waits for each receipt, or has given up on it
        unread = [name for sent in self.ledger.sent if self._store.complete(name := _tap_name(sent))]
        excess = sum(name.size for name in unread) - self._unread_bytes_max
        for name in unread:
            if excess <= 0:
                break
            self._store.discard(name.prefix)
            log_event(_log, "reception_unread", level=logging.WARNING, reception=name.prefix, bytes_total=name.size)
            excess -= name.size

    async def _carry(self, transmission: Transmission) -> Sent:
        name = BlobName(prefix=f"frames/{transmission.key.text}", digest=transmission.frame, size=transmission.frame_bytes)
        if not self._store.complete(name):
            raise MalformedUpdate(f"{name.text}: no such frame was written; write it before transmitting")
        frame, overheard = await asyncio.to_thread(self._overhear, transmission, self._store.path(name))
        key = transmission.key.text
        self._make_room(transmission)
        try:
            sent = await self._publish(transmission, frame, overheard)
        except Exception:
            for listener in Listener:  # nobody was told of them, so nobody would ever make room
                self._store.discard(f"receptions/{listener.value}/{key}")
            raise
        self._store.discard(name.prefix)
        self.bell.ring()
        log_event(
            _log,
            "frame_carried",
            client=transmission.key.client,
            round_id=transmission.key.round_id,
            attempt=transmission.key.attempt,
            blocks=sent.blocks,
            airtime_s=sent.airtime,
            fidelity=sent.fidelity,
        )
        return sent

    async def _publish(self, transmission: Transmission, frame: Frame, overheard: Overheard) -> Sent:
        key = transmission.key.text
        main = await keep(self._store, f"receptions/main/{key}", await asyncio.to_thread(overheard.main.to_bytes))
        tap = await keep(self._store, f"receptions/tap/{key}", await asyncio.to_thread(overheard.tap.to_bytes))
        sent = Sent(
            transmission=transmission,
            main=Heard(digest=main.digest, size=main.size, snr_db=Decibel(float(overheard.snr_main_db))),
            tap=Heard(digest=tap.digest, size=tap.size, snr_db=Decibel(float(overheard.snr_tap_db))),
            blocks=frame.count,
            airtime=Second(float(overheard.airtime)),
            fidelity=frame.fidelity.value,
        )
        async with self._commit:
            await self._record(TRANSMITTED, sent.to_body(), key=f"sent/{key}")
        return sent

    def _overhear(self, transmission: Transmission, path: Path) -> tuple[Frame, Overheard]:
        key = transmission.key
        frame = Frame.from_bytes(path.read_bytes())
        gains = self.geography.gains(key.client, key.round_id)
        overheard = self._medium.carry(frame, transmission=transmission, gains=gains, seeds=self._seeds)
        if not all(isfinite(number) for number in (overheard.snr_main_db, overheard.snr_tap_db, overheard.airtime)):
            raise MalformedUpdate(f"power_w: nothing can be heard at {transmission.power:g} W over {transmission.bandwidth:g} Hz")
        return frame, overheard

    async def _record(self, kind: str, body: dict[str, Any], *, key: str) -> None:
        event = await self._journal.append(kind, body, key=key)
        self.ledger.apply(event.kind, event.body)


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
        return pb.SoundResponse(gain_main=self._sky.geography.gain_main(client.id, request.round_id))

    async def Transmit(self, request: pb.TransmitRequest, context: Context) -> AsyncIterator[pb.TransmitResponse]:
        """Carry the caller's frame, say how long it was on air, and end with the owner's receipt."""
        client = self._sky.client(caller_of(context))
        transmission = convert.transmission_from_wire(request.transmission)
        _require_allowed(transmission, client, self._sky.scenario)
        sent = await self._sky.send(transmission)
        yield convert.receipt_to_transmit(None, airtime=sent.airtime)
        receipt = await self._sky.answered(transmission.key)
        yield convert.receipt_to_transmit(receipt, airtime=sent.airtime)

    async def Listen(self, request: pb.ListenRequest, context: Context) -> AsyncIterator[pb.ListenResponse]:
        """Announce receptions: main to the owner, tap to the eavesdropper, by certificate."""
        caller = caller_of(context)
        listener = _LISTENERS.get(caller.role)
        if listener is None:
            raise NotYours(f"{caller.uri} has no receiver; the owner and the eavesdropper have")
        seen = request.last_seen_seq
        while not self._sky.draining:
            notices = self._sky.ledger.notices_after(seen, listener)
            for notice in notices:
                yield convert.notice_to_wire(notice)
                seen = notice.seq
            if not notices:
                await self._sky.bell.wait()

    async def Acknowledge(self, request: pb.AcknowledgeRequest, context: Context) -> pb.AcknowledgeResponse:
        """Take the owner's receipt for one transmission."""
        caller_of(context, Role.OWNER)
        await self._sky.acknowledge(convert.receipt_from_ack(request))
        return pb.AcknowledgeResponse()


class AirBlobs(BlobsService):
    """The blobs of the air: clients write frames of their own, each receiver reads its own receptions."""

    def __init__(self, sky: Sky, store: BlobStore) -> None:
        """Serve ``store`` under the rules of ``may_read`` and ``may_write``."""
        super().__init__(store, may_read=may_read, may_write=may_write, size_max=sky.scenario.limits.update_bytes_max)
        self._sky = sky

    async def Write(self, request_iterator: AsyncIterator[blobs_pb2.WriteRequest], context: Context) -> blobs_pb2.WriteResponse:
        """Receive a frame; the client's frame before it is forgotten."""
        caller = caller_of(context)

        async def watched() -> AsyncIterator[blobs_pb2.WriteRequest]:
            async for part in request_iterator:
                if part.resource_name and may_write(caller, name := BlobName.parse(part.resource_name)):
                    self._sky.client_writes(caller, name)
                yield part

        return await super().Write(watched(), context)

    def Read(self, request: blobs_pb2.ReadRequest, context: Context) -> AsyncIterator[blobs_pb2.ReadResponse]:
        """Download from an offset. The tap reads in order, so what it begins to read says that it has what came before."""
        caller, name = caller_of(context), BlobName.parse(request.resource_name)
        if caller.role is Role.EAVESDROPPER and may_read(caller, name):
            self._sky.tap_reads(name)
        return super().Read(request, context)


def may_write(caller: Caller, name: BlobName) -> bool:
    """Clients write frames below their own name, ``frames/RUN/ROUND/CLIENT/ATTEMPT``; nobody writes anything else."""
    match name.prefix.split("/"):
        case ["frames", _, _, client, _]:
            return caller.role is Role.CLIENT and caller.name == client
        case _:
            return False


def may_read(caller: Caller, name: BlobName) -> bool:
    """Each receiver reads its own receptions; nobody reads frames back."""
    match name.prefix.split("/"):
        case ["receptions", listener, _, _, _, _]:
            return _LISTENERS.get(caller.role) == listener
        case _:
            return False


async def keep(store: BlobStore, prefix: str, data: bytes) -> BlobName:
    """Store ``data`` without blocking the loop; a part that an earlier life left is continued, not repeated."""
    name = BlobName(prefix=prefix, digest=await asyncio.to_thread(Digest.of, data), size=len(data))
    if not store.complete(name):
        writer = store.writer(name)
        start = writer.committed_size
        await writer.write(start, data[start:])
        await writer.finish()
    return name


def register_air(service: AirService) -> Callable[[grpc.aio.Server], None]:
    """Return the function that adds ``service`` to a server."""

    def register(server: grpc.aio.Server) -> None:
        air_pb2_grpc.add_AirServicer_to_server(service, server)

    return register


def _tap_name(sent: Sent) -> BlobName:
    return BlobName(prefix=f"receptions/tap/{sent.transmission.key.text}", digest=sent.tap.digest, size=sent.tap.size)


def _require_allowed(transmission: Transmission, client: ClientConfig, scenario: Scenario) -> None:
    key = transmission.key
    if key.client != client.id:
        raise NotYours(f"{client.id} cannot transmit as {key.client}")
    if key.round_id > scenario.coordinator.rounds:
        raise LimitExceeded(f"round {key.round_id} is above coordinator.rounds = {scenario.coordinator.rounds}")
    if key.attempt > scenario.limits.attempts_max:
        raise LimitExceeded(f"attempt {key.attempt} is above limits.attempts_max = {scenario.limits.attempts_max}")
    # Blocks are drawn codeword by codeword for both listeners: their number is the scenario's to choose, not a client's.
    if transmission.design.codewords != scenario.secrecy.codewords:
        raise MalformedUpdate(f"design.codewords: secrecy.codewords is {scenario.secrecy.codewords}")
    if transmission.power > client.power_max_w * _ROUNDING:
        raise LimitExceeded(f"power {transmission.power:g} W is above this device's {client.power_max_w:g} W")
    if transmission.bandwidth < _BANDWIDTH_LEAST_HZ:
        raise LimitExceeded(f"bandwidth {transmission.bandwidth:g} Hz is below {_BANDWIDTH_LEAST_HZ:g} Hz")
    if transmission.bandwidth > scenario.air.bandwidth_hz * _ROUNDING:
        raise LimitExceeded(f"bandwidth {transmission.bandwidth:g} Hz is above the air's {scenario.air.bandwidth_hz:g} Hz")
