"""Which methods are held against each other, and what does each of them leave to chance or to convention?

The average allocation gives everyone equal bands, top power, 0.7 of the top clock and the share `START_SHARE`; the alternation
and both single blocks start from there, so that differences come from the methods alone.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

import numpy as np

from hushtune_common.seeding import SeedTree
from hushtune_server.coordinator.allocators.solution import Solution
from hushtune_server.coordinator.problems.instance import Instance, evaluate

START_SHARE: Final = 0.5
OPTIMUM: Final = "global"
ORACLE: Final = "conic"

Method = Callable[[Instance, SeedTree], Solution]


@dataclass(frozen=True, slots=True, kw_only=True)
class Contender:
    """One method by name; ``says`` what it does, for a legend's reader."""

    name: str
    label: str
    says: str
    solve: Method


def contenders() -> tuple[Contender, ...]:
    """Return every method, the best first; `MissingPackage` without cvxpy, which the alternation needs."""
    from hushtune_server.coordinator.allocators import alternating, baselines, conic

    def make(name: str, label: str, says: str, solve: Method) -> Contender:
        return Contender(name=name, label=label, says=says, solve=solve)

    return (
        make(OPTIMUM, "global", "everything jointly, with a dual bound", _certified),
        make(
            "alternating_free",
            "alternating, T free",
            "two blocks in turn, the time chosen in both",
            partial(_seedless, partial(alternating.solve_alternating, variant="free", share=START_SHARE)),
        ),
        make(
            "alternating_strict",
            "alternating, T in block 2",
            "two blocks in turn, the time chosen in the second only (as published, details reconstructed)",
            partial(_seedless, partial(alternating.solve_alternating, variant="strict", share=START_SHARE)),
        ),
        make(
            "computation_only",
            "computation only",
            "shares and clocks; equal bands, top power",
            partial(_seedless, baselines.solve_computation_only),
        ),
        make(
            "communication_only",
            "communication only",
            "shares, bands, powers; top clocks, the owner's machine split evenly",
            partial(_seedless, baselines.solve_communication_only),
        ),
        make("resources_only", "resources only", f"block 2 alone, to its optimum: every share stays {START_SHARE:g}", _resources),
        make("shares_only", "shares only", "block 1 alone: bands, powers and clocks stay those of the average", _shares),
        make("secrecy_blind", "secrecy-blind", "everything jointly as if nobody listened, judged as it is", _blind),
        make("random", "random", "the best of 100 random choices", _random),
        make(
            "average",
            "average",
            f"the average allocation, every share {START_SHARE:g}",
            partial(_seedless, partial(baselines.solve_equal_share, share=START_SHARE)),
        ),
        make(ORACLE, "conic", "general conic solvers, an independent check of global", partial(_seedless, conic.solve_conic)),
    )


def _seedless(solve: Callable[[Instance], Solution], instance: Instance, seeds: SeedTree) -> Solution:
    del seeds
    return solve(instance)


def _certified(instance: Instance, seeds: SeedTree) -> Solution:
    from hushtune_server.coordinator.allocators.certificate import certify
    from hushtune_server.coordinator.allocators.structured import solve

    del seeds
    return certify(instance, solve(instance))


def _random(instance: Instance, seeds: SeedTree) -> Solution:
    from hushtune_server.coordinator.allocators.baselines import solve_random

    return solve_random(instance, seeds=seeds.child("contender"))


def _shares(instance: Instance, seeds: SeedTree) -> Solution:
    from hushtune_server.coordinator.allocators.alternating import share_block
    from hushtune_server.coordinator.allocators.baselines import even_split
    from hushtune_server.coordinator.allocators.participants import Participants

    del seeds
    who = Participants.of(instance)
    start = even_split(who.problem, share=np.full(who.problem.clients, START_SHARE))
    return who.answer(share_block(who.problem, start, variant="free"), method="shares_only")


def _resources(instance: Instance, seeds: SeedTree) -> Solution:
    from hushtune_server.coordinator.allocators.structured import solve

    del seeds
    held = np.full(instance.clients, START_SHARE)
    return replace(solve(replace(instance, share_min=held, share_max=held)), method="resources_only")


def _blind(instance: Instance, seeds: SeedTree) -> Solution:
    from hushtune_server.coordinator.allocators.structured import solve

    del seeds
    unheard = solve(replace(instance, gain_tap_mhz_per_w=np.zeros(instance.clients))).choice
    late = replace(unheard, time_s=evaluate(instance, unheard).time_s)
    return Solution(choice=late, evaluation=evaluate(instance, late), method="secrecy_blind")
