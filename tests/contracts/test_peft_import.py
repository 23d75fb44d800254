"""Does a LoRA that PEFT trained become the adapter blocks that it means, and is everything else refused by its name?"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from shutil import copytree
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from hushtune_client.own_training import OwnTraining, export_model, import_adapter, require_addable, require_allowed, write_result
from hushtune_common.adapter import load_adapter
from hushtune_common.aggregation import SecureConfig
from hushtune_common.config import DpConfig, TrainingConfig, parse
from hushtune_common.errors import ConfigError
from hushtune_common.model.bundle import Bundle, read_bundle
from hushtune_common.model.rates import reach
from hushtune_common.model.slots import Compress, Drop, Quant
from hushtune_common.model.weights import TensorFile
from hushtune_common.peft.convert import change_of, factored, write_lora
from hushtune_common.peft.lowrank import Limit
from tests.own_lora import (
    FAMILIES,
    MATRICES,
    NORMS,
    OUTDATED,
    TOKENS,
    assert_same,
    changed,
    emulator,
    loaded,
    logits,
    plain,
    plain_base,
    plugged,
    source_of,
    with_lora,
)

pytestmark = pytest.mark.filterwarnings(OUTDATED)
POSITIONS = [0, 4]
"""Of the adapter blocks 0 and 5 in an emulator without block 1."""
USUAL: Mapping[str, Any] = {"target_modules": list(MATRICES["llama"]), "layers_to_transform": POSITIONS}
Tensors = dict[str, np.ndarray]


def trained(folder: Path, family: str = "llama", **settings: Any) -> tuple[Bundle, torch.Tensor]:
    """Let PEFT train on the exported emulator and save to ``lora``; return the emulator and the scores of what was trained."""
    path, bundle = emulator(folder, source_of(family))
    export_model(path, folder / "short")
    wanted = {"target_modules": list(MATRICES[family]), "layers_to_transform": POSITIONS, "fan_in_fan_out": family == "gpt2"}
    model = with_lora(plain(folder / "short"), **(wanted | settings))
    model.save_pretrained(folder / "lora")
    return bundle, logits(model)


@dataclass(frozen=True, slots=True)
class Trained:
    bundle: Bundle
    expected: torch.Tensor
    lora: Path
    """A copy that a test may spoil; the note on indices stays beside the model that it was trained on."""


@pytest.fixture(scope="module")
def once(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder = tmp_path_factory.mktemp("trained")
    return Trained(*trained(folder), folder / "lora")


@pytest.fixture
def usual(once: Trained, tmp_path: Path) -> Trained:
    return Trained(once.bundle, once.expected, Path(copytree(once.lora, tmp_path / "lora")))


def scores(bundle: Bundle, own: OwnTraining) -> torch.Tensor:
    """Return the scores of the emulator with the imported adapter blocks."""
    model = bundle.load()
    model.set_adapter(import_adapter(own, bundle=bundle).state.tensors)
    with torch.no_grad():
        return model.logits(TOKENS)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"use_rslora": True},
        {"rank_pattern": {"q_proj": 2, "4.mlp.*": 5}, "alpha_pattern": {"up_proj": 9, "layers.0.self_attn.o_proj": 1}},
        {"rank_pattern": {"^model.layers.4.mlp.up_proj": 7}, "use_rslora": True, "init_lora_weights": "gaussian"},
        {"modules_to_save": ["layers.0.input_layernorm", "layers.4.mlp.gate_proj"]},
        {"target_modules": r".*layers\.(0|4)\.mlp\.(up|down)_proj", "layers_to_transform": None, "lora_dropout": 0.1},
    ],
)
def test_what_peft_computes_with_factors_the_emulator_computes_with_the_imported_blocks(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    bundle, expected = trained(tmp_path, **settings)
    assert float((expected - logits(plain(tmp_path / "short"))).abs().max()) > 1e-2
    assert_same(scores(bundle, OwnTraining(path=tmp_path / "lora")), expected)


@pytest.mark.filterwarnings("ignore:Adapter 'default'.* invalid shape")
@pytest.mark.parametrize("biased", [{"bias": "lora_only"}, {"lora_bias": True}])
@pytest.mark.parametrize("family", ["gpt2", "opt"])
def test_biases_that_peft_trained_come_along(family: str, biased: dict[str, Any], tmp_path: Path) -> None:
    bundle, expected = trained(tmp_path, family, **biased)
    imported = import_adapter(OwnTraining(path=tmp_path / "lora"), bundle=bundle)
    assert any(n.endswith(".bias") and np.any(t != bundle.adapter_numpy()[n]) for n, t in imported.state.tensors.items())
    assert_same(scores(bundle, OwnTraining(path=tmp_path / "lora")), expected)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_from_the_emulator_through_peft_into_the_model_and_out_again_the_logits_stay(family: str, tmp_path: Path) -> None:
    source = source_of(family)
    path, bundle = emulator(tmp_path, source)
    note = export_model(path, tmp_path / "short")
    model = with_lora(
        plain(tmp_path / "short"),
        target_modules=list(MATRICES[family]),
        layers_to_transform=list(note.layers_to_transform),
        modules_to_save=[f"{k}.{NORMS[family]}" for k in note.layers_to_transform],
        fan_in_fan_out=family == "gpt2",
    )
    assert descent(model) < -0.05
    model.save_pretrained(tmp_path / "lora")

    state = import_adapter(OwnTraining(path=tmp_path / "lora"), bundle=bundle).state
    expected = plugged(source, state)

    change = change_of(source, state, plan=bundle.plan)
    found = factored(change, limit=Limit())
    assert {low.rank for low in found.factors.values()} == {3}
    write_lora(tmp_path / "out", change, found, model="dir:base")
    assert_same(logits(loaded(plain_base(tmp_path, source), tmp_path / "out")), expected)


def descent(model: Any) -> float:
    """Train for a few steps; return how the loss changed."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=5e-3)
    losses: list[float] = []
    for _ in range(8):
        loss = model(TOKENS, labels=TOKENS).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return losses[-1] - losses[0]


