"""Does the air carry each frame once, let each receiver hear its own, and believe certificates only?"""

# ruff: noqa: N802 - gRPC method names

import asyncio
import json
import logging
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from msgspec import structs
from scipy.special import expit

from hushtune_common.clock import Clock, SystemClock
from hushtune_common.config import LimitsConfig, Scenario
from hushtune_common.errors import LimitExceeded, MalformedUpdate, NotYours, PeerLost, Replayed, StaleRound
from hushtune_common.link.abstraction import Fading
from hushtune_common.link.fidelity import Fidelity
from hushtune_common.link.frame import FrameChunk
from hushtune_common.link.leakage import information_density
from hushtune_common.link.mcs import point_of
from hushtune_common.link.modem import densities
from hushtune_common.link.modular import BlockCode
from hushtune_common.link.reception import Reception, bare_payloads
from hushtune_common.link.secrecy import path_gain
from hushtune_common.link.wiretap import open_design
from hushtune_common.messages import (
    BLOCKS_MAX,
    Digest,
    LinkSeed,
    Listener,
    Part,
    Receipt,
    ReceptionNotice,
    Role,
    RunId,
    SecrecyDesign,
    Transmission,
    UpdateKey,
)
from hushtune_common.seeding import SeedTree
from hushtune_common.store.blobs import BlobName, BlobStore
from hushtune_common.store.journal import Journal
from hushtune_common.units import Decibel, Hertz, Metre, PowerRatio, Second, Watt
from hushtune_common.wire import convert, endpoint, faults
from hushtune_common.wire.listening import AirListener
from hushtune_common.wire.transfer import register_blobs, upload
from hushtune_common.wire.v1 import air_pb2, air_pb2_grpc, blobs_pb2, blobs_pb2_grpc
from hushtune_server.air.abstract import AbstractMedium
from hushtune_server.air.bit_exact import BitExactMedium, codewords_of, path_of
from hushtune_server.air.fading import Geography
from hushtune_server.air.hybrid import HybridMedium
from hushtune_server.air.ledger import ACKNOWLEDGED, OVERHEARD, TRANSMITTED, Ledger, Sent, key_body, receipt_body
from hushtune_server.air.medium import Medium
from hushtune_server.air.meter import Constellation, Meter
from hushtune_server.air.service import AirBlobs, AirService, register_air
from hushtune_server.air.sky import Sky
from tests.fakes import FakeClock
from tests.kits import Kits
from tests.radio import frame_bytes, link_seed, qpsk_design, random_update, reader, scenario, transmission

CLOCK = SystemClock()
SEEDS = SeedTree(7).child("air")
DESIGN = qpsk_design()
UPDATE = random_update(3 * DESIGN.payload_bytes - 5)
CHUNK_BLOCKS = 64
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


class TearingService(AirService):
    """The air over a connection that breaks after so many chunks of each stream."""

    def __init__(self, sky: Sky, *, breaks: list[int]) -> None:
        super().__init__(sky)
        self._breaks = breaks
        self.asked: list[int] = []

    async def Receive(self, request: air_pb2.ReceiveRequest, context: Any) -> AsyncIterator[air_pb2.ReceiveResponse]:
        self.asked.append(request.first_chunk)
        left = self._breaks.pop(0) if self._breaks else None
        async with aclosing(super().Receive(request, context)) as responses:  # pyright: ignore[reportArgumentType]
            async for response in responses:
                if left == 0:
                    raise PeerLost("torn")
                left = None if left is None else left - 1
                yield response
        if left is not None:
            raise PeerLost("torn at the end")


class LyingService(AirService):
    """An air that says something else than it announced."""

    def __init__(self, sky: Sky, *, lie: str) -> None:
        super().__init__(sky)
        self._lie = lie

    async def Receive(self, request: air_pb2.ReceiveRequest, context: Any) -> AsyncIterator[air_pb2.ReceiveResponse]:
        async with aclosing(super().Receive(request, context)) as responses:  # pyright: ignore[reportArgumentType]
            heard = [response async for response in responses]
        for response in self._changed(heard):
            yield response

    def _changed(self, heard: list[air_pb2.ReceiveResponse]) -> list[air_pb2.ReceiveResponse]:
        first, second = heard[0], heard[1]
        match self._lie:
            case "skipped":
                return [first, *heard[2:]]
            case "twice":
                return [first, *heard]
            case "renumbered":
                return [first, air_pb2.ReceiveResponse(chunk=1, reception=first.reception)]
            case "short":
                return heard[:-1]
            case "long":
                return [*heard, air_pb2.ReceiveResponse(chunk=len(heard), reception=heard[-1].reception)]
            case "garbage":
                return [first, air_pb2.ReceiveResponse(chunk=1, reception=second.reception[:-1])]
            case _:
                return [replaced(response, **{self._lie: other_than(self._lie)}) for response in heard]


def other_than(name: str) -> Any:
    others = {"listener": Listener.TAP, "part": Part.KEY, "update_bytes": 10**6, "fidelity": Fidelity.HYBRID}
    return others[name]


def replaced(response: air_pb2.ReceiveResponse, **fields: Any) -> air_pb2.ReceiveResponse:
    changed = replace(Reception.from_bytes(response.reception), **fields)
    return air_pb2.ReceiveResponse(chunk=response.chunk, reception=changed.to_bytes())


class StallingService(AirService):
    """An air whose first stream stands still."""

    stalls = 1

    async def Receive(self, request: air_pb2.ReceiveRequest, context: Any) -> AsyncIterator[air_pb2.ReceiveResponse]:
        async with aclosing(super().Receive(request, context)) as responses:  # pyright: ignore[reportArgumentType]
            async for response in responses:
                if response.chunk == 1 and self.stalls:
                    self.stalls -= 1
                    await asyncio.Event().wait()
                yield response


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


