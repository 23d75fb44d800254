"""What do all models have whose blocks are called by their original index? Weights are float32, whatever products are made in."""

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import nn

from hushtune_common.adapter import Float32
from hushtune_common.config import ComputeConfig
from hushtune_common.errors import ConfigError
from hushtune_common.model.naming import block_of, renumbered
from hushtune_common.model.resolve import BlockModel

EXACT = ComputeConfig(device="cpu", precision="fp32")
"""On the CPU in float32: equal inputs give equal bits."""


class IndexedModel:
    """The full model or an emulator of it; ``blocks`` are the original indices at which it computes something, in order."""

    def __init__(self, parts: BlockModel, *, blocks: Sequence[int], compute: ComputeConfig = EXACT) -> None:
        """Take a model whose k-th block stands at the original index ``blocks[k]``."""
        self.parts = parts
        self.module = parts.module
        self.blocks = tuple(blocks)
        self.device = device_of(compute)
        self._half = compute.precision == "bf16"
        if len(parts.blocks) != len(self.blocks):
            raise ValueError(f"{len(self.blocks)} indices for {len(parts.blocks)} blocks")
        self.module.to(self.device)

    @property
    def vocabulary(self) -> int:
        """Rows of the embedding."""
        return self.parts.embedding.num_embeddings

    def arithmetic(self) -> torch.autocast:
        """Return the context in which products are made: in bfloat16 where the configuration says so."""
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self._half)

    def adapter_parameters(self, blocks: Iterable[int]) -> dict[str, nn.Parameter]:
        """Return the parameters of the given original blocks by original name, in order of the blocks."""
        position = {index: k for k, index in enumerate(self.blocks)}
        wanted = tuple(blocks)
        missing = [b for b in wanted if b not in position]
        if missing:
            raise ValueError(f"this model has no block {missing[0]}; it has {self.blocks}")
        at: dict[int, dict[str, nn.Parameter]] = {b: {} for b in wanted}
        for local, parameter in self.module.named_parameters():
            name = renumbered(local, to=self.blocks)
            block = block_of(name)
            if block in at:
                at[block][name] = parameter
        return {name: p for b in wanted for name, p in at[b].items()}

    def set_adapter(self, tensors: Mapping[str, Float32]) -> None:
        """Overwrite the named tensors with values of equal shape; ``ValueError`` for a name or shape it does not have."""
        own = {renumbered(n, to=self.blocks): p for n, p in self.module.named_parameters()}
        for name, value in tensors.items():
            if name not in own or tuple(own[name].shape) != value.shape:
                raise ValueError(f"{name}: no such tensor of shape {value.shape} in this model")
        with torch.no_grad():
            for name, value in tensors.items():
                own[name].copy_(torch.tensor(value))


def device_of(compute: ComputeConfig) -> torch.device:
    """Return the device that the configuration asks for; `ConfigError` when it asks for a GPU that is not there."""
    present = torch.cuda.is_available()
    if compute.device == "cuda" and not present:
        raise ConfigError("compute.device", "no GPU that torch can use; take 'auto' or 'cpu', or install a GPU build of torch")
    return torch.device("cuda" if present and compute.device != "cpu" else "cpu")
