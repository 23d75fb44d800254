"""The best choice where every share of a range is possible and all clients take part.

Utilities that curve enough (relative risk aversion of at least one half) make the problem convex in the square roots of the
shares, and one balance of prices is the optimum. Others are replaced, again and again, by power functions that touch them at the
current shares and curve enough (minorise and maximise, with steps cut back until the true objective rises); a last Newton run on
the true utilities then finds the stationary point exactly.
"""

from dataclasses import replace
from math import inf, isfinite
from typing import Final

import numpy as np

from hushtune_common.errors import Infeasible, SolverFailed
from hushtune_server.coordinator.allocators import structured_kernels as client
from hushtune_server.coordinator.allocators import structured_newton as shared_by
from hushtune_server.coordinator.allocators.balance import Balance, Start, balance, cold, near
from hushtune_server.coordinator.allocators.model import Model, model_of
from hushtune_server.coordinator.allocators.solution import Prices, Solution
from hushtune_server.coordinator.problems.instance import Choice, Evaluation, Instance, client_times_s, evaluate
from hushtune_server.coordinator.problems.utility import RISK_AVERSION_MIN, Floats, Objective, Utility

_TURNS: Final = 80
_CUTS: Final = 8
_SHAPE_MIN: Final = 0.02
_IMPATIENT: Final = 1e-12
_MARGIN: Final = 1e-6
"""What a message advises leaves this much room to the limit."""


def solve_continuous(instance: Instance, *, start: Start | None = None, tolerance: float = 1e-10) -> Solution:
    """Return the best choice for the objectives ratio, difference and cost; every client must be usable.

    Raises ``Infeasible`` with the constraint and the least change that helps, or ``SolverFailed``.
    """
    model = _priced(instance, model_of(instance))
    in_class = instance.utility.in_theorem(instance.share_min, instance.share_max)
    begin = _begin(instance, model, start)
    try:
        if in_class:
            found = balance(model, begin, tolerance=tolerance)
        else:
            found = _outside(instance, model, begin, warm=start is not None, tolerance=tolerance)
    except SolverFailed:
        _explain(instance, model)
        raise
    solution = solution_of(instance, found, method="global")
    _check(instance, solution)
    if instance.in_theorem:
        return replace(solution, claim="theorem")
    return replace(solution, notes=("a stationary point; not known to be the best choice unless a bound says so",))


def _begin(instance: Instance, model: Model, start: Start | None) -> Start | None:
    """Return the start, at the price of utility where the objective fixes it."""
    price = instance.objective.price
    return start if price is None else replace(cold(model) if start is None else start, utility=1.0 / price)


def solution_of(instance: Instance, found: Balance, *, method: str) -> Solution:
    """Return a balance as a solution, with the shared resources exactly within their limits."""
    choice, evaluation = outcome_of(instance, found)
    prices = Prices(
        time_per_s=found.chosen[:, 5].copy(),
        bandwidth_per_mhz=found.start.band,
        server_per_tflops=found.start.server,
        utility=_utility_price(instance, found),
        deadline_per_s=found.deadline_price,
    )
    return Solution(choice=choice, evaluation=evaluation, method=method, tier=found.tier, sweeps=found.sweeps, prices=prices)


def outcome_of(instance: Instance, found: Balance) -> tuple[Choice, Evaluation]:
    """Return what the clients do at a balance, and what that is worth; the time is when the last of them ends."""
    share, band, power, clock, server, _, _ = found.chosen.T
    i = instance
    draft = Choice(
        share=np.minimum(np.maximum(share, i.share_min), i.share_max),
        bandwidth_mhz=band * min(1.0, i.bandwidth_mhz / band.sum()),
        power_w=np.minimum(power, i.power_max_w),
        clock_tflops=np.minimum(clock, i.clock_max_tflops),
        server_tflops=server * min(1.0, i.server_tflops / server.sum()),
        time_s=inf,
    )
    if i.clock_levels is not None:  # time between two levels is shared so that the update is there just in time
        draft = replace(draft, clock_tflops=_just_in_time(i, draft, time_s=found.start.time_s))
    evaluation = evaluate(i, draft)
    return replace(draft, time_s=evaluation.time_s), evaluation


