"""Does the air carry each frame once, tell each receiver its own, and believe certificates only?"""

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from msgspec import structs

from hushtune_common.clock import SystemClock
from hushtune_common.config import LimitsConfig, Scenario
from hushtune_common.errors import LimitExceeded, MalformedUpdate, NotYours, Replayed, StaleRound, StorageFull
from hushtune_common.link.channel import BLOCKS_MAX, Assembly, Reception, cut
from hushtune_common.messages import Digest, Listener, Receipt, ReceptionNotice, Role, RunId, Transmission
from hushtune_common.seeding import SeedTree
from hushtune_common.store.blobs import BlobName, BlobStore
from hushtune_common.store.journal import Journal
from hushtune_common.units import Decibel, Hertz, Second, Watt
from hushtune_common.wire import convert, endpoint, faults
from hushtune_common.wire.listening import AirListener, reception_name
from hushtune_common.wire.transfer import download, register_blobs, upload
from hushtune_common.wire.v1 import air_pb2, air_pb2_grpc
from hushtune_server.air.abstract import AbstractMedium
from hushtune_server.air.fading import Geography
from hushtune_server.air.ledger import ACKNOWLEDGED, TRANSMITTED, Heard, Ledger, Sent, receipt_body
from hushtune_server.air.service import AirBlobs, AirService, Sky, register_air
from tests.kits import Kits
from tests.radio import qpsk_design, random_update, scenario, transmission

CLOCK = SystemClock()
SEEDS = SeedTree(7).child("air")
DESIGN = qpsk_design()
UPDATE = random_update(3 * DESIGN.payload_bytes - 5)


@dataclass(slots=True)
class Air:
    """A running air and what its callers need."""

    scenario: Scenario
    sky: Sky
    address: str
    kits: Kits
    folder: Path
    channels: dict[tuple[Role, str], grpc.aio.Channel]

    def channel(self, role: Role, name: str) -> grpc.aio.Channel:
        if (role, name) not in self.channels:
            kit = self.kits.kit(role, name)
            self.channels[role, name] = endpoint.connect(self.address, role=Role.AIR, kit=kit, timing=self.scenario.timing)
        return self.channels[role, name]

    def stub(self, role: Role, name: str) -> Any:
        return air_pb2_grpc.AirStub(self.channel(role, name))

    def listener(self, role: Role, listener: Listener) -> AirListener:
        store = BlobStore(self.folder / f"store-{role}", quota_bytes=1 << 26)
        channel = self.channel(role, str(role))
        return AirListener(channel, self.scenario, listener=listener, store=store, clock=CLOCK, seeds=SEEDS)

    async def write(self, client: str, frame: bytes, *, prefix: str) -> BlobName:
        name = BlobName(prefix=prefix, digest=Digest.of(frame), size=len(frame))
        channel, timing = self.channel(Role.CLIENT, client), self.scenario.timing
        await upload(channel, name, frame, clock=CLOCK, seeds=SEEDS, timing=timing, attempts_max=2)
        return name

    async def acknowledge(self, key: Any, missing: tuple[int, ...] = ()) -> None:
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


@asynccontextmanager
async def running(
    kits: Kits, folder: Path, *, quota_bytes: int = 1 << 26, update_bytes_max: int = 1 << 28
) -> AsyncGenerator[Air]:
    limits = LimitsConfig(update_bytes_max=update_bytes_max)
    setting = structs.replace(scenario(air={"shadowing_db": 0.0}), limits=limits)
    store = BlobStore(folder / "blobs", quota_bytes=quota_bytes)
    journal = Journal.open(folder / "journal.sqlite", schema="test-air")
    medium, geography = AbstractMedium(setting), Geography(setting, SEEDS)
    sky = Sky(setting, medium=medium, geography=geography, store=store, journal=journal, seeds=SEEDS)
    server = await endpoint.serve(
        [register_air(AirService(sky)), register_blobs(AirBlobs(sky, store))],
        names=["hushtune.v1.Air"],
        listen="127.0.0.1:0",
        kit=kits.kit(Role.AIR),
        clock=CLOCK,
        timing=setting.timing,
    )
    air = Air(scenario=setting, sky=sky, address=server.address, kits=kits, folder=folder, channels={})
    try:
        yield air
    finally:
        for channel in air.channels.values():
            await channel.close()
        sky.drain()
        await server.stop(0.0)
        await journal.close()


@pytest.fixture
def kits(tmp_path: Path) -> Kits:
    return Kits(tmp_path / "kits")


def order(client: str = "c1", *, attempt: int = 1, update: bytes = UPDATE, only: list[int] | None = None) -> tuple[Any, bytes]:
    """Return a transmission at ample SNR and the bytes of its frame."""
    frame = cut(update, design=DESIGN, only=only)
    blob = frame.to_bytes()
    sending = transmission(frame, DESIGN, client=client, attempt=attempt)
    return replace(sending, frame=Digest.of(blob), power=Watt(2e-5)), blob


