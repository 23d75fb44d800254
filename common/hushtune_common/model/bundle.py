"""An emulator as one file: plan, configuration, tokenizer and the tensors of the blocks that stay, by original index."""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from hushtune_common.adapter import Float32
from hushtune_common.config import ComputeConfig
from hushtune_common.errors import ConfigError, DigestMismatch, MalformedUpdate
from hushtune_common.messages import Digest, TensorSpec
from hushtune_common.model.adapter import adapter_specs
from hushtune_common.model.families import HEAD, family_of, usual_head
from hushtune_common.model.materialise import EmulatorTensors, refinement_digest
from hushtune_common.model.naming import block_of
from hushtune_common.model.plan import Plan
from hushtune_common.model.slots import Share
from hushtune_common.model.tokens import Tokens, require_fitting
from hushtune_common.model.weights import DType, TensorFile, write_tensors

if TYPE_CHECKING:  # torch is imported by `Bundle.load` only
    from hushtune_common.model.language import LanguageModel
    from hushtune_common.model.sources import ModelSource

FORMAT = "hushtune-bundle/2"
SENSITIVITY = "sensitivity/"
"""How the names of tensors begin that are no part of the emulator but tell the codec what errors cost."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """A checked emulator file. Reading one imports no torch; `load` does."""

    plan: Plan
    config: Mapping[str, Any]
    tokens: Tokens
    stored: TensorFile
    """All tensors of the file: what a copy of it has to hold."""

    @property
    def file(self) -> TensorFile:
        """The tensors of the emulator."""
        return self.stored.parted(SENSITIVITY)[1]

    @property
    def sensitivity(self) -> Mapping[str, Float32] | None:
        """What the full model's loss minds about errors in the adapter, as the codec's arrays; none if nobody measured it."""
        held, _ = self.stored.parted(SENSITIVITY)
        return {name.removeprefix(SENSITIVITY): held.tensor(name) for name in held.names()} or None

    @property
    def base_digest(self) -> Digest:
        """The model that the emulator was made from."""
        return self.plan.base

    @property
    def refinement_digest(self) -> Digest | None:
        """What identifies the training on public text that its tensors went through; none when there was none."""
        text = self.file.metadata.get("refinement_digest")
        return None if text is None else Digest.from_hex(text)

    @property
    def schema(self) -> tuple[TensorSpec, ...]:
        """The tensors that a client trains and returns."""
        return adapter_specs(self.file, self.plan.adapter)

    @property
    def parameters_per_token(self) -> int:
        """Weights that a token is multiplied with: shared blocks count every time, a looked-up embedding does not count."""
        shapes = {name: self.file.shape(name) for name in self.file.names()}
        sizes = {name: prod(shape) * _weights_per_entry(name, self.file.dtype(name)) for name, shape in shapes.items()}
        blocks = Counter(s.source if isinstance(s, Share) else s.index for s in self.plan.slots)
        inside = sum(size * blocks[b] for name, size in sizes.items() if (b := block_of(name)) is not None)
        outside = {name: size for name, size in sizes.items() if block_of(name) is None}
        norms = sum(size for name, size in outside.items() if len(shapes[name]) == 1)
        return inside + norms + self._head_size(outside)

    def _head_size(self, outside: Mapping[str, int]) -> int:
        own = [size for name, size in outside.items() if usual_head(name) == HEAD]
        family = family_of(self.config)
        # A tied head is the embedding of tokens, the largest of what stands outside the blocks; an encoder has none.
        tied = family.causal and not own and self.config.get("tie_word_embeddings", family.tied)
        return max(own or (outside.values() if tied else []), default=0)

    def adapter_numpy(self) -> dict[str, Float32]:
        """Return the adapter tensors as shipped, in the order of the schema; the caller's own."""
        return {spec.name: self.file.tensor(spec.name) for spec in self.schema}

    def load(self, compute: ComputeConfig | None = None) -> "LanguageModel":
        """Return the emulator, ready to run; each call gives an independent one. By default exact, on the CPU."""
        from hushtune_common.model.language import EXACT, LanguageModel

        model = LanguageModel.build(self.config, self.file, slots=self.plan.slots, compute=compute or EXACT)
        require_fitting(self.tokens, embedding_rows=model.vocabulary)
        return model


