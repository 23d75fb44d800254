"""How far can training move one weight at all?"""

from collections.abc import Iterator
from itertools import accumulate
from math import ceil, inf, sqrt

from hushtune_common.config import TrainingConfig
from hushtune_common.model.finetune import BETAS, rate_share
from hushtune_server.owner.gatekeeper.finding import Finding
from hushtune_server.owner.gatekeeper.measure import Changes


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


def _step_bounds(steps: int) -> Iterator[float]:
    first, second = BETAS
    ratios = accumulate((first * first / second) ** k for k in range(steps))
    for step, total in enumerate(ratios, start=1):
        start = (1.0 - second**step) / (1.0 - first**step) ** 2
        yield sqrt((1.0 - first) ** 2 / (1.0 - second) * start * total)


def overreach(found: Changes, *, reach: float, reach_max: float) -> Finding | None:
    """Refuse an update of which a weight moved by more than ``reach_max`` times ``reach``."""
    name = max(found, key=lambda n: found[n].peak)
    ratio = found[name].peak / reach
    if ratio <= reach_max:
        return None
    problem = f"a weight of {name} moved by {found[name].peak:.3g}, {ratio:.3g}x what the scenario's training can reach"
    return Finding(setting="owner.gate.reach_max", value=ratio, limit=reach_max, problem=problem)
