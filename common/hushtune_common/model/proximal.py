"""How is training kept near where it began? By a pull of its own after each of AdamW's steps.

The objective is the loss plus ``weight * sum (A - A_start)^2`` over the blocks as they will be returned, low-rank factors merged
(the proximal term of FedProx, Li et al. 2020, and of FedBiOT, arXiv:2406.17706). AdamW divides what it is given by the size of
past gradients, so a term put into the loss would pull with a strength that nobody set, and would be clipped with the gradient.
Here AdamW sees the loss alone, and the term is minimised exactly afterwards, in the metric in which AdamW has just moved:

    x = argmin  D (x - z)^2 / (2 rate) + weight (x - start)^2 = (D z + 2 rate weight start) / (D + 2 rate weight)

z is where AdamW went, D = sqrt(v / (1 - beta2^t)) + eps its preconditioner. (Decoupling: Loshchilov and Hutter 2019; proximal
steps in an adaptive metric: Yun, Lozano and Yang 2021. That the term goes together with AdamW in this way is reconstructed.)

Letters in shapes: r rank, R rows, C columns.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn


class Pull(Protocol):
    """Draws what is trained towards its start.

    Laws: where the gradient of the loss is minus that of the term, AdamW's step and the pull undo each other, so training
    settles where their sum is least; nothing is pulled beyond its start; AdamW's moments are those of the loss.
    """

    def __call__(self, optimizer: torch.optim.AdamW) -> None:
        """Follow the step that ``optimizer`` has just taken, at the rate that it took it with."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class WholePull:
    """Pulls parameters towards copies of what they were when this was made."""

    weight: float
    start: Sequence[tuple[nn.Parameter, Tensor]]

    @staticmethod
    def of(trained: Sequence[nn.Parameter], *, weight: float) -> "WholePull":
        """Remember where ``trained`` are now."""
        return WholePull(weight, [(p, p.detach().clone()) for p in trained])

    def __call__(self, optimizer: torch.optim.AdamW) -> None:
        """Follow one step."""
        with torch.no_grad():
            for parameter, start in self.start:
                metric, rate = _metric(optimizer, parameter)
                # As a share of the way back: where nothing was moved, nothing is rounded either.
                share = metric.add_(2.0 * rate * self.weight).reciprocal_().mul_(2.0 * rate * self.weight)
                parameter.add_(share.mul_(start - parameter))


@dataclass(frozen=True, slots=True)
class LowRankPull:
    """Pulls the products of factors towards zero: ``scale * up @ down`` with down (r, C) and up (R, r) is what joins a matrix.

    The term is quadratic in either factor while the other stands still; they take turns.
    """

    weight: float
    factors: Sequence[tuple[nn.Parameter, nn.Parameter, float]]

    def __call__(self, optimizer: torch.optim.AdamW) -> None:
        """Follow one step."""
        with torch.no_grad():
            for down, up, scale in self.factors:
                self._pull(up, down @ down.T, scale, optimizer)
                # The same for the other factor, whose numbers belong together by columns.
                self._pull(down, up.T @ up, scale, optimizer, by_columns=True)

    def _pull(
        self, factor: nn.Parameter, gram: Tensor, scale: float, optimizer: torch.optim.AdamW, *, by_columns: bool = False
    ) -> None:
        metric, rate = _metric(optimizer, factor)
        moved, metric = (factor.T, metric.T) if by_columns else (factor, metric)
        system = torch.diag_embed(metric) + 2.0 * rate * self.weight * scale**2 * gram
        solved = torch.linalg.solve(system, metric * moved)
        factor.copy_(solved.T if by_columns else solved)


def _metric(optimizer: torch.optim.AdamW, parameter: nn.Parameter) -> tuple[Tensor, float]:
    """Return what AdamW divided the parameter's step by, the caller's own, and the rate."""
    group, state = optimizer.param_groups[0], optimizer.state[parameter]
    corrected = 1.0 - group["betas"][1] ** float(state["step"])
    return (state["exp_avg_sq"] / corrected).sqrt_().add_(group["eps"]), float(group["lr"])


_conforms: tuple[type[Pull], ...] = (WholePull, LowRankPull)