def test_a_lora_of_the_full_model_keeps_its_indices(tmp_path: Path) -> None:
    source = source_of()
    bundle = emulator(tmp_path, source)[1]
    model = with_lora(plain_base(tmp_path, source), target_modules=["q_proj"], layers_to_transform=[0, 5])
    model.save_pretrained(tmp_path / "lora")
    imported = import_adapter(OwnTraining(path=tmp_path / "lora", indices="original"), bundle=bundle)
    assert_same(plugged(source, imported.state), logits(model))


def test_what_was_exported_comes_back_as_it_was_without_a_word_on_indices(tmp_path: Path) -> None:
    source = source_of("qwen2")
    bundle = emulator(tmp_path, source)[1]
    state = changed(bundle)
    change = change_of(source, state, plan=bundle.plan)
    write_lora(tmp_path / "lora", change, factored(change, limit=Limit()), model="dir:base")
    again = import_adapter(OwnTraining(path=tmp_path / "lora"), bundle=bundle)
    assert again.meaning.counting == "original"
    assert all(np.allclose(t, state.tensors[n], rtol=0, atol=1e-6) for n, t in again.state.tensors.items())


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("use_dora", True),
        ("init_lora_weights", "pissa"),
        ("init_lora_weights", "olora"),
        ("peft_type", "LOHA"),
        ("layer_replication", [[0, 2], [1, 3]]),
        ("target_parameters", ["mlp.experts"]),
        ("alora_invocation_tokens", [1, 2]),
        ("what_comes_next_year", {"a": 1}),
        ("rank_pattern", {"([": 3}),
        ("r", 0),
    ],
)
def test_a_setting_that_is_not_plain_lora_is_refused_by_its_name(field: str, value: object, usual: Trained) -> None:
    path = usual.lora / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {field: value}))
    with pytest.raises(ConfigError) as refused:
        import_adapter(OwnTraining(path=usual.lora), bundle=usual.bundle)
    named = "([" if field == "rank_pattern" else field
    assert refused.value.field == f"adapter_config.json: {named}"


FIRST = "base_model.model.model.layers.0.self_attn.q_proj."


def moved_to(block: int) -> Callable[[Tensors], str]:
    def change(tensors: Tensors) -> str:
        for side in ("lora_A.weight", "lora_B.weight"):
            tensors[FIRST.replace(".0.", f".{block}.") + side] = tensors.pop(FIRST + side)
        return FIRST.replace(".0.", f".{block}.") + "lora_A.weight"

    return change


def twice(tensors: Tensors) -> str:
    """The same factors once more, under the name that they have in a model without a head."""
    for side in ("lora_A.weight", "lora_B.weight"):
        tensors[(FIRST + side).replace("model.model.model.", "model.model.")] = tensors[FIRST + side].copy()
    return FIRST + "lora_A.weight"