async def notices(listener: AirListener, count: int) -> list[ReceptionNotice]:
    found: list[ReceptionNotice] = []
    async with asyncio.timeout(10), aclosing(listener.notices()) as stream:
        async for notice in stream:
            found.append(notice)
            if len(found) == count:
                break
    return found


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


def test_the_owner_puts_together_what_the_client_sent(kits: Kits, tmp_path: Path) -> None:
    async def play() -> bytes:
        async with running(kits, tmp_path) as air:
            sending, blob = order()
            await air.write("c1", blob, prefix=f"frames/{sending.key.text}")
            await air.sky.send(sending)
            listener = air.listener(Role.OWNER, Listener.MAIN)
            (notice,) = await notices(listener, 1)
            reception = Reception.from_bytes((await listener.fetch(notice)).read_bytes())
            assembly = Assembly(reception.update_bytes, reception.block_bytes)
            assembly.add(reception)
            return assembly.data()

    assert asyncio.run(play()) == UPDATE


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
            await air.write("c1", blob, prefix=f"frames/{sending.key.text}")
            await air.transmit(sending, caller="c1")
            other, _ = order(update=UPDATE[::-1])
            with pytest.raises(Replayed):
                await air.transmit(other, caller="c1")

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
            frame = cut(bytes(400), design=design)
            sending = replace(transmission(frame, design), frame=Digest.of(frame.to_bytes()), power=Watt(2e-5))
            await air.write("c1", frame.to_bytes(), prefix=f"frames/{sending.key.text}")
            with pytest.raises(MalformedUpdate, match="codewords"):
                await air.transmit(sending, caller="c1")

    asyncio.run(play())


def test_what_nobody_can_hear_is_refused_and_leaves_nothing_behind(kits: Kits, tmp_path: Path) -> None:
    async def play() -> None:
        async with running(kits, tmp_path) as air:
            sending, blob = order()
            await air.write("c1", blob, prefix=f"frames/{sending.key.text}")
            with pytest.raises(MalformedUpdate, match="nothing can be heard"):
                await air.transmit(replace(sending, power=Watt(5e-324)), caller="c1")
            with pytest.raises(LimitExceeded):
                await air.transmit(replace(sending, bandwidth=Hertz(5e-324)), caller="c1")
            assert not [p for p in (tmp_path / "blobs" / "complete").rglob("receptions/*/*") if p.is_file()]
            assert air.sky.ledger.sent == ()

    asyncio.run(play())


def test_a_transmission_that_cannot_be_recorded_leaves_no_reception_behind(kits: Kits, tmp_path: Path) -> None:
    async def play() -> int:
        sending, blob = order(update=random_update(30 * DESIGN.payload_bytes))
        room_for_one = 2 * len(blob) + 200  # the frame and the owner's reception, of nearly the same size, but not the tap's
        async with running(kits, tmp_path, quota_bytes=room_for_one) as air:
            await air.write("c1", blob, prefix=f"frames/{sending.key.text}")
            with pytest.raises(StorageFull):
                await air.transmit(sending, caller="c1")
            return sum(p.stat().st_size for p in (tmp_path / "blobs").rglob("*") if p.is_file()) - len(blob)

    assert asyncio.run(play()) == 0


def test_bytes_that_are_no_frame_are_refused_and_cost_no_notice(kits: Kits, tmp_path: Path) -> None:
    async def play() -> None:
        async with running(kits, tmp_path) as air:
            sending, _ = order()
            junk = b"HTFR" + bytes(60)
            await air.write("c1", junk, prefix=f"frames/{sending.key.text}")
            with pytest.raises(MalformedUpdate):
                await air.transmit(replace(sending, frame=Digest.of(junk), frame_bytes=len(junk)), caller="c1")
            assert air.sky.ledger.sent == ()

    asyncio.run(play())


def test_each_receiver_reads_its_own_receptions_only(kits: Kits, tmp_path: Path) -> None:
    async def play() -> None:
        async with running(kits, tmp_path) as air:
            sending, blob = order()
            await air.write("c1", blob, prefix=f"frames/{sending.key.text}")
            await air.sky.send(sending)
            (main,) = await notices(air.listener(Role.OWNER, Listener.MAIN), 1)
            (tap,) = await notices(air.listener(Role.EAVESDROPPER, Listener.TAP), 1)
            assert (main.listener, tap.listener) == (Listener.MAIN, Listener.TAP)
            assert main.seq == tap.seq == 1
            for role, notice in ((Role.EAVESDROPPER, main), (Role.OWNER, tap), (Role.CLIENT, main)):
                name = "c1" if role is Role.CLIENT else str(role)
                store = BlobStore(tmp_path / f"thief-{role}", quota_bytes=1 << 20)
                channel, timing = air.channel(role, name), air.scenario.timing
                with pytest.raises(NotYours):
                    await download(
                        channel, reception_name(notice), store, clock=CLOCK, seeds=SEEDS, timing=timing, attempts_max=2
                    )

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


