"""How does a client reach its three counterparts over gRPC? Calls, streams that resume, transfers that continue."""

import asyncio
import hashlib
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from math import ceil, isfinite
from pathlib import Path
from typing import Any, TypeVar

import grpc

from hushtune_client.ports import (
    AirPort,
    Cleared,
    CoordinatorPort,
    Fetched,
    FrameOutcome,
    OwnerPort,
    Ports,
    Progress,
    Sounding,
    Welcome,
)
from hushtune_common.clock import Clock
from hushtune_common.config import TimingConfig
from hushtune_common.errors import DeadlineExceeded, DigestMismatch, MalformedUpdate, PeerLost, StaleRound, StorageFull
from hushtune_common.messages import (
    Beat,
    Channel,
    ClientId,
    ClientReport,
    Completion,
    Digest,
    Directive,
    EmulatorManifest,
    Revision,
    Role,
    RunId,
    Transmission,
    UpdateKey,
    Verdict,
)
from hushtune_common.metrics.watch import Calls
from hushtune_common.model.revision import apply_revision
from hushtune_common.secagg.messages import Advertisement, Deal, Opening, Vow
from hushtune_common.seeding import NoiseRng, SeedTree
from hushtune_common.store.blobs import BlobName, BlobStore
from hushtune_common.store.room import Room
from hushtune_common.units import PowerRatio, Second
from hushtune_common.wire import convert, convert_sums, transfer
from hushtune_common.wire.endpoint import Kit, connect, ready
from hushtune_common.wire.faults import translated
from hushtune_common.wire.streams import PATIENCE, reconnected, resumed
from hushtune_common.wire.v1 import (
    air_pb2,
    air_pb2_grpc,
    coordinator_pb2,
    coordinator_pb2_grpc,
    owner_pb2,
    owner_pb2_grpc,
)

