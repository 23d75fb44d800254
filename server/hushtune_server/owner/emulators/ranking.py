"""Which middle blocks can go first, by each of the rankings?

For methods that drop blocks and for those that do something else with the gap. Scores are rounded before they decide, so that the
ranking is the one that the plan shows and last-digit differences of machines do not matter; equal scores let the lower index go.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from hushtune_common.errors import ConfigError
from hushtune_common.methods import InfluenceOptions, Ranking
from hushtune_common.model.plan import Rounding, kept_positions
from hushtune_server.owner.emulators.method import EmulatorRequest, Profile, Statistic

DIGITS = 4
"""Decimals of nats and of influences that decide."""

ADJACENT_MAX = InfluenceOptions().adjacent_max

_NEEDS: Mapping[Ranking, frozenset[Statistic]] = {
    "uniform": frozenset(),
    "influence": frozenset({Statistic.INFLUENCE}),
    "ablation": frozenset({Statistic.ABLATION_LOSS}),
    "greedy": frozenset({Statistic.GREEDY_ORDER}),
}


def needs_of(ranking: Ranking) -> frozenset[Statistic]:
    """Return what the profile must hold for a ranking."""
    return _NEEDS[ranking]


def ranked(ranking: Ranking, profile: Profile, request: EmulatorRequest, drop: int) -> frozenset[int]:
    """Return the ``drop`` middle blocks that can go first.

    ``ValueError`` when the profile lacks the statistic, `ConfigError` when the middle has fewer blocks or none of its choices has
    few enough neighbours (``influence``).
    """
    request.require_droppable(drop, option="drop")
    match ranking:
        case "uniform":
            return all_but_evenly_spaced(request, drop=drop)
        case "influence":
            return least_turning(influences(profile, request), drop=drop, adjacent_max=ADJACENT_MAX)
        case "ablation":
            return frozenset(least_missed(ablation_rises(profile, request))[:drop])
        case "greedy":
            return frozenset(greedy_order(profile, request, drop=drop))


def most_droppable(ranking: Ranking, request: EmulatorRequest) -> int:
    """Return how many blocks `ranked` can give at most."""
    return most_apart(request.middle, adjacent_max=ADJACENT_MAX) if ranking == "influence" else len(request.middle)


def evidence(ranking: Ranking, profile: Profile, request: EmulatorRequest, drop: int) -> dict[str, Any]:
    """Return the statistics that decided, as plain JSON for a plan's parameters; rounded as they were when they decided."""
    if ranking == "uniform":
        return {}
    seen: dict[str, Any] = {"profile_tokens": profile.tokens, "loss_nats": round(profile.loss, DIGITS)}
    match ranking:
        case "influence":
            return seen | {"influence": _by_text(influences(profile, request))}
        case "ablation":
            return seen | {"loss_rise_nats": _by_text(ablation_rises(profile, request))}
        case "greedy":
            order = greedy_order(profile, request, drop=drop)
            rises = [round(loss - profile.loss, DIGITS) for loss in profile.greedy_losses[:drop]]
            return seen | {"greedy_order": list(order), "greedy_rise_nats": rises}


def all_but_evenly_spaced(request: EmulatorRequest, *, drop: int, rounding: Rounding = "half_up") -> frozenset[int]:
    """Return the middle blocks that are left out when evenly spaced ones stay."""
    middle = request.middle
    return frozenset(middle) - {middle[k] for k in kept_positions(len(middle) - drop, of=len(middle), rounding=rounding)}


def ablation_rises(profile: Profile, request: EmulatorRequest) -> dict[int, float]:
    """Return by how many nats the loss rises without each middle block; ``ValueError`` when that was not measured."""
    losses = measured(profile.ablation_losses, request, what="ablation loss")
    return {b: round(loss - profile.loss, DIGITS) for b, loss in losses.items()}


def influences(profile: Profile, request: EmulatorRequest) -> dict[int, float]:
    """Return how far each middle block turns the hidden state; ``ValueError`` when that was not measured."""
    return {b: round(v, DIGITS) for b, v in measured(profile.influences, request, what="influence").items()}


def greedy_order(profile: Profile, request: EmulatorRequest, *, drop: int) -> tuple[int, ...]:
    """Return the first ``drop`` blocks that go; ``ValueError`` when fewer were measured."""
    order = profile.greedy_order
    if len(order) < drop or not set(order) <= set(request.middle):
        raise ValueError(f"the profile has a greedy order of {len(order)} middle blocks, {drop} are to go")
    return order[:drop]


def least_missed(scores: Mapping[int, float]) -> list[int]:
    """Return the blocks in the order in which they can go, the smallest score first."""
    return sorted(scores, key=lambda b: (scores[b], b))


def least_turning(scores: Mapping[int, float], *, drop: int, adjacent_max: int) -> frozenset[int]:
    """Return the ``drop`` blocks of least total score of which never more than ``adjacent_max`` are neighbours.

    Exact, by dynamic programming over the blocks in order: taking the lowest one by one can end where no block is allowed any
    more. `ConfigError` when there is no such choice.
    """
    blocks = sorted(scores)
    # By (how many are dropped, how many of those are the last ones in a row): least total in the last digit, and which they are.
    best: dict[tuple[int, int], tuple[int, tuple[int, ...]]] = {(0, 0): (0, ())}
    for position, block in enumerate(blocks):
        joined = position > 0 and blocks[position - 1] == block - 1
        following: dict[tuple[int, int], tuple[int, tuple[int, ...]]] = {}
        for (count, run), (total, chosen) in best.items():
            dropped = total + round(scores[block] * 10**DIGITS), (*chosen, block)
            longer = (run if joined else 0) + 1
            options = [((count, 0), (total, chosen))]
            if count < drop and longer <= adjacent_max:
                options.append(((count + 1, longer), dropped))
            for key, value in options:
                following[key] = min(following.get(key, value), value)
        best = following
    found = [value for (count, _), value in best.items() if count == drop]
    if not found:
        most = max(count for count, _ in best)
        raise ConfigError(
            "owner.emulator.drop",
            f"at most {most} of {len(blocks)} middle blocks can go with at most {adjacent_max} neighbours, not {drop}",
        )
    return frozenset(min(found)[1])


def most_apart(middle: Sequence[int], *, adjacent_max: int) -> int:
    """Return how many blocks can go at most when never more than ``adjacent_max`` of them are neighbours."""
    total = run = 0
    for position, block in enumerate(middle):
        joined = position > 0 and middle[position - 1] == block - 1
        run = run + 1 if joined else 1
        # In a row of neighbours every (adjacent_max + 1)-th one stays.
        total += run % (adjacent_max + 1) != 0
    return total


def measured(statistic: Mapping[int, float], request: EmulatorRequest, *, what: str) -> dict[int, float]:
    """Return a statistic of every middle block; ``ValueError`` names the first that was not measured."""
    missing = sorted(set(request.middle) - set(statistic))
    if missing:
        raise ValueError(f"the profile has no {what} of block {missing[0]}")
    return {b: statistic[b] for b in request.middle}


def _by_text(scores: Mapping[int, float]) -> dict[str, float]:
    return {str(b): score for b, score in scores.items()}
