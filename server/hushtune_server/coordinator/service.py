"""How do calls and time become events of a run, and how do directives reach the members?

Every event is durable before anybody hears of it: ``Desk`` takes them in one at a time, remembers, and only then speaks.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine
from contextlib import aclosing
from functools import partial
from typing import Any

import grpc

from hushtune_common.clock import Clock
from hushtune_common.config import Scenario
from hushtune_common.errors import (
    HushtuneError,
    LimitExceeded,
    MalformedUpdate,
    NotYours,
    PeerLost,
    Replayed,
    ScenarioMismatch,
    StaleRound,
    StorageFull,
    VersionMismatch,
)
from hushtune_common.messages import (
    SENDING_PHASES,
    Beat,
    Caller,
    Channel,
    ClientId,
    ClientReport,
    Completion,
    Conclusion,
    Digest,
    Directive,
    Role,
    Settlement,
    UtilityCurve,
)
from hushtune_common.secagg.messages import Advertisement, Deal, Survivors, Vow
from hushtune_common.secagg.terms import Layout
from hushtune_common.store.room import Room
from hushtune_common.units import Second
from hushtune_common.wire import convert, convert_sums
from hushtune_common.wire.bell import Bell
from hushtune_common.wire.interceptors import caller_of
from hushtune_common.wire.v1 import coordinator_pb2 as pb
from hushtune_common.wire.v1 import coordinator_pb2_grpc
from hushtune_server.coordinator.adding import sum_after
from hushtune_server.coordinator.clearance import refusal
from hushtune_server.coordinator.events import (
    OWNER,
    Announced,
    ChannelChanged,
    Completed,
    Concluded,
    Dealt,
    Died,
    Event,
    Joined,
    Left,
    Member,
    Reported,
    Sending,
    Settled,
    Solution,
    Solved,
    SolvingFailed,
    Ticked,
    Vowed,
    kind_of,
    to_body,
)
from hushtune_server.coordinator.liveness import Health, Liveness
from hushtune_server.coordinator.phases import (
    Closed,
    Failed,
    Gathering,
    Rules,
    Solve,
    State,
    is_member,
    is_over,
)
from hushtune_server.coordinator.ports import EventLog, Solver
from hushtune_server.coordinator.rounds import advance, unsolved

Context = grpc.aio.ServicerContext[Any, Any]
Observer = Callable[[State, State, Event], None]
"""Called with the state before, the state after and the event between, once the event is durable."""

SERVICE = "hushtune.v1.Coordinator"
_TICK_S_MAX = 1.0
_REASON_CHARS_MAX = 200
_CLOSE_S_MAX = 2.0


class Desk:
    """The live run: its state, who is connected, and the one place where events become durable."""

    def __init__(
        self, state: State, *, rules: Rules, log: EventLog, solver: Solver, clock: Clock, idle_s: Second, observe: Observer
    ) -> None:
        """Take the folded ``state``. Run time goes on where it stopped, and every member has a full ``idle_s`` to come back."""
        self.state = state
        self.rules = rules
        self._log = log
        self._solver = solver
        self._clock = clock
        self._observe = observe
        self._began_at = clock.monotonic() - state.at
        self._liveness = Liveness(idle_s=idle_s, looked_at=self.now())
        for member in (m for m in state.roster.joined_at if state.roster.alive(m)):
            self._liveness = self._liveness.heard(member, self.now())
        self._turn = asyncio.Lock()
        self._solving = asyncio.Lock()
        self._news = Bell()
        self._streams: dict[Member, int] = {}
        self._stream_count = 0
        self._given: dict[Member, int] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._trouble: BaseException | None = None
        self._closing = False
        self._watched = self._room()

    def now(self) -> Second:
        """Return the run time."""
        return Second(self._clock.monotonic() - self._began_at)

    # --- what can be seen of it -------------------------------------------------------------------------------------

    @property
    def healths(self) -> dict[str, float]:
        """How many of the scenario's clients are alive, suspect, dead, or were never here; may be asked from any thread."""
        roster, liveness, now = self.state.roster, self._liveness, self.now()
        found: dict[str, float] = {**dict.fromkeys((health.value for health in Health), 0.0), "absent": 0.0}
        for client in self.rules.clients:
            watched = roster.alive(client)
            gone = Health.DEAD.value if client in roster.joined_at else "absent"
            found[liveness.health(Member(client), now).value if watched else gone] += 1.0
        return found

    @property
    def stream_count(self) -> int:
        """How many members have their stream open."""
        return len(self._streams)

    @property
    def waiting_count(self) -> int:
        """How many directives living members were not handed yet."""
        state, given = self.state, dict(self._given)
        return sum(len(state.posted(m, after=given.get(m, 0))) for m in state.roster.joined_at if state.roster.alive(m))

    # --- what members say ---------------------------------------------------------------------------------------------

    async def join(self, member: Member, *, curve: UtilityCurve | None = None, layout: Layout | None = None) -> None:
        """Let a member in, or back in; the owner's ``curve`` is what it measured updates to be worth.

        Its ``layout`` is that of the numbers to be added; ``Replayed`` for another one than before. ``LimitExceeded`` for a
        member that comes and goes all the time.
        """
        if layout is not None and self.state.layout not in {None, layout}:
            raise Replayed("sum_layout: another one than the owner told before in this run; go on with the state that it had")
        roster = self.state.roster
        if not roster.alive(member) and roster.joins.get(member, 0) >= self.rules.joins_max:
            raise LimitExceeded(f"{member} has entered this run {self.rules.joins_max} times, which is limits.joins_max")
        await self._commit(lambda at: Joined(at=at, member=member, curve=curve, layout=layout))
        self._liveness = self._liveness.heard(member, self.now())

    async def report(self, report: ClientReport, *, advertisement: Advertisement | None = None) -> None:
        """Take a client's report; ``StaleRound`` when it is not for the round in progress.

        With secure aggregation it brings keys: `MalformedUpdate` where it does not, ``Replayed`` for others than before.
        """
        if report.round_id != self.state.round_id or isinstance(self.state.phase, Gathering):
            raise StaleRound(f"round {report.round_id} takes no reports; round {self.state.round_id} is {self.state.name}")
        if (advertisement is None) != (self.rules.sums is None):
            problem = "are missing" if advertisement is None else "came"
            raise MalformedUpdate(f"advertisement: keys for a sum {problem}, owner.aggregation.kind says otherwise")
        known = None if self.state.phase.round is None else self.state.phase.round.sum
        if advertisement is not None and known is not None:
            known.advertised(advertisement)
        await self._commit(lambda at: Reported(at=at, report=report, advertisement=advertisement))

    async def deal(self, round_id: int, deal: Deal) -> None:
        """Take a client's parcels; late and repeated ones change nothing. What contradicts earlier word is refused."""
        await self._take_word(lambda at: Dealt(at=at, round_id=round_id, deal=deal))

    async def announce(self, run: str, round_id: int, survivors: Survivors) -> None:
        """Take the owner's word on the survivors, as `deal`."""
        self._is_current(round_id, run=run)
        await self._take_word(lambda at: Announced(at=at, round_id=round_id, survivors=survivors))

    async def vow(self, round_id: int, vow: Vow) -> None:
        """Take a client's vow, as `deal`."""
        await self._take_word(lambda at: Vowed(at=at, round_id=round_id, vow=vow))

    async def _take_word(self, make: Callable[[Second], Dealt | Announced | Vowed]) -> None:
        word = make(self.now())
        if self.rules.sums is None or word.round_id > self.state.round_id:
            raise StaleRound(f"round {word.round_id} adds nothing up, or has not begun")
        if word.round_id == self.state.round_id:
            sum_after(self.state.phase, word, at=word.at)  # raises before anything is remembered
        await self._commit(make)

    async def change_channel(self, client: ClientId, round_id: int, channel: Channel) -> None:
        """Take a client's word on its new channel; ``StaleRound`` as above, ``LimitExceeded`` when it changes all the time.

        A word that was taken before is no further change.
        """
        if round_id != self.state.round_id or isinstance(self.state.phase, Gathering):
            raise StaleRound(f"round {round_id} takes no channels; round {self.state.round_id} is {self.state.name}")
        round_ = self.state.phase.round
        known = None if round_ is None else round_.reports.get(client)
        is_new = known is not None and channel.at > known.sounded_at
        if round_ is not None and is_new and round_.changes.get(client, 0) >= self.rules.changes_max:
            raise LimitExceeded(
                f"the channel of {client} changed {self.rules.changes_max} times in round {round_id}, which is "
                f"limits.channel_changes_max: raise air.sounding_s or coordinator.allocator.reallocate_db"
            )
        await self._commit(lambda at: ChannelChanged(at=at, round_id=round_id, client=client, channel=channel))

    async def ask_to_send(self, client: ClientId, round_id: int) -> None:
        """Let a client begin to transmit, and keep its band for it from then on; ``StaleRound`` when it may not any more."""
        await self._commit(lambda at: Sending(at=at, round_id=round_id, client=client, asked=True))
        why = refusal(self.state, client, round_id)
        if why:
            raise StaleRound(f"{client} may not transmit in round {round_id}: {why}")

    async def complete(self, completion: Completion) -> None:
        """Take a client's completion. One for a round that is over is late and changes nothing; ``NotYours`` without a grant."""
        if self._is_current(completion.key.round_id, run=completion.key.run) and completion.uploaded:
            self._require_grant(completion)
        await self._commit(lambda at: Completed(at=at, completion=completion))

    async def settle(self, settlement: Settlement) -> None:
        """Take the owner's judgement; late ones change nothing; ``NotYours`` for a client without a grant."""
        if self._is_current(settlement.key.round_id, run=settlement.key.run):
            self._require_grant(settlement)
        await self._commit(lambda at: Settled(at=at, settlement=settlement))

    async def conclude(self, word: Conclusion) -> None:
        """Take the owner's word that it is through with a round; late and repeated ones change nothing."""
        self._is_current(word.round_id, run=word.run)
        await self._commit(lambda at: Concluded(at=at, round_id=word.round_id, last=word.last, reason=word.reason))

    async def leave(self, member: Member, reason: str) -> None:
        """Let a member go."""
        await self._commit(lambda at: Left(at=at, member=member, reason=reason))
        self._forget(member)

    async def follow(self, member: Member, beats: AsyncIterator[Beat]) -> AsyncGenerator[Directive]:
        """Yield the member's directives as they come, from the one after ``last_seen_seq`` of its first beat on.

        A second stream of the same member takes over. Ends when the member's beats end, when it is taken for dead, or when the
        coordinator stops; what was not seen is yielded again to the next stream.
        """
        if member not in self.state.roster.joined_at:
            raise NotYours(f"{member} has not joined this run; call Join first")
        seen = await self._first_beat(member, beats)
        stream = await self._connect(member)
        reader = asyncio.create_task(self._listen(member, beats))
        ring = asyncio.create_task(self._news.wait())
        try:
            while self._streams.get(member) == stream and not self._closing:
                for directive in self.state.posted(member, after=seen):
                    yield directive
                    seen = self._given[member] = directive.seq
                await asyncio.wait({ring, reader}, return_when=asyncio.FIRST_COMPLETED)
                if reader.done():
                    reader.result()
                    break
                if ring.done():
                    ring = asyncio.create_task(self._news.wait())
        finally:
            reader.cancel()
            ring.cancel()
            self._disconnect(member, stream)

    # --- what time says -----------------------------------------------------------------------------------------------

    async def run(self) -> State:
        """Watch the members and the time until the run is over; return its last state. A defect of ours is raised here."""
        pending = unsolved(self.state, rules=self.rules)
        if pending is not None:
            self._spawn(self._solve(pending))
        tick_s = min(_TICK_S_MAX, self._liveness.beat_s / 4)
        while not is_over(self.state):
            await self._clock.sleep(tick_s)
            await self._look()
        return self.state

    async def drained(self, *, within_s: float) -> None:
        """Wait until every living member was handed its last directive and has hung up, at most ``within_s``."""
        ends_at = self.now() + within_s
        tick_s = min(_TICK_S_MAX, self._liveness.beat_s / 4)
        while self._outstanding() and self.now() < ends_at:
            await self._clock.sleep(tick_s)
            await self._look()

    async def close(self) -> None:
        """End all streams and finish what is being remembered."""
        self._closing = True
        self._news.ring()
        if self._tasks:
            await asyncio.wait(set(self._tasks), timeout=_CLOSE_S_MAX)

    async def _look(self) -> None:
        try:
            await self._look_around()
        except _NotRemembered as error:
            await self._watched.wait(error)
        else:
            self._watched.found()
        if self._trouble is not None:
            raise self._trouble

    async def _look_around(self) -> None:
        self._liveness = self._liveness.looked(self.now())
        for member in self._liveness.dead(self.now()):
            silent_s = self._liveness.silence(member, self.now())
            await self._commit(lambda at, m=member, s=silent_s: Died(at=at, member=m, silent_s=s))
            self._forget(member)
        await self._commit(lambda at: Ticked(at=at))

    def _outstanding(self) -> bool:
        alive = [m for m in self.state.roster.joined_at if self.state.roster.alive(m)]
        return any(m in self._streams or self.state.posted(m, after=self._given.get(m, 0)) for m in alive)

    # --- one event at a time ------------------------------------------------------------------------------------------

    async def _commit(self, make: Callable[[Second], Event]) -> None:
        # Shielded: a caller that hangs up must not leave an event that is durable but unknown to the live state.
        await asyncio.shield(self._spawn(self._take(make)))

    async def _take(self, make: Callable[[Second], Event]) -> None:
        async with self._turn:
            after = await self._take_one(make(self.now()))
            if isinstance(after.phase, Closed):
                # The end of a round and the beginning of the next are two events; nobody needs to wait for a tick between.
                await self._take_one(Ticked(at=self.now()))

    async def _take_one(self, event: Event) -> State:
        before = self.state
        after, effects = advance(before, event, rules=self.rules)
        if after is before:
            return before
        try:
            await self._log.append(kind_of(event), to_body(event))
        except StorageFull as error:
            raise _NotRemembered(str(error)) from error
        self.state = after
        self._observe(before, after, event)
        for effect in effects:
            if isinstance(effect, Solve):
                self._spawn(self._solve(effect))
        if after.next_seq != before.next_seq:
            # Every stream that wakes looks through what is posted: with hundreds of members, not after each word of one of them.
            self._news.ring()
        return after

    async def _solve(self, order: Solve) -> None:
        try:
            async with self._solving:
                wanted = unsolved(self.state, rules=self.rules)
                if wanted is None or (wanted.round_id, wanted.order) != (order.round_id, order.order):
                    return  # overtaken while the solver was busy
                solution = await self._solution(order)
        except HushtuneError as error:
            reason = str(error)
            await self._insist(lambda at: SolvingFailed(at=at, round_id=order.round_id, reason=reason, order=order.order))
            return
        _require_answers(order, solution)
        await self._insist(lambda at: Solved(at=at, round_id=order.round_id, solution=solution, order=order.order))

    async def _insist(self, make: Callable[[Second], Event]) -> None:
        """Take an event that nobody would bring again, as soon as the journal has room for it."""
        room = self._room()
        while True:
            try:
                return await self._take(make)
            except _NotRemembered as error:
                await room.wait(error)

    def _room(self) -> Room:
        return Room(clock=self._clock, within_s=self.rules.round_s)

    async def _solution(self, order: Solve) -> Solution:
        work = partial(self._solver.solve, order.round_id, order.reports, band=order.band, curve=order.curve)
        return await asyncio.get_running_loop().run_in_executor(None, work)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if task.cancelled() or task.exception() is None:
            return
        # Nothing has changed where the journal had no room: whoever asked is told, and asks again.
        if not isinstance(task.exception(), _NotRemembered):
            self._trouble = task.exception()

    # --- who is connected ---------------------------------------------------------------------------------------------

    async def _first_beat(self, member: Member, beats: AsyncIterator[Beat]) -> int:
        try:
            async with asyncio.timeout(self._liveness.idle_s):
                beat = await anext(beats, None)
        except TimeoutError:
            beat = None
        if beat is None:
            raise PeerLost(f"{member} opened a stream and said nothing")
        if beat.last_seen_seq >= self.state.next_seq:
            raise MalformedUpdate(
                f"last_seen_seq: {beat.last_seen_seq} was never sent, the last one was {self.state.next_seq - 1}"
            )
        self._given[member] = beat.last_seen_seq
        return beat.last_seen_seq

    async def _connect(self, member: Member) -> int:
        await self.join(member)
        self._stream_count += 1
        self._streams[member] = self._stream_count
        self._liveness = self._liveness.connected(member, self.now())
        self._news.ring()
        return self._stream_count

    def _disconnect(self, member: Member, stream: int) -> None:
        if self._streams.get(member) == stream:
            del self._streams[member]
            self._liveness = self._liveness.disconnected(member, self.now())

    async def _listen(self, member: Member, beats: AsyncIterator[Beat]) -> None:
        async for beat in beats:
            self._liveness = self._liveness.heard(member, self.now())
            if beat.phase in SENDING_PHASES and member != OWNER:
                round_id, client = self.state.round_id, ClientId(member)
                await self._commit(lambda at, r=round_id, c=client: Sending(at=at, round_id=r, client=c))

    def _forget(self, member: Member) -> None:
        self._liveness = self._liveness.forgotten(member)
        self._streams.pop(member, None)
        self._news.ring()

    # --- what is refused ----------------------------------------------------------------------------------------------

    def _is_current(self, round_id: int, *, run: str) -> bool:
        if run != self.rules.run or round_id > self.state.round_id:
            raise StaleRound(f"round {round_id} of {run} is unknown; this is round {self.state.round_id} of {self.rules.run}")
        return round_id == self.state.round_id

    def _require_grant(self, word: Completion | Settlement) -> None:
        round_ = None if isinstance(self.state.phase, Gathering) else self.state.phase.round
        if round_ is None or not round_.granted(word.key.client):
            raise NotYours(f"{word.key.client} was not granted an upload in round {word.key.round_id}")


