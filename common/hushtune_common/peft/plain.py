"""How does a model, full or short, become a folder that transformers opens without anything of ours?

An emulator of kept, dropped, shared and compressed blocks is an ordinary model of its family with fewer blocks. What was
compressed is written out: integers as the numbers that they stand for, thin factors as their product, pruned neurons as zeros,
which compute the same. A harmonizer is a block of another kind, and no family's model has room for one.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from tokenizers import Tokenizer

from hushtune_common.adapter import AdapterState, Float32
from hushtune_common.errors import ConfigError
from hushtune_common.model.bundle import Bundle
from hushtune_common.model.families import family_of
from hushtune_common.model.layout import Matrix, layout_of
from hushtune_common.model.naming import block_of, inner_of, moved
from hushtune_common.model.quantise import dequantised
from hushtune_common.model.slots import Compress, Drop, Harmonize, Share, ranges_text
from hushtune_common.model.tokens import Tokens
from hushtune_common.model.weights import Weights, write_tensors
from hushtune_common.peft.indices import Note, note_of_emulator, write_note

_CLASSES: Mapping[str, str] = {
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "mistral": "MistralForCausalLM",
    "gpt2": "GPT2LMHeadModel",
    "opt": "OPTForCausalLM",
    "gpt_neox": "GPTNeoXForCausalLM",
}
"""What a configuration calls the class of a family's models."""
_NO_LONGER_TRUE = {"torch_dtype", "dtype", "quantization_config", "transformers_version"}


def require_causal(config: Mapping[str, Any]) -> None:
    """Raise `ConfigError` for an encoder: networked runs take none, so there is no adapter of one."""
    if not family_of(config).causal:
        raise ConfigError("model.source", f"{config['model_type']} is an encoder; adapters are of causal language models")


def write_plain(folder: Path, *, config: Mapping[str, Any], tokens: Tokens, weights: Weights) -> None:
    """Write a model as ``config.json``, tokenizer and ``model.safetensors``, one tensor in memory at a time.

    ``config`` has as many blocks as ``weights``, whose names count them from 0. `ConfigError` when the folder holds a model
    already, which might be the one that is being read.
    """
    require_causal(config)
    if (folder / "config.json").exists():
        raise ConfigError("--out", f"{folder} holds a model already; choose another folder")
    folder.mkdir(parents=True, exist_ok=True)
    own = {key: value for key, value in config.items() if key not in _NO_LONGER_TRUE}
    own |= {"architectures": [_CLASSES[config["model_type"]]], "dtype": "float32"}
    _write_json(folder / "config.json", own)
    (folder / "tokenizer.json").write_text(tokens.json, encoding="utf-8")
    _write_json(folder / "tokenizer_config.json", _tokenizer_settings(tokens, config=config))
    shapes = {name: weights.shape(name) for name in weights.names()}
    write_tensors(folder / "model.safetensors", shapes=shapes, tensor=weights.tensor, metadata={"format": "pt"})


def export_emulator(bundle: Bundle, folder: Path) -> Note:
    """Write an emulator as a plain model of fewer blocks, with a note of which blocks those are; return the note.

    `ConfigError` names the blocks that no plain model can have.
    """
    require_causal(bundle.config)
    harmonizers = [s.index for s in bundle.plan.slots if isinstance(s, Harmonize)]
    if harmonizers:
        raise ConfigError(
            f"blocks {ranges_text(harmonizers)}",
            "a small network stands in for each, and a plain model has no such block. Ask the owner for an emulator of kept, "
            "dropped, shared or compressed blocks, or train here: `training.lora` trains factors on any emulator",
        )
    blocks = len(bundle.plan.running)
    config = dict(bundle.config) | {"num_hidden_layers": blocks}
    if isinstance(kinds := config.get("layer_types"), list):
        config["layer_types"] = kinds[:1] * blocks  # all alike, or the emulator could not be built
    write_plain(folder, config=config, tokens=bundle.tokens, weights=ShortWeights(bundle))
    note = note_of_emulator(bundle.plan, shipped=AdapterState(bundle.adapter_numpy()))
    write_note(folder, note)
    return note


