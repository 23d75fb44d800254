"""Does PEFT, in plain transformers, make of what we export the model with the adapter blocks plugged in?"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from hushtune_common.adapter import AdapterState
from hushtune_common.errors import ConfigError
from hushtune_common.model.sources import base_digest, open_source
from hushtune_common.peft.convert import Factored, change_of, factored, write_lora, write_whole
from hushtune_common.peft.lowrank import Limit, low_rank
from hushtune_common.peft.patch import patched, read_patch
from hushtune_common.peft.plain import write_plain
from tests.own_lora import (
    FAMILIES,
    OUTDATED,
    assert_same,
    changed,
    emulator,
    loaded,
    logits,
    plain,
    plain_base,
    plugged,
    source_of,
)

pytestmark = pytest.mark.filterwarnings(OUTDATED)


def exported(folder: Path, source: Any, state: AdapterState, *, limit: Limit | None = None) -> Factored:
    change = change_of(source, state, plan=None)
    found = factored(change, limit=limit or Limit())
    write_lora(folder, change, found, model="dir:base")
    return found


def settings(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "adapter_config.json").read_text())


@pytest.mark.parametrize("family", FAMILIES)
def test_a_change_of_low_rank_gives_the_plug_ins_logits_in_peft_merged_or_not(family: str, tmp_path: Path) -> None:
    source = source_of(family)
    state = changed(emulator(tmp_path, source)[1])
    exported(tmp_path / "lora", source, state)
    expected, base = plugged(source, state), plain_base(tmp_path, source)
    assert float((logits(base) - expected).abs().max()) > 1e-2
    model = loaded(base, tmp_path / "lora")
    assert_same(logits(model), expected)
    assert_same(logits(model.merge_and_unload()), expected)


def test_every_matrix_has_the_rank_of_its_change_and_nothing_is_lost(tmp_path: Path) -> None:
    source = source_of()
    found = exported(tmp_path / "lora", source, changed(emulator(tmp_path, source)[1], rank=3))
    assert len(found.factors) == 14
    assert {low.rank for low in found.factors.values()} == {3}
    assert all(low.residual <= 1e-10 * low.energy for low in found.factors.values())
    assert (settings(tmp_path / "lora")["r"], settings(tmp_path / "lora")["lora_alpha"]) == (3, 3)


def test_matrices_that_changed_by_other_ranks_and_in_other_blocks_keep_them(tmp_path: Path) -> None:
    source = source_of()
    bundle = emulator(tmp_path, source)[1]
    little, more = changed(bundle, rank=1, only="5.mlp", norms=False), changed(bundle, rank=4, only="q_proj")
    state = AdapterState({n: (more if "q_proj" in n else little).tensors[n] for n in bundle.adapter_numpy()})
    exported(tmp_path / "lora", source, state)
    assert set(settings(tmp_path / "lora")["rank_pattern"].values()) == {4}
    assert_same(logits(loaded(plain_base(tmp_path, source), tmp_path / "lora")), plugged(source, state))


def test_original_indices_stand_in_the_keys(tmp_path: Path) -> None:
    source = source_of()
    exported(tmp_path / "lora", source, changed(emulator(tmp_path, source)[1]))
    keys = load_file(tmp_path / "lora" / "adapter_model.safetensors")
    assert {key.split(".")[4] for key in keys} == {"0", "5"}
    assert settings(tmp_path / "lora")["layers_to_transform"] == [0, 5]
    assert all(key.startswith("base_model.model.model.layers.") for key in keys)


@pytest.mark.parametrize("rank", [1, 4])
def test_cutting_at_a_rank_loses_the_squares_of_the_singular_values_behind_it(rank: int) -> None:
    before, after = np.random.default_rng(1).normal(size=(2, 9, 7)).astype(np.float32)
    found = low_rank(before, after, limit=Limit(rank=rank))
    values = np.linalg.svd((after - before).astype(np.float64), compute_uv=False)
    assert (found.up.shape, found.down.shape) == ((9, rank), (rank, 7))
    assert found.residual == pytest.approx(float((values[rank:] ** 2).sum()))
    left_over = np.linalg.norm((after - before) - found.up @ found.down) ** 2
    assert left_over == pytest.approx(found.residual, rel=1e-5)


@pytest.mark.parametrize("share", [0.3, 0.9, 1.0])
def test_the_fewest_components_that_hold_a_share_of_the_energy_are_kept(share: float) -> None:
    before, after = np.random.default_rng(2).normal(size=(2, 8, 8)).astype(np.float32)
    found = low_rank(before, after, limit=Limit(energy=share))
    energies = np.linalg.svd((after - before).astype(np.float64), compute_uv=False) ** 2
    held = np.cumsum(energies) / energies.sum()
    assert found.rank == (8 if share == 1.0 else int(np.argmax(held >= share)) + 1)


def test_rounding_a_sum_to_float32_costs_no_rank_and_what_is_larger_than_rounding_does() -> None:
    generator = np.random.default_rng(3)
    before = generator.normal(size=(40, 60)).astype(np.float32)
    step = generator.normal(size=(40, 2)) @ generator.normal(size=(2, 60))
    noise = 3e-6 * generator.normal(size=(40, 60))  # some fifty times what rounding does to a number of size one
    assert low_rank(before, (before + step).astype(np.float32), limit=Limit()).rank == 2
    assert low_rank(before, (before + step + noise).astype(np.float32), limit=Limit()).rank > 2


def test_whole_blocks_that_were_trained_are_a_patch_that_transformers_loads_bit_for_bit(tmp_path: Path) -> None:
    source = source_of("gpt2")
    state = changed(emulator(tmp_path, source)[1], rank=16)
    change = change_of(source, state, plan=None)
    assert not factored(change, limit=Limit()).pays
    write_whole(tmp_path, change)
    base = plain_base(tmp_path, source)
    kept = base.load_state_dict(load_file(tmp_path / "patch.safetensors"), strict=False)
    assert kept.unexpected_keys == []
    assert torch.equal(logits(base), plugged(source, state))


def test_a_patched_model_is_written_and_read_back_as_the_plug_in(tmp_path: Path) -> None:
    source = source_of("opt")
    state = changed(emulator(tmp_path, source)[1])
    write_whole(tmp_path, change_of(source, state, plan=None))
    weights = patched(source, read_patch(tmp_path / "patch.safetensors"))
    write_plain(tmp_path / "model", config=source.config, tokens=source.tokens, weights=weights)
    assert torch.equal(logits(plain(tmp_path / "model")), plugged(source, state))
    assert open_source(f"dir:{tmp_path / 'model'}", cache=tmp_path).base_digest == base_digest(weights)


def test_a_patch_of_another_model_is_refused(tmp_path: Path) -> None:
    source = source_of()
    write_whole(tmp_path, change_of(source, changed(emulator(tmp_path, source)[1]), plan=None))
    with pytest.raises(ConfigError, match="the patch was made for"):
        patched(source_of("qwen2"), read_patch(tmp_path / "patch.safetensors"))


def test_only_what_changed_is_in_a_patch(tmp_path: Path) -> None:
    source = source_of()
    write_whole(tmp_path, change_of(source, changed(emulator(tmp_path, source)[1], only="5.mlp.up_proj"), plan=None))
    assert read_patch(tmp_path / "patch.safetensors").names() == ["model.layers.5.mlp.up_proj.weight"]


def test_blocks_that_did_not_change_are_refused(tmp_path: Path) -> None:
    source = source_of()
    with pytest.raises(ConfigError, match="nothing to export"):
        change_of(source, AdapterState(emulator(tmp_path, source)[1].adapter_numpy()), plan=None)
