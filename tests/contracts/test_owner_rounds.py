"""Does the owner judge each update once, leave nobody waiting, and say the same after a restart?"""

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
from msgspec import structs

from hushtune_common.aggregation import SecureConfig
from hushtune_common.config import AllocatorConfig, CoordinatorConfig, OwnerConfig, UtilityConfig
from hushtune_common.crypto import envelope
from hushtune_common.crypto.keys import HybridPrivateKey
from hushtune_common.errors import ConfigError, MalformedUpdate, PeerLost, Replayed, StaleRound, TrainerFailed
from hushtune_common.link.fidelity import Fidelity
from hushtune_common.link.reception import Reception
from hushtune_common.messages import (
    ClientId,
    Conclusion,
    Digest,
    Directive,
    DirectiveKind,
    EmulatorManifest,
    Listener,
    Part,
    Receipt,
    ReceptionNotice,
    RunId,
    Settlement,
    Transmission,
    UpdateKey,
    UtilityCurve,
    Verdict,
)
from hushtune_common.secagg.grid import Grid, TensorGrid
from hushtune_common.secagg.messages import Survivors
from hushtune_common.secagg.terms import terms_of
from hushtune_common.seeding import SeedTree
from hushtune_common.store.journal import Journal
from hushtune_common.units import Second
from hushtune_server.owner.book import CLOSED, JUDGED, PUBLISHED, Book, Closing, Copy, Judgement, Publication, report, to_body
from hushtune_server.owner.incoming import Link
from hushtune_server.owner.ports import AirPort, Bench, CoordinatorPort, Merged, Press, Renewal
from hushtune_server.owner.reception import Bounds, UpdateReception
from hushtune_server.owner.rounds import OwnerRounds
from hushtune_server.owner.service import Desk
from hushtune_server.owner.sums import SumTable
from tests.fakes import CURVE, FakeClock
from tests.loopback import manifest_of
from tests.radio import frame_bytes, qpsk_design, random_update, reader, scenario, transmission
from tests.secagg import Rehearsal, verify

