"""Where does the owner stand in a run? What it has written down, what it is doing now, and how a peer is told for certain."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor
from typing import Any, TypeVar

from hushtune_common.clock import Clock
from hushtune_common.config import Scenario
from hushtune_common.errors import OperatingFault, ProtocolFault, StorageFull
from hushtune_common.logs import log_event
from hushtune_common.messages import RunId
from hushtune_common.seeding import SeedTree
from hushtune_common.store.disk import disk_fault
from hushtune_common.store.journal import Journal
from hushtune_common.store.room import Room
from hushtune_server.owner.book import Book, Judgement
from hushtune_server.owner.plugin import Trial
from hushtune_server.owner.ports import Bench, VerdictDesk

T = TypeVar("T")

_log = logging.getLogger(__name__)
_BACKOFF_CAP_S = 20.0


class BenchThread:
    """The bench, in the one thread that may use it."""

    def __init__(self, bench: Awaitable[Bench], worker: Executor) -> None:
        """Take a ``bench`` that is made, and used, in the one thread of ``worker``."""
        self._bench = bench
        self._worker = worker

    async def made(self) -> Bench:
        """Wait until there is a bench; raises what kept it from being made."""
        return await self._bench

    async def do(self, work: Callable[[Bench], T]) -> T:
        """Return what ``work`` makes of the bench, in its own thread."""
        bench = await self._bench
        return await asyncio.get_running_loop().run_in_executor(self._worker, work, bench)


class Standing:
    """What every part of the owner's work on a run shares: its book and journal, its phase, and the patience to tell peers.

    Law: what is recorded is in the journal before it is in the book, and in the book before anybody hears of it.
    """

    def __init__(
        self, scenario: Scenario, *, run: RunId, book: Book, journal: Journal, desk: VerdictDesk, clock: Clock, seeds: SeedTree
    ) -> None:
        """Stand at the beginning of ``run``, or where ``book`` says."""
        self.scenario = scenario
        self.run = run
        self.book = book
        self.desk = desk
        self.clock = clock
        self.phase = "waiting for a round"
        self._journal = journal
        self._rng = seeds.child("settle").generator()

    def enter(self, phase: str) -> None:
        """Begin another phase, which the coordinator is going to hear of."""
        if phase != self.phase:
            self.phase = phase
            log_event(_log, "phase_changed", phase=phase)

    async def record(self, kind: str, body: dict[str, Any], *, key: str) -> None:
        """Write down what is decided."""
        event = await self._journal.append(kind, body, key=key)
        self.book.apply(event.kind, event.body)

    async def with_room(self, work: Callable[[], Awaitable[None]]) -> None:
        """Do what may be done again, and again when there is room on the disk where there was none."""
        room = Room(clock=self.clock, rng=self._rng, within_s=self.scenario.timing.round_s)
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

    async def say(self, call: Callable[[], Awaitable[None]]) -> ProtocolFault | None:
        """Tell a peer, trying again while it cannot be reached; return the fault of one that will not hear it."""
        attempts = self.scenario.limits.attempts_max
        for attempt in range(1, attempts + 1):
            try:
                await call()
            except ProtocolFault as fault:
                return fault
            except StorageFull:
                raise  # waited for by whoever asked for this
            except OperatingFault:
                if attempt == attempts:
                    raise
                await self.clock.sleep(float(self._rng.uniform(0.0, min(_BACKOFF_CAP_S, 0.5 * 2.0**attempt))))
            else:
                return None
        return None


def log_evaluation(found: Judgement | Trial, *, client: str, round_id: int) -> None:
    """Log what public text said about an update, or about a mean."""
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