def whole_as_well(tensors: Tensors) -> str:
    tensors[FIRST + "weight"] = np.zeros((16, 16), dtype=np.float32)
    return FIRST + "weight"


def half(tensors: Tensors) -> str:
    del tensors[FIRST + "lora_B.weight"]
    return FIRST + "lora_B.weight"


def renamed(old: str, new: str) -> Callable[[Tensors], str]:
    def change(tensors: Tensors) -> str:
        tensors[new] = tensors.pop(FIRST + old)
        return new

    return change


def added(key: str, *shape: int) -> Callable[[Tensors], str]:
    def change(tensors: Tensors) -> str:
        tensors[key] = np.ones(shape, dtype=np.float32)
        return key

    return change


def not_finite(tensors: Tensors) -> str:
    tensors[FIRST + "lora_A.weight"][0, 0] = np.nan
    return FIRST + "lora_A.weight"


def of_another_rank(tensors: Tensors) -> str:
    tensors[FIRST + "lora_A.weight"] = tensors[FIRST + "lora_A.weight"][:2]
    tensors[FIRST + "lora_B.weight"] = tensors[FIRST + "lora_B.weight"][:, :2].copy()
    return FIRST + "lora_A.weight"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (moved_to(1), r"is of block 2 of the model, which may not be trained.*layers_to_transform=\[0, 4\]"),
        (moved_to(2), "is of block 3 of the model"),
        (moved_to(5), "there is no block 5"),
        (twice, "changes as well"),
        (whole_as_well, "changes as well"),
        (half, "come in pairs"),
        (renamed("lora_A.weight", "model.layers.0.self_attn.q_proj.lora_A.weight"), "does not begin with"),
        (renamed("lora_A.weight", FIRST + "lora_magnitude_vector"), "no factor of plain LoRA"),
        (added("base_model.model.model.embed_tokens.weight", 256, 16), "outside the blocks"),
        (added("base_model.model.lm_head.weight", 256, 16), "lm_head.*outside the blocks"),
        (added("base_model.model.model.layers.0.self_attn.q_norm.weight", 8), "no tensor self_attn.q_norm.weight"),
        (added("base_model.model.model.layers.0.input_layernorm.weight", 8), r"has shape \(8,\)"),
        (not_finite, "not finite"),
        (of_another_rank, "has rank 2, but adapter_config.json says 3"),
    ],
)
def test_a_key_that_is_not_of_the_adapter_blocks_or_there_twice_is_refused_by_its_name(
    change: Callable[[Tensors], str], says: str, usual: Trained
) -> None:
    path = usual.lora / "adapter_model.safetensors"
    tensors: Tensors = load_file(path)
    key = change(tensors)
    save_file({name: np.ascontiguousarray(t) for name, t in tensors.items()}, path)
    with pytest.raises(ConfigError, match=says) as refused:
        import_adapter(OwnTraining(path=usual.lora), bundle=usual.bundle)
    assert key in str(refused.value)


def test_blocks_that_nobody_says_how_to_count_are_not_guessed(tmp_path: Path) -> None:
    bundle, expected = trained(tmp_path)
    (tmp_path / "short" / "hushtune.json").unlink()
    with pytest.raises(ConfigError, match="--indices: say `short`"):
        import_adapter(OwnTraining(path=tmp_path / "lora"), bundle=bundle)
    with pytest.raises(ConfigError, match="of block 4 of the model"):
        import_adapter(OwnTraining(path=tmp_path / "lora", indices="original"), bundle=bundle)
    assert_same(scores(bundle, OwnTraining(path=tmp_path / "lora", indices="short")), expected)


def test_counting_otherwise_than_the_note_says_is_refused(usual: Trained) -> None:
    with pytest.raises(ConfigError, match=r"--indices: is original, but .*hushtune.json says"):
        import_adapter(OwnTraining(path=usual.lora, indices="original"), bundle=usual.bundle)


def test_a_lora_of_another_emulator_of_the_same_model_is_refused(usual: Trained, tmp_path: Path) -> None:
    other = emulator(tmp_path, source_of(), Drop(2))[1]
    with pytest.raises(ConfigError, match=r"hushtune.json: is of another emulator"):
        import_adapter(OwnTraining(path=usual.lora), bundle=other)


def test_a_lora_of_another_model_is_refused(usual: Trained, tmp_path: Path) -> None:
    other = emulator(tmp_path, source_of("qwen2"))[1]
    with pytest.raises(ConfigError, match=r"hushtune.json: is of another model"):
        import_adapter(OwnTraining(path=usual.lora), bundle=other)


