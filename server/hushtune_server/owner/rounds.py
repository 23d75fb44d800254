"""How does the owner follow a run? The coordinator directs, its receiver announces, and each directive is obeyed in turn."""

import asyncio
import logging
from collections.abc import Awaitable
from concurrent.futures import Executor
from contextlib import aclosing
from functools import partial
from pathlib import Path

from hushtune_common.clock import Clock
from hushtune_common.config import Scenario
from hushtune_common.errors import MalformedUpdate, PeerLost, ProtocolFault, Refusal
from hushtune_common.logs import log_event
from hushtune_common.messages import Directive, DirectiveKind, RunId
from hushtune_common.seeding import SeedTree
from hushtune_common.store.journal import Journal
from hushtune_server.owner.book import Book
from hushtune_server.owner.concluding import Concluding
from hushtune_server.owner.ports import AirPort, Bench, CoordinatorPort, Press, VerdictDesk
from hushtune_server.owner.receiving import Receiving
from hushtune_server.owner.standing import BenchThread, Standing
from hushtune_server.owner.sums import SumTable

_log = logging.getLogger(__name__)
_FAREWELL_S = 15.0


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
        self._standing = Standing(scenario, run=run, book=book, journal=journal, desk=desk, clock=clock, seeds=seeds)
        self._bench = BenchThread(bench, worker)
        self._receiving = Receiving(
            self._standing, incoming=incoming, bench=self._bench, coordinator=coordinator, air=air, sums=sums
        )
        self._concluding = Concluding(self._standing, bench=self._bench, press=press, coordinator=coordinator, sums=sums)
        self._coordinator = coordinator
        self._sums = sums

    @property
    def open_count(self) -> int:
        """How many updates have arrived in part."""
        return self._receiving.open_count

    async def follow(self) -> None:
        """Take part until the last round is closed and its verdicts are fetched, or the coordinator drains."""
        await self._receiving.tidy()
        async with asyncio.TaskGroup() as group:
            listening = group.create_task(self._receiving.listen(group))
            making = group.create_task(self._have_bench())
            await self._obey()
            listening.cancel()
            making.cancel()
            self._receiving.stop()

    async def _have_bench(self) -> None:
        """Learn at once, and not with the first update, that the bench cannot be made."""
        await self._bench.made()

    async def _obey(self) -> None:
        async with aclosing(self._coordinator.follow(lambda: self._standing.phase)) as directives:
            async for directive in directives:
                match directive.kind:
                    case DirectiveKind.ROUND_OPENED:
                        await self._receiving.begin(directive.round_id)
                        self._standing.enter(f"waiting for updates of round {directive.round_id}")
                    case DirectiveKind.SUM:
                        await self._hear_sum(directive)
                    case DirectiveKind.CONCLUDE:
                        await self._standing.with_room(partial(self._close, directive))
                        await self._standing.with_room(partial(self._concluding.go_on, directive.round_id))
                    case DirectiveKind.ROUND_CLOSED:
                        await self._standing.with_room(partial(self._close, directive))
                        await self._receiving.begin(directive.round_id)
                        if directive.last:
                            return await self._see_off(directive)
                    case DirectiveKind.DRAIN:
                        return None
                    case DirectiveKind.ASSIGNED:
                        pass  # addressed to clients
        raise PeerLost("the coordinator ended the run before its last round was closed")

    async def _hear_sum(self, directive: Directive) -> None:
        """Take a word on a round's sum; one that cannot be worked with is logged, and the round's updates are not heard."""
        if self._sums is None or directive.sum is None:
            raise MalformedUpdate(f"directive {directive.seq} is on a sum, and owner.aggregation.kind of this scenario is mean")
        if self._standing.book.closing(self._standing.run, directive.round_id) is not None:
            return
        try:
            await asyncio.to_thread(self._sums.hear, directive.round_id, directive.sum)
        except (ProtocolFault, Refusal) as fault:
            fields = {"round_id": directive.round_id, "reason": fault.reason, "problem": str(fault)}
            log_event(_log, "sum_refused", level=logging.ERROR, **fields)
        await self._receiving.look_again()

    async def _close(self, directive: Directive) -> None:
        await self._concluding.close(directive)
        self._receiving.forget_round(directive.round_id)
        if self._sums is not None:
            await asyncio.to_thread(self._sums.forget, directive.round_id)
            await self._receiving.look_again()
        self._standing.desk.ring()

    async def _see_off(self, directive: Directive) -> None:
        standing, accepted = self._standing, frozenset(directive.accepted)
        standing.enter("handing out verdicts")
        if not await standing.desk.all_fetched(standing.run, directive.round_id, accepted, within_s=_FAREWELL_S):
            log_event(_log, "verdicts_left", level=logging.WARNING, round_id=directive.round_id, waited_s=_FAREWELL_S)
