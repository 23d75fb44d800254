"""Is private training what its accountant takes it to be: per window, clipped, noised, sampled, and no noisier than needed?"""

import sys
from collections.abc import Callable
from functools import partial
from math import comb, exp, inf, log
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hushtune_common.adapter import AdapterState
from hushtune_common.config import DpConfig, LoraConfig, TrainingConfig
from hushtune_common.errors import ConfigError, MissingPackage
from hushtune_common.model import dp
from hushtune_common.model.dp import Privacy
from hushtune_common.model.finetune import Progress, finetune
from hushtune_common.model.governor import Unpaced
from hushtune_common.model.language import EXACT, LanguageModel
from hushtune_common.seeding import SeedTree
from tests.fakes import FakeClock
from tests.models import some_windows, tiny_bundle
from tests.tiny_families import tiny

WINDOWS = torch.from_numpy(some_windows(5))


def privacy(**changed: float) -> Privacy:
    values: dict[str, float] = {"epsilon": inf, "delta": 1e-5, "clip_norm": inf, "noise_multiplier": 0.0, "sample_rate": 0.5}
    return Privacy(**(values | changed), steps=3, rounds=1)


def noise(seed: int = 1) -> np.random.Generator:
    return SeedTree(seed).generator()


def trained_of(model: LanguageModel) -> list[nn.Parameter]:
    found = list(model.adapter_parameters([0, 2]).values())
    for parameter in found:
        parameter.requires_grad_(True)
    return found


def losses_of(model: LanguageModel) -> list[Callable[[], Tensor]]:
    return [partial(model.batch_loss, window) for window in WINDOWS.split(1)]


def gradient(trained: list[nn.Parameter]) -> Tensor:
    return torch.cat([p.grad.ravel() for p in trained if p.grad is not None])


def brute_force(model: LanguageModel, trained: list[nn.Parameter]) -> Tensor:
    """Return one row per window: its own gradient."""
    rows = [torch.autograd.grad(model.batch_loss(w), trained) for w in WINDOWS.split(1)]
    return torch.stack([torch.cat([g.ravel() for g in row]) for row in rows])


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_without_noise_and_clipping_the_step_is_the_ordinary_one(family: str) -> None:
    model = tiny(family)
    trained = trained_of(model)
    loss = dp.set_private_gradient(trained, losses_of(model), privacy=privacy(), expected=5.0, noise=noise())
    ours = gradient(trained).clone()
    ordinary = model.batch_loss(WINDOWS)
    theirs = torch.cat([g.ravel() for g in torch.autograd.grad(ordinary, trained)])
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-7)
    assert loss == pytest.approx(float(ordinary.detach()), rel=1e-6)


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt"])
def test_each_windows_gradient_is_clipped_alone_over_all_tensors(family: str) -> None:
    model = tiny(family)
    trained = trained_of(model)
    each = brute_force(model, trained)
    norms = each.norm(dim=1, keepdim=True)
    bound = float(norms.median())
    dp.set_private_gradient(trained, losses_of(model), privacy=privacy(clip_norm=bound), expected=4.0, noise=noise())
    expected = (each * (bound / norms).clamp(max=1.0)).sum(dim=0) / 4.0
    torch.testing.assert_close(gradient(trained), expected, rtol=1e-4, atol=1e-6)
    assert float(expected.norm()) < float(each.sum(dim=0).norm()) / 4.0


def test_one_window_more_moves_the_sum_by_at_most_the_clip_norm() -> None:
    model = tiny("llama")
    trained = trained_of(model)
    sums: list[Tensor] = []
    for losses in (losses_of(model), losses_of(model)[:-1]):
        dp.set_private_gradient(trained, losses, privacy=privacy(clip_norm=0.01), expected=1.0, noise=noise())
        sums.append(gradient(trained).clone())
    assert 0.009 < float((sums[0] - sums[1]).norm()) <= 0.01 * (1 + 1e-4)


