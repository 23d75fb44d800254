"""Which public windows does a step of training look at?

Letters in shapes: N windows, B of them per step, T tokens.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hushtune_common.seeding import SeedTree


@dataclass(frozen=True, slots=True, kw_only=True)
class Batches:
    """The windows (N, T) in an order drawn anew for every epoch, so many at a time.

    Laws: the batch of a step depends on the arguments only, so that interrupted training can go on anywhere; of any N windows in
    a row that begin with an epoch, each is another.
    """

    windows: NDArray[np.int64]
    size: int
    seeds: SeedTree

    def __post_init__(self) -> None:
        """There is something to draw from."""
        if not len(self.windows) or self.size < 1:
            raise ValueError(f"no batch of {self.size} of {len(self.windows)} windows")

    @property
    def tokens(self) -> int:
        """Tokens of one batch that are predicted."""
        return min(self.size, len(self.windows)) * (self.windows.shape[1] - 1)

    def of(self, step: int) -> NDArray[np.int64]:
        """Return the windows (B, T) of ``step``, counted from 1; all of them when there are fewer than a batch takes."""
        count = len(self.windows)
        size = min(self.size, count)
        places = range((step - 1) * size, step * size)
        orders = {epoch: self._order(epoch) for epoch in {place // count for place in places}}
        return self.windows[[orders[place // count][place % count] for place in places]]

    def _order(self, epoch: int) -> NDArray[np.int64]:
        return self.seeds.child("order", str(epoch)).generator().permutation(len(self.windows))
