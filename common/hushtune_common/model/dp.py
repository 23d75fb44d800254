"""How does a client train so that no single window of its text shows in what it returns? By DP-SGD (Abadi et al. 2016).

Every step draws each window with the same chance, clips each drawn window's gradient, adds up, adds Gaussian noise, and divides
by the number of windows to be expected. AdamW then works on a noised gradient, which costs no more privacy. Gradients are found
window by window, so every layer is covered and memory holds one of them beside their sum.

What is claimed: (epsilon, delta) for adding or removing one window, with the windows' count known, against whoever sees the
returned blocks and nothing else: the losses of the steps, and how long they took, stay at the client. The noise is drawn in
float32, so attacks on its last digits (Mironov, CCS 2012) are outside the claim.
"""

import os
import warnings
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import ceil, inf, isfinite
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hushtune_common.config import DpConfig, TrainingConfig
from hushtune_common.errors import ConfigError, MissingPackage

PRECISION = 0.01
"""The noise is chosen so that epsilon is spent to within this share, and never more than it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Privacy:
    """What a training run promises, and by what: ``noise_multiplier`` times ``clip_norm`` is the noise's standard deviation.

    ``sample_rate`` is the chance of a window to be in a step. An infinite ``clip_norm`` or no noise promises nothing. ``steps``
    are those of one training, ``epsilon`` is what ``rounds`` of them spend together.
    """

    epsilon: float
    delta: float
    clip_norm: float
    noise_multiplier: float
    sample_rate: float
    steps: int
    rounds: int = 1

    def __post_init__(self) -> None:
        """Refuse what is no mechanism."""
        if not 0.0 < self.sample_rate <= 1.0 or min(self.steps, self.rounds) < 1 or not self.clip_norm > 0.0:
            raise ValueError(f"no mechanism: rate {self.sample_rate}, {self.steps} steps, clip {self.clip_norm}")
        if not (isfinite(self.noise_multiplier) and self.noise_multiplier >= 0.0):
            raise ValueError(f"noise multiplier {self.noise_multiplier}")


def planned(config: DpConfig, *, training: TrainingConfig, count: int, rounds: int = 1) -> Privacy:
    """Return how to train on ``count`` windows so that at most ``config.epsilon`` is spent, with the least noise for it.

    ``rounds`` trainings on the same windows, each from what the ones before have led to, spend that much together: their steps
    compose like those of one training. As many steps as without privacy. `MissingPackage` without Opacus, `ConfigError` for a
    budget that no noise can meet or a delta that would allow to publish a window.
    """
    if config.delta * count >= 1.0:
        raise ConfigError(
            "training.dp.delta", f"{config.delta:g} lets one of {count} windows be published; take at most {0.1 / count:.0e}"
        )
    steps = training.epochs * ceil(count / training.batch_windows)
    rate = min(1.0, training.batch_windows / count)
    noise = noise_multiplier(epsilon=config.epsilon, delta=config.delta, sample_rate=rate, steps=rounds * steps)
    spent = epsilon_spent(noise_multiplier=noise, delta=config.delta, sample_rate=rate, steps=rounds * steps)
    return Privacy(
        epsilon=spent,
        delta=config.delta,
        clip_norm=config.clip_norm,
        noise_multiplier=noise,
        sample_rate=rate,
        steps=steps,
        rounds=rounds,
    )


def epsilon_spent(*, noise_multiplier: float, delta: float, sample_rate: float, steps: int) -> float:
    """Return an upper bound of epsilon after ``steps`` subsampled Gaussians, by Opacus's PRV accountant (Gopi et al. 2021)."""
    accountant = _accounting()[0]()
    accountant.history = [(noise_multiplier, sample_rate, steps)]
    with _quiet():
        return float(accountant.get_epsilon(delta))


