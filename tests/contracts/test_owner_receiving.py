"""Does the owner judge each update once, leave nobody waiting, and say the same after a restart?"""

import asyncio
import logging
from pathlib import Path

import numpy as np
import pytest

from hushtune_common.crypto import envelope
from hushtune_common.crypto.keys import HybridPrivateKey
from hushtune_common.link.fidelity import Fidelity
from hushtune_common.link.reception import Reception
from hushtune_common.messages import ClientId, Digest, Listener, Part, UpdateKey
from hushtune_common.seeding import SeedTree
from hushtune_server.owner.book import report
from hushtune_server.owner.reception import Bounds, UpdateReception
from tests.owner_stage import DESIGN, RUN, UPDATE, World, stage
from tests.radio import frame_bytes, random_update, reader, transmission


def test_a_whole_update_is_acknowledged_judged_settled_and_answered(tmp_path: Path) -> None:
    async def play() -> None:
        async with stage(tmp_path) as (world, owner):
            world.hear("c1")
            await world.until(lambda: len(world.settled) == 1)
            assert (world.settled[0].accepted, world.acknowledged[0].missing) == (True, ())
            world.close("c1")
            verdict = await owner.verdict("c1")
            assert (verdict.accepted, verdict.kept, verdict.score) == (True, True, 9.0)
            assert world.merged == [(ClientId("c1"),)]

    asyncio.run(play())


def test_missing_blocks_are_asked_for_and_the_next_attempt_completes_the_update(tmp_path: Path) -> None:
    async def play() -> None:
        async with stage(tmp_path) as (world, _):
            world.hear("c1", blocks=[0, 1, 2, 4])
            await world.until(lambda: len(world.acknowledged) == 1)
            assert world.acknowledged[0].missing == (3, 5)
            assert world.judged == []
            world.hear("c1", attempt=2, blocks=[3, 5])
            await world.until(lambda: len(world.settled) == 1)
            assert world.acknowledged[1].missing == ()
            assert world.settled[0].key.attempt == 2

    asyncio.run(play())


def test_a_client_that_sends_junk_is_refused_at_once_and_disturbs_nobody(tmp_path: Path) -> None:
    async def play() -> None:
        async with stage(tmp_path) as (world, owner):
            world.hear("c2", junk=True)
            world.hear("c1")
            await world.until(lambda: len(world.settled) == 2 and len(world.acknowledged) == 2)
            assert {s.key.client: s.accepted for s in world.settled} == {"c1": True, "c2": False}
            refused = await owner.verdict("c2")
            assert (refused.accepted, refused.kept) == (False, False)
            assert refused.reason.startswith("MALFORMED")
            assert [key.client for key in world.judged] == ["c1"]

    asyncio.run(play())


def test_an_update_larger_than_any_genuine_one_is_refused_before_room_is_made(tmp_path: Path) -> None:
    async def play() -> None:
        async with stage(tmp_path) as (world, owner):
            world.hear("c1", update=bytes(world.bytes_max + 1))
            await world.until(lambda: len(world.settled) == 1)
            assert (await owner.verdict("c1")).reason.startswith("LIMIT_EXCEEDED: an update of 1048577 bytes")
            assert not list((tmp_path / "incoming").rglob("*.blocks"))

    asyncio.run(play())


def test_an_update_is_judged_when_its_round_is_open_and_not_before(tmp_path: Path) -> None:
    async def play() -> None:
        async with stage(tmp_path) as (world, _):
            world.hear("c1", round_id=2)
            world.hear("c1", round_id=3)  # of which there is none
            world.hear("c1")
            await world.until(lambda: len(world.settled) == 1)
            world.open(2)
            await world.until(lambda: len(world.settled) == 2)
            assert [key.round_id for key in world.judged] == [1, 2]

    asyncio.run(play())


def test_a_transfer_that_fails_for_one_client_leaves_the_others_alone(tmp_path: Path) -> None:
    async def play() -> None:
        async with stage(tmp_path) as (world, _):
            world.unreachable.add(ClientId("c2"))
            world.hear("c2")
            world.hear("c1")
            await world.until(lambda: len(world.settled) == 1)
            assert [s.key.client for s in world.settled] == ["c1"]

    asyncio.run(play())


def test_what_no_client_of_the_run_can_have_sent_is_not_even_waited_for(tmp_path: Path) -> None:
    async def play() -> None:
        async with stage(tmp_path) as (world, _):
            for number in range(50):
                world.hear(f"nobody-{number}")
            world.hear("c1", attempt=9)
            world.hear("c1", round_id=3)
            world.hear("c2")
            await world.until(lambda: len(world.settled) == 1)
            assert (world.received, [s.key.client for s in world.settled]) == ([1], ["c2"])

    asyncio.run(play())


