"""Does a client return what was trained elsewhere, and claim nothing of how that was done?"""

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from hushtune_client.own_training import OwnTraining, export_model, import_adapter
from hushtune_common.errors import ConfigError
from hushtune_common.model.bundle import read_bundle
from tests.client_stage import Stage, events, logged, received, run, stage_in, with_direction, with_settings
from tests.kits import Kits
from tests.own_lora import OUTDATED, plain, with_lora


@pytest.fixture(scope="module")
def kits(tmp_path_factory: pytest.TempPathFactory) -> Kits:
    return Kits(tmp_path_factory.mktemp("kits"))


@pytest.fixture
def stage(tmp_path: Path, kits: Kits) -> Stage:
    return stage_in(tmp_path, kits=kits)


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    with logged() as stream:
        yield stream


def own_lora(stage: Stage, *blocks: int) -> OwnTraining:
    """Let PEFT train on the exported emulator, and return where it saved."""
    export_model(stage.folder / "bundle.safetensors", stage.folder / "short")
    model = with_lora(plain(stage.folder / "short"), target_modules=["up_proj"], layers_to_transform=list(blocks))
    model.save_pretrained(stage.folder / "lora")
    return OwnTraining(path=stage.folder / "lora")


def own_patch(stage: Stage, **said: str) -> OwnTraining:
    """Return a patch of one matrix, of which only ``said`` is another than that of the emulator."""
    bundle = read_bundle(stage.folder / "bundle.safetensors")
    name = next(name for name in bundle.adapter_numpy() if name.endswith("up_proj.weight"))
    of = {"format": "hushtune-patch/1", "base": bundle.base_digest.hex, "plan": bundle.plan.digest.hex}
    save_file({name: bundle.adapter_numpy()[name] + np.float32(0.05)}, stage.folder / "patch.safetensors", metadata=of | said)
    return OwnTraining(path=stage.folder / "patch.safetensors")


@pytest.mark.slow
@pytest.mark.filterwarnings(OUTDATED)
@pytest.mark.parametrize("kind", ["lora", "patch"])
def test_a_client_that_trained_elsewhere_returns_that_and_claims_no_figure_of_a_training(
    stage: Stage, log: io.StringIO, kind: str
) -> None:
    stage.own = own_lora(stage, 0, 4) if kind == "lora" else own_patch(stage)
    assert run(with_direction(stage.take_part(), stage.world)) == 0
    bundle = read_bundle(stage.folder / "bundle.safetensors")
    expected = import_adapter(stage.own, bundle=bundle).state.tensors
    found = received(stage).tensors
    assert all(abs(found[name] - tensor).max() < 1e-3 for name, tensor in expected.items())  # of which a codec is the cause
    assert any(abs(found[name] - tensor).max() > 1e-2 for name, tensor in bundle.adapter_numpy().items())
    (done,) = stage.world.completions.values()
    assert (done.uploaded, done.train_seconds) == (True, 0.0)
    (imported,) = [e for e in events(log) if e["event"] == "adapter_imported"]
    told = {"lora": (2, [3, 3], 0, "short"), "patch": (0, [], 1, "original")}
    assert (imported["matrices"], imported["ranks"], imported["whole_tensors"], imported["indices"]) == told[kind]
    assert not {"training_finished", "training_progressed", "trainer_started"} & {e["event"] for e in events(log)}


@pytest.mark.slow
@pytest.mark.filterwarnings(OUTDATED)
def test_a_lora_outside_the_adapter_blocks_ends_the_client_before_it_reports(stage: Stage) -> None:
    stage.own = own_lora(stage, 2)
    with pytest.raises(ConfigError, match=r"layers\.2\..* is of block \d of the model, which may not be trained"):
        run(with_direction(stage.take_part(), stage.world))
    assert not stage.world.reports


@pytest.mark.slow
@pytest.mark.parametrize("field", ["base", "plan"])
def test_a_patch_of_something_else_ends_the_client_before_it_reports(stage: Stage, field: str) -> None:
    stage.own = own_patch(stage, **{field: 64 * "0"})
    with pytest.raises(ConfigError, match=rf"patch.safetensors {field}: "):
        run(with_direction(stage.take_part(), stage.world))
    assert not stage.world.reports


def test_a_training_from_elsewhere_has_no_place_in_a_scenario_that_bounds_privacy(stage: Stage) -> None:
    with_settings(stage, "training.dp={}")
    stage.own = OwnTraining(path=stage.folder / "nowhere")
    with pytest.raises(ConfigError, match=r"--adapter-from: training\.dp"):
        run(stage.take_part())
