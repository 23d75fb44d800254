"""How do directives and outcomes become a client's next steps, and what ends its part of a round, or its process?

One event is taken at a time: it is durable first, then acted upon. Whatever is carried out is a job of its own, so that word from
the coordinator is heard meanwhile.
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any, Protocol

from hushtune_client import rounds
from hushtune_client.narration import narrate
from hushtune_client.phases import (
    Abandon,
    AskVerdict,
    Assigned,
    Closed,
    Command,
    Completed,
    Conclude,
    Drained,
    Event,
    Finished,
    FrameAnswered,
    Measure,
    Reported,
    Retune,
    RoundClosed,
    RoundFailed,
    RoundOpened,
    Send,
    Stop,
    Train,
    Training,
    Uploading,
    VerdictReached,
    Watch,
)
from hushtune_client.ports import CoordinatorPort
from hushtune_client.progress import Status
from hushtune_client.state import ClientState
from hushtune_client.sums import Sums
from hushtune_common.clock import Clock
from hushtune_common.errors import (
    ChannelOutage,
    HushtuneError,
    MalformedUpdate,
    OperatingFault,
    PeerLost,
    QuorumMissed,
    Refusal,
    StaleRound,
    StorageFull,
)
from hushtune_common.logs import log_event
from hushtune_common.messages import Beat, ClientId, Directive, DirectiveKind
from hushtune_common.store.room import Room

_logger = logging.getLogger(__name__)

Duty = Measure | Train | Watch | Retune | Send | Conclude | AskVerdict
_LEAVE_S = 1.5
"""How long a goodbye may take; with the trainer's two seconds it keeps an interrupted process below five."""


class Performer(Protocol):
    """Who carries out what a client's round asks for: `Duties`, or whoever leaves out the work.

    Law: performing a command again, as a restarted process does, has no second effect on its peers.
    """

    async def perform(self, command: Duty) -> Event | None:
        """Carry out ``command`` and return what happened, if that is for the round to know; raises typed errors."""
        ...


