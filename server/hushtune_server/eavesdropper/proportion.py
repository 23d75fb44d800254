"""How sure is a share that was counted?"""

from dataclasses import dataclass
from math import sqrt


@dataclass(frozen=True, slots=True, kw_only=True)
class Proportion:
    """A share ``count / of`` with its Wilson 95 % interval."""

    count: int
    of: int

    def __post_init__(self) -> None:
        """Check the range."""
        if not 0 <= self.count <= self.of or self.of < 1:
            raise ValueError(f"{self.count} of {self.of} is not a share")

    @property
    def share(self) -> float:
        """The point estimate."""
        return self.count / self.of

    @property
    def interval(self) -> tuple[float, float]:
        """The interval of Wilson (1927), which holds near 0 and 1 as well."""
        z = 1.959963984540054
        n, p = self.of, self.share
        centre = (p + z * z / (2 * n)) / (1 + z * z / n)
        half = z * sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
        return (0.0 if self.count == 0 else centre - half, 1.0 if self.count == self.of else centre + half)
