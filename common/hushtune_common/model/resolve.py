"""Where the parts of a causal language model are: embedding, blocks, final norm, head.

Letters in shapes: B sequences, T tokens, H hidden size, V vocabulary.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hushtune_common.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockModel:
    """A model that runs block by block. Law: all blocks in order give bit for bit what the module itself gives."""

    embedding: nn.Embedding
    blocks: nn.ModuleList
    norm: nn.Module
    head: nn.Linear
    rotary: nn.Module

    def embed(self, tokens: Tensor) -> Tensor:
        """Return (B, T, H) for token ids (B, T)."""
        return self.embedding(tokens)

    def run(self, hidden: Tensor, *, blocks: Iterable[int]) -> Tensor:
        """Return ``hidden`` (B, T, H) after the blocks at these positions, causally masked."""
        positions = torch.arange(hidden.shape[1], device=hidden.device).unsqueeze(0)  # (1, T)
        cos_sin = self.rotary(hidden, positions)
        for index in blocks:
            # Without a mask the attention is causal, and there is no padding in packed windows.
            hidden = self.blocks[index](hidden, attention_mask=None, position_ids=positions, position_embeddings=cos_sin)
        return hidden

    def predict(self, hidden: Tensor) -> Tensor:
        """Return logits (B, T, V) from the last block's output."""
        return self.head(self.norm(hidden))


def resolve(module: nn.Module) -> BlockModel:
    """Find the parts of a transformers causal language model by structure; `ConfigError` when it is not of LLaMA form.

    The block list is the longest module list. Beside it stand the final norm, whose sole parameter is a vector, and the
    positions, which have an ``inv_freq`` buffer.
    """
    lists = [(parent, child) for parent in module.modules() for child in parent.children() if isinstance(child, nn.ModuleList)]
    if not lists:
        raise ConfigError("model.source", f"{type(module).__name__} has no list of blocks")
    body, blocks = max(lists, key=lambda pair: len(pair[1]))
    norms = [c for c in body.children() if [p.ndim for p in c.parameters()] == [1]]
    rotaries = [c for c in body.children() if "inv_freq" in dict(c.named_buffers(recurse=False))]
    embeddings = [c for c in body.children() if isinstance(c, nn.Embedding)]
    heads = [c for c in module.children() if isinstance(c, nn.Linear)]
    found = {"final norm": norms, "rotary positions": rotaries, "embedding": embeddings, "head": heads}
    for part, candidates in found.items():
        if len(candidates) != 1:
            raise ConfigError("model.source", f"{type(module).__name__} has {len(candidates)} candidates for its {part}, not one")
    return BlockModel(embedding=embeddings[0], blocks=blocks, norm=norms[0], head=heads[0], rotary=rotaries[0])
