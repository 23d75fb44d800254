"""Is the sum right and nothing else open under every mix of faults, and are machines that leak found out?"""

from dataclasses import replace

import pytest

from hushtune_common.secagg.grid import Words
from hushtune_common.secagg.masks import Mask
from hushtune_common.secagg.member import Member, MemberState
from hushtune_common.secagg.messages import Opening, Upload, by_name
from tests.simulation.secagg import Make, Story, play
from tests.simulation.simulator import Violation

SEEDS = range(120)


@pytest.mark.slow
def test_no_law_breaks_and_every_round_ends() -> None:
    endings = [play(seed) for seed in SEEDS]

    # The worlds must be neither all mild nor all hopeless, or they would show nothing.
    summed = [e for e in endings if e.survivors is not None]
    partial = [e for e in summed if e.survivors != e.members]
    failed = [e for e in endings if e.survivors is None]
    assert min(len(summed), len(failed)) >= len(SEEDS) // 6
    assert len(partial) >= 10  # one world in nine: of 600 it is 67
    assert all(any(why in e.reason for why in ("are needed", "too few shares", "agreed on")) for e in failed)


@pytest.mark.parametrize("seed", range(5))
def test_whoever_stays_is_in_the_sum_when_the_weather_is_fair(seed: int) -> None:
    story = Story(seed, fair=True)
    ending = story.run()
    went = sum("goes for good" in line for line in story.world.trace)
    assert ending.survivors is None or ending.survivors >= ending.members - went


def test_a_seed_is_a_replay() -> None:
    def trace() -> list[str]:
        story = Story(7)
        story.run()
        return story.world.trace

    assert trace() == trace()


class OpensBoth(Member):
    """Opens its shares of survivors' keys, too."""

    def opening(self, state: MemberState) -> Opening:
        own = super().opening(state)
        keys = {name: held.key for name, held in self.held(state).items()}
        object.__setattr__(own, "keys", by_name(keys))
        return own


class WithoutOwnMask(Member):
    """Forgets the mask of its own."""

    def masks(self, state: MemberState) -> list[Mask]:
        return super().masks(state)[1:]


class WithoutPairs(Member):
    """Forgets the masks that it shares."""

    def masks(self, state: MemberState) -> list[Mask]:
        return super().masks(state)[:1]


class Forgetful(Member):
    """Masks whatever it is given, though it has masked something else."""

    def mask(self, state: MemberState, words: Words) -> tuple[MemberState, Upload]:
        return super().mask(replace(state, payload=None), words)


@pytest.mark.parametrize(
    ("make", "symptom"),
    [
        (OpensBoth, "both secrets of"),
        (WithoutOwnMask, "is open|is not that of"),
        (WithoutPairs, "is open"),
        (Forgetful, "on two payloads"),
    ],
)
def test_a_broken_member_is_found_out(make: Make, symptom: str) -> None:
    with pytest.raises(Violation, match=symptom) as caught:
        _play_all(make)
    assert "python -m tests.simulation.secagg" in str(caught.value)


def _play_all(make: Make) -> None:
    for seed in SEEDS:
        play(seed, make=make)
