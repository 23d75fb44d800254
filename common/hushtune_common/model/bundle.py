"""An emulator as one file: plan, configuration, tokenizer and the tensors of the blocks that stay, by original index."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from hushtune_common.adapter import Float32
from hushtune_common.config import ComputeConfig
from hushtune_common.errors import ConfigError, DigestMismatch, MalformedUpdate
from hushtune_common.messages import Digest, TensorSpec
from hushtune_common.model.adapter import adapter_specs
from hushtune_common.model.naming import block_of
from hushtune_common.model.plan import Plan
from hushtune_common.model.tokens import Tokens, require_fitting
from hushtune_common.model.weights import TensorFile, write_tensors

if TYPE_CHECKING:  # torch is imported by `Bundle.load` only
    from hushtune_common.model.language import LanguageModel
    from hushtune_common.model.sources import ModelSource

FORMAT = "hushtune-bundle/1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """A checked emulator file. Reading one imports no torch; `load` does."""

    plan: Plan
    config: Mapping[str, Any]
    tokens: Tokens
    file: TensorFile

    @property
    def base_digest(self) -> Digest:
        """The model that the emulator was made from."""
        return self.plan.base

    @property
    def schema(self) -> tuple[TensorSpec, ...]:
        """The tensors that a client trains and returns."""
        return adapter_specs(self.file, self.plan.adapter)

    def adapter_numpy(self) -> dict[str, Float32]:
        """Return the adapter tensors as shipped, in the order of the schema; the caller's own."""
        return {spec.name: self.file.tensor(spec.name) for spec in self.schema}

    def load(self, compute: ComputeConfig | None = None) -> "LanguageModel":
        """Return the emulator, ready to run; each call gives an independent one. By default exact, on the CPU."""
        from hushtune_common.model.language import EXACT, LanguageModel

        model = LanguageModel.build(self.config, self.file, blocks=self.plan.kept, compute=compute or EXACT)
        require_fitting(self.tokens, embedding_rows=model.vocabulary)
        return model


def write_bundle(path: Path, *, source: "ModelSource", plan: Plan) -> None:
    """Write the emulator of ``plan``, one tensor in memory at a time; equal inputs give equal bytes.

    Raises `DigestMismatch` when the plan was made for another model.
    """
    if plan.base != source.base_digest:
        raise DigestMismatch(f"the plan is for model {plan.base.short}, this is {source.base_digest.short}; make a new plan")
    if len(plan.slots) != source.block_count:
        raise MalformedUpdate(f"the plan has {len(plan.slots)} slots, the model {source.block_count} blocks")
    kept = set(plan.kept)
    shapes = {n: source.weights.shape(n) for n in source.names() if (b := block_of(n)) is None or b in kept}
    metadata = {
        "format": FORMAT,
        "plan": plan.to_json(),
        "config": json.dumps(dict(source.config), sort_keys=True, separators=(",", ":")),
        "tokenizer": source.tokens.json,
    }
    write_tensors(path, shapes=shapes, tensor=source.weights.tensor, metadata=metadata)


def read_bundle(path: Path) -> Bundle:
    """Open an emulator file and check its header; `MalformedUpdate` on anything that is not one of ours."""
    file = TensorFile.open(path)
    if file.metadata.get("format") != FORMAT:
        raise MalformedUpdate(f"{path.name}: not an emulator bundle of format {FORMAT}")
    try:
        plan = Plan.from_json(file.metadata["plan"])
        config = msgspec.json.decode(file.metadata["config"], type=dict[str, Any])
        tokens = Tokens.from_json(file.metadata["tokenizer"])
    except (KeyError, ValueError, ConfigError) as error:
        raise MalformedUpdate(f"{path.name}: {error}") from error
    held = {b for n in file.names() if (b := block_of(n)) is not None}
    if held != set(plan.kept):
        raise MalformedUpdate(f"{path.name}: holds blocks {sorted(held)}, its plan keeps {list(plan.kept)}")
    return Bundle(plan=plan, config=config, tokens=tokens, file=file)
