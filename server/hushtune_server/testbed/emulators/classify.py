"""How well does an encoder tell classes of text apart, and how is it trained to?

A linear head stands on the mean over a text's tokens. It is the client's own: only the adapter blocks travel.

Letters in shapes: N texts, B of them per step, H hidden size, C classes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import isfinite

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils import clip_grad_norm_

from hushtune_common.adapter import AdapterState, Float32
from hushtune_common.config import TrainingConfig
from hushtune_common.errors import ConfigError, TrainerFailed
from hushtune_common.model.adapter import extract
from hushtune_common.model.encoder import EncoderModel
from hushtune_common.model.finetune import BETAS, CLIP_NORM, batch_order, rate_share
from hushtune_common.seeding import SeedTree

Labels = NDArray[np.int64]
Texts = Sequence[Sequence[int]]
"""Token ids of every text, special ones included, as `Tokens.sequences` gives them."""

PROBE_PENALTY = 0.1
"""On half the squared weights of a linear probe, whose features are standardised."""
START_PENALTY = 1.0
"""Likewise for the head that training starts from: a head fitted closely to the emulator does not suit the full model."""
PROBE_STEPS = 200


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Head:
    """A linear classifier: class scores are ``weight @ features + bias``; ``weight`` is (C, H), ``bias`` (C,)."""

    weight: Float32
    bias: Float32

    def __post_init__(self) -> None:
        """Refuse shapes that do not belong together."""
        if self.weight.ndim != 2 or self.bias.shape != self.weight.shape[:1]:
            raise ValueError(f"a head of weight {self.weight.shape} and bias {self.bias.shape}")

    def scores(self, features: Float32) -> Float32:
        """Return (N, C) for features (N, H)."""
        return features @ self.weight.T + self.bias


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """After one step of training: its number from 1, how many there are, and the loss of its batch in nats per text."""

    step: int
    steps: int
    loss: float


def classify(
    model: EncoderModel,
    texts: Texts,
    labels: Labels,
    *,
    trained_blocks: Sequence[int],
    config: TrainingConfig,
    seeds: SeedTree,
    report: Callable[[Step], None] = lambda step: None,
) -> tuple[AdapterState, Head]:
    """Return ``trained_blocks`` and a head after training both on ``texts`` with ``labels`` (N,); ``model`` is changed in place.

    The head starts as the linear probe of the untrained model, so that its first, arbitrary answers do not bend the blocks
    (Kumar et al. 2022, arXiv 2202.10054). Then AdamW with the schedule and clipping of `finetune` trains both at one rate;
    ``config.batch_windows`` counts texts. The same arguments give the same result. Raises `TrainerFailed` when the loss stops
    being finite, ``ValueError`` for labels that do not fit, `ConfigError` for options that only language models have.
    """
    if config.lora is not None or config.dp is not None:
        raise ConfigError("training", "lora and dp are options of language models; leave them out for an encoder")
    start = linear_probe(model.features(texts), labels, penalty=START_PENALTY)
    torch.manual_seed(seeds.child("torch").integer())
    weight, bias = (nn.Parameter(torch.tensor(t, device=model.device)) for t in (start.weight, start.bias))
    blocks = list(model.adapter_parameters(trained_blocks).values())
    for parameter in blocks:
        parameter.requires_grad_(True)
    trained = [*blocks, weight, bias]
    optimizer = torch.optim.AdamW(trained, lr=config.learning_rate, betas=BETAS, weight_decay=0.0, fused=True)
    wanted = torch.from_numpy(labels).to(model.device)
    batches = batch_order(len(texts), config=config, seeds=seeds)
    for step, batch in enumerate(batches, start=1):
        optimizer.param_groups[0]["lr"] = config.learning_rate * rate_share(step, steps=len(batches), config=config)
        optimizer.zero_grad(set_to_none=True)
        pooled = model.pooled(*model.batch([texts[int(n)] for n in batch]))
        loss = cross_entropy(nn.functional.linear(pooled, weight, bias), wanted[batch])
        loss.backward()
        clip_grad_norm_(trained, CLIP_NORM, foreach=False)
        optimizer.step()
        _require_finite(found := float(loss.detach()), step=step)
        report(Step(step=step, steps=len(batches), loss=found))
    for parameter in blocks:
        parameter.requires_grad_(False)
    return extract(model, trained_blocks), Head(weight=_numbers(weight), bias=_numbers(bias))


def linear_probe(features: Float32, labels: Labels, *, penalty: float = PROBE_PENALTY) -> Head:
    """Return the head that minimises the mean cross-entropy on ``features`` (N, H) plus a penalty on its weights.

    Features are standardised first, and the standardisation is folded into the head. Solved in float64 by L-BFGS; draws nothing.
    """
    classes = _require_labels(labels, count=len(features))
    x = torch.from_numpy(features).double()
    centre, spread = x.mean(dim=0), x.std(dim=0, unbiased=False).clamp_min(1e-6)
    x = (x - centre) / spread
    weight = torch.zeros(classes, x.shape[1], dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(classes, dtype=torch.float64, requires_grad=True)
    wanted = torch.from_numpy(labels)
    solver = torch.optim.LBFGS(
        [weight, bias], max_iter=PROBE_STEPS, history_size=10, line_search_fn="strong_wolfe", tolerance_grad=1e-6
    )

    def objective() -> Tensor:
        solver.zero_grad()
        value = cross_entropy(x @ weight.T + bias, wanted) + 0.5 * penalty * (weight**2).sum()
        value.backward()
        return value

    solver.step(objective)  # pyright: ignore[reportArgumentType] - L-BFGS takes the loss as a tensor too
    folded = weight.detach() / spread
    return Head(weight=_numbers(folded), bias=_numbers(bias.detach() - folded @ centre))


def correct(model: EncoderModel, head: Head, texts: Texts, labels: Labels) -> NDArray[np.bool_]:
    """Return for each of N texts whether its class is found."""
    return head.scores(model.features(texts)).argmax(axis=1) == labels


def accuracy(model: EncoderModel, head: Head, texts: Texts, labels: Labels) -> float:
    """Return the share of texts whose class is found."""
    return float(correct(model, head, texts, labels).mean())


def _require_labels(labels: Labels, *, count: int) -> int:
    """Return the number of classes."""
    if labels.shape != (count,) or not count or int(labels.min()) < 0:
        raise ValueError(f"labels of shape {labels.shape} for {count} texts; each is a class number from 0")
    return int(labels.max()) + 1


def _require_finite(loss: float, *, step: int) -> None:
    if not isfinite(loss):
        raise TrainerFailed(f"the loss of step {step} is {loss}; lower training.learning_rate")


def _numbers(tensor: Tensor) -> Float32:
    return np.ascontiguousarray(tensor.detach().cpu().numpy(), dtype=np.float32)
