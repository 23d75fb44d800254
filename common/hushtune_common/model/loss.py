"""How is the loss of a language model's head found without ever holding the scores of all positions?

The head is by far the widest layer: its scores, their softmax and the gradient of both take more memory than the rest of a small
model's activations. Here a few positions at a time are scored, and what the layers below need of them is kept, which is as wide
as the hidden state.

Letters in shapes: B sequences, T tokens, P positions that predict, H hidden size, V vocabulary.
"""

from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

SCORES = 1 << 22
"""Scores held at once: 16 MiB of float32."""


def next_token_loss(hidden: Tensor, tokens: Tensor, *, head: nn.Linear) -> Tensor:
    """Return the mean loss in nats of predicting ``tokens[:, 1:]`` (B, T) from the ``hidden`` (B, T-1, H) below the head.

    Differentiable, once, with respect to what is below the head. A head that is trained itself takes the plain way.
    """
    wanted = tokens[:, 1:].reshape(-1)
    states = hidden.reshape(-1, hidden.shape[-1])
    if torch.is_grad_enabled() and any(p.requires_grad for p in head.parameters()):
        return functional.cross_entropy(head(states).float(), wanted)
    weight, bias = _as_multiplied(head, like=hidden)
    return cast(Tensor, _MeanLoss.apply(states, weight, bias, wanted))


def token_losses(hidden: Tensor, tokens: Tensor, *, head: nn.Linear) -> Tensor:
    """Return the loss in nats of every predicted token (B, T-1); not differentiable."""
    weight, bias = _as_multiplied(head, like=hidden)
    wanted = tokens[:, 1:].reshape(-1)
    with torch.no_grad():
        states = hidden.reshape(-1, hidden.shape[-1])
        parts = [_to_softmax(scores, wanted[at], share=1.0) for at, scores in _scored(states, weight, bias)]
    return torch.cat(parts).reshape(tokens.shape[0], -1)


class _MeanLoss(torch.autograd.Function):
    """Mean loss of states (P, H) under a frozen head; the gradient is found on the way, while the scores are at hand."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, weight: Tensor, bias: Tensor | None, wanted: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        total = torch.zeros((), device=states.device)
        gradient = torch.empty_like(states) if ctx.needs_input_grad[0] else None
        for at, scores in _scored(states, weight, bias):
            total += _to_softmax(scores, wanted[at], share=1.0 / len(wanted)).sum()
            if gradient is not None:
                # The gradient of -log softmax is the softmax, less one at the token that came.
                scores[torch.arange(len(scores), device=scores.device), wanted[at]] -= 1.0 / len(wanted)
                gradient[at] = (scores.to(weight.dtype) @ weight).to(gradient.dtype)
            del scores
        ctx.gradient = gradient
        return total / len(wanted)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, above: Tensor) -> tuple[Tensor, None, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return ctx.gradient * above, None, None, None


def _scored(states: Tensor, weight: Tensor, bias: Tensor | None) -> Iterator[tuple[slice, Tensor]]:
    """Yield float32 scores of a few positions at a time, and which they are."""
    count = max(1, SCORES // len(weight))
    for start in range(0, len(states), count):
        at = slice(start, start + count)
        yield at, functional.linear(states[at].to(weight.dtype), weight, bias).float()


def _to_softmax(scores: Tensor, wanted: Tensor, *, share: float) -> Tensor:
    """Return the loss of each position (P) from scores (P, V), which become ``share`` of their softmax in place."""
    at_wanted = scores.gather(1, wanted[:, None])
    top = scores.amax(dim=1, keepdim=True)
    total = scores.sub_(top).exp_().sum(dim=1, keepdim=True)
    scores.mul_(share / total)
    return (total.log() + top - at_wanted)[:, 0]


def _as_multiplied(head: nn.Linear, *, like: Tensor) -> tuple[Tensor, Tensor | None]:
    """Return the head's weights in the precision that products are made in here, converted once for all positions."""
    kind = like.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else head.weight.dtype
    bias = cast(Tensor | None, head.bias)
    return head.weight.detach().to(dtype), None if bias is None else bias.detach().to(dtype)
