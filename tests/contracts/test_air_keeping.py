"""Does a frame stay as long as somebody waits for it, and take nobody else's room?"""

import asyncio
import logging
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path

import pytest

from hushtune_common.config import LimitsConfig
from hushtune_common.errors import LimitExceeded, StaleRound
from hushtune_common.messages import Listener, Role, RunId
from tests.air_stage import DESIGN, Air, notices, order, running
from tests.kits import Kits
from tests.radio import random_update


@pytest.fixture
def kits(tmp_path: Path) -> Kits:
    return Kits(tmp_path / "kits")


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
