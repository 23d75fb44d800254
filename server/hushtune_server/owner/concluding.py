"""How does one round become the next? Its average is taken and kept or not, and another emulator is published."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from hushtune_common.errors import ConfigError, ProtocolFault, QuorumMissed, TrainerFailed
from hushtune_common.logs import log_event
from hushtune_common.messages import ClientId, Conclusion, Directive, DirectiveKind
from hushtune_common.secagg.terms import opening_s
from hushtune_server.owner.book import CLOSED, PUBLISHED, Closing, Publication, to_body
from hushtune_server.owner.plugin import finite
from hushtune_server.owner.ports import CoordinatorPort, Press
from hushtune_server.owner.standing import BenchThread, Standing, log_evaluation
from hushtune_server.owner.stopping import why_stop
from hushtune_server.owner.sums import SumTable

_log = logging.getLogger(__name__)


class Concluding:
    """What the owner does with a round as a whole.

    Laws: a round's average is decided once; a round is concluded once that is decided and the next one's emulator is on offer,
    or none is wanted.
    """

    def __init__(
        self, standing: Standing, *, bench: BenchThread, press: Press, coordinator: CoordinatorPort, sums: SumTable | None
    ) -> None:
        """With ``sums``, what is averaged is opened by those who sent it."""
        self._standing = standing
        self._bench = bench
        self._press = press
        self._coordinator = coordinator
        self._sums = sums

    async def close(self, directive: Directive) -> None:
        """Decide what becomes of a round's average, unless that was decided before."""
        run, round_id = self._standing.run, directive.round_id
        if self._standing.book.closing(run, round_id) is not None:
            return
        closing = await self._conclude(directive)
        await self._standing.record(CLOSED, to_body(closing), key=f"closed/{run}/{round_id}")
        decision = "plugin_kept" if closing.kept else "plugin_rolled_back"
        log_event(_log, decision, round_id=closing.round_id, clients=list(closing.merged), reason=closing.reason)

    async def go_on(self, round_id: int) -> None:
        """Have the next round's emulator on offer, or none if no round is wanted, and let the coordinator go on."""
        standing, coordinator = self._standing, self._standing.scenario.coordinator
        closing = standing.book.closing(standing.run, round_id)
        stopped = "" if closing is None else closing.stopped
        if stopped:
            log_event(_log, "run_stopped", round_id=round_id, rounds=coordinator.rounds, reason=stopped)
        elif round_id < coordinator.rounds and standing.book.manifest(standing.run, round_id + 1) is None:
            await self._publish(round_id + 1)
        if coordinator.allocator.utility.every_round and not stopped and round_id < coordinator.rounds:
            await self._tell_worth(round_id + 1)
        conclusion = Conclusion(run=standing.run, round_id=round_id, last=bool(stopped), reason=stopped)
        await self._tell(lambda: self._coordinator.conclude(conclusion), refused="conclusion_refused", round_id=round_id)

    async def _conclude(self, directive: Directive) -> Closing:
        """Average what the round accepted, keep it or not, and decide whether another round is wanted."""
        closing, scenario = await self._averaged(directive), self._standing.scenario
        if directive.kind is not DirectiveKind.CONCLUDE or directive.round_id >= scenario.coordinator.rounds:
            return closing  # the last one by number, or a failed one: nothing is left to decide
        owner, past = scenario.owner, self._standing.book.closings_of(self._standing.run)
        stopped = why_stop([*past, closing], patience=owner.patience, improvement_nats=owner.min_improvement_nats)
        return replace(closing, stopped=stopped)

    async def _averaged(self, directive: Directive) -> Closing:
        run, round_id = self._standing.run, directive.round_id
        candidates = self._standing.book.mergeable(run, round_id, directive.accepted)
        closing = partial(Closing, run=run, round_id=round_id, accepted=directive.accepted)
        if directive.failed_reason:
            return closing(merged=(), kept=False, reason=f"the round failed: {directive.failed_reason}")
        if not candidates:
            return closing(merged=(), kept=False, reason="no update was left to average")
        try:
            if self._sums is not None:
                candidates = await self._opened_by(self._sums, round_id, candidates)
            self._standing.enter(f"averaging {len(candidates)} adapters")
            merged = await self._bench.do(lambda bench: bench.merge(candidates))
        except (ProtocolFault, QuorumMissed) as fault:
            if self._sums is None:
                raise
            log_event(_log, "sum_failed", level=logging.ERROR, round_id=round_id, reason=fault.reason, problem=str(fault))
            return closing(merged=(), kept=False, reason=f"the sum could not be had: {fault.reason}: {fault}")
        log_evaluation(merged, client="aggregate", round_id=round_id)
        for client, reason in merged.left_out.items():
            log_event(_log, "update_left_out", level=logging.WARNING, round_id=round_id, client=client, reason=reason)
        return closing(
            merged=merged.clients,
            left_out=merged.left_out,
            kept=merged.kept,
            reason=merged.reason,
            perplexity_before=finite(merged.perplexity_before),
            perplexity_after=finite(merged.perplexity_after),
        )

    async def _opened_by(self, sums: SumTable, round_id: int, candidates: Sequence[ClientId]) -> tuple[ClientId, ...]:
        """Name the survivors and wait until enough of them have opened their shares, or the time for that is up."""
        standing = self._standing
        survivors = await asyncio.to_thread(partial(sums.close, round_id, among=candidates))
        dropped = list(sums.dropped(round_id))
        log_event(_log, "sum_survivors_named", round_id=round_id, survivors=list(survivors.members), dropped=dropped)
        standing.enter(f"waiting for shares of round {round_id}")
        announce = partial(self._coordinator.announce, standing.run, round_id, survivors)
        await self._tell(announce, refused="survivors_refused", round_id=round_id)
        waits = {
            asyncio.ensure_future(standing.desk.until(lambda: not sums.lacking(round_id))),
            asyncio.ensure_future(standing.clock.sleep(opening_s(standing.scenario.timing))),
        }
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
        return survivors.members

    async def _tell_worth(self, round_id: int) -> None:
        """Let the coordinator plan a round with what updates are worth by then; with what it knows when that is not to be had."""
        standing = self._standing
        standing.enter(f"measuring what updates of round {round_id} are worth")
        await self._bench.made()
        try:
            curve = await self._bench.do(lambda bench: bench.worth())
        except (ConfigError, TrainerFailed) as fault:
            log_event(_log, "utility_unchanged", level=logging.WARNING, round_id=round_id, problem=str(fault))
            return
        await self._tell(lambda: self._coordinator.tell_worth(curve), refused="utility_refused", round_id=round_id)

    async def _tell(self, call: Callable[[], Awaitable[None]], *, refused: str, **about: Any) -> None:
        """Tell a peer; what it will not hear is logged as ``refused``."""
        fault = await self._standing.say(call)
        if fault is not None:
            log_event(_log, refused, **about, reason=fault.reason, problem=str(fault))

    async def _publish(self, round_id: int) -> None:
        standing, press = self._standing, self._press
        standing.enter(f"making the emulator of round {round_id}")
        renewal = await self._bench.do(lambda bench: bench.renew(round_id))
        manifest = await press.publish(round_id, renewal)
        copies = press.copies(manifest)
        await self._bench.do(lambda bench: bench.take_up(manifest, press.path(manifest), copies=copies))
        body = to_body(Publication(run=standing.run, manifest=manifest, copies=copies))
        await standing.record(PUBLISHED, body, key=f"published/{standing.run}/{round_id}")
        log_event(
            _log,
            "emulator_renewed",
            round_id=round_id,
            digest=manifest.emulator,
            bytes_total=manifest.size_bytes,
            bytes_revision=None if renewal is None or manifest.revision is None else manifest.revision.size_bytes,
            changed=renewal is not None,
        )
        standing.desk.ring()