@pytest.fixture
def kits(tmp_path: Path) -> Kits:
    return Kits(tmp_path / "kits")


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


def put_together(receptions: list[Reception], *, size: int, secrecy: SecrecyDesign = DESIGN) -> bytes:
    """Decode what can be decoded; the rest stays zero."""
    code = BlockCode(secrecy, toeplitz=link_seed(secrecy).toeplitz)
    rows = np.zeros((-(-size // secrecy.payload_bytes), secrecy.payload_bytes), dtype=np.uint8)
    for reception in receptions:
        indices, payloads = bare_payloads(reception)
        rows[indices] = payloads
        decoded = code.decode(reception.soft, iterations=point_of(secrecy).iterations)
        rows[reception.coded_indices[decoded.sound]] = decoded.payloads[decoded.sound]
    return rows.tobytes()[:size]


def test_a_frame_reaches_the_owner_whole_and_its_sender_learns_the_receipt(kits: Kits, tmp_path: Path) -> None:
    async def play() -> None:
        async with running(kits, tmp_path) as air:
            sending, blob = order()
            await air.write("c1", blob, prefix=f"frames/{sending.key.text}")
            airtime_s, missing = await air.transmit(sending, caller="c1")
            assert missing == ()
            symbols = 3 * DESIGN.symbols
            assert airtime_s == pytest.approx(symbols / sending.bandwidth)

    asyncio.run(play())


@pytest.mark.slow
@pytest.mark.parametrize("fidelity", MEDIA)
def test_the_owner_puts_together_what_the_client_sent(kits: Kits, tmp_path: Path, fidelity: str) -> None:
    update = random_update(70 * DESIGN.payload_bytes - 5)

    async def play() -> bytes:
        async with running(kits, tmp_path, fidelity=fidelity) as air:
            sent = await air.put_on_air(*order(update=update, fidelity=fidelity))
            assert (sent.blocks, sent.update_bytes, sent.fidelity) == (70, len(update), fidelity)
            receptions = await air.hear(Listener.MAIN)
            assert [r.chunk for r in receptions] == [0, 1]
            return put_together(receptions, size=len(update))

    assert asyncio.run(play()) == update


def test_a_repeated_transmission_gets_the_stored_outcome_and_is_not_sent_again(kits: Kits, tmp_path: Path) -> None:
    async def play() -> None:
        async with running(kits, tmp_path) as air:
            sending, blob = order()
            await air.write("c1", blob, prefix=f"frames/{sending.key.text}")
            first, again = await air.transmit(sending, caller="c1"), await air.transmit(sending, caller="c1")
            assert first == again
            assert len(air.sky.ledger.sent) == 1

    asyncio.run(play())


def test_two_calls_at_once_for_one_key_are_one_transmission(kits: Kits, tmp_path: Path) -> None:
    async def play() -> None:
        async with running(kits, tmp_path) as air:
            sending, blob = order()
            await air.write("c1", blob, prefix=f"frames/{sending.key.text}")
            first, second = await asyncio.gather(air.sky.send(sending), air.sky.send(sending))
            assert first == second
            assert len(air.sky.ledger.sent) == 1

    asyncio.run(play())


def test_another_frame_under_a_used_key_is_refused(kits: Kits, tmp_path: Path) -> None:
    async def play() -> None:
        async with running(kits, tmp_path) as air:
            sending, blob = order()
            await air.put_on_air(sending, blob)
            other, other_blob = order(update=UPDATE[::-1])
            with pytest.raises(Replayed):
                await air.transmit(other, caller="c1")
            with pytest.raises(Replayed):
                await air.write("c1", other_blob, prefix=f"frames/{sending.key.text}")
            assert len(await air.hear(Listener.MAIN)) == 1

    asyncio.run(play())


def test_who_is_no_client_of_the_scenario_takes_no_room_on_the_disk(kits: Kits, tmp_path: Path) -> None:
    async def play() -> None:
        async with running(kits, tmp_path) as air:
            sending, blob = order("c9")
            with pytest.raises(NotYours):
                await air.write("c9", blob, prefix=f"frames/{sending.key.text}")

    asyncio.run(play())


def test_a_client_cannot_transmit_as_another(kits: Kits, tmp_path: Path) -> None:
    async def play() -> None:
        async with running(kits, tmp_path) as air:
            sending, blob = order("c1")
            await air.write("c1", blob, prefix=f"frames/{sending.key.text}")
            with pytest.raises(NotYours):
                await air.transmit(sending, caller="c2")
            with pytest.raises(NotYours):
                await air.write("c2", blob, prefix=f"frames/{sending.key.text}")

    asyncio.run(play())


def test_what_was_not_written_or_exceeds_the_device_is_not_sent(kits: Kits, tmp_path: Path) -> None:
    async def play() -> None:
        async with running(kits, tmp_path) as air:
            sending, blob = order()
            with pytest.raises(MalformedUpdate):
                await air.transmit(sending, caller="c1")
            await air.write("c1", blob, prefix=f"frames/{sending.key.text}")
            with pytest.raises(LimitExceeded):
                await air.transmit(replace(sending, power=Watt(0.3)), caller="c1")
            ahead = replace(sending, key=replace(sending.key, round_id=2))
            with pytest.raises(LimitExceeded, match="round 2"):
                await air.write("c1", blob, prefix=f"frames/{ahead.key.text}")
            with pytest.raises(LimitExceeded):
                await air.transmit(ahead, caller="c1")
            assert air.sky.ledger.sent == ()

    asyncio.run(play())


def test_a_tiny_frame_of_many_codewords_is_refused_before_anything_is_drawn(kits: Kits, tmp_path: Path) -> None:
    async def play() -> None:
        async with running(kits, tmp_path) as air:
            words = 100
            bits = words * DESIGN.info_bits
            design = replace(DESIGN, codewords=words, message_bits=64, random_bits=bits - 64)
            sending, blob = order(update=bytes(400), secrecy=design)
            await air.write("c1", blob, prefix=f"frames/{sending.key.text}")
            with pytest.raises(MalformedUpdate, match="codewords"):
                await air.transmit(sending, caller="c1")
            assert air.medium.chunks == []

    asyncio.run(play())


def test_what_nobody_can_hear_is_refused(kits: Kits, tmp_path: Path) -> None:
    async def play() -> None:
        async with running(kits, tmp_path) as air:
            sending, blob = order()
            await air.write("c1", blob, prefix=f"frames/{sending.key.text}")
            with pytest.raises(MalformedUpdate, match="nothing can be heard"):
                await air.transmit(replace(sending, power=Watt(5e-324)), caller="c1")
            with pytest.raises(LimitExceeded):
                await air.transmit(replace(sending, bandwidth=Hertz(5e-324)), caller="c1")
            assert air.sky.ledger.sent == ()

    asyncio.run(play())


@pytest.mark.parametrize("fidelity", ["bit_exact", "hybrid"])
def test_a_frame_of_another_fidelity_is_refused(kits: Kits, tmp_path: Path, fidelity: str) -> None:
    async def play() -> None:
        async with running(kits, tmp_path, fidelity=fidelity) as air:
            with pytest.raises(MalformedUpdate, match=f"the air runs {fidelity}"):
                await air.put_on_air(*order(fidelity="abstract"))
            assert air.sky.ledger.sent == ()

    asyncio.run(play())


def test_a_code_that_nobody_has_measured_and_seeds_of_wrong_length_are_refused(kits: Kits, tmp_path: Path) -> None:
    async def play() -> None:
        async with running(kits, tmp_path) as air:
            with pytest.raises(MalformedUpdate, match="no coding point"):
                await air.put_on_air(*order(secrecy=replace(DESIGN, code_bits=10_248)))
            sending, blob = order("c2")
            await air.write("c2", blob, prefix=f"frames/{sending.key.text}")
            request = air_pb2.TransmitRequest(transmission=convert.transmission_to_wire(sending))
            for name in ("toeplitz", "dither"):
                short = air_pb2.TransmitRequest()
                short.CopyFrom(request)
                setattr(short.transmission.seed, name, getattr(sending.seed, name)[:-1])
                with pytest.raises(MalformedUpdate, match="seed"), faults.translated():
                    await air.stub(Role.CLIENT, "c2").Transmit(short, timeout=5).read()
            assert air.sky.ledger.sent == ()

    asyncio.run(play())


def test_damaged_frames_are_refused_and_cost_no_notice(kits: Kits, tmp_path: Path) -> None:
    async def play() -> None:
        async with running(kits, tmp_path) as air:
            sending, blob = order()
            head = 32 + 12  # sizes, then three indices
            swapped = blob[: head - 4] + blob[head : head + 4] + blob[head - 4 : head] + blob[head + 4 :]
            for damaged in (b"HTFR" + bytes(60), blob[:-1], blob + b"\0", blob[:20], swapped):
                await air.write("c1", damaged, prefix=f"frames/{sending.key.text}")
                with pytest.raises(MalformedUpdate):
                    await air.transmit(replace(sending, frame=Digest.of(damaged), frame_bytes=len(damaged)), caller="c1")
            assert air.sky.ledger.sent == ()

    asyncio.run(play())


def test_frames_and_updates_have_a_largest_size(kits: Kits, tmp_path: Path) -> None:
    async def play() -> None:
        sending, blob = order()
        async with running(kits, tmp_path / "a", limits=LimitsConfig(frame_bytes_max=len(blob) - 1)) as air:
            with pytest.raises(LimitExceeded):
                await air.write("c1", blob, prefix=f"frames/{sending.key.text}")
            with pytest.raises(LimitExceeded, match="frame_bytes_max"):
                await air.transmit(sending, caller="c1")
        async with running(kits, tmp_path / "b", limits=LimitsConfig(update_bytes_max=len(UPDATE) - 1)) as air:
            with pytest.raises(LimitExceeded, match="update_bytes_max"):
                await air.put_on_air(sending, blob)

    asyncio.run(play())


OPEN = open_design(point_of(DESIGN), codewords=4)
KEY = random_update(32)


@pytest.mark.parametrize(
    ("protection", "part", "secrecy", "update", "allowed"),
    [
        ("payload", Part.PAYLOAD, DESIGN, UPDATE, True),
        ("payload", Part.PAYLOAD, OPEN, UPDATE, False),
        ("payload", Part.KEY, DESIGN, KEY, False),
        ("key", Part.KEY, DESIGN, KEY, True),
        ("key", Part.KEY, OPEN, KEY, False),
        ("key", Part.KEY, DESIGN, KEY + b"1", False),
        ("key", Part.PAYLOAD, OPEN, UPDATE, True),
        ("key", Part.PAYLOAD, DESIGN, UPDATE, False),
        ("crypto_only", Part.PAYLOAD, OPEN, UPDATE, True),
        ("crypto_only", Part.PAYLOAD, DESIGN, UPDATE, False),
        ("crypto_only", Part.KEY, DESIGN, KEY, False),
    ],
)
def test_parts_go_as_the_scenarios_protections_say(
    kits: Kits, tmp_path: Path, protection: str, part: Part, secrecy: SecrecyDesign, update: bytes, allowed: bool
) -> None:
    async def play() -> None:
        async with running(kits, tmp_path, protections=(protection,)) as air:
            sending, blob = order(update=update, secrecy=secrecy, part=part)
            await air.write("c1", blob, prefix=f"frames/{sending.key.text}")
            if allowed:
                assert (await air.transmit(sending, caller="c1"))[1] == ()
                return
            with pytest.raises(MalformedUpdate, match="part"):
                await air.transmit(sending, caller="c1")

    asyncio.run(play())


def test_each_receiver_hears_with_its_own_ears_only(kits: Kits, tmp_path: Path) -> None:
    async def play() -> None:
        async with running(kits, tmp_path, fidelity="bit_exact") as air:
            sending, blob = order(fidelity="bit_exact")
            name = (await air.put_on_air(sending, blob)).transmission.frame
            (main,), (tap,) = await air.hear(Listener.MAIN), await air.hear(Listener.TAP)
            assert (main.listener, tap.listener) == (Listener.MAIN, Listener.TAP)
            assert main.snr_db.min() > tap.snr_db.max() + 20  # 60 m and 390 m
            with pytest.raises(NotYours):
                await air.ask(Role.CLIENT, "c1", sending.key)
            channel = air.channel(Role.EAVESDROPPER, "eavesdropper")
            posing = AirListener(channel, air.scenario, listener=Listener.MAIN, clock=CLOCK, seeds=SEEDS)
            with pytest.raises(MalformedUpdate, match="listener"):
                await notices(posing, 1)
            for role, who in ((Role.OWNER, "owner"), (Role.EAVESDROPPER, "eavesdropper"), (Role.CLIENT, "c1")):
                assert not await may_read(air, role, who, f"frames/{sending.key.text}/{name.hex}/{len(blob)}")

    async def may_read(air: Air, role: Role, who: str, text: str) -> bool:
        stub: Any = blobs_pb2_grpc.BlobsStub(air.channel(role, who))
        try:
            with faults.translated():
                return bool(await stub.Read(blobs_pb2.ReadRequest(resource_name=text), timeout=5).read())
        except NotYours:
            return False

    asyncio.run(play())


def test_only_what_is_on_air_can_be_heard_from_a_chunk_that_exists(kits: Kits, tmp_path: Path) -> None:
    async def play() -> None:
        async with running(kits, tmp_path) as air:
            sending, blob = order(update=random_update(130 * DESIGN.payload_bytes))
            with pytest.raises(StaleRound, match="never"):
                await air.ask(Role.OWNER, "owner", sending.key)
            await air.put_on_air(sending, blob)
            answers = await air.ask(Role.OWNER, "owner", sending.key)
            rest = await air.ask(Role.OWNER, "owner", sending.key, first=1)
            assert [a.chunk for a in answers] == [0, 1, 2]
            assert rest == answers[1:]
            assert await air.ask(Role.OWNER, "owner", sending.key, first=3) == []
            assert air.sky.ledger.awaited(sending.key) == {*Listener}  # it spoke for itself, not for the tap
            for first in (4, -1, 2**31 - 1):
                with pytest.raises(MalformedUpdate, match="first_chunk"):
                    await air.ask(Role.OWNER, "owner", sending.key, first=first)

    asyncio.run(play())


@pytest.mark.parametrize("breaks", [[0, 1, 2, 0], [3], [2, 1]])
def test_a_listener_whose_stream_breaks_gets_the_rest_and_nothing_twice(kits: Kits, tmp_path: Path, breaks: list[int]) -> None:
    async def play() -> None:
        update = random_update(200 * DESIGN.payload_bytes)
        async with running(kits, tmp_path, serve=lambda sky: TearingService(sky, breaks=breaks)) as air:
            await air.put_on_air(*order(update=update))
            receptions = await air.hear(Listener.MAIN)
            assert [r.chunk for r in receptions] == [0, 1, 2, 3]
            assert np.concatenate([r.indices for r in receptions]).tolist() == list(range(200))
            assert isinstance(air.service, TearingService)
            assert air.service.asked == sorted(air.service.asked)
            assert len(air.service.asked) > 1

    asyncio.run(play())


def test_a_listener_gives_up_when_nothing_gets_through(kits: Kits, tmp_path: Path) -> None:
    async def play() -> None:
        limits = LimitsConfig(attempts_max=2)
        async with running(kits, tmp_path, serve=lambda sky: TearingService(sky, breaks=[0] * 9), limits=limits) as air:
            await air.put_on_air(*order())
            with pytest.raises(PeerLost, match="torn"):
                await air.hear(Listener.MAIN)
            assert isinstance(air.service, TearingService)
            assert air.service.asked == [0, 0]

    asyncio.run(play())


@pytest.mark.parametrize(
    "lie", ["skipped", "twice", "renumbered", "short", "long", "garbage", "listener", "part", "update_bytes", "fidelity"]
)
def test_a_listener_refuses_what_was_not_announced(kits: Kits, tmp_path: Path, lie: str) -> None:
    async def play() -> None:
        update = random_update(190 * DESIGN.payload_bytes)
        async with running(kits, tmp_path, serve=lambda sky: LyingService(sky, lie=lie)) as air:
            await air.put_on_air(*order(update=update))
            with pytest.raises(MalformedUpdate):
                await air.hear(Listener.MAIN)

    asyncio.run(play())


def test_a_listener_refuses_an_update_that_is_too_large_before_it_hears_any_of_it(kits: Kits, tmp_path: Path) -> None:
    async def play() -> None:
        async with running(kits, tmp_path) as air:
            await air.put_on_air(*order())
            narrow = structs.replace(air.scenario, limits=LimitsConfig(update_bytes_max=len(UPDATE) - 1))
            with pytest.raises(LimitExceeded):
                await air.hear(Listener.MAIN, setting=narrow)
            assert air.medium.chunks == []

    asyncio.run(play())


def test_a_listener_refuses_bytes_that_were_handed_over_where_bits_were_agreed(kits: Kits, tmp_path: Path) -> None:
    async def play() -> None:
        async with running(kits, tmp_path) as air:
            await air.put_on_air(*order())
            agreed = scenario(air={"fidelity": "bit_exact" if air.scenario.air.fidelity == "abstract" else "abstract"})
            listener = air.listener(Listener.MAIN, setting=agreed)
            (notice,) = await notices(listener, 1)
            with pytest.raises(MalformedUpdate, match="fidelity"):
                await anext(listener.receive(notice))

    asyncio.run(play())


def test_a_stream_that_stands_still_is_begun_again_where_it_stood(kits: Kits, tmp_path: Path) -> None:
    async def play() -> None:
        async with running(kits, tmp_path, serve=StallingService) as air:
            await air.put_on_air(*order(update=random_update(190 * DESIGN.payload_bytes)))
            impatient = structs.replace(air.scenario, timing=structs.replace(air.scenario.timing, idle_s=0.1))
            assert [r.chunk for r in await air.hear(Listener.MAIN, setting=impatient)] == [0, 1, 2]

    asyncio.run(play())


def test_one_chunk_is_computed_ahead_of_the_listener_and_no_more(kits: Kits, tmp_path: Path) -> None:
    async def play() -> None:
        async with running(kits, tmp_path) as air:
            sending, blob = order(update=random_update(400 * DESIGN.payload_bytes))
            await air.put_on_air(sending, blob)
            async with aclosing(air.sky.receptions(sending.key, Listener.MAIN, first=0)) as chunks:
                for taken in range(1, 4):
                    assert (await anext(chunks))[0] == taken - 1
                    for _ in range(taken + 1 if taken == 1 else 1):
                        assert await asyncio.to_thread(air.medium.arrived.acquire, timeout=10)
                    assert [number for _, number in air.medium.chunks] == list(range(taken + 1))
            assert len(air.medium.chunks) == 4

    asyncio.run(play())


MOVES = [{"client": "c1", "after_s": 10.0, "position": {"x_m": 200.0, "y_m": 0.0}}]


async def sounded(air: Air, client: str = "c1") -> air_pb2.SoundResponse:
    with faults.translated():
        return await air.stub(Role.CLIENT, client).Sound(air_pb2.SoundRequest(round_id=1), timeout=5)


def test_the_airs_time_begins_with_the_first_sounding_and_gains_follow_it(kits: Kits, tmp_path: Path) -> None:
    async def play() -> None:
        clock = FakeClock(start=1000.0)
        async with running(kits, tmp_path, clock=clock, moves=MOVES) as air:
            clock.advance(500.0)
            first = await sounded(air, "c2")
            clock.advance(9.0)
            before = await sounded(air)
            clock.advance(1.5)
            after = await sounded(air)
            assert (first.at_s, before.at_s, after.at_s) == (0.0, 9.0, 10.5)
            assert (before.gain_main, after.gain_main) == pytest.approx((path_gain(Metre(60.0)), path_gain(Metre(200.0))))

    asyncio.run(play())


def test_a_transmission_is_heard_over_the_channel_of_its_moment_whenever_that_is(kits: Kits, tmp_path: Path) -> None:
    async def play() -> tuple[Sent, Sent, bytes, bytes]:
        clock = FakeClock()
        async with running(kits, tmp_path, clock=clock, moves=MOVES) as air:
            await sounded(air)
            near = await air.put_on_air(*order())
            before = await air.ask(Role.OWNER, "owner", near.transmission.key)
            clock.advance(60.0)
            far = await air.put_on_air(*order(attempt=2))
            after = await air.ask(Role.OWNER, "owner", near.transmission.key)
            return near, far, before[0].reception, after[0].reception

    near, far, before, after = asyncio.run(play())
    assert before == after
    assert (near.at, far.at) == (0.0, 60.0)
    assert near.snr_main_db - far.snr_main_db == pytest.approx(37.6 * np.log10(200.0 / 60.0))
    assert far.snr_tap_db - near.snr_tap_db == pytest.approx(37.6 * np.log10(390.0 / 250.0))


def test_the_airs_time_never_runs_backwards_over_a_restart(kits: Kits, tmp_path: Path) -> None:
    async def play() -> list[float]:
        found = list[float]()
        for waits in ((0.0, 0.9, 3.0, 0.5), (0.0, 4.0)):
            clock = FakeClock(start=7.0)
            async with running(kits, tmp_path, clock=clock, moves=MOVES) as air:
                for wait in waits:
                    clock.advance(wait)
                    found.append((await sounded(air)).at_s)
        return found

    moments = asyncio.run(play())
    assert moments == sorted(moments)
    assert moments[-1] == pytest.approx(3.9 + 1.0 + 4.0), "from the last mark, a second later, and four seconds on"


def test_where_nothing_moves_time_stands_still(kits: Kits, tmp_path: Path) -> None:
    async def play() -> None:
        clock = FakeClock()
        async with running(kits, tmp_path, clock=clock) as air:
            first = await sounded(air)
            clock.advance(100.0)
            assert await sounded(air) == first
            assert (first.at_s, air.sky.ledger.marked) == (0.0, None)

    asyncio.run(play())


def test_a_restarted_air_lets_the_same_be_heard_again(kits: Kits, tmp_path: Path) -> None:
    async def play() -> None:
        sending, blob = order(fidelity="hybrid", update=random_update(100 * DESIGN.payload_bytes))
        heard: list[list[bytes]] = []
        for _ in range(2):
            async with running(kits, tmp_path, fidelity="hybrid", fading="rayleigh_block") as air:
                if not heard:
                    await air.put_on_air(sending, blob)
                answers = [
                    await air.ask(r, n, sending.key) for r, n in ((Role.OWNER, "owner"), (Role.EAVESDROPPER, "eavesdropper"))
                ]
                heard.append([a.reception for stream in answers for a in stream])
        assert heard[0] == heard[1]
        assert len(heard[0]) == 4

    asyncio.run(play())


def test_only_receivers_listen_and_only_the_owner_acknowledges(kits: Kits, tmp_path: Path) -> None:
    async def play() -> None:
        async with running(kits, tmp_path) as air:
            with pytest.raises(NotYours), faults.translated():
                async for _ in air.stub(Role.CLIENT, "c1").Listen(air_pb2.ListenRequest(), timeout=5):
                    pass
            sending, _ = order()
            receipt = convert.receipt_to_ack(Receipt(key=sending.key, missing=()))
            with pytest.raises(NotYours), faults.translated():
                await air.stub(Role.EAVESDROPPER, "eavesdropper").Acknowledge(receipt, timeout=5)
            with pytest.raises(StaleRound):
                await air.acknowledge(sending.key)

    asyncio.run(play())


@pytest.mark.slow
def test_a_receipt_that_names_every_block_of_the_largest_update_is_taken_and_survives_a_restart(
    kits: Kits, tmp_path: Path
) -> None:
    async def play() -> None:
        missing = tuple(range(BLOCKS_MAX))
        async with running(kits, tmp_path) as air:
            sending, blob = order()
            await air.put_on_air(sending, blob)
            await air.acknowledge(sending.key, missing)
            assert await air.transmit(sending, caller="c1") == (pytest.approx(3 * DESIGN.symbols / sending.bandwidth), missing)
        async with running(kits, tmp_path) as air:
            assert air.sky.ledger.receipt(sending.key) == Receipt(key=sending.key, missing=missing)

    asyncio.run(play())


def test_a_listener_resumes_after_what_it_has_seen(kits: Kits, tmp_path: Path) -> None:
    async def play() -> None:
        async with running(kits, tmp_path) as air:
            for client in ("c1", "c2"):
                await air.put_on_air(*order(client))
            call = air.stub(Role.OWNER, "owner").Listen(air_pb2.ListenRequest(last_seen_seq=1), timeout=5)
            response = await call.read()
            call.cancel()
            assert (response.seq, response.transmission.client) == (2, "c2")

    asyncio.run(play())


def test_a_restarted_owner_is_told_what_it_has_acknowledged(kits: Kits, tmp_path: Path) -> None:
    async def play() -> None:
        async with running(kits, tmp_path) as air:
            for client in ("c1", "c2"):
                await air.put_on_air(*order(client))
            await air.acknowledge(order("c1")[0].key)
            owner = await notices(air.listener(Listener.MAIN), 2)
            assert [(n.transmission.key.client, n.acknowledged) for n in owner] == [("c1", True), ("c2", False)]
            tap = air.listener(Listener.TAP)
            assert [n.acknowledged for n in await notices(tap, 2)] == [False, False]  # it can still be heard there
            await air.hear(Listener.TAP)
            assert [n.acknowledged for n in await notices(tap, 2)] == [True, False]

    asyncio.run(play())


def test_a_client_hears_its_own_gain_as_the_map_says(kits: Kits, tmp_path: Path) -> None:
    async def play() -> None:
        async with running(kits, tmp_path) as air:
            response = await air.stub(Role.CLIENT, "c1").Sound(air_pb2.SoundRequest(round_id=1), timeout=5)
            loss_db = 128.1 + 37.6 * -1.2218487496163564  # 60 m: log10(0.06)
            assert response.gain_main == pytest.approx(10 ** (-loss_db / 10))
            with pytest.raises(NotYours), faults.translated():
                await air.stub(Role.OWNER, "owner").Sound(air_pb2.SoundRequest(round_id=1), timeout=5)

    asyncio.run(play())


def test_folding_the_journal_again_gives_the_same_story(kits: Kits, tmp_path: Path) -> None:
    async def play() -> None:
        sending, blob = order(fidelity="bit_exact")
        async with running(kits, tmp_path, fidelity="bit_exact") as air:
            await air.write("c1", blob, prefix=f"frames/{sending.key.text}")
            before = await air.transmit(sending, caller="c1")
            story = air.sky.ledger.report()
            assert story[0]["meter"] is not None
        async with running(kits, tmp_path, fidelity="bit_exact") as air:
            assert air.sky.ledger.report() == story
            assert await air.transmit(sending, caller="c1") == before

    asyncio.run(play())


@pytest.mark.parametrize("tap_first", [True, False])
def test_a_frame_is_kept_until_the_owner_has_answered_and_the_tap_has_heard_it(
    kits: Kits, tmp_path: Path, tap_first: bool
) -> None:
    async def play() -> None:
        async with running(kits, tmp_path) as air:
            sending, blob = order(update=random_update(100 * DESIGN.payload_bytes))
            await air.put_on_air(sending, blob)
            steps = [lambda: air.hear(Listener.TAP), lambda: air.acknowledge(sending.key)]
            for step in steps if tap_first else steps[::-1]:
                assert air.held() == [sending.key.text]
                await step()
            assert air.held() == []
            for role, name in ((Role.OWNER, "owner"), (Role.EAVESDROPPER, "eavesdropper")):
                with pytest.raises(StaleRound):
                    await air.ask(role, name, sending.key)
            await air.write("c1", blob, prefix=f"frames/{sending.key.text}")  # as a client that restarted may do
            assert (await air.transmit(sending, caller="c1"))[1] == ()
            assert air.held() == []

    asyncio.run(play())


def test_a_tap_that_leaves_in_the_middle_has_not_heard_a_frame(kits: Kits, tmp_path: Path) -> None:
    async def play() -> None:
        async with running(kits, tmp_path) as air:
            sending, blob = order(update=random_update(200 * DESIGN.payload_bytes))
            await air.put_on_air(sending, blob)
            await air.acknowledge(sending.key)
            tap = air.listener(Listener.TAP)
            (notice,) = await notices(tap, 1)
            async with aclosing(tap.receive(notice)) as stream:
                assert (await anext(stream)).chunk == 0
            assert air.held() == [sending.key.text]
        async with running(kits, tmp_path) as air:
            assert [r.chunk for r in await air.hear(Listener.TAP)] == [0, 1, 2, 3]
            assert air.held() == []

    asyncio.run(play())


@pytest.mark.slow
def test_a_client_that_sends_in_run_after_run_does_not_take_the_room_of_the_others(
    kits: Kits, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def play() -> None:
        size = len(order()[1])
        # Three of the largest frames for each of three clients, as the air has it; nobody acknowledges and the tap does not hear.
        async with running(kits, tmp_path, quota_bytes=9 * size, limits=LimitsConfig(frame_bytes_max=size)) as air:
            for number in range(64):
                await send(air, "c1", run=f"run-{number}")
            with pytest.raises(LimitExceeded, match="64 runs"):
                await send(air, "c1", run="one-more")
            for client in ("c2", "c3"):
                await send(air, client, run="run-0")
            awaited = [f"run-{n}/1/c1/1" for n in (60, 61, 62, 63)] + ["run-0/1/c2/1", "run-0/1/c3/1"]
            assert [key for key in air.held() if key != "one-more/1/c1/1"] == sorted(awaited)
            with pytest.raises(StaleRound):
                await air.hear(Listener.TAP)

    async def send(air: Air, client: str, *, run: str) -> None:
        sending, blob = order(client)
        await air.put_on_air(replace(sending, key=replace(sending.key, run=RunId(run))), blob)

    with caplog.at_level(logging.WARNING):
        asyncio.run(play())
    unread = [vars(r)["hushtune_fields"]["reception"] for r in caplog.records if r.message == "reception_unread"]
    assert unread == [f"frames/run-{n}/1/c1/1" for n in range(60)]


def test_a_frame_that_its_sender_has_given_up_can_no_longer_be_heard_to_the_end(kits: Kits, tmp_path: Path) -> None:
    async def play() -> None:
        async with running(kits, tmp_path) as air:
            sending, blob = order(update=random_update(300 * DESIGN.payload_bytes))
            await air.put_on_air(sending, blob)
            await air.hear(Listener.TAP)
            async with aclosing(air.sky.receptions(sending.key, Listener.MAIN, first=0)) as chunks:
                await anext(chunks)
                await air.put_on_air(*order(attempt=2))  # without waiting for a receipt
                with pytest.raises(StaleRound):
                    await anext(chunks)
            assert air.held() == ["run-1/1/c1/2"]

    asyncio.run(play())


def test_a_client_that_writes_and_never_sends_holds_one_frame(kits: Kits, tmp_path: Path) -> None:
    async def play() -> None:
        async with running(kits, tmp_path) as air:
            sending, blob = order()
            for attempt in range(1, 5):
                await air.write("c1", blob, prefix=f"frames/run-1/1/c1/{attempt}")
            assert air.held() == ["run-1/1/c1/4"]
            await air.put_on_air(sending, blob)
            await air.write("c1", blob, prefix="frames/run-1/1/c1/2")
            assert air.held() == ["run-1/1/c1/1", "run-1/1/c1/2"]  # what is on air stays

    asyncio.run(play())


def test_a_stopping_air_ends_its_streams(kits: Kits, tmp_path: Path) -> None:
    async def play() -> None:
        async with running(kits, tmp_path) as air:
            sending, blob = order(update=random_update(300 * DESIGN.payload_bytes))
            await air.put_on_air(sending, blob)
            async with aclosing(air.sky.receptions(sending.key, Listener.MAIN, first=0)) as chunks:
                await anext(chunks)
                air.sky.drain()
                with pytest.raises(PeerLost):
                    await anext(chunks)

    asyncio.run(play())


@pytest.mark.parametrize("fidelity", ["bit_exact", "hybrid"])
@pytest.mark.parametrize("fading", ["none", "rayleigh_block"])
def test_the_meter_reads_the_very_noise_that_the_tap_hears(kits: Kits, tmp_path: Path, fidelity: str, fading: str) -> None:
    sending, blob = order(fidelity=fidelity, update=random_update(150 * DESIGN.payload_bytes))
    sending = replace(sending, power=Watt(3e-5))

    async def play() -> tuple[dict[str, Any], list[Reception]]:
        async with running(kits, tmp_path, fidelity=fidelity, fading=fading, metered_blocks=70) as air:
            await air.put_on_air(sending, blob)
            return air.sky.ledger.report()[0], await air.hear(Listener.TAP)

    entry, receptions = asyncio.run(play())
    frame = reader(blob)
    rows = np.concatenate([frame.chunk(k, design=DESIGN).rows for k in range(3)])[:70]
    soft = np.concatenate([r.soft for r in receptions])[:70].reshape(70, -1)
    signs = np.where(np.unpackbits(rows, axis=1, bitorder="little") == 1, -1.0, 1.0)[: len(soft)]
    # Over QPSK a density is 1 - log2(1 + exp(-L)) with L the log-likelihood ratio of the bit that was sent. 3 L was rounded: an
    # error of variance 1 / 108, which adds 14 bits to the sum (one deviation) and a mean that the second derivative gives.
    ratio = signs * soft / 3.0
    density = 1.0 - np.log2(1.0 + np.exp(-ratio)) + expit(ratio) * expit(-ratio) / np.log(2.0) / 216.0
    error = np.array(entry["meter"]["values_bits"]) - density.sum(axis=1)
    assert entry["meter"]["blocks"] == len(rows) == 70 <= entry["blocks_coded"]
    assert np.sqrt(np.mean(error**2)) < 20.0 < 50.0 < density.sum(axis=1).std()
    assert entry["meter"]["max_bits"] == pytest.approx(max(entry["meter"]["values_bits"]), abs=0.05)


def test_the_meter_agrees_with_theory_and_with_the_modem(kits: Kits, tmp_path: Path) -> None:
    sending, blob = order(fidelity="bit_exact", update=random_update(100 * DESIGN.payload_bytes))

    async def play() -> tuple[Sent, float]:
        async with running(kits, tmp_path, fidelity="bit_exact") as air:
            sent = await air.put_on_air(sending, blob)
            return sent, air.sky.geography.gain_tap("c1", 1)

    sent, gain = asyncio.run(play())
    assert sent.meter is not None
    about: dict[str, Any] = {"listener": Listener.TAP, "transmission": sending, "gain": gain, "seeds": SEEDS}
    chunk = reader(blob).chunk(1, design=DESIGN)
    words, dither = codewords_of(chunk.rows, sending)
    path = path_of(chunk, **about, fading=Fading(subbands=0))
    values = densities(words, dither=dither, modulation="qpsk", path=path).reshape(-1, 4).sum(axis=1)
    assert sent.meter.values_bits[64:] == pytest.approx(values, abs=0.051)
    theory, dimensions = information_density("qpsk", sent.snr_tap_db), DESIGN.codewords * DESIGN.code_bits
    spread = (dimensions * theory.variance) ** 0.5
    assert abs(sent.meter.values_bits.mean() - dimensions * theory.mean) < 4 * spread / 100**0.5
    assert 0.7 * spread < sent.meter.values_bits.std() < 1.3 * spread


def test_constellations_show_the_points_that_were_sent_with_each_listeners_noise(kits: Kits, tmp_path: Path) -> None:
    async def play() -> Sent:
        async with running(kits, tmp_path, fidelity="bit_exact") as air:
            return await air.put_on_air(*order(fidelity="bit_exact"))

    sent = asyncio.run(play())
    assert sent.constellation is not None
    for points, snr_db in ((sent.constellation.main, sent.snr_main_db), (sent.constellation.tap, sent.snr_tap_db)):
        assert len(points) == 256
        power = np.square(points).sum(axis=1).mean()  # the signal has power 2 over both dimensions
        assert power == pytest.approx(2 + 2 * 10 ** (-snr_db / 10), rel=0.3)


def test_without_coded_blocks_or_metering_there_is_no_meter(kits: Kits, tmp_path: Path) -> None:
    async def play() -> None:
        async with running(kits, tmp_path / "a") as air:
            await air.put_on_air(*order())
            (entry,) = air.sky.ledger.report()
            assert (entry["blocks_coded"], entry["meter"], entry["constellation"]) == (0, None, None)
            assert (entry["part"], entry["random_bits"]) == ("payload", DESIGN.random_bits)
        async with running(kits, tmp_path / "b", fidelity="bit_exact", metered_blocks=0) as air:
            sent = await air.put_on_air(*order(fidelity="bit_exact"))
            assert sent.meter is None
            assert sent.constellation is not None

    asyncio.run(play())


def sent_of(sending: Transmission) -> Sent:
    return Sent(
        transmission=sending,
        blocks=3,
        blocks_coded=2,
        update_bytes=len(UPDATE),
        airtime=Second(1.0),
        fidelity="hybrid",
        snr_main_db=Decibel(3.0),
        snr_tap_db=Decibel(-5.0),
        meter=Meter.of(np.array([2024.75, 2100.0])),
        constellation=Constellation(main=((1.0, -1.0),), tap=((0.5, 0.25),)),
    )


def test_an_event_that_comes_twice_counts_once() -> None:
    sending, _ = order()
    sent, receipt = sent_of(sending), Receipt(key=sending.key, missing=(2,))
    ledger = Ledger()
    for _ in range(2):
        ledger.apply(TRANSMITTED, json.loads(json.dumps(sent.to_body())))
        ledger.apply(ACKNOWLEDGED, json.loads(json.dumps(receipt_body(receipt))))
        ledger.apply(OVERHEARD, json.loads(json.dumps(key_body(sending.key))))
    assert ledger.sent == (sent,)
    assert ledger.receipt(sending.key) == receipt
    assert ledger.awaited(sending.key) == frozenset()
    assert [n.seq for n in ledger.notices_after(0, Listener.TAP)] == [1]


def test_a_ledger_knows_who_waits() -> None:
    first, second = order(attempt=1)[0], order(attempt=2)[0]
    ledger = Ledger()
    assert ledger.awaited(first.key) == frozenset()
    ledger.apply(TRANSMITTED, sent_of(first).to_body())
    assert ledger.awaited(first.key) == {Listener.MAIN, Listener.TAP}
    ledger.apply(TRANSMITTED, sent_of(second).to_body())
    assert ledger.awaited(first.key) == {Listener.TAP}  # the client no longer hopes for an answer
    ledger.apply(OVERHEARD, key_body(first.key))
    ledger.apply(ACKNOWLEDGED, receipt_body(Receipt(key=second.key, missing=())))
    assert (ledger.awaited(first.key), ledger.awaited(second.key)) == (frozenset(), {Listener.TAP})


def test_the_largest_meter_and_the_longest_seeds_fit_into_an_event(tmp_path: Path) -> None:
    bits = 16 * DESIGN.info_bits
    largest = replace(DESIGN, codewords=16, message_bits=64, random_bits=bits - 64)
    seed = LinkSeed(toeplitz=bytes(largest.toeplitz_bytes), dither=bytes(largest.coded_bytes), tag=bytes(32))
    sent = replace(
        sent_of(replace(order()[0], design=largest, seed=seed)),
        meter=Meter.of(np.full(BLOCKS_MAX, 99_999.9)),
        constellation=Constellation(main=((-1.234, 5.678),) * 256, tap=((-10.234, 15.678),) * 256),
    )

    async def play() -> Sent:
        journal = Journal.open(tmp_path / "journal.sqlite", schema="test")
        event = await journal.append(TRANSMITTED, sent.to_body())
        await journal.close()
        return Sent.from_body(event.body)

    assert asyncio.run(play()) == sent
