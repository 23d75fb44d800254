"""Which two thin matrices make up what training changed in a matrix, and what is lost with them?

By singular value decomposition: no product of rank r is closer (Eckart and Young 1936). Letters in shapes: R outputs, C inputs,
r rank. Energy is the sum of squares of all entries.
"""

from dataclasses import dataclass

import numpy as np

from hushtune_common.adapter import Float32
from hushtune_common.errors import ConfigError

EXACT = 2.0**-23
"""A change is taken apart exactly when what is left over, as a length, is at most this share of the lengths of the matrix and of
its change. Storing a matrix as float32 after something was added costs about a fifth of that; so no rank is spent on rounding."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """How much of a change is kept: the largest components up to ``rank``, the fewest that hold a share ``energy``, or all."""

    rank: int | None = None
    energy: float | None = None

    def __post_init__(self) -> None:
        """Check both; `ConfigError` names the option."""
        if self.rank is not None and self.energy is not None:
            raise ConfigError("--rank", "and --energy both say where to cut; give one")
        if self.rank is not None and self.rank < 1:
            raise ConfigError("--rank", f"is at least 1, got {self.rank}")
        if self.energy is not None and not 0.0 < self.energy <= 1.0:
            raise ConfigError("--energy", f"is a share above 0 and up to 1, got {self.energy:g}")

    @property
    def exact(self) -> bool:
        """Whether nothing but rounding may be lost."""
        return self.rank is None and self.energy is None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LowRank:
    """``up`` (R, r) times ``down`` (r, C); ``residual`` of the change's ``energy`` is not in the product."""

    up: Float32
    down: Float32
    energy: float
    residual: float

    @property
    def rank(self) -> int:
        """Number of components."""
        return len(self.down)

    @property
    def count(self) -> int:
        """Numbers in both factors."""
        return self.up.size + self.down.size


def low_rank(before: Float32, after: Float32, *, limit: Limit) -> LowRank:
    """Take apart what changed between two matrices (R, C). At least one component; a change of nothing has a product of zero."""
    from hushtune_common.model.decompose import decomposed  # needs torch, which those who only read factors do without

    left, values, right = decomposed(after - before)
    energies = values**2
    # What is lost when only the first r components stay, for every r from 0.
    lost = np.append(np.cumsum(energies[::-1])[::-1], 0.0)
    rounding = (EXACT * (np.linalg.norm(before.astype(np.float64)) + np.sqrt(lost[0]))) ** 2
    allowed = rounding if limit.energy is None else max(rounding, (1.0 - limit.energy) * lost[0])
    rank = max(1, int(np.argmax(lost <= allowed)))
    if limit.rank is not None:
        rank = min(rank, limit.rank)
    root = np.sqrt(values[:rank])
    up, down = left[:, :rank] * root, root[:, None] * right[:rank]
    return LowRank(up=up.astype(np.float32), down=down.astype(np.float32), energy=float(lost[0]), residual=float(lost[rank]))