def _just_in_time(instance: Instance, draft: Choice, *, time_s: float) -> Floats:
    """Return the clocks with which training ends exactly when the round's time leaves no more, where the devices can."""
    i = instance
    work = i.train_tflop * (i.train_fixed_share + (1.0 - i.train_fixed_share) * draft.share)
    others = client_times_s(i, draft) - work / draft.clock_tflops
    clock = work / np.maximum(time_s - others, 1e-300)
    return np.where(np.abs(clock / draft.clock_tflops - 1.0) < 1e-3, np.minimum(clock, i.clock_max_tflops), draft.clock_tflops)


def start_of(solution: Solution) -> Start | None:
    """Return a start near a solution, for its clients that take part; None where it has no prices."""
    prices, part = solution.prices, solution.choice.share > 0.0
    if prices is None or not prices.bandwidth_per_mhz > 0.0 or not prices.utility > 0.0:
        return None
    choice = solution.choice
    states = np.zeros((int(part.sum()), client.STATES))
    states[:, client.LOG_THETA] = np.log(prices.time_per_s[part])
    states[:, client.LOG_SHARE] = np.log(choice.share[part])
    states[:, client.LOG_X] = np.log(choice.power_w[part] / choice.bandwidth_mhz[part])
    states[:, client.SERVER] = choice.server_tflops[part]
    if not np.isfinite(states).all():
        return None
    return Start(
        time_s=choice.time_s,
        band=prices.bandwidth_per_mhz,
        server=prices.server_per_tflops,
        utility=prices.utility,
        states=states,
    )


def _priced(instance: Instance, model: Model) -> Model:
    """Return the model with the objective's way to price utility."""
    goal = instance.objective
    if goal.kind == "ratio":
        return model.priced(shared_by.RATIO)
    if goal.kind == "difference":
        return model.priced(shared_by.FIXED)
    floor = goal.utility_min or 0.0
    least, most = (float(instance.utility.value(s).sum()) for s in (instance.share_min, instance.share_max))
    if floor > most * (1.0 + 1e-12) + 1e-300:
        below = most - _MARGIN * abs(most)
        raise Infeasible(f"objective.utility_min of {floor:g} is out of reach even at share_max: lower it to {below:.9g}")
    if floor <= least:
        return model.with_shares(instance.share_min).priced(shared_by.FIXED)
    if floor >= most * (1.0 - 1e-12):
        return model.with_shares(instance.share_max).priced(shared_by.FIXED)
    return model.priced(shared_by.FLOOR, target=floor)


def _utility_price(instance: Instance, found: Balance) -> float:
    """Return the price of utility at a balance; where a floor pins all shares, one that is consistent with that."""
    floor = instance.objective.utility_min
    if floor is None:
        return found.start.utility
    share, marginal = found.chosen[:, 0], found.chosen[:, 6]
    if (share <= instance.share_min * (1.0 + 1e-12)).all():
        return 0.0
    if (share >= instance.share_max * (1.0 - 1e-12)).all():
        return float((marginal / instance.utility.slope(share)).max())
    return found.start.utility


def _outside(instance: Instance, model: Model, start: Start | None, *, warm: bool, tolerance: float) -> Balance:
    """Minorise and maximise from two starts (one where one is given), and keep the better end."""
    first = cold(model) if start is None else start
    starts = [first]
    if instance.objective.utility_min is not None:  # only from shares that reach the floor do the surrogates reach it
        starts = [_from_shares(first, np.log(_just_enough(instance, instance.objective.utility_min)))]
    elif not warm:
        starts.append(_from_shares(first, model.rows[:, client.LOG_SHARE_MIN]))
    best, best_value, failure = None, -inf, SolverFailed("no start was tried")
    for begin in starts:
        try:
            found = _climb(instance, model, begin, tolerance=tolerance)
        except SolverFailed as problem:
            failure = problem
            continue
        value = outcome_of(instance, found)[1].objective
        if value > best_value:
            best, best_value = found, value
    if best is None and instance.objective.utility_min is not None:
        rich = _richest(instance)
        if rich.evaluation.utility >= instance.objective.utility_min:
            return _climb(instance, model, _from_shares(first, np.log(rich.choice.share)), tolerance=tolerance)
    if best is None:
        raise failure
    return best