def test_the_noise_has_the_stated_spread_and_a_step_without_windows_is_noise_alone() -> None:
    trained = [nn.Parameter(torch.zeros(200, 300)), nn.Parameter(torch.zeros(7))]
    asked = privacy(clip_norm=0.5, noise_multiplier=3.0)
    assert dp.set_private_gradient(trained, [], privacy=asked, expected=2.0, noise=noise()) is None
    drawn = gradient(trained).numpy()
    # The deviation of a sample deviation of n normal draws is 1 / sqrt(2 n) of it; five of them.
    assert float(drawn.std()) == pytest.approx(3.0 * 0.5 / 2.0, rel=5 / np.sqrt(2 * drawn.size))
    assert float(drawn.mean()) == pytest.approx(0.0, abs=5 * 0.75 / np.sqrt(drawn.size))


def test_windows_are_drawn_each_on_its_own_with_the_stated_chance() -> None:
    asked = Privacy(epsilon=1.0, delta=1e-5, clip_norm=1.0, noise_multiplier=1.0, sample_rate=0.2, steps=4000)
    sizes = np.array([len(drawn) for drawn in dp.draws(asked, count=50, noise=noise())])
    assert sizes.mean() == pytest.approx(10.0, abs=5 * np.sqrt(8.0 / 4000))
    assert sizes.var() == pytest.approx(8.0, rel=0.15)  # binomial, which fixed batches are not


def test_secret_noise_does_not_repeat() -> None:
    assert not np.array_equal(dp.secret_generator().random(8), dp.secret_generator().random(8))


def renyi_bound(*, noise_multiplier: float, sample_rate: float, steps: int, delta: float) -> float:
    """Return epsilon from the Renyi divergence of the subsampled Gaussian at integer orders (Mironov, Talwar, Zhang 2019)."""
    best = inf
    for order in range(2, 65):
        terms = [
            log(comb(order, k))
            + k * log(sample_rate)
            + (order - k) * (log(1.0 - sample_rate) if order > k else 0.0)
            + (k * k - k) / (2.0 * noise_multiplier**2)
            for k in range(order + 1)
        ]
        top = max(terms)
        divergence = steps * (top + log(sum(exp(t - top) for t in terms))) / (order - 1)
        best = min(best, divergence + log(1.0 - 1.0 / order) - (log(delta) + log(order)) / (order - 1))
    return best


@pytest.mark.slow
@pytest.mark.parametrize(("multiplier", "rate", "steps"), [(1.0, 0.08, 13), (2.0, 0.08, 130), (4.0, 0.5, 40)])
def test_the_accountant_stays_below_a_renyi_bound_by_hand_and_near_it(multiplier: float, rate: float, steps: int) -> None:
    pytest.importorskip("opacus")
    spent = dp.epsilon_spent(noise_multiplier=multiplier, delta=1e-5, sample_rate=rate, steps=steps)
    bound = renyi_bound(noise_multiplier=multiplier, sample_rate=rate, steps=steps, delta=1e-5)
    assert 0.7 * bound < spent <= bound + 0.02


@pytest.mark.slow
def test_a_single_unsampled_gaussian_costs_what_its_closed_form_says() -> None:
    pytest.importorskip("opacus")

    def delta_of(epsilon: float, sigma: float) -> float:
        # Balle and Wang 2018, theorem 8, for sensitivity 1.
        def below(x: float) -> float:
            return 0.5 * float(torch.erfc(torch.tensor(-x / 2**0.5, dtype=torch.float64)))

        return below(0.5 / sigma - epsilon * sigma) - exp(epsilon) * below(-0.5 / sigma - epsilon * sigma)

    spent = dp.epsilon_spent(noise_multiplier=2.0, delta=1e-5, sample_rate=1.0, steps=1)
    assert delta_of(spent, 2.0) <= 1e-5 < delta_of(spent - 0.03, 2.0)