class ShortWeights:
    """An emulator's tensors as those of a plain model of fewer blocks; names count positions.

    Law: the model of these weights computes what the emulator computes, up to rounding where blocks were compressed.
    """

    def __init__(self, bundle: Bundle) -> None:
        """Take an emulator without harmonizers; reads no weights."""
        self._file = bundle.file
        self._slots = bundle.plan.slots
        # Adapter blocks are as the model has them, so they show what a whole block consists of.
        first = [n for n in self._file.names() if block_of(n) == bundle.plan.adapter[0]]
        self._example = first[0]
        self._inside = {inner_of(n): self._file.shape(n) for n in first}
        self._layout = layout_of(self._inside)
        stored = [s.source if isinstance(s, Share) else s.index for s in self._slots if not isinstance(s, Drop)]
        outside = {n: None for n in self._file.names() if block_of(n) is None}
        within = {moved(self._example, to=k, inner=i): (b, i) for k, b in enumerate(stored) for i in self._inside}
        self._places: Mapping[str, tuple[int, str] | None] = outside | within

    def names(self) -> Sequence[str]:
        """Return every name, sorted."""
        return sorted(self._places)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of one tensor."""
        place = self._places[name]
        return self._file.shape(name) if place is None else self._inside[place[1]]

    def tensor(self, name: str) -> Float32:
        """Return one tensor as float32, the caller's own."""
        place = self._places[name]
        if place is None:
            return self._file.tensor(name)
        block, inner = place
        slot = self._slots[block]
        path, _, kind = moved(self._example, to=block, inner=inner).rpartition(".")
        matrix = next((m for m in self._layout.matrices if path.endswith(f".{m.path}")), None)
        if not isinstance(slot, Compress) or matrix is None:
            return self._file.tensor(f"{path}.{kind}")
        if kind == "weight":
            return _turned(self._spread(self._upright(path, matrix, slot), matrix, slot), matrix)
        thin = f"{path}.left.{kind}"
        return self._spread(self._file.tensor(thin if thin in self._file.entries else f"{path}.{kind}"), matrix, slot)

    def _upright(self, path: str, matrix: Matrix, slot: Compress) -> Float32:
        """Return a stored matrix as a map from columns to rows, without the neurons that were left out."""
        if f"{path}.weight" in self._file.entries:
            return _turned(self._file.tensor(f"{path}.weight"), matrix)
        pruned = slot.channels is not None and matrix == self._layout.down
        columns = len(slot.channels or ()) if pruned else matrix.columns
        if f"{path}.codes" in self._file.entries:
            return self._expanded(path, slot, columns=columns)
        right = self._expanded(f"{path}.right", slot, columns=columns)
        return self._expanded(f"{path}.left", slot, columns=len(right)) @ right

    def _expanded(self, path: str, slot: Compress, *, columns: int) -> Float32:
        """Return a matrix that is stored as it is, or as integers."""
        if slot.quant is None:
            return self._file.tensor(f"{path}.weight")
        codes = self._file.tensor(f"{path}.codes").astype(np.int16)
        return dequantised(codes, self._file.tensor(f"{path}.scales"), columns=columns, quant=slot.quant)

    def _spread(self, values: Float32, matrix: Matrix, slot: Compress) -> Float32:
        """Return a matrix (rows, columns) or a bias (rows) with zeros for the feed-forward neurons that were left out."""
        down = matrix == self._layout.down
        if slot.channels is None or matrix in self._layout.attention or (down and values.ndim == 1):
            return values
        axis = 1 if down else 0
        shape = tuple(self._layout.inner if a == axis else extent for a, extent in enumerate(values.shape))
        whole = np.zeros(shape, dtype=np.float32)
        whole[(slice(None),) * axis + (np.asarray(slot.channels),)] = values
        return whole


def _turned(values: Float32, matrix: Matrix) -> Float32:
    return np.ascontiguousarray(values.T) if matrix.transposed else values


def _tokenizer_settings(tokens: Tokens, *, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what makes transformers open ``tokenizer.json`` as it is, with the special tokens of the configuration."""
    tokenizer = Tokenizer.from_str(tokens.json)
    ids = {kind: config.get(f"{kind}_token_id") for kind in ("bos", "eos", "pad")}
    special = {f"{kind}_token": tokenizer.id_to_token(k) for kind, k in ids.items() if isinstance(k, int)}
    return {"tokenizer_class": "PreTrainedTokenizerFast", **{name: text for name, text in special.items() if text is not None}}


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_bytes(msgspec.json.format(msgspec.json.encode(dict(sorted(content.items()))), indent=2) + b"\n")


_conforms: type[Weights] = ShortWeights
