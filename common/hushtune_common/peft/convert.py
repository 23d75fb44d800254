"""How do LoRA factors become whole adapter blocks, and what training changed in adapter blocks LoRA factors?

The first is what a client does who trained with tools of its own; the second is what an owner does who wants to serve the result
with tools of others. Names of adapter blocks are original, so a factor's name moves to its original block and back.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hushtune_common.adapter import AdapterState, Float32
from hushtune_common.errors import ConfigError
from hushtune_common.model.families import canonical_name
from hushtune_common.model.layout import BlockLayout, layout_of
from hushtune_common.model.naming import block_of, inner_of, list_of, moved
from hushtune_common.model.plan import Plan
from hushtune_common.model.slots import ranges_text
from hushtune_common.model.sources import ModelSource
from hushtune_common.peft.checkpoint import Checkpoint, Factors, key_of_factor, key_of_tensor, write_checkpoint
from hushtune_common.peft.indices import Note, write_note
from hushtune_common.peft.lowrank import Limit, LowRank, low_rank
from hushtune_common.peft.patch import PATCH_FILE, write_patch


def merged(checkpoint: Checkpoint, *, shipped: AdapterState, config: Mapping[str, Any], originals: Sequence[int]) -> AdapterState:
    """Return the ``shipped`` adapter blocks with everything in the checkpoint merged into them: ``W + scale * U D``.

    ``originals`` are the original indices of the blocks that the checkpoint's names count. Sums are made in float64 and rounded
    once. `ConfigError` names the key of a tensor that lies outside the adapter blocks, is there twice, or does not fit.
    """
    target = _Target(shipped, config=config, originals=originals)
    for module, factors in checkpoint.factors.items():
        target.add_product(module, factors, scale=checkpoint.scale_at(module))
    for name, tensor in checkpoint.whole.items():
        target.replace(name, tensor)
    return target.state()


class _Target:
    """Adapter blocks while a checkpoint is merged into them; each tensor changes once at most."""

    def __init__(self, shipped: AdapterState, *, config: Mapping[str, Any], originals: Sequence[int]) -> None:
        self._tensors = dict(shipped.tensors)
        self._config = config
        self._originals = originals
        self._blocks = sorted({b for name in shipped.tensors if (b := block_of(name)) is not None})
        self._layout = _layout(shipped)
        self._changed_by: dict[str, str] = {}

    def state(self) -> AdapterState:
        return AdapterState(self._tensors)

    def add_product(self, module: str, factors: Factors, *, scale: float) -> None:
        name = self._name(f"{module}.weight", key=factors.key)
        path = inner_of(name).removesuffix(".weight")
        matrix = next((m for m in self._layout.matrices if m.path == path), None)
        shape = (len(factors.up), factors.down.shape[1])
        if matrix is None or shape != (matrix.rows, matrix.columns):
            raise ConfigError(factors.key, f"an adapter block has no matrix {path} of shape {shape}")
        product = scale * (factors.up.astype(np.float64) @ factors.down)
        self._put(name, self._tensors[name] + (product.T if matrix.transposed else product), key=factors.key)
        if factors.bias is not None:
            key = key_of_factor(module, "B").removesuffix("weight") + "bias"
            name = self._name(f"{module}.bias", key=key)
            self._put(name, self._tensors[name] + scale * factors.bias.astype(np.float64), key=key)

    def replace(self, name: str, tensor: Float32) -> None:
        key = key_of_tensor(name)
        self._put(self._name(name, key=key), tensor, key=key)

    def _name(self, name: str, *, key: str) -> str:
        """Return the original name of a tensor of the adapter blocks."""
        canonical = canonical_name(name, config=self._config)
        position = None if canonical is None else block_of(canonical)
        allowed = f"adapter blocks are {ranges_text(self._blocks)}"
        if canonical is None or position is None:
            raise ConfigError(key, f"lies outside the blocks, where nothing may be trained; {allowed}")
        if position >= len(self._originals):
            raise ConfigError(key, f"there is no block {position}: the names count {len(self._originals)} blocks")
        block = self._originals[position]
        if block not in self._blocks:
            counted = [k for k, original in enumerate(self._originals) if original in self._blocks]
            problem = f"is of block {block} of the model, which may not be trained; {allowed}"
            raise ConfigError(key, f"{problem}: train with layers_to_transform={counted}")
        original = moved(canonical, to=block)
        if original not in self._tensors:
            raise ConfigError(key, f"an adapter block has no tensor {inner_of(original)}")
        return original

    def _put(self, name: str, value: Float32 | np.ndarray[Any, np.dtype[np.float64]], *, key: str) -> None:
        before = self._tensors[name]
        if name in self._changed_by:
            raise ConfigError(key, f"changes {name}, which {self._changed_by[name]} changes as well")
        if value.shape != before.shape:
            raise ConfigError(key, f"has shape {value.shape}, {name} has {before.shape}")
        rounded = np.ascontiguousarray(value, dtype=np.float32)
        if not np.isfinite(rounded).all():
            raise ConfigError(key, f"makes {name} hold values that are not finite")
        self._changed_by[name] = key
        self._tensors[name] = rounded


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Change:
    """Adapter blocks (``state``) that a model's own were trained into, and which tensors differ (``tensors``)."""

    source: ModelSource
    state: AdapterState
    tensors: Mapping[str, Float32]
    plan: Plan | None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Factored:
    """A change as LoRA: factors by module, every bias of those modules if any differs, and the other modules as a whole."""

    factors: Mapping[str, LowRank]
    biases: Mapping[str, Float32]
    whole: Mapping[str, Float32]

    @property
    def pays(self) -> bool:
        """Whether there are factors, and fewer numbers in them than in the matrices that they change."""
        full = sum(low.up.shape[0] * low.down.shape[1] for low in self.factors.values())
        return sum(low.count for low in self.factors.values()) < full


