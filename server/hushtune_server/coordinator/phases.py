"""What does a run look like at one moment? Nothing here moves; ``rounds`` does.

Every value is bounded: a map has at most one entry per client (and owner), the outbox keeps the current round's directives and
the end of the round before, and a new solution has an occasion, of which a client has so many.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from hushtune_common.config import Scenario
from hushtune_common.messages import Assignment, ClientId, ClientReport, Completion, Directive, GateDecision, RunId, UtilityCurve
from hushtune_common.secagg.terms import Layout
from hushtune_common.units import Hertz, Second
from hushtune_server.coordinator.events import OWNER, Member, Solution
from hushtune_server.coordinator.stragglers import POLICIES, StragglerPolicy
from hushtune_server.coordinator.sums import Sum, SumRules

_START = Second(0.0)
_ANSWER = Second(30.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What does not change during a run.

    ``report_s`` bounds the wait for reports, ``start_wait_s`` the wait for latecomers once a quorum and the owner are there,
    both from the round's time; ``tick_s`` is how much run time may pass without an event; ``band`` is what all clients share, and
    given only if it is shared out again when somebody goes, or has another channel, in the middle of a round. ``measured`` says
    that no round opens before the owner has told what updates are worth. With ``sums`` updates are only added: no round opens
    before the owner has told the numbers' layout, and no round ends before the owner has concluded it. A member may enter
    ``joins_max`` times, the channel of a client be another one ``changes_max`` times in a round: what is durable grows with both.
    Told that it may transmit, a client begins within ``answer_s`` of its question or asks again.
    """

    run: RunId
    clients: tuple[ClientId, ...]
    rounds: int
    policy: StragglerPolicy
    round_s: Second
    report_s: Second
    start_wait_s: Second
    tick_s: Second
    band: Hertz | None = None
    measured: bool = False
    sums: SumRules | None = None
    joins_max: int = 1000
    changes_max: int = 256
    answer_s: Second = _ANSWER

    def __post_init__(self) -> None:
        """Check the ranges."""
        if not self.clients or len(set(self.clients)) != len(self.clients) or self.rounds < 1:
            raise ValueError("a run needs at least one client, each once, and at least one round")
        if not 0.0 < self.report_s <= self.round_s or not self.start_wait_s >= 0.0 or not self.tick_s > 0.0:
            raise ValueError("a run needs 0 < report_s <= round_s, start_wait_s >= 0 and tick_s > 0")

    @staticmethod
    def of(scenario: Scenario, *, run: RunId) -> "Rules":
        """Derive the rules of a run from its scenario."""
        timing, stragglers, allocator = scenario.timing, scenario.coordinator.stragglers, scenario.coordinator.allocator
        return Rules(
            run=run,
            clients=tuple(ClientId(c.id) for c in scenario.clients),
            rounds=scenario.coordinator.rounds,
            policy=POLICIES[stragglers.kind](stragglers, Second(timing.idle_s)),
            round_s=Second(timing.round_s),
            report_s=Second(timing.round_s / 3),
            start_wait_s=Second(timing.idle_s),
            tick_s=Second(timing.round_s / 20),
            band=Hertz(scenario.air.bandwidth_hz) if allocator.reallocate else None,
            measured=allocator.utility.kind == "measured",
            sums=SumRules.of(scenario, run=run),
            joins_max=scenario.limits.joins_max,
            changes_max=scenario.limits.channel_changes_max,
            answer_s=Second(timing.idle_s),
        )

    @property
    def needed(self) -> int:
        """How many clients a round cannot do without."""
        return self.policy.needed(len(self.clients))


@dataclass(frozen=True, slots=True, kw_only=True)
class Roster:
    """Who entered, when and how often, and who has gone since, with the reason."""

    joined_at: Mapping[Member, Second] = field(default_factory=dict[Member, Second])
    gone: Mapping[Member, str] = field(default_factory=dict[Member, str])
    joins: Mapping[Member, int] = field(default_factory=dict[Member, int])

    def alive(self, member: Member | ClientId) -> bool:
        """Whether the member entered and has not gone."""
        return member in self.joined_at and member not in self.gone


@dataclass(frozen=True, slots=True, kw_only=True)
class Occasion:
    """Because of whom a new solution is looked for: who went, and whose channel changed. Nobody: a round's first solution."""

    gone: frozenset[ClientId] = frozenset()
    changed: frozenset[ClientId] = frozenset()

    def __bool__(self) -> bool:
        """Whether there is one."""
        return bool(self.gone or self.changed)


