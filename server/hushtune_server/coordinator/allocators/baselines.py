"""How good is an allocation that optimises little, or forgets the eavesdropper: even, random, one half only, secrecy-blind."""

from dataclasses import replace
from typing import Final

import numpy as np

from hushtune_common.errors import ConfigError, SolverFailed
from hushtune_common.seeding import SeedTree
from hushtune_server.coordinator.allocators.participants import VIOLATION_MAX, Participants
from hushtune_server.coordinator.allocators.solution import Solution
from hushtune_server.coordinator.problems.instance import Choice, Instance, evaluate
from hushtune_server.coordinator.problems.utility import Floats

CLOCK_SHARE: Final = 0.7
"""Part of the top clock at which devices run in an even split."""


def even_split(instance: Instance, *, share: Floats, clock_share: float = CLOCK_SHARE) -> Choice:
    """Return equal bands and equal parts of the owner's machine for all, top power and ``clock_share`` of the top clock."""
    n = instance.clients
    choice = Choice(
        share=share,
        bandwidth_mhz=np.full(n, instance.bandwidth_mhz / n),
        power_w=instance.power_max_w.copy(),
        clock_tflops=clock_share * instance.clock_max_tflops,
        server_tflops=np.full(n, instance.server_tflops / n),
        time_s=np.inf,
    )
    return replace(choice, time_s=evaluate(instance, choice).time_s)


def solve_equal_share(instance: Instance, *, seeds: SeedTree | None = None, share: float = 0.3) -> Solution:
    """Return the even split with every share as near to ``share`` as its range, or the levels there are, allow.

    The seeds are not used. `Infeasible` where nobody can be helped, `SolverFailed` where the even split breaks a limit.
    """
    del seeds
    if not 0.0 < share <= 1.0:
        raise ConfigError("share", f"expected a part of the adapter in (0, 1], got {share}")
    who = Participants.of(instance)
    return who.answer(even_split(who.problem, share=_nearest(who.problem, share)), method="equal_share")


def _nearest(instance: Instance, share: float) -> Floats:
    if instance.share_levels is None:
        return np.clip(np.full(instance.clients, share), instance.share_min, instance.share_max)
    grid = instance.level_grid()
    away = np.where(instance.allowed_levels(), np.abs(grid - share), np.inf)
    return grid[np.arange(instance.clients), away.argmin(axis=1)]


def solve_random(instance: Instance, *, seeds: SeedTree, draws: int = 100) -> Solution:
    """Return the best of ``draws`` random choices: shares, powers and clocks uniform, bands and machine split at random.

    Every client draws from its own stream, so that the answer does not depend on their order. `SolverFailed` where none of the
    draws keeps every limit.
    """
    if draws < 1:
        raise ConfigError("draws", f"expected at least one, got {draws}")
    who = Participants.of(instance)
    drawn = np.stack([seeds.child("random", name).generator().random((draws, 5)) for name in who.problem.names], axis=1)
    choices = [_drawn(who.problem, numbers) for numbers in drawn]  # drawn is (draws, N, 5)
    found = [evaluate(who.problem, choice) for choice in choices]
    kept = [k for k, f in enumerate(found) if f.worst <= VIOLATION_MAX]
    if not kept:
        raise SolverFailed(f"random: none of {draws} draws keeps every limit")
    best = max(kept, key=lambda k: found[k].objective)
    return who.answer(choices[best], method="random", sweeps=draws)


def _drawn(instance: Instance, numbers: Floats) -> Choice:
    """Return the choice that uniform ``numbers`` (N, 5) stand for; the splits are Dirichlet with parameter 1."""
    i, (share, band, power, clock, server) = instance, numbers.T
    parts = [-np.log1p(-part) + 1e-300 for part in (band, server)]
    choice = Choice(
        share=_levelled(i, share),
        bandwidth_mhz=i.bandwidth_mhz * parts[0] / parts[0].sum(),
        power_w=i.power_max_w * (1.0 - power),
        clock_tflops=i.clock_max_tflops * (1.0 - clock),
        server_tflops=i.server_tflops * parts[1] / parts[1].sum(),
        time_s=np.inf,
    )
    return replace(choice, time_s=evaluate(i, choice).time_s)


def _levelled(instance: Instance, uniform: Floats) -> Floats:
    """Return shares in their ranges, or one of the levels there, from numbers in [0, 1)."""
    if instance.share_levels is None:
        return instance.share_min + (instance.share_max - instance.share_min) * uniform
    allowed = instance.allowed_levels()
    rank = np.floor(uniform * allowed.sum(axis=1)).astype(np.intp)
    at = (allowed.cumsum(axis=1) == rank[:, None] + 1).argmax(axis=1)
    return instance.level_grid()[np.arange(instance.clients), at]


def solve_secrecy_blind(instance: Instance) -> Solution:
    """Return the best choice by the owner's rates alone, as if nobody listened; what it is worth, it is with the eavesdropper.

    Errors as with the method ``global``, which solves it; `SolverFailed` also where the secret rates are too low for a limit.
    """
    from hushtune_server.coordinator.allocators.structured import solve  # needs numba

    who = Participants.of(instance)
    choice = solve(replace(who.problem, gain_tap_mhz_per_w=np.zeros(who.problem.clients))).choice
    return who.answer(replace(choice, time_s=evaluate(who.problem, choice).time_s), method="secrecy_blind")


def solve_communication_only(instance: Instance, *, seeds: SeedTree | None = None, tolerance: float = 1e-9) -> Solution:
    """Return the best shares, bands and powers with every clock at its top and the owner's machine split evenly.

    The seeds are not used. Errors as with the conic method, which solves it.
    """
    from hushtune_server.coordinator.allocators.conic import feasible_start, solve_held  # needs cvxpy

    del seeds
    start = feasible_start(instance)
    active = start.share > 0.0
    clock = np.where(active, instance.clock_max_tflops, 0.0)
    server = np.where(active, instance.server_tflops / active.sum(), 0.0)
    start = replace(start, clock_tflops=clock, server_tflops=server)
    return solve_held(instance, start=start, held=frozenset({"compute"}), method="communication_only", tolerance=tolerance)


def solve_computation_only(instance: Instance, *, seeds: SeedTree | None = None, tolerance: float = 1e-9) -> Solution:
    """Return the best shares and clocks with equal bands and top powers.

    The seeds are not used. Errors as with the conic method, which solves it.
    """
    from hushtune_server.coordinator.allocators.conic import feasible_start, solve_held  # needs cvxpy

    del seeds
    start = feasible_start(instance)
    active = start.share > 0.0
    band = np.where(active, instance.bandwidth_mhz / active.sum(), 0.0)
    start = replace(start, bandwidth_mhz=band, power_w=np.where(active, instance.power_max_w, 0.0))
    return solve_held(instance, start=start, held=frozenset({"radio"}), method="computation_only", tolerance=tolerance)
