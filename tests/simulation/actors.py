"""Who takes part in a simulated run: the real coordinator's pure parts, and what every member does beside it."""

import json
from collections.abc import Callable
from dataclasses import replace

from hushtune_common.messages import ClientId, Digest, Directive, RunId
from hushtune_common.secagg.messages import Advertisement
from hushtune_common.secagg.terms import Layout
from hushtune_common.units import Hertz, Second
from hushtune_server.coordinator.clearance import refusal
from hushtune_server.coordinator.events import (
    Died,
    Event,
    Joined,
    Member,
    Sending,
    Solution,
    Solved,
    SolvingFailed,
    Ticked,
    kind_of,
    to_body,
)
from hushtune_server.coordinator.liveness import Liveness
from hushtune_server.coordinator.phases import Closed, Rules, Solve, State
from hushtune_server.coordinator.rounds import unsolved
from tests.fakes import FixedSolver
from tests.simulation.checks import Advance, Checker
from tests.simulation.simulator import Violation, World

RUN = RunId("run-1")
ROUND_S, IDLE_S, TICK_S, RETRY_S = 60.0, 12.0, 1.0, 3.0
Make = Callable[[Second], Event]
LAYOUT = Layout(grid=Digest.of(b"grid"), words=4)


def advertisement_of(client: ClientId, round_id: int) -> Advertisement:
    """Return the keys of a client, the same in every life, as if they were on its disk."""
    key = Digest.of(f"{client} {round_id}".encode()).value
    return Advertisement(member=client, channel_key=key, mask_key=key, commitment=Digest(key), proof=b"signed")


class Coordinator:
    """The production machine with a journal, streams and a process that can crash."""

    def __init__(self, world: World, rules: Rules, checker: Checker, machine: Advance) -> None:
        self.state = State()
        self.up = True
        self.life = 1
        self._world = world
        self._rules = rules
        self._checker = checker
        self._machine = machine
        self._began_at = 0.0
        self._liveness = Liveness(idle_s=Second(IDLE_S), looked_at=Second(0.0))
        self._streams: dict[Member, Stream] = {}
        self._schedule()

    def now(self) -> Second:
        return Second(self._world.now - self._began_at)

    def take(self, make: Make) -> None:
        """Advance, remember, check, then speak: the order of the real process."""
        before, event = self.state, make(self.now())
        after, effects = self._machine(before, event, rules=self._rules)
        if after is before:
            return
        self._checker.appended(kind_of(event), json.dumps(to_body(event), allow_nan=False))
        self.state = after
        self._world.note(f"coordinator {kind_of(event)} -> round {after.round_id} {after.name}")
        self._checker.check(after)
        for effect in effects:
            if isinstance(effect, Solve):
                self._checker.asked(effect)
                self._solve(effect)
        for stream in tuple(self._streams.values()):
            stream.push(after)
        if isinstance(after.phase, Closed):
            self.take(lambda at: Ticked(at=at))

    def refusal(self, client: ClientId, round_id: int) -> str:
        """Return why a client may not transmit now, or nothing."""
        return refusal(self.state, client, round_id)

    def connect(self, stream: "Stream") -> None:
        """Open a member's stream; an older one of the same member is gone with it."""
        member = stream.member
        if member not in self.state.roster.joined_at:
            return
        self._streams[member] = stream
        self.take(lambda at: Joined(at=at, member=member))
        self._liveness = self._liveness.connected(member, self.now())
        stream.push(self.state)

    def heard(self, stream: "Stream", *, sending: int | None) -> None:
        """Take a sign of life; ``sending`` is the round whose update its member is transmitting."""
        if self._streams.get(stream.member) is stream:
            self._liveness = self._liveness.heard(stream.member, self.now())
            if sending is not None:
                self.take(lambda at: Sending(at=at, round_id=sending, client=ClientId(stream.member)))

    def disconnect(self, stream: "Stream") -> None:
        if self._streams.get(stream.member) is stream:
            del self._streams[stream.member]
            self._liveness = self._liveness.disconnected(stream.member, self.now())

    def forget(self, member: Member) -> None:
        self._liveness = self._liveness.forgotten(member)
        gone = self._streams.pop(member, None)
        if gone is not None:
            gone.broken()

    def _schedule(self) -> None:
        life = self.life
        self._world.after(TICK_S, lambda: self._tick(life))
        self._world.after(self._world.lifetime(self._world.weather.coordinator_crash_s), lambda: self._crash(life))

    def _tick(self, life: int) -> None:
        if not self.up or life != self.life:
            return
        self._liveness = self._liveness.looked(self.now())
        for member in self._liveness.dead(self.now()):
            silent_s = self._liveness.silence(member, self.now())
            self.take(lambda at, m=member, s=silent_s: Died(at=at, member=m, silent_s=s))
            self.forget(member)
        self.take(lambda at: Ticked(at=at))
        self._world.after(TICK_S, lambda: self._tick(life))

    def _solve(self, order: Solve) -> None:
        life = self.life
        deferred = frozenset(r.client for r in order.reports if self._world.happens(self._world.weather.deferral))
        solution = FixedSolver(deferred=deferred).solve(order.round_id, order.reports, band=order.band)
        if order.order and self._world.happens(0.3):
            word = f"nothing for order {order.order}"
            self._answer(life, lambda at: SolvingFailed(at=at, round_id=order.round_id, reason=word, order=order.order))
            return
        if order.order:
            solution = self._uneven(solution)
        self._answer(life, lambda at: Solved(at=at, round_id=order.round_id, solution=solution, order=order.order))

    def _uneven(self, solution: Solution) -> Solution:
        """Give some more and others less than an equal part, and together as much."""
        total = sum(a.bandwidth for a in solution.assignments)
        parts = [self._world.between(0.1, 1.0) for _ in solution.assignments]
        bands = [Hertz(total * part / sum(parts)) for part in parts]
        uneven = tuple(replace(a, bandwidth=b) for a, b in zip(solution.assignments, bands, strict=True))
        return replace(solution, assignments=uneven)

    def _answer(self, life: int, make: Make) -> None:
        def answer() -> None:
            if self.up and life == self.life:
                self.take(make)

        self._world.after(self._world.between(0.1, 2.0), answer)

    def _crash(self, life: int) -> None:
        if life != self.life or self._world.weather.coordinator_crash_s == float("inf"):
            return
        self._world.note("coordinator crashed")
        self.up = False
        for stream in tuple(self._streams.values()):
            stream.broken()
        self._streams.clear()
        self._world.after(self._world.between(0.5, 2 * ROUND_S), self._restart)

    def _restart(self) -> None:
        # The checker has folded the journal all along; what it holds is what a restart finds.
        self._world.note(f"coordinator restarted in round {self.state.round_id} {self.state.name}")
        self.up = True
        self.life += 1
        self._began_at = self._world.now - self.state.at
        self._liveness = Liveness(idle_s=Second(IDLE_S), looked_at=self.now())
        for member in (m for m in self.state.roster.joined_at if self.state.roster.alive(m)):
            self._liveness = self._liveness.heard(member, self.now())
        pending = unsolved(self.state, rules=self._rules)
        if pending is not None:
            self._solve(pending)
        self._schedule()


