"""Tiny random causal language models of every family, straight from transformers."""

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from hushtune_common.model.language import LanguageModel
from hushtune_common.model.resolve import BlockModel

_LLAMA = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
_CONFIGS: dict[str, dict[str, Any]] = {
    "llama": _LLAMA,
    "qwen2": _LLAMA | {"layer_types": ["full_attention"] * 3},
    "mistral": _LLAMA | {"sliding_window": None},
    "gpt2": {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64},
    "opt": {"hidden_size": 32, "ffn_dim": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "max_position_embeddings": 64}
    | {"word_embed_proj_dim": 16},
    "gpt_neox": {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4},
}
FAMILIES = tuple(_CONFIGS)


def tiny(family: str) -> LanguageModel:
    """Return a frozen model of 3 blocks and 256 tokens."""
    config = AutoConfig.for_model(family, vocab_size=256, use_cache=False, pad_token_id=0, bos_token_id=0, eos_token_id=0)
    for key, value in _CONFIGS[family].items():
        setattr(config, key, value)
    torch.manual_seed(3)
    module = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval().requires_grad_(False)
    return LanguageModel(BlockModel(module), blocks=range(3))