_T = TypeVar("_T")
_BACKOFF_BASE_S = 0.5
_BACKOFF_CAP_S = 20.0
_BEATS_PER_IDLE = 6
EMULATORS = "emulators"
REVISIONS = "revisions"
"""Prefixes of the owner's blobs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Addresses:
    """Where the counterparts listen, each ``HOST:PORT``."""

    owner: str
    coordinator: str
    air: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Manners:
    """How this client behaves towards its peers: waits, retries, and the randomness that spreads them."""

    timing: TimingConfig
    attempts_max: int
    clock: Clock
    seeds: SeedTree

    async def persist(self, call: Callable[[], Awaitable[_T]], *, of: str) -> _T:
        """Repeat an idempotent ``call`` while the peer is lost, with full jitter, at most ``attempts_max`` times.

        A peer whose disk is full is asked again as it says, for ``round_s`` in all.
        """
        rng = self.seeds.child(of).generator()
        room, failures = Room(clock=self.clock, rng=rng, within_s=self.timing.round_s), 0
        while True:
            try:
                with translated():
                    return await call()
            except StorageFull as error:
                await room.wait(error)
            except PeerLost:
                failures += 1
                if failures >= self.attempts_max:
                    raise
                await self.back_off(failures - 1, rng)

    async def insist(self, call: Callable[[], Awaitable[_T]], *, of: str, for_s: float) -> _T:
        """Repeat an idempotent ``call`` while the peer is lost or does not answer, with full jitter, as long as ``for_s``."""
        rng, ends_s = self.seeds.child(of).generator(), self.clock.monotonic() + for_s
        failures = 0
        while True:
            try:
                with translated():
                    return await call()
            except (PeerLost, DeadlineExceeded):
                if self.clock.monotonic() >= ends_s:
                    raise
            await self.back_off(failures, rng)
            failures += 1

    async def back_off(self, failures: int, rng: NoiseRng) -> None:
        """Wait a random time below a bound that doubles with every failure in a row."""
        await self.clock.sleep(float(rng.uniform(0.0, min(_BACKOFF_CAP_S, _BACKOFF_BASE_S * 2.0**failures))))


@asynccontextmanager
async def open_ports(
    addresses: Addresses, *, kit: Kit, manners: Manners, scenario: Digest, store: BlobStore, calls: Calls | None = None
) -> AsyncGenerator[Ports]:
    """Connect to the three counterparts and close the channels at the end; ``calls`` are told of every call.

    Raises `PeerLost` naming the role and the address that does not answer within ``connect_s``, `ConfigError` when this
    process's own certificate is not valid.
    """
    places = {Role.OWNER: addresses.owner, Role.COORDINATOR: addresses.coordinator, Role.AIR: addresses.air}
    channels: dict[Role, grpc.aio.Channel] = {}
    try:
        for role, address in places.items():
            channels[role] = connect(address, role=role, kit=kit, timing=manners.timing, clock=manners.clock, calls=calls)
        for role, address in places.items():
            await ready(channels[role], address=address, role=role, timing=manners.timing, kit=kit)
        client = ClientId(kit.caller.name)
        yield Ports(
            owner=OwnerGateway(channels[Role.OWNER], client=client, scenario=scenario, store=store, manners=manners),
            coordinator=CoordinatorGateway(channels[Role.COORDINATOR], scenario=scenario, manners=manners),
            air=AirGateway(channels[Role.AIR], manners=manners),
        )
    finally:
        for channel in channels.values():
            await channel.close()


class OwnerGateway:
    """The owner over gRPC."""

    def __init__(
        self, channel: grpc.aio.Channel, *, client: ClientId, scenario: Digest, store: BlobStore, manners: Manners
    ) -> None:
        """Keep downloaded emulators in ``store``."""
        self._channel = channel
        self._stub: Any = owner_pb2_grpc.OwnerStub(channel)
        self._client = client
        self._scenario = scenario
        self._store = store
        self._manners = manners

    async def manifest(self, run: RunId, round_id: int) -> EmulatorManifest:
        """Wait for the emulator of a round; each call waits ``idle_s``, all together at most ``round_s``."""
        request = owner_pb2.GetManifestRequest(scenario_digest=self._scenario.value, run=run, round_id=round_id)
        response = await self._awaited(self._stub.GetManifest, request, of=f"emulator of round {round_id}")
        return convert.manifest_from_wire(response)

    async def fetch(self, manifest: EmulatorManifest, *, progress: Progress | None = None) -> Fetched:
        """Have the emulator bundle on disk, by way of what changed where that is shorter."""
        whole, way, problem = _whole(manifest), manifest.revision, ""
        if self._store.complete(whole):
            return Fetched(path=self._store.path(whole), bytes_fetched=0)
        if way is not None and way.size_bytes < whole.size and self._store.complete(_base(way)):
            try:
                return await self._revised(whole, way, progress=progress)
            except (DigestMismatch, MalformedUpdate, StaleRound) as fault:
                problem, progress = f"{fault.reason}: {fault}", _above(progress, way.size_bytes)
        await self._download(whole, progress=progress)
        self._store.retain(EMULATORS, [whole])
        return Fetched(path=self._store.path(whole), bytes_fetched=whole.size, problem=problem)

    async def _revised(self, whole: BlobName, way: Revision, *, progress: Progress | None) -> Fetched:
        """Fetch what changed since the emulator that is held, and make the new one of both."""
        name = BlobName(prefix=REVISIONS, digest=way.blob, size=way.size_bytes)
        revision = await self._download(name, progress=progress)
        made = self._store.scratch(whole.digest.hex)
        try:
            await asyncio.to_thread(apply_revision, revision, base=self._store.path(_base(way)), to=made)
            found = await asyncio.to_thread(_fingerprint, made)
            if found != (whole.digest, whole.size):
                raise DigestMismatch(f"what changed since emulator {way.base.short} does not lead to {whole.digest.short}")
            await asyncio.to_thread(self._store.adopt, EMULATORS, made)
        finally:
            made.unlink(missing_ok=True)
            self._store.retain(REVISIONS, [])
        self._store.retain(EMULATORS, [whole])
        return Fetched(path=self._store.path(whole), bytes_fetched=way.size_bytes, revised=True)

    async def _download(self, name: BlobName, *, progress: Progress | None) -> Path:
        return await transfer.download(
            self._channel,
            name,
            self._store,
            clock=self._manners.clock,
            seeds=self._manners.seeds.child("fetch"),
            timing=self._manners.timing,
            attempts_max=self._manners.attempts_max,
            progress=progress,
        )

    async def verdict(self, run: RunId, round_id: int) -> Verdict:
        """Wait for the owner's judgement; each call waits ``idle_s``, all together at most ``round_s``."""
        request = owner_pb2.GetVerdictRequest(run=run, round_id=round_id)
        response = await self._awaited(self._stub.GetVerdict, request, of=f"verdict on round {round_id}")
        return convert.verdict_from_wire(response, client=self._client)

    async def open(self, run: RunId, round_id: int, opening: Opening) -> None:
        """Give out shares for the sum of a round."""
        request = convert_sums.opening_to_wire(opening, run=run, round_id=round_id)
        await self._manners.persist(lambda: self._stub.Open(request, timeout=self._manners.timing.idle_s), of="open")

    async def _awaited(self, call: Callable[..., Awaitable[_T]], request: object, *, of: str) -> _T:
        timing = self._manners.timing
        for _ in range(ceil(timing.round_s / timing.idle_s)):
            try:
                return await self._manners.persist(lambda: call(request, timeout=timing.idle_s), of=of)
            except DeadlineExceeded:
                continue
        raise DeadlineExceeded(f"the owner gave no {of} within {timing.round_s:.0f} s")