class Stream:
    """A member's stream: in order until it breaks, then nothing."""

    def __init__(self, world: World, coordinator: Coordinator, actor: "Actor") -> None:
        self.member = actor.member
        self.open = True
        self._world = world
        self._coordinator = coordinator
        self._actor = actor
        self._given = actor.last_seen
        self._last_arrival = 0.0
        world.after(world.lifetime(world.weather.break_s), self.broken)

    def cut(self) -> None:
        """Break without a word to the coordinator, which goes on waiting for beats."""
        self.open = False

    def push(self, state: State) -> None:
        """Put the member's new directives on their way."""
        for directive in state.posted(self.member, after=self._given):
            self._given = directive.seq
            self._last_arrival = max(self._last_arrival, self._world.now + self._world.between(0.0, self._world.weather.delay_s))
            self._world.after(self._last_arrival - self._world.now, lambda d=directive: self._arrive(d))

    def beat(self) -> None:
        """Carry a sign of life to the coordinator."""
        if self.open:
            delay_s, sending = self._world.between(0.0, self._world.weather.delay_s), self._actor.sending
            self._world.after(delay_s, lambda: self._coordinator.heard(self, sending=sending))

    def broken(self) -> None:
        """Break: what is under way is lost, both ends notice."""
        if self.open:
            self.open = False
            self._coordinator.disconnect(self)
            self._actor.stream_broke(self)

    def _arrive(self, directive: Directive) -> None:
        if self.open:
            self._actor.hear(directive)