def _from_shares(start: Start, log_share: Floats) -> Start:
    states = start.states.copy()
    states[:, client.LOG_SHARE] = log_share
    return replace(start, states=states)


def _just_enough(instance: Instance, floor: float) -> Floats:
    """Return shares that reach a floor of utility, all at the same place of their ranges."""
    low, high = 0.0, 1.0
    shares = instance.share_max
    for _ in range(60):
        middle = 0.5 * (low + high)
        tried = instance.share_min ** (1.0 - middle) * instance.share_max**middle
        if float(instance.utility.value(tried).sum()) >= floor:
            high, shares = middle, tried
        else:
            low = middle
    return shares


def _climb(instance: Instance, model: Model, start: Start, *, tolerance: float) -> Balance:
    share = np.clip(np.exp(start.states[:, client.LOG_SHARE]), instance.share_min, instance.share_max)
    found, value, sweeps = None, -inf, 0
    for _ in range(_TURNS):
        moved = balance(model.with_utility(surrogate(instance, share)), start, tolerance=tolerance)
        sweeps += moved.sweeps
        reached = _value(instance, moved)
        for _ in range(_CUTS):
            if reached >= value - _IMPATIENT * abs(value) or instance.objective.kind == "cost":
                break
            middle = np.sqrt(share * moved.chosen[:, 0])
            moved = balance(model.with_shares(middle).priced(shared_by.FIXED), moved.start, tolerance=tolerance)
            sweeps += moved.sweeps
            reached = _value(instance, moved)
        done = isfinite(value) and abs(reached - value) <= _IMPATIENT * abs(value)
        if found is not None and reached < value and instance.objective.kind != "cost":
            break
        found, value, start, share = moved, reached, moved.start, moved.chosen[:, 0].copy()
        if done:
            break
    if found is None:
        raise SolverFailed("no surrogate could be solved")
    exact = near(model, found.start, tolerance=tolerance)
    if exact is not None:
        ended = outcome_of(instance, exact)[1]
        if ended.worst < 1e-9 and ended.objective >= value - 1e-9 * abs(value):
            found = exact
    return replace(found, sweeps=sweeps)


def _value(instance: Instance, found: Balance) -> float:
    return outcome_of(instance, found)[1].objective


def surrogate(instance: Instance, share: Floats) -> Utility:
    """Return power functions that touch the utilities at these shares, as curved as these are there, but within the class."""
    utility = instance.utility
    aversion = -share * utility.curvature(share) / utility.slope(share)
    most = np.where(instance.rate_min_mbps > 0.0, _SHAPE_MIN, 1.0 - RISK_AVERSION_MIN)
    shape = np.clip(1.0 - aversion, _SHAPE_MIN, most)
    weight = utility.slope(share) * share ** (1.0 - shape) / shape
    return Utility(kind="power", weight=weight, shape=shape, offset=utility.value(share) - weight * share**shape)


def _check(instance: Instance, solution: Solution) -> None:
    worst = solution.evaluation.worst
    if worst > 1e-7:
        family = max(solution.evaluation.residuals, key=lambda name: solution.evaluation.residuals[name])
        _explain(instance, _priced(instance, model_of(instance)))
        raise SolverFailed(f"the structured solver's answer violates {family} by {worst:.1e}")


def _explain(instance: Instance, model: Model) -> None:
    """Raise ``Infeasible`` where the floor of utility cannot be met before the deadline."""
    if instance.deadline_s is not None and instance.objective.utility_min is not None:
        most = _richest(instance).evaluation.utility
        if most < instance.objective.utility_min:
            raise Infeasible(
                f"objective.utility_min of {instance.objective.utility_min:g} is out of reach before deadline_s of "
                f"{instance.deadline_s:g}: lower it to {most - _MARGIN * abs(most):.9g} or raise the deadline"
            )


def _richest(instance: Instance) -> Solution:
    """Return a choice with nearly the largest utility that the limits allow, almost whatever it costs."""
    spread = float((instance.utility.value(instance.share_max) - instance.utility.value(instance.share_min)).sum())
    price = 1e-7 * spread / (instance.time_weight_per_s * cold(model_of(instance)).time_s)
    return solve_continuous(replace(instance, objective=Objective(kind="difference", price=price)))
