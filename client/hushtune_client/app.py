"""The client as a process: what it is made of, how it starts, how it goes on after a fault, how it stops."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, AsyncExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from hushtune_client import rounds
from hushtune_client.duties import Duties
from hushtune_client.gateway import Addresses, Manners, open_ports
from hushtune_client.governor import Throttle, own_cores
from hushtune_client.own_training import OwnTraining, require_allowed
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
    Idle,
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
from hushtune_client.ports import CoordinatorPort, Ports
from hushtune_client.private import own_records
from hushtune_client.progress import Status
from hushtune_client.sounding import Sounder
from hushtune_client.state import ClientState
from hushtune_client.sums import Sums
from hushtune_client.trainer import Trainer
from hushtune_common.aggregation import SecureConfig, resolved
from hushtune_common.clock import Clock
from hushtune_common.config import Scenario
from hushtune_common.errors import (
    ChannelOutage,
    ConfigError,
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
from hushtune_common.messages import Assignment, Beat, Caller, ClientId, Directive, DirectiveKind, GateDecision, Role
from hushtune_common.metrics.watch import Watch as Watched
from hushtune_common.secagg.identity import Identity, Verifier
from hushtune_common.seeding import SeedTree
from hushtune_common.store.blobs import BlobStore
from hushtune_common.store.room import Room
from hushtune_common.wire.bell import Bell
from hushtune_common.wire.kit import Kit, remaining_s, require_valid
from hushtune_common.wire.lifetime import run_until, stop_signal
from hushtune_common.wire.revocation import Withdrawn, require_not_revoked

_logger = logging.getLogger(__name__)

Duty = Measure | Train | Watch | Retune | Send | Conclude | AskVerdict
INTERRUPTED = 130
_LEAVE_S = 1.5
"""How long a goodbye may take; with the trainer's two seconds it keeps an interrupted process below five."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientOptions:
    """Who this client is, where it keeps its state, and where its counterparts listen (``HOST:PORT``).

    ``data`` is this client's own text (each such as ``txt:FILE``), used whole; without it the client takes its share of the
    scenario's private data. With ``own`` it brings what it trained elsewhere, and trains nothing here.
    """

    scenario: Scenario
    client_id: str
    kit: Path
    state_dir: Path
    owner: str
    coordinator: str
    air: str
    data: tuple[str, ...]
    own: OwnTraining | None = None
    watched: Watched = field(default_factory=Watched)


async def run(options: ClientOptions, *, clock: Clock, seeds: SeedTree) -> int:
    """Take part in a run until its last round is over, and return the exit code.

    0 when the run is over, 130 after SIGTERM or SIGINT, otherwise the code of the error that spoiled this client's part of the
    last round, or that of `QuorumMissed` when that round failed as a whole. ``seeds`` is the scenario's root. Raises the typed
    error of whatever makes taking part impossible.
    """
    life = _Life(options, clock=clock, seeds=seeds)
    with stop_signal() as stop:
        finished = await run_until(stop, life.live())
    if not finished:
        log_event(_logger, "process_interrupted", exit_code=INTERRUPTED)
    return life.code if finished else INTERRUPTED


