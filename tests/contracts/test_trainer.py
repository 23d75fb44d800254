"""Does the warm child train like a direct call, report as it goes, fail by its type, and never outlive its parent?"""

import asyncio
import resource
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import psutil
import pytest

from hushtune_client.finetune import finetune
from hushtune_client.governor import PacingGovernor
from hushtune_client.trainer import Order, StepReport, Trained, Trainer
from hushtune_client.windows import load_windows, save_windows
from hushtune_common.adapter import load_adapter
from hushtune_common.clock import SystemClock
from hushtune_common.config import ComputeConfig, DpConfig, TrainingConfig
from hushtune_common.errors import MalformedUpdate, StorageFull, TrainerFailed
from hushtune_common.model.bundle import read_bundle
from hushtune_common.seeding import SeedTree
from hushtune_common.units import Second
from tests.models import some_windows, tiny_bundle

_T = TypeVar("_T")


@pytest.fixture(scope="module")
def trainer() -> Iterator[Trainer]:
    """One warm child for the whole file; a test that loses it gets a fresh one with its next order."""
    warm = Trainer(clock=SystemClock())
    warm.start()
    yield warm
    asyncio.run(warm.stop())


@pytest.fixture
def order(tmp_path: Path) -> Order:
    windows = tmp_path / "windows.npy"
    save_windows(windows, some_windows(12))
    return Order(
        round_id=1,
        bundle=tiny_bundle(tmp_path, 3),
        windows=windows,
        result=tmp_path / "adapter.safetensors",
        config=TrainingConfig(learning_rate=1e-2, batch_windows=4, epochs=2),
        compute=ComputeConfig(device="cpu"),
        clock_share=1.0,
        seeds=SeedTree(3).child("round-1", "c1", "training"),
        deadline=Second(60.0),
    )


def nothing(*_: object) -> None:
    return None


def run(work: Awaitable[_T]) -> _T:
    async def bounded() -> _T:
        return await asyncio.wait_for(work, 60.0)

    return asyncio.run(bounded())


def train(trainer: Trainer, order: Order, *, report: Callable[[StepReport], None] = nothing) -> Trained:
    return run(trainer.train(order, started=nothing, report=report))


def is_gone(pid: int, *, within_s: float) -> bool:
    try:
        psutil.Process(pid).wait(within_s)
    except psutil.NoSuchProcess:
        return True
    except psutil.TimeoutExpired:
        return False
    return True


def pid_of(trainer: Trainer) -> int:
    assert trainer.pid is not None
    return trainer.pid


@pytest.mark.slow
def test_the_child_trains_exactly_like_a_direct_call(trainer: Trainer, order: Order) -> None:
    steps = list[StepReport]()
    started = list[bool]()
    trained = run(trainer.train(order, started=lambda: started.append(True), report=steps.append))
    reference = finetune(
        order.bundle,
        load_windows(order.windows),
        config=order.config,
        compute=ComputeConfig(device="cpu"),
        seeds=order.seeds,
        governor=PacingGovernor(1.0, clock=SystemClock()),
        report=nothing,
    )
    result = load_adapter(order.result, read_bundle(order.bundle).schema)
    for name, tensor in reference.tensors.items():
        np.testing.assert_array_equal(result.tensors[name], tensor)
    assert started == [True]
    assert [s.step for s in steps] == [1, 2, 3, 4, 5, 6]
    assert (trained.steps, trained.tokens) == (6, 2 * 12 * 17)
    assert (trained.loss_first, trained.loss_last) == (steps[0].loss, steps[-1].loss)


@pytest.mark.slow
def test_a_private_training_says_and_logs_what_it_spent(trainer: Trainer, order: Order, caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("opacus")
    caplog.set_level("INFO")
    steps = list[StepReport]()
    private = TrainingConfig(batch_windows=12, epochs=3, dp=DpConfig(epsilon=4.0))
    train(trainer, replace(order, config=private), report=steps.append)
    assert steps[-1].privacy is not None
    assert 3.9 < steps[-1].privacy["epsilon"] <= 4.0
    assert steps[-1].privacy["steps"] == 3
    assert "privacy_spent" in [record.getMessage() for record in caplog.records]


@pytest.mark.slow
def test_the_child_stays_warm_from_order_to_order(trainer: Trainer, order: Order) -> None:
    train(trainer, order)
    pid = pid_of(trainer)
    train(trainer, order)
    assert pid_of(trainer) == pid


@pytest.mark.slow
def test_a_broken_order_is_refused_with_its_reason_and_the_child_goes_on(trainer: Trainer, order: Order, tmp_path: Path) -> None:
    (tmp_path / "broken").write_bytes(b"not a bundle")
    for broken in (replace(order, bundle=tmp_path / "broken"), replace(order, windows=tmp_path / "broken")):
        with pytest.raises(TrainerFailed, match="broken"):
            train(trainer, broken)
    assert train(trainer, order).steps == 6


@pytest.mark.slow
def test_a_full_disk_is_told_as_such_and_is_no_defect_of_ours(order: Order) -> None:
    cramped, before = Trainer(clock=SystemClock()), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))  # no file of the child may be longer
    try:
        cramped.start()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    with pytest.raises(StorageFull, match="the disk is full"):
        train(cramped, order)
    run(cramped.stop())


