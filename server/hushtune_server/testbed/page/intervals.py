"""How sure is a number that was measured several times? 95 % intervals over windows of text, over seeds, and of counts."""

from collections.abc import Mapping, Sequence
from math import exp, log, sqrt
from statistics import fmean, stdev
from typing import Any, Final, cast

import numpy as np
from scipy.special import stdtrit

from hushtune_common.seeding import SeedTree
from hushtune_server.testbed.emulators.statistics import Bootstrap, Interval, difference, mean_of

Json = Mapping[str, Any]

RESAMPLES: Final = 4000
_WINDOWS_MIN: Final = 5
"""Fewer windows than these say nothing about the text that they are a sample of."""


def perplexity(score: Json) -> Interval | None:
    """Return a setting's perplexity with the interval over the windows that it was scored on; nothing where they are unknown."""
    return _over_windows({"own": score}, percent=False)


def change(score: Json, base: Json) -> Interval | None:
    """Return by how many percent one setting's perplexity differs from another's, paired window by window."""
    return _over_windows({"own": score, "base": base}, percent=True)


def _over_windows(scores: Mapping[str, Json], *, percent: bool) -> Interval | None:
    arms = {name: np.array([score.get("windows_nats") or []], dtype=np.float64) for name, score in scores.items()}
    counts = {losses.shape[1] for losses in arms.values()}
    count = counts.pop()
    if counts or count < _WINDOWS_MIN:
        return None
    # The page of a run is the same whenever it is made: the resamples depend on the number of windows only.
    bootstrap = Bootstrap(windows=count, seeds=1, resamples=RESAMPLES, tree=SeedTree(count))
    found = bootstrap.interval(arms, difference("own", "base") if percent else mean_of("own"))
    ends = [100.0 * (exp(end) - 1.0) if percent else exp(end) for end in (found.value, found.low, found.high)]
    return Interval(value=ends[0], low=ends[1], high=ends[2])


def mean(values: Sequence[float]) -> Interval | None:
    """Return the mean of independent repetitions with Student's interval; nothing for fewer than two."""
    if len(values) < 2:
        return None
    middle = fmean(values)
    half = float(stdtrit(len(values) - 1, 0.975)) * stdev(values) / sqrt(len(values))
    return Interval(value=middle, low=middle - half, high=middle + half)


def ratio(values: Sequence[float]) -> Interval | None:
    """Return the mean of positive numbers with Student's interval of their logarithms, which holds no number below zero.

    Perplexities are such: their logarithms are losses, which are what varies evenly. The ends are those of the geometric mean.
    """
    if len(values) < 2 or min(values) <= 0.0:
        return None
    of_logs = cast(Interval, mean([log(value) for value in values]))
    return Interval(value=fmean(values), low=exp(of_logs.low), high=exp(of_logs.high))
