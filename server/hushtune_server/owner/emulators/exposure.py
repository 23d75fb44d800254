"""How much of the model does an emulator give away?

Measured tensor by tensor on what is shipped, against the model itself. What a thief can make of it is another question, for the
attacks.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil, prod
from typing import Literal

import numpy as np

from hushtune_common.adapter import Float32
from hushtune_common.messages import Digest
from hushtune_common.model.naming import block_of, inner_of
from hushtune_common.model.plan import Plan
from hushtune_common.model.slots import Compress, Drop, Harmonize, Share, Slot, ranges_text
from hushtune_common.model.weights import Weights
from hushtune_server.owner.emulators.expanded import Expanded, expanded

NEAR = 0.05
"""A tensor this close to the model's, as a share of its norm and up to a factor, counts as given away whole."""

_PROJECTION = 1e-4
"""By how much of its energy a matrix may fail to be a part of the model's own decomposition; rounding is far below."""

Kind = Literal["verbatim", "near", "channels", "components", "blurred", "hidden"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """What an emulator shows of one tensor of the model.

    ``tensor`` names the model's tensor by its name, shape and values. ``share`` is the part that is shown: all of it
    (``verbatim``, ``near``), some of the ``of`` neurons (``channels``), or as much of the energy as the shipped values explain
    (``components`` of the singular value decomposition, or anything else: ``blurred``, whose values have the digest ``values``).
    ``chosen`` are neurons or components as ranges.
    """

    tensor: Digest
    numbers: int
    kind: Kind
    share: float
    chosen: str = ""
    of: int = 0
    values: Digest | None = None

    def __post_init__(self) -> None:
        """A share is one."""
        if not 0.0 <= self.share <= 1.0 or self.numbers < 1:
            raise ValueError(f"a share of a tensor is between 0 and 1, got {self.share} of {self.numbers} numbers")

    @property
    def shown(self) -> int:
        """Numbers that count as shown, rounded up."""
        return shown_numbers(self.numbers, self.share)


def shown_numbers(numbers: int, share: float) -> int:
    """Return how many of a tensor's numbers a share of it counts for, rounded up but for the last digits of floats."""
    return min(numbers, ceil(round(share * numbers, 6)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Exposure:
    """Numbers of the model that an emulator shows: word for word, nearly so, in part, and not at all.

    ``partial`` counts the shown part of such tensors only; the rest of them is ``hidden``. Law: the four add up to ``total``.
    Without the model at hand ``exact`` is false: then all that may be shown counts as near, and ``hidden`` is a lower bound.
    """

    verbatim: int
    near: int
    partial: int
    hidden: int
    exact: bool = True

    @property
    def total(self) -> int:
        """Numbers of the model."""
        return self.verbatim + self.near + self.partial + self.hidden

    @property
    def share(self) -> float:
        """Share of the model that is shown in one way or another."""
        return (self.total - self.hidden) / self.total


@dataclass(frozen=True, slots=True, kw_only=True)
class Coverage:
    """What an emulator shows of every tensor of the model, by name."""

    tensors: Mapping[str, Shown]

    @property
    def exposure(self) -> Exposure:
        """The sums."""
        sums = dict.fromkeys(("verbatim", "near", "partial"), 0)
        for shown in self.tensors.values():
            if shown.kind != "hidden":
                sums[shown.kind if shown.kind in ("verbatim", "near") else "partial"] += shown.shown
        total = sum(shown.numbers for shown in self.tensors.values())
        return Exposure(**sums, hidden=total - sum(sums.values()))


def coverage(plan: Plan, *, base: Weights, shipped: Weights) -> Coverage:
    """Compare what is ``shipped`` (a bundle's tensors, or those that it will have) with the model, a tensor at a time.

    The rules: equal bit for bit is verbatim; within `NEAR`, or integers of 8 bits, is near; a block without some of its neurons
    shows the share that stays; of anything else the energy that it explains up to a factor is shown, the squared cosine
    ``<W, W'>^2 / (|W|^2 |W'|^2)``, which for singular components is their share of the squared singular values. Dropped, shared
    and harmonized blocks show nothing of their own. Memory holds three tensors.
    """
    held = expanded(plan, shipped)
    held_names = {*held.names()}
    return Coverage(tensors={name: _shown(name, plan, base=base, held=held, known=name in held_names) for name in base.names()})


def exposure(plan: Plan, *, base: Weights, shipped: Weights) -> Exposure:
    """Return the sums of `coverage`."""
    return coverage(plan, base=base, shipped=shipped).exposure


def exposure_at_most(plan: Plan, *, shipped: Weights) -> Exposure:
    """Return an upper bound on `exposure` from the plan and the shapes alone, for who holds an emulator but not the model.

    Training of the emulator, low rank and coarse integers hide something that only the model can tell; here they hide nothing.
    """
    held = expanded(plan, shipped)
    own = [n for n in held.names() if not isinstance(_slot(plan, n), Share | Harmonize)]
    block = sum(prod(recipe.shape) for recipe in held.block(plan.adapter[0]).values())
    outside = sum(prod(held.shape(n)) for n in own if block_of(n) is None)
    near = sum(prod(held.shape(n)) for n in own)
    return Exposure(verbatim=0, near=near, partial=0, hidden=outside + len(plan.slots) * block - near, exact=False)


def describe(found: Exposure) -> list[tuple[str, str]]:
    """Return the lines of a table for people."""
    if not found.exact:
        words = f"at most {found.share:.1%} of the model's {found.total:,} numbers (exactly: with the model at hand)"
        return [("exposed", words)]
    rows = [("verbatim", found.verbatim), ("nearly verbatim", found.near), ("in part", found.partial), ("hidden", found.hidden)]
    lines = [(f"  {name}", f"{count / found.total:.1%}, {4 * count:,} bytes as float32") for name, count in rows]
    return [("exposed", f"{found.share:.1%} of the model's {found.total:,} numbers"), *lines]


def _slot(plan: Plan, name: str) -> Slot | None:
    block = block_of(name)
    return None if block is None else plan.slots[block]


def _shown(name: str, plan: Plan, *, base: Weights, held: Expanded, known: bool) -> Shown:
    slot, true = _slot(plan, name), base.tensor(name)
    digest = _digest(name, true)
    if not known or isinstance(slot, Drop | Share | Harmonize):
        return Shown(tensor=digest, numbers=true.size, kind="hidden", share=0.0)
    seen = held.tensor(name)
    part, share = _kept_part(name, true, slot, held=held)
    kind, explained = _compared(part, seen)
    if share < 1.0 and isinstance(slot, Compress) and slot.channels is not None and kind != "blurred":
        chosen, of = ranges_text(slot.channels), held.layout.inner
        return Shown(tensor=digest, numbers=true.size, kind="channels", share=share, chosen=chosen, of=of)
    if kind != "blurred":
        return Shown(tensor=digest, numbers=true.size, kind=kind, share=1.0)
    ranks = _components(name, slot)
    if isinstance(slot, Compress) and slot.quant is not None and slot.quant.bits == 8 and not ranks and share == 1.0:
        return Shown(tensor=digest, numbers=true.size, kind="near", share=1.0)
    if ranks and _is_projection(part, seen):
        return Shown(tensor=digest, numbers=true.size, kind="components", share=explained, chosen=ranges_text(ranks))
    return Shown(tensor=digest, numbers=true.size, kind="blurred", share=share * explained, values=_digest(name, seen))


def _kept_part(name: str, true: Float32, slot: Slot | None, *, held: Expanded) -> tuple[Float32, float]:
    """Return what of the model's tensor the shipped one stands for, and its share."""
    if not isinstance(slot, Compress) or slot.channels is None or held.shape(name) == true.shape:
        return true, 1.0
    axis = next(a for a, (kept, all_) in enumerate(zip(held.shape(name), true.shape, strict=True)) if kept != all_)
    return np.take(true, slot.channels, axis=axis), len(slot.channels) / true.shape[axis]


def _components(name: str, slot: Slot | None) -> tuple[int, ...]:
    if not isinstance(slot, Compress) or not name.endswith(".weight"):
        return ()
    return slot.ranks.get(inner_of(name).removesuffix(".weight"), ())


def _compared(true: Float32, seen: Float32) -> tuple[Literal["verbatim", "near", "blurred"], float]:
    """Return how alike two tensors are, and which share of the first one's energy the second explains."""
    if np.array_equal(true, seen):
        return "verbatim", 1.0
    energies = _squares(true) * _squares(seen)
    explained = min(1.0, _dot(true, seen) ** 2 / energies) if energies > 0.0 else 0.0
    return ("near" if 1.0 - explained <= NEAR**2 else "blurred"), explained


def _is_projection(true: Float32, seen: Float32) -> bool:
    # What singular components leave out is at a right angle to them; training or integers would bend that.
    return abs(_dot(seen, true) - _squares(seen)) <= _PROJECTION * _squares(true)


def _squares(values: Float32) -> float:
    return _dot(values, values)


def _dot(first: Float32, second: Float32) -> float:
    return float(np.vdot(first.astype(np.float64), second.astype(np.float64)))


def _digest(name: str, values: Float32) -> Digest:
    total = hashlib.sha256(f"hushtune/tensor/1\0{name}\0{','.join(map(str, values.shape))}\0".encode())
    total.update(np.ascontiguousarray(values, dtype="<f4").data)
    return Digest(total.digest())