class Actor:
    """A scripted member: joins, follows, beats, crashes, comes back; is cut off from the coordinator, and from nobody else."""

    sturdiness = 1.0
    """By how much rarer its crashes are."""
    strays = False
    """Whether it is where the coordinator cannot be reached at times."""

    def __init__(self, world: World, coordinator: Coordinator, member: Member) -> None:
        self.member = member
        self.last_seen = 0
        self.finished = False
        self.up = True
        self.sending: int | None = None
        self._world = world
        self._coordinator = coordinator
        self._stream: Stream | None = None
        self._life = 0
        self._cut_until = 0.0
        world.after(world.between(0.0, 5.0), self.start)
        if self.strays:
            world.after(world.lifetime(world.weather.cut_s), self._cut)

    def start(self) -> None:
        """Begin a life."""
        self.up = True
        self._life += 1
        life = self._life
        self._world.after(self._world.lifetime(self.sturdiness * self._world.weather.crash_s), lambda: self._crash(life))
        self.call("join", self.joining, then=self._follow)
        self._beat(life)

    def joining(self, at: Second) -> Event:
        """Return the word with which it enters."""
        return Joined(at=at, member=self.member)

    def call(self, name: str, make: Make, *, then: Callable[[], None] | None = None) -> None:
        """Call the coordinator and repeat until it answered; requests and answers go through the weather."""
        life, answered = self._life, [False]

        def arrive() -> None:
            if self._coordinator.up:
                self._coordinator.take(make)
                self._world.send(answer)

        def answer() -> None:
            if not answered[0] and self.up and life == self._life and not self.cut_off:
                answered[0] = True
                if then is not None:
                    then()

        def attempt() -> None:
            if not answered[0] and self.up and life == self._life:
                if not self.cut_off:
                    self._world.send(arrive)
                self._world.after(RETRY_S, attempt)

        self._world.note(f"{self.member} calls {name}")
        attempt()

    def ask(self, round_id: int, *, then: Callable[[str], None]) -> None:
        """Ask until it is known whether to transmit; ``then`` gets why not, or nothing.

        As a call over the network ends after ``IDLE_S``, so does the use of an answer, by the asker's own clock.
        """
        life, client, answered = self._life, ClientId(self.member), [False]

        def arrive(asked_at: float) -> None:
            if self._coordinator.up:
                self._coordinator.take(lambda at: Sending(at=at, round_id=round_id, client=client, asked=True))
                why = self._coordinator.refusal(client, round_id)
                self._world.send(lambda: answer(why, asked_at))

        def answer(why: str, asked_at: float) -> None:
            if answered[0] or not self.up or life != self._life or self.cut_off or self._world.now - asked_at > IDLE_S:
                return
            answered[0] = True
            self._world.note(f"{self.member} {'may not' if why else 'may'} transmit: {why}")
            then(why)

        def attempt() -> None:
            if not answered[0] and self.up and life == self._life:
                if not self.cut_off:
                    self._world.send(lambda asked_at=self._world.now: arrive(asked_at))
                self._world.after(RETRY_S, attempt)

        attempt()

    @property
    def cut_off(self) -> bool:
        """Whether the coordinator cannot be reached; everybody else can."""
        return self._world.now < self._cut_until

    def _cut(self) -> None:
        if self._world.weather.cut_s == float("inf"):
            return
        self._cut_until = self._world.now + self._world.between(0.2, 2.5) * IDLE_S
        self._world.note(f"{self.member} is cut off until {self._cut_until:.2f}")
        stream = self._stream
        if stream is not None and self._world.happens(0.5):
            stream.cut()  # and the coordinator does not notice
            self.stream_broke(stream)
        elif stream is not None:
            stream.broken()
        self._world.after(self._cut_until - self._world.now + self._world.lifetime(self._world.weather.cut_s), self._cut)

    def later(self, delay_s: float, action: Callable[[], None]) -> None:
        """Act later in this life."""
        life = self._life

        def act() -> None:
            if self.up and life == self._life:
                action()

        self._world.after(delay_s, act)

    def hear(self, directive: Directive) -> None:
        if directive.seq <= self.last_seen:
            raise Violation(f"{self.member} heard directive {directive.seq} after {self.last_seen}")
        self.last_seen = directive.seq
        self.finished = self.finished or directive.last
        self.obey(directive)

    def obey(self, directive: Directive) -> None:
        """Do what the directive asks for."""

    def stream_broke(self, stream: Stream) -> None:
        if stream is self._stream:
            self._stream = None
            self.later(self._world.between(0.1, 3.0), self._follow)

    def _follow(self) -> None:
        if not self._coordinator.up or self.cut_off:
            self.later(1.0, self._follow)
        elif self._stream is None:
            self._stream = Stream(self._world, self._coordinator, self)
            self._coordinator.connect(self._stream)

    def _beat(self, life: int) -> None:
        if self.up and life == self._life and not self.finished:
            if self._stream is not None:
                self._stream.beat()
            self._world.after(IDLE_S / 6, lambda: self._beat(life))

    def _crash(self, life: int) -> None:
        if not self.up or life != self._life or self._world.weather.crash_s == float("inf") or self.finished:
            return
        self._world.note(f"{self.member} crashed")
        self.up = False
        self.sending = None
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.broken()
        if self._world.happens(self._world.weather.return_share):
            if self._world.happens(0.5):
                self.last_seen = 0
            self._world.after(self._world.between(1.0, ROUND_S), self.start)
