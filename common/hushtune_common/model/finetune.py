"""Fine-tunes the adapter blocks of an emulator on text: a client's own, or the referee's for the upper bounds.

Letters in shapes: N windows, B of them per step, T tokens.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil, isfinite
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
from hushtune_common.model.governor import Governor, Unpaced
from hushtune_common.model.language import LanguageModel
from hushtune_common.seeding import SeedTree
from hushtune_common.units import Second

__all__ = ["Governor", "Progress", "Unpaced", "batch_order", "finetune", "rate_share"]

BETAS = (0.9, 0.95)
CLIP_NORM = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """After one step: its number from 1, its loss in nats per token, and totals so far."""

    step: int
    steps: int
    loss: float
    tokens: int
    cpu_s: Second
    wall_s: Second


def finetune(
    bundle_path: Path,
    windows: NDArray[np.int64],
    *,
    config: TrainingConfig,
    compute: ComputeConfig,
    seeds: SeedTree,
    governor: Governor,
    report: Callable[[Progress], None],
) -> AdapterState:
    """Return the adapter blocks of the emulator in ``bundle_path`` after training on ``windows`` (N, T).

    AdamW without weight decay; the learning rate rises linearly over the warm-up and falls linearly to its final share; gradients
    are clipped at norm 1. Embedding, norms outside the blocks, head and middle stay as they are. ``report`` is called after every
    step. The same arguments give the same adapter. Raises `TrainerFailed` when the loss stops being finite.
    """
    torch.set_num_threads(compute.threads)
    torch.manual_seed(seeds.child("torch").integer())
    bundle = read_bundle(bundle_path)
    model = bundle.load(compute)
    _require_trainable(windows, vocabulary=model.vocabulary)
    trained = list(model.adapter_parameters(bundle.plan.adapter).values())
    for parameter in trained:
        parameter.requires_grad_(True)
    optimizer = torch.optim.AdamW(trained, lr=config.learning_rate, betas=BETAS, weight_decay=0.0, fused=True)
    batches = batch_order(len(windows), config=config, seeds=seeds)
    tokens = torch.from_numpy(windows).to(model.device)
    for step, batch in enumerate(batches, start=1):
        governor.step_began()
        optimizer.param_groups[0]["lr"] = config.learning_rate * rate_share(step, steps=len(batches), config=config)
        loss = _step(model, tokens[batch], trained=trained, optimizer=optimizer)
        governor.step_ended()
        if not isfinite(loss):
            raise TrainerFailed(f"the loss of step {step} is {loss}; lower training.learning_rate")
        seen = windows.shape[1] * sum(len(b) for b in batches[:step])
        report(Progress(step=step, steps=len(batches), loss=loss, tokens=seen, cpu_s=governor.cpu_s, wall_s=governor.wall_s))
    return extract(model, bundle.plan.adapter)


def batch_order(count: int, *, config: TrainingConfig, seeds: SeedTree) -> Sequence[NDArray[np.int64]]:
    """Return the windows of every step: each epoch visits every window once, in an order drawn from the seeds."""
    steps = ceil(count / config.batch_windows)
    epochs = [seeds.child("order", str(epoch)).generator().permutation(count) for epoch in range(config.epochs)]
    return [part for order in epochs for part in np.array_split(order, steps)]


def rate_share(step: int, *, steps: int, config: TrainingConfig) -> float:
    """Return the learning rate of ``step`` (from 1) as a share of the top one.

    Linear warm-up that reaches 1 after its share of the steps, then linear decay that reaches the final share in the last step.
    """
    warmup = max(1, round(config.warmup_share * steps))
    if step <= warmup:
        return step / warmup
    return 1.0 + (config.final_share - 1.0) * (step - warmup) / (steps - warmup)


def _step(
    model: LanguageModel,
    tokens: torch.Tensor,
    *,
    trained: Sequence[torch.nn.Parameter],
    optimizer: torch.optim.Optimizer,
) -> float:
    optimizer.zero_grad(set_to_none=True)
    loss = model.batch_loss(tokens)
    loss.backward()
    clip_grad_norm_(trained, CLIP_NORM, foreach=False)
    optimizer.step()
    return float(loss.detach())


def _require_trainable(windows: NDArray[np.int64], *, vocabulary: int) -> None:
    if windows.ndim != 2 or not len(windows) or windows.shape[1] < 2:
        raise ConfigError("data.private", f"no windows to train on (shape {windows.shape}); give more text or shorter windows")
    if int(windows.min()) < 0 or int(windows.max()) >= vocabulary:
        raise ConfigError("model.source", f"token {int(windows.max())} does not exist in a vocabulary of {vocabulary}")
