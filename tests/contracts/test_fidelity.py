"""Does the comparison of gradients tell a perfect emulator from a poor one, and leave both models alone?"""

import numpy as np
import pytest
import torch

from hushtune_common.config import TrainingConfig
from hushtune_common.model.bundle import emulator_tensors
from hushtune_common.model.language import LanguageModel
from hushtune_common.seeding import SeedTree
from hushtune_server.owner.emulators.fidelity import fidelity, linear_cka, rehearse
from tests.models import ADAPTER, plan_dropping, some_windows, tiny_source

SOURCE = tiny_source()


def emulator(*dropped: int) -> LanguageModel:
    plan = plan_dropping(SOURCE, *dropped)
    return LanguageModel.build(SOURCE.config, emulator_tensors(SOURCE, plan=plan), slots=plan.slots)


def test_the_model_is_a_perfect_emulator_of_itself() -> None:
    found = fidelity(SOURCE.load(), emulator(), some_windows(), adapter=ADAPTER)
    assert found.cosine == pytest.approx(1.0, abs=1e-9)
    assert found.norm_ratio == pytest.approx(1.0, abs=1e-9)
    assert found.cka == pytest.approx(1.0, abs=1e-6)
    assert all(c == pytest.approx(1.0, abs=1e-9) for c in found.block_cosines.values())


def test_fewer_blocks_mean_less_alike_gradients() -> None:
    full, windows = SOURCE.load(), some_windows(12)
    cosines = [fidelity(full, emulator(*gone), windows, adapter=ADAPTER).cosine for gone in ((), (2,), (2, 3, 4))]
    assert cosines == sorted(cosines, reverse=True)


def test_gradients_are_those_of_the_mean_loss_over_all_windows() -> None:
    full, other, windows = SOURCE.load(), emulator(3), some_windows(11)
    found = fidelity(full, other, windows, adapter=ADAPTER)
    flat: list[torch.Tensor] = []
    for model in (full, other):
        parameters = list(model.adapter_parameters(ADAPTER).values())
        for parameter in parameters:
            parameter.requires_grad_(True)
        grads = torch.autograd.grad(model.batch_loss(torch.from_numpy(windows)), parameters)
        flat.append(torch.cat([g.flatten() for g in grads]))
    assert found.cosine == pytest.approx(float(torch.cosine_similarity(flat[0], flat[1], dim=0)), abs=1e-5)
    assert found.norm_ratio == pytest.approx(float(flat[1].norm() / flat[0].norm()), rel=1e-5)


def test_alignment_ignores_rotation_and_scale_but_not_noise() -> None:
    draws = SeedTree(1).generator()
    x = torch.from_numpy(draws.standard_normal((200, 5)))
    turn = torch.from_numpy(np.linalg.qr(draws.standard_normal((5, 5)))[0])
    assert linear_cka(x, 3.0 * x @ turn + 1.0) == pytest.approx(1.0)
    assert linear_cka(x, torch.from_numpy(draws.standard_normal((200, 5)))) < 0.1


def test_a_rehearsal_on_the_model_itself_keeps_all_of_the_gain_and_leaves_no_trace() -> None:
    full, same, windows = SOURCE.load(), emulator(), some_windows(8)
    before = [p.detach().clone() for p in full.module.parameters()]
    config = TrainingConfig(learning_rate=1e-2, batch_windows=2)
    found = rehearse(full, same, windows, adapter=ADAPTER, config=config, seeds=SeedTree(3))
    assert found.plug_in == pytest.approx(found.bound)
    assert found.before != found.bound
    assert all(torch.equal(a, b) for a, b in zip(before, full.module.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(before, same.module.parameters(), strict=True))
