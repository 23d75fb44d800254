"""Which adapter is a difference taken from? The shipped one, which both sides hold; its digest names it."""

import hashlib
from collections.abc import Mapping
from math import isinf

import numpy as np
from numpy.typing import NDArray

from hushtune_common.adapter import AdapterState, Float32
from hushtune_common.messages import Digest, TensorSpec


class Shipped:
    """The tensors of the shipped adapter in the order of their names, in which every codec sends them."""

    def __init__(self, state: AdapterState) -> None:
        """Take the adapter both sides hold; ``ValueError`` names a tensor of it that is not finite."""
        for name, tensor in state.tensors.items():
            if not np.isfinite(tensor).all():
                raise ValueError(f"{name}: the shipped tensor holds values that are not finite")
        self.tensors: Mapping[str, Float32] = dict(sorted(state.tensors.items()))
        self.digest = state_digest(state)

    @property
    def schema(self) -> tuple[TensorSpec, ...]:
        """The tensors' names and shapes; which blocks they are of is not known here."""
        return tuple(TensorSpec(name=n, shape=t.shape, dtype="F32", block=0) for n, t in self.tensors.items())

    def rounding(self, name: str, *, change_max: float) -> float:
        """Return by how much float32 may round the sum of a tensor's number and a change of at most ``change_max``, at most."""
        return 2.0**-24 * (float(np.abs(self.tensors[name]).max(initial=0.0)) + change_max) * (1.0 + 2.0**-20)

    def within(self, state: AdapterState, *, change_max: float) -> AdapterState:
        """Return ``state``, of these tensors, with every number at most ``change_max`` from the shipped one, exactly.

        Numbers nearer than that stay as they are, bit for bit.
        """
        if isinf(change_max):
            return state
        return AdapterState({n: _within(t, self.tensors[n], change_max=change_max) for n, t in state.tensors.items()})

    def require_same(self, state: AdapterState) -> None:
        """Raise ``ValueError``, naming the tensor, unless ``state`` has exactly these names and shapes."""
        for name in self.tensors.keys() | state.tensors.keys():
            shipped, found = self.tensors.get(name), state.tensors.get(name)
            if shipped is None or found is None or shipped.shape != found.shape:
                raise ValueError(f"{name}: not the same tensor in the shipped and in the returned adapter")

    def require_expected(self, expected: tuple[TensorSpec, ...]) -> None:
        """Raise ``ValueError`` unless ``expected``, which is ours, describes this adapter."""
        if {spec.name: spec.shape for spec in expected} != {name: t.shape for name, t in self.tensors.items()}:
            raise ValueError("the expected tensors are not those of the shipped adapter")


def state_digest(state: AdapterState) -> Digest:
    """Return the digest of names, shapes and values; the order of the mapping does not matter."""
    digest = hashlib.sha256(b"hushtune/adapter/1")
    for name in sorted(state.tensors):
        tensor = state.tensors[name]
        label = f"{name}\n{','.join(str(d) for d in tensor.shape)}\n".encode()
        digest.update(len(label).to_bytes(4, "little") + label)
        digest.update(tensor.data.cast("B"))
    return Digest(digest.digest())


def _within(returned: Float32, shipped: Float32, *, change_max: float) -> Float32:
    with np.errstate(over="ignore", invalid="ignore"):
        near = np.abs(returned - shipped).max(initial=0.0) < change_max * (1.0 - 2.0**-20)
    if near:
        return returned
    wide = shipped.astype(np.float64)
    return np.clip(returned, _towards(wide - change_max, shipped), _towards(wide + change_max, shipped))


def _towards(bound: NDArray[np.float64], shipped: Float32) -> Float32:
    """Return the float32 nearest to ``bound`` of those on the side of ``shipped``."""
    with np.errstate(over="ignore"):
        found = bound.astype(np.float32)
    beyond = np.abs(found.astype(np.float64) - shipped) > np.abs(bound - shipped)
    return np.where(beyond, np.nextafter(found, shipped), found)
