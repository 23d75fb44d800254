"""How well will adapter blocks that were trained on this emulator do in the full model? Asked before anyone trains.

Three answers on public text alone: how alike the adapter blocks' gradients are, how alike the middles' outputs are, and a short
rehearsal that trains the adapter blocks on the emulator and plugs them in.

Letters in shapes: N windows, T tokens, H hidden size, P numbers of the adapter blocks.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hushtune_common.config import TrainingConfig
from hushtune_common.model.finetune import BETAS, CLIP_NORM, batch_order, rate_share
from hushtune_common.model.language import LanguageModel
from hushtune_common.seeding import SeedTree

Windows = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fidelity:
    """Gradients of the adapter blocks on the emulator against those in the full model, on the same public windows.

    ``cosine`` and ``norm_ratio`` are over all adapter blocks, ``block_cosines`` by original index; ``cka`` is the similarity of
    the states behind the middle. 1 everywhere is a perfect emulator, which also gives everything away.
    """

    cosine: float
    norm_ratio: float
    block_cosines: dict[int, float]
    cka: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Rehearsal:
    """Losses in nats per token on held-out public text: of the full model as it is, with adapter blocks that were trained on the
    emulator (the predicted plug-in), and with those that the same training in the full model gives (its bound)."""

    before: float
    plug_in: float
    bound: float

    @property
    def retained(self) -> float:
        """Share of the bound's gain that the plug-in keeps; 0 when there was nothing to gain."""
        gain = self.before - self.bound
        return (self.before - self.plug_in) / gain if gain > 0.0 else 0.0


def fidelity(full: LanguageModel, emulator: LanguageModel, windows: Windows, *, adapter: Sequence[int]) -> Fidelity:
    """Compare gradients of the mean loss over ``windows`` (N, T), and hidden states behind the last middle block.

    Both models are left as they were. Gradients are of one pass over all windows, in batches of eight.
    """
    ours, theirs = (_gradients(model, windows, adapter=adapter) for model in (emulator, full))
    dots = {b: float(torch.dot(ours[b], theirs[b])) for b in adapter}
    squares = {b: (float(ours[b].square().sum()), float(theirs[b].square().sum())) for b in adapter}
    own, reference = (sum(pair[k] for pair in squares.values()) for k in (0, 1))
    return Fidelity(
        cosine=_cosine(sum(dots.values()), own, reference),
        norm_ratio=sqrt(own / reference) if reference > 0.0 else 0.0,
        block_cosines={b: _cosine(dots[b], *squares[b]) for b in adapter},
        cka=_cka_behind_middle(full, emulator, windows, adapter=adapter),
    )


def rehearse(
    full: LanguageModel,
    emulator: LanguageModel,
    windows: Windows,
    *,
    adapter: Sequence[int],
    config: TrainingConfig,
    seeds: SeedTree,
) -> Rehearsal:
    """Train the adapter blocks on the first three quarters of ``windows``, on both models, and score them in the full model.

    Both models are left as they were.
    """
    cut = max(1, 3 * len(windows) // 4)
    train, held = windows[:cut], windows[cut:]
    if not len(held):
        raise ValueError("a rehearsal needs at least two windows")
    before = full.loss(held)
    start = {n: p.detach().clone() for n, p in full.adapter_parameters(adapter).items()}
    scores: list[float] = []
    for model in (emulator, full):
        _train(model, train, adapter=adapter, config=config, seeds=seeds)
        _copy({n: p.detach() for n, p in model.adapter_parameters(adapter).items()}, into=full)
        scores.append(full.loss(held))
        for changed in (model, full):
            _copy(start, into=changed)
    return Rehearsal(before=before, plug_in=scores[0], bound=scores[1])


def linear_cka(x: Tensor, y: Tensor) -> float:
    """Return the centred kernel alignment of two sets of rows (N, H) with linear kernels (Kornblith et al. 2019, equation 4)."""
    x, y = (z.double() - z.double().mean(dim=0) for z in (x, y))
    across = float((x.T @ y).square().sum())
    own = float((x.T @ x).square().sum()) * float((y.T @ y).square().sum())
    return across / sqrt(own) if own > 0.0 else 0.0


def _gradients(model: LanguageModel, windows: Windows, *, adapter: Sequence[int]) -> dict[int, Tensor]:
    """Return the gradient of the mean loss by adapter block, flat."""
    blocks = {b: list(model.adapter_parameters([b]).values()) for b in adapter}
    parameters = [p for own in blocks.values() for p in own]
    _require_gradients(parameters, wanted=True)
    for batch in torch.from_numpy(windows).to(model.device).split(8):
        (model.batch_loss(batch) * (len(batch) / len(windows))).backward()
    found = {b: torch.cat([_taken(p).flatten() for p in own]).double() for b, own in blocks.items()}
    _require_gradients(parameters, wanted=False)
    return found


def _taken(parameter: Tensor) -> Tensor:
    gradient, parameter.grad = parameter.grad, None
    return torch.zeros_like(parameter) if gradient is None else gradient


def _require_gradients(parameters: Sequence[Tensor], *, wanted: bool) -> None:
    for parameter in parameters:
        parameter.requires_grad_(wanted)


def _cosine(dot: float, own: float, reference: float) -> float:
    return dot / sqrt(own * reference) if own > 0.0 and reference > 0.0 else 0.0


def _cka_behind_middle(full: LanguageModel, emulator: LanguageModel, windows: Windows, *, adapter: Sequence[int]) -> float:
    middle = [b for b in full.blocks if b not in adapter]
    if not middle:
        return 1.0
    states = [_states_behind(model, windows, block=middle[-1]) for model in (full, emulator)]
    return linear_cka(states[0], states[1])


def _states_behind(model: LanguageModel, windows: Windows, *, block: int) -> Tensor:
    """Return the states (N T, H) behind the last thing that stands at ``block`` or before it."""
    positions = [k for k, b in enumerate(model.blocks) if b <= block]
    with torch.inference_mode():
        batches = torch.from_numpy(windows).to(model.device).split(8)
        found = [model.parts.run(model.parts.embed(tokens), blocks=positions).hidden.flatten(0, 1) for tokens in batches]
    return torch.cat(found)


def _train(model: LanguageModel, windows: Windows, *, adapter: Sequence[int], config: TrainingConfig, seeds: SeedTree) -> None:
    parameters = list(model.adapter_parameters(adapter).values())
    _require_gradients(parameters, wanted=True)
    optimizer = torch.optim.AdamW(parameters, lr=config.learning_rate, betas=BETAS, weight_decay=0.0, fused=True)
    batches = batch_order(len(windows), config=config, seeds=seeds)
    tokens = torch.from_numpy(windows).to(model.device)
    for step, batch in enumerate(batches, start=1):
        optimizer.param_groups[0]["lr"] = config.learning_rate * rate_share(step, steps=len(batches), config=config)
        optimizer.zero_grad(set_to_none=True)
        model.batch_loss(tokens[batch]).backward()
        torch.nn.utils.clip_grad_norm_(parameters, CLIP_NORM, foreach=False)
        optimizer.step()
    for parameter in parameters:
        parameter.grad = None
    _require_gradients(parameters, wanted=False)


def _copy(tensors: dict[str, Tensor], *, into: LanguageModel) -> None:
    own = into.adapter_parameters(into.blocks)
    with torch.no_grad():
        for name, value in tensors.items():
            own[name].copy_(value)
