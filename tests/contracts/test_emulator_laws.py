"""Do plans and emulators obey the laws of the engine, whatever the family of the model?"""

import dataclasses
import json
import tracemalloc
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from hushtune_common.adapter import AdapterState, load_adapter, save_adapter
from hushtune_common.messages import Digest
from hushtune_common.model.adapter import adapter_specs, extract, insert
from hushtune_common.model.assembly import assembled
from hushtune_common.model.bundle import Refinement, emulator_tensors, read_bundle, write_bundle
from hushtune_common.model.language import LanguageModel
from hushtune_common.model.layout import BlockLayout, Matrix
from hushtune_common.model.materialise import EmulatorTensors
from hushtune_common.model.naming import block_of, moved
from hushtune_common.model.plan import Plan
from hushtune_common.model.quantise import quantised
from hushtune_common.model.slots import Compress, Drop, Harmonize, Keep, Quant, Share, Slot
from hushtune_common.model.sources import ModelSource, open_source
from hushtune_common.model.weights import TensorFile, write_tensors
from tests.models import model_directory
from tests.small_families import (
    ADAPTER,
    BLOCKS,
    CAUSAL,
    FAMILIES,
    HIDDEN,
    INNER,
    Held,
    emulated,
    family_source,
    hidden_of,
    plan_of,
    reference,
    some_tokens,
)

SOURCES = {family: family_source(family) for family in FAMILIES}
every_family = pytest.mark.parametrize("family", FAMILIES)
every_causal = pytest.mark.parametrize("family", CAUSAL)


def layout(source: ModelSource) -> BlockLayout:
    return EmulatorTensors(source.weights, plan_of(source)).layout


def weights_of(source: ModelSource) -> Held:
    return Held({name: source.tensor(name) for name in source.names()})


def name_in(source: ModelSource, block: int, inner: str) -> str:
    return next(moved(n, to=block, inner=inner) for n in source.names() if block_of(n) == block)


def upright(tensor: NDArray[np.float32], matrix: Matrix) -> NDArray[np.float32]:
    return np.ascontiguousarray(tensor.T) if matrix.transposed else tensor


def mixed(source: ModelSource) -> Plan:
    """Return a plan with a slot of every kind."""
    ranks = {m.path: (0, 1, 3) for m in layout(source).attention}
    compressed = Compress(index=1, ranks=ranks, channels=(0, *range(3, INNER, 2)), quant=Quant(bits=4, block=16))
    return plan_of(source, compressed, Share(2, 1), Harmonize(3, 3))


def refinement_of(plan: Plan, source: ModelSource, *, by: float = 0.01) -> Refinement:
    """Return what moves every floating tensor of blocks 1 and 3 a little."""
    name = name_in(source, 3, "up.bias")
    matrix = layout(source).up[0]
    cut = name_in(source, 1, f"{matrix.path}.weight")
    tensors = emulator_tensors(source, plan=dataclasses.replace(plan, slots=tuple(map(without_quant, plan.slots))))
    return Refinement(settings='{"steps":1}', trained={n: tensors.tensor(n) + np.float32(by) for n in (name, cut)})


def without_quant(slot: Slot) -> Slot:
    return dataclasses.replace(slot, quant=None) if isinstance(slot, Compress) else slot


def same(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a, b)


def close(a: Tensor, b: Tensor, *, relative: float = 1e-5) -> bool:
    return bool((a - b).abs().max() <= relative * b.abs().max())


def gradients(model: LanguageModel) -> dict[str, Tensor]:
    parameters = model.adapter_parameters(ADAPTER)
    for parameter in parameters.values():
        parameter.requires_grad_(True)
    model.batch_loss(some_tokens()).backward()
    return {name: p.grad.clone() for name, p in parameters.items() if p.grad is not None}


# Law 1: a plan is JSON and nothing else; equal inputs give equal bytes.


@every_family
def test_a_plan_with_every_kind_of_slot_survives_both_forms_of_its_json(family: str) -> None:
    plan = dataclasses.replace(mixed(SOURCES[family]), parameters={"scores": [1e-9, -0.0, 3], "why": ("é", None)}, seed=-1)
    assert Plan.from_json(plan.to_json()) == Plan.from_json(plan.to_readable_json().encode()) == plan
    assert plan.digest == Digest.of(plan.to_json().encode())


