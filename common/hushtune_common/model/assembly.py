"""How do tensors and slots become a model that runs?"""

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM
from transformers.initialization import no_init_weights
from transformers.pytorch_utils import Conv1D

from hushtune_common.errors import ConfigError, MalformedUpdate
from hushtune_common.model.families import CAUSAL, ENCODERS, family_of, usual_head
from hushtune_common.model.layers import Harmonizer, LowRank, Quantised
from hushtune_common.model.layout import BlockLayout, Matrix, layout_of
from hushtune_common.model.naming import block_of, moved
from hushtune_common.model.resolve import BlockModel, Blocks
from hushtune_common.model.slots import Compress, Drop, Harmonize, Share, Slot
from hushtune_common.model.weights import Weights

__all__ = ["CAUSAL", "ENCODERS", "assembled"]

_NOT_OURS = {"torch_dtype", "dtype", "architectures", "use_cache", "quantization_config", "transformers_version"}


def assembled(config: Mapping[str, Any], weights: Weights, *, slots: Sequence[Slot]) -> BlockModel:
    """Return the model in which the k-th block is the k-th slot that is not dropped, with its ``weights`` by original index.

    Nothing is initialised first, so memory holds the weights once. All parameters are frozen. `ConfigError` for another family,
    `MalformedUpdate` naming the tensor for a missing or misshapen one.
    """
    running = [slot for slot in slots if not isinstance(slot, Drop)]
    # A copy of a block that was made smaller is smaller, too.
    stored = [slots[slot.source] if isinstance(slot, Share) else slot for slot in running]
    # Memory is set aside but never touched until the weights take its place; what is computed, such as positions, is computed.
    with no_init_weights():
        parts = BlockModel(_empty(config, block_count=max(1, len(running))))
    layout = layout_of({n: tuple(p.shape) for n, p in parts.blocks[0].named_parameters()})
    with torch.device("meta"):
        kept = [_block(parts.blocks[k], slot, layout=layout) for k, slot in enumerate(stored)]
    _reset(parts.blocks, kept)
    _fill(parts.module, weights, sources=[slot.index for slot in stored])
    parts.module.requires_grad_(False)
    parts.module.eval()
    return parts


def _empty(config: Mapping[str, Any], *, block_count: int) -> nn.Module:
    made = _transformers_config(config)
    made.num_hidden_layers = block_count
    if getattr(made, "layer_types", None):
        made.layer_types = made.layer_types[:1] * block_count
    if not family_of(config).causal:
        return cast(nn.Module, AutoModel.from_config(made, attn_implementation="sdpa", add_pooling_layer=False))
    return cast(nn.Module, AutoModelForCausalLM.from_config(made, attn_implementation="sdpa"))


def _transformers_config(config: Mapping[str, Any]) -> Any:
    """Return the configuration of the full model; `ConfigError` when its blocks are not alike, as all slots count on."""
    family_of(config)
    settings = {key: value for key, value in config.items() if key not in _NOT_OURS}
    try:
        made = AutoConfig.for_model(settings.pop("model_type"), **settings)
    except (ValueError, TypeError, StrictDataclassError) as error:
        raise ConfigError("model.source", f"its configuration is not valid ({error})") from error
    kinds = sorted({*(getattr(made, "layer_types", None) or ())})
    if len(kinds) > 1:
        raise ConfigError("model.source", f"its blocks attend in different ways ({', '.join(kinds)}); not supported")
    if getattr(made, "scale_attn_by_inverse_layer_idx", False):
        raise ConfigError(
            "model.source", "its blocks scale attention by their number (scale_attn_by_inverse_layer_idx); not supported"
        )
    made.use_cache = False
    made.pad_token_id = None  # padding is told by masks; with an id for it, text that holds the id is warned about
    return made


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
        name = usual_head(local) if block is None else moved(local, to=sources[block])
        if name not in names:
            raise MalformedUpdate(f"{name}: missing from the model")
        if weights.shape(name) != tuple(wanted.shape):
            raise MalformedUpdate(f"{name}: shape {weights.shape(name)}, expected {tuple(wanted.shape)}")
        state[local] = torch.from_numpy(weights.tensor(name)).to(wanted.dtype)
    module.load_state_dict(state, strict=False, assign=True)
    cast(Any, module).tie_weights()
