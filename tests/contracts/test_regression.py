"""Are stand-ins that regression finds the best ones, and does an emulator with them come closer to the model?"""

from pathlib import Path

import numpy as np
import pytest
import torch

from hushtune_common.config import ComputeConfig
from hushtune_common.messages import Digest
from hushtune_common.methods import LinearOptions
from hushtune_common.model.bundle import emulator_tensors
from hushtune_common.model.language import LanguageModel
from hushtune_common.model.naming import block_of
from hushtune_common.model.slots import Harmonize, Keep
from hushtune_common.seeding import SeedTree
from hushtune_server.owner.emulators.engine import Built, Telling, Workplace, build
from hushtune_server.owner.emulators.method import EmulatorRequest
from hushtune_server.owner.emulators.middles import channel_error, relative_error
from hushtune_server.owner.emulators.regression import stand_in
from hushtune_server.owner.emulators.text import PublicText
from tests.models import ADAPTER, some_windows, tiny_source

SOURCE = tiny_source()


def draws(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.from_numpy(SeedTree(seed).generator().standard_normal(shape)).float()


def test_an_affine_block_is_found_exactly_where_the_rectifier_is_open() -> None:
    x, truth, offset = draws(4000, 12).clamp(-2, 2), draws(12, 12, seed=2) / 4, draws(12, seed=3)
    found = stand_in(x, x @ truth + offset, rank=12, ridge=1e-9)
    error = found.added(x) - (x @ truth + offset)
    assert float(error.square().mean().sqrt()) < 0.02 * float((x @ truth).std())


@pytest.mark.parametrize("rank", [1, 3, 6])
def test_no_other_map_of_the_rank_leaves_less_of_the_error(rank: int) -> None:
    x, noise = draws(3000, 8).clamp(-2, 2), 0.3 * draws(3000, 8, seed=4)
    added = x @ draws(8, 8, seed=2) + noise
    scale = (x + added).std(dim=0)
    found = float(((stand_in(x, added, rank=rank, ridge=1e-9).added(x) - added) / scale).square().sum())
    # Reduced-rank regression: what the fit cannot reach, and the singular values of the fitted values that the rank leaves out.
    centred, wanted = x - x.mean(0), (added - added.mean(0)) / scale
    fitted = centred @ torch.linalg.lstsq(centred, wanted).solution
    best = float((wanted - fitted).square().sum() + torch.linalg.svdvals(fitted)[rank:].square().sum())
    assert best <= found <= 1.05 * best


def test_a_rank_above_the_hidden_size_adds_nothing() -> None:
    x = draws(500, 6)
    narrow, wide = (stand_in(x, torch.sin(x), rank=rank, ridge=1e-3) for rank in (6, 9))
    assert wide.down.shape == (9, 6)
    assert torch.allclose(narrow.added(x), wide.added(x), atol=1e-5)


def emulator(options: LinearOptions, *, work: Path) -> tuple[Built, LanguageModel]:
    place = Workplace(
        source=SOURCE,
        model=SOURCE.load(),
        text=PublicText(corpus=Digest.of(b"text"), windows=some_windows(60)),
        compute=ComputeConfig(device="cpu"),
        seeds=SeedTree(1),
        work=work,
        telling=Telling(phase=lambda _: None, progress=lambda _done, _all: None),
    )
    request = EmulatorRequest(base=SOURCE.base_digest, block_count=6, adapter=ADAPTER)
    built = build(options, request, at=place)
    tensors = emulator_tensors(SOURCE, plan=built.plan, refinement=built.refinement)
    return built, LanguageModel.build(SOURCE.config, tensors, slots=built.plan.slots)


def middle_error(model: LanguageModel) -> float:
    full, tokens = SOURCE.load(), torch.from_numpy(some_windows(12, seed=9))
    with torch.inference_mode():
        wanted = full.parts.run(full.parts.embed(tokens), blocks=range(5)).hidden
        positions = [k for k, b in enumerate(model.blocks) if b < 5]
        return float(relative_error(model.parts.run(model.parts.embed(tokens), blocks=positions).hidden, wanted))


def test_stand_ins_come_closer_to_the_model_than_gaps_do_and_a_higher_rank_closer_still(tmp_path: Path) -> None:
    gap = emulator(LinearOptions(drop=2, harmonizer_rank=8, harmonizer_start="nothing", profile_tokens=64), work=tmp_path)[1]
    errors = [
        middle_error(emulator(LinearOptions(drop=2, harmonizer_rank=rank, profile_tokens=64, fit_tokens=900), work=tmp_path)[1])
        for rank in (4, 32)
    ]
    assert middle_error(gap) > errors[0] > errors[1]


def test_what_was_fitted_is_kept_and_touches_harmonizers_only(tmp_path: Path) -> None:
    options = LinearOptions(drop=2, harmonizer_rank=8, profile_tokens=64, fit_tokens=600)
    (built, _), (again, _) = emulator(options, work=tmp_path), emulator(options, work=tmp_path)
    assert built.refinement is not None
    assert again.refinement is not None
    harmonized = {s.index for s in built.plan.slots if isinstance(s, Harmonize)}
    assert {block_of(name) for name in built.refinement.trained} == harmonized
    assert built.refinement.digest == again.refinement.digest
    assert all(isinstance(built.plan.slots[b], Keep) for b in ADAPTER)


def test_channels_count_alike_whatever_their_magnitude() -> None:
    wanted, error = draws(50, 7, 4), draws(50, 7, 4, seed=2)
    magnitudes = torch.tensor([1.0, 10.0, 1000.0, 0.1])
    plain, scaled = (channel_error(w + 0.1 * e, w) for w, e in ((wanted, error), (wanted * magnitudes, error * magnitudes)))
    assert float(plain) == pytest.approx(float(scaled), rel=1e-3)
    assert float(plain) == pytest.approx(
        float(np.mean(0.01 * error.square().mean((0, 1)).numpy() / wanted.flatten(0, 1).var(0).numpy())), rel=1e-4
    )