@every_family
def test_equal_inputs_give_equal_bytes_with_every_kind_of_slot(family: str, tmp_path: Path) -> None:
    plan = mixed(SOURCES[family])
    for name in ("a", "b"):
        source = family_source(family)
        write_bundle(tmp_path / name, source=source, plan=plan, refinement=refinement_of(plan, source))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


# Law 2: the plan that keeps everything is the model.


@every_causal
def test_an_emulator_that_keeps_everything_has_the_models_logits_and_adapter_gradients_bit_for_bit(
    family: str, tmp_path: Path
) -> None:
    source = SOURCES[family]
    write_bundle(tmp_path / "b", source=source, plan=Plan.keep_all(source, adapter=ADAPTER))
    full, emulator = source.load(), read_bundle(tmp_path / "b").load()
    assert same(full.logits(some_tokens()), emulator.logits(some_tokens()))
    ours, theirs = gradients(emulator), gradients(full)
    assert len(ours) == len(adapter_specs(source.weights, ADAPTER))
    assert all(same(ours[name], gradient) for name, gradient in theirs.items())


@every_causal
def test_the_model_itself_is_what_transformers_makes_of_the_same_weights(family: str) -> None:
    with torch.no_grad():
        theirs = reference(family)(input_ids=some_tokens()).logits
    assert same(SOURCES[family].load().logits(some_tokens()), theirs)


# Law 3: what was not trained changes nothing.


@every_causal
def test_an_untouched_adapter_out_of_an_emulator_and_a_file_leaves_the_model_bit_for_bit_as_it_was(
    family: str, tmp_path: Path
) -> None:
    source = SOURCES[family]
    write_bundle(tmp_path / "b", source=source, plan=mixed(source))
    bundle = read_bundle(tmp_path / "b")
    save_adapter(tmp_path / "a", extract(bundle.load(), ADAPTER))
    full = source.load()
    before = {name: t.clone() for name, t in full.module.state_dict().items()}
    insert(full, load_adapter(tmp_path / "a", bundle.schema), expected=bundle.schema)
    assert all(same(t, before[name]) for name, t in full.module.state_dict().items())
    assert same(full.logits(some_tokens()), source.load().logits(some_tokens()))


@every_causal
def test_a_trained_adapter_is_plugged_in_by_original_index(family: str) -> None:
    source = SOURCES[family]
    plan = plan_of(source, Drop(0), Drop(1), Share(2, 4), adapter=(3, 4))
    emulator = LanguageModel.build(source.config, emulator_tensors(source, plan=plan), slots=plan.slots)
    trained = AdapterState({n: t + np.float32(b + 1) for b in (3, 4) for n, t in extract(emulator, (b,)).tensors.items()})
    full = source.load()
    insert(full, trained, expected=adapter_specs(source.weights, (3, 4)))
    after = extract(full, range(BLOCKS)).tensors
    raised = {3: np.float32(4), 4: np.float32(5)}
    assert all(np.array_equal(t, source.tensor(n) + raised.get(block_of(n) or 0, np.float32(0))) for n, t in after.items())


# Law 4: neither plan nor refinement changes a tensor of an adapter block.


@every_family
def test_adapter_blocks_are_shipped_bit_for_bit_and_never_trained(family: str) -> None:
    source = SOURCES[family]
    plan = mixed(source)
    tensors = emulator_tensors(source, plan=plan, refinement=refinement_of(plan, source))
    own = [n for n in source.names() if block_of(n) in ADAPTER]
    assert all(np.array_equal(tensors.tensor(n), source.tensor(n)) and tensors.dtype(n) == "F32" for n in own)
    for name in own:
        with pytest.raises(ValueError, match=f"{name}: block [04] is an adapter block"):
            EmulatorTensors(source.weights, plan, trained={name: source.tensor(name)})


@every_causal
def test_the_copy_of_a_shared_adapter_block_is_not_trained_with_it(family: str) -> None:
    source = SOURCES[family]
    plan = plan_of(source, Share(2, 0))
    emulator = LanguageModel.build(source.config, emulator_tensors(source, plan=plan), slots=plan.slots)
    trained = list(emulator.adapter_parameters(ADAPTER).values())
    for parameter in trained:
        parameter.requires_grad_(True)
    emulator.batch_loss(some_tokens()).backward()
    torch.optim.SGD(trained, lr=0.5).step()
    moving, copied = extract(emulator, (0,)).tensors, extract(emulator, (2,)).tensors
    assert all(np.array_equal(t, source.tensor(moved(n, to=0))) for n, t in copied.items())
    assert all(not np.array_equal(t, source.tensor(n)) for n, t in moving.items() if n.endswith("weight"))