@dataclass(frozen=True, slots=True, kw_only=True)
class Refinement:
    """What training on public text made of an emulator: its settings as JSON, and the tensors that it changed."""

    settings: str
    trained: Mapping[str, Float32]

    def __post_init__(self) -> None:
        """Settings are a JSON object; ``ValueError`` otherwise."""
        msgspec.json.decode(self.settings, type=dict[str, Any])

    @property
    def digest(self) -> Digest:
        """What identifies it; the plan's digest does not depend on it."""
        return refinement_digest(self.trained, settings=self.settings)


def write_bundle(
    path: Path,
    *,
    source: "ModelSource",
    plan: Plan,
    refinement: Refinement | None = None,
    sensitivity: Mapping[str, Float32] | None = None,
) -> None:
    """Write the emulator of ``plan``, one tensor in memory at a time; equal inputs give equal bytes.

    ``sensitivity`` holds the arrays that a codec takes beside the adapter (`Bundle.sensitivity`).
    Raises `DigestMismatch` when the plan was made for another model, `MalformedUpdate` when it does not fit it.
    """
    tensors = emulator_tensors(source, plan=plan, refinement=refinement)
    metadata = {
        "format": FORMAT,
        "plan": plan.to_json(),
        "config": json.dumps(dict(source.config), sort_keys=True, separators=(",", ":")),
        "tokenizer": source.tokens.json,
    }
    if refinement is not None:
        metadata |= bundle_notes(refinement)
    beside = {SENSITIVITY + name: array for name, array in (sensitivity or {}).items()}
    write_tensors(
        path,
        shapes={name: tensors.shape(name) for name in tensors.names()} | {name: array.shape for name, array in beside.items()},
        tensor=lambda name: beside[name] if name in beside else tensors.tensor(name),
        metadata=metadata,
        dtype=lambda name: "F32" if name in beside else tensors.dtype(name),
    )


def bundle_notes(refinement: Refinement) -> dict[str, str]:
    """Return what a bundle's metadata says of a refinement."""
    return {"refinement": refinement.settings, "refinement_digest": refinement.digest.hex}


def emulator_tensors(source: "ModelSource", *, plan: Plan, refinement: Refinement | None = None) -> EmulatorTensors:
    """Return the tensors that a bundle of ``plan`` holds; errors as `write_bundle`."""
    if plan.base != source.base_digest:
        raise DigestMismatch(f"the plan is for model {plan.base.short}, this is {source.base_digest.short}; make a new plan")
    if len(plan.slots) != source.block_count:
        raise MalformedUpdate(f"the plan has {len(plan.slots)} slots, the model {source.block_count} blocks")
    try:
        return EmulatorTensors(source.weights, plan, trained=None if refinement is None else refinement.trained)
    except ValueError as error:
        raise MalformedUpdate(f"the plan does not fit the model: {error}") from error


def _require_refinement(metadata: Mapping[str, str]) -> None:
    if ("refinement" in metadata) != ("refinement_digest" in metadata):
        raise ValueError("refinement: its settings and its digest come together")
    if "refinement" in metadata:
        msgspec.json.decode(metadata["refinement"], type=dict[str, Any])
        Digest.from_hex(metadata["refinement_digest"])


def _weights_per_entry(name: str, dtype: DType) -> int:
    # Four-bit codes lie in pairs; the scales beside codes are no weights.
    return 0 if name.endswith(".scales") else 2 if dtype == "U8" else 1


def read_bundle(path: Path) -> Bundle:
    """Open an emulator file and check its header; `MalformedUpdate` on anything that is not one of ours."""
    file = TensorFile.open(path)
    if file.metadata.get("format") != FORMAT:
        raise MalformedUpdate(f"{path.name}: not an emulator bundle of format {FORMAT}")
    try:
        plan = Plan.from_json(file.metadata["plan"])
        config = msgspec.json.decode(file.metadata["config"], type=dict[str, Any])
        family_of(config)
        tokens = Tokens.from_json(file.metadata["tokenizer"])
        _require_refinement(file.metadata)
    except (KeyError, ValueError, RecursionError, ConfigError, MalformedUpdate) as error:
        raise MalformedUpdate(f"{path.name}: {error}") from error
    held = {b for n in file.parted(SENSITIVITY)[1].names() if (b := block_of(n)) is not None}
    if held != set(plan.stored):
        raise MalformedUpdate(f"{path.name}: holds blocks {sorted(held)}, its plan stores {list(plan.stored)}")
    return Bundle(plan=plan, config=config, tokens=tokens, stored=file)
