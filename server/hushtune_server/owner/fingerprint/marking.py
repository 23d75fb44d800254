"""How is a recipient's copy of an emulator marked? Every frozen weight is pushed a little, up or down, as the key says.

Spread-spectrum watermarking (Cox et al. 1997) with the amplitude relative to each tensor: the push is far below what training or
quantising changes, but there are millions, and only who has the key can add them up. Adapter blocks carry no mark, so what
clients return stays comparable; nor do biases, norms and the scales of integers.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import ceil, sqrt
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from hushtune_common.adapter import Float32
from hushtune_common.messages import require_name
from hushtune_common.model.bundle import read_bundle
from hushtune_common.model.naming import block_of
from hushtune_common.model.quantise import TOP
from hushtune_common.model.weights import DType, Weights, write_tensors
from hushtune_server.owner.fingerprint.key import CHUNK, MarkKey

WEIGHTS_MIN = 256
"""Smaller tensors are left alone."""

_PLACES = float(1 << 32)


class Stored(Weights, Protocol):
    """Weights that also say how they are stored, as those of an emulator do."""

    def dtype(self, name: str) -> DType:
        """Return how one tensor is stored."""
        ...


def carries(name: str, shape: Sequence[int], *, adapter: Sequence[int]) -> bool:
    """Return whether a tensor of an emulator carries a mark: a frozen matrix, as numbers or as integer codes."""
    frozen = block_of(name) not in adapter
    return frozen and len(shape) >= 2 and int(np.prod(shape)) >= WEIGHTS_MIN and not name.endswith(".scales")


class Marked:
    """The tensors of one recipient's copy: those of ``tensors`` with the mark on them.

    Laws: what `carries` denies is as it was, bit for bit; the root mean square of a mark is ``strength`` times that of the
    tensor; the same arguments give the same bits.
    """

    def __init__(self, tensors: Stored, *, key: MarkKey, recipient: str, strength: float, adapter: Sequence[int]) -> None:
        """Take the tensors of an emulator and its ``adapter`` blocks, and read none."""
        require_name(recipient, of="recipient")
        self._tensors = tensors
        self._key = key
        self._recipient = recipient
        self._strength = strength
        self._adapter = tuple(adapter)

    def names(self) -> Sequence[str]:
        """Return every name, sorted."""
        return self._tensors.names()

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of one tensor as it is stored."""
        return self._tensors.shape(name)

    def dtype(self, name: str) -> DType:
        """Return how one tensor is stored."""
        return self._tensors.dtype(name)

    def tensor(self, name: str) -> Float32:
        """Return one tensor, the caller's own."""
        tensor = self._tensors.tensor(name)
        if self._strength == 0.0 or not carries(name, tensor.shape, adapter=self._adapter):
            return tensor
        match self.dtype(name):
            case "I8":
                return self._pushed(name, tensor, top=TOP[8])
            case "U8":
                return packed(self._pushed(name, unpacked(tensor), top=TOP[4]))
            case _:
                return self._pushed(name, tensor, top=None)

    def _pushed(self, name: str, tensor: Float32, *, top: int | None) -> Float32:
        push = amplitude(tensor, strength=self._strength, whole=top is not None)
        flat = np.array(tensor, dtype=np.float32).reshape(-1)
        signs = self._key.signs(self._recipient, name, count=flat.size)
        for begin, bits, chosen in zip(
            range(0, flat.size, CHUNK), signs, places(self._key, name, count=flat.size, push=push), strict=True
        ):
            part = flat[begin : begin + CHUNK]
            part += np.float32(push.step) * (2.0 * bits - 1.0).astype(np.float32) * chosen
            if top is not None:
                np.clip(part, -top, top, out=part)
        return flat.reshape(tensor.shape)


@dataclass(frozen=True, slots=True, kw_only=True)
class Push:
    """How far a weight of one tensor is pushed (``step``), and which ``share`` of the weights."""

    step: float
    share: float


def amplitude(tensor: Float32, *, strength: float, whole: bool) -> Push:
    """Return how to push the weights of a tensor so that the mark has ``strength`` times its root mean square.

    Numbers are all pushed alike. Integers move by ``whole`` steps only, so as many of them are pushed as that takes.
    """
    size = strength * sqrt(float(np.dot(flat := tensor.astype(np.float64).ravel(), flat)) / tensor.size)
    if not whole:
        return Push(step=size, share=1.0)
    step = float(max(1, ceil(size)))
    return Push(step=step, share=(size / step) ** 2)


def places(key: MarkKey, name: str, *, count: int, push: Push) -> Iterator[NDArray[np.bool_]]:
    """Yield which weights are pushed, `CHUNK` at a time.

    The same for every recipient: if each had places of its own, three recipients could outvote each other's marks.
    """
    if push.share >= 1.0:
        for begin in range(0, count, CHUNK):
            yield np.ones(min(CHUNK, count - begin), dtype=np.bool_)
        return
    for numbers in key.places(name, count=count):
        yield numbers < push.share * _PLACES


def write_marked(target: Path, *, bundle: Path, key: MarkKey, recipient: str, strength: float) -> None:
    """Write a recipient's copy of the emulator in ``bundle``; equal arguments give equal bytes.

    `MalformedUpdate` when that is none.
    """
    about = read_bundle(bundle)
    marked = Marked(about.stored, key=key, recipient=recipient, strength=strength, adapter=about.plan.adapter)
    shapes = {name: marked.shape(name) for name in marked.names()}
    write_tensors(target, shapes=shapes, tensor=marked.tensor, metadata=about.stored.metadata, dtype=marked.dtype)


def unpacked(packed_codes: Float32) -> Float32:
    """Return four-bit codes, -7 to 7, of bytes (R, C/2) that hold two each, the earlier one in the lower half: (R, C)."""
    both = np.empty((packed_codes.shape[0], 2 * packed_codes.shape[1]), dtype=np.float32)
    wide = packed_codes.astype(np.int16)
    both[:, 0::2] = (wide & 15) - 8
    both[:, 1::2] = (wide >> 4) - 8
    return both


def packed(codes: Float32) -> Float32:
    """Return the bytes of four-bit codes: what `unpacked` takes apart."""
    wide = codes.astype(np.int16) + 8
    return (wide[:, 0::2] | (wide[:, 1::2] << 4)).astype(np.float32)
