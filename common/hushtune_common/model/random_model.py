"""A tiny model of LLaMA form with random weights and a byte-level tokenizer, for tests and dry runs."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from hushtune_common.adapter import Float32
from hushtune_common.errors import ConfigError
from hushtune_common.seeding import SeedTree


@dataclass(frozen=True, slots=True, kw_only=True)
class RandomSpec:
    """Sizes of a random model, as in ``random:blocks=6,hidden=32,heads=4,vocab=256,seed=1``."""

    blocks: int = 6
    hidden: int = 32
    heads: int = 4
    kv_heads: int = 2
    vocab: int = 256
    tied: int = 1
    seed: int = 1

    def __post_init__(self) -> None:
        """Refuse sizes that give no model; `ConfigError` names the source."""
        if min(self.blocks, self.hidden, self.heads, self.kv_heads) < 1 or self.vocab < 256:
            raise ConfigError("model.source", "a random model has at least one block and head, and vocab=256 for its bytes")
        if self.hidden % (2 * self.heads) or self.heads % self.kv_heads:
            raise ConfigError("model.source", "hidden must be a multiple of 2 * heads, and heads one of kv_heads")

    @staticmethod
    def parse(text: str) -> "RandomSpec":
        """Parse ``key=value`` pairs; `ConfigError` names unknown keys and values that are no integers."""
        known = RandomSpec.__dataclass_fields__
        values: dict[str, int] = {}
        for pair in filter(None, text.split(",")):
            key, _, value = pair.partition("=")
            if key not in known or not value.lstrip("-").isdigit():
                raise ConfigError("model.source", f"random:{pair}: use key=integer with keys {', '.join(known)}")
            values[key] = int(value)
        return RandomSpec(**values)

    @property
    def config(self) -> dict[str, Any]:
        """The model's ``config.json``."""
        return {
            "model_type": "llama",
            "vocab_size": self.vocab,
            "hidden_size": self.hidden,
            "num_hidden_layers": self.blocks,
            "intermediate_size": 2 * self.hidden,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "rms_norm_eps": 1e-5,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0},
            "max_position_embeddings": 512,
            "tie_word_embeddings": bool(self.tied),
            "bos_token_id": 0,
            "eos_token_id": 0,
            "pad_token_id": 0,
        }


@dataclass(frozen=True, slots=True)
class RandomWeights:
    """Weights drawn from the seed and the tensor's name, so that each can be drawn alone."""

    spec: RandomSpec

    def names(self) -> Sequence[str]:
        """Return every name, sorted."""
        return sorted(self._shapes())

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of one tensor."""
        return self._shapes()[name]

    def tensor(self, name: str) -> Float32:
        """Return one tensor: ones for norms, else normal with the spread that keeps activations of order one."""
        shape = self.shape(name)
        if len(shape) == 1:
            return np.ones(shape, dtype=np.float32)
        draws = SeedTree(self.spec.seed).child("random-model", name).generator().standard_normal(shape)
        return (draws / np.sqrt(shape[1])).astype(np.float32)

    def _shapes(self) -> Mapping[str, tuple[int, ...]]:
        s = self.spec
        kv = s.hidden // s.heads * s.kv_heads
        inside = {
            "self_attn.q_proj.weight": (s.hidden, s.hidden),
            "self_attn.k_proj.weight": (kv, s.hidden),
            "self_attn.v_proj.weight": (kv, s.hidden),
            "self_attn.o_proj.weight": (s.hidden, s.hidden),
            "mlp.gate_proj.weight": (2 * s.hidden, s.hidden),
            "mlp.up_proj.weight": (2 * s.hidden, s.hidden),
            "mlp.down_proj.weight": (s.hidden, 2 * s.hidden),
            "input_layernorm.weight": (s.hidden,),
            "post_attention_layernorm.weight": (s.hidden,),
        }
        outside = {"model.embed_tokens.weight": (s.vocab, s.hidden), "model.norm.weight": (s.hidden,)}
        head = {} if s.tied else {"lm_head.weight": (s.vocab, s.hidden)}
        return outside | head | {f"model.layers.{b}.{n}": shape for b in range(s.blocks) for n, shape in inside.items()}


def byte_tokenizer_json() -> str:
    """Return the ``tokenizer.json`` of a tokenizer with one id per byte value and no merges."""
    pieces = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={p: i for i, p in enumerate(pieces)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return json.dumps(json.loads(tokenizer.to_str()), sort_keys=True, separators=(",", ":"))
