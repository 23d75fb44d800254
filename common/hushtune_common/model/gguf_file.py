"""A LLaMA-type model inside a GGUF file: configuration, tokenizer and dequantised tensors.

The file format keeps query and key rows in another rotary order than transformers; `GgufFile.tensor` undoes that.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFReader, ReaderTensor
from gguf.quants import dequantize
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from hushtune_common.adapter import Float32
from hushtune_common.errors import ConfigError

_OUTSIDE: Mapping[str, str] = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_INSIDE: Mapping[str, str] = {
    "attn_q.weight": "self_attn.q_proj.weight",
    "attn_k.weight": "self_attn.k_proj.weight",
    "attn_v.weight": "self_attn.v_proj.weight",
    "attn_output.weight": "self_attn.o_proj.weight",
    "ffn_gate.weight": "mlp.gate_proj.weight",
    "ffn_up.weight": "mlp.up_proj.weight",
    "ffn_down.weight": "mlp.down_proj.weight",
    "attn_norm.weight": "input_layernorm.weight",
    "ffn_norm.weight": "post_attention_layernorm.weight",
}
_SPECIAL = 3
"""Token type of control tokens."""


@dataclass(frozen=True, slots=True)
class GgufFile:
    """Weights of one GGUF file under transformers' names, with the metadata needed to run them."""

    fields: Mapping[str, Any]
    found: Mapping[str, ReaderTensor]

    @staticmethod
    def open(path: Path) -> "GgufFile":
        """Read the metadata and map the tensors; `ConfigError` for unreadable files and other architectures."""
        try:
            reader = GGUFReader(path)
        except (OSError, ValueError, IndexError, KeyError) as error:
            raise ConfigError(f"gguf:{path}", f"is not a readable GGUF file ({error})") from error
        fields = {name: field.contents() for name, field in reader.fields.items()}
        kinds = (fields.get("general.architecture"), fields.get("tokenizer.ggml.model"), fields.get("tokenizer.ggml.pre"))
        if kinds != ("llama", "gpt2", "smollm"):
            raise ConfigError(
                f"gguf:{path}",
                f"architecture, tokenizer and pre-tokenizer {kinds}; only (llama, gpt2, smollm) is supported; use dir:",
            )
        return GgufFile(fields, {_renamed(t.name): t for t in reader.tensors})

    @property
    def config(self) -> dict[str, Any]:
        """The model's ``config.json``."""
        get = self.fields
        return {
            "model_type": "llama",
            "vocab_size": get["llama.vocab_size"],
            "hidden_size": get["llama.embedding_length"],
            "num_hidden_layers": get["llama.block_count"],
            "intermediate_size": get["llama.feed_forward_length"],
            "num_attention_heads": get["llama.attention.head_count"],
            "num_key_value_heads": get["llama.attention.head_count_kv"],
            "rms_norm_eps": get["llama.attention.layer_norm_rms_epsilon"],
            "rope_parameters": {"rope_type": "default", "rope_theta": get["llama.rope.freq_base"]},
            "max_position_embeddings": get["llama.context_length"],
            "tie_word_embeddings": "lm_head.weight" not in self.found,
            "bos_token_id": get["tokenizer.ggml.bos_token_id"],
            "eos_token_id": get["tokenizer.ggml.eos_token_id"],
            "pad_token_id": get["tokenizer.ggml.padding_token_id"],
        }

    @property
    def tokenizer_json(self) -> str:
        """The model's ``tokenizer.json``: byte-level BPE that splits digits one by one and adds nothing."""
        pieces: Sequence[str] = self.fields["tokenizer.ggml.tokens"]
        merges = [tuple(merge.split(" ", 1)) for merge in self.fields["tokenizer.ggml.merges"]]
        tokenizer = Tokenizer(models.BPE(vocab={p: i for i, p in enumerate(pieces)}, merges=merges))
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
        tokenizer.decoder = decoders.ByteLevel()
        kinds: Sequence[int] = self.fields["tokenizer.ggml.token_type"]
        tokenizer.add_special_tokens(
            [AddedToken(p, special=True, normalized=False) for p, kind in zip(pieces, kinds, strict=True) if kind == _SPECIAL]
        )
        return json.dumps(json.loads(tokenizer.to_str()), sort_keys=True, separators=(",", ":"))

    def names(self) -> Sequence[str]:
        """Return every name, sorted."""
        return sorted(self.found)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of one tensor; the file has its axes in reverse."""
        return tuple(int(d) for d in reversed(self.found[name].shape))

    def tensor(self, name: str) -> Float32:
        """Return one tensor, dequantised to float32 and with rotary rows in transformers' order."""
        stored = self.found[name]
        values = np.array(dequantize(stored.data, stored.tensor_type), dtype=np.float32).reshape(self.shape(name))
        if name.endswith("q_proj.weight"):
            return _unpermuted(values, heads=self.fields["llama.attention.head_count"])
        if name.endswith("k_proj.weight"):
            return _unpermuted(values, heads=self.fields["llama.attention.head_count_kv"])
        return values


def _unpermuted(rows: Float32, *, heads: int) -> Float32:
    # GGUF interleaves the two halves that a rotation pairs: (heads, head_dim/2, 2). transformers has them one after the other.
    count, width = rows.shape
    return np.ascontiguousarray(rows.reshape(heads, count // heads // 2, 2, width).swapaxes(1, 2)).reshape(count, width)


def _renamed(name: str) -> str:
    if name in _OUTSIDE:
        return _OUTSIDE[name]
    _, block, rest = name.split(".", 2)
    return f"model.layers.{block}.{_INSIDE[rest]}"
