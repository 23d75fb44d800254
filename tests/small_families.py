"""One tiny random model of every family, as an owner's source: for laws that hold whatever the family."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from hushtune_common.model.assembly import assembled
from hushtune_common.model.bundle import Refinement, emulator_tensors
from hushtune_common.model.plan import Plan
from hushtune_common.model.random_model import byte_tokenizer_json
from hushtune_common.model.resolve import BlockModel
from hushtune_common.model.slots import Keep, Slot
from hushtune_common.model.sources import ModelSource, base_digest
from hushtune_common.model.tokens import Tokens
from hushtune_common.model.weights import Weights

BLOCKS = 5
ADAPTER = (0, 4)
HIDDEN, INNER = 16, 40
FAMILIES = ("llama", "gpt2", "opt", "gpt_neox", "bert")
CAUSAL = FAMILIES[:-1]

_COMMON: Mapping[str, Any] = {
    "vocab_size": 256,
    "hidden_size": HIDDEN,
    "num_hidden_layers": BLOCKS,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
}
_OWN: Mapping[str, Mapping[str, Any]] = {
    "llama": {"intermediate_size": INNER, "num_key_value_heads": 1, "attention_bias": True, "mlp_bias": True},
    "gpt2": {"n_inner": INNER, "attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0},
    "opt": {"ffn_dim": INNER, "word_embed_proj_dim": HIDDEN, "dropout": 0.0},
    "gpt_neox": {"intermediate_size": INNER, "tie_word_embeddings": False},
    "bert": {"intermediate_size": INNER, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
}


@dataclass(frozen=True, slots=True)
class Held:
    """Weights that are held in memory."""

    tensors: Mapping[str, NDArray[np.float32]]

    def names(self) -> Sequence[str]:
        return sorted(self.tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        return self.tensors[name].shape

    def tensor(self, name: str) -> NDArray[np.float32]:
        return self.tensors[name].copy()

    def replacing(self, changed: Mapping[str, NDArray[np.float32]]) -> "Held":
        return Held({**self.tensors, **changed})


_conforms: type[Weights] = Held


def reference(family: str) -> nn.Module:
    """Return the model as transformers makes it, with biases and norms that are not trivial."""
    config = AutoConfig.for_model(family, **_COMMON, **_OWN[family])
    with torch.random.fork_rng():
        torch.manual_seed(1)
        if family == "bert":
            model = cast(nn.Module, AutoModel.from_config(config, attn_implementation="sdpa", add_pooling_layer=False))
        else:
            model = cast(nn.Module, AutoModelForCausalLM.from_config(config, attn_implementation="sdpa"))
        for parameter in model.parameters():
            parameter.data.add_(0.1 * torch.randn(parameter.shape))
    return model.eval()


def held(family: str) -> Held:
    """Return the weights of `reference`, without second copies of the embedding."""
    model = reference(family)
    tied: Mapping[str, str] = getattr(model, "all_tied_weights_keys", None) or {}
    return Held({name: t.numpy().copy() for name, t in model.state_dict().items() if name not in tied})


def family_source(family: str, *, weights: Held | None = None) -> ModelSource:
    weights = held(family) if weights is None else weights
    config = {"model_type": family, **_COMMON, **_OWN[family]}
    tokens = Tokens.from_json(byte_tokenizer_json())
    return ModelSource(config=config, tokens=tokens, weights=weights, base_digest=base_digest(weights))


def plan_of(source: ModelSource, *middle: Slot, adapter: tuple[int, ...] = ADAPTER) -> Plan:
    """Return the plan in which the given slots stand at their indices and every other block is kept."""
    at = {slot.index: slot for slot in middle}
    slots = tuple(at.get(b, Keep(b)) for b in range(source.block_count))
    return Plan(base=source.base_digest, adapter=adapter, slots=slots, method="by_hand")


def emulated(source: ModelSource, plan: Plan, *, refinement: Refinement | None = None) -> BlockModel:
    """Return the emulator, assembled in memory."""
    return assembled(source.config, emulator_tensors(source, plan=plan, refinement=refinement), slots=plan.slots)


def some_tokens(count: int = 2, *, length: int = 9, seed: int = 7) -> Tensor:
    return torch.randint(1, 256, (count, length), generator=torch.Generator().manual_seed(seed))


def hidden_of(parts: BlockModel, tokens: Tensor | None = None) -> Tensor:
    """Return what the model makes of some tokens after its last block, without gradients."""
    with torch.no_grad():
        state = parts.embed(some_tokens() if tokens is None else tokens)
        return parts.run(state, blocks=range(len(parts.blocks))).hidden
