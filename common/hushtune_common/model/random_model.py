"""A tiny model of any family with random weights and a byte-level tokenizer, for tests and dry runs."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from hushtune_common.adapter import Float32
from hushtune_common.errors import ConfigError
from hushtune_common.model.families import HEAD, family_of
from hushtune_common.seeding import SeedTree

POSITIONS = 512
"""Longest text of a random model, in tokens."""

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class RandomSpec:
    """Sizes of a random model, as in ``random:family=gpt2,blocks=6,hidden=32,heads=4,vocab=256,seed=1``."""

    family: str = "llama"
    blocks: int = 6
    hidden: int = 32
    heads: int = 4
    kv_heads: int = 2
    """Of llama, qwen2 and mistral; every other family has as many as ``heads``."""
    vocab: int = 256
    tied: int = 1
    embed: int = 0
    """Width of OPT's embedding where it differs from ``hidden``, else 0."""
    norm_first: int = 1
    """Whether OPT's norms stand in front of attention and network, as in all of its sizes but one, or behind."""
    parallel: int = 1
    """Whether attention and network of a GPT-NeoX block see the same input, or one the other's output."""
    seed: int = 1

    def __post_init__(self) -> None:
        """Refuse sizes that give no model; `ConfigError` names the source."""
        if self.family not in _BLOCKS:
            raise ConfigError("model.source", f"random:family={self.family}: known families are {', '.join(_BLOCKS)}")
        if min(self.blocks, self.hidden, self.heads, self.kv_heads) < 1 or self.vocab < 256:
            raise ConfigError("model.source", "a random model has at least one block and head, and vocab=256 for its bytes")
        if self.hidden % (2 * self.heads) or self.heads % self.kv_heads:
            raise ConfigError("model.source", "hidden must be a multiple of 2 * heads, and heads one of kv_heads")
        if self.family == "bert" and not self.tied:
            raise ConfigError("model.source", "random:tied=0: an encoder has no head to tie")

    @staticmethod
    def parse(text: str) -> "RandomSpec":
        """Parse ``key=value`` pairs; `ConfigError` names unknown keys and values that are no integers."""
        known = RandomSpec.__dataclass_fields__
        values: dict[str, Any] = {}
        for pair in filter(None, text.split(",")):
            key, _, value = pair.partition("=")
            if key == "family":
                values[key] = value
            elif key not in known or not value.removeprefix("-").isdecimal():
                keys = ", ".join(k for k in known if k != "family")
                raise ConfigError("model.source", f"random:{pair}: use family=NAME or key=integer with keys {keys}")
            else:
                values[key] = int(value)
        return RandomSpec(**values)

    @property
    def inner(self) -> int:
        """Neurons of a feed-forward network."""
        return 2 * self.hidden

    @property
    def config(self) -> dict[str, Any]:
        """The model's ``config.json``."""
        common: dict[str, Any] = {
            "model_type": self.family,
            "vocab_size": self.vocab,
            "hidden_size": self.hidden,
            "num_hidden_layers": self.blocks,
            "num_attention_heads": self.heads,
            "max_position_embeddings": POSITIONS,
            "tie_word_embeddings": bool(self.tied),
            "bos_token_id": 0,
            "eos_token_id": 0,
            "pad_token_id": 0,
        }
        return common | self._own_settings()

    def _own_settings(self) -> dict[str, Any]:
        match self.family:
            case "gpt2":
                return {"n_inner": self.inner}
            case "opt":
                first = {"do_layer_norm_before": bool(self.norm_first), "word_embed_proj_dim": self.embed or self.hidden}
                return {"ffn_dim": self.inner, **first}
            case "gpt_neox":
                turning = {"rope_type": "default", "rope_theta": 10_000.0, "partial_rotary_factor": 1.0}
                parallel = bool(self.parallel)
                return {"intermediate_size": self.inner, "rope_parameters": turning, "use_parallel_residual": parallel}
            case "bert":
                return {"intermediate_size": self.inner, "type_vocab_size": 2}
            case _:
                own = {"intermediate_size": self.inner, "num_key_value_heads": self.kv_heads, "rms_norm_eps": 1e-5}
                return own | {"rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0}}


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
        """Return one tensor: ones for norms, small biases, else normal with the spread that keeps activations of order one."""
        shape = self.shape(name)
        if len(shape) == 1 and name.endswith("weight"):
            return np.ones(shape, dtype=np.float32)
        draws = SeedTree(self.spec.seed).child("random-model", name).generator().standard_normal(shape)
        return (draws / (np.sqrt(shape[1]) if len(shape) == 2 else 10.0)).astype(np.float32)

    def _shapes(self) -> Shapes:
        spec = self.spec
        blocks, inside = _BLOCKS[spec.family]
        within = {f"{blocks}.{b}.{n}": shape for b in range(spec.blocks) for n, shape in inside(spec).items()}
        width = spec.embed or spec.hidden if spec.family == "opt" else spec.hidden
        head: Shapes = {} if spec.tied or not family_of(spec.config).causal else {HEAD: (spec.vocab, width)}
        return within | head | _outside(spec, width=width)


def _affine(path: str, rows: int, columns: int) -> Shapes:
    return {f"{path}.weight": (rows, columns), f"{path}.bias": (rows,)}


def _norm(path: str, hidden: int) -> Shapes:
    return {f"{path}.weight": (hidden,), f"{path}.bias": (hidden,)}


def _llama(s: RandomSpec) -> Shapes:
    kv = s.hidden // s.heads * s.kv_heads
    return {
        "self_attn.q_proj.weight": (s.hidden, s.hidden),
        "self_attn.k_proj.weight": (kv, s.hidden),
        "self_attn.v_proj.weight": (kv, s.hidden),
        "self_attn.o_proj.weight": (s.hidden, s.hidden),
        "mlp.gate_proj.weight": (s.inner, s.hidden),
        "mlp.up_proj.weight": (s.inner, s.hidden),
        "mlp.down_proj.weight": (s.hidden, s.inner),
        "input_layernorm.weight": (s.hidden,),
        "post_attention_layernorm.weight": (s.hidden,),
    }


def _qwen2(s: RandomSpec) -> Shapes:
    kv = s.hidden // s.heads * s.kv_heads
    biases: Shapes = {f"self_attn.{m}_proj.bias": (rows,) for m, rows in (("q", s.hidden), ("k", kv), ("v", kv))}
    return _llama(s) | biases


def _gpt2(s: RandomSpec) -> Shapes:
    # Matrices are stored the other way round here.
    sizes = {
        "attn.c_attn": (s.hidden, 3 * s.hidden),
        "attn.c_proj": (s.hidden, s.hidden),
        "mlp.c_fc": (s.hidden, s.inner),
        "mlp.c_proj": (s.inner, s.hidden),
    }
    matrices: Shapes = {f"{path}.weight": shape for path, shape in sizes.items()}
    biases: Shapes = {f"{path}.bias": shape[1:] for path, shape in sizes.items()}
    return matrices | biases | _norm("ln_1", s.hidden) | _norm("ln_2", s.hidden)


def _opt(s: RandomSpec) -> Shapes:
    attention = [_affine(f"self_attn.{m}_proj", s.hidden, s.hidden) for m in ("q", "k", "v", "out")]
    network = [_affine("fc1", s.inner, s.hidden), _affine("fc2", s.hidden, s.inner)]
    norms = [_norm("self_attn_layer_norm", s.hidden), _norm("final_layer_norm", s.hidden)]
    return _joined(*attention, *network, *norms)


def _gpt_neox(s: RandomSpec) -> Shapes:
    return _joined(
        _affine("attention.query_key_value", 3 * s.hidden, s.hidden),
        _affine("attention.dense", s.hidden, s.hidden),
        _affine("mlp.dense_h_to_4h", s.inner, s.hidden),
        _affine("mlp.dense_4h_to_h", s.hidden, s.inner),
        _norm("input_layernorm", s.hidden),
        _norm("post_attention_layernorm", s.hidden),
    )


def _bert(s: RandomSpec) -> Shapes:
    return _joined(
        *(_affine(f"attention.self.{m}", s.hidden, s.hidden) for m in ("query", "key", "value")),
        _affine("attention.output.dense", s.hidden, s.hidden),
        _norm("attention.output.LayerNorm", s.hidden),
        _affine("intermediate.dense", s.inner, s.hidden),
        _affine("output.dense", s.hidden, s.inner),
        _norm("output.LayerNorm", s.hidden),
    )


_BLOCKS: Mapping[str, tuple[str, Callable[[RandomSpec], Shapes]]] = {
    "llama": ("model.layers", _llama),
    "qwen2": ("model.layers", _qwen2),
    "mistral": ("model.layers", _llama),
    "gpt2": ("transformer.h", _gpt2),
    "opt": ("model.decoder.layers", _opt),
    "gpt_neox": ("gpt_neox.layers", _gpt_neox),
    "bert": ("encoder.layer", _bert),
}


def _outside(s: RandomSpec, *, width: int) -> Shapes:
    match s.family:
        case "gpt2":
            tables: Shapes = {"transformer.wte.weight": (s.vocab, s.hidden), "transformer.wpe.weight": (POSITIONS, s.hidden)}
            return tables | _norm("transformer.ln_f", s.hidden)
        case "opt":
            # Two rows of its table of positions are never used.
            tables = {"embed_tokens.weight": (s.vocab, width), "embed_positions.weight": (POSITIONS + 2, s.hidden)}
            if width != s.hidden:
                tables |= {"project_in.weight": (s.hidden, width), "project_out.weight": (width, s.hidden)}
            norm = _norm("final_layer_norm", s.hidden) if s.norm_first else {}
            return {f"model.decoder.{name}": shape for name, shape in (tables | norm).items()}
        case "gpt_neox":
            return {"gpt_neox.embed_in.weight": (s.vocab, s.hidden)} | _norm("gpt_neox.final_layer_norm", s.hidden)
        case "bert":
            rows = {"word": s.vocab, "position": POSITIONS, "token_type": 2}
            tables = {f"embeddings.{kind}_embeddings.weight": (count, s.hidden) for kind, count in rows.items()}
            return tables | _norm("embeddings.LayerNorm", s.hidden)
        case _:
            return {"model.embed_tokens.weight": (s.vocab, s.hidden), "model.norm.weight": (s.hidden,)}


def _joined(*parts: Shapes) -> Shapes:
    return {name: shape for part in parts for name, shape in part.items()}


def byte_tokenizer_json() -> str:
    """Return the ``tokenizer.json`` of a tokenizer with one id per byte value and no merges."""
    pieces = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={p: i for i, p in enumerate(pieces)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return json.dumps(json.loads(tokenizer.to_str()), sort_keys=True, separators=(",", ":"))
