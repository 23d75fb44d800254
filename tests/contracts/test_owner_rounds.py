"""Does one round become the next, once, whatever is late, fails or starts again?"""

import asyncio
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from hushtune_common.config import AllocatorConfig, UtilityConfig
from hushtune_common.errors import ConfigError, PeerLost, TrainerFailed
from hushtune_common.messages import ClientId, Conclusion, RunId, UpdateKey
from hushtune_common.store.journal import Journal
from hushtune_server.owner.book import CLOSED, JUDGED, PUBLISHED, Book, Closing, Judgement, Publication, report, to_body
from tests.fakes import CURVE
from tests.loopback import manifest_of
from tests.owner_stage import RUN, World, live, play_round, stage

EVERY_ROUND = AllocatorConfig(utility=UtilityConfig(kind="measured", every_round=True))


def test_what_comes_after_the_round_is_closed_changes_no_verdict(tmp_path: Path) -> None:
    async def play() -> None:
        async with stage(tmp_path) as (world, owner):
            world.hear("c1")
            await world.until(lambda: len(world.settled) == 1)
            world.close("c1")
            before = await owner.verdict("c2")
            assert (before.accepted, before.reason) == (False, "no update of yours arrived in this round")
            world.hear("c2")
            await world.until(lambda: len(world.acknowledged) == 2)
            assert await owner.verdict("c2") == before
            assert len(world.judged) == 1

    asyncio.run(play())


def test_a_failed_round_keeps_nothing_and_says_why(tmp_path: Path) -> None:
    async def play() -> None:
        async with stage(tmp_path) as (world, owner):
            world.hear("c1")
            await world.until(lambda: len(world.settled) == 1)
            world.close(failed="no quorum")
            verdict = await owner.verdict("c1")
            assert (verdict.accepted, verdict.kept, verdict.reason) == (True, False, "the round failed: no quorum")
            assert world.merged == []

    asyncio.run(play())


def test_a_coordinator_that_leaves_before_the_last_round_is_an_error(tmp_path: Path) -> None:
    async def play() -> None:
        world, worker = World(tmp_path), ThreadPoolExecutor(max_workers=1)
        journal = Journal.open(tmp_path / "journal.sqlite", schema="test-owner")
        world.directives.put_nowait(None)
        try:
            with pytest.raises(ExceptionGroup) as caught:
                await live(world, journal, worker).rounds.follow()
            assert caught.group_contains(PeerLost)
        finally:
            await journal.close()
            worker.shutdown()

    asyncio.run(play())


def test_a_round_is_concluded_when_the_next_ones_emulator_is_written_down_and_on_offer(tmp_path: Path) -> None:
    async def play() -> None:
        async with stage(tmp_path) as (world, owner):
            waiting = asyncio.create_task(owner.desk.manifest(RUN, 2, C1, within_s=10))
            await play_round(world, 1, "c1", "c2")
            assert world.concluded == [Conclusion(run=RUN, round_id=1, last=False)]
            assert (world.renewed, world.taken_up) == ([2], [2])
            assert await waiting == world.published[0]
            kinds = [e.kind for e in owner.journal.events()]
            assert kinds.index(CLOSED) < kinds.index(PUBLISHED)
            assert (await owner.verdict("c1")).kept, "verdicts need not wait for the round to be closed"

    asyncio.run(play())


def test_the_next_round_is_planned_with_what_updates_are_worth_by_then(tmp_path: Path) -> None:
    async def play() -> None:
        async with stage(tmp_path, allocator=EVERY_ROUND) as (world, _):
            await play_round(world, 1, "c1")
            assert world.told == [CURVE]
            assert world.order == ["published", "measured", "told", "concluded"]
        async with stage(tmp_path, allocator=EVERY_ROUND) as (world, _):  # killed before the coordinator heard of it
            world.ask_to_conclude(1, "c1")
            await world.until(lambda: len(world.concluded) == 1)
            assert world.order == ["measured", "told", "concluded"]

    asyncio.run(play())


@pytest.mark.parametrize("fault", [ConfigError("data.public", "gains nothing"), TrainerFailed("not finite")])
def test_where_nothing_can_be_measured_any_more_the_run_goes_on_with_what_is_known(tmp_path: Path, fault: Exception) -> None:
    async def play() -> None:
        async with stage(tmp_path, allocator=EVERY_ROUND) as (world, _):
            world.worth_now = fault
            await play_round(world, 1, "c1")
            assert (world.told, [c.last for c in world.concluded]) == ([], [False])

    asyncio.run(play())


def test_what_is_measured_once_or_for_no_further_round_is_not_measured_again(tmp_path: Path) -> None:
    async def play() -> None:
        async with stage(tmp_path) as (world, _):
            await play_round(world, 1, "c1")
            assert world.order == ["published", "concluded"]
        (tmp_path / "other").mkdir()
        async with stage(tmp_path / "other", rounds=3, patience=1, allocator=EVERY_ROUND) as (world, _):
            world.losses = [2.0, 2.0]
            await play_round(world, 1, "c1")
            assert (world.concluded[0].last, world.order) == (True, ["concluded"])

    asyncio.run(play())


