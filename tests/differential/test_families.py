"""Does every family of models give what transformers gives, whole and after surgery, token for token?

The reference is always a module that transformers itself made, saved and, for emulators, that was operated on by hand.
"""

from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D
from transformers.utils import logging

from hushtune_common.model.assembly import assembled
from hushtune_common.model.bundle import emulator_tensors, read_bundle, write_bundle
from hushtune_common.model.families import CAUSAL, ENCODERS
from hushtune_common.model.indexed import IndexedModel
from hushtune_common.model.plan import Plan
from hushtune_common.model.random_model import byte_tokenizer_json
from hushtune_common.model.resolve import BlockModel
from hushtune_common.model.slots import Compress, Drop, Harmonize, Keep, Share, Slot
from hushtune_common.model.sources import ModelSource, open_source

torch.set_num_threads(1)  # tiny matrices gain nothing from threads

BLOCKS, HIDDEN, INNER = 6, 32, 48
COMMON: Mapping[str, Any] = {
    "vocab_size": 256,
    "hidden_size": HIDDEN,
    "num_hidden_layers": BLOCKS,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": None,
    "use_cache": False,
}
GROUPED = {"num_key_value_heads": 2, "intermediate_size": INNER}
OPT = {"ffn_dim": INNER, "word_embed_proj_dim": HIDDEN}


@dataclass(frozen=True, slots=True)
class Case:
    family: str
    own: Mapping[str, Any]
    up: str
    down: str


GATED = ("mlp.up_proj", "mlp.down_proj")
CASES = {
    "llama": Case("llama", GROUPED, *GATED),
    "llama-tied": Case("llama", {**GROUPED, "tie_word_embeddings": True}, *GATED),
    "qwen2": Case("qwen2", GROUPED, *GATED),
    "mistral": Case("mistral", {**GROUPED, "sliding_window": 5}, *GATED),
    "gpt2": Case("gpt2", {"n_inner": INNER}, "mlp.c_fc", "mlp.c_proj"),
    "gpt2-untied": Case("gpt2", {"n_inner": INNER, "tie_word_embeddings": False}, "mlp.c_fc", "mlp.c_proj"),
    "opt": Case("opt", OPT, "fc1", "fc2"),
    "opt-narrow": Case("opt", {**OPT, "word_embed_proj_dim": 16}, "fc1", "fc2"),
    "opt-norm-behind": Case("opt", {**OPT, "word_embed_proj_dim": 16, "do_layer_norm_before": False}, "fc1", "fc2"),
    "opt-untied": Case("opt", {**OPT, "tie_word_embeddings": False}, "fc1", "fc2"),
    "gpt_neox": Case("gpt_neox", {"intermediate_size": INNER}, "mlp.dense_h_to_4h", "mlp.dense_4h_to_h"),
    "gpt_neox-serial": Case(
        "gpt_neox",
        {"intermediate_size": INNER, "use_parallel_residual": False, "tie_word_embeddings": True},
        "mlp.dense_h_to_4h",
        "mlp.dense_4h_to_h",
    ),
    "bert": Case("bert", {"intermediate_size": INNER}, "intermediate.dense", "output.dense"),
}


@dataclass(frozen=True, slots=True)
class Pair:
    """What transformers made, and the same model as we read it from where transformers saved it."""

    case: Case
    reference: nn.Module
    source: ModelSource
    folder: Path

    def load(self) -> IndexedModel:
        return self.source.encoder() if self.case.family in ENCODERS else self.source.load()


@pytest.fixture(scope="module", params=CASES)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    folder = tmp_path_factory.mktemp(request.param)
    case = CASES[request.param]
    reference = made(case)
    saved(reference, folder)
    return Pair(case, reference, opened(folder), folder)


def made(case: Case) -> nn.Module:
    config = AutoConfig.for_model(case.family, **{**COMMON, **case.own})
    with torch.random.fork_rng():
        torch.manual_seed(1)
        maker: Any = AutoModel if case.family in ENCODERS else AutoModelForCausalLM
        pooler = {"add_pooling_layer": False} if case.family in ENCODERS else {}
        model = cast(nn.Module, maker.from_config(config, attn_implementation="sdpa", **pooler))
        for parameter in model.parameters():  # no norm is one and no bias zero
            parameter.data.add_(0.1 * torch.randn(parameter.shape))
    return model.eval().requires_grad_(False)