# Law 5: where nothing was taken away, nothing changes.


@every_family
def test_an_untrained_harmonizer_is_no_block_at_all(family: str) -> None:
    source = SOURCES[family]
    harmonized = hidden_of(emulated(source, plan_of(source, Harmonize(2, 3))))
    assert same(harmonized, hidden_of(emulated(source, plan_of(source, Drop(2)))))


@every_family
def test_an_untrained_harmonizer_can_learn(family: str) -> None:
    source = SOURCES[family]
    down = emulator_tensors(source, plan=mixed(source)).tensor(name_in(source, 3, "down.weight"))
    assert down.shape == (3, HIDDEN)
    assert 0.1 < float(down.std()) * np.sqrt(HIDDEN) < 2.0


@every_family
def test_compressing_nothing_is_keeping(family: str) -> None:
    source = SOURCES[family]
    for slot in (Compress(index=2), Compress(index=2, channels=tuple(range(INNER)))):
        assert same(hidden_of(emulated(source, plan_of(source, slot))), hidden_of(emulated(source, plan_of(source))))


@every_family
def test_all_components_of_every_matrix_give_the_block_up_to_rounding(family: str) -> None:
    source = SOURCES[family]
    ranks = {m.path: tuple(range(min(m.rows, m.columns))) for m in layout(source).matrices}
    emulator = emulated(source, plan_of(source, Compress(index=2, ranks=ranks)))
    assert close(hidden_of(emulator), hidden_of(emulated(source, plan_of(source))))


# Compressing is what linear algebra says it is, in every family's storage.


@every_family
@pytest.mark.parametrize("components", [(0,), (0, 2, 5), (0, 1, 2, 3, 4, 5, 6, 7)], ids=["one", "three", "most"])
def test_components_that_stay_are_a_projection_of_the_matrix(family: str, components: tuple[int, ...]) -> None:
    source = SOURCES[family]
    changed: dict[str, NDArray[np.float32]] = {}
    for matrix in layout(source).matrices:
        name = name_in(source, 2, f"{matrix.path}.weight")
        whole = upright(source.tensor(name), matrix).astype(np.float64)
        _, vectors = np.linalg.eigh(whole @ whole.T)
        kept = vectors[:, ::-1][:, list(components)]
        changed[name] = upright((kept @ kept.T @ whole).astype(np.float32), matrix)
    oracle = family_source(family, weights=weights_of(source).replacing(changed))
    ranks = {m.path: components for m in layout(source).matrices}
    emulator = emulated(source, plan_of(source, Compress(index=2, ranks=ranks)))
    assert close(hidden_of(emulator), hidden_of(emulated(oracle, plan_of(oracle))), relative=2e-5)


@every_family
@pytest.mark.parametrize("channels", [(0,), (1, 7, 39), tuple(range(0, INNER, 3))], ids=["one", "three", "third"])
def test_channels_that_go_are_neurons_whose_output_nobody_hears(family: str, channels: tuple[int, ...]) -> None:
    source = SOURCES[family]
    down = layout(source).down
    name = name_in(source, 2, f"{down.path}.weight")
    silent = upright(source.tensor(name), down).copy()
    silent[:, [c for c in range(INNER) if c not in channels]] = 0.0
    oracle = family_source(family, weights=weights_of(source).replacing({name: upright(silent, down)}))
    emulator = emulated(source, plan_of(source, Compress(index=2, channels=channels)))
    assert close(hidden_of(emulator), hidden_of(emulated(oracle, plan_of(oracle))))


@every_family
def test_a_channel_cut_cuts_the_biases_into_the_neurons_and_not_those_out_of_them(family: str) -> None:
    source = SOURCES[family]
    tensors = emulator_tensors(source, plan=plan_of(source, Compress(index=2, channels=(3, 5))))
    found = layout(source)
    for matrix in found.up:
        name = name_in(source, 2, f"{matrix.path}.bias")
        assert np.array_equal(tensors.tensor(name), source.tensor(name)[[3, 5]])
    name = name_in(source, 2, f"{found.down.path}.bias")
    assert np.array_equal(tensors.tensor(name), source.tensor(name))


