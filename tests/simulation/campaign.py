"""Several rounds under faults, with the production machines of coordinator and client, and the owner's book.

Adapters are short vectors of exact fractions, so that sums can be compared without tolerance; the codec rounds to multiples of
eight. Everything that a process may forget when it is killed is kept apart from what its journal holds, and is forgotten. After
every event that matters the laws are checked: nobody trains on the emulator of another round, every update counts at most once,
and what a client is owed is what its kept updates lost. Replay one world with its trace:
``python -m tests.simulation.campaign SEED``; ``python -m tests.simulation.campaign 0 10000 --jobs 2`` plays that many from
there on.
"""

from dataclasses import dataclass, replace

from hushtune_server.coordinator.phases import Closed, Failed, Rules, is_over
from hushtune_server.coordinator.phases import State as RunState
from hushtune_server.coordinator.rounds import advance
from tests.simulation.actors import ROUND_S, RUN, Coordinator
from tests.simulation.campaign_laws import Laws
from tests.simulation.campaign_members import Client, Owner
from tests.simulation.checks import Checker
from tests.simulation.coordination import rules_for
from tests.simulation.many import Counts, Kind, main
from tests.simulation.simulator import Violation, World

FAULTS_S = 200.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """How a world ended."""

    state: RunState
    closings: int
    rounds_kept: int
    rolled_back: int
    stopped: bool
    asked_again: int
    restarts: int


class Campaign:
    """One world from its first event to its end."""

    def __init__(self, seed: int, *, fair: bool = False, client: type[Client] = Client, owner: type[Owner] = Owner) -> None:
        """Draw the world of ``seed``; ``client`` and ``owner`` may be mutants."""
        self.world = World(seed, round_s=ROUND_S, fair=fair)
        self.rules: Rules = replace(rules_for(self.world, fair=fair), rounds=5, measured=False)
        self.laws = Laws()
        checker = Checker(self.rules, advance)
        self._coordinator = Coordinator(self.world, self.rules, checker, advance)
        self.owner = owner(self.world, self._coordinator, checker, self.laws, rounds=self.rules.rounds)
        self.clients = [client(self.world, self._coordinator, c, self.owner, checker, self.laws) for c in self.rules.clients]
        self.world.after(FAULTS_S, self.world.clear)

    def run(self) -> Ending:
        """Let everything happen; raise ``Violation`` when a law breaks or the run does not end after the faults stopped."""
        deadline = FAULTS_S + 3 * ROUND_S * (self.rules.rounds + 1)
        while not self._done():
            if self.world.now > deadline or not self.world.step():
                states = {c.client: type(c.state).__name__ for c in self.clients if c.up}
                run = self._coordinator.state
                raise Violation(f"the run did not end: round {run.round_id} is {run.name}, clients are {states}")
        for client in self.clients:
            self.laws.owed(client.client, client.residuals, client._files, book=self.owner.book)  # pyright: ignore[reportPrivateUsage]
        closings = self.owner.book.closings_of(RUN)
        phase = self._coordinator.state.phase
        return Ending(
            state=self._coordinator.state,
            closings=len(closings),
            rounds_kept=sum(c.kept for c in closings),
            rolled_back=sum(not c.kept and bool(c.merged) for c in closings),
            stopped=isinstance(phase, Closed) and bool(phase.stopped),
            asked_again=self.laws.asked_again,
            restarts=self.laws.lives - len(self.clients),
        )

    def _done(self) -> bool:
        over = self._coordinator.up and is_over(self._coordinator.state)
        return over and all(a.finished for a in (self.owner, *self.clients) if a.up)


def play(seed: int, *, fair: bool = False, client: type[Client] = Client, owner: type[Owner] = Owner) -> Ending:
    """Run one world; a ``Violation`` says how to see it again."""
    campaign = Campaign(seed, fair=fair, client=client, owner=owner)
    try:
        return campaign.run()
    except Violation as violation:
        raise Violation(f"seed {seed}: {violation}; replay: python -m tests.simulation.campaign {seed}") from None


def counted(seed: int) -> Counts:
    """Play one world and count what happened in it."""
    ending = play(seed)
    return {
        "closed": int(isinstance(ending.state.phase, Closed)),
        "failed": int(isinstance(ending.state.phase, Failed)),
        "rounds kept": ending.rounds_kept,
        "rolled back": ending.rolled_back,
        "restarts of clients": ending.restarts,
    }


def replayed(seed: int) -> None:
    """Play one world and show its trace."""
    campaign = Campaign(seed)
    try:
        ending = campaign.run()
    finally:
        print("\n".join(campaign.world.trace))
    kept = f"{ending.rounds_kept} kept, {ending.rolled_back} rolled back"
    print(f"seed {seed}: {ending.state.name} in round {ending.state.round_id}, {kept}")


KIND = Kind(name="campaign", play=counted, replay=replayed)

if __name__ == "__main__":
    main(KIND, about=__doc__)
