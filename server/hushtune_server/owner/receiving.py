"""How does an announced reception become a judgement? It is heard, acknowledged, judged when it is whole, and settled."""

import asyncio
import logging
from collections import defaultdict
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from dataclasses import asdict
from functools import partial
from pathlib import Path
from shutil import rmtree
from typing import Any

from hushtune_common.errors import AbstractionContradicted, OperatingFault, ProtocolFault, StaleRound
from hushtune_common.logs import log_event
from hushtune_common.messages import ClientId, Digest, Receipt, ReceptionNotice, RunId, Settlement, UpdateKey
from hushtune_server.owner.book import JUDGED, Judgement, refusal, to_body
from hushtune_server.owner.ports import AirPort, Bench, CoordinatorPort
from hushtune_server.owner.reception import Bounds, UpdateReception
from hushtune_server.owner.standing import BenchThread, Standing, log_evaluation
from hushtune_server.owner.sums import SumTable

_log = logging.getLogger(__name__)

Slot = tuple[int, ClientId]
"""Of a round and a client: one update has its place there."""


class Receiving:
    """What the owner does with what its receiver announces.

    Laws: each update is judged once, and not before its round is open; a client whose update cannot be read, or whose transfer
    fails, disturbs no other; what was acknowledged in an earlier life is not heard again, and judged if it was not.
    """

    def __init__(
        self,
        standing: Standing,
        *,
        incoming: Path,
        bench: BenchThread,
        coordinator: CoordinatorPort,
        air: AirPort,
        sums: SumTable | None,
    ) -> None:
        """Keep updates on their way in the folder ``incoming``; with ``sums`` it waits until the round's have dealt."""
        self._standing = standing
        self._incoming = incoming
        self._bench = bench
        self._coordinator = coordinator
        self._air = air
        self._sums = sums
        self._locks: defaultdict[Slot, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._updates: dict[Slot, UpdateReception] = {}
        self._receiving: set[asyncio.Task[None]] = set()
        self._opened = asyncio.Condition()
        self._round_id = 0

    @property
    def open_count(self) -> int:
        """How many updates have arrived in part; may be asked from any thread."""
        return len(self._updates)

    async def tidy(self) -> None:
        """Delete what is left of other runs."""
        await asyncio.to_thread(_keep_only, self._incoming, self._standing.run)

    async def listen(self, group: asyncio.TaskGroup) -> None:
        """Work on whatever is announced, each in a task of ``group``."""
        async with aclosing(self._air.notices()) as notices:
            async for notice in notices:
                key = notice.transmission.key
                if self._is_ours(key):
                    task = group.create_task(self._receive(notice))
                    self._receiving.add(task)
                    task.add_done_callback(self._receiving.discard)

    def stop(self) -> None:
        """Let go of what is under way."""
        for task in self._receiving:
            task.cancel()

    async def begin(self, round_id: int) -> None:
        """Judge updates of this round from now on."""
        async with self._opened:
            self._round_id = max(self._round_id, round_id)
            self._opened.notify_all()

    async def look_again(self) -> None:
        """Let updates that wait for their round see whether it may be judged now."""
        async with self._opened:
            self._opened.notify_all()

    def forget_round(self, round_id: int) -> None:
        """Delete what came of updates of a round that is closed, but for those that are being worked on."""
        for slot in [s for s in self._updates if s[0] == round_id and not self._locks[s].locked()]:
            self._forget(slot)

    def _may_judge(self, round_id: int) -> bool:
        """Whether updates of a round can be judged: it has begun, and where they are only added, it is known who has dealt."""
        if self._round_id < round_id:
            return False
        return self._round_id > round_id or self._over(round_id) or self._sums is None or self._sums.ready(round_id)

    def _over(self, round_id: int) -> bool:
        return self._standing.book.closing(self._standing.run, round_id) is not None

    def _is_ours(self, key: UpdateKey) -> bool:
        """Whether this update may come in this run: what an air announces beyond that must not pile up here."""
        scenario = self._standing.scenario
        known = any(key.client == client.id for client in scenario.clients)
        in_bounds = key.round_id <= scenario.coordinator.rounds and key.attempt <= scenario.limits.attempts_max
        return key.run == self._standing.run and known and in_bounds

    async def _receive(self, notice: ReceptionNotice) -> None:
        key = notice.transmission.key
        slot = (key.round_id, key.client)
        # An update ahead of its round would take the place of the client's adapter that this round is going to average.
        async with self._opened:
            await self._opened.wait_for(lambda: self._may_judge(key.round_id))
        try:
            await self._standing.with_room(partial(self._receive_now, notice, slot))
        except OperatingFault as fault:
            log_event(_log, "reception_failed", level=logging.WARNING, **_about(key), reason=fault.reason, problem=str(fault))

    async def _receive_now(self, notice: ReceptionNotice, slot: Slot) -> None:
        key = notice.transmission.key
        async with self._locks[slot]:
            if self._over(key.round_id):
                self._forget(slot)
                await self._insist(notice, Receipt(key=key, missing=()))
            elif (known := self._standing.book.judgement(self._standing.run, key.round_id, key.client)) is not None:
                self._forget(slot)
                await self._settle(known)
                await self._insist(notice, Receipt(key=key, missing=()))
            else:
                await self._take(notice, slot)

    async def _take(self, notice: ReceptionNotice, slot: Slot) -> None:
        key = notice.transmission.key
        bench = await self._bench.made()
        try:
            update = self._updates.get(slot) or await self._expect(slot, bench)
            receipt = await self._hear(notice, update)
        except (ProtocolFault, AbstractionContradicted) as fault:
            # Nothing can be asked again of a reception that is not what it says; the client is answered, not left waiting.
            await self._decide(refusal(key, fault), slot)
            await self._insist(notice, Receipt(key=key, missing=()))
            return
        answered = receipt is None or await self._answer(notice, receipt)
        # What is whole is judged also while the air cannot be told so: the round does not hang on its receipt.
        await self._judge_if_whole(notice, update)
        if receipt is not None and not answered:
            await self._insist(notice, receipt)
        if self._over(key.round_id):  # closed meanwhile, so nobody waits for the rest
            self._forget(slot)

    async def _hear(self, notice: ReceptionNotice, update: UpdateReception) -> Receipt | None:
        """Return the receipt of a transmission, heard now unless it was before; none when it can no longer be heard."""
        known = update.receipt(notice.transmission)
        if known is not None:
            return known
        if notice.acknowledged:
            return _gone(notice, "it was acknowledged in an earlier life, of which nothing is left here")
        clock, seconds = self._standing.clock, 0.0
        try:
            async with aclosing(self._air.receive(notice)) as chunks:
                async for chunk in chunks:
                    started_s = clock.monotonic()
                    await asyncio.to_thread(update.take, chunk, notice=notice)
                    seconds += clock.monotonic() - started_s
        except StaleRound as fault:
            return _gone(notice, str(fault))
        receipt, decoding = await asyncio.to_thread(update.conclude, notice)
        log_event(
            _log,
            "reception_decoded",
            **_about(receipt.key),
            part=notice.transmission.part,
            digest_frame=notice.transmission.frame,
            **asdict(decoding),
            seconds=seconds,
            fidelity=notice.fidelity,
        )
        return receipt

    async def _judge_if_whole(self, notice: ReceptionNotice, update: UpdateReception) -> None:
        key = notice.transmission.key
        whole = await asyncio.to_thread(update.whole)
        if whole is None:
            return
        log_event(
            _log,
            "update_received",
            **_about(key),
            attempts=update.attempts,
            bytes_sealed=len(whole.blob),
            digest=await asyncio.to_thread(Digest.of, whole.blob),
            protection=whole.protection,
            fidelity=notice.fidelity,
        )
        self._standing.enter(f"judging the update of {key.client}")
        judgement = await self._bench.do(lambda bench: bench.judge(whole.blob, key=key, links=whole.links, secret=whole.secret))
        await self._decide(judgement, (key.round_id, key.client))
        if self._standing.phase.startswith("judging"):  # another phase has begun meanwhile when the round was closed
            self._standing.enter(f"waiting for updates of round {key.round_id}")

    async def _answer(self, notice: ReceptionNotice, receipt: Receipt) -> bool:
        """Acknowledge a transmission, and return whether the air has heard it; an earlier receipt counts, if there is one."""
        if notice.acknowledged:
            return True
        key = receipt.key
        try:
            await self._air.acknowledge(receipt)
        except ProtocolFault as fault:
            log_event(_log, "receipt_refused", level=logging.WARNING, **_about(key), reason=fault.reason, problem=str(fault))
        except OperatingFault as fault:
            log_event(_log, "receipt_delayed", level=logging.WARNING, **_about(key), reason=fault.reason, problem=str(fault))
            return False
        return True

    async def _insist(self, notice: ReceptionNotice, receipt: Receipt) -> None:
        """Acknowledge a transmission, again and again while the air cannot be reached: its client waits for that."""
        if not notice.acknowledged:
            await self._tell(partial(self._air.acknowledge, receipt), refused="receipt_refused", **_about(receipt.key))

    async def _expect(self, slot: Slot, bench: Bench) -> UpdateReception:
        scenario, folder = self._standing.scenario, self._folder(slot)
        bounds = Bounds(
            update_bytes_max=min(scenario.limits.update_bytes_max, bench.bytes_max),
            attempts_max=scenario.limits.attempts_max,
            threads=scenario.compute.link_threads,
        )
        update = await asyncio.to_thread(UpdateReception, folder, client=slot[1], round_id=slot[0], bounds=bounds)
        self._updates[slot] = update
        return update

    async def _decide(self, judgement: Judgement, slot: Slot) -> None:
        key, standing = judgement.key, self._standing
        await standing.record(JUDGED, to_body(judgement), key=f"judged/{standing.run}/{slot[0]}/{slot[1]}")
        self._forget(slot)
        if judgement.accepted:
            log_event(_log, "update_accepted", **_about(key), digest=judgement.digest)
            if self._sums is None:
                log_evaluation(judgement, client=key.client, round_id=key.round_id)
        else:
            why = {"reason": judgement.reason, "digest": judgement.digest}
            log_event(_log, "update_refused", level=logging.WARNING, **_about(key), **why)
        standing.desk.ring()
        await self._settle(judgement)

    async def _settle(self, judgement: Judgement) -> None:
        """Tell the coordinator; a round that is closed there no longer wants to know."""
        settlement = Settlement(key=judgement.key, accepted=judgement.accepted)
        client = judgement.key.client
        await self._tell(lambda: self._coordinator.settle(settlement), refused="settlement_refused", client=client)

    async def _tell(self, call: Callable[[], Awaitable[None]], *, refused: str, **about: Any) -> None:
        """Tell a peer; what it will not hear is logged as ``refused``."""
        fault = await self._standing.say(call)
        if fault is not None:
            log_event(_log, refused, **about, reason=fault.reason, problem=str(fault))

    def _forget(self, slot: Slot) -> None:
        self._updates.pop(slot, None)
        rmtree(self._folder(slot), ignore_errors=True)

    def _folder(self, slot: Slot) -> Path:
        return self._incoming / self._standing.run / str(slot[0]) / slot[1]


def _gone(notice: ReceptionNotice, problem: str) -> None:
    """Say that a transmission cannot be heard: the client is going to notice, this process goes on."""
    key = notice.transmission.key
    log_event(_log, "reception_gone", level=logging.WARNING, **_about(key), part=notice.transmission.part, problem=problem)


def _about(key: UpdateKey) -> dict[str, Any]:
    return {"client": key.client, "round_id": key.round_id, "attempt": key.attempt}


def _keep_only(incoming: Path, run: RunId) -> None:
    """Delete what is left of other runs: nobody will ever send the rest of it."""
    for folder in incoming.glob("*"):
        if folder.name != run:
            rmtree(folder, ignore_errors=True)
