"""How can adapter blocks be trained through low-rank factors, and come back as whole blocks?

A matrix W of a block, which takes C numbers to R, answers ``W x + (alpha / r) U D x`` with factors D (r, C) and U (R, r) (Hu et
al. 2021, arXiv:2106.09685). Only the factors are trained; before the blocks are returned their product joins the matrix, so that
whoever receives them sees no difference but the rank.

The factors hang on the matrices as hooks: names, shapes and classes of the model stay what they are.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.hooks import RemovableHandle
from transformers.pytorch_utils import Conv1D

from hushtune_common.config import LoraConfig
from hushtune_common.model.indexed import IndexedModel
from hushtune_common.seeding import SeedTree


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Factors:
    """The factors of one matrix, ``down`` (r, C) and ``up`` (R, r), and the hook that adds their product."""

    module: nn.Module
    down: nn.Parameter
    up: nn.Parameter
    scale: float
    handle: RemovableHandle

    def product(self) -> Tensor:
        """Return what the factors add to the matrix, as it is stored."""
        added = self.scale * (self.up @ self.down)
        return added.T if isinstance(self.module, Conv1D) else added


class Lora:
    """Factors on every matrix of some blocks.

    Laws: untrained factors change nothing; after `merge` the model gives what it gave before, up to rounding; what `merge` adds
    to a matrix has at most the configured rank; nothing else changes.
    """

    def __init__(self, factors: Sequence[_Factors]) -> None:
        """Take the factors; `attached` makes them."""
        self._factors = tuple(factors)

    @property
    def parameters(self) -> list[nn.Parameter]:
        """What is trained."""
        return [p for f in self._factors for p in (f.down, f.up)]

    @property
    def factors(self) -> list[tuple[nn.Parameter, nn.Parameter, float]]:
        """Per matrix ``down`` (r, C), ``up`` (R, r) and the scale of their product."""
        return [(f.down, f.up, f.scale) for f in self._factors]

    def merge(self) -> None:
        """Let the products join their matrices and take the factors away."""
        with torch.no_grad():
            for factors in self._factors:
                cast(Tensor, factors.module.weight).add_(factors.product())
                factors.handle.remove()
        self._factors = ()


def attached(model: IndexedModel, blocks: Sequence[int], *, config: LoraConfig, seeds: SeedTree) -> Lora:
    """Hang factors on every matrix of the given original blocks of ``model``, whose own parameters stay frozen.

    A factor's start depends on the seeds, the block and its matrix alone. ``ValueError`` for a block that the model lacks.
    """
    position = {index: k for k, index in enumerate(model.blocks)}
    missing = [b for b in blocks if b not in position]
    if missing:
        raise ValueError(f"this model has no block {missing[0]}; it has {model.blocks}")
    matrices = [
        (f"{block}.{path}", module)
        for block in sorted(blocks)
        for path, module in model.parts.blocks[position[block]].named_modules()
        if isinstance(module, nn.Linear | Conv1D)
    ]
    return Lora([_hung(module, config=config, seeds=seeds.child(name)) for name, module in matrices])


def _hung(module: nn.Module, *, config: LoraConfig, seeds: SeedTree) -> _Factors:
    weight = cast(Tensor, module.weight)
    rows, columns = reversed(weight.shape) if isinstance(module, Conv1D) else weight.shape
    # One factor starts at random and the other at zero: the product is nothing, yet the first step moves it.
    start = seeds.generator().uniform(-1.0, 1.0, (config.rank, columns)) / sqrt(columns)
    down = nn.Parameter(torch.from_numpy(start.astype(np.float32)).to(weight.device))
    up = nn.Parameter(torch.zeros(rows, config.rank, device=weight.device))
    scale = config.alpha / config.rank

    def add(_module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        thin = functional.linear(inputs[0], down)
        return output + functional.linear(thin, up) * scale

    return _Factors(module=module, down=down, up=up, scale=scale, handle=module.register_forward_hook(add))
