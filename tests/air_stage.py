"""An air that serves, clients that send and two receivers that listen, over loopback, for its contract tests."""

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from msgspec import structs

from hushtune_common.clock import Clock, SystemClock
from hushtune_common.config import LimitsConfig, Scenario
from hushtune_common.link import modem
from hushtune_common.link.fidelity import Fidelity
from hushtune_common.link.frame import FrameChunk
from hushtune_common.link.noise import NoiseKey
from hushtune_common.link.reception import Reception
from hushtune_common.messages import (
    Digest,
    Listener,
    Part,
    Receipt,
    ReceptionNotice,
    Role,
    SecrecyDesign,
    Transmission,
    UpdateKey,
)
from hushtune_common.seeding import SeedTree
from hushtune_common.store.blobs import BlobName, BlobStore
from hushtune_common.store.journal import Journal
from hushtune_common.units import PowerRatio, Second, Watt
from hushtune_common.wire import convert, endpoint, faults
from hushtune_common.wire.listening import AirListener
from hushtune_common.wire.transfer import register_blobs, upload
from hushtune_common.wire.v1 import air_pb2, air_pb2_grpc
from hushtune_server.air.abstract import AbstractMedium
from hushtune_server.air.bit_exact import BitExactMedium
from hushtune_server.air.fading import Geography
from hushtune_server.air.hybrid import HybridMedium
from hushtune_server.air.ledger import Sent
from hushtune_server.air.medium import Medium
from hushtune_server.air.service import AirBlobs, AirService, register_air
from hushtune_server.air.sky import Sky
from tests.fakes import FakeClock
from tests.kits import Kits
from tests.radio import frame_bytes, qpsk_design, random_update, scenario, transmission

CLOCK = SystemClock()
SEEDS = SeedTree(7).child("air")
DESIGN = qpsk_design()
UPDATE = random_update(3 * DESIGN.payload_bytes - 5)
MEDIA: dict[str, Callable[[Scenario], Medium]] = {
    "bit_exact": BitExactMedium,
    "abstract": AbstractMedium,
    "hybrid": HybridMedium,
}
AMPLE = Watt(2e-5)
"""Heard by the owner at about 15 dB."""


class CountingMedium:
    """The medium itself, with a count of the chunks that were computed."""

    def __init__(self, inner: Medium) -> None:
        self._inner = inner
        self.chunks: list[tuple[Listener, int]] = []
        self.arrived = threading.Semaphore(0)

    def hear(
        self, chunk: FrameChunk, *, listener: Listener, transmission: Transmission, gain: PowerRatio, seeds: SeedTree
    ) -> Reception:
        heard = self._inner.hear(chunk, listener=listener, transmission=transmission, gain=gain, seeds=seeds)
        self.chunks.append((listener, chunk.number))
        self.arrived.release()
        return heard


_counts: type[Medium] = CountingMedium


@dataclass(slots=True)
class Air:
    """A running air and what its callers need."""

    scenario: Scenario
    sky: Sky
    service: AirService
    medium: CountingMedium
    address: str
    kits: Kits
    folder: Path
    channels: dict[tuple[Role, str], grpc.aio.Channel] = field(default_factory=dict[tuple[Role, str], grpc.aio.Channel])

    def channel(self, role: Role, name: str) -> grpc.aio.Channel:
        if (role, name) not in self.channels:
            kit = self.kits.kit(role, name)
            self.channels[role, name] = endpoint.connect(self.address, role=Role.AIR, kit=kit, timing=self.scenario.timing)
        return self.channels[role, name]

    def stub(self, role: Role, name: str) -> Any:
        return air_pb2_grpc.AirStub(self.channel(role, name))

    def listener(self, listener: Listener, *, setting: Scenario | None = None) -> AirListener:
        role = Role.OWNER if listener is Listener.MAIN else Role.EAVESDROPPER
        channel, clock = self.channel(role, str(role)), FakeClock(autojump=True)
        return AirListener(channel, setting or self.scenario, listener=listener, clock=clock, seeds=SEEDS)

    async def write(self, client: str, frame: bytes, *, prefix: str) -> BlobName:
        name = BlobName(prefix=prefix, digest=Digest.of(frame), size=len(frame))
        channel, timing = self.channel(Role.CLIENT, client), self.scenario.timing
        await upload(channel, name, frame, clock=CLOCK, seeds=SEEDS, timing=timing, attempts_max=2)
        return name

    async def put_on_air(self, sending: Transmission, blob: bytes) -> Sent:
        """Write and send, without waiting for the owner."""
        await self.write(sending.key.client, blob, prefix=f"frames/{sending.key.text}")
        return await self.sky.send(sending)

    async def acknowledge(self, key: UpdateKey, missing: tuple[int, ...] = ()) -> None:
        receipt = Receipt(key=key, missing=missing)
        with faults.translated():
            await self.stub(Role.OWNER, "owner").Acknowledge(convert.receipt_to_ack(receipt), timeout=5)

    async def transmit(self, transmission: Transmission, *, caller: str) -> tuple[Second, tuple[int, ...] | None]:
        """Send, and return airtime and what the owner said is missing."""
        request = air_pb2.TransmitRequest(transmission=convert.transmission_to_wire(transmission))
        airtime_s, missing = 0.0, None
        with faults.translated():
            async for response in self.stub(Role.CLIENT, caller).Transmit(request, timeout=10):
                airtime_s = response.airtime_s
                missing = tuple(response.missing) if response.acknowledged else None
                if not response.acknowledged and self.sky.ledger.receipt(transmission.key) is None:
                    await self.acknowledge(transmission.key)
        return Second(airtime_s), missing

    async def hear(self, listener: Listener, *, seq: int = 1, setting: Scenario | None = None) -> list[Reception]:
        """Everything that a receiver hears of one transmission, taken to the end."""
        ears = self.listener(listener, setting=setting)
        notice = (await notices(ears, seq))[-1]
        return [reception async for reception in ears.receive(notice)]

    async def ask(self, role: Role, name: str, key: UpdateKey, *, first: int = 0) -> list[air_pb2.ReceiveResponse]:
        """The raw answers of one stream."""
        with faults.translated():
            return [r async for r in self.stub(role, name).Receive(convert.receive_to_wire(key, first_chunk=first), timeout=10)]

    def held(self) -> list[str]:
        """Keys of the frames on disk."""
        complete = self.folder / "blobs" / "complete" / "frames"
        return sorted("/".join(p.relative_to(complete).parts[:4]) for p in complete.rglob("*") if p.is_file())