def test_an_update_is_judged_while_its_receipt_cannot_be_delivered_and_the_receipt_follows(tmp_path: Path) -> None:
    async def play() -> None:
        async with stage(tmp_path) as (world, _):
            world.deaf_for = 4
            world.hear("c1")
            await world.until(lambda: len(world.acknowledged) == 1)
            assert [s.key.client for s in world.settled] == ["c1"]
            assert (world.deaf_for, world.acknowledged[0].missing) == (0, ())

    asyncio.run(play())


def test_after_a_restart_nothing_is_judged_again_and_the_answers_are_the_same(tmp_path: Path) -> None:
    async def play() -> None:
        async with stage(tmp_path) as (world, owner):
            world.hear("c1")
            await world.until(lambda: len(world.settled) == 1)
        async with stage(tmp_path) as (world, owner):
            world.hear("c1")
            await world.until(lambda: len(world.settled) == 1)
            assert (world.judged, world.acknowledged[0].missing) == ([], ())
            world.close("c1")
            first = await owner.verdict("c1")
        async with stage(tmp_path) as (world, owner):
            world.close("c1")
            assert await owner.verdict("c1") == first
            assert world.merged == []

    asyncio.run(play())


def test_after_a_restart_a_first_attempt_that_was_answered_otherwise_disturbs_nobody(tmp_path: Path) -> None:
    async def play() -> None:
        async with stage(tmp_path) as (world, _):
            world.hear("c1", blocks=[0, 1, 2, 4])
            await world.until(lambda: len(world.acknowledged) == 1)
            world.hear("c1", attempt=2, blocks=[3, 5])
            await world.until(lambda: len(world.settled) == 1)
            on_record = world.on_record
        async with stage(tmp_path) as (world, _):
            world.on_record = on_record
            world.hear("c1", blocks=[0, 1, 2, 4])
            world.hear("c2")
            await world.until(lambda: {s.key.client for s in world.settled} == {"c1", "c2"})

    asyncio.run(play())


def test_after_a_restart_what_was_acknowledged_is_not_heard_again_and_not_lost(tmp_path: Path) -> None:
    async def play() -> None:
        async with stage(tmp_path) as (world, _):
            world.hear("c1", blocks=[0, 1, 2, 4])
            await world.until(lambda: len(world.acknowledged) == 1)
        async with stage(tmp_path) as (world, _):
            world.hear("c1", acknowledged=True)
            world.hear("c1", attempt=2, blocks=[3, 5])
            await world.until(lambda: len(world.settled) == 1)
            assert (world.received, world.acknowledged[0].missing) == ([2], ())
            assert world.blobs == [(UPDATE, b"", frozenset({Part.PAYLOAD}))]

    asyncio.run(play())


def left_behind(folder: Path, world: World) -> None:
    """Have an owner hear all that ``world`` announced, write it down, and die before it says anything."""
    limits, at = Bounds(update_bytes_max=1 << 20, attempts_max=3, threads=1), folder / "incoming" / RUN / "1" / "c1"
    update = UpdateReception(at, client=ClientId("c1"), round_id=1, bounds=limits)
    while not world.notices_sent.empty():
        notice = world.notices_sent.get_nowait()
        for chunk in world.on_air[notice.seq]:
            assert chunk is not None
            update.take(chunk, notice=notice)
        update.conclude(notice)


@pytest.mark.parametrize("acknowledged", [False, True], ids=["before it answered", "before it judged"])
def test_an_update_that_was_whole_when_the_owner_died_is_answered_and_judged_unheard(tmp_path: Path, acknowledged: bool) -> None:
    async def play() -> None:
        past = World(tmp_path)
        past.hear("c1")
        left_behind(tmp_path, past)
        async with stage(tmp_path) as (world, _):
            world.hear("c1", acknowledged=acknowledged)
            await world.until(lambda: len(world.settled) == 1)
            assert world.received == []
            assert [receipt.missing for receipt in world.acknowledged] == ([] if acknowledged else [()])
            assert [blob for blob, *_ in world.blobs] == [UPDATE]
            assert not (tmp_path / "incoming" / RUN / "1" / "c1").exists()

    asyncio.run(play())