def noise_multiplier(*, epsilon: float, delta: float, sample_rate: float, steps: int) -> float:
    """Return the least noise, in clip norms, that spends at most ``epsilon`` and at least ``1 - PRECISION`` of it."""
    search = _accounting()[1]
    try:
        with _quiet():
            return float(
                search(
                    target_epsilon=epsilon,
                    target_delta=delta,
                    sample_rate=sample_rate,
                    steps=steps,
                    accountant="prv",
                    epsilon_tolerance=PRECISION * epsilon,
                )
            )
    except ValueError as error:
        problem = f"no noise spends as little as {epsilon:g} at delta {delta:g} in {steps} steps; take a larger epsilon"
        raise ConfigError("training.dp.epsilon", problem) from error


def secret_generator() -> np.random.Generator:
    """Return a generator of noise that nobody can repeat: Philox under a key of 128 bits from the operating system.

    Noise that can be guessed hides nothing, so it never comes from a scenario's seed. A torch generator would not do: on a CPU
    it takes 32 bits of its seed, which can be tried out. Philox is no cipher, but its key cannot be searched for.
    """
    return np.random.Generator(np.random.Philox(key=int.from_bytes(os.urandom(16), "big")))


def draws(privacy: Privacy, *, count: int, noise: np.random.Generator) -> Sequence[NDArray[np.int64]]:
    """Return the windows of every step: each of ``count`` with the same chance, on its own; a step may have none."""
    return [np.flatnonzero(noise.random(count) < privacy.sample_rate) for _ in range(privacy.steps)]


def set_private_gradient(
    trained: Sequence[nn.Parameter],
    losses: Sequence[Callable[[], Tensor]],
    *,
    privacy: Privacy,
    expected: float,
    noise: np.random.Generator,
) -> float | None:
    """Set the gradients of ``trained`` to the noised mean of clipped gradients, one per entry of ``losses``.

    The sum is divided by the ``expected`` number of windows, whatever the number drawn. Returns the mean loss; nothing when no
    window was drawn, which still takes a step, of noise alone.
    """
    sums = [torch.zeros_like(p) for p in trained]
    total = 0.0
    for loss in losses:
        value = loss()
        value.backward()
        total += float(value.detach())
        _add_clipped(sums, trained, norm_max=privacy.clip_norm)
    for parameter, added in zip(trained, sums, strict=True):
        if privacy.noise_multiplier > 0.0:
            drawn = noise.standard_normal(tuple(added.shape), dtype=np.float32)
            added.add_(torch.from_numpy(drawn).to(added.device), alpha=privacy.noise_multiplier * privacy.clip_norm)
        parameter.grad = added.div_(expected)
    return total / len(losses) if losses else None


def _add_clipped(sums: Sequence[Tensor], trained: Sequence[nn.Parameter], *, norm_max: float) -> None:
    """Add one window's gradients to the ``sums``, scaled down to a norm of ``norm_max`` over all of them, and drop them."""
    found = [(total, p.grad) for total, p in zip(sums, trained, strict=True) if p.grad is not None]
    norm = float(torch.stack([g.norm() for _, g in found]).norm()) if found else 0.0
    share = 1.0 if norm_max == inf else min(1.0, norm_max / (norm + 1e-6))
    for total, gradient in found:
        total.add_(gradient, alpha=share)
    for parameter in trained:
        parameter.grad = None


def _accounting() -> tuple[Any, Any]:
    try:
        with _quiet():
            from opacus.accountants import PRVAccountant
            from opacus.accountants.utils import get_noise_multiplier
    except ModuleNotFoundError as error:
        raise MissingPackage(
            error.name or "opacus", "not installed, and training.dp needs it; run: pip install 'hushtune-client[dp]'"
        ) from error
    return PRVAccountant, get_noise_multiplier


@contextmanager
def _quiet() -> Generator[None]:
    # Its first guess comes from a bound whose orders do not reach far; the answer does not rest on that guess.
    with warnings.catch_warnings(action="ignore"):
        yield
