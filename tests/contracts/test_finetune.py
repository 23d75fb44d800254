"""Does fine-tuning train the adapter blocks, only them, reproducibly, and at the assigned pace?"""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hushtune_client.finetune import Progress, finetune
from hushtune_client.governor import PacingGovernor
from hushtune_common.adapter import AdapterState, require_matches
from hushtune_common.config import TrainingConfig
from hushtune_common.errors import ConfigError, TrainerFailed
from hushtune_common.model.bundle import read_bundle
from hushtune_common.model.finetune import batch_order, rate_share
from hushtune_common.model.governor import Unpaced
from hushtune_common.model.language import EXACT
from hushtune_common.seeding import SeedTree
from tests.fakes import FakeClock
from tests.models import some_windows, tiny_bundle

CONFIG = TrainingConfig(learning_rate=3e-3, batch_windows=4, epochs=3)


def train(
    bundle: Path, *, config: TrainingConfig = CONFIG, seed: int = 1, windows: int = 10
) -> tuple[AdapterState, list[Progress]]:
    seen: list[Progress] = []
    state = finetune(
        bundle,
        some_windows(windows),
        config=config,
        compute=EXACT,
        seeds=SeedTree(seed),
        governor=Unpaced(clock=FakeClock()),
        report=seen.append,
    )
    return state, seen


def test_training_lowers_the_loss_and_changes_every_adapter_tensor(tmp_path: Path) -> None:
    path = tiny_bundle(tmp_path, 2, 3)
    state, seen = train(path)
    bundle = read_bundle(path)
    require_matches(state, bundle.schema)
    assert all(not np.array_equal(state.tensors[n], value) for n, value in bundle.adapter_numpy().items())
    tuned, shipped = bundle.load(), bundle.load()
    tuned.set_adapter(state.tensors)
    assert tuned.loss(some_windows(10)) < shipped.loss(some_windows(10)) - 0.05
    assert [p.step for p in seen] == list(range(1, 10))
    assert seen[-1].tokens == 3 * 10 * 17


def test_the_same_arguments_give_the_same_adapter(tmp_path: Path) -> None:
    path = tiny_bundle(tmp_path, 2, 3)
    first, second = train(path)[0], train(path)[0]
    assert all(np.array_equal(first.tensors[n], second.tensors[n]) for n in first.tensors)


def test_the_seed_changes_the_order_and_so_the_adapter(tmp_path: Path) -> None:
    path = tiny_bundle(tmp_path, 2, 3)
    first, second = train(path, seed=1)[0], train(path, seed=2)[0]
    assert any(not np.array_equal(first.tensors[n], second.tensors[n]) for n in first.tensors)


def test_training_leaves_the_bundle_as_it_was(tmp_path: Path) -> None:
    path = tiny_bundle(tmp_path, 2, 3)
    before = path.read_bytes()
    train(path)
    assert path.read_bytes() == before


def test_a_loss_that_is_not_finite_ends_training(tmp_path: Path) -> None:
    with pytest.raises(TrainerFailed, match=r"training\.learning_rate"):
        train(tiny_bundle(tmp_path), config=TrainingConfig(learning_rate=1e30, batch_windows=2, epochs=5, warmup_share=0.0))


@pytest.mark.parametrize("windows", [some_windows(0), some_windows(2, vocabulary=400, seed=3), some_windows(2, length=1)])
def test_windows_that_cannot_be_trained_on_are_refused(tmp_path: Path, windows: np.ndarray) -> None:
    with pytest.raises(ConfigError):
        finetune(
            tiny_bundle(tmp_path),
            windows,
            config=CONFIG,
            compute=EXACT,
            seeds=SeedTree(1),
            governor=Unpaced(clock=FakeClock()),
            report=lambda progress: None,
        )


@given(st.integers(1, 60), st.integers(1, 9), st.integers(1, 3))
def test_every_epoch_visits_every_window_once(count: int, batch: int, epochs: int) -> None:
    config = TrainingConfig(batch_windows=batch, epochs=epochs)
    order = batch_order(count, config=config, seeds=SeedTree(1))
    per_epoch = len(order) // epochs
    for start in range(0, len(order), per_epoch):
        assert sorted(i for part in order[start : start + per_epoch] for i in part) == list(range(count))
    assert all(1 <= len(part) <= batch for part in order)


@given(st.integers(1, 200), st.floats(0.0, 0.9), st.floats(0.0, 1.0))
def test_the_rate_rises_to_its_top_and_falls_to_its_final_share(steps: int, warmup: float, final: float) -> None:
    config = TrainingConfig(warmup_share=warmup, final_share=final)
    shares = [rate_share(step, steps=steps, config=config) for step in range(1, steps + 1)]
    top = shares.index(max(shares))
    assert max(shares) == 1.0
    assert all(0.0 <= share <= 1.0 for share in shares)
    assert shares[:top] == sorted(shares[:top])
    assert shares[top:] == sorted(shares[top:], reverse=True)
    assert top == steps - 1 or shares[-1] == pytest.approx(final)


@given(
    st.floats(0.05, 1.0), st.integers(1, 4), st.lists(st.tuples(st.floats(0.0, 9.0), st.floats(0.0, 9.0)), min_size=1, max_size=9)
)
def test_a_step_lasts_as_long_as_the_assigned_clock_takes(share: float, threads: int, steps: list[tuple[float, float]]) -> None:
    clock, cpu = FakeClock(), [0.0]
    governor = PacingGovernor(share, clock=clock, threads=threads, cpu_time=lambda: cpu[0])
    for busy, waited in steps:
        before = clock.monotonic()
        governor.step_began()
        cpu[0] += busy
        clock.advance(busy / threads + waited)
        governor.step_ended()
        assert clock.monotonic() - before == pytest.approx(max(busy / threads + waited, busy / threads / share))
    assert governor.cpu_s == pytest.approx(sum(busy for busy, _ in steps))
    assert governor.wall_s == pytest.approx(clock.monotonic())


@pytest.mark.parametrize(("share", "threads"), [(0.0, 1), (1.1, 1), (0.5, 0)])
def test_impossible_paces_are_refused(share: float, threads: int) -> None:
    with pytest.raises(ValueError, match="clock share"):
        PacingGovernor(share, clock=FakeClock(), threads=threads)