def saved(model: nn.Module, folder: Path, **options: Any) -> None:
    logging.disable_progress_bar()
    cast(Any, model).save_pretrained(folder, **options)
    (folder / "tokenizer.json").write_text(byte_tokenizer_json())


def opened(folder: Path) -> ModelSource:
    return open_source(f"dir:{folder}", cache=folder)


def tokens() -> Tensor:
    return torch.randint(0, 256, (3, 17), generator=torch.Generator().manual_seed(5))


def output(module: nn.Module) -> Tensor:
    found = cast(Callable[..., Any], module)(input_ids=tokens())
    return found.logits if hasattr(found, "logits") else found.last_hidden_state


def emulator(pair: Pair, *middle: Slot) -> nn.Module:
    at = {slot.index: slot for slot in middle}
    slots = tuple(at.get(b, Keep(b)) for b in range(BLOCKS))
    plan = Plan(base=pair.source.base_digest, adapter=(0, BLOCKS - 1), slots=slots, method="by_hand")
    return assembled(pair.source.config, emulator_tensors(pair.source, plan=plan), slots=slots).module


def operated(pair: Pair, surgery: Callable[[nn.ModuleList], list[nn.Module]]) -> nn.Module:
    """Return a copy of the reference whose list of blocks is what ``surgery`` makes of it."""
    module = deepcopy(pair.reference)
    path, found = next((n, m) for n, m in module.named_modules() if isinstance(m, nn.ModuleList) and len(m) == BLOCKS)
    parent, _, child = path.rpartition(".")
    left = surgery(found)
    setattr(module.get_submodule(parent), child, nn.ModuleList(left))
    cast(Any, module).config.num_hidden_layers = len(left)  # some families walk over so many blocks
    return module


def test_every_family_is_tried() -> None:
    assert {case.family for case in CASES.values()} == {*CAUSAL, *ENCODERS}


def test_the_whole_model_gives_the_references_output_bit_for_bit(pair: Pair) -> None:
    assert torch.equal(output(pair.load().module), output(pair.reference))


def test_running_block_by_block_gives_the_references_output_bit_for_bit(pair: Pair) -> None:
    parts = pair.load().parts
    state = parts.embed(tokens())
    for block in range(BLOCKS):
        state = parts.run(state, blocks=[block])
    found = parts.finish(state) if pair.case.family in ENCODERS else parts.predict(state)
    assert torch.equal(found, output(pair.reference))


def test_dropped_blocks_are_those_that_surgery_removes(pair: Pair) -> None:
    by_hand = operated(pair, lambda blocks: [blocks[b] for b in (0, 1, 4, 5)])
    assert torch.equal(output(emulator(pair, Drop(2), Drop(3))), output(by_hand))


def test_a_shared_block_runs_again_in_place_of_another(pair: Pair) -> None:
    by_hand = operated(pair, lambda blocks: [blocks[b] for b in (0, 1, 2, 2, 4, 5)])
    assert torch.equal(output(emulator(pair, Share(3, 2))), output(by_hand))


def test_an_untrained_harmonizer_adds_nothing(pair: Pair) -> None:
    by_hand = operated(pair, lambda blocks: [blocks[b] for b in (0, 1, 2, 4, 5)])
    assert torch.equal(output(emulator(pair, Harmonize(3, 4))), output(by_hand))


def test_pruned_neurons_are_those_whose_way_out_surgery_zeroes(pair: Pair) -> None:
    kept = tuple(range(0, INNER, 3))

    def surgery(blocks: nn.ModuleList) -> list[nn.Module]:
        layer = blocks[2].get_submodule(pair.case.down)
        weight = cast(Tensor, layer.weight)
        out = weight if isinstance(layer, Conv1D) else weight.T  # a view: a row for every neuron
        out[[n for n in range(INNER) if n not in kept]] = 0.0
        return list(blocks)

    torch.testing.assert_close(output(emulator(pair, Compress(index=2, channels=kept))), output(operated(pair, surgery)))


