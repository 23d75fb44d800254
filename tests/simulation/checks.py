"""The laws that hold after every event, seen from outside of the machine."""

import json
from typing import Protocol

from hushtune_common.messages import Assignment, Channel, ClientId, UtilityCurve
from hushtune_common.secagg.messages import Delivery, Roster, Survivors, Terms, Vows
from hushtune_server.coordinator.events import OWNER, Event, from_body
from hushtune_server.coordinator.phases import (
    Assigned,
    Closed,
    Concluding,
    Failed,
    Gathering,
    Phase,
    Post,
    Rules,
    Settling,
    Solve,
    State,
)
from hushtune_server.coordinator.rounds import Step
from tests.fakes import BAND
from tests.simulation.simulator import Violation


class Advance(Protocol):
    """The machine under test, or a mutant of it."""

    def __call__(self, state: State, event: Event, *, rules: Rules) -> Step: ...


class Checker:
    """The laws, with what the world knows and the machine does not: which updates the owner really accepted."""

    def __init__(self, rules: Rules, machine: Advance) -> None:
        self.accepted_by_owner: set[tuple[int, ClientId]] = set()
        self.on_air: dict[ClientId, Assignment] = {}
        self.told: dict[ClientId, tuple[int, Channel]] = {}
        self.stopped: int | None = None
        self.measured: UtilityCurve | None = None
        self.shared_again = 0
        self.followed = 0
        self.adds = rules.sums is not None
        self._stood: set[int] = set()
        self._rosters: dict[int, Roster] = {}
        self._rules = rules
        self._machine = machine
        self._folded = State()
        self._last_seq = 0
        self._ended: dict[int, Phase] = {}

    def appended(self, kind: str, text: str) -> None:
        """Fold what the journal now holds, as a restart would."""
        self._folded, _ = self._machine(self._folded, from_body(kind, json.loads(text)), rules=self._rules)

    def begins(self, assignment: Assignment, state: State) -> None:
        """Look at who begins to transmit with what: nobody does so on a band that was given to others since."""
        phase, round_id, client = state.phase, assignment.round_id, assignment.client
        if not isinstance(phase, Assigned | Settling):
            return  # nobody has a band
        if round_id < state.round_id:
            raise Violation(f"{client} begins with the band of round {round_id}, which others have in round {state.round_id}")
        if client in phase.round.withdrawn:
            raise Violation(f"{client} begins on a band that was given away")

    def asked(self, order: Solve) -> None:
        """Look at what the solver is asked."""
        if order.curve != self.measured:
            raise Violation(f"round {order.round_id} is solved for {order.curve}, the owner's newest word is {self.measured}")

    def check(self, state: State) -> None:
        if self._folded != state:
            raise Violation(f"the folded journal differs from the live state: {self._folded} is not {state}")
        self._check_directives(state)
        self._check_bands(state)
        self._check_channels(state)
        self._check_sums(state)
        self._check_end(state)
        if self._rules.measured and state.curve is None and not isinstance(state.phase, Gathering | Failed):
            raise Violation(f"round {state.round_id} opened before anybody told what updates are worth")
        clients = len(self._rules.clients)
        # The end of the round before, this round's opening, assignments and two words on its end, a failure to gather anew.
        # With sums a roster, a delivery, survivors and vows for each, and the first two for the owner.
        most = clients + 5 + (4 * clients + 2 if self.adds else 0)
        if len(state.outbox) > most or len(state.roster.joined_at) > clients + 1:
            raise Violation(f"the state grows: {len(state.outbox)} directives, {len(state.roster.joined_at)} members")

    def _check_directives(self, state: State) -> None:
        numbers = [p.directive.seq for p in state.outbox]
        fresh = [n for n in numbers if n > self._last_seq]
        if numbers != sorted(set(numbers)) or fresh != list(range(self._last_seq + 1, state.next_seq)):
            raise Violation(f"directives are not numbered in order: {numbers} after {self._last_seq}")
        self._last_seq = state.next_seq - 1

    def _check_bands(self, state: State) -> None:
        """Whoever is on air, with the newest assignment or an older one, and whoever may still be, share one band."""
        phase, band = state.phase, self._rules.band
        if band is None or not isinstance(phase, Assigned | Settling):
            return
        round_ = phase.round
        through = round_.completions.keys() | round_.accepted_at.keys() | round_.refused
        solution = () if round_.solution is None else round_.solution.assignments
        # Who told of another channel has put its assignment away.
        told = {a.client: 0.0 if a.client in round_.changed else a.bandwidth for a in solution if a.protection is not None}
        self.shared_again += any(b > BAND for b in told.values())
        flying = {c: a.bandwidth for c, a in self.on_air.items() if a.round_id == state.round_id}
        used = sum(max(told.get(c, 0.0), flying.get(c, 0.0)) for c in {*told, *flying} if c not in through)
        if used > band * (1.0 + 1e-9):
            raise Violation(f"{used:g} Hz are assigned or on air, of {band:g}: {told} and {flying}")

    def _check_channels(self, state: State) -> None:
        """Nobody is assigned, or on air, for a channel that the one in question knows to be over."""
        phase = state.phase
        if not isinstance(phase, Assigned | Settling) or phase.round.solution is None:
            return
        round_ = phase.round
        for a in phase.round.solution.assignments:
            if a.protection is not None and a.client not in round_.changed:
                if a.channel != round_.reports[a.client].channel:
                    raise Violation(f"{a.client} is assigned for another channel than its newest")
                self.followed += a.client in round_.changes
        for client, flying in self.on_air.items():
            told_in, channel = self.told.get(client, (0, None))
            if channel is not None and told_in == flying.round_id and (flying.channel is None or flying.channel.at < channel.at):
                raise Violation(f"{client} transmits for a channel that is no more")

    def terms(self, round_id: int) -> Terms:
        """Return what everybody agrees on before a round."""
        layout = self._folded.layout
        if self._rules.sums is None or layout is None:
            raise Violation("a sum without an agreement")
        return self._rules.sums.terms(layout, round_id=round_id)

    @property
    def vowed(self) -> int:
        """In how many rounds a quorum of survivors stood to each other."""
        return len(self._stood)

    def _check_sums(self, state: State) -> None:
        """Each stage is told once to each; one roster, for good; survivors are accepted; parcels go to dealers' neighbours."""
        told = [(p.to, type(p.directive.sum)) for p in state.outbox if p.directive.sum is not None]
        if len(set(told)) != len(told):
            raise Violation(f"a stage of the sum was told twice: {told}")
        for post in (p for p in state.outbox if p.directive.sum is not None):
            self._check_word(state, post)

    def _check_word(self, state: State, post: Post) -> None:
        word, phase = post.directive.sum, state.phase
        match word:
            case Roster():
                if self._rosters.setdefault(post.directive.round_id, word) != word:
                    raise Violation("another roster was told than before")
            case Delivery():
                if post.to == OWNER and word.parcels:
                    raise Violation("the owner was handed parcels")
                if {dealer for dealer, _ in word.parcels} - {*word.dealers}:
                    raise Violation(f"{post.to} was handed parcels of somebody who has not dealt in time")
            case Survivors() if isinstance(phase, Concluding) and not {*word.members} <= {*phase.accepted}:
                raise Violation(f"{word.members} survived, accepted are {phase.accepted}")
            case Vows():
                self._stood.add(post.directive.round_id)
            case _:
                pass

    def _check_end(self, state: State) -> None:
        phase = state.phase
        if not isinstance(phase, Closed | Failed):
            return
        if self._ended.setdefault(state.round_id, phase) != phase:
            raise Violation(f"round {state.round_id} changed after its end")
        if isinstance(phase, Failed):
            if not phase.reason:
                raise Violation("a round failed without a reason")
            return
        if phase.last != (state.round_id >= self._rules.rounds or bool(phase.stopped)):
            raise Violation(f"round {state.round_id} of {self._rules.rounds} was the last: {phase.last}, {phase.stopped!r}")
        if phase.stopped and self.stopped != state.round_id:
            raise Violation(f"the run was stopped after round {state.round_id}, but the owner never said so")
        if len(set(phase.accepted)) != len(phase.accepted) or len(phase.accepted) < self._rules.needed:
            raise Violation(f"round {state.round_id} closed with {phase.accepted}")
        for client in phase.accepted:
            if not phase.round.granted(client):
                raise Violation(f"{client} was accepted in round {state.round_id} without a grant")
            if (state.round_id, client) not in self.accepted_by_owner:
                raise Violation(f"{client} was accepted in round {state.round_id}, but the owner never said so")