@cache
def warmed() -> None:
    """Compile what the air computes with once, so that no call's deadline has to allow for it."""
    words = np.zeros((1, 96), dtype=np.uint8)
    path = modem.Path(snr=1.0, gains=None, key=NoiseKey.of(SEEDS), first=0)
    for compute in (modem.soft_values, modem.densities, modem.received):
        compute(words, dither=words, modulation="qpsk", path=path)


@asynccontextmanager
async def running(
    kits: Kits,
    folder: Path,
    *,
    fidelity: str = "abstract",
    serve: Callable[[Sky], AirService] = AirService,
    quota_bytes: int = 1 << 26,
    limits: LimitsConfig | None = None,
    protections: tuple[str, ...] = ("payload",),
    clock: Clock = CLOCK,
    **air: Any,
) -> AsyncGenerator[Air]:
    warmed()
    setting = scenario(air={"shadowing_db": 0.0, "fidelity": fidelity, **air}, secrecy={"protections": list(protections)})
    setting = structs.replace(setting, limits=limits or LimitsConfig())
    store = BlobStore(folder / "blobs", quota_bytes=quota_bytes)
    journal = Journal.open(folder / "journal.sqlite", schema="test-air")
    medium, geography = CountingMedium(MEDIA[fidelity](setting)), Geography(setting, SEEDS)
    sky = Sky(setting, medium=medium, geography=geography, store=store, journal=journal, clock=clock, seeds=SEEDS)
    service = serve(sky)
    server = await endpoint.serve(
        [register_air(service), register_blobs(AirBlobs(sky, store))],
        names=["hushtune.v1.Air"],
        listen="127.0.0.1:0",
        kit=kits.kit(Role.AIR),
        clock=CLOCK,
        timing=setting.timing,
    )
    running_air = Air(setting, sky, service, medium, server.address, kits, folder)
    try:
        yield running_air
    finally:
        for channel in running_air.channels.values():
            await channel.close()
        sky.drain()
        await server.stop(0.0)
        await journal.close()


def order(
    client: str = "c1",
    *,
    attempt: int = 1,
    update: bytes = UPDATE,
    only: list[int] | None = None,
    fidelity: str = "abstract",
    secrecy: SecrecyDesign = DESIGN,
    part: Part = Part.PAYLOAD,
) -> tuple[Transmission, bytes]:
    """Return a transmission at ample SNR and the bytes of its frame."""
    blob = frame_bytes(update, secrecy, fidelity=Fidelity(fidelity), only=only, part=part)
    return replace(transmission(blob, secrecy, client=client, attempt=attempt, part=part), power=AMPLE), blob


async def notices(listener: AirListener, count: int) -> list[ReceptionNotice]:
    found: list[ReceptionNotice] = []
    async with asyncio.timeout(10), aclosing(listener.notices()) as stream:
        async for notice in stream:
            found.append(notice)
            if len(found) == count:
                break
    return found
