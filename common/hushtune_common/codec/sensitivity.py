"""How much does the plug-in's loss mind an error in each weight? Known to both sides of a codec, so that it costs no bits.

Seen as a matrix of ``shape[0]`` rows, a tensor is multiplied by what comes in along its columns. What comes in usually lies
along a few directions for its most part; an error along these costs far more than the same error elsewhere. So a tensor may
name such directions, and its columns are then weighed in coordinates of which these are the first to be found (`Reflectors`).
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import eigh

from hushtune_common.adapter import Float32
from hushtune_common.codec.reflectors import Reflectors
from hushtune_common.errors import MalformedUpdate
from hushtune_common.messages import Digest, TensorSpec

SENSITIVITY_MIN: Final = 2.0**-24
SENSITIVITY_MAX: Final = 2.0**24
"""Rows and columns stay between these, so that what is weighed with them stays within float32."""
DIRECTIONS: Final = 8
"""Directions of a tensor, unless asked for more. On SmolLM2 one halves the bytes for an equal loss; 16 are hardly better."""
_DIRECTIONS_MAX: Final = 64
_DAMPING: Final = 0.03
"""Share of the mean that is added to every sensitivity: text that was not measured minds what measured text did not."""
_LEAST: Final = 1e-30
_ROW_POWER: Final = 0.5
"""Rows are weighed by the root of what was measured: their order carries over to other text better than their ratios."""

Float64 = NDArray[np.float64]


def _no_directions() -> Float32:
    return np.zeros((0, 0), dtype=np.float32)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TensorSensitivity:
    """The factors of one tensor: the loss minds ``rows[i] * columns[j] * error[i, j]**2``, summed.

    ``directions`` (K, C), if any, are orthonormal; ``error`` and ``columns`` are then in the coordinates of
    ``Reflectors.along(directions)``.
    """

    rows: Float32
    columns: Float32
    directions: Float32 = field(default_factory=_no_directions)

    def __post_init__(self) -> None:
        """Refuse what is not a vector of positive numbers within the limits, and directions that are not orthonormal."""
        for name, factor in (("rows", self.rows), ("columns", self.columns)):
            if factor.dtype != np.float32 or factor.ndim != 1 or not factor.size:
                raise ValueError(f"{name}: a sensitivity is a vector of float32, got {factor.dtype} {factor.shape}")
            if not ((factor >= SENSITIVITY_MIN) & (factor <= SENSITIVITY_MAX)).all():
                raise ValueError(f"{name}: a sensitivity lies between 2**-24 and 2**24")
        if self.directions.size:
            self._check_directions()

    def _check_directions(self) -> None:
        found, size = self.directions, self.columns.size
        if found.dtype != np.float32 or found.ndim != 2 or found.shape[1] != size or len(found) > min(size, _DIRECTIONS_MAX):
            raise ValueError(f"directions: float32 (K, {size}) with K at most {_DIRECTIONS_MAX}, got {found.dtype} {found.shape}")
        if not np.isfinite(found).all() or np.abs(found @ found.T - np.eye(len(found))).max() > 1e-3:
            raise ValueError("directions: not orthonormal")


@dataclass(frozen=True, slots=True, eq=False)
class Sensitivity:
    """What an error costs the plug-in's loss, per tensor by full name; only ratios matter, across all tensors.

    The owner measures it on public text and ships it with the emulator; its digest is bound into every blob, so two sides that
    hold different ones notice.
    """

    tensors: Mapping[str, TensorSensitivity]

    @staticmethod
    def flat(schema: Sequence[TensorSpec]) -> "Sensitivity":
        """Return the sensitivity that minds all errors alike."""
        return Sensitivity({spec.name: _flat(spec) for spec in schema})

    @staticmethod
    def of_moments(
        moments: Mapping[str, tuple[NDArray[np.float32], NDArray[np.float32]]], *, directions: int = DIRECTIONS
    ) -> "Sensitivity":
        """Return what the second moments of a model at work say about its tensors.

        ``moments`` gives per tensor the covariance (C, C) of what comes in, and the mean square (R,) of the loss's gradient at
        what goes out: Kronecker factors of the Fisher information (Martens and Grosse 2015). A tensor that only scales has C =
        1. ``ValueError`` names a tensor whose moments are not finite.
        """
        for name, found in moments.items():
            if not all(np.isfinite(moment).all() for moment in found):
                raise ValueError(f"{name}: moments are not finite")
        weighed = {name: _weighed(*found, directions=directions) for name, found in moments.items()}
        levels = [np.log2(rows.mean()) for rows, _, _ in weighed.values()]
        unit = 2.0 ** -float(np.mean(levels)) if levels else 1.0
        return Sensitivity(
            {
                name: TensorSensitivity(rows=_within(unit * rows), columns=_within(columns), directions=along)
                for name, (rows, columns, along) in weighed.items()
            }
        )

    @staticmethod
    def from_arrays(arrays: Mapping[str, NDArray[np.float32]], schema: Sequence[TensorSpec]) -> "Sensitivity":
        """Undo `to_arrays`; ``MalformedUpdate`` when they are not the sensitivity of exactly the tensors of ``schema``."""
        left = dict(arrays)
        try:
            found = {s.name: _from_arrays(left, s) for s in schema}
        except (KeyError, ValueError) as error:
            raise MalformedUpdate(f"not the sensitivity of this adapter: {error}") from error
        if left:
            raise MalformedUpdate(f"{min(left)}: not a part of the sensitivity of this adapter")
        return Sensitivity(found)

    def to_arrays(self) -> dict[str, Float32]:
        """Return arrays by name, for a file of tensors."""
        arrays: dict[str, Float32] = {}
        for name, found in self.tensors.items():
            arrays |= {f"{name}/rows": found.rows, f"{name}/columns": found.columns}
            if found.directions.size:
                arrays[f"{name}/directions"] = found.directions
        return arrays

    @property
    def digest(self) -> Digest:
        """Return the digest of names, sizes and values; the order of the mapping does not matter."""
        digest = hashlib.sha256(b"hushtune/sensitivity/2")
        arrays = self.to_arrays()
        for name in sorted(arrays):
            label = f"{name}\n{','.join(str(d) for d in arrays[name].shape)}\n".encode()
            digest.update(len(label).to_bytes(4, "little") + label + np.ascontiguousarray(arrays[name], dtype="<f4").tobytes())
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


def _weighed(covariance: Float32, power: Float32, *, directions: int) -> tuple[Float64, Float64, Float32]:
    """Return rows, columns of mean 1, and directions."""
    size, wide = len(covariance), covariance.astype(np.float64)
    along, spread = _no_directions(), np.diag(wide)
    if size > 1 and directions:
        first = max(0, size - directions)  # all of them would take three times as long
        _, axes = eigh((wide + wide.T) / 2, subset_by_index=(first, size - 1))
        along = np.ascontiguousarray(axes[:, ::-1].T, dtype=np.float32)
        spread = Reflectors.along(along).variances(wide)
    columns, rows = _damped(spread), _damped(power.astype(np.float64))
    mean = rows.mean()
    rows = mean * (rows / mean) ** (_ROW_POWER if size > 1 else 1.0)
    return rows * columns.mean(), columns / columns.mean(), along


def _damped(found: Float64) -> Float64:
    positive = np.maximum(found, 0.0)
    return positive + _DAMPING * positive.mean() + _LEAST


def _within(found: Float64) -> Float32:
    return np.clip(found, SENSITIVITY_MIN, SENSITIVITY_MAX).astype(np.float32)


def _from_arrays(left: dict[str, NDArray[np.float32]], spec: TensorSpec) -> TensorSensitivity:
    """Take the arrays of one tensor out of what is ``left``."""
    directions = left.pop(f"{spec.name}/directions", _no_directions())
    found = TensorSensitivity(rows=left.pop(f"{spec.name}/rows"), columns=left.pop(f"{spec.name}/columns"), directions=directions)
    if (found.rows.size, found.columns.size) != (spec.shape[0], spec.count // spec.shape[0]):
        raise ValueError(f"{spec.name}: {found.rows.size} rows and {found.columns.size} columns")
    return found
