"""How do calls and time become events of a run, and how do directives reach the members?

Every event is durable before anybody hears of it: ``Desk`` takes them in one at a time, remembers, and only then speaks.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine
from functools import partial
from typing import Any

from hushtune_common.clock import Clock
from hushtune_common.errors import (
    HushtuneError,
    MalformedUpdate,
    NotYours,
    PeerLost,
    StaleRound,
    StorageFull,
)
from hushtune_common.messages import (
    SENDING_PHASES,
    Beat,
    Channel,
    ClientId,
    ClientReport,
    Completion,
    Conclusion,
    Directive,
    Settlement,
    UtilityCurve,
)
from hushtune_common.secagg.messages import Advertisement, Deal, Survivors, Vow
from hushtune_common.secagg.terms import Layout
from hushtune_common.store.room import Room
from hushtune_common.units import Second
from hushtune_common.wire.bell import Bell
from hushtune_server.coordinator import refused
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
    Rules,
    Solve,
    State,
    is_over,
)
from hushtune_server.coordinator.ports import EventLog, Solver
from hushtune_server.coordinator.rounds import advance, unsolved

Observer = Callable[[State, State, Event], None]
"""Called with the state before, the state after and the event between, once the event is durable."""

_TICK_S_MAX = 1.0
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
        refused.require_entry(self.state, member, layout, rules=self.rules)
        await self._commit(lambda at: Joined(at=at, member=member, curve=curve, layout=layout))
        self._liveness = self._liveness.heard(member, self.now())

    async def report(self, report: ClientReport, *, advertisement: Advertisement | None = None) -> None:
        """Take a client's report; ``StaleRound`` when it is not for the round in progress.

        With secure aggregation it brings keys: `MalformedUpdate` where it does not, ``Replayed`` for others than before.
        """
        refused.require_report(self.state, report, advertisement, rules=self.rules)
        await self._commit(lambda at: Reported(at=at, report=report, advertisement=advertisement))

    async def deal(self, round_id: int, deal: Deal) -> None:
        """Take a client's parcels; late and repeated ones change nothing. What contradicts earlier word is refused."""
        await self._take_word(lambda at: Dealt(at=at, round_id=round_id, deal=deal))

    async def announce(self, run: str, round_id: int, survivors: Survivors) -> None:
        """Take the owner's word on the survivors, as `deal`."""
        refused.is_current(self.state, round_id, run=run, rules=self.rules)
        await self._take_word(lambda at: Announced(at=at, round_id=round_id, survivors=survivors))

    async def vow(self, round_id: int, vow: Vow) -> None:
        """Take a client's vow, as `deal`."""
        await self._take_word(lambda at: Vowed(at=at, round_id=round_id, vow=vow))

    async def _take_word(self, make: Callable[[Second], Dealt | Announced | Vowed]) -> None:
        refused.require_word(self.state, make(self.now()), rules=self.rules)
        await self._commit(make)

    async def change_channel(self, client: ClientId, round_id: int, channel: Channel) -> None:
        """Take a client's word on its new channel; ``StaleRound`` as above, ``LimitExceeded`` when it changes all the time.

        A word that was taken before is no further change.
        """
        refused.require_channel(self.state, client, round_id, channel, rules=self.rules)
        await self._commit(lambda at: ChannelChanged(at=at, round_id=round_id, client=client, channel=channel))

    async def ask_to_send(self, client: ClientId, round_id: int) -> None:
        """Let a client begin to transmit, and keep its band for it from then on; ``StaleRound`` when it may not any more."""
        await self._commit(lambda at: Sending(at=at, round_id=round_id, client=client, asked=True))
        why = refusal(self.state, client, round_id)
        if why:
            raise StaleRound(f"{client} may not transmit in round {round_id}: {why}")

    async def complete(self, completion: Completion) -> None:
        """Take a client's completion. One for a round that is over is late and changes nothing; ``NotYours`` without a grant."""
        key = completion.key
        if refused.is_current(self.state, key.round_id, run=key.run, rules=self.rules) and completion.uploaded:
            refused.require_grant(self.state, key)
        await self._commit(lambda at: Completed(at=at, completion=completion))

    async def settle(self, settlement: Settlement) -> None:
        """Take the owner's judgement; late ones change nothing; ``NotYours`` for a client without a grant."""
        key = settlement.key
        if refused.is_current(self.state, key.round_id, run=key.run, rules=self.rules):
            refused.require_grant(self.state, key)
        await self._commit(lambda at: Settled(at=at, settlement=settlement))

    async def conclude(self, word: Conclusion) -> None:
        """Take the owner's word that it is through with a round; late and repeated ones change nothing."""
        refused.is_current(self.state, word.round_id, run=word.run, rules=self.rules)
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


class _NotRemembered(StorageFull):
    """The journal had no room for an event, so it has not happened."""


def _require_answers(order: Solve, solution: Solution) -> None:
    """Raise ``ValueError`` unless each report is answered once, for its round and channel: a defect of the solver."""
    asked = [(r.client, order.round_id, r.channel) for r in sorted(order.reports, key=lambda r: r.client)]
    answered = [(a.client, a.round_id, a.channel) for a in sorted(solution.assignments, key=lambda a: a.client)]
    if asked != answered:
        raise ValueError(f"the solver answered {answered}, but was asked {asked}")
