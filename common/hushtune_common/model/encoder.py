"""A sentence encoder whose blocks are called by their original index.

Letters in shapes: N texts, B of them at a time, T tokens, H hidden size.
"""

from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hushtune_common.adapter import Float32
from hushtune_common.config import ComputeConfig
from hushtune_common.errors import ConfigError
from hushtune_common.model.assembly import ENCODERS, assembled
from hushtune_common.model.indexed import EXACT, IndexedModel
from hushtune_common.model.slots import Drop, Slot
from hushtune_common.model.weights import Weights

FEATURES_BATCH = 32


class EncoderModel(IndexedModel):
    """The full encoder or an emulator of it. A text is the mean of the last block's output over its tokens."""

    @staticmethod
    def build(
        config: Mapping[str, Any], weights: Weights, *, slots: Sequence[Slot], compute: ComputeConfig = EXACT
    ) -> "EncoderModel":
        """Assemble an encoder from ``weights`` named by original index; errors as `assembled`."""
        if config.get("model_type") not in ENCODERS:
            raise ConfigError(
                "model.source", f"{config.get('model_type')!r} is no encoder; this needs one of {', '.join(ENCODERS)}"
            )
        running = [slot.index for slot in slots if not isinstance(slot, Drop)]
        return EncoderModel(assembled(config, weights, slots=slots), blocks=running, compute=compute)

    def pooled(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Return (B, H) for token ids (B, T) whose ``mask`` (B, T) is 0 at padding; differentiable."""
        with self.arithmetic():
            hidden = cast(Tensor, cast(Any, self.module)(input_ids=tokens, attention_mask=mask).last_hidden_state)
        present = mask.unsqueeze(-1).float()
        return (hidden.float() * present).sum(dim=1) / present.sum(dim=1)

    def batch(self, sequences: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Return token ids and mask (B, T) of sequences of any lengths, on the model's device."""
        tokens, mask = padded(sequences)
        return torch.from_numpy(tokens).to(self.device), torch.from_numpy(mask).to(self.device)

    def features(self, sequences: Sequence[Sequence[int]]) -> Float32:
        """Return (N, H) for N token sequences, without gradients."""
        # Sequences of like length go together, so that little is padding; every text keeps its place in the result.
        order = sorted(range(len(sequences)), key=lambda n: len(sequences[n]))
        out = np.empty((len(sequences), self.parts.embedding.embedding_dim), dtype=np.float32)
        with torch.inference_mode():
            for start in range(0, len(order), FEATURES_BATCH):
                chosen = order[start : start + FEATURES_BATCH]
                out[chosen] = self.pooled(*self.batch([sequences[n] for n in chosen])).cpu().numpy()
        return out


def padded(sequences: Sequence[Sequence[int]]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return token ids and mask (B, T), padded at the end to the longest; ``ValueError`` for an empty sequence or none."""
    if not sequences or not all(sequences):
        raise ValueError("every text has at least one token")
    shape = (len(sequences), max(map(len, sequences)))
    tokens, mask = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.int64)
    for row, ids in enumerate(sequences):
        tokens[row, : len(ids)] = ids
        mask[row, : len(ids)] = 1
    return tokens, mask
