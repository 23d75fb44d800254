"""Fine-tunes the adapter blocks of an emulator on text: a client's own, or the referee's for the upper bounds.

Letters in shapes: N windows, B of them per step, T tokens.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import ceil, isfinite, log
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.utils import clip_grad_norm_

from hushtune_common.adapter import AdapterState
from hushtune_common.config import ComputeConfig, TrainingConfig
from hushtune_common.errors import ConfigError, TrainerFailed
from hushtune_common.model.adapter import extract
from hushtune_common.model.bundle import read_bundle
from hushtune_common.model.dp import Privacy, draws, planned, secret_generator, set_private_gradient
from hushtune_common.model.governor import Governor, Unpaced
from hushtune_common.model.language import LanguageModel
from hushtune_common.model.lora import Lora, attached
from hushtune_common.model.proximal import LowRankPull, Pull, WholePull
from hushtune_common.model.rates import BETAS, rate_share
from hushtune_common.seeding import SeedTree
from hushtune_common.units import Second

__all__ = ["BETAS", "Governor", "Progress", "Unpaced", "accumulate", "batch_order", "finetune", "rate_share"]

CLIP_NORM = 1.0
PASS_TOKENS: Mapping[str, int] = {"fp32": 128, "bf16": 256}
"""Tokens that pass through the model at once on a CPU, by precision: fewer take less memory, and much fewer take longer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """After one step: its number from 1, its loss in nats per token, and totals so far; what the whole run promises."""

    step: int
    steps: int
    loss: float
    tokens: int
    cpu_s: Second
    wall_s: Second
    privacy: Privacy | None = None


def finetune(
    bundle_path: Path,
    windows: NDArray[np.int64],
    *,
    config: TrainingConfig,
    compute: ComputeConfig,
    seeds: SeedTree,
    governor: Governor,
    report: Callable[[Progress], None],
    rounds: int = 1,
    noise: np.random.Generator | None = None,
) -> AdapterState:
    """Return the adapter blocks of the emulator in ``bundle_path`` after training on ``windows`` (N, T).

    AdamW without weight decay; the learning rate rises linearly over the warm-up and falls linearly to its final share; gradients
    are clipped at norm 1. Embedding, norms outside the blocks, head and middle stay as they are. With ``config.lora`` factors are
    trained and merged, so what is returned has every tensor of the blocks either way. With ``config.proximal`` a pull towards the
    start follows every step; the losses told are without that term. ``report`` is called after every step.

    The same arguments give the same adapter, unless ``config.dp`` asks for privacy: then windows and noise are drawn from the
    operating system, and what is spent is spent by ``rounds`` such trainings together; a test may give ``noise`` that repeats.
    Raises `TrainerFailed` when the loss stops being finite.
    """
    torch.set_num_threads(compute.threads)
    torch.manual_seed(seeds.child("torch").integer())
    bundle = read_bundle(bundle_path)
    model = bundle.load(compute)
    _require_trainable(windows, vocabulary=model.vocabulary)
    lora, trained = _trainable(model, bundle.plan.adapter, config=config, seeds=seeds)
    pass_tokens = PASS_TOKENS[compute.precision]
    recipe = _recipe(
        len(windows),
        config=config,
        pass_tokens=pass_tokens,
        pull=_pull(lora, trained, config=config),
        seeds=seeds,
        noise=noise,
        rounds=rounds,
    )
    _train(
        model, torch.from_numpy(windows).to(model.device), trained, recipe=recipe, config=config, governor=governor, report=report
    )
    if lora is not None:
        lora.merge()
    return extract(model, bundle.plan.adapter)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Recipe:
    """The windows of every step, the tokens that pass at once, what draws back to the start, if anything, and, where training is
    private, how much and with which noise."""

    batches: Sequence[NDArray[np.int64]]
    pass_tokens: int
    pull: Pull | None = None
    privacy: Privacy | None = None
    noise: np.random.Generator | None = None


def _recipe(
    count: int,
    *,
    config: TrainingConfig,
    pass_tokens: int,
    pull: Pull | None,
    seeds: SeedTree,
    rounds: int,
    noise: np.random.Generator | None,
) -> _Recipe:
    if config.dp is None:
        return _Recipe(batches=batch_order(count, config=config, seeds=seeds), pass_tokens=pass_tokens, pull=pull)
    privacy = planned(config.dp, training=config, count=count, rounds=rounds)
    secret = secret_generator() if noise is None else noise
    batches = draws(privacy, count=count, noise=secret)
    return _Recipe(batches=batches, pass_tokens=pass_tokens, pull=pull, privacy=privacy, noise=secret)


