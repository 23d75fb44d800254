"""How does an announced reception become a verdict, and one round the next? Receive, judge, settle; average; publish."""

import asyncio
import logging
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Executor
from contextlib import aclosing
from dataclasses import asdict, replace
from functools import partial
from math import isfinite
from pathlib import Path
from shutil import rmtree
from typing import Any, Protocol

from hushtune_common.clock import Clock
from hushtune_common.config import Scenario
from hushtune_common.errors import (
    AbstractionContradicted,
    ConfigError,
    MalformedUpdate,
    OperatingFault,
    PeerLost,
    ProtocolFault,
    QuorumMissed,
    Refusal,
    StaleRound,
    StorageFull,
    TrainerFailed,
)
from hushtune_common.logs import log_event
from hushtune_common.messages import (
    ClientId,
    Conclusion,
    Digest,
    Directive,
    DirectiveKind,
    Receipt,
    ReceptionNotice,
    RunId,
    Settlement,
    UpdateKey,
)
from hushtune_common.secagg.terms import opening_s
from hushtune_common.seeding import SeedTree
from hushtune_common.store.disk import disk_fault
from hushtune_common.store.journal import Journal
from hushtune_common.store.room import Room
from hushtune_server.owner.book import CLOSED, JUDGED, PUBLISHED, Book, Closing, Judgement, Publication, refusal, to_body
from hushtune_server.owner.plugin import Trial
from hushtune_server.owner.ports import AirPort, Bench, CoordinatorPort, Press
from hushtune_server.owner.reception import Bounds, UpdateReception
from hushtune_server.owner.stopping import why_stop
from hushtune_server.owner.sums import SumTable

_log = logging.getLogger(__name__)
_FAREWELL_S = 15.0
_BACKOFF_CAP_S = 20.0

Slot = tuple[int, ClientId]


class VerdictDesk(Protocol):
    """Where clients wait for verdicts and emulators.

    Law: after `ring`, everyone who waits looks at the book again.
    """

    def ring(self) -> None:
        """Say that the book has changed."""
        ...

    async def until(self, holds: Callable[[], bool]) -> None:
        """Wait until ``holds``, looked at after every `ring`."""
        ...

    async def all_fetched(self, run: RunId, round_id: int, clients: frozenset[ClientId], *, within_s: float) -> bool:
        """Wait until each of ``clients`` has its verdict; return false when ``within_s`` was not enough."""
        ...


