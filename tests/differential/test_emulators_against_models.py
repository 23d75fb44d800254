"""Does an emulator equal the model it was made from, as far as nothing was left out?"""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM

from hushtune_common.config import ComputeConfig
from hushtune_common.errors import ConfigError
from hushtune_common.model.adapter import adapter_specs, extract, insert
from hushtune_common.model.bundle import read_bundle
from hushtune_common.model.language import LanguageModel
from hushtune_common.model.sources import ModelSource
from tests.models import ADAPTER, model_directory, some_windows, tiny_bundle, tiny_source

SPECS = ("random:blocks=6,hidden=32,heads=4,seed=1", "random:blocks=6,hidden=48,heads=6,kv_heads=3,tied=0,vocab=300,seed=2")


@pytest.fixture(params=SPECS, ids=["tied", "untied"])
def source(request: pytest.FixtureRequest) -> ModelSource:
    return tiny_source(request.param)


def gradients(model: LanguageModel) -> dict[str, torch.Tensor]:
    parameters = model.adapter_parameters(ADAPTER)
    for parameter in parameters.values():
        parameter.requires_grad_(True)
    model.batch_loss(torch.from_numpy(some_windows())).backward()
    return {name: p.grad for name, p in parameters.items() if p.grad is not None}


def test_running_block_by_block_gives_the_modules_own_logits(source: ModelSource) -> None:
    model = source.load()
    tokens = torch.from_numpy(some_windows())
    assert torch.equal(model.logits(tokens), model.module(tokens).logits)


def test_our_loader_equals_the_reference_loader(source: ModelSource, tmp_path: Path) -> None:
    reference = LlamaForCausalLM.from_pretrained(model_directory(tmp_path / "model", source=source), dtype=torch.float32)
    tokens = torch.from_numpy(some_windows())
    assert torch.equal(source.load().logits(tokens), reference(tokens).logits)


def test_an_emulator_that_drops_nothing_is_the_model_bit_for_bit(source: ModelSource, tmp_path: Path) -> None:
    emulator = read_bundle(tiny_bundle(tmp_path, source=source)).load()
    tokens = torch.from_numpy(some_windows())
    assert torch.equal(emulator.logits(tokens), source.load().logits(tokens))


def test_an_emulator_that_drops_nothing_has_the_models_adapter_gradients(source: ModelSource, tmp_path: Path) -> None:
    expected = gradients(source.load())
    found = gradients(read_bundle(tiny_bundle(tmp_path, source=source)).load())
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_dropped_block_is_skipped_and_the_others_keep_their_weights(source: ModelSource, tmp_path: Path) -> None:
    emulator = read_bundle(tiny_bundle(tmp_path, 2, 4, source=source)).load()
    reference = source.load()
    tokens = torch.from_numpy(some_windows())
    parts = reference.parts
    assert torch.equal(emulator.logits(tokens), parts.predict(parts.run(parts.embed(tokens), blocks=(0, 1, 3, 5))))


def test_plugging_in_untouched_adapter_blocks_is_the_model_bit_for_bit(source: ModelSource, tmp_path: Path) -> None:
    emulator = read_bundle(tiny_bundle(tmp_path, 2, 3, source=source)).load()
    plugged = source.load()
    insert(plugged, extract(emulator, ADAPTER), expected=adapter_specs(source.weights, ADAPTER))
    reference = source.load()
    for name, value in plugged.module.state_dict().items():
        assert torch.equal(value, reference.module.state_dict()[name]), name


def test_adapter_blocks_go_back_by_original_index_and_not_by_position(tmp_path: Path) -> None:
    source = tiny_source()
    emulator = read_bundle(tiny_bundle(tmp_path, 2, 3)).load()
    state = extract(emulator, (5,))
    assert {spec.name for spec in adapter_specs(source.weights, (5,))} == set(state.tensors)
    for name, value in state.tensors.items():
        assert name.startswith("model.layers.5.")
        assert np.array_equal(value, source.tensor(name))


def test_what_a_client_changes_in_its_emulator_changes_no_file(tmp_path: Path) -> None:
    path = tiny_bundle(tmp_path)
    before = path.read_bytes()
    model = read_bundle(path).load()
    model.set_adapter({name: np.zeros_like(value) for name, value in extract(model, ADAPTER).tensors.items()})
    assert path.read_bytes() == before
    assert any(value.any() for value in read_bundle(path).adapter_numpy().values())


def test_the_loss_does_not_depend_on_the_batch_size(source: ModelSource) -> None:
    model = source.load()
    windows = some_windows(7)
    reference = torch.nn.functional.cross_entropy(
        model.logits(torch.from_numpy(windows))[:, :-1].flatten(0, 1).double(), torch.from_numpy(windows)[:, 1:].flatten()
    )
    assert model.loss(windows, batch=2) == pytest.approx(float(reference), rel=1e-5)
    assert model.loss(windows, batch=7) == pytest.approx(float(reference), rel=1e-5)


def test_bfloat16_products_stay_close_to_exact_ones(source: ModelSource) -> None:
    windows = some_windows()
    # bfloat16 has 8 significant bits; logits of order one move by about 2**-8 each.
    assert source.load(ComputeConfig(device="cpu", precision="bf16")).loss(windows) == pytest.approx(
        source.load().loss(windows), abs=0.05
    )


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU that torch can use")
def test_a_gpu_gives_the_losses_of_the_cpu_to_rounding(source: ModelSource) -> None:
    windows = some_windows()
    model = source.load(ComputeConfig(device="cuda"))
    model.set_adapter(extract(source.load(), [0]).tensors)
    assert model.loss(windows) == pytest.approx(source.load().loss(windows), rel=1e-4)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_a_config_error(source: ModelSource) -> None:
    with pytest.raises(ConfigError, match=r"compute.device: no GPU"):
        source.load(ComputeConfig(device="cuda"))
