"""Does the referee score every setting on text that nobody trained on, and with the right blocks in the right model?"""

from datetime import UTC, datetime
from itertools import product
from math import exp
from pathlib import Path

import numpy as np
import pytest

from hushtune_client.private import own_records, own_windows
from hushtune_common import config
from hushtune_common.adapter import AdapterState, save_adapter
from hushtune_common.config import Scenario, TrainingConfig
from hushtune_common.model.adapter import adapter_specs
from hushtune_common.model.bundle import read_bundle, write_bundle
from hushtune_common.model.finetune import Unpaced, finetune
from hushtune_common.model.plan import Plan
from hushtune_common.seeding import SeedTree
from hushtune_server.testbed import rundir
from hushtune_server.testbed.referee import gather, judge
from hushtune_server.testbed.rundir import RunDirectory
from tests.fakes import FakeClock
from tests.models import ADAPTER, SPEC, tiny_bundle, tiny_source

SEED = 5
LETTERS = "abcdefgh"
TEXT = ["".join(word) for word in product(LETTERS, repeat=4)][::16]
SOURCE = tiny_source()


def scenario_of(folder: Path, split: str = "iid") -> Scenario:
    (folder / "all.txt").write_text("\n".join(TEXT), encoding="utf-8")
    data = {
        "private": f"txt:{folder / 'all.txt'}",
        "public": "txt:p.txt",
        "split": split,
        "window_tokens": 16,
        "train_windows": 6,
        "test_windows": 5,
    }
    clients = [{"id": f"c{k}", "position": {"x_m": 10.0 * k, "y_m": 0.0}} for k in (1, 2, 3)]
    training = {"learning_rate": 1e-2, "batch_windows": 4}
    tree = {"name": "judged", "seed": SEED, "model": {"source": SPEC}, "data": data, "clients": clients, "training": training}
    return config.parse(tree)


def returned(number: int) -> AdapterState:
    """Return adapter blocks that differ from the shipped ones, each number's in its own way."""
    rng = SeedTree(number).child("returned").generator()
    shipped = {spec.name: SOURCE.tensor(spec.name) for spec in adapter_specs(SOURCE.weights, ADAPTER)}
    return AdapterState({n: (t + 0.1 * rng.standard_normal(t.shape)).astype(np.float32) for n, t in shipped.items()})


def finished(folder: Path, scenario: Scenario) -> RunDirectory:
    """Return a run in which c1 and c2 sent their blocks."""
    run = rundir.create(folder / "runs", scenario, now=datetime(2026, 1, 2, tzinfo=UTC))
    adapters = run.state("owner") / "adapters"
    adapters.mkdir(parents=True)
    for number, name in enumerate(("c1", "c2", "aggregate")):
        save_adapter(adapters / f"{name}.safetensors", returned(number))
    rundir.write_json(run.state("owner") / "owner.json", {"bundle": str(tiny_bundle(folder, 2, 3))})
    return run


@pytest.mark.parametrize("split", ["iid", "by_topic", "by_size"])
def test_the_test_windows_hold_no_record_of_any_client_and_the_train_windows_are_theirs(tmp_path: Path, split: str) -> None:
    scenario = scenario_of(tmp_path, split)
    evidence = gather(finished(tmp_path, scenario), scenario, cache=tmp_path)
    shares = [own_records(scenario, client_id=c.id, sources=(), seeds=SeedTree(SEED)) for c in scenario.clients]
    nobodys = set(TEXT) - {record for share in shares for record in share}
    *whole, begun = SOURCE.tokens.decode(evidence.test.ravel().tolist()).split("\n")
    assert len(whole) > 10
    assert set(whole) <= nobodys
    assert any(record.startswith(begun) for record in nobodys)
    theirs = [own_windows(share, tokens=SOURCE.tokens, scenario=scenario) for share in shares]
    assert np.array_equal(evidence.train, np.concatenate(theirs))


def test_every_setting_is_the_loss_of_its_own_model_with_its_own_blocks_on_the_same_windows(tmp_path: Path) -> None:
    scenario = scenario_of(tmp_path)
    run = finished(tmp_path, scenario)
    windows = gather(run, scenario, cache=tmp_path).test
    result = judge(run, scenario, cache=tmp_path, bound=False, clock=FakeClock())
    emulator, full = read_bundle(tmp_path / "bundle.safetensors").load(), SOURCE.load()
    expected = {"emulator_zero_shot": emulator.loss(windows), "full_zero_shot": full.loss(windows)}
    emulator.set_adapter(returned(2).tensors)
    full.set_adapter(returned(2).tensors)
    expected |= {"emulator_fine_tuned": emulator.loss(windows), "plug_in": full.loss(windows)}
    found = {name: score["perplexity"] for name, score in result["settings"].items()}
    assert found == pytest.approx({name: exp(loss) for name, loss in expected.items()}, rel=1e-6)
    first = result["settings"]["plug_in"]["windows_nats"]
    assert first == pytest.approx([full.loss(window[None]) for window in windows], abs=2e-6)
    for number, client in enumerate(("c1", "c2")):
        full.set_adapter(returned(number).tensors)
        assert result["clients"][client]["plug_in"]["loss_nats"] == pytest.approx(full.loss(windows), rel=1e-6)
    assert rundir.read_json(run.path / "referee.json") == result


@pytest.mark.slow
def test_the_bounds_are_the_full_model_trained_on_the_clients_text_and_leave_no_model_behind(tmp_path: Path) -> None:
    scenario = scenario_of(tmp_path)
    run = finished(tmp_path, scenario)
    evidence = gather(run, scenario, cache=tmp_path)
    scores = judge(run, scenario, cache=tmp_path, bound=True, clock=FakeClock())["settings"]
    for setting, blocks, rate in (("bound", ADAPTER, 1e-2), ("full_fine_tuned", tuple(range(6)), 1e-2 / 3)):
        path = tmp_path / f"own-{setting}"
        write_bundle(path, source=SOURCE, plan=Plan.keep_all(SOURCE, adapter=blocks))
        tuned = finetune(
            path,
            evidence.train,
            config=TrainingConfig(learning_rate=rate, batch_windows=4),
            compute=scenario.compute,
            seeds=SeedTree(SEED).child("referee", setting),
            governor=Unpaced(clock=FakeClock()),
            report=lambda progress: None,
        )
        model = SOURCE.load()
        model.set_adapter(tuned.tensors)
        assert scores[setting]["loss_nats"] == pytest.approx(model.loss(evidence.test), rel=1e-6)
        assert scores[setting]["loss_nats"] < scores["full_zero_shot"]["loss_nats"] - 0.1
    assert list(run.state("referee").iterdir()) == []