def test_a_receipt_that_names_every_block_of_the_largest_update_is_taken_and_survives_a_restart(
    kits: Kits, tmp_path: Path
) -> None:
    async def play() -> None:
        missing = tuple(range(BLOCKS_MAX))
        async with running(kits, tmp_path) as air:
            sending, blob = order()
            await air.write("c1", blob, prefix=f"frames/{sending.key.text}")
            await air.sky.send(sending)
            await air.acknowledge(sending.key, missing)
            assert await air.transmit(sending, caller="c1") == (pytest.approx(3 * DESIGN.symbols / sending.bandwidth), missing)
        async with running(kits, tmp_path) as air:
            assert air.sky.ledger.receipt(sending.key) == Receipt(key=sending.key, missing=missing)

    asyncio.run(play())


def test_a_listener_resumes_after_what_it_has_seen(kits: Kits, tmp_path: Path) -> None:
    async def play() -> None:
        async with running(kits, tmp_path) as air:
            for client in ("c1", "c2"):
                sending, blob = order(client)
                await air.write(client, blob, prefix=f"frames/{sending.key.text}")
                await air.sky.send(sending)
            call = air.stub(Role.OWNER, "owner").Listen(air_pb2.ListenRequest(last_seen_seq=1), timeout=5)
            response = await call.read()
            call.cancel()
            assert (response.seq, response.transmission.client) == (2, "c2")

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
        async with running(kits, tmp_path) as air:
            sending, blob = order()
            await air.write("c1", blob, prefix=f"frames/{sending.key.text}")
            before = await air.transmit(sending, caller="c1")
            story = air.sky.ledger.report()
        async with running(kits, tmp_path) as air:
            assert air.sky.ledger.report() == story
            assert await air.transmit(sending, caller="c1") == before

    asyncio.run(play())


def test_frames_and_acknowledged_receptions_make_room(kits: Kits, tmp_path: Path) -> None:
    async def play() -> list[str]:
        async with running(kits, tmp_path) as air:
            sending, blob = order()
            await air.write("c1", blob, prefix=f"frames/{sending.key.text}")
            await air.transmit(sending, caller="c1")
            complete = tmp_path / "blobs" / "complete"
            return [str(p.relative_to(complete)) for p in complete.rglob("*") if p.is_file()]

    left = asyncio.run(play())
    assert [path.split("/")[:2] for path in left] == [["receptions", "tap"]]


def test_a_client_that_sends_in_run_after_run_does_not_take_the_room_of_the_others(kits: Kits, tmp_path: Path) -> None:
    async def play() -> None:
        size = len(order()[1])
        # Four of the largest blobs for each of three clients, as the air has it; nobody acknowledges and the tap does not read.
        async with running(kits, tmp_path, quota_bytes=12 * 2 * size, update_bytes_max=2 * size) as air:
            for number in range(64):
                await send(air, "c1", run=f"run-{number}")
            with pytest.raises(LimitExceeded, match="64 runs"):
                await send(air, "c1", run="one-more")
            for client in ("c2", "c3"):
                await send(air, client, run="run-0")
            held = [notice for notice in air.sky.ledger.notices_after(0, Listener.MAIN) if is_held(tmp_path, notice)]
            assert [(n.transmission.key.client, n.transmission.key.run) for n in held] == [
                ("c1", "run-63"),
                ("c2", "run-0"),
                ("c3", "run-0"),
            ]

    async def send(air: Air, client: str, *, run: str) -> None:
        sending, blob = order(client)
        sending = replace(sending, key=replace(sending.key, run=RunId(run)))
        await air.write(client, blob, prefix=f"frames/{sending.key.text}")
        await air.sky.send(sending)

    def is_held(folder: Path, notice: ReceptionNotice) -> bool:
        name = reception_name(notice)
        return (folder / "blobs" / "complete" / name.prefix / name.digest.hex).exists()

    asyncio.run(play())


def test_an_event_that_comes_twice_counts_once() -> None:
    sending, _ = order()
    piece = Heard(digest=Digest(bytes(32)), size=1, snr_db=Decibel(3.0))
    sent = Sent(transmission=sending, main=piece, tap=piece, blocks=3, airtime=Second(1.0), fidelity="abstract")
    receipt = Receipt(key=sending.key, missing=(2,))
    ledger = Ledger()
    for _ in range(2):
        ledger.apply(TRANSMITTED, json.loads(json.dumps(sent.to_body())))
        ledger.apply(ACKNOWLEDGED, json.loads(json.dumps(receipt_body(receipt))))
    assert ledger.sent == (sent,)
    assert ledger.receipt(sending.key) == receipt
    assert [n.seq for n in ledger.notices_after(0, Listener.TAP)] == [1]