EVERY_ROUND = AllocatorConfig(utility=UtilityConfig(kind="measured", every_round=True))
ASSUMED = AllocatorConfig()
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
    blobs: list[tuple[bytes, bytes, frozenset[Part]]] = field(default_factory=list[tuple[bytes, bytes, frozenset[Part]]])
    received: list[int] = field(default_factory=list[int])
    gone: set[int] = field(default_factory=set[int])
    merged: list[tuple[ClientId, ...]] = field(default_factory=list[tuple[ClientId, ...]])
    losses: list[float] = field(default_factory=list[float])
    left_out: dict[ClientId, str] = field(default_factory=dict[ClientId, str])
    renewed: list[int] = field(default_factory=list[int])
    published: list[EmulatorManifest] = field(default_factory=list[EmulatorManifest])
    taken_up: list[int] = field(default_factory=list[int])
    taking: Callable[[UpdateKey], None] = lambda key: None
    announcing: Callable[[], None] = lambda: None
    announced: list[Survivors] = field(default_factory=list[Survivors])
    concluded: list[Conclusion] = field(default_factory=list[Conclusion])
    worth_now: UtilityCurve | Exception = CURVE
    told: list[UtilityCurve] = field(default_factory=list[UtilityCurve])
    order: list[str] = field(default_factory=list[str])
    unreachable: set[ClientId] = field(default_factory=set[ClientId])
    deaf_for: int = 0
    on_air: dict[int, list[Reception | None]] = field(default_factory=dict[int, list[Reception | None]])
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

    async def receive(self, notice: ReceptionNotice) -> AsyncGenerator[Reception, None]:
        self.received.append(notice.transmission.key.attempt)
        if notice.transmission.key.client in self.unreachable:
            raise PeerLost("the air does not answer")
        if notice.transmission.key.attempt in self.gone:
            raise StaleRound("its frame is gone")
        for chunk in self.on_air[notice.seq]:
            await asyncio.sleep(0)
            if chunk is None:
                raise MalformedUpdate("not a reception")
            yield chunk

    async def acknowledge(self, receipt: Receipt) -> None:
        if self.deaf_for > 0:
            self.deaf_for -= 1
            raise PeerLost("the air does not answer")
        if self.on_record.setdefault(receipt.key, receipt) != receipt:
            raise Replayed("another receipt is on record")
        self.acknowledged.append(receipt)
        self.changed.set()

    @property
    def bytes_max(self) -> int:
        return 1 << 20

    def judge(self, blob: bytes, *, key: UpdateKey, links: Mapping[Part, Link], secret: bytes) -> Judgement:
        self.judged.append(key)
        self.taking(key)
        self.blobs.append((blob, secret, frozenset(links)))
        return Judgement(key=key, accepted=True, kept=True, reason="", digest=Digest.of(blob), perplexity_after=9.0)

    def merge(self, clients: Sequence[ClientId]) -> Merged:
        """Average; the loss on public text goes where ``losses`` says, from 2 on, and what makes it rise is rolled back."""
        self.merged.append(tuple(clients))
        before, after = (2.0, 1.0) if not self.losses else self.losses[len(self.merged) - 1 : len(self.merged) + 1]
        kept = tuple(c for c in clients if c not in self.left_out)
        return Merged(loss_before=before, loss_after=after, kept=after <= before, reason="", clients=kept, left_out=self.left_out)

    def renew(self, round_id: int) -> Renewal | None:
        self.renewed.append(round_id)
        return Renewal(bundle=self.folder / "bundle", revision=self.folder / "revision")

    def take_up(self, manifest: EmulatorManifest, bundle: Path, *, copies: Mapping[ClientId, Copy]) -> None:
        self.taken_up.append(manifest.round_id)

    def worth(self) -> UtilityCurve:
        self.order.append("measured")
        if isinstance(self.worth_now, Exception):
            raise self.worth_now
        return self.worth_now

    async def tell_worth(self, curve: UtilityCurve) -> None:
        self.order.append("told")
        self.told.append(curve)

    async def publish(self, round_id: int, renewal: Renewal | None) -> EmulatorManifest:
        self.order.append("published")
        self.published.append(replace(manifest_of(b"emulator %d" % round_id), round_id=round_id))
        return self.published[-1]

    def path(self, manifest: EmulatorManifest) -> Path:
        return self.folder / manifest.emulator.hex

    def copies(self, manifest: EmulatorManifest) -> Mapping[ClientId, Copy]:
        return {}

    async def announce(self, run: RunId, round_id: int, survivors: Survivors) -> None:
        self.announced.append(survivors)
        self.announcing()
        self.changed.set()

    async def conclude(self, conclusion: Conclusion) -> None:
        self.order.append("concluded")
        self.concluded.append(conclusion)
        self.changed.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(10):
            while not condition():
                self.changed.clear()
                await self.changed.wait()

    def hear(
        self,
        client: str,
        *,
        attempt: int = 1,
        blocks: Sequence[int] = range(6),
        junk: bool = False,
        round_id: int = 1,
        update: bytes = UPDATE,
        part: Part = Part.PAYLOAD,
        acknowledged: bool = False,
    ) -> None:
        """Let the owner's receiver hear these blocks of the client's update, or something that is no reception."""
        blob = frame_bytes(update, DESIGN, part=part)
        chunk = reader(blob).chunk(0, design=DESIGN)
        heard, soft = np.isin(chunk.indices, list(blocks)), np.empty((0, DESIGN.codewords, DESIGN.code_bits), np.int8)
        snr_db = np.full(chunk.count, 30.0, np.float32)
        reception = Reception.of(chunk, listener=Listener.MAIN, heard=heard, snr_db=snr_db, soft=soft)
        sent = transmission(blob, DESIGN, part=part, client=client, attempt=attempt)
        sent = replace(sent, key=replace(sent.key, round_id=round_id))
        self.broadcast([None if junk else reception], sent, acknowledged=acknowledged)

    def broadcast(self, chunks: Sequence[Reception | None], sent: Transmission, *, acknowledged: bool = False) -> None:
        """Tell the owner of a transmission of which it will hear these chunks."""
        shown = next((chunk for chunk in chunks if chunk is not None), None)
        notice = ReceptionNotice(
            seq=len(self.on_air) + 1,
            listener=Listener.MAIN,
            transmission=sent,
            blocks=sum(0 if chunk is None else chunk.count for chunk in chunks) or 1,
            update_bytes=len(UPDATE) if shown is None else shown.update_bytes,
            fidelity="abstract" if shown is None else shown.fidelity.value,
            airtime=Second(1.0),
            acknowledged=acknowledged,
        )
        self.on_air[notice.seq] = list(chunks)
        self.notices_sent.put_nowait(notice)

    def open(self, round_id: int) -> None:
        self.directives.put_nowait(Directive(seq=1, kind=DirectiveKind.ROUND_OPENED, round_id=round_id))

    def close(self, *accepted: str, failed: str = "") -> None:
        ids = tuple(ClientId(a) for a in accepted)
        closed = Directive(seq=1, kind=DirectiveKind.ROUND_CLOSED, round_id=1, accepted=ids, failed_reason=failed, last=True)
        self.directives.put_nowait(closed)

    def ask_to_conclude(self, round_id: int, *accepted: str) -> None:
        ids = tuple(ClientId(a) for a in accepted)
        self.directives.put_nowait(Directive(seq=1, kind=DirectiveKind.CONCLUDE, round_id=round_id, accepted=ids))


