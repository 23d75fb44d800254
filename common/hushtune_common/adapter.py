"""What travels home: the trained tensors of the adapter blocks, as plain numpy, named by original block index."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from hushtune_common.errors import MalformedUpdate
from hushtune_common.messages import TensorSpec

Float32 = NDArray[np.float32]
FORMAT = "hushtune-adapter/1"
"""What the metadata of a file of adapter blocks says that it is."""


@dataclass(frozen=True, slots=True, eq=False)
class AdapterState:
    """Tensors of the adapter blocks by full name, such as ``model.layers.27.mlp.up_proj.weight``; the order is part of it.

    Every tensor is float32 and C-contiguous, with at least one dimension. Values may still be anything: finiteness is a question
    for `require_matches`, so that a peer's numbers are refused with a typed error and not at construction.
    """

    tensors: Mapping[str, Float32]

    def __post_init__(self) -> None:
        """Refuse other dtypes and layouts: they would change bytes silently further down."""
        for name, tensor in self.tensors.items():
            if tensor.dtype != np.float32 or not tensor.flags.c_contiguous or tensor.ndim < 1:
                raise ValueError(f"{name}: an adapter tensor is contiguous float32, got {tensor.dtype} {tensor.shape}")

    @property
    def count(self) -> int:
        """Number of elements over all tensors."""
        return sum(t.size for t in self.tensors.values())

    @property
    def bytes_raw(self) -> int:
        """Size in bytes before any coding."""
        return 4 * self.count


def require_matches(state: AdapterState, expected: Sequence[TensorSpec]) -> None:
    """Raise `MalformedUpdate`, naming the tensor, unless ``state`` has exactly the ``expected`` tensors, finite throughout."""
    wanted = {spec.name: spec for spec in expected}
    for name in wanted:
        if name not in state.tensors:
            raise MalformedUpdate(f"{name}: missing from the adapter")
    for name, tensor in state.tensors.items():
        spec = wanted.get(name)
        if spec is None:
            raise MalformedUpdate(f"{name}: not a tensor of the adapter blocks")
        if tensor.shape != spec.shape:
            raise MalformedUpdate(f"{name}: shape {tensor.shape}, expected {spec.shape}")
        if spec.dtype != "F32" or tensor.dtype != np.float32:
            raise MalformedUpdate(f"{name}: dtype {tensor.dtype}, expected {spec.dtype}")
        if not np.isfinite(tensor).all():
            raise MalformedUpdate(f"{name}: holds values that are not finite")


def save_adapter(path: Path, state: AdapterState) -> None:
    """Write ``state`` as safetensors; nothing of it is executable."""
    save_file(dict(state.tensors), path, metadata={"format": FORMAT})


def load_adapter(path: Path, expected: Sequence[TensorSpec]) -> AdapterState:
    """Read a safetensors file that must hold exactly the ``expected`` tensors; `MalformedUpdate` otherwise.

    The tensors come back in the order of ``expected``. The file's size is checked before anything is read.
    """
    size_max = 8 + 1_048_576 + sum(4 * spec.count for spec in expected)
    try:
        size = path.stat().st_size
        if size > size_max:
            raise MalformedUpdate(f"{path.name}: {size} bytes, at most {size_max} expected")
        found = load_file(path)
    except (SafetensorError, OSError, KeyError) as error:
        raise MalformedUpdate(f"{path.name}: not a readable safetensors file ({error})") from error
    for name, tensor in found.items():
        if tensor.dtype != np.float32 or tensor.ndim < 1:
            raise MalformedUpdate(f"{name}: {tensor.dtype} of shape {tensor.shape}, which no adapter tensor has")
    state = AdapterState({name: np.ascontiguousarray(tensor) for name, tensor in found.items()})
    require_matches(state, expected)
    return AdapterState({spec.name: state.tensors[spec.name] for spec in expected})
