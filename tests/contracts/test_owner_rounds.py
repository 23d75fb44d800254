"""Does the owner judge each update once, leave nobody waiting, and say the same after a restart?"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from msgspec import structs

from hushtune_common.config import CoordinatorConfig
from hushtune_common.errors import ConfigError, PeerLost, Replayed
from hushtune_common.link.abstraction import NO_FADING, hear
from hushtune_common.link.channel import Reception, cut
from hushtune_common.messages import (
    ClientId,
    Digest,
    Directive,
    DirectiveKind,
    Listener,
    Receipt,
    ReceptionNotice,
    RunId,
    Settlement,
    UpdateKey,
    Verdict,
)
from hushtune_common.seeding import SeedTree
from hushtune_common.store.blobs import BlobStore
from hushtune_common.store.journal import Journal
from hushtune_common.units import Second, from_db
from hushtune_server.owner.book import JUDGED, Book, Judgement, to_body
from hushtune_server.owner.plugin import Trial
from hushtune_server.owner.ports import AirPort, Bench, CoordinatorPort
from hushtune_server.owner.rounds import OwnerRounds
from hushtune_server.owner.service import Desk
from tests.fakes import FakeClock
from tests.radio import qpsk_design, random_update, scenario, transmission

RUN = RunId("run-1")
DESIGN = qpsk_design()
UPDATE = random_update(6 * DESIGN.payload_bytes)


@dataclass(slots=True)
class World:
    """Everyone whom the owner deals with, scripted; ``settled``, ``acknowledged`` and ``judged`` say what it did."""

    folder: Path
    directives: "asyncio.Queue[Directive | None]" = field(default_factory=asyncio.Queue)
    notices_sent: "asyncio.Queue[ReceptionNotice]" = field(default_factory=asyncio.Queue)
    settled: list[Settlement] = field(default_factory=list[Settlement])
    acknowledged: list[Receipt] = field(default_factory=list[Receipt])
    judged: list[UpdateKey] = field(default_factory=list[UpdateKey])
    merged: list[tuple[ClientId, ...]] = field(default_factory=list[tuple[ClientId, ...]])
    unreachable: set[ClientId] = field(default_factory=set[ClientId])
    on_record: dict[UpdateKey, Receipt] = field(default_factory=dict[UpdateKey, Receipt])
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    async def follow(self, phase: Callable[[], str]) -> AsyncGenerator[Directive, None]:
        while (directive := await self.directives.get()) is not None:
            yield directive

    async def settle(self, settlement: Settlement) -> None:
        self.settled.append(settlement)
        self.changed.set()

    async def notices(self) -> AsyncGenerator[ReceptionNotice, None]:
        while True:
            yield await self.notices_sent.get()

    async def fetch(self, notice: ReceptionNotice) -> Path:
        if notice.transmission.key.client in self.unreachable:
            raise PeerLost("the air does not answer")
        return self.folder / notice.reception.hex

    async def acknowledge(self, receipt: Receipt) -> None:
        if self.on_record.setdefault(receipt.key, receipt) != receipt:
            raise Replayed("another receipt is on record")
        self.acknowledged.append(receipt)
        self.changed.set()

    def judge(self, blob: bytes, *, key: UpdateKey) -> Judgement:
        self.judged.append(key)
        return Judgement(key=key, accepted=True, kept=True, reason="", digest=Digest.of(blob), perplexity_after=9.0)

    def merge(self, clients: Sequence[ClientId]) -> Trial:
        self.merged.append(tuple(clients))
        return Trial(loss_before=2.0, loss_after=1.0, kept=True, reason="")

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(10):
            while not condition():
                self.changed.clear()
                await self.changed.wait()

    def hear(
        self, client: str, *, attempt: int = 1, blocks: Sequence[int] = range(6), junk: bool = False, round_id: int = 1
    ) -> None:
        """Let the owner's receiver hear these blocks of the client's update, or bytes that are no reception."""
        frame = cut(UPDATE, design=DESIGN)
        seeds = SeedTree(1)
        full = hear(frame, listener=Listener.MAIN, design=DESIGN, snr=from_db(30.0), fading=NO_FADING, seeds=seeds)
        kept = [bool(i in blocks) for i in range(6)]
        part = Reception.of(frame, listener=Listener.MAIN, heard=full.heard & kept, snr_db=full.snr_db)
        blob = b"junk" if junk else part.to_bytes()
        (self.folder / Digest.of(blob).hex).write_bytes(blob)
        sent = transmission(frame, DESIGN, client=client, attempt=attempt)
        notice = ReceptionNotice(
            seq=1,
            listener=Listener.MAIN,
            transmission=replace(sent, key=replace(sent.key, round_id=round_id)),
            reception=Digest.of(blob),
            reception_bytes=len(blob),
            fidelity="abstract",
            airtime=Second(1.0),
        )
        self.notices_sent.put_nowait(notice)

    def open(self, round_id: int) -> None:
        self.directives.put_nowait(Directive(seq=1, kind=DirectiveKind.ROUND_OPENED, round_id=round_id))

    def close(self, *accepted: str, failed: str = "") -> None:
        ids = tuple(ClientId(a) for a in accepted)
        closed = Directive(seq=1, kind=DirectiveKind.ROUND_CLOSED, round_id=1, accepted=ids, failed_reason=failed, last=True)
        self.directives.put_nowait(closed)


_coordinator: type[CoordinatorPort] = World
_air: type[AirPort] = World
_bench: type[Bench] = World


@dataclass(slots=True)
class Owner:
    """One life of the owner's part."""

    rounds: OwnerRounds
    desk: Desk
    journal: Journal

    async def verdict(self, client: str) -> Verdict:
        return await self.desk.verdict(RUN, 1, ClientId(client), within_s=10)


def live(world: World, journal: Journal, worker: ThreadPoolExecutor, *, broken: Exception | None = None) -> Owner:
    setting, book = structs.replace(scenario(), coordinator=CoordinatorConfig(rounds=2)), Book()
    for event in journal.events():
        book.apply(event.kind, event.body)
    desk = Desk(book, clients=frozenset(ClientId(c.id) for c in setting.clients))
    bench: asyncio.Future[Bench] = asyncio.get_running_loop().create_future()
    bench.set_result(world) if broken is None else bench.set_exception(broken)
    rounds = OwnerRounds(
        setting,
        run=RUN,
        book=book,
        journal=journal,
        desk=desk,
        store=BlobStore(world.folder / "store", quota_bytes=1 << 20),
        bench=bench,
        worker=worker,
        coordinator=world,
        air=world,
        clock=FakeClock(autojump=True),
        seeds=SeedTree(0),
    )
    return Owner(rounds=rounds, desk=desk, journal=journal)


@asynccontextmanager
async def stage(folder: Path) -> AsyncGenerator[tuple[World, Owner]]:
    """Set the scene; afterwards nothing may have failed."""
    world = World(folder)
    journal = Journal.open(folder / "journal.sqlite", schema="test-owner")
    worker = ThreadPoolExecutor(max_workers=1)
    owner = live(world, journal, worker)
    running = asyncio.create_task(owner.rounds.follow())
    world.open(1)
    try:
        yield world, owner
        running.cancel()
        await asyncio.wait({running})
        if not running.cancelled():
            running.result()
    finally:
        await journal.close()
        worker.shutdown()


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
