"""An owner's part in a run with everybody else scripted: coordinator, air, bench and press."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from msgspec import structs

from hushtune_common.config import AllocatorConfig, CoordinatorConfig, OwnerConfig
from hushtune_common.errors import MalformedUpdate, PeerLost, Replayed, StaleRound
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
from hushtune_common.secagg.messages import Survivors
from hushtune_common.seeding import SeedTree
from hushtune_common.store.journal import Journal
from hushtune_common.units import Second
from hushtune_server.owner.book import Book, Closing, Copy, Judgement
from hushtune_server.owner.incoming import Link
from hushtune_server.owner.ports import AirPort, Bench, CoordinatorPort, Merged, Press, Renewal
from hushtune_server.owner.rounds import OwnerRounds
from hushtune_server.owner.service import Desk
from hushtune_server.owner.sums import SumTable
from tests.fakes import CURVE, FakeClock
from tests.loopback import manifest_of
from tests.radio import frame_bytes, qpsk_design, random_update, reader, scenario, transmission

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
        reception = Reception.of(chunk, listener=Listener.MAIN, heard=heard, snr_db=snr_db, gain_log2=0, soft=soft)
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


async def play_round(world: World, round_id: int, *clients: str) -> None:
    """Have a round's updates judged and the round concluded."""
    world.open(round_id)
    settled = len(world.settled)
    for client in clients:
        world.hear(client, round_id=round_id)
    await world.until(lambda: len(world.settled) == settled + len(clients))
    world.ask_to_conclude(round_id, *clients)
    await world.until(lambda: any(c.round_id == round_id for c in world.concluded))
