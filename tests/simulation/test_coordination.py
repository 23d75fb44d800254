"""Is a run safe under faults, and does it end once they stop?"""

from collections.abc import Callable
from dataclasses import replace
from math import inf

import pytest

from hushtune_common.messages import UpdateKey
from hushtune_common.units import Second
from hushtune_server.coordinator.events import ChannelChanged, Completed, Event, Joined, Reported, Settled, Solved
from hushtune_server.coordinator.phases import Assigned, Closed, Failed, Rules, Settling, State
from hushtune_server.coordinator.rounds import Step, advance
from tests.simulation.coordination import Story, play
from tests.simulation.simulator import Violation

SEEDS = range(400)


@pytest.mark.slow
def test_no_law_breaks_and_every_run_ends() -> None:
    endings = [play(seed) for seed in SEEDS]

    # The worlds must be neither all mild nor all hopeless, or they would show nothing.
    closed = sum(isinstance(e.state.phase, Closed) for e in endings)
    failed = sum(isinstance(e.state.phase, Failed) for e in endings)
    assert closed + failed == len(SEEDS)
    assert min(closed, failed) >= len(SEEDS) // 5
    assert sum(e.shared_again > 0 for e in endings) >= len(SEEDS) // 20
    assert sum(e.followed > 0 for e in endings) >= len(SEEDS) // 10


@pytest.mark.slow
def test_no_law_breaks_and_every_run_ends_where_updates_are_only_added() -> None:
    endings = [play(seed, adds=True) for seed in range(200)]
    closed = sum(isinstance(e.state.phase, Closed) for e in endings)
    assert min(closed, len(endings) - closed) >= len(endings) // 10
    assert sum(e.vowed > 0 for e in endings) >= len(endings) // 5


@pytest.mark.parametrize("seed", range(10))
def test_without_faults_the_survivors_of_every_round_stand_to_each_other(seed: int) -> None:
    ending = play(seed, fair=True, adds=True)
    assert isinstance(ending.state.phase, Closed)
    assert ending.vowed == ending.state.round_id


@pytest.mark.parametrize("seed", range(10))
def test_without_faults_every_round_closes_with_everybody(seed: int) -> None:
    ending = play(seed, fair=True)

    assert isinstance(ending.state.phase, Closed)
    assert not ending.state.phase.missing


def test_a_seed_is_a_replay() -> None:
    def trace() -> list[str]:
        story = Story(4)
        story.run()
        return story.world.trace

    assert trace() == trace()


def without_round_check(state: State, event: Event, *, rules: Rules) -> Step:
    """A machine that takes every message for one of the round in progress."""

    def moved(key: UpdateKey) -> UpdateKey:
        return replace(key, round_id=state.round_id)

    match event:
        case Settled():
            event = replace(event, settlement=replace(event.settlement, key=moved(event.settlement.key)))
        case Completed():
            event = replace(event, completion=replace(event.completion, key=moved(event.completion.key)))
        case Reported():
            event = replace(event, report=replace(event.report, round_id=state.round_id))
        case _:
            pass
    return advance(state, event, rules=rules)


def without_timeout(state: State, event: Event, *, rules: Rules) -> Step:
    """A machine whose rounds may last for ever."""
    return advance(state, event, rules=replace(rules, round_s=Second(inf), report_s=Second(inf)))


def forgetful(state: State, event: Event, *, rules: Rules) -> Step:
    """A machine that acts on judgements that change nothing."""
    after, effects = advance(state, event, rules=rules)
    return (
        (replace(after, next_seq=after.next_seq + 1), effects)
        if after is state and isinstance(event, Settled)
        else (after, effects)
    )


def spendthrift(state: State, event: Event, *, rules: Rules) -> Step:
    """A machine that believes a new solution as it is, and takes back at once what it gives to others."""
    before = state.phase
    if isinstance(before, Assigned | Settling) and isinstance(event, Solved) and event.order:
        state = replace(state, phase=replace(before, round=replace(before.round, held=dict.fromkeys(before.round.held, 0.0))))
    return advance(state, event, rules=rules)


def complacent(state: State, event: Event, *, rules: Rules) -> Step:
    """A machine that notes another channel and lets the assignments stand."""
    before = state.phase
    after, effects = advance(state, event, rules=rules)
    if isinstance(event, ChannelChanged) and isinstance(before, Assigned | Settling) and isinstance(after.phase, type(before)):
        kept = before.round
        round_ = replace(after.phase.round, changed=kept.changed, ordered=kept.ordered, orders=kept.orders)
        return replace(after, phase=replace(after.phase, round=round_)), ()
    return after, effects


def impatient(state: State, event: Event, *, rules: Rules) -> Step:
    """A machine that takes a member's return for its whole word, and opens rounds without waiting for what is missing."""
    after, effects = advance(state, event, rules=replace(rules, measured=False))
    if isinstance(event, Joined) and event.curve is None:
        after = replace(after, curve=None)
    return after, effects


@pytest.mark.parametrize(
    ("machine", "symptom"),
    [
        (impatient, "before anybody told|the owner's newest word"),
        (complacent, "another channel than its newest"),
        (spendthrift, "assigned or on air"),
        (without_round_check, "the owner never said so"),
        (without_timeout, "did not end"),
        (forgetful, "not numbered in order"),
    ],
)
def test_a_broken_machine_is_caught(machine: Callable[..., Step], symptom: str) -> None:
    with pytest.raises(Violation, match=symptom) as caught:
        _play_all(machine)

    assert "python -m tests.simulation.coordination" in str(caught.value)


def _play_all(machine: Callable[..., Step]) -> None:
    for seed in SEEDS:
        play(seed, machine=machine)