def change_of(source: ModelSource, state: AdapterState, *, plan: Plan | None) -> Change:
    """Compare adapter blocks with the model's own; `ConfigError` when they are the same."""
    tensors = {n: t for n, t in state.tensors.items() if not np.array_equal(t, source.tensor(n))}
    if not tensors:
        raise ConfigError("--adapter", "holds the model's own blocks, bit for bit; there is nothing to export")
    return Change(source=source, state=state, tensors=tensors, plan=plan)


def factored(change: Change, *, limit: Limit) -> Factored:
    """Take the change of every matrix apart, one at a time."""
    paths = {m.path: m for m in _layout(change.state).matrices}
    tensors = change.state.tensors
    factors: dict[str, LowRank] = {}
    rest: list[str] = []
    for module in dict.fromkeys(name.rpartition(".")[0] for name in tensors if name in change.tensors):
        weight = f"{module}.weight"
        matrix = paths.get(inner_of(weight).removesuffix(".weight"))
        if matrix is None:
            rest.append(module)
        else:
            ends = (change.source.tensor(weight), tensors[weight])
            before, after = (end.T for end in ends) if matrix.transposed else ends
            factors[module] = low_rank(before, after, limit=limit)
    biases = {name: tensors[name] for module in factors if (name := f"{module}.bias") in tensors}
    return Factored(
        factors=factors,
        biases=biases if any(name in change.tensors for name in biases) else {},
        whole={n: t for n, t in tensors.items() if n.rpartition(".")[0] in rest},
    )


def write_lora(folder: Path, change: Change, found: Factored, *, model: str) -> None:
    """Write a checkpoint that PEFT loads into the full model; ``model`` is where the model came from (``model.source``)."""
    tensors = {key_of_tensor(name): tensor for name, tensor in found.whole.items()}
    # The library keeps a bias in the layer inside; setting it there works whatever the other modules have.
    tensors |= {key_of_tensor(f"{n.removesuffix('bias')}base_layer.bias"): tensor for n, tensor in found.biases.items()}
    for module, low in found.factors.items():
        tensors |= {key_of_factor(module, "A"): low.down, key_of_factor(module, "B"): low.up}
    blocks = tuple(sorted({b for name in change.state.tensors if (b := block_of(name)) is not None}))
    write_checkpoint(folder, settings=_settings(change, found, model=model), tensors=tensors)
    note = Note(
        indices="original",
        base=change.source.base_digest.hex,
        blocks=tuple(range(change.source.block_count)),
        adapter=blocks,
        layers_to_transform=blocks,
        plan=None if change.plan is None else change.plan.digest.hex,
    )
    write_note(folder, note)


def write_whole(folder: Path, change: Change) -> None:
    """Write the tensors that differ as a patch, which needs no PEFT."""
    plan = None if change.plan is None else change.plan.digest
    write_patch(folder / PATCH_FILE, tensors=change.tensors, base=change.source.base_digest, plan=plan)


def _settings(change: Change, found: Factored, *, model: str) -> dict[str, Any]:
    """Return an ``adapter_config.json``: alpha is the rank everywhere, so that the product is added as it is."""
    ranks = {module: low.rank for module, low in found.factors.items()}
    usual = max(ranks.values(), key=lambda rank: (list(ranks.values()).count(rank), rank))
    others = {module: rank for module, rank in ranks.items() if rank != usual}
    matrices = _layout(change.state).matrices
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        **_reference(model),
        "inference_mode": True,
        "r": usual,
        "lora_alpha": usual,
        "rank_pattern": others,
        "alpha_pattern": others,
        "lora_dropout": 0.0,
        "use_rslora": False,
        "init_lora_weights": True,
        "fan_in_fan_out": any(matrix.transposed for matrix in matrices),
        "bias": "lora_only" if found.biases else "none",
        "modules_to_save": sorted({name.rpartition(".")[0] for name in found.whole}) or None,
        **_targets(found),
    }


def _reference(model: str) -> dict[str, str | None]:
    """Return how the library finds the model: a folder, a name with its commit, or else what a person has to make sense of."""
    kind, _, rest = model.partition(":")
    name, _, revision = rest.partition("@")
    match kind:
        case "dir":
            return {"base_model_name_or_path": rest, "revision": None}
        case "hub":
            return {"base_model_name_or_path": name, "revision": revision}
        case _:
            return {"base_model_name_or_path": model, "revision": None}


def _targets(found: Factored) -> dict[str, Any]:
    """Return which modules have factors: by block and path inside it where all blocks have the same ones, else each by itself."""
    blocks: dict[str, list[int]] = {}
    for module in found.factors:
        blocks.setdefault(inner_of(module), []).append(block_of(module) or 0)
    first = sorted(next(iter(blocks.values())))
    if any(sorted(others) != first for others in blocks.values()):
        return {"target_modules": sorted(found.factors)}
    pattern = list_of(next(iter(found.factors))).rstrip(".").rpartition(".")[2]
    return {"target_modules": sorted(blocks), "layers_to_transform": first, "layers_pattern": pattern}


def _layout(state: AdapterState) -> BlockLayout:
    """Return the matrices of an adapter block; all blocks are alike."""
    first = block_of(next(iter(state.tensors)))
    return layout_of({inner_of(name): t.shape for name, t in state.tensors.items() if block_of(name) == first})
