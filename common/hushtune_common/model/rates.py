"""How large are the steps of the scenario's training, how far can they move one weight at all, and an update?"""

from collections.abc import Iterator
from itertools import accumulate
from math import ceil, inf, sqrt
from typing import Final

from hushtune_common.config import TrainingConfig

BETAS: Final = (0.9, 0.95)
"""AdamW's, for the means of gradients and of their squares."""


def rate_share(step: int, *, steps: int, config: TrainingConfig) -> float:
    """Return the learning rate of ``step`` (from 1) as a share of the top one.

    Linear warm-up that reaches 1 after its share of the steps, then linear decay that reaches the final share in the last step.
    """
    warmup = max(1, round(config.warmup_share * steps))
    if step <= warmup:
        return step / warmup
    return 1.0 + (config.final_share - 1.0) * (step - warmup) / (steps - warmup)


def reach(training: TrainingConfig, *, windows: int) -> float:
    """Return the most that training on ``windows`` windows can move one weight; infinite with low-rank factors.

    Whatever the gradients are. AdamW's step is the rate times ``m / sqrt(v)``, both corrected for their start. With
    ``m = sum a_k g_k`` and ``v = sum b_k g_k**2`` over the gradients so far, Cauchy and Schwarz bound the quotient by
    ``sqrt(sum a_k**2 / b_k)``; there is no weight decay. Low-rank factors are multiplied, and their product has no such bound.
    """
    if training.lora is not None:
        return inf
    steps = training.epochs * ceil(windows / training.batch_windows)
    rates = (training.learning_rate * rate_share(t, steps=steps, config=training) for t in range(1, steps + 1))
    return sum(rate * bound for rate, bound in zip(rates, _step_bounds(steps), strict=True))


def furthest(training: TrainingConfig, *, windows: int, round_id: int) -> float:
    """Return the most that an update of round ``round_id`` (from 1) has to move one weight; infinite with low-rank factors.

    What encoding took off the updates of earlier rounds may come on top of what this round's training moves.
    """
    return round_id * reach(training, windows=windows)


def allowed(reach: float, *, reach_max: float) -> float:
    """Return how far the owner's gate lets a weight move, a hair inside, so that rounding a quotient never decides."""
    return reach * reach_max * (1.0 - 2.0**-40)


def _step_bounds(steps: int) -> Iterator[float]:
    first, second = BETAS
    ratios = accumulate((first * first / second) ** k for k in range(steps))
    for step, total in enumerate(ratios, start=1):
        start = (1.0 - second**step) / (1.0 - first**step) ** 2
        yield sqrt((1.0 - first) ** 2 / (1.0 - second) * start * total)
