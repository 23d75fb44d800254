"""How much does the plug-in's loss mind an error in each weight? Known to both sides of a codec, so that it costs no bits."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from hushtune_common.adapter import Float32
from hushtune_common.messages import Digest, TensorSpec

SENSITIVITY_MIN: Final = 2.0**-60
SENSITIVITY_MAX: Final = 2.0**60
"""Rows and columns stay between these, so that no product of two leaves float32."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TensorSensitivity:
    """The factors of one tensor, seen as a matrix of ``shape[0]`` rows: the loss minds ``rows[i] * columns[j] * error**2``."""

    rows: Float32
    columns: Float32

    def __post_init__(self) -> None:
        """Refuse what is not a vector of positive numbers within the limits."""
        for name, factor in (("rows", self.rows), ("columns", self.columns)):
            if factor.dtype != np.float32 or factor.ndim != 1 or not factor.size:
                raise ValueError(f"{name}: a sensitivity is a vector of float32, got {factor.dtype} {factor.shape}")
            if not ((factor >= SENSITIVITY_MIN) & (factor <= SENSITIVITY_MAX)).all():
                raise ValueError(f"{name}: a sensitivity lies between 2**-60 and 2**60")


@dataclass(frozen=True, slots=True, eq=False)
class Sensitivity:
    """What an error costs the plug-in's loss, per tensor by full name; only ratios matter, across all tensors.

    The owner measures it on public text and ships it with the emulator; its digest is in every blob, so two sides that hold
    different ones notice.
    """

    tensors: Mapping[str, TensorSensitivity]

    @staticmethod
    def flat(schema: Sequence[TensorSpec]) -> "Sensitivity":
        """Return the sensitivity that minds all errors alike."""
        return Sensitivity({spec.name: _flat(spec) for spec in schema})

    @property
    def digest(self) -> Digest:
        """Return the digest of names, sizes and values; the order of the mapping does not matter."""
        digest = hashlib.sha256(b"hushtune/sensitivity/1")
        for name in sorted(self.tensors):
            found = self.tensors[name]
            label = f"{name}\n{found.rows.size},{found.columns.size}\n".encode()
            digest.update(len(label).to_bytes(4, "little") + label)
            digest.update(found.rows.astype("<f4").tobytes() + found.columns.astype("<f4").tobytes())
        return Digest(digest.digest())

    def require_matches(self, schema: Sequence[TensorSpec]) -> None:
        """Raise ``ValueError``, naming the tensor, unless there is one factor per row and column of exactly these tensors."""
        sizes = {spec.name: (spec.shape[0], spec.count // spec.shape[0]) for spec in schema}
        for name in sizes.keys() | self.tensors.keys():
            found = self.tensors.get(name)
            if found is None or sizes.get(name) != (found.rows.size, found.columns.size):
                raise ValueError(f"{name}: the sensitivity is not one of this adapter")


def _flat(spec: TensorSpec) -> TensorSensitivity:
    rows = spec.shape[0]
    return TensorSensitivity(rows=np.ones(rows, np.float32), columns=np.ones(spec.count // rows, np.float32))