def test_a_matrix_of_lower_rank_is_the_truncated_one_of_surgery(pair: Pair) -> None:
    def surgery(blocks: nn.ModuleList) -> list[nn.Module]:
        weight = cast(Tensor, blocks[2].get_submodule(pair.case.up).weight)
        u, s, v = torch.linalg.svd(weight.double(), full_matrices=False)
        weight.copy_((u[:, :9] * s[:9]) @ v[:9])
        return list(blocks)

    compressed = Compress(index=2, ranks={pair.case.up: tuple(range(9))})
    torch.testing.assert_close(output(emulator(pair, compressed)), output(operated(pair, surgery)), rtol=1e-4, atol=1e-5)


def test_everything_outside_the_blocks_is_shipped(pair: Pair, tmp_path: Path) -> None:
    plan = Plan(
        base=pair.source.base_digest,
        adapter=(0, 5),
        slots=(Keep(0), *(Drop(b) for b in range(1, 5)), Keep(5)),
        method="by_hand",
    )
    write_bundle(tmp_path / "bundle", source=pair.source, plan=plan)
    bundle = read_bundle(tmp_path / "bundle")
    alone = assembled(bundle.config, bundle.file, slots=plan.slots).module
    assert torch.equal(output(alone), output(operated(pair, lambda blocks: [blocks[0], blocks[5]])))
    untied = pair.case.family in CAUSAL and not pair.source.config["tie_word_embeddings"]
    assert ("lm_head.weight" in bundle.file.names()) == untied


def test_buffers_that_no_file_holds_are_those_of_the_reference(pair: Pair) -> None:
    expected = dict(pair.reference.named_buffers())
    found = dict(pair.load().module.named_buffers())
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_shards_give_the_same_model(pair: Pair, tmp_path: Path) -> None:
    saved(pair.reference, tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    assert opened(tmp_path).base_digest == pair.source.base_digest


@pytest.mark.parametrize("case", ["llama-tied", "gpt2", "opt", "opt-narrow", "gpt_neox-serial"])
def test_a_checkpoint_without_its_tied_head_gives_the_same_digest(case: str, tmp_path: Path) -> None:
    whole = made(CASES[case])
    saved(whole, tmp_path / "whole")
    saved(cast(nn.Module, cast(Any, whole).base_model), tmp_path / "body")
    assert opened(tmp_path / "whole").base_digest == opened(tmp_path / "body").base_digest


BUFFERS = {
    "gpt2": ["{}.attn.bias", "{}.attn.masked_bias"],
    "gpt_neox": ["{}.attention.bias", "{}.attention.masked_bias", "{}.attention.rotary_emb.inv_freq"],
    "llama": ["{}.self_attn.rotary_emb.inv_freq"],
}


def test_accidents_of_a_checkpoint_do_not_change_its_digest(pair: Pair, tmp_path: Path) -> None:
    saved(pair.reference, tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    paths = {name.partition(".0.")[0] + ".0" for name in stored if ".0." in name}
    for template in BUFFERS.get(pair.case.family, []):
        stored[template.format(paths.copy().pop())] = torch.ones(1, 1, 4, 4, dtype=torch.bool)
    if pair.case.family in ENCODERS:
        stored = {f"bert.{name}".replace("LayerNorm.weight", "LayerNorm.gamma"): tensor for name, tensor in stored.items()}
        stored |= {"bert.embeddings.position_ids": torch.arange(64)[None], "cls.predictions.bias": torch.zeros(256)}
    elif pair.source.config["tie_word_embeddings"]:
        stored["lm_head.weight"] = cast(Any, pair.reference).get_input_embeddings().weight.clone()
    save_file(stored, tmp_path / "model.safetensors")
    assert opened(tmp_path).base_digest == pair.source.base_digest


def test_padding_behind_a_mask_does_not_change_an_encoders_answer(tmp_path: Path) -> None:
    saved(made(CASES["bert"]), tmp_path)
    encoder = opened(tmp_path).encoder()
    long, short = list(range(1, 20)), list(range(5, 9))
    together, alone = encoder.features([long, short]), encoder.features([short])
    assert np.allclose(together[1], alone[0], atol=1e-6)
    hidden = BlockModel.embed(encoder.parts, *encoder.batch([short])[:1]).hidden
    assert hidden.shape == (1, 4, HIDDEN)
