"""How sure is a difference between two arms that were scored on the same windows with the same seeds?

Letters in shapes: S training seeds, N test windows, R resamples. Scores are losses in nats per token; lower is better.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hushtune_common.seeding import SeedTree

Floats = NDArray[np.float64]
Statistic = Callable[[Mapping[str, Floats]], Floats]
"""From the means of arms by name, (R,) each or scalars, to a number for each."""

LEVEL = 0.95


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A number with the bounds of its bootstrap interval; all nan where the number does not exist."""

    value: float
    low: float
    high: float


class Bootstrap:
    """Resamples windows and seeds with replacement, the same draws for all arms, so that differences are paired.

    Laws: the same seeds give the same interval; an arm minus itself is exactly 0 in every resample; the interval of a mean over
    one seed has the spread that the windows' variance over N gives.
    """

    def __init__(self, *, windows: int, seeds: int, resamples: int, tree: SeedTree) -> None:
        """Draw the resamples: how often each window and each seed is in each of them."""
        draw = tree.child("bootstrap").generator()
        self._windows = draw.multinomial(windows, np.full(windows, 1.0 / windows), size=resamples) / windows
        self._seeds = draw.multinomial(seeds, np.full(seeds, 1.0 / seeds), size=resamples) / seeds

    def interval(self, arms: Mapping[str, Floats], statistic: Statistic) -> Interval:
        """Return ``statistic`` of the arms' means with its 95 % percentile interval.

        An arm's scores are (S, N), or (1, N) where no training seed matters.
        """
        value = float(statistic({name: np.asarray(scores.mean()) for name, scores in arms.items()}))
        resampled = statistic({name: self._means(scores) for name, scores in arms.items()})
        if not np.isfinite(value) or not np.isfinite(resampled).all():
            return Interval(value=value, low=float("nan"), high=float("nan"))
        low, high = np.quantile(resampled, [(1.0 - LEVEL) / 2, (1.0 + LEVEL) / 2])
        return Interval(value=value, low=float(low), high=float(high))

    def _means(self, scores: Floats) -> Floats:
        """Return the mean over resampled seeds and windows, (R,)."""
        over_seeds = self._seeds @ scores if len(scores) > 1 else scores  # (R, N) or (1, N)
        return (over_seeds * self._windows).sum(axis=1)


def mean_of(arm: str) -> Statistic:
    """Return the mean of one arm."""
    return lambda means: means[arm]


def difference(first: str, second: str) -> Statistic:
    """Return the first arm minus the second."""
    return lambda means: means[first] - means[second]


def recovery(*, start: str, reached: str, best: str) -> Statistic:
    """Return the share of the way from ``start`` to ``best`` that ``reached`` went, in log-perplexity.

    0 is the model as it was, 1 is full fine-tuning. nan when full fine-tuning gained nothing, so that there is nothing to share.
    """

    def share(means: Mapping[str, Floats]) -> Floats:
        gain = means[start] - means[best]
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(gain > 0.0, (means[start] - means[reached]) / gain, np.nan)

    return share
