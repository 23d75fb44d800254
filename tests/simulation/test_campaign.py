"""Do several rounds keep their laws when processes are killed, and does a broken machine show?"""

from collections.abc import Callable

import pytest

from hushtune_common.messages import Directive, DirectiveKind, EmulatorManifest
from hushtune_server.coordinator.phases import Closed, Failed
from tests.simulation.campaign import Campaign, play
from tests.simulation.campaign_laws import Vector, plus
from tests.simulation.campaign_members import Client, Owner
from tests.simulation.simulator import Violation

SEEDS = range(200)


@pytest.mark.slow
def test_no_law_breaks_over_several_rounds() -> None:
    endings = [play(seed) for seed in SEEDS]

    # The worlds must be neither all mild nor all hopeless, or they would show nothing.
    assert sum(isinstance(e.state.phase, Closed) for e in endings) >= len(SEEDS) // 4
    assert sum(isinstance(e.state.phase, Failed) for e in endings) >= len(SEEDS) // 10
    assert sum(e.rounds_kept >= 3 for e in endings) >= len(SEEDS) // 5
    assert sum(e.rolled_back > 0 for e in endings) >= len(SEEDS) // 4
    assert sum(e.stopped for e in endings) >= len(SEEDS) // 50
    assert sum(e.asked_again > 0 for e in endings) >= len(SEEDS) // 40
    assert sum(e.restarts > 0 for e in endings) >= len(SEEDS) // 4


@pytest.mark.parametrize("seed", range(10))
def test_without_faults_every_round_is_played_unless_the_owner_stops(seed: int) -> None:
    ending = play(seed, fair=True)

    assert isinstance(ending.state.phase, Closed)
    assert ending.stopped or ending.state.round_id == 5
    assert ending.closings == ending.state.round_id


def test_a_seed_is_a_replay() -> None:
    def trace() -> list[str]:
        campaign = Campaign(4)
        campaign.run()
        return campaign.world.trace

    assert trace() == trace()


class Stale(Client):
    """A client that trains on the first emulator that it ever had."""

    def trains_on(self) -> EmulatorManifest:
        if not hasattr(self, "first"):
            self.first = super().trains_on()
        return self.first


class Hopeful(Client):
    """A client that takes every update that it sealed for kept."""

    def _append(self, kind: str, body: object, *, seq: int = 0) -> None:
        if kind == "judged" and isinstance(body, dict):
            body = {**body, "kept": True}
        super()._append(kind, body, seq=seq)


class Forgetful(Client):
    """A client whose residuals do not make up for what the ones before them did not."""

    def _keep(self, round_id: int, residual: Vector) -> None:
        owed = self.residuals.current(before=round_id)
        super()._keep(round_id, residual if owed is None else plus(residual, self._files[owed], times=-1))


class Unasked(Client):
    """A client that transmits what it has sealed, whatever has become of its band."""

    def ask(self, round_id: int, *, then: Callable[[str], None]) -> None:
        then("")


class Twice(Owner):
    """An owner that averages again whenever it is asked to conclude again, from where the model now is."""

    def obey(self, directive: Directive) -> None:
        if directive.kind is DirectiveKind.CONCLUDE and directive.round_id in self._versions:
            seat, closing = self._versions[directive.round_id]
            self._laws.averaged(closing, before=seat, after=plus(seat, seat))
        super().obey(directive)


@pytest.mark.parametrize(
    ("client", "owner", "symptom"),
    [
        (Stale, Owner, "trains in round"),
        (Hopeful, Owner, "takes its update of round"),
        (Forgetful, Owner, "has lost"),
        (Unasked, Owner, "on a band that was given away|which others have in round"),
        (Client, Twice, "the model is at"),
    ],
)
def test_a_broken_machine_is_caught(client: type[Client], owner: type[Owner], symptom: str) -> None:
    with pytest.raises(Violation, match=symptom) as caught:
        _play_all(client, owner)

    assert "python -m tests.simulation.campaign" in str(caught.value)


def _play_all(client: type[Client], owner: type[Owner]) -> None:
    for seed in SEEDS:
        play(seed, client=client, owner=owner)