@pytest.mark.slow
@pytest.mark.parametrize("epsilon", [0.5, 8.0])
def test_the_noise_is_the_least_that_meets_the_budget(epsilon: float) -> None:
    pytest.importorskip("opacus")
    planned = dp.planned(DpConfig(epsilon=epsilon), training=TrainingConfig(batch_windows=8, epochs=2), count=100)
    assert (planned.steps, planned.sample_rate) == (26, 0.08)
    assert 0.985 * epsilon <= planned.epsilon <= epsilon
    less = dp.epsilon_spent(noise_multiplier=0.97 * planned.noise_multiplier, delta=1e-5, sample_rate=0.08, steps=26)
    assert less > epsilon


@pytest.mark.slow
def test_the_rounds_of_a_run_spend_the_budget_together() -> None:
    pytest.importorskip("opacus")
    training = TrainingConfig(batch_windows=8, epochs=2)
    planned = dp.planned(DpConfig(epsilon=4.0), training=training, count=100, rounds=3)
    assert planned.steps == 26, "of one round"
    whole = {"noise_multiplier": planned.noise_multiplier, "delta": 1e-5, "sample_rate": 0.08}
    assert dp.epsilon_spent(**whole, steps=3 * 26) == pytest.approx(planned.epsilon)
    assert planned.epsilon <= 4.0
    assert dp.epsilon_spent(**whole, steps=4 * 26) > 4.0


def test_a_delta_that_lets_a_window_be_published_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"training\.dp\.delta"):
        dp.planned(DpConfig(delta=0.01), training=TrainingConfig(), count=100)


def test_a_missing_accountant_is_named_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opacus.accountants", None)
    monkeypatch.setitem(sys.modules, "opacus", None)
    with pytest.raises(MissingPackage, match=r"pip install 'hushtune-client\[dp\]'"):
        dp.planned(DpConfig(), training=TrainingConfig(), count=100)


def tuned(path: Path, *, epsilon: float, lora: LoraConfig | None) -> tuple[AdapterState, list[Progress]]:
    seen: list[Progress] = []
    state = finetune(
        path,
        some_windows(12),
        config=TrainingConfig(learning_rate=1e-2, batch_windows=12, epochs=6, lora=lora, dp=DpConfig(epsilon=epsilon)),
        compute=EXACT,
        seeds=SeedTree(1),
        governor=Unpaced(clock=FakeClock()),
        report=seen.append,
        noise=noise(),
    )
    return state, seen


@pytest.mark.slow
@pytest.mark.parametrize("lora", [None, LoraConfig(rank=2, alpha=4.0)])
def test_a_private_training_says_what_it_spent_and_repeats_with_its_noise_only(tmp_path: Path, lora: LoraConfig | None) -> None:
    pytest.importorskip("opacus")
    path = tiny_bundle(tmp_path, 2, 3)
    (first, seen), (again, _) = tuned(path, epsilon=4.0, lora=lora), tuned(path, epsilon=4.0, lora=lora)
    assert [p.step for p in seen] == list(range(1, 7))
    promised = seen[-1].privacy
    assert promised is not None
    assert 3.9 < promised.epsilon <= 4.0
    assert all(np.array_equal(first.tensors[n], again.tensors[n]) for n in first.tensors)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Full backward hook")
def test_window_gradients_are_those_of_opacus() -> None:
    grad_sample = pytest.importorskip("opacus.grad_sample")
    model = tiny("llama")
    model.module.train()
    trained = trained_of(model)
    each = brute_force(model, trained)
    wrapped = grad_sample.GradSampleModule(model.module, loss_reduction="mean")
    scores = wrapped(input_ids=WINDOWS[:, :-1]).logits
    per_window = nn.functional.cross_entropy(scores.transpose(1, 2), WINDOWS[:, 1:], reduction="none").mean(dim=1)
    per_window.mean().backward()
    theirs = torch.cat([p.grad_sample.reshape(len(WINDOWS), -1) for p in trained], dim=1)  # pyright: ignore[reportAttributeAccessIssue] - Opacus adds it
    torch.testing.assert_close(each, theirs, rtol=1e-3, atol=1e-6)
