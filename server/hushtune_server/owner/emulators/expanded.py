"""What does somebody who was given an emulator hold, written out as plain matrices of the model's own form?

Integers become floats again, factors are multiplied out, and every shared block is a copy of its own. Used to measure what an
emulator gives away, and by whoever attacks one.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from hushtune_common.adapter import Float32
from hushtune_common.model.layout import BlockLayout, Matrix, layout_of
from hushtune_common.model.naming import block_of, inner_of, moved
from hushtune_common.model.plan import Plan
from hushtune_common.model.quantise import dequantised
from hushtune_common.model.slots import Compress, Drop, Harmonize, Keep, Quant, Share, Slot
from hushtune_common.model.weights import Weights


@dataclass(frozen=True, slots=True)
class Recipe:
    """A tensor that is made when it is asked for."""

    shape: tuple[int, ...]
    make: Callable[[], Float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Expanded:
    """The tensors of an emulator in the names and the storage of the full model, as `Weights`, and the slots that hold them.

    Slots are `Keep` where a block has its full form, `Compress` with channels alone where neurons are missing, `Harmonize` and
    `Drop` as they were. Law: a model of these slots and tensors computes what the emulator computes, up to rounding.
    """

    slots: tuple[Slot, ...]
    layout: BlockLayout
    recipes: Mapping[str, Recipe]

    def names(self) -> Sequence[str]:
        """Return every name, sorted."""
        return sorted(self.recipes)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of one tensor."""
        return self.recipes[name].shape

    def tensor(self, name: str) -> Float32:
        """Return one tensor, the caller's own."""
        return self.recipes[name].make()

    def block(self, index: int) -> Mapping[str, Recipe]:
        """Return the tensors of a block by their names inside it."""
        return {inner_of(name): recipe for name, recipe in self.recipes.items() if block_of(name) == index}

    def name_of(self, inner: str, *, block: int) -> str:
        """Return the full name of a block's tensor."""
        return moved(next(n for n in self.recipes if block_of(n) is not None), to=block, inner=inner)

    def replaced(self, index: int, *, slot: Slot, tensors: Mapping[str, Recipe]) -> "Expanded":
        """Return the same with another ``slot`` at an index; ``tensors`` are its own, by their names inside the block."""
        others = {name: recipe for name, recipe in self.recipes.items() if block_of(name) != index}
        own = {self.name_of(inner, block=index): recipe for inner, recipe in tensors.items()}
        slots = tuple(slot if s.index == index else s for s in self.slots)
        return Expanded(slots=slots, layout=self.layout, recipes={**others, **own})


def expanded(plan: Plan, shipped: Weights) -> Expanded:
    """Write out the emulator of ``plan`` whose tensors, as a bundle stores them, are ``shipped``; reads none of them yet."""
    first = {inner_of(n): shipped.shape(n) for n in shipped.names() if block_of(n) == plan.adapter[0]}
    layout = layout_of(first)
    recipes = {n: r for slot in plan.slots for n, r in _of_slot(slot, shipped, layout=layout)}
    recipes |= {n: Recipe(shipped.shape(n), partial(shipped.tensor, n)) for n in shipped.names() if block_of(n) is None}
    found = Expanded(slots=tuple(_plain(s) for s in plan.slots), layout=layout, recipes=recipes)
    for slot in plan.slots:
        if isinstance(slot, Share):
            twin = _plain(plan.slots[slot.source])
            own = replace(twin, index=slot.index)
            found = found.replaced(slot.index, slot=own, tensors=found.block(slot.source))
    return found


def _plain(slot: Slot) -> Slot:
    match slot:
        case Compress(channels=tuple() as channels):
            return Compress(index=slot.index, channels=channels)
        case Compress():
            return Keep(slot.index)
        case _:
            return slot


def _of_slot(slot: Slot, shipped: Weights, *, layout: BlockLayout) -> Iterator[tuple[str, Recipe]]:
    names = [n for n in shipped.names() if block_of(n) == slot.index]
    match slot:
        case Keep() | Harmonize():
            yield from ((n, Recipe(shipped.shape(n), partial(shipped.tensor, n))) for n in names)
        case Compress():
            yield from _written_out(slot, shipped, names=names, layout=layout)
        case Drop() | Share():
            pass


def _written_out(slot: Compress, shipped: Weights, *, names: Sequence[str], layout: BlockLayout) -> Iterator[tuple[str, Recipe]]:
    inside = {inner_of(n): n for n in names}
    for matrix in layout.matrices:
        held = {i.removeprefix(f"{matrix.path}."): n for i, n in inside.items() if i.startswith(f"{matrix.path}.")}
        rows, columns = extents(matrix, slot, layout=layout)
        stored = (columns, rows) if matrix.transposed else (rows, columns)
        name = moved(names[0], to=slot.index, inner=f"{matrix.path}.weight")
        yield name, Recipe(stored, partial(_matrix, shipped, held, matrix, columns=columns, slot=slot))
        bias = held.get("bias", held.get("left.bias"))
        if bias is not None:
            yield f"{name.removesuffix('weight')}bias", Recipe(shipped.shape(bias), partial(shipped.tensor, bias))
    parts = tuple(f"{matrix.path}." for matrix in layout.matrices)
    yield from ((n, Recipe(shipped.shape(n), partial(shipped.tensor, n))) for i, n in inside.items() if not i.startswith(parts))


def extents(matrix: Matrix, slot: Compress, *, layout: BlockLayout) -> tuple[int, int]:
    """Return outputs and inputs of a matrix once the neurons that the slot leaves out are gone."""
    if slot.channels is None or matrix in layout.attention:
        return matrix.rows, matrix.columns
    count = len(slot.channels)
    return (matrix.rows, count) if matrix == layout.down else (count, matrix.columns)


def _matrix(shipped: Weights, held: Mapping[str, str], matrix: Matrix, *, columns: int, slot: Compress) -> Float32:
    """Return a matrix as the model stores it; ``held`` are its parts by the rest of their names."""
    thin = any(rest.startswith("left.") and not rest.endswith("bias") for rest in held)
    if not thin and "weight" in held:
        return shipped.tensor(held["weight"])
    if thin:
        rank = len(slot.ranks[matrix.path])
        left = _map(shipped, held, "left.", columns=rank, quant=slot.quant)
        upright = left @ _map(shipped, held, "right.", columns=columns, quant=slot.quant)
    else:
        upright = _map(shipped, held, "", columns=columns, quant=slot.quant)
    return np.ascontiguousarray(upright.T) if matrix.transposed else upright


def _map(shipped: Weights, held: Mapping[str, str], part: str, *, columns: int, quant: Quant | None) -> Float32:
    if quant is None:
        return shipped.tensor(held[f"{part}weight"])
    codes, scales = (shipped.tensor(held[f"{part}{kind}"]) for kind in ("codes", "scales"))
    return dequantised(codes.astype(np.int16), scales, columns=columns, quant=quant)
