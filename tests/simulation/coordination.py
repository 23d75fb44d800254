"""One coordinator, its owner and its clients in a world full of faults.

The coordinator is the production state machine, liveness and straggler policy; owner and clients are scripts. After every event
the laws are checked; then the faults stop and the run must end. Replay one world with its trace:
``python -m tests.simulation.coordination SEED``; many worlds from there on:
``python -m tests.simulation.coordination 0 10000 --jobs 2``. With the word ``adds`` behind the numbers updates are only added,
and keys, parcels and vows go through the coordinator.
"""

import sys
from dataclasses import dataclass
from functools import partial

from hushtune_common.aggregation import SecureConfig
from hushtune_common.messages import ClientId
from hushtune_common.units import Hertz, Second
from hushtune_server.coordinator.phases import Closed, Failed, Rules, State, is_over
from hushtune_server.coordinator.rounds import advance
from hushtune_server.coordinator.stragglers import Deadline, Everyone, Quorum, StragglerPolicy
from hushtune_server.coordinator.sums import SumRules
from tests.fakes import BAND
from tests.simulation.actors import IDLE_S, ROUND_S, RUN, Actor, Coordinator
from tests.simulation.checks import Advance, Checker
from tests.simulation.many import Counts, Kind, main
from tests.simulation.members import Client, Owner
from tests.simulation.simulator import Violation, World

FAULTS_S = 150.0


def rules_for(world: World, *, fair: bool = False, adds: bool = False) -> Rules:
    """Draw the size of the run and its policy; in ``fair`` weather a quorum waits for the slowest. ``adds``: updates are only
    added, so that keys, parcels and vows go through the coordinator."""
    count = max(2 if adds else 1, int(world.rng.integers(2, 6)) - 1)
    clients = tuple(ClientId(f"c{k}") for k in range(1, count + 1))
    quorum = Quorum(share=0.6, wait_after_s=Second(30.0 if fair else 5.0), judging_s=Second(IDLE_S))
    policies: list[StragglerPolicy] = [quorum, Deadline(), Everyone()]
    return Rules(
        run=RUN,
        clients=clients,
        rounds=int(world.rng.integers(1, 4)),
        policy=policies[int(world.rng.choice(3, p=[0.6, 0.25, 0.15]))],
        round_s=Second(ROUND_S),
        report_s=Second(ROUND_S / 3),
        start_wait_s=Second(IDLE_S),
        tick_s=Second(ROUND_S / 20),
        band=Hertz(len(clients) * BAND),
        measured=True,
        sums=sums_for(len(clients)) if adds else None,
        answer_s=Second(IDLE_S),
    )


def sums_for(clients: int) -> SumRules:
    """Return what everybody agrees on in a world of so many clients."""
    options = SecureConfig(members_min=2)
    return SumRules(options=options, run=RUN, members_max=clients, deal_s=Second(ROUND_S / 3), vow_s=Second(ROUND_S / 6))


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """How a world ended.

    ``shared_again`` counts the moments at which somebody had more band than at first, ``followed`` those at which somebody was
    assigned for a channel that is not its first; ``vowed`` the rounds whose survivors stood to each other.
    """

    state: State
    events: int
    seconds: float
    shared_again: int
    followed: int
    vowed: int


class Story:
    """One world from its first event to its end."""

    def __init__(
        self, seed: int, *, machine: Advance = advance, client: type[Client] = Client, fair: bool = False, adds: bool = False
    ) -> None:
        """Draw the world of ``seed`` and put the ``machine`` and clients of this kind into it."""
        self.world = World(seed, round_s=ROUND_S, fair=fair)
        self._rules = rules_for(self.world, fair=fair, adds=adds)
        self.checker = checker = Checker(self._rules, machine)
        self._coordinator = Coordinator(self.world, self._rules, checker, machine)
        owner = Owner(self.world, self._coordinator, checker)
        clients = [client(self.world, self._coordinator, c, owner, checker) for c in self._rules.clients]
        self._actors: list[Actor] = [owner, *clients]
        self.world.after(FAULTS_S, self._clear)

    def run(self) -> Ending:
        """Let everything happen; raise ``Violation`` when a law breaks or the run does not end after the faults stopped."""
        # Each round may take its gathering and itself; a crash at the last moment adds its downtime.
        deadline = FAULTS_S + 2 * ROUND_S * (self._rules.rounds + 1) + 2 * ROUND_S
        events = 0
        while not self._done():
            if self.world.now > deadline or not self.world.step():
                where = f"round {self._coordinator.state.round_id} is {self._coordinator.state.name}"
                heard = ", ".join(f"{a.member} {'has' if a.finished else 'has not'} heard the end" for a in self._actors if a.up)
                raise Violation(f"the run did not end {deadline - FAULTS_S:g} s after the faults stopped: {where}; {heard}")
            events += 1
        end = self._coordinator.state
        seen = self.checker
        return Ending(
            state=end,
            events=events,
            seconds=self.world.now,
            shared_again=seen.shared_again,
            followed=seen.followed,
            vowed=seen.vowed,
        )

    def _done(self) -> bool:
        over = self._coordinator.up and is_over(self._coordinator.state)
        return over and all(a.finished for a in self._actors if a.up)

    def _clear(self) -> None:
        self.world.note("faults stop")
        self.world.clear()


def play(
    seed: int, *, machine: Advance = advance, client: type[Client] = Client, fair: bool = False, adds: bool = False
) -> Ending:
    """Run one world; a ``Violation`` says how to see it again."""
    story = Story(seed, machine=machine, client=client, fair=fair, adds=adds)
    try:
        return story.run()
    except Violation as violation:
        again = f"{seed} adds" if adds else seed
        raise Violation(f"seed {seed}: {violation}; replay: python -m tests.simulation.coordination {again}") from None


def counted(seed: int) -> Counts:
    """Play one world and count what happened in it."""
    return _counts(play(seed))


def counted_adds(seed: int) -> Counts:
    """Play one world whose updates are only added."""
    ending = play(seed, adds=True)
    return {**_counts(ending), "rounds vowed": ending.vowed}


def _counts(ending: Ending) -> Counts:
    return {
        "closed": int(isinstance(ending.state.phase, Closed)),
        "failed": int(isinstance(ending.state.phase, Failed)),
        "events": ending.events,
        "moments with more band": ending.shared_again,
    }


def replayed(seed: int, *, adds: bool = False) -> None:
    """Play one world and show its trace."""
    story = Story(seed, adds=adds)
    try:
        ending = story.run()
    finally:
        print("\n".join(story.world.trace))
    print(
        f"seed {seed}: {ending.state.name} in round {ending.state.round_id} after {ending.seconds:.0f} s, {ending.events} events"
    )


KIND = Kind(name="coordination", play=counted, replay=replayed)
ADDS = Kind(name="coordination adds", play=counted_adds, replay=partial(replayed, adds=True))

if __name__ == "__main__":
    given = sys.argv[1:]
    main(ADDS if "adds" in given else KIND, about=__doc__, words=[word for word in given if word != "adds"])
