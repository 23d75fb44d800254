"""A causal language model whose blocks are called by their original index.

Letters in shapes: N windows, B of them at a time, T tokens, V vocabulary. Weights are float32.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from hushtune_common.adapter import Float32
from hushtune_common.config import ComputeConfig
from hushtune_common.errors import ConfigError
from hushtune_common.model.assembly import ENCODERS, assembled
from hushtune_common.model.naming import block_of, renumbered
from hushtune_common.model.resolve import BlockModel
from hushtune_common.model.slots import Drop, Slot
from hushtune_common.model.weights import Weights

EXACT = ComputeConfig(device="cpu", precision="fp32")
"""On the CPU in float32: equal inputs give equal bits."""


class LanguageModel:
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

    @staticmethod
    def build(
        config: Mapping[str, Any], weights: Weights, *, slots: Sequence[Slot], compute: ComputeConfig = EXACT
    ) -> "LanguageModel":
        """Assemble a model from ``weights`` named by original index; what no slot needs is not read.

        `ConfigError` for another family, `MalformedUpdate` naming the tensor for a missing or misshapen one.
        """
        if config.get("model_type") in ENCODERS:
            raise ConfigError("model.source", f"{config['model_type']} is an encoder; this needs a causal language model")
        running = [slot.index for slot in slots if not isinstance(slot, Drop)]
        return LanguageModel(assembled(config, weights, slots=slots), blocks=running, compute=compute)

    @property
    def vocabulary(self) -> int:
        """Rows of the embedding."""
        return self.parts.embedding.num_embeddings

    def logits(self, tokens: Tensor) -> Tensor:
        """Return (B, T, V) for token ids (B, T)."""
        return cast(Any, self.module)(input_ids=tokens).logits

    def batch_loss(self, tokens: Tensor) -> Tensor:
        """Return the mean next-token loss in nats of a batch (B, T), differentiable."""
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self._half):
            return next_token_loss(self.logits(tokens[:, :-1]), tokens)

    def loss(self, windows: NDArray[Any], *, batch: int = 8) -> float:
        """Return the mean next-token loss in nats over windows (N, T); its exponential is the perplexity."""
        if not len(windows):
            raise ValueError("no windows to evaluate on")
        tokens = torch.from_numpy(windows).to(self.device)
        with torch.inference_mode():
            total = sum(float(self.batch_loss(part)) * len(part) for part in tokens.split(batch))
        return total / len(windows)

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


def next_token_loss(logits: Tensor, tokens: Tensor) -> Tensor:
    """Return the mean loss in nats of predicting ``tokens[:, 1:]`` from ``logits`` (B, T-1, V)."""
    return functional.cross_entropy(logits.reshape(-1, logits.shape[-1]), tokens[:, 1:].reshape(-1))