@every_family
@pytest.mark.parametrize("quant", [Quant(bits=8, block=16), Quant(bits=4, block=32)], ids=["8", "4"])
@pytest.mark.parametrize("thin", [False, True], ids=["whole", "factors"])
def test_a_quantised_block_is_the_block_of_its_expanded_matrices(family: str, quant: Quant, thin: bool) -> None:
    source = SOURCES[family]
    attention = layout(source).attention
    ranks = {m.path: (0, 1, 2) for m in attention} if thin else {}
    plan = plan_of(source, Compress(index=2, ranks=ranks, channels=tuple(range(0, INNER, 2)), quant=quant))
    plain = plan_of(source, Compress(index=2, ranks=ranks, channels=tuple(range(0, INNER, 2))))
    quantised, dense = emulated(source, plan), emulated(source, plain)
    for path, module in quantised.blocks[2].named_modules():
        if hasattr(module, "codes"):
            target = dense.blocks[2].get_submodule(path).weight
            weight = module.weight()
            target.data.copy_(weight if target.shape == weight.shape and not transposed(path, source) else weight.T)
    assert close(hidden_of(quantised), hidden_of(dense))
    assert not close(hidden_of(quantised), hidden_of(emulated(source, plain)), relative=1e-4)


def transposed(path: str, source: ModelSource) -> bool:
    return any(m.path == path and m.transposed for m in layout(source).matrices)


# Law 6: a shared block is expanded the same way on either side.


@every_family
@pytest.mark.parametrize("shipped", [Keep(1), Compress(index=1, quant=Quant(bits=8))], ids=["kept", "quantised"])
def test_client_and_owner_expand_a_shared_block_to_the_same_bits(family: str, shipped: Slot, tmp_path: Path) -> None:
    source = SOURCES[family]
    plan = plan_of(source, shipped, Share(2, 1), Share(3, 1))
    write_bundle(tmp_path / "b", source=source, plan=plan)
    bundle = read_bundle(tmp_path / "b")
    assert not [n for n in bundle.file.names() if block_of(n) in (2, 3)]
    owner = emulated(source, plan).module.state_dict()
    client = assembled(bundle.config, bundle.file, slots=bundle.plan.slots).module.state_dict()
    assert owner.keys() == client.keys()
    assert all(same(t, client[n]) for n, t in owner.items())


@every_family
def test_a_shared_block_computes_what_its_source_would_in_its_place(family: str) -> None:
    source = SOURCES[family]
    copied = {moved(n, to=2): source.tensor(n) for n in source.names() if block_of(n) == 3}
    oracle = family_source(family, weights=weights_of(source).replacing(copied))
    assert same(hidden_of(emulated(source, plan_of(source, Share(2, 3)))), hidden_of(emulated(oracle, plan_of(oracle))))


# Law 8: what is written is what is worked out in memory; training has a digest of its own.


@every_family
def test_a_written_emulator_is_the_one_in_memory_bit_for_bit(family: str, tmp_path: Path) -> None:
    source = SOURCES[family]
    plan = mixed(source)
    refinement = refinement_of(plan, source)
    write_bundle(tmp_path / "b", source=source, plan=plan, refinement=refinement)
    memory, file = emulator_tensors(source, plan=plan, refinement=refinement), TensorFile.open(tmp_path / "b")
    assert list(file.names()) == list(memory.names())
    assert all(np.array_equal(file.tensor(n), memory.tensor(n)) and file.dtype(n) == memory.dtype(n) for n in file.names())
    assert memory.size_bytes == sum(end - begin for begin, end in (e.data_offsets for e in file.entries.values()))


def test_training_on_public_text_changes_its_own_digest_and_never_the_plans(tmp_path: Path) -> None:
    source = SOURCES["gpt2"]
    plan = mixed(source)
    digests: set[Digest | None] = set()
    for step, refinement in enumerate((None, refinement_of(plan, source), refinement_of(plan, source, by=0.02))):
        path = tmp_path / str(step)
        write_bundle(path, source=source, plan=plan, refinement=refinement)
        bundle = read_bundle(path)
        assert bundle.plan.digest == plan.digest
        assert bundle.refinement_digest == (None if refinement is None else refinement.digest)
        digests.add(bundle.refinement_digest)
    other = Refinement(settings='{"steps":2}', trained=refinement_of(plan, source).trained)
    assert len(digests | {other.digest}) == 4