def _pull(lora: Lora | None, trained: Sequence[torch.nn.Parameter], *, config: TrainingConfig) -> Pull | None:
    if not config.proximal:
        return None
    if lora is not None:
        return LowRankPull(config.proximal, lora.factors)
    return WholePull.of(trained, weight=config.proximal)


def _trainable(
    model: LanguageModel, blocks: Sequence[int], *, config: TrainingConfig, seeds: SeedTree
) -> tuple[Lora | None, list[torch.nn.Parameter]]:
    """Return what is trained: factors, or the blocks themselves."""
    if config.lora is not None:
        lora = attached(model, blocks, config=config.lora, seeds=seeds.child("lora"))
        return lora, lora.parameters
    trained = list(model.adapter_parameters(blocks).values())
    for parameter in trained:
        parameter.requires_grad_(True)
    return None, trained


def _train(
    model: LanguageModel,
    tokens: torch.Tensor,
    trained: Sequence[torch.nn.Parameter],
    *,
    recipe: _Recipe,
    config: TrainingConfig,
    governor: Governor,
    report: Callable[[Progress], None],
) -> None:
    optimizer = torch.optim.AdamW(trained, lr=config.learning_rate, betas=BETAS, weight_decay=0.0, fused=True)
    steps, seen = len(recipe.batches), 0
    loss = log(model.vocabulary)  # of a blind guess, should privacy draw no window for the first step
    for step, batch in enumerate(recipe.batches, start=1):
        governor.step_began()
        optimizer.param_groups[0]["lr"] = config.learning_rate * rate_share(step, steps=steps, config=config)
        found = _set_gradient(model, tokens[batch], trained, recipe=recipe, expected=len(tokens))
        loss = loss if found is None else found
        optimizer.step()
        if recipe.pull is not None:
            recipe.pull(optimizer)
        optimizer.zero_grad(set_to_none=True)
        governor.step_ended()
        if not isfinite(loss):
            raise TrainerFailed(f"the loss of step {step} is {loss}; lower training.learning_rate")
        seen += batch.size * tokens.shape[1]
        report(
            Progress(
                step=step,
                steps=steps,
                loss=loss,
                tokens=seen,
                cpu_s=governor.cpu_s,
                wall_s=governor.wall_s,
                privacy=recipe.privacy,
            )
        )


def _set_gradient(
    model: LanguageModel, batch: torch.Tensor, trained: Sequence[torch.nn.Parameter], *, recipe: _Recipe, expected: int
) -> float | None:
    """Set the gradients of one step and return its mean loss, if it has any windows."""
    if recipe.privacy is None or recipe.noise is None:
        loss = accumulate(model, batch, tokens_max=recipe.pass_tokens)
        clip_grad_norm_(trained, CLIP_NORM, foreach=False)
        return loss
    return set_private_gradient(
        trained,
        [partial(model.batch_loss, window) for window in batch.split(1)],
        privacy=recipe.privacy,
        expected=expected * recipe.privacy.sample_rate,
        noise=recipe.noise,
    )


def accumulate(model: LanguageModel, batch: torch.Tensor, *, tokens_max: int) -> float:
    """Add the gradient of the mean loss of a batch (B, T) and return the loss.

    On a CPU the batch passes in parts of at most ``tokens_max`` predicted tokens, but of one window at least: memory holds the
    activations of a part only.
    """
    windows = len(batch) if batch.is_cuda else max(1, tokens_max // (batch.shape[1] - 1))
    total = 0.0
    for part in batch.split(windows):
        loss = model.batch_loss(part) * (len(part) / len(batch))
        loss.backward()
        total += float(loss.detach())
    return total


def batch_order(count: int, *, config: TrainingConfig, seeds: SeedTree) -> Sequence[NDArray[np.int64]]:
    """Return the windows of every step: each epoch visits every window once, in an order drawn from the seeds."""
    steps = ceil(count / config.batch_windows)
    epochs = [seeds.child("order", str(epoch)).generator().permutation(count) for epoch in range(config.epochs)]
    return [part for order in epochs for part in np.array_split(order, steps)]


def _require_trainable(windows: NDArray[np.int64], *, vocabulary: int) -> None:
    if windows.ndim != 2 or not len(windows) or windows.shape[1] < 2:
        raise ConfigError("data.private", f"no windows to train on (shape {windows.shape}); give more text or shorter windows")
    if int(windows.min()) < 0 or int(windows.max()) >= vocabulary:
        raise ConfigError("model.source", f"token {int(windows.max())} does not exist in a vocabulary of {vocabulary}")