def test_a_frame_that_is_gone_is_said_and_the_next_attempt_counts(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def play() -> None:
        async with stage(tmp_path) as (world, _):
            world.gone.add(1)
            world.hear("c1")
            world.hear("c1", attempt=2)
            await world.until(lambda: len(world.settled) == 1)
            assert (world.received, [r.key.attempt for r in world.acknowledged]) == ([1, 2], [2])
            assert "reception_gone" in caplog.messages

    asyncio.run(play())


def test_an_update_sealed_with_a_key_waits_for_both_parts_in_any_order(tmp_path: Path) -> None:
    secret, to = bytes(range(32)), UpdateKey(run=RUN, round_id=1, client=ClientId("c1"), attempt=1)
    owner_key = HybridPrivateKey.generate().public
    sealing = envelope.seal(b"adapter", recipient=owner_key, key=to, emulator=Digest.of(b"e"), codec="c", secret=secret)
    blob = envelope.to_bytes(sealing.update)

    async def play() -> None:
        async with stage(tmp_path) as (world, _):
            world.hear("c1", part=Part.KEY, update=secret)
            world.hear("c2", update=blob)
            await world.until(lambda: len(world.acknowledged) == 2)
            assert world.judged == []
            world.hear("c1", attempt=2, update=blob)
            world.hear("c2", attempt=2, part=Part.KEY, update=secret)
            await world.until(lambda: len(world.settled) == 2)
            assert world.blobs == 2 * [(blob, secret, frozenset(Part))]

    asyncio.run(play())


def test_a_hybrid_transmission_that_contradicts_the_tables_is_refused_and_everyone_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    blob = frame_bytes(random_update(40 * DESIGN.payload_bytes), DESIGN, fidelity=Fidelity.HYBRID, share=1.0)
    chunk = reader(blob).chunk(0, design=DESIGN)
    noise = SeedTree(3).generator().integers(-127, 128, size=(chunk.count, DESIGN.codewords, DESIGN.code_bits), dtype=np.int8)
    snr_db, heard = np.full(chunk.count, 12.0, np.float32), np.ones(chunk.count, np.bool_)
    lost = Reception.of(chunk, listener=Listener.MAIN, heard=heard, snr_db=snr_db, gain_log2=0, soft=noise)

    async def play() -> None:
        async with stage(tmp_path) as (world, owner):
            world.broadcast([lost], transmission(blob, DESIGN))
            await world.until(lambda: len(world.settled) == 1 and len(world.acknowledged) == 1)
            assert not world.settled[0].accepted
            assert (await owner.verdict("c1")).reason.startswith("ABSTRACTION_CONTRADICTED: 40 of 40")
            world.close()
            await owner.verdict("c2")
            assert report(owner.desk.book)["rounds"][0]["contradicted"] == ["c1"]
            assert world.judged == []

    asyncio.run(play())
    (record,) = [r for r in caplog.records if r.getMessage() == "abstraction_contradicted"]
    assert record.levelno == logging.ERROR


def test_what_other_runs_and_closed_rounds_left_is_deleted(tmp_path: Path) -> None:
    stale = tmp_path / "incoming" / "run-0" / "1" / "c1" / "payload.blocks"
    stale.parent.mkdir(parents=True)
    stale.write_bytes(b"old")

    async def play() -> None:
        async with stage(tmp_path) as (world, owner):
            world.hear("c1", blocks=[0])
            await world.until(lambda: len(world.acknowledged) == 1)
            assert not stale.exists()
            assert list((tmp_path / "incoming").rglob("*.blocks"))
            world.close()
            await owner.verdict("c1")
            assert not list((tmp_path / "incoming").rglob("*.blocks"))

    asyncio.run(play())


def test_how_a_transmission_was_decoded_and_an_update_received_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def play() -> None:
        async with stage(tmp_path) as (world, _):
            world.hear("c1", blocks=[0, 1, 2, 3, 4])
            world.hear("c1", attempt=2, blocks=[5])
            await world.until(lambda: len(world.settled) == 1)

    caplog.set_level(logging.INFO)
    asyncio.run(play())
    told = {r.getMessage(): getattr(r, "hushtune_fields", {}) for r in reversed(caplog.records)}
    decoded, received = told["reception_decoded"], told["update_received"]
    assert (decoded["blocks"], decoded["blocks_coded"], decoded["blocks_sound"], decoded["part"]) == (6, 0, 5, "payload")
    assert (decoded["iterations_mean"], decoded["fidelity"], decoded["seconds"]) == (0.0, "abstract", 0.0)
    assert (received["attempts"], received["bytes_sealed"], received["protection"]) == (2, len(UPDATE), "payload")