_coordinator: type[CoordinatorPort] = World
_air: type[AirPort] = World
_bench: type[Bench] = World
_press: type[Press] = World


@dataclass(slots=True)
class Owner:
    """One life of the owner's part."""

    rounds: OwnerRounds
    desk: Desk
    journal: Journal

    def closing(self) -> Closing:
        found = self.desk.book.closing(RUN, 1)
        assert found is not None
        return found

    async def verdict(self, client: str) -> Verdict:
        return await self.desk.verdict(RUN, 1, ClientId(client), within_s=10)


def live(
    world: World,
    journal: Journal,
    worker: ThreadPoolExecutor,
    *,
    broken: Exception | None = None,
    rounds: int = 2,
    patience: int = 0,
    allocator: AllocatorConfig = ASSUMED,
    sums: SumTable | None = None,
) -> Owner:
    owner, book = OwnerConfig(patience=patience, min_improvement_nats=0.1), Book()
    setting = structs.replace(scenario(), coordinator=CoordinatorConfig(rounds=rounds, allocator=allocator), owner=owner)
    for event in journal.events():
        book.apply(event.kind, event.body)
    desk = Desk(book, clients=frozenset(ClientId(c.id) for c in setting.clients))
    bench: asyncio.Future[Bench] = asyncio.get_running_loop().create_future()
    bench.set_result(world) if broken is None else bench.set_exception(broken)
    rounds_ = OwnerRounds(
        setting,
        run=RUN,
        book=book,
        journal=journal,
        desk=desk,
        incoming=world.folder / "incoming",
        bench=bench,
        worker=worker,
        press=world,
        coordinator=world,
        air=world,
        clock=FakeClock(autojump=True),
        seeds=SeedTree(0),
        sums=sums,
    )
    return Owner(rounds=rounds_, desk=desk, journal=journal)


@asynccontextmanager
async def stage(
    folder: Path,
    *,
    rounds: int = 2,
    patience: int = 0,
    allocator: AllocatorConfig = ASSUMED,
    sums: SumTable | None = None,
) -> AsyncGenerator[tuple[World, Owner]]:
    """Set the scene; afterwards nothing may have failed."""
    world = World(folder)
    journal = Journal.open(folder / "journal.sqlite", schema="test-owner")
    worker = ThreadPoolExecutor(max_workers=1)
    owner = live(world, journal, worker, rounds=rounds, patience=patience, allocator=allocator, sums=sums)
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
    lost = Reception.of(chunk, listener=Listener.MAIN, heard=heard, snr_db=snr_db, soft=noise)

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


# --- updates that are only added --------------------------------------------------------------------------------------


