"""A causal language model whose blocks are called by their original index.

Letters in shapes: N windows, B of them at a time, T tokens, V vocabulary. Weights are float32.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM

from hushtune_common.adapter import Float32
from hushtune_common.config import ComputeConfig
from hushtune_common.errors import ConfigError, MalformedUpdate
from hushtune_common.model.naming import block_of, renumbered
from hushtune_common.model.resolve import resolve
from hushtune_common.model.weights import Weights

FAMILIES = ("llama",)

EXACT = ComputeConfig(device="cpu", precision="fp32")
"""On the CPU in float32: equal inputs give equal bits."""


class LanguageModel:
    """The full model or an emulator of it; ``blocks`` are the original indices of the blocks it has, in order."""

    def __init__(self, module: nn.Module, *, blocks: Sequence[int], compute: ComputeConfig = EXACT) -> None:
        """Take a transformers module in which the k-th block is the original block ``blocks[k]``."""
        self.module = module
        self.blocks = tuple(blocks)
        self.device = device_of(compute)
        self._half = compute.precision == "bf16"
        self.parts = resolve(module)
        if len(self.parts.blocks) != len(self.blocks):
            raise ValueError(f"{len(self.blocks)} indices for {len(self.parts.blocks)} blocks")

    @staticmethod
    def build(
        config: Mapping[str, Any], weights: Weights, *, blocks: Sequence[int], compute: ComputeConfig = EXACT
    ) -> "LanguageModel":
        """Assemble a model from ``weights`` named by original index; other blocks in ``weights`` are not read.

        Nothing is initialised first, so memory holds the weights once. `ConfigError` for another family, `MalformedUpdate` naming
        the tensor for a missing or misshapen one.
        """
        module = _empty(config, block_count=len(blocks))
        state: dict[str, Tensor] = {}
        tied = bool(module.config.tie_word_embeddings)
        for local, parameter in module.state_dict().items():
            if tied and local == "lm_head.weight":
                continue
            name = renumbered(local, to=blocks)
            if name not in weights.names():
                raise MalformedUpdate(f"{name}: missing from the model")
            if weights.shape(name) != tuple(parameter.shape):
                raise MalformedUpdate(f"{name}: shape {weights.shape(name)}, expected {tuple(parameter.shape)}")
            state[local] = torch.from_numpy(weights.tensor(name))
        module.load_state_dict(state, strict=False, assign=True)
        module.tie_weights()
        module.requires_grad_(False)
        nn.Module.to(module.eval(), device_of(compute))
        return LanguageModel(module, blocks=blocks, compute=compute)

    @property
    def vocabulary(self) -> int:
        """Rows of the embedding."""
        return self.parts.embedding.num_embeddings

    def logits(self, tokens: Tensor) -> Tensor:
        """Return (B, T, V) for token ids (B, T)."""
        parts = self.parts
        return parts.predict(parts.run(parts.embed(tokens), blocks=range(len(self.blocks))))

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


def _empty(config: Mapping[str, Any], *, block_count: int) -> LlamaForCausalLM:
    family = config.get("model_type")
    if family not in FAMILIES:
        raise ConfigError("model.source", f"model type {family!r} is not supported; supported: {', '.join(FAMILIES)}")
    plain = {k: v for k, v in config.items() if k not in {"torch_dtype", "dtype", "architectures"}}
    made = LlamaConfig.from_dict({**plain, "num_hidden_layers": block_count, "use_cache": False, "attn_implementation": "sdpa"})
    with torch.device("meta"):
        module = LlamaForCausalLM(made)
    # Positions are computed, not stored, so they are the one thing that must not stay empty.
    module.model.rotary_emb = type(module.model.rotary_emb)(made)
    return module