class _Life:
    """Composes the process; whatever happens, no child process and no open stream is left behind."""

    def __init__(self, options: ClientOptions, *, clock: Clock, seeds: SeedTree) -> None:
        self._options = options
        self._clock = clock
        self._seeds = seeds
        self.code = 0

    async def live(self) -> None:
        """Take part from the first check to the last goodbye."""
        options, scenario = self._options, self._options.scenario
        device = scenario.client(options.client_id)
        if options.own is not None:
            require_allowed(options.own, training=scenario.training)
        kit = _own_kit(options, clock=self._clock)
        log_event(_logger, "scenario_resolved", scenario=scenario.name, digest=scenario.digest)
        status = Status()
        status.enter("reading private text")
        async with AsyncExitStack() as stack:
            state = ClientState.open(
                options.state_dir,
                client=ClientId(device.id),
                attempts_max=scenario.limits.attempts_max,
                directives_max=scenario.limits.directives_max,
                durability=scenario.state.durability,
                room=self._room,
            )
            stack.push_async_callback(state.close)
            self._offer(kit, state=state)
            trainer = Trainer(clock=self._clock, throttle=_throttle(scenario))
            stack.push_async_callback(trainer.stop)
            if options.own is None:
                trainer.start()  # imports torch while this process reads text and joins
            records = await asyncio.to_thread(self._read_records)
            status.enter("connecting")
            ports = await stack.enter_async_context(self._open_ports(kit))
            conductor = Conductor(ports.coordinator, state=state, status=status, clock=self._clock, room=self._room)
            sounder = Sounder(
                scenario=scenario,
                device=device,
                ports=ports,
                state=state,
                status=status,
                clock=self._clock,
                note=conductor.note,
                turn=asyncio.Lock(),
                bell=Bell(),
            )
            sums = self._sums(kit, ports=ports, state=state)
            duties = Duties(
                scenario=scenario,
                device=device,
                records=records,
                ports=ports,
                trainer=trainer,
                state=state,
                status=status,
                clock=self._clock,
                seeds=self._seeds,
                aside=asyncio.to_thread,
                sounder=sounder,
                emit=conductor.emit,
                own=options.own,
                sums=sums,
            )
            self.code = await conductor.conduct(duties, sums=sums)

    def _sums(self, kit: Kit, *, ports: Ports, state: ClientState) -> Sums | None:
        """Return this client's part in sums, none where the owner judges updates one by one."""
        scenario = self._options.scenario
        options = scenario.owner.aggregation
        log_event(_logger, "aggregation_resolved", **resolved(options, clients=len(scenario.clients)))
        if not isinstance(options, SecureConfig):
            return None
        return Sums(
            scenario=scenario,
            client=ClientId(self._options.client_id),
            ports=ports,
            state=state,
            clock=self._clock,
            seeds=self._seeds.child(self._options.client_id, "sums"),
            sign=Identity(certificate=kit.certificate, key=kit.key).sign,
            verify=Verifier(authority=kit.ca, clock=self._clock, withdrawn=Withdrawn(kit, clock=self._clock)).verify,
            bell=Bell(),
            within=_within,
            aside=asyncio.to_thread,
        )

    def _room(self) -> Room:
        """Return the wait for room on this machine's disk: as long as a round may take."""
        return Room(clock=self._clock, within_s=self._options.scenario.timing.round_s)

    def _read_records(self) -> tuple[str, ...]:
        options = self._options
        records = own_records(options.scenario, client_id=options.client_id, sources=options.data, seeds=self._seeds)
        log_event(_logger, "private_text_read", records=len(records), own_files=len(options.data))
        return records

    def _open_ports(self, kit: Kit) -> AbstractAsyncContextManager[Ports]:
        options, limits = self._options, self._options.scenario.limits
        manners = Manners(
            timing=options.scenario.timing,
            attempts_max=limits.attempts_max,
            clock=self._clock,
            seeds=self._seeds.child(options.client_id, "retries"),
        )
        addresses = Addresses(owner=options.owner, coordinator=options.coordinator, air=options.air)
        # An emulator, the next one, and what it is made of.
        quota_bytes = (1 if options.scenario.coordinator.rounds == 1 else 3) * limits.emulator_bytes_max
        store = BlobStore(options.state_dir / "blobs", quota_bytes=quota_bytes)
        options.watched.offer_store(lambda: store.held_bytes, quota_bytes=quota_bytes)
        calls = options.watched.calls
        return open_ports(addresses, kit=kit, manners=manners, scenario=options.scenario.digest, store=store, calls=calls)

    def _offer(self, kit: Kit, *, state: ClientState) -> None:
        watched = self._options.watched
        watched.offer_journal(self._options.state_dir / "journal.sqlite")
        watched.offer("hushtune_certificate_remaining_seconds", lambda: remaining_s(kit, clock=self._clock))
        watched.offer("hushtune_round", lambda: 0 if isinstance(state.current, Idle) else state.current.round_id)
        watched.offer_state("hushtune_client_step", lambda: type(state.current).__name__.lower())


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
                _narrate(directive)
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


async def _within(seconds: float, work: Awaitable[None]) -> None:
    async with asyncio.timeout(seconds):
        await work


def _throttle(scenario: Scenario) -> Throttle:
    throttle = Throttle.choose(scenario.compute.governor, cores=own_cores())
    log_event(_logger, "governor_chosen", cpufreq_cores=len(throttle.cores), why=throttle.why)
    return throttle


def _own_kit(options: ClientOptions, *, clock: Clock) -> Kit:
    kit = Kit.load(options.kit)
    require_valid(kit, clock=clock)
    require_not_revoked(kit, clock=clock, needed=False)
    wanted = Caller(role=Role.CLIENT, name=options.client_id)
    if kit.caller != wanted:
        raise ConfigError(
            "--kit", f"{options.kit} is the kit of {kit.caller.uri}, not of {wanted.uri}; give that client's own kit"
        )
    return kit


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


def _narrate(directive: Directive) -> None:
    match directive.kind:
        case DirectiveKind.ROUND_OPENED:
            log_event(_logger, "round_opened", round_id=directive.round_id)
        case DirectiveKind.ASSIGNED if directive.assignment is not None:
            _narrate_assignment(directive.assignment)
        case DirectiveKind.ROUND_CLOSED:
            accepted, failed = list(directive.accepted), directive.failed_reason
            log_event(_logger, "round_closed", round_id=directive.round_id, accepted=accepted, failed=failed, last=directive.last)
        case _:
            log_event(_logger, "directive_received", kind=directive.kind, round_id=directive.round_id)


def _narrate_assignment(assignment: Assignment) -> None:
    gate = assignment.gate
    log_event(
        _logger,
        "assignment_received",
        round_id=assignment.round_id,
        decision=gate.decision,
        protection=assignment.protection,
        adapter_share=assignment.adapter_share,
        bandwidth_hz=assignment.bandwidth,
        power_w=assignment.power,
        clock_flops=assignment.clock,
        secrecy_rate_bps=assignment.secrecy_rate_bps,
        deadline_s=assignment.deadline,
    )
    if gate.decision is not GateDecision.GRANTED:
        log_event(
            _logger,
            "gate_refused",
            level=logging.WARNING,
            round_id=assignment.round_id,
            decision=gate.decision,
            reason=gate.reason,
            snr_main_db=gate.snr_main_db,
            snr_tap_bound_db=gate.snr_tap_bound_db,
        )
