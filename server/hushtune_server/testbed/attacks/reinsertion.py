"""What does a thief put where an emulator has no block?

Every fill is made from what was shipped. A block that is missing, or that a harmonizer stands for, gets a whole one in its place.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Literal

import numpy as np

from hushtune_common.adapter import Float32
from hushtune_common.model.layout import BlockLayout
from hushtune_common.model.slots import Compress, Drop, Harmonize, Keep, Slot
from hushtune_server.owner.emulators.expanded import Expanded, Recipe

FillName = Literal["copy", "interpolate", "identity"]
Filling = tuple[Slot, Mapping[str, Recipe]]
"""A slot and its tensors by their names inside the block."""
Fill = Callable[[Expanded, int], Filling]

_OUTPUTS = ("o_proj", "out_proj", "c_proj", "dense")
"""How families call the matrix through which attention gives its result."""


def reinserted(held: Expanded, fill: Fill) -> Expanded:
    """Return what is held with every missing or harmonized block filled; the fills see what was shipped, not each other."""
    filled = held
    for slot in held.slots:
        if isinstance(slot, Drop | Harmonize):
            own, tensors = fill(held, slot.index)
            filled = filled.replaced(slot.index, slot=own, tensors=tensors)
    return filled


def copied(held: Expanded, index: int) -> Filling:
    """Return a copy of the nearest block that is there; of two, the one before."""
    source = min(_standing(held), key=lambda b: (abs(b - index), b))
    return _moved(held.slots[source], to=index), held.block(source)


def interpolated(held: Expanded, index: int) -> Filling:
    """Return the mean of the nearest blocks on both sides, each weighted by how near it is.

    At an end of the model, or when the two have different forms, that is the nearest block.
    """
    below = max((b for b in _standing(held) if b < index), default=None)
    above = min((b for b in _standing(held) if b > index), default=None)
    if below is None or above is None or _form(held, below) != _form(held, above):
        return copied(held, index)
    share = (index - below) / (above - below)
    first, second = held.block(below), held.block(above)
    mixed = {n: Recipe(r.shape, partial(_mixed, r, second[n], share=share)) for n, r in first.items()}
    return _moved(held.slots[below], to=index), mixed


def silenced(held: Expanded, index: int) -> Filling:
    """Return a copy of the nearest block that adds nothing yet: what leads out of attention and neurons is zero.

    It starts as the identity where blocks add to the hidden state, and it can learn (LLaMA Pro, arXiv 2401.02415, adds blocks
    so). ``ValueError`` when it is not known which matrix leads out of attention.
    """
    slot, tensors = copied(held, index)
    outputs = tuple(f"{path}." for path in _outputs(held.layout))
    return slot, {n: _zero(r) if n.startswith(outputs) else r for n, r in tensors.items()}


FILLS: Mapping[FillName, Fill] = {"copy": copied, "interpolate": interpolated, "identity": silenced}


def _standing(held: Expanded) -> list[int]:
    return [s.index for s in held.slots if isinstance(s, Keep | Compress)]


def _form(held: Expanded, block: int) -> Mapping[str, tuple[int, ...]]:
    return {name: recipe.shape for name, recipe in held.block(block).items()}


def _moved(slot: Slot, *, to: int) -> Slot:
    return Compress(index=to, channels=slot.channels) if isinstance(slot, Compress) else Keep(to)


def _mixed(first: Recipe, second: Recipe, *, share: float) -> Float32:
    return ((1.0 - share) * first.make() + share * second.make()).astype(np.float32)


def _zero(recipe: Recipe) -> Recipe:
    return Recipe(recipe.shape, lambda: np.zeros(recipe.shape, dtype=np.float32))


def _outputs(layout: BlockLayout) -> tuple[str, ...]:
    found = [m.path for m in layout.attention if m.path.rpartition(".")[2] in _OUTPUTS and m.rows == layout.hidden]
    if not found:
        raise ValueError(f"none of {', '.join(m.path for m in layout.attention)} is known to lead out of attention")
    return (found[0], layout.down.path)
