"""Does the proximal term hold training near its start by as much as the objective says, whatever AdamW makes of gradients?"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hushtune_client.finetune import finetune
from hushtune_common.adapter import AdapterState
from hushtune_common.config import LoraConfig, TrainingConfig
from hushtune_common.model.bundle import read_bundle
from hushtune_common.model.finetune import BETAS
from hushtune_common.model.governor import Unpaced
from hushtune_common.model.language import EXACT
from hushtune_common.model.proximal import LowRankPull, Pull, WholePull
from hushtune_common.seeding import SeedTree
from tests.fakes import FakeClock
from tests.models import some_windows, tiny_bundle

STEPS = 1000


def drawn(*shape: int, name: str) -> Tensor:
    return torch.from_numpy(SeedTree(5).child(name).generator().standard_normal(shape).astype(np.float32))


def settle(trained: Sequence[nn.Parameter], loss: Callable[[], Tensor], pull: Pull | None, *, steps: int = STEPS) -> None:
    """Train as the client does, the rate falling to nothing."""
    optimizer = torch.optim.AdamW(trained, lr=0.05, betas=BETAS, weight_decay=0.0)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 0.05 * (1.0 - step / steps)
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
        if pull is not None:
            pull(optimizer)


@pytest.mark.slow
@pytest.mark.parametrize("weight", [0.0, 0.1, 1.0, 30.0])
def test_on_a_quadratic_training_ends_at_the_closed_form_however_curved_each_direction_is(weight: float) -> None:
    start, wanted = drawn(40, name="start"), drawn(40, name="wanted")
    curvature = torch.logspace(-2.0, 2.0, 40)
    x = nn.Parameter(start.clone())
    settle([x], lambda: 0.5 * (curvature * (x - wanted).square()).sum(), WholePull.of([x], weight=weight))
    closed = (curvature * wanted + 2.0 * weight * start) / (curvature + 2.0 * weight)
    assert torch.allclose(x.detach(), closed, atol=2e-3)


@pytest.mark.slow
def test_decay_at_the_rate_itself_would_end_elsewhere() -> None:
    """What the pull is not: decay towards the start at the rate itself, which pulls alike in flat and in steep directions."""
    start, wanted, curvature, weight = torch.zeros(40), torch.ones(40), torch.logspace(-2.0, 2.0, 40), 1.0
    x = nn.Parameter(start.clone())

    def decay(optimizer: torch.optim.AdamW) -> None:
        with torch.no_grad():
            x.mul_(1.0 - 2.0 * weight * optimizer.param_groups[0]["lr"])

    settle([x], lambda: 0.5 * (curvature * (x - wanted).square()).sum(), decay)
    closed = curvature * wanted / (curvature + 2.0 * weight)
    assert float((x.detach() - closed).abs().max()) > 0.2


@pytest.mark.slow
def test_of_low_rank_factors_the_merged_product_is_held_to_the_closed_form() -> None:
    wanted, weight, scale, rank = drawn(12, 9, name="target"), 0.5, 2.0, 3
    down, up = nn.Parameter(drawn(rank, 9, name="down") / 3.0), nn.Parameter(torch.zeros(12, rank))
    pull = LowRankPull(weight, [(down, up, scale)])
    settle([down, up], lambda: 0.5 * (scale * up @ down - wanted).square().sum(), pull, steps=2 * STEPS)
    # |P - W|^2 / 2 + weight |P|^2 is (1 + 2 weight) / 2 |P - W / (1 + 2 weight)|^2 and a constant; Eckart and Young do the rest.
    u, s, v = torch.linalg.svd(wanted / (1.0 + 2.0 * weight))
    best = u[:, :rank] @ torch.diag(s[:rank]) @ v[:rank]
    assert float(((scale * up @ down).detach() - best).norm()) < 0.02 * float(best.norm())


def test_the_moments_are_those_of_the_loss_alone() -> None:
    moments: list[Tensor] = []
    for weight in (0.0, 5.0):
        x = nn.Parameter(torch.ones(6))
        optimizer = torch.optim.AdamW([x], lr=0.1, betas=BETAS, weight_decay=0.0)
        pull = WholePull.of([x], weight=weight)
        for step in range(4):
            x.grad = drawn(6, name=f"gradient {step}")
            optimizer.step()
            pull(optimizer)
        moments.append(torch.cat([optimizer.state[x]["exp_avg"], optimizer.state[x]["exp_avg_sq"]]))
    assert torch.equal(moments[0], moments[1])


@pytest.mark.parametrize("weight", [1e-3, 1.0, 1e6])
def test_one_step_is_the_least_of_what_it_minimises_and_stays_on_its_side_of_the_start(weight: float) -> None:
    start, rate = drawn(8, name="begin"), 0.1
    x = nn.Parameter(start.clone())
    pull = WholePull.of([x], weight=weight)
    optimizer = torch.optim.AdamW([x], lr=rate, betas=BETAS, weight_decay=0.0)
    x.grad = drawn(8, name="slope")
    optimizer.step()
    z = x.detach().clone()
    pull(optimizer)
    metric = x.grad.abs() + 1e-8  # after one step the corrected second moment is the gradient's own square
    slope = metric * (x.detach() - z) / rate + 2.0 * weight * (x.detach() - start)
    assert torch.allclose(slope, torch.zeros(8), atol=1e-4 + 4 * 2.0**-23 * weight)  # as near as float32 can tell x from start
    assert bool((((x.detach() - start) * (z - start)) >= 0.0).all())


def distance(path: Path, config: TrainingConfig) -> float:
    shipped = read_bundle(path).adapter_numpy()
    state = train(path, config)
    return float(np.sqrt(sum(np.square(state.tensors[n] - t).sum() for n, t in shipped.items())))


def train(path: Path, config: TrainingConfig) -> AdapterState:
    return finetune(
        path,
        some_windows(8),
        config=config,
        compute=EXACT,
        seeds=SeedTree(1),
        governor=Unpaced(clock=FakeClock()),
        report=lambda progress: None,
    )


@pytest.mark.slow
@pytest.mark.parametrize("lora", [None, LoraConfig(rank=4)], ids=["whole", "low rank"])
def test_the_heavier_the_term_the_nearer_a_client_stays_to_what_it_was_sent(tmp_path: Path, lora: LoraConfig | None) -> None:
    path = tiny_bundle(tmp_path, 2, 3)
    weights = (0.0, 0.1, 1.0, 10.0)
    configs = [TrainingConfig(learning_rate=3e-3, batch_windows=4, epochs=3, proximal=w, lora=lora) for w in weights]
    distances = [distance(path, config) for config in configs]
    assert distances == sorted(distances, reverse=True)
    assert distances[-1] < 0.5 * distances[0]