def test_where_every_block_runs_nobody_has_to_say_how_blocks_are_counted(tmp_path: Path) -> None:
    source = source_of()
    bundle = emulator(tmp_path, source, Compress(index=2, quant=Quant(bits=8)))[1]
    model = with_lora(plain_base(tmp_path, source), target_modules=["q_proj"], layers_to_transform=[0, 5])
    model.save_pretrained(tmp_path / "lora")
    imported = import_adapter(OwnTraining(path=tmp_path / "lora"), bundle=bundle)
    assert_same(plugged(source, imported.state), logits(model))


def test_a_round_gets_the_whole_adapter_in_a_file_for_its_user_only(usual: Trained, tmp_path: Path) -> None:
    result = tmp_path / "adapter.safetensors"
    imported = write_result(OwnTraining(path=usual.lora), bundle=usual.bundle.file.path, result=result)
    found = load_adapter(result, usual.bundle.schema)
    assert all(np.array_equal(t, imported.state.tensors[n]) for n, t in found.tensors.items())
    assert (result.stat().st_mode & 0o777, list(tmp_path.glob("*.partial"))) == (0o600, [])
    assert imported.facts == {"matrices": 8, "ranks": [3, 3], "whole_tensors": 0, "indices": "short"}


def test_after_the_first_round_only_what_started_from_that_rounds_blocks_is_taken(usual: Trained, tmp_path: Path) -> None:
    path, result = usual.bundle.file.path, tmp_path / "adapter.safetensors"
    write_result(OwnTraining(path=usual.lora), bundle=path, result=result, round_id=2)
    settings = usual.lora / "adapter_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"base_model_name_or_path": "elsewhere"}))
    unknown = OwnTraining(path=usual.lora, indices="short")
    write_result(unknown, bundle=path, result=result, round_id=1)
    with pytest.raises(ConfigError, match="--adapter-from: nothing says that it was trained on the emulator of round 2"):
        write_result(unknown, bundle=path, result=result, round_id=2)


def test_a_lora_that_started_from_other_adapter_blocks_is_refused(usual: Trained, tmp_path: Path) -> None:
    path, _ = emulator(tmp_path, source_of())
    tensors = load_file(path)
    tensors["model.layers.5.mlp.up_proj.weight"] += 0.5
    file = TensorFile.open(path)
    save_file(tensors, path, metadata=dict(file.metadata))
    with pytest.raises(ConfigError, match="adapter blocks started elsewhere"):
        import_adapter(OwnTraining(path=usual.lora), bundle=read_bundle(path))


def test_pickled_weights_and_a_folder_without_any_are_refused_with_what_to_do(usual: Trained) -> None:
    (usual.lora / "adapter_model.safetensors").rename(usual.lora / "adapter_model.bin")
    with pytest.raises(ConfigError, match="safe_serialization=True"):
        import_adapter(OwnTraining(path=usual.lora), bundle=usual.bundle)
    with pytest.raises(ConfigError, match="the folder that save_pretrained wrote"):
        import_adapter(OwnTraining(path=usual.lora / "nowhere"), bundle=usual.bundle)


def test_a_scenario_that_promises_privacy_takes_no_training_from_elsewhere(tmp_path: Path) -> None:
    require_allowed(OwnTraining(path=tmp_path), training=TrainingConfig())
    with pytest.raises(ConfigError, match=r"--adapter-from: training\.dp promises"):
        require_allowed(OwnTraining(path=tmp_path), training=TrainingConfig(dp=DpConfig()))
    with pytest.raises(ConfigError, match=r"--adapter-from: .*nothing is not there"):
        require_allowed(OwnTraining(path=tmp_path / "nothing"), training=TrainingConfig())


def test_an_imported_adapter_is_imported_again_bit_for_bit_and_vouches_for_its_start(usual: Trained, tmp_path: Path) -> None:
    path, result = usual.bundle.file.path, tmp_path / "adapter.safetensors"
    first = write_result(OwnTraining(path=usual.lora), bundle=path, result=result)
    again = import_adapter(OwnTraining(path=result), bundle=usual.bundle, round_id=2)
    assert all(np.array_equal(t, again.state.tensors[n]) for n, t in first.state.tensors.items())