def test_a_second_order_to_conclude_as_after_a_restart_averages_and_publishes_nothing_again(tmp_path: Path) -> None:
    async def play() -> None:
        async with stage(tmp_path) as (world, _):
            await play_round(world, 1, "c1")
        async with stage(tmp_path) as (world, _):
            world.ask_to_conclude(1, "c1")
            await world.until(lambda: len(world.concluded) == 1)
            assert (world.merged, world.renewed, world.published) == ([], [], [])

    asyncio.run(play())


def test_a_kill_between_averaging_and_publishing_leaves_only_the_publishing_to_do(tmp_path: Path) -> None:
    async def play() -> None:
        journal = Journal.open(tmp_path / "journal.sqlite", schema="test-owner")
        closing = Closing(run=RUN, round_id=1, accepted=(C1,), merged=(C1,), kept=True, reason="")
        await journal.append(CLOSED, to_body(closing), key=f"closed/{RUN}/1")
        await journal.close()
        async with stage(tmp_path) as (world, _):
            world.ask_to_conclude(1, "c1")
            await world.until(lambda: len(world.concluded) == 1)
            assert (world.merged, [m.round_id for m in world.published]) == ([], [2])

    asyncio.run(play())


C1 = ClientId("c1")


@pytest.mark.parametrize(
    ("losses", "patience", "ends_after"),
    [
        ([2.0, 1.5, 1.45, 1.44], 2, 3),  # each of the last two is less than 0.1 below the best
        ([2.0, 1.5, 1.45, 1.3], 2, None),  # 0.15 below the second, and 0.2 below the best
        ([2.0, 2.5, 2.6, 2.7], 3, 3),  # rolled back, all of them
        ([2.0, 1.8, 1.6, 1.4], 1, None),
        ([2.0, 2.5, 2.6, 2.7], 0, None),
    ],
)
def test_the_run_is_stopped_after_so_many_rounds_in_vain_and_a_restart_knows_it(
    tmp_path: Path, losses: list[float], patience: int, ends_after: int | None
) -> None:
    async def play() -> None:
        async with stage(tmp_path, rounds=4, patience=patience) as (world, owner):
            world.losses = losses
            for round_id in (1, 2, 3):
                await play_round(world, round_id, "c1")
            assert [c.round_id for c in world.concluded if c.last] == ([] if ends_after is None else [ends_after])
            last = report(owner.desk.book)["rounds"][-1]
            assert bool(last["stopped"]) == (ends_after == 3)
        async with stage(tmp_path, rounds=4, patience=patience) as (again, _):
            again.ask_to_conclude(3, "c1")
            await again.until(lambda: len(again.concluded) == 1)
            assert again.concluded == [world.concluded[-1]]

    asyncio.run(play())


def test_who_is_left_out_of_the_average_is_told_why(tmp_path: Path) -> None:
    async def play() -> None:
        async with stage(tmp_path) as (world, owner):
            world.left_out = {C1: "points the other way"}
            await play_round(world, 1, "c1", "c2")
            verdict = await owner.verdict("c1")
            assert (verdict.accepted, verdict.kept, verdict.reason) == (True, False, "points the other way")
            assert (await owner.verdict("c2")).kept

    asyncio.run(play())


def test_a_book_folded_again_knows_what_was_published() -> None:
    manifest = replace(manifest_of(b"emulator"), round_id=3)
    book = Book()
    for body in (manifest, replace(manifest_of(b"other"), round_id=3)):
        book.apply(PUBLISHED, json.loads(json.dumps(to_body(Publication(run=RUN, manifest=body)))))
    assert book.manifest(RUN, 3) == manifest
    assert (book.manifest(RUN, 2), book.manifest(RunId("run-2"), 3)) == (None, None)


@pytest.mark.parametrize(("accepted", "kept"), [(True, False), (False, False)], ids=["hurts public text", "refused"])
def test_an_update_that_hurts_by_itself_stays_out_of_the_mean(accepted: bool, kept: bool) -> None:
    book = Book()
    for client, verdict in (("c1", (True, True)), ("c2", (accepted, kept))):
        key = UpdateKey(run=RUN, round_id=1, client=ClientId(client), attempt=1)
        book.apply(JUDGED, to_body(Judgement(key=key, accepted=verdict[0], kept=verdict[1], reason="")))
    assert book.mergeable(RUN, 1, [ClientId("c2"), ClientId("c1"), ClientId("c3")]) == ("c1",)


def test_a_bench_that_cannot_be_made_ends_the_owner_before_any_client_has_trained(tmp_path: Path) -> None:
    async def play() -> None:
        world, worker = World(tmp_path), ThreadPoolExecutor(max_workers=1)
        journal = Journal.open(tmp_path / "journal.sqlite", schema="test-owner")
        broken = ConfigError("codec", "is another one")
        try:
            with pytest.raises(ExceptionGroup) as caught:
                await asyncio.wait_for(live(world, journal, worker, broken=broken).rounds.follow(), 10)
            assert caught.group_contains(ConfigError)
        finally:
            await journal.close()
            worker.shutdown()

    asyncio.run(play())
