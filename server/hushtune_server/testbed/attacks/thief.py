"""What does a thief do with an emulator, step by step? Opens it, heals it or has it taught, trains it on the text it has.

Letters in shapes: N windows, B of them at a time, T tokens, V vocabulary.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import isfinite
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import clip_grad_norm_

from hushtune_common.config import ComputeConfig, TrainingConfig
from hushtune_common.errors import ConfigError, TrainerFailed
from hushtune_common.model.bundle import read_bundle
from hushtune_common.model.finetune import BETAS, CLIP_NORM, batch_order, rate_share
from hushtune_common.model.language import LanguageModel
from hushtune_common.seeding import SeedTree
from hushtune_server.owner.emulators.expanded import expanded
from hushtune_server.testbed.attacks.reinsertion import Fill, reinserted

Windows = NDArray[np.int64]
Told = Callable[[int, int], None]
Api = Callable[[Tensor], Tensor]
"""Answers token ids (B, T) with logits (B, T, V): the full model behind a door that is open to all."""
Loss = Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What an attack took: numbers trained, steps, tokens seen, tokens asked the full model about, floating-point operations.

    ``flops`` is six for every number in a matrix and token (two forward, four backward), attention scores left out. An answer is
    asked for once and kept.
    """

    parameters: int = 0
    steps: int = 0
    tokens: int = 0
    queried: int = 0
    flops: float = 0.0

    def __add__(self, other: "Cost") -> "Cost":
        """Return both together; of numbers trained, the more."""
        return Cost(
            parameters=max(self.parameters, other.parameters),
            steps=self.steps + other.steps,
            tokens=self.tokens + other.tokens,
            queried=self.queried + other.queried,
            flops=self.flops + other.flops,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Loot:
    """A thief's model at some point, and what it cost so far. The model belongs to whoever holds this."""

    model: LanguageModel
    trained: tuple[nn.Parameter, ...]
    cost: Cost


def opened(bundle_path: Path, *, compute: ComputeConfig, adapter_only: bool = False, fill: Fill | None = None) -> Loot:
    """Load a bundle as a thief does: everything that was shipped as floats, shared blocks apart, gaps filled by ``fill``.

    What may be trained is every parameter, or with ``adapter_only`` those that the owner meant to be trained, in the emulator as
    it is meant to run.
    """
    torch.set_num_threads(compute.threads)
    bundle = read_bundle(bundle_path)
    if adapter_only:
        model = bundle.load(compute)
        return Loot(model=model, trained=tuple(model.adapter_parameters(bundle.plan.adapter).values()), cost=Cost())
    held = expanded(bundle.plan, bundle.file)
    held = held if fill is None else reinserted(held, fill)
    # A model takes what it loads as its own memory; training it never writes to the file.
    model = LanguageModel.build(bundle.config, held, slots=held.slots, compute=compute)
    return Loot(model=model, trained=tuple(p for p in model.module.parameters() if p.is_floating_point()), cost=Cost())


def tuned(loot: Loot, windows: Windows, *, config: TrainingConfig, seeds: SeedTree, progress: Told) -> Loot:
    """Train on ``windows`` (N, T) with the recipe of a client, in place; deterministic on a CPU.

    `TrainerFailed` names the step when the loss or the gradient stops being finite; `ConfigError` for settings that a thief has
    no use for.
    """
    return _trained(loot, windows, loss=loot.model.batch_loss, config=config, seeds=seeds, progress=progress)


def taught(loot: Loot, windows: Windows, *, api: Api, config: TrainingConfig, seeds: SeedTree, progress: Told) -> Loot:
    """Train on what ``api`` answers to ``windows`` (N, T), otherwise as `tuned`; it is asked about every token but the last.

    The loss is the mean Kullback-Leibler divergence of the student's next-token distribution from the one that was answered.
    """

    def divergence(tokens: Tensor) -> Tensor:
        with torch.no_grad():
            answers = api(tokens[:, :-1]).float().log_softmax(dim=-1)
        with loot.model.arithmetic():
            student = loot.model.logits(tokens[:, :-1]).float().log_softmax(dim=-1)
        return functional.kl_div(student.flatten(0, 1), answers.flatten(0, 1), reduction="batchmean", log_target=True)

    done = _trained(loot, windows, loss=divergence, config=config, seeds=seeds, progress=progress)
    return replace(done, cost=done.cost + Cost(queried=windows[:, :-1].size))


def _trained(loot: Loot, windows: Windows, *, loss: Loss, config: TrainingConfig, seeds: SeedTree, progress: Told) -> Loot:
    _require_plain(config)
    if windows.ndim != 2 or not len(windows) or windows.shape[1] < 2:
        raise ValueError(f"no windows to train on: shape {windows.shape}")
    for parameter in loot.trained:
        parameter.requires_grad_(True)
    batches = batch_order(len(windows), config=config, seeds=seeds)
    tokens = torch.from_numpy(windows).to(loot.model.device)
    _descend(loot.trained, [tokens[batch] for batch in batches], loss=loss, config=config, progress=progress)
    for parameter in loot.trained:
        parameter.requires_grad_(False)
        parameter.grad = None
    return replace(loot, cost=loot.cost + _cost(loot, steps=len(batches), tokens=config.epochs * windows.size))


def _descend(
    trained: Sequence[nn.Parameter], batches: Sequence[Tensor], *, loss: Loss, config: TrainingConfig, progress: Told
) -> None:
    optimizer = torch.optim.AdamW(trained, lr=config.learning_rate, betas=BETAS, weight_decay=0.0, fused=True)
    for step, batch in enumerate(batches, start=1):
        optimizer.param_groups[0]["lr"] = config.learning_rate * rate_share(step, steps=len(batches), config=config)
        optimizer.zero_grad(set_to_none=True)
        found = loss(batch)
        found.backward()
        norm = float(clip_grad_norm_(trained, CLIP_NORM, foreach=False))
        value = float(found.detach())
        if not (isfinite(value) and isfinite(norm)):
            raise TrainerFailed(f"the loss of step {step} is {value}, its gradient's norm {norm}; lower the learning rate")
        optimizer.step()
        progress(step, len(batches))


def _cost(loot: Loot, *, steps: int, tokens: int) -> Cost:
    multiplied = sum(p.numel() for p in loot.model.module.parameters() if p.ndim == 2)
    return Cost(parameters=sum(p.numel() for p in loot.trained), steps=steps, tokens=tokens, flops=6.0 * multiplied * tokens)


def _require_plain(config: TrainingConfig) -> None:
    for name in ("lora", "dp"):
        if getattr(config, name) is not None:
            raise ConfigError(f"training.{name}", "an attack trains whole parameters as well as it can; leave this out for it")
