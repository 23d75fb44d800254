"""The worst-off client, eavesdroppers known by their statistics only, and solutions of a part of the clients."""

from collections.abc import Callable
from dataclasses import replace
from typing import cast

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import gammaincinv

from hushtune_server.coordinator.allocators import structured_newton as shared_by
from hushtune_server.coordinator.allocators.balance import Balance, balance
from hushtune_server.coordinator.allocators.continuous import solution_of
from hushtune_server.coordinator.allocators.model import model_of
from hushtune_server.coordinator.allocators.solution import Solution
from hushtune_server.coordinator.problems.instance import Choice, Instance
from hushtune_server.coordinator.problems.utility import Floats


def solve_max_min(instance: Instance, *, tolerance: float = 1e-10) -> Solution:
    """Return the choice with the largest ``min_n u_n / S``; every client must be usable, shares lie in ranges.

    At a level z every share is the least that gives z, and the least cost is convex in z where the utilities curve enough; then
    z over that cost has one maximum, where cost = z times the marginal cost of z.
    """
    i = instance
    if i.share_levels is not None:
        raise ValueError("max_min over share_levels is solved by levels.solve_levels")
    model = model_of(i).priced(shared_by.FIXED)
    worth_min, worth_max = i.utility.value(i.share_min), i.utility.value(i.share_max)
    low, high = float(worth_min.min()), float(worth_max.min())
    found: dict[float, Balance] = {}

    def at(level: float) -> Balance:
        if level not in found:
            share = np.clip(i.utility.share_of(np.full(i.clients, level)), i.share_min, i.share_max)
            share = np.where(worth_min >= level, i.share_min, share)
            near = next(reversed(found.values())).start if found else None
            found[level] = balance(model.with_shares(share), near, tolerance=tolerance)
        return found[level]

    def excess(level: float) -> float:
        solution = solution_of(i, at(level), method="global")
        return solution.evaluation.cost - level * float(_rises(i, at(level), level).sum())

    if excess(high) >= 0.0:
        best = high
    elif excess(low) <= 0.0:
        best = low
    else:
        best = _root(excess, low, high)
    solution = solution_of(i, at(best), method="global")
    if solution.prices is None or best <= 0.0:
        return solution
    price = solution.evaluation.cost / best
    burden = _burden(i, at(best), best, price)
    prices = replace(solution.prices, utility=price, worst_off=burden / burden.sum())
    return replace(solution, prices=prices, claim="theorem" if i.in_theorem else "none")


def _burden(instance: Instance, found: Balance, level: float, price: float) -> Floats:
    """Return how the price of the common level falls on the clients.

    In proportion to what the level costs with each; a client that reaches it with its least share exactly, or at most with its
    largest, may carry any part in between, and carries what is left.
    """
    rises = _rises(instance, found, level)
    slack = 1e-9 * max(abs(level), 1e-300)
    loose = np.abs(instance.utility.value(instance.share_min) - level) <= slack
    loose |= instance.utility.value(instance.share_max) <= level + slack
    if not loose.any():
        return rises
    rest = price - float(rises[~loose].sum())
    return np.where(loose, max(rest, 0.0) / int(loose.sum()), rises)


def _root(falling: Callable[[float], float], low: float, high: float) -> float:
    found = brentq(falling, low, high, xtol=1e-14 * max(abs(low), abs(high)), rtol=np.float64(1e-13))
    return cast(float, found)


def _rises(instance: Instance, found: Balance, level: float) -> Floats:
    """Return by how much each client's cost rises with the common level; 0 for those that are above it anyway."""
    share, marginal = found.chosen[:, 0], found.chosen[:, 6]
    above = instance.utility.value(instance.share_min) > level
    return np.where(above, 0.0, marginal / instance.utility.slope(share))


def tap_quantile(outage: float, *, antennas: int = 1, eavesdroppers: int = 1) -> float:
    """Return the factor of its mean that the gain to the strongest eavesdropper exceeds with probability ``outage``.

    Rayleigh fading; ``antennas`` that one eavesdropper combines, or that many single ones that collude, make a Gamma law;
    ``eavesdroppers`` do not collude and fade independently. The mean is that of one antenna. 0 < ``outage`` < 1.
    """
    if not 0.0 < outage < 1.0 or antennas < 1 or eavesdroppers < 1:
        raise ValueError(f"expected 0 < outage < 1 and counts of at least 1, got {outage}, {antennas}, {eavesdroppers}")
    return float(gammaincinv(antennas, (1.0 - outage) ** (1.0 / eavesdroppers)))


def with_statistical_tap(instance: Instance, *, outage: float, antennas: int = 1, eavesdroppers: int = 1) -> Instance:
    """Return the instance, its tap gains read as means, with gains that are exceeded with probability ``outage`` only.

    A rate that is secret at that gain is secret with probability 1 - ``outage``; nothing else of the problem changes.
    """
    factor = tap_quantile(outage, antennas=antennas, eavesdroppers=eavesdroppers)
    return replace(instance, gain_tap_mhz_per_w=instance.gain_tap_mhz_per_w * factor)


def spread_out(instance: Instance, solution: Solution, taking: NDArray[np.bool_]) -> Solution:
    """Return the solution of a part of the clients as one of all: the others get nothing."""
    choice, prices, part = solution.choice, solution.prices, solution.evaluation

    def whole(numbers: Floats) -> Floats:
        spread = np.zeros(instance.clients)
        spread[taking] = numbers
        return spread

    spread = Choice(
        share=whole(choice.share),
        bandwidth_mhz=whole(choice.bandwidth_mhz),
        power_w=whole(choice.power_w),
        clock_tflops=whole(choice.clock_tflops),
        server_tflops=whole(choice.server_tflops),
        time_s=choice.time_s,
    )
    evaluation = replace(
        part,
        client_time_s=whole(part.client_time_s),
        compute_energy_j=whole(part.compute_energy_j),
        radio_energy_j=whole(part.radio_energy_j),
        server_energy_j=whole(part.server_energy_j),
        secret_rate_mbps=whole(part.secret_rate_mbps),
    )
    if prices is not None:
        worst_off = None if prices.worst_off is None else whole(prices.worst_off)
        prices = replace(prices, time_per_s=whole(prices.time_per_s), worst_off=worst_off)
    return replace(solution, choice=spread, evaluation=evaluation, prices=prices)
