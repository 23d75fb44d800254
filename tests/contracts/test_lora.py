"""Does training through low-rank factors start from the model, change only its blocks, by little rank, and come back whole?"""

from pathlib import Path

import numpy as np
import pytest
import torch

from hushtune_common.adapter import require_matches
from hushtune_common.config import LoraConfig, TrainingConfig
from hushtune_common.model.bundle import read_bundle
from hushtune_common.model.finetune import Progress, finetune
from hushtune_common.model.governor import Unpaced
from hushtune_common.model.language import EXACT
from hushtune_common.model.lora import attached
from hushtune_common.seeding import SeedTree
from tests.fakes import FakeClock
from tests.models import some_windows, tiny_bundle
from tests.tiny_families import FAMILIES, tiny

WINDOWS = torch.from_numpy(some_windows())
LORA = LoraConfig(rank=3, alpha=6.0)


def shaken(family: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Return scores at first, with untrained, with trained and with merged factors, and every parameter before and after."""
    model = tiny(family)
    before = {n: p.detach().clone() for n, p in model.module.named_parameters()}
    with torch.no_grad():
        first = model.logits(WINDOWS)
        lora = attached(model, [0, 2], config=LORA, seeds=SeedTree(1))
        torch.testing.assert_close(model.logits(WINDOWS), first, rtol=0.0, atol=0.0)
        torch.manual_seed(2)
        for parameter in lora.parameters:
            parameter.add_(0.1 * torch.randn_like(parameter))
        trained = model.logits(WINDOWS)
        lora.merge()
        merged = model.logits(WINDOWS)
    return first, trained, merged, before, dict(model.module.named_parameters())


@pytest.mark.parametrize("family", FAMILIES)
def test_untrained_factors_change_nothing_and_merged_ones_give_what_they_gave_apart(family: str) -> None:
    first, trained, merged, _, _ = shaken(family)
    assert float((trained - first).abs().max()) > 1e-3
    torch.testing.assert_close(merged, trained, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_matrix_of_the_blocks_and_nothing_else_changes(family: str) -> None:
    *_, before, after = shaken(family)
    changed = {n for n, p in after.items() if not torch.equal(p, before[n])}
    blocks = {n for n, p in before.items() if (".0." in n or ".2." in n) and p.ndim == 2}
    assert changed == blocks
    assert len(blocks) >= 8


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_what_merging_adds_has_the_configured_rank(family: str) -> None:
    *_, before, after = shaken(family)
    for name in before:
        spectrum = torch.linalg.svdvals((after[name] - before[name]).double()) if before[name].ndim == 2 else torch.zeros(4)
        assert float(spectrum[LORA.rank :].sum()) <= 1e-5 * max(1.0, float(spectrum[0]))


def test_a_block_that_the_model_lacks_is_refused() -> None:
    with pytest.raises(ValueError, match="no block 7"):
        attached(tiny("llama"), [0, 7], config=LORA, seeds=SeedTree(1))


def tuned(path: Path, *, seed: int = 1, lora: LoraConfig | None = LORA) -> tuple[dict[str, np.ndarray], list[Progress]]:
    seen: list[Progress] = []
    state = finetune(
        path,
        some_windows(10),
        config=TrainingConfig(learning_rate=1e-2, batch_windows=4, epochs=3, lora=lora),
        compute=EXACT,
        seeds=SeedTree(seed),
        governor=Unpaced(clock=FakeClock()),
        report=seen.append,
    )
    require_matches(state, read_bundle(path).schema)
    return dict(state.tensors), seen


def test_training_factors_lowers_the_loss_and_returns_whole_blocks_of_low_rank_change(tmp_path: Path) -> None:
    path = tiny_bundle(tmp_path, 2, 3)
    returned, _ = tuned(path)
    bundle = read_bundle(path)
    model = bundle.load()
    first = model.loss(some_windows(10))
    model.set_adapter(returned)
    assert model.loss(some_windows(10)) < first - 0.05
    for name, shipped in bundle.adapter_numpy().items():
        delta = returned[name].astype(np.float64) - shipped
        ranks = np.linalg.matrix_rank(delta, tol=1e-5 * max(1e-9, np.linalg.norm(delta, 2))) if delta.ndim == 2 else 0
        assert ranks == (LORA.rank if delta.ndim == 2 else 0), name
        assert (delta.ndim == 2) == bool(np.any(delta))


def test_factors_repeat_with_the_seed_and_start_elsewhere_with_another(tmp_path: Path) -> None:
    path = tiny_bundle(tmp_path, 2, 3)
    first, again, other = tuned(path)[0], tuned(path)[0], tuned(path, seed=2)[0]
    assert all(np.array_equal(first[n], again[n]) for n in first)
    assert any(not np.array_equal(first[n], other[n]) for n in first)
