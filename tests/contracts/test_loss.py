"""Is the loss found a few positions at a time the one that all scores at once would give?"""

import pytest
import torch
from torch.nn import functional

from hushtune_common.config import ComputeConfig
from hushtune_common.model import loss
from hushtune_common.model.language import LanguageModel
from tests.models import some_windows
from tests.tiny_families import FAMILIES, tiny

WINDOWS = torch.from_numpy(some_windows(5))


def plain(hidden: torch.Tensor, tokens: torch.Tensor, head: torch.nn.Linear) -> torch.Tensor:
    scores = head(hidden)
    return functional.cross_entropy(scores.reshape(-1, scores.shape[-1]), tokens[:, 1:].reshape(-1))


@pytest.mark.parametrize("scores", [1, 700, 1 << 22])
@pytest.mark.parametrize("biased", [False, True])
def test_loss_and_gradient_are_those_of_the_plain_formula(monkeypatch: pytest.MonkeyPatch, scores: int, biased: bool) -> None:
    monkeypatch.setattr(loss, "SCORES", scores)
    torch.manual_seed(1)
    head = torch.nn.Linear(8, 300, bias=biased).requires_grad_(False)
    hidden = torch.randn(5, 16, 8, requires_grad=True)
    ours, theirs = loss.next_token_loss(hidden, WINDOWS, head=head), plain(hidden, WINDOWS, head)
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=0.0)
    grads = [torch.autograd.grad(2.0 * value, hidden)[0] for value in (ours, theirs)]
    torch.testing.assert_close(*grads, rtol=1e-5, atol=1e-8)
    each = loss.token_losses(hidden, WINDOWS, head=head)
    assert each.shape == (5, 16)
    torch.testing.assert_close(each.mean(), theirs.detach(), rtol=1e-6, atol=0.0)


def test_a_head_that_is_trained_gets_its_gradient() -> None:
    head = torch.nn.Linear(8, 300, bias=False)
    hidden = torch.randn(5, 16, 8)
    ours = torch.autograd.grad(loss.next_token_loss(hidden, WINDOWS, head=head), head.weight)[0]
    theirs = torch.autograd.grad(plain(hidden, WINDOWS, head), head.weight)[0]
    torch.testing.assert_close(ours, theirs)


def test_only_a_few_scores_are_held_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss, "SCORES", 4 * 300)
    seen: list[int] = []
    linear = functional.linear

    def watched(states: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        seen.append(len(states))
        return linear(states, weight, bias)

    monkeypatch.setattr(functional, "linear", watched)
    loss.next_token_loss(torch.randn(5, 16, 8), WINDOWS, head=torch.nn.Linear(8, 300, bias=False).requires_grad_(False))
    assert max(seen) == 4
    assert sum(seen) == 5 * 16


@pytest.mark.parametrize("family", FAMILIES)
def test_a_models_loss_is_that_of_its_own_scores(family: str) -> None:
    model = tiny(family)
    scores = model.logits(WINDOWS[:, :-1])
    expected = functional.cross_entropy(scores.reshape(-1, scores.shape[-1]), WINDOWS[:, 1:].reshape(-1))
    torch.testing.assert_close(model.batch_loss(WINDOWS), expected, rtol=1e-6, atol=0.0)
    torch.testing.assert_close(model.token_losses(WINDOWS).mean(), expected, rtol=1e-6, atol=0.0)


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_of_the_blocks_are_those_of_its_own_scores(family: str) -> None:
    model = tiny(family)
    trained = [p.requires_grad_(True) for p in model.adapter_parameters([0, 2]).values()]
    ours = torch.autograd.grad(model.batch_loss(WINDOWS), trained)
    scores = model.logits(WINDOWS[:, :-1])
    theirs = torch.autograd.grad(functional.cross_entropy(scores.reshape(-1, 256), WINDOWS[:, 1:].reshape(-1)), trained)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-7)


def test_in_half_precision_the_loss_is_near_the_exact_one() -> None:
    model = tiny("llama")
    half = LanguageModel(model.parts, blocks=range(3), compute=ComputeConfig(device="cpu", precision="bf16"))
    hidden = model.parts.embed(WINDOWS[:, :-1]).hidden.requires_grad_(True)
    assert float(half.batch_loss(WINDOWS)) == pytest.approx(float(model.batch_loss(WINDOWS)), rel=0.01)
    with half.arithmetic():
        gradient = torch.autograd.grad(loss.next_token_loss(hidden, WINDOWS, head=half.head), hidden)[0]
    exact = torch.autograd.grad(loss.next_token_loss(hidden, WINDOWS, head=half.head), hidden)[0]
    assert float(functional.cosine_similarity(gradient.ravel(), exact.ravel(), dim=0)) > 0.999