@pytest.mark.slow
def test_numbers_that_stop_being_finite_are_a_failure(trainer: Trainer, order: Order) -> None:
    wild = TrainingConfig(learning_rate=1e30, batch_windows=4, epochs=4)
    with pytest.raises(TrainerFailed, match="learning_rate"):
        train(trainer, replace(order, config=wild))


@pytest.mark.slow
def test_a_child_killed_in_mid_training_is_a_failure_and_the_next_order_gets_a_fresh_one(trainer: Trainer, order: Order) -> None:
    long = replace(order, config=TrainingConfig(batch_windows=4, epochs=100_000))
    killed = list[int]()

    def kill(_: StepReport) -> None:
        if not killed:
            killed.append(pid_of(trainer))
            psutil.Process(killed[0]).kill()

    with pytest.raises(TrainerFailed, match="died"):
        train(trainer, long, report=kill)
    assert train(trainer, order).steps == 6
    assert pid_of(trainer) != killed[0]


@pytest.mark.slow
def test_the_clock_can_be_changed_in_mid_training_and_the_result_is_the_same(trainer: Trainer, order: Order) -> None:
    slow = replace(order, clock_share=1e-4)

    async def work() -> Trained:
        first = asyncio.Event()
        task = asyncio.create_task(trainer.train(slow, started=first.set, report=nothing))
        await first.wait()
        await trainer.retune(1.0)
        return await task

    trained = run(work())
    assert trained.steps == 6
    assert trained.wall < 1e3 * trained.cpu
    assert trained.governor == "pacing"


@pytest.mark.slow
def test_the_deadline_ends_training_and_the_child(trainer: Trainer, order: Order) -> None:
    long = replace(order, config=TrainingConfig(batch_windows=4, epochs=100_000), deadline=Second(1.0))
    trainer.start()
    pid = pid_of(trainer)
    with pytest.raises(TrainerFailed, match="longer than"):
        train(trainer, long)
    assert is_gone(pid, within_s=2.0)


@pytest.mark.slow
def test_cancelling_leaves_no_child_behind(order: Order) -> None:
    async def work() -> int:
        trainer = Trainer(clock=SystemClock())
        task = asyncio.create_task(trainer.train(order, started=nothing, report=nothing))
        await asyncio.sleep(0)
        pid = pid_of(trainer)
        task.cancel()
        await asyncio.wait({task})
        assert task.cancelled()
        assert trainer.pid is None
        return pid

    assert is_gone(run(work()), within_s=2.0)


def test_stopping_ends_the_child_within_two_seconds() -> None:
    trainer = Trainer(clock=SystemClock())
    trainer.start()
    pid = pid_of(trainer)
    run(asyncio.wait_for(trainer.stop(), 2.0))
    assert is_gone(pid, within_s=0.1)
    run(trainer.stop())


_PARENT = """
import sys, time
from hushtune_client.trainer import Trainer
from hushtune_common.clock import SystemClock
if __name__ == "__main__":
    trainer = Trainer(clock=SystemClock())
    trainer.start()
    print(trainer.pid, flush=True)
    SystemClock().pause(60)
"""


@pytest.mark.slow
def test_the_child_ends_by_itself_when_its_parent_is_killed(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(_PARENT, encoding="utf-8")
    with subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert psutil.pid_exists(pid)
        parent.kill()
        assert is_gone(pid, within_s=10.0)


def test_windows_come_back_as_they_were_and_only_their_owner_can_read_them(tmp_path: Path) -> None:
    path, windows = tmp_path / "w.npy", some_windows(3)
    save_windows(path, windows)
    np.testing.assert_array_equal(load_windows(path), windows)
    assert path.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(
    "array",
    [np.zeros((2, 3), np.float32), np.zeros(4, np.int64), np.zeros((0, 3), np.int64), np.array([[object()]])],
    ids=["wrong type", "one dimension", "empty", "objects"],
)
def test_windows_of_another_form_are_refused(tmp_path: Path, array: np.ndarray[tuple[int, ...]]) -> None:
    path = tmp_path / "w.npy"
    np.save(path, array, allow_pickle=True)
    with pytest.raises(MalformedUpdate):
        load_windows(path)


@pytest.mark.parametrize("share", [0.0, 1.5])
def test_a_clock_that_no_governor_can_keep_is_refused(order: Order, share: float) -> None:
    with pytest.raises(ValueError, match="clock_share"):
        replace(order, clock_share=share)
