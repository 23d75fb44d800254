"""A causal language model whose blocks are called by their original index.

Letters in shapes: N windows, B of them at a time, T tokens, V vocabulary. Weights are float32.
"""

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from hushtune_common.config import ComputeConfig
from hushtune_common.errors import ConfigError
from hushtune_common.model import loss
from hushtune_common.model.assembly import ENCODERS, assembled
from hushtune_common.model.indexed import EXACT, IndexedModel, device_of
from hushtune_common.model.slots import Drop, Slot
from hushtune_common.model.weights import Weights

__all__ = ["EXACT", "LanguageModel", "device_of", "next_token_loss"]


class LanguageModel(IndexedModel):
    """The full model or an emulator of it, with a head that predicts the next token."""

    @staticmethod
    def build(
        config: Mapping[str, Any], weights: Weights, *, slots: Sequence[Slot], compute: ComputeConfig = EXACT
    ) -> "LanguageModel":
        """Assemble a model from ``weights`` named by original index; what no slot needs is not read.

        `ConfigError` for another family, `MalformedUpdate` naming the tensor for a missing or misshapen one.
        """
        if config.get("model_type") in ENCODERS:
            raise ConfigError(
                "model.source",
                f"{config['model_type']} is an encoder; this needs a causal language model. "
                "Encoders are supported by `hushtune emulator compare`, for classification",
            )
        running = [slot.index for slot in slots if not isinstance(slot, Drop)]
        return LanguageModel(assembled(config, weights, slots=slots), blocks=running, compute=compute)

    def logits(self, tokens: Tensor) -> Tensor:
        """Return (B, T, V) for token ids (B, T)."""
        return cast(Any, self.module)(input_ids=tokens).logits

    @property
    def head(self) -> nn.Linear:
        """What makes scores of the last hidden state; its weight may be the embedding's."""
        return cast(nn.Linear, cast(Any, self.module).get_output_embeddings())

    def hidden(self, tokens: Tensor) -> Tensor:
        """Return what the head sees, (B, T, H), for token ids (B, T)."""
        return cast(Any, self.module).base_model(input_ids=tokens).last_hidden_state

    def token_losses(self, tokens: Tensor) -> Tensor:
        """Return the loss in nats of every predicted token, (B, T-1), of a batch (B, T); not differentiable."""
        with torch.no_grad(), self.arithmetic():
            return loss.token_losses(self.hidden(tokens[:, :-1]), tokens, head=self.head)

    def batch_loss(self, tokens: Tensor) -> Tensor:
        """Return the mean next-token loss in nats of a batch (B, T), differentiable."""
        with self.arithmetic():
            return loss.next_token_loss(self.hidden(tokens[:, :-1]), tokens, head=self.head)

    def loss(self, windows: NDArray[Any], *, batch: int = 8) -> float:
        """Return the mean next-token loss in nats over windows (N, T); its exponential is the perplexity."""
        if not len(windows):
            raise ValueError("no windows to evaluate on")
        tokens = torch.from_numpy(windows).to(self.device)
        with torch.inference_mode():
            total = sum(float(self.batch_loss(part)) * len(part) for part in tokens.split(batch))
        return total / len(windows)


def next_token_loss(logits: Tensor, tokens: Tensor) -> Tensor:
    """Return the mean loss in nats of predicting ``tokens[:, 1:]`` from ``logits`` (B, T-1, V)."""
    return functional.cross_entropy(logits.reshape(-1, logits.shape[-1]), tokens[:, 1:].reshape(-1))
