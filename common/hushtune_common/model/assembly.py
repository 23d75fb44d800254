"""How do tensors and slots become a model that runs?"""

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM
from transformers.initialization import no_init_weights
from transformers.pytorch_utils import Conv1D

from hushtune_common.errors import ConfigError, MalformedUpdate
from hushtune_common.model.layers import Harmonizer, LowRank, Quantised
from hushtune_common.model.layout import BlockLayout, Matrix, layout_of
from hushtune_common.model.naming import block_of, moved
from hushtune_common.model.resolve import BlockModel, Blocks
from hushtune_common.model.slots import Compress, Drop, Harmonize, Share, Slot
from hushtune_common.model.weights import Weights

CAUSAL = ("llama", "gpt2", "opt", "gpt_neox", "qwen2", "mistral")
"""Families of causal language models that are tested against transformers; others of their structure may work as well."""
ENCODERS = ("bert",)

_COUNTS = ("num_hidden_layers", "n_layer")
_NOT_OURS = {"torch_dtype", "dtype", "architectures", "use_cache", "quantization_config"}


def assembled(config: Mapping[str, Any], weights: Weights, *, slots: Sequence[Slot]) -> BlockModel:
    """Return the model in which the k-th block is the k-th slot that is not dropped, with its ``weights`` by original index.

    Nothing is initialised first, so memory holds the weights once. All parameters are frozen. `ConfigError` for another family,
    `MalformedUpdate` naming the tensor for a missing or misshapen one.
    """
    running = [slot for slot in slots if not isinstance(slot, Drop)]
    # Memory is set aside but never touched until the weights take its place; what is computed, such as positions, is computed.
    with no_init_weights():
        parts = BlockModel(_empty(config, block_count=max(1, len(running))))
    layout = layout_of({n: tuple(p.shape) for n, p in parts.blocks[0].named_parameters()})
    with torch.device("meta"):
        kept = [_block(parts.blocks[k], slot, layout=layout) for k, slot in enumerate(running)]
    _reset(parts.blocks, kept)
    _fill(parts.module, weights, sources=[s.source if isinstance(s, Share) else s.index for s in running])
    parts.module.requires_grad_(False)
    parts.module.eval()
    return parts


def _empty(config: Mapping[str, Any], *, block_count: int) -> nn.Module:
    family = config.get("model_type")
    if family not in CAUSAL + ENCODERS:
        known = ", ".join(CAUSAL + ENCODERS)
        raise ConfigError("model.source", f"model type {family!r} is not supported; supported: {known}")
    plain = {k: v for k, v in config.items() if k not in _NOT_OURS}
    counts = {key: block_count for key in _COUNTS if key in plain}
    settings: dict[str, Any] = {**plain, **counts}
    made = AutoConfig.for_model(settings.pop("model_type"), **settings)
    made.use_cache = False
    if family in ENCODERS:
        return cast(nn.Module, AutoModel.from_config(made, attn_implementation="sdpa", add_pooling_layer=False))
    return cast(nn.Module, AutoModelForCausalLM.from_config(made, attn_implementation="sdpa"))


def _reset(blocks: Blocks, kept: Sequence[nn.Module]) -> None:
    for position in reversed(range(len(blocks))):
        del blocks[position]
    blocks.extend(kept)


def _block(block: nn.Module, slot: Slot, *, layout: BlockLayout) -> nn.Module:
    match slot:
        case Harmonize():
            return Harmonizer(layout.hidden, slot.rank)
        case Compress():
            for matrix in layout.matrices:
                parent, _, child = matrix.path.rpartition(".")
                setattr(block.get_submodule(parent), child, _linear(matrix, slot, layout=layout))
            return block
        case _:
            return block


def _linear(matrix: Matrix, slot: Compress, *, layout: BlockLayout) -> nn.Module:
    rows, columns = _extents(matrix, slot, layout=layout)
    rank = len(slot.ranks.get(matrix.path, ()))
    if rank and matrix.thinner(rank):
        thin = LowRank(rows, columns, rank, biased=matrix.biased)
        if slot.quant is not None:
            thin.right = Quantised(rank, columns, biased=False, quant=slot.quant)
            thin.left = Quantised(rows, rank, biased=matrix.biased, quant=slot.quant)
        return thin
    if slot.quant is not None:
        return Quantised(rows, columns, biased=matrix.biased, quant=slot.quant)
    return Conv1D(rows, columns) if matrix.transposed else nn.Linear(columns, rows, bias=matrix.biased)


def _extents(matrix: Matrix, slot: Compress, *, layout: BlockLayout) -> tuple[int, int]:
    if slot.channels is None or matrix in layout.attention:
        return matrix.rows, matrix.columns
    count = len(slot.channels)
    return (matrix.rows, count) if matrix == layout.down else (count, matrix.columns)


def _fill(module: nn.Module, weights: Weights, *, sources: Sequence[int]) -> None:
    """Put tensors in the place of the module's own; ``sources`` are the original indices of its blocks."""
    tied = cast(Mapping[str, str], getattr(module, "all_tied_weights_keys", None) or {})
    names = {*weights.names()}
    state: dict[str, Tensor] = {}
    for local, wanted in module.state_dict().items():
        if local in tied:
            continue
        block = block_of(local)
        name = local if block is None else moved(local, to=sources[block])
        if name not in names:
            raise MalformedUpdate(f"{name}: missing from the model")
        if weights.shape(name) != tuple(wanted.shape):
            raise MalformedUpdate(f"{name}: shape {weights.shape(name)}, expected {tuple(wanted.shape)}")
        state[local] = torch.from_numpy(weights.tensor(name)).to(wanted.dtype)
    module.load_state_dict(state, strict=False, assign=True)
    cast(Any, module).tie_weights()