@pytest.mark.parametrize(("share", "fits"), [(0.9, True), (1.1, False)])
def test_where_updates_are_only_added_a_change_beyond_what_can_be_added_is_refused(
    usual: Trained, share: float, fits: bool
) -> None:
    tree = {
        "name": "sum",
        "seed": 1,
        "model": {"source": "random:blocks=6"},
        "data": {"private": "txt:a", "public": "txt:b", "train_windows": 16},
        "owner": {"aggregation": {"kind": "secure", "members_min": 3, "colluders": 0}},
        "clients": [{"id": f"c{k}", "position": {"x_m": 50.0, "y_m": 0.0}} for k in range(4)],
        "coordinator": {"stragglers": {"kind": "everyone"}},
    }
    scenario, name = parse(tree), "model.layers.5.mlp.up_proj.weight"
    options = scenario.owner.aggregation
    assert isinstance(options, SecureConfig)
    clip = options.clip_share * reach(scenario.training, windows=16)
    shipped = usual.bundle.adapter_numpy()[name]
    imported = import_adapter(patch(usual, {name: shipped + np.float32(share * clip)}), bundle=usual.bundle)
    if fits:
        require_addable(imported, bundle=usual.bundle, scenario=scenario)
    else:
        with pytest.raises(ConfigError, match=rf"--adapter-from: {name} changed by up to .* secure adds no more"):
            require_addable(imported, bundle=usual.bundle, scenario=scenario)
    require_addable(imported, bundle=usual.bundle, scenario=parse({**tree, "owner": {}}))


def patch(usual: Trained, tensors: Tensors, **said: str) -> OwnTraining:
    """Return a file of whole tensors that says what it has to, unless ``said`` is something else."""
    metadata = {"format": "hushtune-patch/1", "base": usual.bundle.base_digest.hex} | said
    save_file(tensors, usual.lora / "patch.safetensors", metadata={key: text for key, text in metadata.items() if text})
    return OwnTraining(path=usual.lora / "patch.safetensors")


def test_a_patch_replaces_its_tensors_and_leaves_the_others_as_they_were_shipped(usual: Trained) -> None:
    name, shipped = "model.layers.5.mlp.up_proj.weight", usual.bundle.adapter_numpy()
    found = import_adapter(patch(usual, {name: shipped[name] * 2}), bundle=usual.bundle).state.tensors
    assert np.array_equal(found[name], shipped[name] * 2)
    assert all(np.array_equal(found[n], t) for n, t in shipped.items() if n != name)


@pytest.mark.parametrize(
    ("name", "shape", "said", "says"),
    [
        ("model.layers.5.input_layernorm.weight", (16,), {"format": "pt"}, "neither a patch nor"),
        ("model.layers.5.input_layernorm.weight", (16,), {"base": ""}, "base: is not in the file's metadata"),
        ("model.layers.5.input_layernorm.weight", (16,), {"base": 64 * "0"}, "base: is of another model"),
        ("model.layers.5.input_layernorm.weight", (16,), {"plan": 64 * "0"}, "plan: is of another plan"),
        ("model.layers.5.input_layernorm.weight", (16,), {"shipped": 64 * "0"}, "shipped: is of another emulator"),
        ("model.layers.2.input_layernorm.weight", (16,), {}, r"layers\.2\.\S*: is no tensor of the adapter blocks.*are 0,5"),
        ("model.layers.5.input_layernorm.weight", (8,), {}, r"has shape \(8,\)"),
    ],
)
def test_a_patch_of_something_else_is_refused_by_the_field_that_says_so(
    usual: Trained, name: str, shape: tuple[int, ...], said: dict[str, str], says: str
) -> None:
    own = patch(usual, {name: np.ones(shape, np.float32)}, **said)
    with pytest.raises(ConfigError, match=says):
        import_adapter(own, bundle=usual.bundle)


def test_a_patch_that_vouches_for_no_start_is_good_for_the_first_round_only(usual: Trained) -> None:
    own = patch(usual, {"model.layers.5.input_layernorm.weight": np.full(16, np.inf, np.float32)})
    with pytest.raises(ConfigError, match="not finite"):
        import_adapter(own, bundle=usual.bundle)
    own = patch(usual, {"model.layers.5.input_layernorm.weight": np.ones(16, np.float32)})
    import_adapter(own, bundle=usual.bundle)
    with pytest.raises(ConfigError, match="--adapter-from: nothing says that it was trained on the emulator of round 2"):
        import_adapter(own, bundle=usual.bundle, round_id=2)
