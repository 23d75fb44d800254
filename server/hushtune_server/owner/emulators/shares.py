"""How many parts is a share of them, and which are the largest?"""

from math import ceil

import numpy as np
from numpy.typing import NDArray

SHARES = tuple(k / 40 for k in range(40, 1, -1))
"""Shares that are kept, for methods that can keep any: from everything to a twentieth, in steps of a fortieth."""


def count_of(share: float, total: int) -> int:
    """Return the least number of parts that is a ``share`` of ``total``; at least one."""
    # Rounded first: 0.7 * 10 is more than 7 in binary.
    return max(1, ceil(round(share * total, 6)))


def largest(scores: NDArray[np.float64], *, count: int) -> tuple[int, ...]:
    """Return the positions of the ``count`` largest scores, in ascending order; the lower ones among equals."""
    order = np.argsort(-scores, kind="stable")
    return tuple(sorted(int(position) for position in order[:count]))
