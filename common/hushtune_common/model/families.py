"""Which families of models are known, and under which names do checkpoints store their tensors?

Hubs hold one model in several spellings: saved with its head or without, by old and new versions of a library, with buffers that
are computed anyway. All get the names that transformers' own class has (with a head, or for an encoder without), so that a model
has one digest.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hushtune_common.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """``body`` begins the names of all tensors but the head; ``tied`` is what a configuration means that does not say."""

    body: str
    tied: bool
    causal: bool = True
    computed: str = r"rotary_emb\.inv_freq$"
    """What is stored in some checkpoints but follows from the configuration."""


_LLAMA = Family(body="model.", tied=False)
_FAMILIES: Mapping[str, Family] = {
    "llama": _LLAMA,
    "qwen2": _LLAMA,
    "mistral": _LLAMA,
    "gpt2": Family(body="transformer.", tied=True, computed=r"\.attn\.(bias|masked_bias)$"),
    "opt": Family(body="model.", tied=True),
    "gpt_neox": Family(
        body="gpt_neox.",
        tied=False,
        computed=r"\.attention\.(bias|masked_bias|rotary_emb\.inv_freq)$",
    ),
    # A pooler and the heads of pre-training stand behind the last block; the mean over tokens takes their place.
    "bert": Family(body="bert.", tied=True, causal=False, computed=r"embeddings\.position_ids$|^(bert\.)?pooler\.|^cls\."),
}

CAUSAL = tuple(name for name, family in _FAMILIES.items() if family.causal)
"""Families of causal language models; each is tested against transformers."""
ENCODERS = tuple(name for name, family in _FAMILIES.items() if not family.causal)

HEAD = "lm_head.weight"
"""The matrix that makes scores of the last hidden state, where it is not the embedding."""
_OTHER_HEADS = ("embed_out.weight",)

_COUNT_NAMES = ("n_layer", "num_layers")
"""Other names of the number of blocks."""


def family_of(config: Mapping[str, Any]) -> Family:
    """Return the family of a model by its ``config.json``; `ConfigError` for one that is not known."""
    name = config.get("model_type")
    if not isinstance(name, str) or name not in _FAMILIES:
        raise ConfigError("model.source", f"model type {name!r} is not supported; supported: {', '.join(_FAMILIES)}")
    return _FAMILIES[name]


def plain_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a ``config.json`` that says the number of blocks under its usual name and whether the head is tied.

    `ConfigError` when the family is not known or there is no number of blocks.
    """
    family = family_of(config)
    counts = [config[key] for key in ("num_hidden_layers", *_COUNT_NAMES) if key in config]
    if not counts or not isinstance(counts[0], int) or counts[0] < 1:
        raise ConfigError("model.source", "config.json names no num_hidden_layers")
    tied = config.get("tie_word_embeddings")
    rest = {key: value for key, value in config.items() if key not in _COUNT_NAMES}
    return rest | {"num_hidden_layers": counts[0], "tie_word_embeddings": family.tied if tied is None else bool(tied)}


def usual_head(name: str) -> str:
    """Return ``lm_head.weight`` for every name that versions of transformers give the head, any other name as it is."""
    return HEAD if name in _OTHER_HEADS else name


def canonical_name(name: str, *, config: Mapping[str, Any]) -> str | None:
    """Return the name of a checkpoint's tensor for a `plain_config`, none for what is computed or is a copy."""
    family = family_of(config)
    name = usual_head(name)
    if re.search(family.computed, name) or (name == HEAD and config["tie_word_embeddings"]):
        return None
    # Old conversions name norms by the letters of the formula.
    name = re.sub(r"LayerNorm\.gamma$", "LayerNorm.weight", re.sub(r"LayerNorm\.beta$", "LayerNorm.bias", name))
    if not family.causal:
        return name.removeprefix(family.body)
    return name if name == HEAD or name.startswith(family.body) else family.body + name