class OwnerRounds:
    """The owner's part in every round of one run.

    Laws: what is decided is in the journal before anybody is told; each update is judged once, and not before its round is open;
    a client whose update cannot be read, or whose transfer fails, disturbs no other. Replayed notices, as after a restart, lead
    to the same answers; what was acknowledged in an earlier life is not heard again, and judged if it was not. A round is
    concluded once its average is decided and the next one's emulator is on offer, or none is wanted.
    """

    def __init__(
        self,
        scenario: Scenario,
        *,
        run: RunId,
        book: Book,
        journal: Journal,
        desk: VerdictDesk,
        incoming: Path,
        bench: Awaitable[Bench],
        worker: Executor,
        press: Press,
        coordinator: CoordinatorPort,
        air: AirPort,
        clock: Clock,
        seeds: SeedTree,
        sums: SumTable | None = None,
    ) -> None:
        """Take part in ``run``, with updates on their way in the folder ``incoming``.

        The ``bench`` is made and used in the one thread of ``worker``. With ``sums`` it adds what it does not look at.
        """
        self._sums = sums
        self._scenario = scenario
        self._run = run
        self._book = book
        self._journal = journal
        self._desk = desk
        self._incoming = incoming
        self._bench = bench
        self._worker = worker
        self._press = press
        self._coordinator = coordinator
        self._air = air
        self._clock = clock
        self._rng = seeds.child("settle").generator()
        self._locks: defaultdict[Slot, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._updates: dict[Slot, UpdateReception] = {}
        self._receiving: set[asyncio.Task[None]] = set()
        self._opened = asyncio.Condition()
        self._round_id = 0
        self._phase = "waiting for a round"

    async def follow(self) -> None:
        """Take part until the last round is closed and its verdicts are fetched, or the coordinator drains."""
        await asyncio.to_thread(_keep_only, self._incoming, self._run)
        async with asyncio.TaskGroup() as group:
            listening = group.create_task(self._listen(group))
            making = group.create_task(self._have_bench())
            await self._obey()
            listening.cancel()
            making.cancel()
            for task in self._receiving:
                task.cancel()

    async def _have_bench(self) -> None:
        """Learn at once, and not with the first update, that the bench cannot be made."""
        await self._bench

    async def _obey(self) -> None:
        async with aclosing(self._coordinator.follow(lambda: self._phase)) as directives:
            async for directive in directives:
                match directive.kind:
                    case DirectiveKind.ROUND_OPENED:
                        await self._begin(directive.round_id)
                        self._enter(f"waiting for updates of round {directive.round_id}")
                    case DirectiveKind.SUM:
                        await self._hear_sum(directive)
                    case DirectiveKind.CONCLUDE:
                        await self._with_room(partial(self._close, directive))
                        await self._with_room(partial(self._go_on, directive.round_id))
                    case DirectiveKind.ROUND_CLOSED:
                        await self._with_room(partial(self._close, directive))
                        await self._begin(directive.round_id)
                        if directive.last:
                            return await self._see_off(directive)
                    case DirectiveKind.DRAIN:
                        return None
                    case DirectiveKind.ASSIGNED:
                        pass  # addressed to clients
        raise PeerLost("the coordinator ended the run before its last round was closed")

    async def _begin(self, round_id: int) -> None:
        async with self._opened:
            self._round_id = max(self._round_id, round_id)
            self._opened.notify_all()

    async def _hear_sum(self, directive: Directive) -> None:
        """Take a word on a round's sum; one that cannot be worked with is logged, and the round's updates are not heard."""
        if self._sums is None or directive.sum is None:
            raise MalformedUpdate(f"directive {directive.seq} is on a sum, and owner.aggregation.kind of this scenario is mean")
        if self._book.closing(self._run, directive.round_id) is not None:
            return
        try:
            await asyncio.to_thread(self._sums.hear, directive.round_id, directive.sum)
        except (ProtocolFault, Refusal) as fault:
            fields = {"round_id": directive.round_id, "reason": fault.reason, "problem": str(fault)}
            log_event(_log, "sum_refused", level=logging.ERROR, **fields)
        async with self._opened:
            self._opened.notify_all()

    def _may_judge(self, round_id: int) -> bool:
        """Whether updates of a round can be judged: it has begun, and where they are only added, it is known who has dealt."""
        if self._round_id < round_id:
            return False
        over = self._round_id > round_id or self._book.closing(self._run, round_id) is not None
        return over or self._sums is None or self._sums.ready(round_id)

    async def _listen(self, group: asyncio.TaskGroup) -> None:
        async with aclosing(self._air.notices()) as notices:
            async for notice in notices:
                key = notice.transmission.key
                if self._is_ours(key):
                    task = group.create_task(self._receive(notice))
                    self._receiving.add(task)
                    task.add_done_callback(self._receiving.discard)

    def _is_ours(self, key: UpdateKey) -> bool:
        """Whether this update may come in this run: what an air announces beyond that must not pile up here."""
        known = any(key.client == client.id for client in self._scenario.clients)
        in_bounds = key.round_id <= self._scenario.coordinator.rounds and key.attempt <= self._scenario.limits.attempts_max
        return key.run == self._run and known and in_bounds

    async def _receive(self, notice: ReceptionNotice) -> None:
        key = notice.transmission.key
        slot = (key.round_id, key.client)
        # An update ahead of its round would take the place of the client's adapter that this round is going to average.
        async with self._opened:
            await self._opened.wait_for(lambda: self._may_judge(key.round_id))
        try:
            await self._with_room(partial(self._receive_now, notice, slot))
        except OperatingFault as fault:
            log_event(_log, "reception_failed", level=logging.WARNING, **_about(key), reason=fault.reason, problem=str(fault))

    async def _with_room(self, work: Callable[[], Awaitable[None]]) -> None:
        """Do what may be done again, and again when there is room on the disk where there was none."""
        room = Room(clock=self._clock, rng=self._rng, within_s=self._scenario.timing.round_s)
        while True:
            try:
                return await work()
            except OSError as error:
                fault = disk_fault(error)
                if not isinstance(fault, StorageFull):
                    raise
                await room.wait(fault)
            except StorageFull as error:
                await room.wait(error)

    async def _receive_now(self, notice: ReceptionNotice, slot: Slot) -> None:
        key = notice.transmission.key
        async with self._locks[slot]:
            if self._book.closing(self._run, key.round_id) is not None:
                self._forget(slot)
                await self._insist(notice, Receipt(key=key, missing=()))
            elif (known := self._book.judgement(self._run, key.round_id, key.client)) is not None:
                self._forget(slot)
                await self._settle(known)
                await self._insist(notice, Receipt(key=key, missing=()))
            else:
                await self._take(notice, slot)

    async def _take(self, notice: ReceptionNotice, slot: Slot) -> None:
        key = notice.transmission.key
        bench = await self._bench
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
        await self._judge_if_whole(notice, update, bench)
        if receipt is not None and not answered:
            await self._insist(notice, receipt)
        if self._book.closing(self._run, key.round_id) is not None:  # closed meanwhile, so nobody waits for the rest
            self._forget(slot)

    async def _hear(self, notice: ReceptionNotice, update: UpdateReception) -> Receipt | None:
        """Return the receipt of a transmission, heard now unless it was before; none when it can no longer be heard."""
        known = update.receipt(notice.transmission)
        if known is not None:
            return known
        if notice.acknowledged:
            return _gone(notice, "it was acknowledged in an earlier life, of which nothing is left here")
        seconds = 0.0
        try:
            async with aclosing(self._air.receive(notice)) as chunks:
                async for chunk in chunks:
                    started_s = self._clock.monotonic()
                    await asyncio.to_thread(update.take, chunk, notice=notice)
                    seconds += self._clock.monotonic() - started_s
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

    async def _judge_if_whole(self, notice: ReceptionNotice, update: UpdateReception, bench: Bench) -> None:
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
        self._enter(f"judging the update of {key.client}")
        work = partial(bench.judge, whole.blob, key=key, links=whole.links, secret=whole.secret)
        judgement = await asyncio.get_running_loop().run_in_executor(self._worker, work)
        await self._decide(judgement, (key.round_id, key.client))
        if self._phase.startswith("judging"):  # another phase has begun meanwhile when the round was closed
            self._enter(f"waiting for updates of round {key.round_id}")

    async def _answer(self, notice: ReceptionNotice, receipt: Receipt) -> bool:
        """Acknowledge a transmission, and return whether the air has heard it; an earlier receipt counts, if there is one."""
        if notice.acknowledged:
            return True
        about = _about(receipt.key)
        try:
            await self._air.acknowledge(receipt)
        except ProtocolFault as fault:
            log_event(_log, "receipt_refused", level=logging.WARNING, **about, reason=fault.reason, problem=str(fault))
        except OperatingFault as fault:
            log_event(_log, "receipt_delayed", level=logging.WARNING, **about, reason=fault.reason, problem=str(fault))
            return False
        return True

    async def _insist(self, notice: ReceptionNotice, receipt: Receipt) -> None:
        """Acknowledge a transmission, again and again while the air cannot be reached: its client waits for that."""
        if not notice.acknowledged:
            about = _about(receipt.key)
            await self._say(lambda: self._air.acknowledge(receipt), refused="receipt_refused", **about)

    async def _expect(self, slot: Slot, bench: Bench) -> UpdateReception:
        limits, folder = self._scenario.limits, self._folder(slot)
        bounds = Bounds(
            update_bytes_max=min(limits.update_bytes_max, bench.bytes_max),
            attempts_max=limits.attempts_max,
            threads=self._scenario.compute.link_threads,
        )
        update = await asyncio.to_thread(UpdateReception, folder, client=slot[1], round_id=slot[0], bounds=bounds)
        self._updates[slot] = update
        return update

    async def _decide(self, judgement: Judgement, slot: Slot) -> None:
        key = judgement.key
        event = await self._journal.append(JUDGED, to_body(judgement), key=f"judged/{self._run}/{slot[0]}/{slot[1]}")
        self._book.apply(event.kind, event.body)
        self._forget(slot)
        if judgement.accepted:
            log_event(_log, "update_accepted", **_about(key), digest=judgement.digest)
            if self._sums is None:
                _log_evaluation(judgement, client=key.client, round_id=key.round_id)
        else:
            why = {"reason": judgement.reason, "digest": judgement.digest}
            log_event(_log, "update_refused", level=logging.WARNING, **_about(key), **why)
        self._desk.ring()
        await self._settle(judgement)

    async def _settle(self, judgement: Judgement) -> None:
        """Tell the coordinator; a round that is closed there no longer wants to know."""
        settlement = Settlement(key=judgement.key, accepted=judgement.accepted)
        await self._say(lambda: self._coordinator.settle(settlement), refused="settlement_refused", client=judgement.key.client)

    async def _say(self, call: Callable[[], Awaitable[None]], *, refused: str, **about: Any) -> None:
        """Tell a peer, trying again while it cannot be reached; what it will not hear is logged as ``refused``."""
        attempts = self._scenario.limits.attempts_max
        for attempt in range(1, attempts + 1):
            try:
                return await call()
            except ProtocolFault as fault:
                log_event(_log, refused, **about, reason=fault.reason, problem=str(fault))
                return None
            except StorageFull:
                raise  # waited for by whoever asked for this
            except OperatingFault:
                if attempt == attempts:
                    raise
                await self._clock.sleep(float(self._rng.uniform(0.0, min(_BACKOFF_CAP_S, 0.5 * 2.0**attempt))))
        return None

    def _forget(self, slot: Slot) -> None:
        self._updates.pop(slot, None)
        rmtree(self._folder(slot), ignore_errors=True)

    def _folder(self, slot: Slot) -> Path:
        return self._incoming / self._run / str(slot[0]) / slot[1]

    async def _close(self, directive: Directive) -> None:
        if self._book.closing(self._run, directive.round_id) is None:
            closing = await self._conclude(directive)
            event = await self._journal.append(CLOSED, to_body(closing), key=f"closed/{self._run}/{directive.round_id}")
            self._book.apply(event.kind, event.body)
            decision = "plugin_kept" if closing.kept else "plugin_rolled_back"
            log_event(_log, decision, round_id=closing.round_id, clients=list(closing.merged), reason=closing.reason)
        for slot in [s for s in self._updates if s[0] == directive.round_id and not self._locks[s].locked()]:
            self._forget(slot)
        if self._sums is not None:
            await asyncio.to_thread(self._sums.forget, directive.round_id)
            async with self._opened:
                self._opened.notify_all()
        self._desk.ring()

    async def _conclude(self, directive: Directive) -> Closing:
        """Average what the round accepted, keep it or not, and decide whether another round is wanted."""
        closing = await self._averaged(directive)
        if directive.kind is not DirectiveKind.CONCLUDE or directive.round_id >= self._scenario.coordinator.rounds:
            return closing  # the last one by number, or a failed one: nothing is left to decide
        owner, past = self._scenario.owner, self._book.closings_of(self._run)
        stopped = why_stop([*past, closing], patience=owner.patience, improvement_nats=owner.min_improvement_nats)
        return replace(closing, stopped=stopped)

    async def _averaged(self, directive: Directive) -> Closing:
        candidates = self._book.mergeable(self._run, directive.round_id, directive.accepted)
        closing = partial(Closing, run=self._run, round_id=directive.round_id, accepted=directive.accepted)
        if directive.failed_reason:
            return closing(merged=(), kept=False, reason=f"the round failed: {directive.failed_reason}")
        if not candidates:
            return closing(merged=(), kept=False, reason="no update was left to average")
        try:
            if self._sums is not None:
                candidates = await self._opened_by(self._sums, directive.round_id, candidates)
            self._enter(f"averaging {len(candidates)} adapters")
            bench = await self._bench
            merged = await asyncio.get_running_loop().run_in_executor(self._worker, bench.merge, candidates)
        except (ProtocolFault, QuorumMissed) as fault:
            if self._sums is None:
                raise
            log_event(
                _log, "sum_failed", level=logging.ERROR, round_id=directive.round_id, reason=fault.reason, problem=str(fault)
            )
            return closing(merged=(), kept=False, reason=f"the sum could not be had: {fault.reason}: {fault}")
        _log_evaluation(merged, client="aggregate", round_id=directive.round_id)
        for client, reason in merged.left_out.items():
            log_event(_log, "update_left_out", level=logging.WARNING, round_id=directive.round_id, client=client, reason=reason)
        before, after = merged.perplexity_before, merged.perplexity_after
        return closing(
            merged=merged.clients,
            left_out=merged.left_out,
            kept=merged.kept,
            reason=merged.reason,
            perplexity_before=before if isfinite(before) else None,
            perplexity_after=after if isfinite(after) else None,
        )

    async def _opened_by(self, sums: SumTable, round_id: int, candidates: Sequence[ClientId]) -> tuple[ClientId, ...]:
        """Name the survivors and wait until enough of them have opened their shares, or the time for that is up."""
        survivors = await asyncio.to_thread(partial(sums.close, round_id, among=candidates))
        dropped = list(sums.dropped(round_id))
        log_event(_log, "sum_survivors_named", round_id=round_id, survivors=list(survivors.members), dropped=dropped)
        self._enter(f"waiting for shares of round {round_id}")
        announce = partial(self._coordinator.announce, self._run, round_id, survivors)
        await self._say(announce, refused="survivors_refused", round_id=round_id)
        waits = {
            asyncio.ensure_future(self._desk.until(lambda: not sums.lacking(round_id))),
            asyncio.ensure_future(self._clock.sleep(opening_s(self._scenario.timing))),
        }
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
        return survivors.members

    async def _go_on(self, round_id: int) -> None:
        """Have the next round's emulator on offer, or none if no round is wanted, and let the coordinator go on."""
        closing = self._book.closing(self._run, round_id)
        stopped = "" if closing is None else closing.stopped
        if stopped:
            log_event(_log, "run_stopped", round_id=round_id, rounds=self._scenario.coordinator.rounds, reason=stopped)
        elif round_id < self._scenario.coordinator.rounds and self._book.manifest(self._run, round_id + 1) is None:
            await self._publish(round_id + 1)
        coordinator = self._scenario.coordinator
        if coordinator.allocator.utility.every_round and not stopped and round_id < coordinator.rounds:
            await self._tell_worth(round_id + 1)
        conclusion = Conclusion(run=self._run, round_id=round_id, last=bool(stopped), reason=stopped)
        await self._say(lambda: self._coordinator.conclude(conclusion), refused="conclusion_refused", round_id=round_id)

    async def _tell_worth(self, round_id: int) -> None:
        """Let the coordinator plan a round with what updates are worth by then; with what it knows when that is not to be had."""
        self._enter(f"measuring what updates of round {round_id} are worth")
        bench = await self._bench
        try:
            curve = await asyncio.get_running_loop().run_in_executor(self._worker, bench.worth)
        except (ConfigError, TrainerFailed) as fault:
            log_event(_log, "utility_unchanged", level=logging.WARNING, round_id=round_id, problem=str(fault))
            return
        await self._say(lambda: self._coordinator.tell_worth(curve), refused="utility_refused", round_id=round_id)

    async def _publish(self, round_id: int) -> None:
        self._enter(f"making the emulator of round {round_id}")
        bench, loop = await self._bench, asyncio.get_running_loop()
        renewal = await loop.run_in_executor(self._worker, bench.renew, round_id)
        manifest = await self._press.publish(round_id, renewal)
        copies = self._press.copies(manifest)
        taking_up = partial(bench.take_up, manifest, self._press.path(manifest), copies=copies)
        await loop.run_in_executor(self._worker, taking_up)
        body = to_body(Publication(run=self._run, manifest=manifest, copies=copies))
        event = await self._journal.append(PUBLISHED, body, key=f"published/{self._run}/{round_id}")
        self._book.apply(event.kind, event.body)
        log_event(
            _log,
            "emulator_renewed",
            round_id=round_id,
            digest=manifest.emulator,
            bytes_total=manifest.size_bytes,
            bytes_revision=None if renewal is None or manifest.revision is None else manifest.revision.size_bytes,
            changed=renewal is not None,
        )
        self._desk.ring()

    async def _see_off(self, directive: Directive) -> None:
        self._enter("handing out verdicts")
        accepted = frozenset(directive.accepted)
        if not await self._desk.all_fetched(self._run, directive.round_id, accepted, within_s=_FAREWELL_S):
            log_event(_log, "verdicts_left", level=logging.WARNING, round_id=directive.round_id, waited_s=_FAREWELL_S)

    def _enter(self, phase: str) -> None:
        if phase != self._phase:
            self._phase = phase
            log_event(_log, "phase_changed", phase=phase)


def _gone(notice: ReceptionNotice, problem: str) -> None:
    """Say that a transmission cannot be heard: the client is going to notice, this process goes on."""
    about = _about(notice.transmission.key)
    log_event(_log, "reception_gone", level=logging.WARNING, **about, part=notice.transmission.part, problem=problem)


def _about(key: UpdateKey) -> dict[str, Any]:
    return {"client": key.client, "round_id": key.round_id, "attempt": key.attempt}


def _keep_only(incoming: Path, run: RunId) -> None:
    """Delete what is left of other runs: nobody will ever send the rest of it."""
    for folder in incoming.glob("*"):
        if folder.name != run:
            rmtree(folder, ignore_errors=True)


def _log_evaluation(found: Judgement | Trial, *, client: str, round_id: int) -> None:
    log_event(
        _log,
        "plugin_evaluated",
        client=client,
        round_id=round_id,
        perplexity_public=found.perplexity_after,
        perplexity_public_before=found.perplexity_before,
        kept=found.kept,
        reason=found.reason,
    )