def _above(progress: Progress | None, done_before: int) -> Progress | None:
    """Return who is told of a second try, so that the count of bytes does not fall."""
    return None if progress is None else lambda done, total: progress(max(done, done_before), total)


def _whole(manifest: EmulatorManifest) -> BlobName:
    return BlobName(prefix=EMULATORS, digest=manifest.emulator, size=manifest.size_bytes)


def _base(way: Revision) -> BlobName:
    return BlobName(prefix=EMULATORS, digest=way.base, size=way.base_bytes)


class CoordinatorGateway:
    """The coordinator over gRPC."""

    def __init__(self, channel: grpc.aio.Channel, *, scenario: Digest, manners: Manners) -> None:
        """Take the digest of the scenario that this process runs."""
        self._channel = channel
        self._stub: Any = coordinator_pb2_grpc.CoordinatorStub(channel)
        self._scenario = scenario
        self._manners = manners
        self._timing = manners.timing

    async def join(self) -> Welcome:
        """Enter the run and take over the coordinator's timing."""
        request = coordinator_pb2.JoinRequest(
            protocol_major=convert.PROTOCOL_MAJOR, protocol_minor=convert.PROTOCOL_MINOR, scenario_digest=self._scenario.value
        )
        response = await self._manners.persist(lambda: self._stub.Join(request, timeout=self._timing.idle_s), of="join")
        run, self._timing = convert.welcome_from_wire(response)
        return Welcome(run=run, timing=self._timing)

    async def follow(self, beat: Callable[[], Beat]) -> AsyncIterator[Directive]:
        """Yield directives; a lost stream is opened again where ``beat`` says that this client is.

        `PeerLost` after ``attempts_max`` streams in a row that brought nothing and did not last, for at least twice ``idle_s``.
        """
        taken = asyncio.Event()
        responses = resumed(
            lambda: self._stub.Follow(self._beats(beat, taken)),
            clock=self._manners.clock,
            seeds=self._manners.seeds.child("follow"),
            attempts_max=self._manners.attempts_max,
            lasting_s=self._timing.idle_s,
            ends=False,
            back=lambda: reconnected(self._channel),
            patience_s=PATIENCE * self._timing.idle_s,
        )
        async for response in responses:
            yield convert.directive_from_wire(response)
            taken.set()  # the consumer has come back, so it has dealt with the directive and the next beat acknowledges it

    async def report(self, report: ClientReport, *, advertisement: Advertisement | None = None) -> None:
        """Tell what this device can do."""
        request = convert.report_to_wire(report, advertisement=advertisement)
        await self._manners.persist(lambda: self._stub.Report(request, timeout=self._timing.idle_s), of="report")

    async def report_channel(self, round_id: int, channel: Channel) -> None:
        """Tell that the channel is another one."""
        request = convert.new_channel_to_wire(channel, round_id=round_id)
        timeout = self._timing.idle_s
        await self._manners.persist(lambda: self._stub.ReportChannel(request, timeout=timeout), of="report-channel")

    async def ask_to_send(self, round_id: int) -> None:
        """Ask until there is an answer. One that took longer than ``idle_s`` is none: the call has ended by then."""
        request, timing = coordinator_pb2.AskToSendRequest(round_id=round_id), self._timing

        async def ask() -> None:
            await self._stub.AskToSend(request, timeout=timing.idle_s)

        await self._manners.insist(ask, of="ask-to-send", for_s=timing.round_s)

    async def deal(self, round_id: int, deal: Deal) -> None:
        """Hand over the parcels for this client's neighbours."""
        request = convert_sums.deal_to_wire(deal, round_id=round_id)
        await self._manners.persist(lambda: self._stub.Deal(request, timeout=self._timing.idle_s), of="deal")

    async def vow(self, round_id: int, vow: Vow) -> None:
        """Hand over a vow."""
        request = convert_sums.vow_to_wire(vow, round_id=round_id)
        await self._manners.persist(lambda: self._stub.Vow(request, timeout=self._timing.idle_s), of="vow")

    async def complete(self, completion: Completion) -> None:
        """Say how this client's part of the round ended."""
        request = convert.completion_to_wire(completion)
        await self._manners.persist(lambda: self._stub.Complete(request, timeout=self._timing.idle_s), of="complete")

    async def leave(self, reason: str) -> None:
        """Say goodbye, once."""
        with translated():
            await self._stub.Leave(coordinator_pb2.LeaveRequest(reason=reason[:200]), timeout=self._timing.idle_s)

    async def _beats(self, beat: Callable[[], Beat], taken: asyncio.Event) -> AsyncIterator[coordinator_pb2.FollowRequest]:
        """Say where this client is: at a steady pace, and at once after every directive."""
        while True:
            yield convert.beat_to_wire(beat())
            await self._pause(taken)

    async def _pause(self, taken: asyncio.Event) -> None:
        interval = self._timing.idle_s / _BEATS_PER_IDLE
        waits = {asyncio.ensure_future(self._manners.clock.sleep(interval)), asyncio.ensure_future(taken.wait())}
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
        taken.clear()