class Conductor:
    """Turns directives and outcomes into recorded events, and commands into running jobs.

    One event is taken at a time: recorded first, then acted upon.
    """

    def __init__(
        self,
        coordinator: CoordinatorPort,
        *,
        state: ClientState,
        status: Status,
        clock: Clock,
        room: Callable[[], Room] | None = None,
    ) -> None:
        """Follow ``coordinator``; ``status`` is what its beats say. A command that found the disk full waits for ``room``."""
        self._room = room
        self._coordinator = coordinator
        self._state = state
        self._status = status
        self._clock = clock
        self._turn = asyncio.Lock()
        self._jobs: set[asyncio.Task[None]] = set()
        self._working: dict[asyncio.Task[None], int] = {}
        self._spoiled: dict[int, HushtuneError] = {}
        self._over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._duties: Performer | None = None
        self._sums: Sums | None = None
        self._ending = False

    async def conduct(self, duties: Performer, *, sums: Sums | None = None) -> int:
        """Join, take part in every round, leave; return the exit code. Raises what makes taking part impossible."""
        self._duties, self._sums = duties, sums
        welcome = await self._coordinator.join()
        restarted = self._state.restarted
        await self._state.join(welcome.run)
        log_event(_logger, "run_joined", run=welcome.run, restarted=restarted, last_seen_seq=self._state.last_seen_seq)
        self._status.enter("waiting for a round")
        self._state.forget_ended()
        try:
            for command in rounds.resume(self._state.current):
                self._begin(command)
            if sums is not None and (round_id := _open_round(self._state)) is not None:
                self._spawn(sums.say(round_id))
            self._spawn(self._follow())
            await self._over
        except asyncio.CancelledError:
            await self._end("interrupted")
            raise
        except HushtuneError as error:
            await self._end(f"{error.reason}: {error}")
            raise
        except Exception:  # a defect of ours: others must not wait for us while the process's edge tells it
            await self._end("a fault of this process")
            raise
        await self._end("the run is over")
        self._status.enter("done")
        spoiled = self._spoiled.get(self._state.current.round_id) if isinstance(self._state.current, Finished) else None
        return 0 if spoiled is None else spoiled.exit_code

    def emit(self, event: Event) -> None:
        """Take an event that happens in the middle of a job."""
        self._spawn(self._take(event))

    async def note(self, event: Event) -> None:
        """Take such an event and return once it is durable; shielded, since a half-taken one would be lost."""
        await asyncio.shield(self._spawn(self._take(event)))

    async def _follow(self) -> None:
        try:
            async for directive in self._coordinator.follow(self._beat):
                if directive.seq <= self._state.last_seen_seq:
                    continue  # whoever repeats itself fills neither disk nor log
                narrate(directive)
                refused = await self._heard(directive)
                await self._take(_event_of(directive, client=self._state.terms.client), seq=directive.seq)
                if refused is not None:
                    await self._quit_sum(directive.round_id, refused)
                elif self._sums is not None and directive.kind is DirectiveKind.SUM:
                    self._spawn(self._sums.say(directive.round_id))
        except PeerLost:
            # After the last round the coordinator may go first; a verdict that is under way still counts.
            if not (isinstance(self._state.current, Closed) and self._state.current.last):
                raise

    async def _heard(self, directive: Directive) -> HushtuneError | None:
        """Take in a word on a round's sum, on disk before its number is seen; return why this client does not work with it."""
        if directive.kind is not DirectiveKind.SUM or directive.seq <= self._state.last_seen_seq:
            return None
        if self._sums is None or directive.sum is None:
            raise MalformedUpdate(f"directive {directive.seq} is on a sum, and owner.aggregation.kind of this scenario is mean")
        try:
            await self._sums.hear(directive.round_id, directive.sum)
        except HushtuneError as error:
            return error
        return None

    async def _quit_sum(self, round_id: int, error: HushtuneError) -> None:
        """End this client's part in a round whose sum it does not work with; an update that is out is beyond that."""
        if _open_round(self._state) != round_id or isinstance(self._state.current, Completed):
            fields = {"round_id": round_id, "reason": error.reason, "problem": str(error)}
            log_event(_logger, "sum_refused", level=logging.WARNING, **fields)
            return
        await self._take(self._lost(round_id, error, duty="sum"))
        await self._abandon(round_id)

    def _beat(self) -> Beat:
        return Beat(last_seen_seq=self._state.last_seen_seq, phase=self._status.phase, progress=self._status.progress)

    async def _take(self, event: Event, *, seq: int | None = None) -> None:
        async with self._turn:
            commands = await self._state.record(event, seq=seq)
            after = self._state.current
            if isinstance(event, RoundClosed) and event.last and event.failed:
                self._spoiled.setdefault(event.round_id, QuorumMissed(event.failed))  # told by the event already
            if isinstance(event, FrameAnswered) and commands and isinstance(after, Completed) and not after.completion.uploaded:
                self._spoil(event.round_id, ChannelOutage(after.completion.reason), duty="send")
            if isinstance(event, RoundOpened | RoundClosed | Drained):
                self._state.forget_sums()
            for command in commands:
                self._begin(command)

    def _begin(self, command: Command) -> None:
        match command:
            case Abandon():
                self._spawn(self._abandon(command.round_id))
            case Stop():
                if not self._over.done():
                    self._over.set_result(None)
            case Conclude() | AskVerdict() | Retune():
                self._spawn(self._perform(command, round_id=_round_of(command)))
            case Measure() | Train() | Watch() | Send():
                task = self._spawn(self._perform(command, round_id=_round_of(command)))
                self._working[task] = _round_of(command)
                task.add_done_callback(lambda done: self._working.pop(done, None))

    async def _abandon(self, round_id: int) -> None:
        stopped = {task for task, of in self._working.items() if of == round_id}
        for task in stopped:
            task.cancel()
        if stopped:
            await asyncio.wait(stopped)
        self._state.forget_private(round_id)
        log_event(_logger, "round_abandoned", round_id=round_id)

    async def _perform(self, command: Duty, *, round_id: int) -> None:
        if self._duties is None:
            raise RuntimeError("conduct comes first")
        try:
            event = await self._performed(self._duties, command)
        except HushtuneError as error:
            event = self._after(error, command, round_id=round_id)
        if event is not None:
            await self._take(event)

    async def _performed(self, duties: Performer, command: Duty) -> Event | None:
        """Carry out a command, again when there is room where there was none: doing it twice is as good as once."""
        room = None if self._room is None else self._room()
        while True:
            try:
                return await duties.perform(command)
            except StorageFull as error:
                if room is None:
                    raise
                await room.wait(error)

    def _after(self, error: HushtuneError, command: Command, *, round_id: int) -> Event | None:
        """Return what a failed command means for the round; raise what ends the process instead."""
        duty = type(command).__name__.lower()
        fields = {"duty": duty, "round_id": round_id, "reason": error.reason, "problem": str(error)}
        match command:
            case Measure() if not isinstance(error, OperatingFault | Refusal | StaleRound):
                raise error
            case Measure() | Train() | Send():
                return self._lost(round_id, error, duty=duty)
            case AskVerdict():
                log_event(_logger, "verdict_missed", level=logging.WARNING, **fields)
                return VerdictReached(round_id=round_id)
            case Watch():
                # The channel is measured once more before anything is sealed.
                log_event(_logger, "sounding_failed", level=logging.WARNING, **fields)
                return None
            case _:
                # The coordinator closes the round without this word too; a stale round is closed already.
                log_event(_logger, "completion_undelivered", level=logging.WARNING, **fields)
                return None

    def _lost(self, round_id: int, error: HushtuneError, *, duty: str) -> RoundFailed:
        """Tell why this client has no part in a round any more; where others were faster or went on without it, nothing broke."""
        if isinstance(error, StaleRound):
            fields = {"duty": duty, "round_id": round_id, "reason": error.reason, "problem": str(error)}
            log_event(_logger, "round_missed", level=logging.WARNING, **fields)
        else:
            self._spoil(round_id, error, duty=duty)
        return RoundFailed(round_id=round_id, reason=f"{error.reason}: {error}")

    def _spoil(self, round_id: int, error: HushtuneError, *, duty: str) -> None:
        """Remember what this client's part of the round came to nothing by; it is the exit code if no better round follows."""
        self._spoiled[round_id] = error
        fields = {"duty": duty, "round_id": round_id, "reason": error.reason, "problem": str(error)}
        log_event(_logger, "round_failed", level=logging.ERROR, **fields)

    async def _end(self, reason: str) -> None:
        """Stop every job, and say goodbye if there is still somebody to hear it."""
        self._ending = True
        for task in self._jobs:
            task.cancel()
        if self._jobs:
            await asyncio.wait(self._jobs)
        self._state.forget_ended()  # the job that does so may be among those that were just stopped
        with suppress(HushtuneError, TimeoutError):
            async with asyncio.timeout(_LEAVE_S):
                await self._coordinator.leave(reason)
        log_event(_logger, "run_left", reason=reason)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._jobs.add(task)
        task.add_done_callback(self._on_done)
        return task

    def _on_done(self, task: asyncio.Task[None]) -> None:
        self._jobs.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None and not self._ending and not self._over.done():
            self._over.set_exception(error)


def _open_round(state: ClientState) -> int | None:
    """Return the round that is not over for this client, one whose update is out included."""
    current = state.current
    return current.round_id if isinstance(current, Reported | Assigned | Training | Uploading | Completed) else None


def _event_of(directive: Directive, *, client: ClientId) -> Event:
    try:
        return rounds.event_of(directive, client=client)
    except ValueError as error:
        raise MalformedUpdate(str(error)) from error


def _round_of(command: Duty) -> int:
    match command:
        case Measure() | Watch() | AskVerdict():
            return command.round_id
        case Train() | Retune() | Send():
            return command.assignment.round_id
        case Conclude():
            return command.completion.key.round_id
