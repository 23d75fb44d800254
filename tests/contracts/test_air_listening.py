"""Does each receiver hear with its own ears, all of it, also when streams break and processes start again?"""

import asyncio
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from hushtune_common.errors import MalformedUpdate, NotYours, PeerLost, StaleRound
from hushtune_common.messages import BLOCKS_MAX, Listener, Receipt, Role
from hushtune_common.wire import convert, faults
from hushtune_common.wire.listening import AirListener
from hushtune_common.wire.v1 import air_pb2, blobs_pb2, blobs_pb2_grpc
from tests.air_stage import CLOCK, DESIGN, SEEDS, Air, notices, order, running
from tests.kits import Kits
from tests.radio import random_update


@pytest.fixture
def kits(tmp_path: Path) -> Kits:
    return Kits(tmp_path / "kits")


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