class _NotRemembered(StorageFull):
    """The journal had no room for an event, so it has not happened."""


def _require_answers(order: Solve, solution: Solution) -> None:
    """Raise ``ValueError`` unless each report is answered once, for its round and channel: a defect of the solver."""
    asked = [(r.client, order.round_id, r.channel) for r in sorted(order.reports, key=lambda r: r.client)]
    answered = [(a.client, a.round_id, a.channel) for a in sorted(solution.assignments, key=lambda a: a.client)]
    if asked != answered:
        raise ValueError(f"the solver answered {answered}, but was asked {asked}")


class CoordinatorService(coordinator_pb2_grpc.CoordinatorServicer):
    """Translates calls for the desk. Who calls is read from the certificate, never from the request."""

    def __init__(self, desk: Desk, *, scenario: Scenario, digest: Digest) -> None:
        """Take the ``desk`` and the ``scenario`` of this run with its ``digest``."""
        self._desk = desk
        self._scenario = scenario
        self._digest = digest

    async def Join(self, request: pb.JoinRequest, context: Context) -> pb.JoinResponse:
        """Let the caller in; another protocol major or another scenario is refused."""
        member = self._member(caller_of(context, Role.CLIENT, Role.OWNER))
        if request.protocol_major != convert.PROTOCOL_MAJOR:
            raise VersionMismatch(f"this is protocol {convert.PROTOCOL_MAJOR}, the caller speaks {request.protocol_major}")
        if request.protocol_minor < convert.PROTOCOL_MINOR_MIN:
            spoken = f"{request.protocol_major}.{request.protocol_minor}"
            raise VersionMismatch(f"the caller speaks protocol {spoken}, at least minor {convert.PROTOCOL_MINOR_MIN} is needed")
        if request.scenario_digest != self._digest.value:
            raise ScenarioMismatch(f"this run is of scenario {self._digest.short}; start both ends with the same file and --set")
        await self._desk.join(member, curve=self._curve(request, member), layout=self._layout(request, member))
        timing, minor = self._scenario.timing, min(request.protocol_minor, convert.PROTOCOL_MINOR)
        waits = {"connect_s": timing.connect_s, "idle_s": timing.idle_s, "round_s": timing.round_s}
        return pb.JoinResponse(run=self._desk.rules.run, protocol_minor=minor, **waits)

    async def Follow(
        self, request_iterator: AsyncIterator[pb.FollowRequest], context: Context
    ) -> AsyncIterator[pb.FollowResponse]:
        """Push directives while the caller beats."""
        member = self._member(caller_of(context, Role.CLIENT, Role.OWNER))
        async with aclosing(self._desk.follow(member, _beats(request_iterator))) as directives:
            async for directive in directives:
                yield convert.directive_to_wire(directive)

    async def Report(self, request: pb.ReportRequest, context: Context) -> pb.ReportResponse:
        """Take the caller's report."""
        caller = self._client(context)
        report = convert.report_from_wire(request, caller=caller)
        await self._desk.report(report, advertisement=convert.keys_from_wire(request, caller=caller))
        return pb.ReportResponse()

    async def Deal(self, request: pb.DealRequest, context: Context) -> pb.DealResponse:
        """Take the caller's parcels for its neighbours."""
        await self._desk.deal(*convert_sums.deal_from_wire(request, caller=self._client(context).name))
        return pb.DealResponse()

    async def Announce(self, request: pb.AnnounceRequest, context: Context) -> pb.AnnounceResponse:
        """Take the owner's word on whose payloads it is going to add."""
        caller_of(context, Role.OWNER)
        await self._desk.announce(*convert_sums.announcement_from_wire(request))
        return pb.AnnounceResponse()

    async def Vow(self, request: pb.VowRequest, context: Context) -> pb.VowResponse:
        """Take the caller's vow."""
        await self._desk.vow(*convert_sums.vow_from_wire(request, caller=self._client(context).name))
        return pb.VowResponse()

    async def ReportChannel(self, request: pb.ReportChannelRequest, context: Context) -> pb.ReportChannelResponse:
        """Take the caller's new channel."""
        caller = self._client(context)
        round_id, channel = convert.new_channel_from_wire(request)
        await self._desk.change_channel(ClientId(caller.name), round_id, channel)
        return pb.ReportChannelResponse()

    async def AskToSend(self, request: pb.AskToSendRequest, context: Context) -> pb.AskToSendResponse:
        """Tell the caller whether it may begin to transmit now."""
        await self._desk.ask_to_send(ClientId(self._client(context).name), request.round_id)
        return pb.AskToSendResponse()

    async def Complete(self, request: pb.CompleteRequest, context: Context) -> pb.CompleteResponse:
        """Take the caller's completion."""
        caller = self._client(context)
        await self._desk.complete(convert.completion_from_wire(request, caller=caller))
        return pb.CompleteResponse()

    async def Settle(self, request: pb.SettleRequest, context: Context) -> pb.SettleResponse:
        """Take the owner's judgement."""
        caller_of(context, Role.OWNER)
        await self._desk.settle(convert.settlement_from_wire(request))
        return pb.SettleResponse()

    async def Conclude(self, request: pb.ConcludeRequest, context: Context) -> pb.ConcludeResponse:
        """Take the owner's word on a round that it is through with."""
        caller_of(context, Role.OWNER)
        await self._desk.conclude(convert.conclusion_from_wire(request))
        return pb.ConcludeResponse()

    async def Leave(self, request: pb.LeaveRequest, context: Context) -> pb.LeaveResponse:
        """Let the caller go."""
        member = self._member(caller_of(context, Role.CLIENT, Role.OWNER))
        await self._desk.leave(member, request.reason[:_REASON_CHARS_MAX])
        return pb.LeaveResponse()

    async def GetRun(self, request: pb.GetRunRequest, context: Context) -> pb.GetRunResponse:
        """Tell the operator or the owner how the run stands."""
        caller_of(context, Role.OPERATOR, Role.OWNER)
        state = self._desk.state
        phase = state.phase
        solution = None if isinstance(phase, Gathering) or phase.round is None else phase.round.solution
        return pb.GetRunResponse(
            run=self._desk.rules.run,
            round_id=state.round_id,
            state=state.name,
            assignments=[convert.assignment_to_wire(a) for a in (() if solution is None else solution.assignments)],
            accepted=phase.accepted if isinstance(phase, Closed) else (),
            missing=list(phase.missing) if isinstance(phase, Closed | Failed) else (),
            failed_reason=phase.reason if isinstance(phase, Failed) else "",
        )

    def _curve(self, request: pb.JoinRequest, member: Member) -> UtilityCurve | None:
        """Return what the owner measured; nothing where the scenario takes utilities as assumed."""
        allocator = self._scenario.coordinator.allocator
        if not request.HasField("curve"):
            if member == OWNER and allocator.utility.kind == "measured" and self._desk.state.curve is None:
                raise MalformedUpdate("curve: coordinator.allocator.utility.kind is measured, and the owner brings no curve")
            return None
        if member != OWNER:
            raise NotYours(f"{member} brings a utility; only the owner measures one")
        if allocator.utility.kind != "measured":
            return None
        return convert.curve_from_wire(request.curve)

    def _layout(self, request: pb.JoinRequest, member: Member) -> Layout | None:
        """Return how the owner lays numbers out; nothing where updates are judged one by one."""
        if not request.HasField("sum_layout"):
            if member == OWNER and self._desk.rules.sums is not None:
                raise MalformedUpdate("sum_layout: owner.aggregation.kind is secure, and the owner brings none")
            return None
        if member != OWNER:
            raise NotYours(f"{member} brings a layout; only the owner has one")
        return None if self._desk.rules.sums is None else convert_sums.layout_from_wire(request.sum_layout)

    def _client(self, context: Context) -> Caller:
        caller = caller_of(context, Role.CLIENT)
        self._member(caller)
        return caller

    def _member(self, caller: Caller) -> Member:
        member = OWNER if caller.role is Role.OWNER else Member(caller.name)
        if not is_member(member, rules=self._desk.rules):
            raise NotYours(f"{caller.uri} is no client of scenario {self._scenario.name!r}")
        return member


async def _beats(requests: AsyncIterator[pb.FollowRequest]) -> AsyncIterator[Beat]:
    # A function, not an expression: the requests are not touched before the first beat is asked for, which a refusal never does.
    async for request in requests:
        yield convert.beat_from_wire(request)


def register_coordinator(service: CoordinatorService) -> Callable[[grpc.aio.Server], None]:
    """Return what adds the service to a server."""

    def register(server: grpc.aio.Server) -> None:
        coordinator_pb2_grpc.add_CoordinatorServicer_to_server(service, server)

    return register