class Adding:
    """A round whose members have advertised and dealt, and the owner's table that it is added up on."""

    def __init__(self, folder: Path) -> None:
        grid = Grid(tensors=(TensorGrid(name="w", shape=(2,), clip=1.0, digits=4),), weight_max=3)
        self.table = SumTable(folder, options=SecureConfig(), clients=3, grid=grid, verify=verify, clock=FakeClock())
        self.table.enter(RUN)
        terms = terms_of(SecureConfig(), members_max=3, run=RUN, round_id=1, layout=self.table.layout)
        self.rehearsal = Rehearsal(terms=terms, names=tuple(ClientId(c.id) for c in scenario().clients))
        self.rehearsal.advertise()
        self.rehearsal.deal()
        self.names = self.rehearsal.names

    def tell(self, world: World) -> None:
        """Let the coordinator say who has dealt; from then on payloads come as they are judged."""
        for word in (self.rehearsal.roster, self.rehearsal.delivery(ClientId("owner"))):
            world.directives.put_nowait(Directive(seq=1, kind=DirectiveKind.SUM, round_id=1, sum=word))
        world.taking = lambda key: self.table.take(1, self.rehearsal.mask(key.client).to_bytes(), member=key.client)

    def stand(self, world: World) -> None:
        """Let the survivors that the owner has announced vow, and open what is to be opened."""
        self.rehearsal.relayed = self.rehearsal.relay.announce(self.rehearsal.relayed, world.announced[0])
        self.rehearsal.vow()
        for name in self.names:
            self.table.open(1, self.rehearsal.opening(name))


def test_updates_that_are_only_added_are_not_judged_before_it_is_known_who_has_dealt(tmp_path: Path) -> None:
    async def play() -> None:
        adding = Adding(tmp_path / "sums")
        async with stage(tmp_path, sums=adding.table) as (world, _):
            world.hear(adding.names[0])
            for _ in range(20):
                await asyncio.sleep(0)
            assert world.judged == []
            adding.tell(world)
            await world.until(lambda: world.settled != [])
            assert [key.client for key in world.judged] == [adding.names[0]]

    asyncio.run(play())


def test_a_last_round_is_concluded_by_survivors_that_open_their_shares_and_nothing_more_is_published(tmp_path: Path) -> None:
    async def play() -> None:
        adding = Adding(tmp_path / "sums")
        async with stage(tmp_path, rounds=1, sums=adding.table) as (world, owner):
            adding.tell(world)
            world.announcing = lambda: adding.stand(world)
            await play_round(world, 1, *adding.names)
            assert [s.members for s in world.announced] == [adding.names]
            assert world.merged == [adding.names]
            assert (world.concluded, world.order) == ([Conclusion(run=RUN, round_id=1, last=False)], ["concluded"])
            assert (await owner.desk.verdict(RUN, 1, adding.names[0], within_s=10)).kept
        assert [*(tmp_path / "sums").rglob("*.words")] == []

    asyncio.run(play())


def test_a_sum_that_cannot_be_had_changes_nothing_and_the_run_goes_on(tmp_path: Path) -> None:
    async def play() -> None:
        adding = Adding(tmp_path / "sums")
        async with stage(tmp_path, sums=adding.table) as (world, owner):
            adding.tell(world)
            world.hear(adding.names[0])
            await world.until(lambda: len(world.settled) == 1)
            world.ask_to_conclude(1, adding.names[0])
            await world.until(lambda: world.concluded != [])
            closing = owner.closing()
            assert (closing.merged, closing.kept, world.merged, world.announced) == ((), False, [], [])
            assert "QUORUM_MISSED: 1 of 3 members survived, 2 are needed" in closing.reason
            assert world.renewed == [2], "the next round starts from what the model has"
            assert not (await owner.desk.verdict(RUN, 1, adding.names[0], within_s=10)).kept

    asyncio.run(play())


# --- from round to round ----------------------------------------------------------------------------------------------


async def play_round(world: World, round_id: int, *clients: str) -> None:
    """Have a round's updates judged and the round concluded."""
    world.open(round_id)
    settled = len(world.settled)
    for client in clients:
        world.hear(client, round_id=round_id)
    await world.until(lambda: len(world.settled) == settled + len(clients))
    world.ask_to_conclude(round_id, *clients)
    await world.until(lambda: any(c.round_id == round_id for c in world.concluded))


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