def test_trained_tensors_are_shipped_as_trained_and_quantised_last() -> None:
    source = SOURCES["gpt2"]
    plan = mixed(source)
    refinement = refinement_of(plan, source)
    shipped = emulator_tensors(source, plan=plan, refinement=refinement)
    bias, cut = name_in(source, 3, "up.bias"), name_in(source, 1, "mlp.c_fc.weight")
    assert np.array_equal(shipped.tensor(bias), refinement.trained[bias])
    codes, scales = quantised(np.ascontiguousarray(refinement.trained[cut].T), quant=Quant(bits=4, block=16))
    assert np.array_equal(shipped.tensor(name_in(source, 1, "mlp.c_fc.codes")), codes)
    assert np.array_equal(shipped.tensor(name_in(source, 1, "mlp.c_fc.scales")), scales)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("slot", [Keep(2), Drop(2), Harmonize(2, 3), Compress(index=2, quant=Quant(bits=4))], ids=repr)
def test_the_size_said_beforehand_is_the_size_of_the_file(family: str, slot: Slot, tmp_path: Path) -> None:
    source = SOURCES[family]
    plan = plan_of(source, slot)
    write_bundle(tmp_path / "b", source=source, plan=plan)
    with (tmp_path / "b").open("rb") as file:
        header = int.from_bytes(file.read(8), "little")
    assert emulator_tensors(source, plan=plan).size_bytes == (tmp_path / "b").stat().st_size - 8 - header


@every_family
def test_a_token_meets_every_copy_of_a_shared_block_and_the_head_but_no_table_that_is_looked_up(
    family: str, tmp_path: Path
) -> None:
    source = SOURCES[family]
    write_bundle(tmp_path / "b", source=source, plan=plan_of(source, Share(2, 1), Drop(3)))
    block = sum(source.tensor(n).size for n in source.names() if block_of(n) == 1)
    head = 0 if family == "bert" else 256 * HIDDEN
    norms = sum(source.tensor(n).size for n in source.names() if block_of(n) is None and len(source.weights.shape(n)) == 1)
    assert read_bundle(tmp_path / "b").parameters_per_token == 4 * block + head + norms


# Memory: one tensor at a time, however many blocks.


def many_blocks(folder: Path, *, shards: int = 4) -> ModelSource:
    """Return a model of many blocks, 13 MB in all, read from sharded files."""
    random = open_source("random:blocks=16,hidden=160,heads=4,kv_heads=4", cache=folder)
    model_directory(folder, source=random)
    (folder / "model.safetensors").unlink()
    names = random.names()
    files = {name: f"model-{k % shards}.safetensors" for k, name in enumerate(names)}
    for file in sorted(set(files.values())):
        shapes = {n: random.weights.shape(n) for n in names if files[n] == file}
        write_tensors(folder / file, shapes=shapes, tensor=random.tensor, metadata={"format": "pt"})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    return open_source(f"dir:{folder}", cache=folder)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["keep", "ranks", "quantised"])
def test_writing_a_bundle_of_many_blocks_never_holds_one_of_them(how: str, tmp_path: Path) -> None:
    source = many_blocks(tmp_path)
    ranks = {"self_attn.q_proj": tuple(range(50))}
    slots: dict[str, Sequence[Slot]] = {
        "keep": [],
        "ranks": [Compress(index=b, ranks=ranks) for b in (1, 7, 14)],
        "quantised": [Compress(index=b, quant=Quant(bits=4)) for b in range(1, 15)],
    }
    plan = plan_of(source, *slots[how], adapter=(0, 15))
    block = sum(4 * int(np.prod(source.weights.shape(n))) for n in source.names() if block_of(n) == 1)
    tracemalloc.start()
    write_bundle(tmp_path / "b", source=source, plan=plan)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # The decomposition works in float64 on copies; everything else on one tensor and its codes.
    assert peak < 3 * block
    assert peak < sum(4 * int(np.prod(source.weights.shape(n))) for n in source.names()) / 5
