"""How much does a noisy update still tell about its numbers? What a noise on a grid costs, errs by, and promises.

A number x of at most ``clip`` is rounded to a grid of step w that a public dither d has shifted, ``k = round(x / w - d)``, and
whole steps G are added that nobody knows, ``P(G = g)`` in proportion to ``exp(-decay |g|)``. The receiver puts ``(k + G + d) w``.
Whatever x is, the error is the dither's, uniform over a step, plus ``w G``: its density is a staircase, ``(1 - a) / (1 + a) / w *
a**round(|z| / w)`` with ``a = exp(-decay)``. A staircase has the least error of all noises of one epsilon (Geng and Viswanath
2014); with fine steps it is Laplace's density.

What is promised holds against somebody who has the dither: given d, two numbers that are 2 ``clip`` = n w apart lie at most n
grid points apart, so no outcome is more than ``exp(n decay)`` times as likely with one as with the other. No part of this is a
fine point: against somebody who has the dither, an error that the dither makes hides nothing, however it is distributed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, exp, inf, log, log1p, log2, sqrt
from typing import Final

DECAY_MIN: Final = 1e-3
"""Least decay; below it the table of the noise would be larger than many an update."""
STEPS_MAX: Final = 1 << 20
_STRICTER: Final = 1.0 - 2.0**-12
"""The noise is drawn for so much less than the epsilon promised, which pays for tables of whole numbers."""
_TAIL: Final = 30.0 * log(2.0)
"""The noise has a chance of ``exp(-_TAIL)`` to lie beyond its table, and a code to be cut off: one number in 10^9."""
_SPARE: Final = 1.005
"""What an entropy coder takes over the entropy."""
_FLUCTUATION: Final = 6.0
"""Standard deviations by which the sum of all codes' magnitudes may exceed what is expected of it: one blob in 10^9."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Promise:
    """What is asked for: blocks of ``block`` numbers, whose magnitudes add up to ``clip`` at most, each with ``epsilon``."""

    epsilon: float
    clip: float
    block: int

    def __post_init__(self) -> None:
        """Refuse what no table of noise can be made for."""
        if not (self.epsilon > 0.0 and 0.0 < self.clip < inf and self.block >= 1):
            raise ValueError("epsilon and clip are positive numbers, a block has at least one number")
        if self.epsilon / self.block < DECAY_MIN:
            least = DECAY_MIN * self.block
            raise ValueError(f"epsilon: at least {least:g} for blocks of {self.block}, got {self.epsilon:g}; take smaller blocks")

    def blocks(self, counts: Sequence[int]) -> int:
        """Return how many blocks tensors of so many numbers have; the last of each may be short."""
        return sum(-(-count // self.block) for count in counts)

    @property
    def bits_least(self) -> float:
        """Bits per number that always suffice for very many numbers, whatever they are: those of the coarsest grid."""
        return GridNoise(promise=self, steps=1).bits_most

    def best(self, *, numbers: int, blocks: int, bytes_max: float) -> "GridNoise | None":
        """Return the grid that errs least, of those sure to fit; None when none is. Nothing private goes into the choice."""
        fitting = [noise for noise in self._grids() if noise.bytes_most(numbers=numbers, blocks=blocks) <= bytes_max]
        return min(fitting, key=lambda noise: noise.variance, default=None)

    def _grids(self) -> "list[GridNoise]":
        found, steps = list["GridNoise"](), 1
        while steps <= STEPS_MAX and self.epsilon / (steps + self.block - 1) >= DECAY_MIN:
            found.append(GridNoise(promise=self, steps=steps))
            steps = max(steps + 1, ceil(1.1 * steps))
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class GridNoise:
    """A grid on which the two ends of what may be said, -clip and clip, lie ``steps`` apart, and the noise that it takes."""

    promise: Promise
    steps: int

    @property
    def step(self) -> float:
        """Width of a step, in units of the numbers."""
        return 2.0 * self.promise.clip / self.steps

    @property
    def decay(self) -> float:
        """By what the log-likelihood falls with every step.

        Numbers of two blocks differ by d_i, 2 clip in sum; each may cross ``ceil(d_i / step)`` points. That is most, ``steps +
        block - 1``, when all but one just cross one.
        """
        return self.promise.epsilon * _STRICTER / (self.steps + self.promise.block - 1)

    @property
    def variance(self) -> float:
        """Mean square of the error of a number that is not clipped."""
        return self.step**2 * (1.0 / 12.0 + self._noise_square)

    @property
    def reach(self) -> int:
        """Largest magnitude of a rounded number, in steps."""
        return -(-self.steps // 2) + 1

    @property
    def noise_most(self) -> int:
        """Largest magnitude of the noise in its table, in steps. Beyond, it goes on as it began."""
        return ceil(_TAIL / self.decay)

    @property
    def code_most(self) -> int:
        """Largest magnitude of a code; codes beyond it are put there."""
        return self.noise_most + self.reach

    @property
    def bits_most(self) -> float:
        """Bits per number that always suffice when there are very many: those of the widest codes of their mean magnitude."""
        return self._bits(self.steps / (2.0 * self.promise.block) + self._noise_mean)

    def bytes_most(self, *, numbers: int, blocks: int) -> float:
        """Return the bytes that codes and their table take at most, but for one blob in 10^9, whatever the numbers are."""
        spread = _FLUCTUATION * sqrt(0.25 + self._noise_square) / sqrt(max(numbers, 1))
        mean = self.steps / 2.0 * blocks / max(numbers, 1) + self._noise_mean
        table = 7.0 + 3.0 * min(2 * self.code_most + 1, 1023)
        return numbers * self._bits(mean + spread) / 8.0 + table + 16.0

    @property
    def _noise_mean(self) -> float:
        a = exp(-self.decay)
        return 2.0 * a / (1.0 - a * a)

    @property
    def _noise_square(self) -> float:
        a = exp(-self.decay)
        return 2.0 * a / (1.0 - a) ** 2

    @staticmethod
    def _bits(mean: float) -> float:
        """Return the entropy of the whole number that has most, given its mean magnitude, and what a coder adds.

        That number falls by a factor b with each step, and its mean magnitude is ``2 b / (1 - b^2)``.
        """
        b = mean / (1.0 + sqrt(1.0 + mean * mean))
        entropy = log1p(b) / log(2.0) - log2(1.0 - b) - mean * log2(b)
        return _SPARE * entropy + 0.01


@dataclass(frozen=True, slots=True, kw_only=True)
class Statement:
    """What the updates of one client promise: local differential privacy, pure, against whoever has all bytes of them.

    For a block of numbers, an update and all rounds; by adding up epsilons, or where that is less and a chance ``delta`` is
    allowed, by adding up zero-concentrated privacy, of which a pure epsilon is at most ``epsilon^2 / 2`` (Bun and Steinke 2016).
    """

    promise: Promise
    blocks: int
    rounds: int
    delta: float = 1e-5

    @staticmethod
    def of(promise: Promise, *, counts: Sequence[int], rounds: int) -> "Statement":
        """Return the statement of updates of tensors of so many numbers."""
        return Statement(promise=promise, blocks=promise.blocks(counts), rounds=rounds)

    @property
    def update(self) -> float:
        """Epsilon of the whole update of one round: blocks are independent, so theirs add up."""
        return self.promise.epsilon * self.blocks

    @property
    def all_rounds(self) -> float:
        """Epsilon of the updates of all rounds, with delta 0."""
        return self.update * self.rounds

    @property
    def all_rounds_with_delta(self) -> float:
        """Epsilon of the updates of all rounds, with ``delta``."""
        rho = self.blocks * self.rounds * self.promise.epsilon**2 / 2.0
        return min(self.all_rounds, rho + 2.0 * sqrt(rho * log(1.0 / self.delta)))

    @property
    def empty(self) -> bool:
        """Whether the epsilon of an update says nothing to a person: no likelihood ratio of 1,000,000 is ruled out."""
        return self.all_rounds_with_delta > log(1e6)

    @property
    def terms(self) -> dict[str, float | int | str | bool]:
        """Return everything for logs and reports."""
        return {
            "epsilon_block": self.promise.epsilon,
            "numbers_block": self.promise.block,
            "clip_block": self.promise.clip,
            "blocks": self.blocks,
            "epsilon_update": self.update,
            "rounds": self.rounds,
            "epsilon_all_rounds": self.all_rounds,
            "epsilon_all_rounds_with_delta": self.all_rounds_with_delta,
            "delta": self.delta,
            "statement": self.words,
        }

    @property
    def words(self) -> str:
        """Return it in a sentence or two."""
        unit = "number" if self.promise.block == 1 else f"block of {self.promise.block} numbers"
        whole = f"{self.all_rounds:.4g}" + (
            f" ({self.all_rounds_with_delta:.4g} with delta {self.delta:g})"
            if self.all_rounds_with_delta < self.all_rounds
            else ""
        )
        over = "the whole update" if self.rounds == 1 else f"all numbers of all {self.rounds} rounds"
        said = f"epsilon {self.promise.epsilon:g} for each {unit} of an update, {whole} for {over}"
        return f"{said}; for the whole this rules out nothing" if self.empty else said