class AirGateway:
    """The air over gRPC."""

    def __init__(self, channel: grpc.aio.Channel, *, manners: Manners) -> None:
        """Take the channel to the air."""
        self._channel = channel
        self._stub: Any = air_pb2_grpc.AirStub(channel)
        self._manners = manners

    async def sound(self, round_id: int) -> Sounding:
        """Return this client's own gain to the owner's receiver."""
        request = air_pb2.SoundRequest(round_id=round_id)
        timeout = self._manners.timing.idle_s
        response = await self._manners.persist(lambda: self._stub.Sound(request, timeout=timeout), of="sound")
        if not (isfinite(response.gain_main) and response.gain_main > 0.0):
            raise MalformedUpdate(f"gain_main: must be finite and positive, got {response.gain_main}")
        if not (isfinite(response.at_s) and response.at_s >= 0.0):
            raise MalformedUpdate(f"at_s: must be finite and not negative, got {response.at_s}")
        return Sounding(gain_main=PowerRatio(response.gain_main), at=Second(response.at_s))

    async def write_frame(self, key: UpdateKey, frame: Path, *, progress: Progress | None = None) -> Digest:
        """Upload the frame file of one attempt, part by part from where the air has it."""
        digest, size = await asyncio.to_thread(_fingerprint, frame)
        name = BlobName(prefix=f"frames/{key.text}", digest=digest, size=size)
        await transfer.upload(
            self._channel,
            name,
            frame,
            clock=self._manners.clock,
            seeds=self._manners.seeds.child("frame", key.text),
            timing=self._manners.timing,
            attempts_max=self._manners.attempts_max,
            progress=progress,
        )
        return digest

    async def transmit(self, transmission: Transmission, *, cleared: Cleared) -> FrameOutcome:
        """Send a written frame and wait for the owner's receipt, at most ``round_s``; a lost stream is opened again.

        The air may be lost for long between two tries, so each needs ``cleared`` anew.
        """
        round_s = self._manners.timing.round_s
        try:
            async with asyncio.timeout(round_s):
                return await self._manners.persist(
                    lambda: self._once(transmission, cleared), of=f"transmit-{transmission.key.text}"
                )
        except TimeoutError as error:
            raise DeadlineExceeded(f"the owner did not acknowledge {transmission.key.text} within {round_s:.0f} s") from error

    async def _once(self, transmission: Transmission, cleared: Cleared) -> FrameOutcome:
        await cleared()
        call = self._stub.Transmit(air_pb2.TransmitRequest(transmission=convert.transmission_to_wire(transmission)))
        try:
            async for response in call:
                receipt = convert.receipt_from_transmit(response, key=transmission.key)
                if receipt is not None:
                    return FrameOutcome(airtime=Second(response.airtime_s), missing=receipt.missing)
        finally:
            call.cancel()
        raise PeerLost("the air ended the transmission without the owner's receipt")


def _fingerprint(file: Path) -> tuple[Digest, int]:
    """Return the digest and the size in bytes of a file that may be larger than memory."""
    with file.open("rb") as stream:
        digest = Digest(hashlib.file_digest(stream, "sha256").digest())
        return digest, stream.tell()


_owner_conforms: type[OwnerPort] = OwnerGateway
_coordinator_conforms: type[CoordinatorPort] = CoordinatorGateway
_air_conforms: type[AirPort] = AirGateway
