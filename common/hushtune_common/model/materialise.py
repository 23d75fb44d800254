"""Which tensors does an emulator consist of? Each is worked out from the plan when it is asked for, one at a time.

Names are those of the full model by original index. What a slot changes has names of its own: ``X.left.weight`` and
``X.right.weight`` for a matrix ``X.weight`` of lower rank, ``X.codes`` and ``X.scales`` for a quantised one, and ``down`` and
``up`` of a harmonizer in place of all tensors of its block.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from hushtune_common.adapter import Float32
from hushtune_common.errors import ConfigError
from hushtune_common.messages import Digest
from hushtune_common.model.fitting import require_fitting_plan
from hushtune_common.model.layout import BlockLayout, Matrix, layout_of
from hushtune_common.model.naming import block_of, inner_of, moved
from hushtune_common.model.plan import Plan
from hushtune_common.model.quantise import code_columns, quantised, scale_columns
from hushtune_common.model.slots import Compress, Harmonize, Keep, Quant
from hushtune_common.model.weights import DType, Weights, stored_bytes
from hushtune_common.seeding import SeedTree


@dataclass(frozen=True, slots=True)
class _Made:
    """A tensor of the emulator: shape, storage, and what it is made of."""

    shape: tuple[int, ...]
    dtype: DType
    kind: Literal["base", "rows", "columns", "left", "right", "product", "codes", "scales", "harmonizer"]
    source: str
    slot: Keep | Compress | Harmonize | None


class EmulatorTensors:
    """The tensors of the emulator of ``plan``; a `Weights` whose tensors also have a storage type.

    Holds ``trained`` and the two factors of one matrix; everything else is read and worked out when it is asked for.

    ``trained`` are tensors that training on public text put in the place of what the plan alone gives, by their names before
    quantising. Laws: a kept block has its tensors bit for bit; a compressed block with all ranks, all channels and no quantiser
    computes the same up to rounding; the same arguments give the same bits.
    """

    def __init__(self, base: Weights, plan: Plan, *, trained: Mapping[str, Float32] | None = None) -> None:
        """Take the full model's weights and read none; ``ValueError`` when the plan or ``trained`` do not fit them."""
        self._base = base
        self._plan = plan
        self._trained = dict(trained or {})
        require_fitting_plan(plan, {name: base.shape(name) for name in base.names()})
        self._plain = self._plan_tensors()
        for name, tensor in self._trained.items():
            self._require_trainable(name, tensor)
        self._made = self._plan_storage()
        self._factors: tuple[str, Float32, Float32] | None = None

    def names(self) -> Sequence[str]:
        """Return every name, sorted."""
        return sorted(self._made)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of one tensor as it is stored."""
        return self._made[name].shape

    def dtype(self, name: str) -> DType:
        """Return how one tensor is stored."""
        return self._made[name].dtype

    @property
    def size_bytes(self) -> int:
        """How many bytes all tensors take as they are stored: a bundle without its header. Reads no weights."""
        return sum(stored_bytes(made.dtype, made.shape) for made in self._made.values())

    def tensor(self, name: str) -> Float32:
        """Return one tensor as float32, the caller's own; integer codes are whole numbers.

        `ConfigError` when a matrix of the model that is to be compressed holds values that are not finite.
        """
        made = self._made[name]
        if made.kind in ("codes", "scales"):
            slot = made.slot
            if not isinstance(slot, Compress) or slot.quant is None:
                raise ValueError(f"{name}: not quantised")
            codes, scales = quantised(_finite(made.source, self._upright(made.source)), quant=slot.quant)
            return (codes if made.kind == "codes" else scales).astype(np.float32)
        return self._value(name)

    @cached_property
    def layout(self) -> BlockLayout:
        """The matrices of a block."""
        blocks: dict[str, tuple[int, ...]] = {}
        for name in self._base.names():
            if block_of(name) == 0:
                blocks[inner_of(name)] = self._base.shape(name)
        return layout_of(blocks)

    def _require_trainable(self, name: str, tensor: Float32) -> None:
        block = block_of(name)
        if name not in self._plain or self._plain[name].shape != tensor.shape:
            raise ValueError(f"{name}: the plan has no such tensor of shape {tensor.shape}")
        if block in self._plan.adapter:
            raise ValueError(f"{name}: block {block} is an adapter block; training the emulator never touches those")
        if tensor.dtype != np.float32 or not np.isfinite(tensor).all():
            raise ValueError(f"{name}: a trained tensor is float32 and finite throughout")

    def _upright(self, name: str) -> Float32:
        """Return a matrix before quantising, as a map from columns to rows however the model stores it."""
        matrix = self._stored_matrix(name)
        return self._value(name) if matrix is None else _turned(self._value(name), matrix)

    def _value(self, name: str) -> Float32:
        """Return a tensor before quantising."""
        if name in self._trained:
            return self._trained[name].copy()
        made = self._plain[name]
        match made.kind, made.slot:
            case "harmonizer", Harmonize():
                return _untrained_harmonizer(name, made.shape)
            case "rows" | "columns", Compress(channels=tuple() as chosen):
                axis = 0 if made.kind == "rows" else 1
                return np.ascontiguousarray(np.take(self._base.tensor(made.source), chosen, axis=axis))
            case "left" | "right", Compress() as slot:
                left, right = self._factored(made.source, slot)
                return left if made.kind == "left" else right
            case "product", Compress() as slot:
                from hushtune_common.model.decompose import product

                left, right = self._factored(made.source, slot)
                return _turned(product(left, right), self.layout.matrix(inner_of(name).removesuffix(".weight")))
            case _:
                return self._base.tensor(made.source)

    def _factored(self, source: str, slot: Compress) -> tuple[Float32, Float32]:
        # Both factors of a matrix are asked for one after the other; its decomposition is kept in between.
        if self._factors is None or self._factors[0] != source:
            matrix = self.layout.matrix(inner_of(source).removesuffix(".weight"))
            stored = _finite(source, self._base.tensor(source))
            from hushtune_common.model.decompose import factors  # needs torch, which readers of a bundle do without

            left, right = factors(_turned(stored, matrix), components=slot.ranks[matrix.path])
            self._factors = (source, left, right)
        return self._factors[1].copy(), self._factors[2].copy()

    def _plan_tensors(self) -> dict[str, _Made]:
        """Return the tensors before quantising."""
        made: dict[str, _Made] = {}
        for name in self._base.names():
            block = block_of(name)
            slot = None if block is None else self._plan.slots[block]
            if slot is None or isinstance(slot, Keep):
                made[name] = _Made(self._base.shape(name), "F32", "base", name, slot)
            elif isinstance(slot, Compress):
                made |= self._compressed(name, slot)
            elif isinstance(slot, Harmonize):
                made |= self._harmonized(name, slot)
        return made

    def _compressed(self, name: str, slot: Compress) -> dict[str, _Made]:
        inner, shape = inner_of(name), self._base.shape(name)
        path, _, kind = inner.rpartition(".")
        matrix = next((m for m in self.layout.matrices if m.path == path), None)
        if matrix is None:
            return {name: _Made(shape, "F32", "base", name, slot)}
        if path in slot.ranks and kind == "weight":
            rank = len(slot.ranks[path])
            if not matrix.thinner(rank):
                return {name: _Made(shape, "F32", "product", name, slot)}
            left, right = (moved(name, to=slot.index, inner=f"{path}.{side}.weight") for side in ("left", "right"))
            return {
                left: _Made((matrix.rows, rank), "F32", "left", name, slot),
                right: _Made((rank, matrix.columns), "F32", "right", name, slot),
            }
        if path in slot.ranks and matrix.thinner(len(slot.ranks[path])):
            return {moved(name, to=slot.index, inner=f"{path}.left.bias"): _Made(shape, "F32", "base", name, slot)}
        if slot.channels is not None and (axis := _channel_axis(matrix, kind, layout=self.layout)) is not None:
            smaller = tuple(len(slot.channels) if a == axis else extent for a, extent in enumerate(shape))
            return {name: _Made(smaller, "F32", "rows" if axis == 0 else "columns", name, slot)}
        return {name: _Made(shape, "F32", "base", name, slot)}

    def _harmonized(self, name: str, slot: Harmonize) -> dict[str, _Made]:
        hidden, rank = self.layout.hidden, slot.rank
        shapes = {"down.weight": (rank, hidden), "down.bias": (rank,), "up.weight": (hidden, rank), "up.bias": (hidden,)}
        named = {moved(name, to=slot.index, inner=inner): shape for inner, shape in shapes.items()}
        return {n: _Made(shape, "F32", "harmonizer", n, slot) for n, shape in named.items()}

    def _plan_storage(self) -> dict[str, _Made]:
        """Return the tensors as they are stored, with quantised matrices in two parts."""
        stored: dict[str, _Made] = {}
        for name, made in self._plain.items():
            quant = made.slot.quant if isinstance(made.slot, Compress) else None
            matrix = None if quant is None else self._stored_matrix(name)
            if quant is None or (matrix is None and not _is_factor(name)):
                stored[name] = made
            else:
                shape = made.shape[::-1] if matrix is not None and matrix.transposed else made.shape
                stored |= _quantised_parts(name, made, shape=shape, quant=quant)
        return stored

    def _stored_matrix(self, name: str) -> Matrix | None:
        """Return the matrix whose weights, as the model stores them, a tensor of a block holds; none for every other tensor."""
        path, _, kind = inner_of(name).rpartition(".")
        return next((m for m in self.layout.matrices if kind == "weight" and m.path == path), None)


def refinement_digest(trained: Mapping[str, Float32], *, settings: str) -> Digest:
    """Return what identifies the training of an emulator: its settings, and the names and values it gave."""
    total = hashlib.sha256(b"hushtune/refinement/1" + settings.encode())
    for name in sorted(trained):
        total.update(f"\0{name}\0{','.join(map(str, trained[name].shape))}\0".encode())
        total.update(np.ascontiguousarray(trained[name], dtype="<f4").tobytes())
    return Digest(total.digest())


def _finite(name: str, tensor: Float32) -> Float32:
    if not np.isfinite(tensor).all():
        raise ConfigError("model.source", f"{name}: holds values that are not finite, so it cannot be compressed")
    return tensor


def _turned(stored: Float32, matrix: Matrix) -> Float32:
    return np.ascontiguousarray(stored.T) if matrix.transposed else stored


def _channel_axis(matrix: Matrix, kind: str, *, layout: BlockLayout) -> int | None:
    """Return the axis of a tensor that counts feed-forward neurons, none when it has none."""
    if matrix in layout.up:
        return 1 if kind == "weight" and matrix.transposed else 0
    if matrix == layout.down and kind == "weight":
        return 0 if matrix.transposed else 1
    return None


def _is_factor(name: str) -> bool:
    return name.endswith((".left.weight", ".right.weight"))


def _quantised_parts(name: str, made: _Made, *, shape: tuple[int, ...], quant: Quant) -> dict[str, _Made]:
    rows, columns = shape
    path = name.removesuffix(".weight")
    integers: DType = "I8" if quant.bits == 8 else "U8"
    return {
        f"{path}.codes": _Made((rows, code_columns(columns, quant=quant)), integers, "codes", name, made.slot),
        f"{path}.scales": _Made((rows, scale_columns(columns, quant=quant)), "F16", "scales", name, made.slot),
    }


def _untrained_harmonizer(name: str, shape: tuple[int, ...]) -> Float32:
    """Return the start of a harmonizer's tensor: W1 normal with variance 1/H, everything else zero, so that it is no block yet.

    Never all zero: then nothing but the last bias could learn. (The published code starts so.)
    """
    if not name.endswith(".down.weight"):
        return np.zeros(shape, dtype=np.float32)
    draws: NDArray[np.float64] = SeedTree(0).child("harmonizer", name).generator().standard_normal(shape)
    return (draws / np.sqrt(shape[1])).astype(np.float32)