NO_OCCASION: Final = Occasion()


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What came of one question to the allocator: the certificate of its solution (its assignments are kept elsewhere), or why
    there is none. ``clients`` are those that a solution was found for."""

    at: Second
    order: int
    occasion: Occasion
    clients: tuple[ClientId, ...]
    certificate: Solution | None
    failed: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """What is known about the round in progress; of two words on the same thing the first counts, of two channels the newer.

    ``held`` is the widest band that each granted client was assigned so far, or since its channel changed. ``sending`` were
    told that they may transmit, or said that they are about to; ``cleared`` is when they were last told. ``reviewed`` went before
    that, and were dealt with; of them, ``withdrawn`` lost their assignment. ``changed`` have another channel than they were
    assigned for, and ``changes`` counts how often that was so. ``ordered`` is why the ``orders``-th new solution is being looked
    for, and ``answers`` is what was found so far.
    ``curve`` is what updates were worth when the round was first solved. ``sum`` is there where updates are only added.
    """

    opened_at: Second
    reports: Mapping[ClientId, ClientReport] = field(default_factory=dict[ClientId, ClientReport])
    solution: Solution | None = None
    completions: Mapping[ClientId, Completion] = field(default_factory=dict[ClientId, Completion])
    accepted_at: Mapping[ClientId, Second] = field(default_factory=dict[ClientId, Second])
    refused: frozenset[ClientId] = frozenset()
    held: Mapping[ClientId, float] = field(default_factory=dict[ClientId, float])
    sending: frozenset[ClientId] = frozenset()
    cleared: Mapping[ClientId, Second] = field(default_factory=dict[ClientId, Second])
    reviewed: frozenset[ClientId] = frozenset()
    withdrawn: frozenset[ClientId] = frozenset()
    changed: frozenset[ClientId] = frozenset()
    changes: Mapping[ClientId, int] = field(default_factory=dict[ClientId, int])
    ordered: Occasion = NO_OCCASION
    orders: int = 0
    answers: tuple[Answer, ...] = ()
    curve: UtilityCurve | None = None
    sum: Sum | None = None

    def assignment(self, client: ClientId) -> Assignment | None:
        """Return what the client was assigned, if anything."""
        assignments = () if self.solution is None else self.solution.assignments
        return next((a for a in assignments if a.client == client), None)

    def granted(self, client: ClientId) -> bool:
        """Whether the client may upload in this round, or might once: what it sent before it heard otherwise counts."""
        assignment = self.assignment(client)
        if client in self.withdrawn:
            return True
        return assignment is not None and assignment.gate.decision is GateDecision.GRANTED

    def grantees(self) -> frozenset[ClientId]:
        """Return everybody of whom ``granted`` holds, in one pass: asked for one after the other they would take a pass each."""
        assignments = () if self.solution is None else self.solution.assignments
        return self.withdrawn | {a.client for a in assignments if a.gate.decision is GateDecision.GRANTED}

    def settled(self, client: ClientId) -> bool:
        """Whether the owner has judged the client's update."""
        return client in self.accepted_at or client in self.refused


@dataclass(frozen=True, slots=True, kw_only=True)
class Gathering:
    """Waiting for members; ``since`` is when the wait began (``None`` before the first one came)."""

    since: Second | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Open:
    """Clients measure and report."""

    round: Round


@dataclass(frozen=True, slots=True, kw_only=True)
class Solving:
    """The allocator works on ``round.reports``."""

    round: Round


@dataclass(frozen=True, slots=True, kw_only=True)
class Assigned:
    """Clients train; nobody is through."""

    round: Round


@dataclass(frozen=True, slots=True, kw_only=True)
class Settling:
    """At least one client is through, or was judged."""

    round: Round


@dataclass(frozen=True, slots=True, kw_only=True)
class Concluding:
    """Nothing more is accepted; the owner averages and says whether the run goes on. A last round skips it where updates are
    judged one by one; where they are only added, this is when survivors stand to each other and shares are opened."""

    round: Round
    since: Second
    accepted: tuple[ClientId, ...]
    missing: Mapping[ClientId, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Closed:
    """The round is over; ``missing`` gives the reason for every client that was not accepted.

    ``last``: no round follows. ``stopped`` is why the owner wants no further one, empty unless it said so.
    """

    round: Round
    closed_at: Second
    accepted: tuple[ClientId, ...]
    missing: Mapping[ClientId, str]
    last: bool
    stopped: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """The run is over, because this round had no result; ``round`` is absent if it never opened."""

    round: Round | None
    failed_at: Second
    reason: str
    missing: Mapping[ClientId, str]


Phase = Gathering | Open | Solving | Assigned | Settling | Concluding | Closed | Failed


@dataclass(frozen=True, slots=True, kw_only=True)
class Post:
    """An effect: this directive goes to one member, or to all (``to`` is ``None``)."""

    to: Member | None
    directive: Directive


@dataclass(frozen=True, slots=True, kw_only=True)
class Solve:
    """An effect: the allocator is asked for an answer to these reports, now.

    ``order`` is 0 for a round's first solution; a later one has only the ``band`` that is free to be shared (``None``: all).
    ``curve`` is what updates are worth, where the owner measured it.
    """

    round_id: int
    reports: tuple[ClientReport, ...]
    order: int = 0
    band: Hertz | None = None
    curve: UtilityCurve | None = None


Effect = Post | Solve


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """A run at one moment: the phase of round ``round_id``, who takes part, and what has been posted.

    ``at`` is the run time of the last event that changed anything; ``curve`` the owner's newest word on what updates are worth,
    ``layout`` its first on how numbers are laid out to be added. Before ``quiet_at`` somebody may still begin to transmit with
    what the round before has granted.
    """

    phase: Phase = Gathering()
    at: Second = _START
    round_id: int = 1
    roster: Roster = Roster()
    next_seq: int = 1
    outbox: tuple[Post, ...] = ()
    curve: UtilityCurve | None = None
    layout: Layout | None = None
    quiet_at: Second = _START

    @property
    def name(self) -> str:
        """The phase's name in lower case."""
        return type(self.phase).__name__.lower()

    def posted(self, member: Member, *, after: int) -> tuple[Directive, ...]:
        """Return the member's directives numbered above ``after``, in order."""
        return tuple(p.directive for p in self.outbox if p.to in (None, member) and p.directive.seq > after)


def is_over(state: State) -> bool:
    """Whether no further round follows."""
    return isinstance(state.phase, Failed) or (isinstance(state.phase, Closed) and state.phase.last)


def is_member(member: Member, *, rules: Rules) -> bool:
    """Whether the scenario knows the member."""
    return member == OWNER or member in rules.clients
