"""How much an eavesdropper learns from one hash block: information density and the leakage bound, in white noise and fading.

Notation: ``a`` is one real dimension of a uniform constellation, ``z = a + noise`` with variance ``1 / snr`` (``a`` has mean
square 1), ``i = log2 W(z|a) / Q(z)`` the information density and ``K(rho) = log2 E 2**(rho i)`` its cumulant function.
The bound below follows Hayashi (arXiv 1010.1358, 1202.0322) and Bellare, Tessaro and Vardy for a universal hash before a code
with uniform inputs. It is derived along those lines, not peer reviewed; it was checked against exact enumeration of small codes.

Where the tap's channel fades, and the tap knows how, a block's information is a sum over coherence blocks: D dimensions at the
SNR ``g snr`` have the cumulant ``log2 E_g 2**(D K(rho; g snr))``, with ``g`` exponential for Rayleigh fading, and the bound holds
with the sum of these in place of n K. It needs no outage event; the SNR is then a bound on the *mean*.
"""

from dataclasses import dataclass
from functools import lru_cache
from math import isfinite, log, log2
from typing import Final, Protocol, cast

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import CubicSpline
from scipy.optimize import fminbound

from hushtune_common.link.mcs import MODULATIONS
from hushtune_common.messages import SecrecyDesign
from hushtune_common.units import from_db

Floats = NDArray[np.float64]

_NODES: Final = 1001
"""Trapezoid nodes; more change neither I, V, K (9 digits) nor any resulting integer."""
_RHO_GRID: Final[Floats] = np.geomspace(0.01, 1.0, 30)
_RHO_FADED: Final[Floats] = np.geomspace(0.002, 1.0, 120)
"""Steps of 5 %: the best rho lies so close to one of these that less than 0.1 % of the bound's exponent is lost."""
_TABLE_DB: Final[Floats] = np.arange(-70.0, 35.25, 0.25)
_TABLE_NOISE: Final[Floats] = np.arange(-9.5, 9.55, 0.1)
_FADE_LEAST: Final = 1e-14
SNR_FLOOR_DB: Final = -60.0
"""Designs below this are made for this SNR: a tap with less noise knows more, so it is safe, and integrals stay well scaled."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class InformationDensity:
    """The distribution of ``i`` in one real dimension: ``values`` in bit with ``weights`` that sum to 1."""

    values: Floats
    weights: Floats
    mean: float
    variance: float
    grid: tuple[Floats, Floats]
    """``K`` and ``K'`` on the coarse grid of rho."""

    def cumulant(self, rho: float) -> tuple[float, float]:
        """Return ``K(rho)`` and its derivative, the mean of ``i`` under the tilted law (no finite differences)."""
        return _cumulant(self.values, self.weights, rho)


@lru_cache(maxsize=512)
def information_density(modulation: str, snr_db: float) -> InformationDensity:
    """Return the law of ``i`` for a modulation at a symbol SNR in dB, by the trapezoid rule out to 12 noise deviations."""
    if not isfinite(snr_db):
        raise ValueError(f"the SNR must be finite, got {snr_db} dB")
    amplitudes = np.array(MODULATIONS[modulation].amplitudes)
    sigma = 1.0 / np.sqrt(float(from_db(snr_db)))
    z = np.linspace(amplitudes.min() - 12.0 * sigma, amplitudes.max() + 12.0 * sigma, _nodes(amplitudes, sigma))
    exponent = -0.5 * ((z[None, :] - amplitudes[:, None]) / sigma) ** 2  # (symbols, nodes)
    density = np.exp(exponent)
    peak = exponent.max(axis=0)
    log_output = peak + np.log(np.exp(exponent - peak).mean(axis=0))
    keep = density > 1e-300
    values = ((exponent - log_output) / np.log(2.0))[keep]
    weights = density[keep] / density[keep].sum()
    mean = _mean(values, weights)
    pairs = np.array([_cumulant(values, weights, rho) for rho in _RHO_GRID])
    return InformationDensity(
        values=values,
        weights=weights,
        mean=mean,
        variance=_mean((values - mean) ** 2, weights),
        grid=(pairs[:, 0], pairs[:, 1]),
    )


class Leak(Protocol):
    """What a tap's reception of one hash block can tell.

    Law: ``bound`` falls with ``random_bits``.
    """

    @property
    def mean_bits(self) -> float:
        """Mean information in the tap's reception of the block."""
        ...

    def bound(self, random_bits: int) -> tuple[float, float]:
        """Return the bound on the leakage (log2 of total variation, mean over the public seed) and the rho that gives it."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class WhiteLeak:
    """A tap in white noise hears ``dimensions`` real dimensions, all with the same information density.

    For every 0 < rho <= 1, with lam = n K'(rho) and L = rho lam - n K(rho),
    ``delta <= 2**-L + 0.5 * 2**(-(random_bits - lam + L) / 2)``; every rho is valid, so the search can only waste bits.
    Without the tail (lam infinite, rho 1) ``delta <= 0.5 * 2**(-(random_bits - n K(1)) / 2)``, the better form at very low SNR,
    where the tail cannot be made small.
    """

    density: InformationDensity
    dimensions: int

    @property
    def mean_bits(self) -> float:
        """Mean information in the tap's reception of the block."""
        return self.dimensions * self.density.mean

    def bound(self, random_bits: int) -> tuple[float, float]:
        """Return the bound on the leakage and the rho that gives it."""
        whole = -1.0 - 0.5 * (random_bits - self.dimensions * float(self.density.grid[0][-1]))
        cumulant, slope = self.density.grid
        coarse = _bound(_RHO_GRID, cumulant, slope, dimensions=self.dimensions, random_bits=random_bits)
        best = int(coarse.argmin())
        low, high = _RHO_GRID[max(best - 1, 0)], _RHO_GRID[min(best + 1, _RHO_GRID.size - 1)]

        def at(rho: float) -> float:
            k, k1 = self.density.cumulant(rho)
            bits = _bound(np.float64(rho), np.float64(k), np.float64(k1), dimensions=self.dimensions, random_bits=random_bits)
            return float(bits)

        rho = float(cast(float, fminbound(at, float(low), float(high), xtol=1e-6)))  # a numpy scalar would not survive a journal
        return min((at(rho), rho), (float(coarse[best]), float(_RHO_GRID[best])), (whole, 1.0))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class InterleavedLeak:
    """A tap whose channel fades hears a block spread over many coherence blocks; ``cumulant`` is the block's, on a grid of rho.

    Here lam is free: for every rho < 1 one term of the bound falls exponentially with lam and the other rises, so that the best
    lam has a closed form and no derivative of the cumulant is needed.
    """

    mean_bits: float
    """Mean information in the tap's reception of the block."""
    cumulant: Floats

    def bound(self, random_bits: int) -> tuple[float, float]:
        """Return the bound on the leakage and the rho that gives it."""
        rho, k = _RHO_FADED[:-1], self.cumulant[:-1]
        lam = (k + random_bits + 2.0 - 2.0 * np.log2((1.0 - rho) / (2.0 * rho))) / (1.0 + rho)
        tail = rho * lam - k
        smooth = np.logaddexp2(-tail, -1.0 - 0.5 * (random_bits - lam + tail))
        best = int(smooth.argmin())
        whole = -1.0 - 0.5 * (random_bits - float(self.cumulant[-1]))  # rho = 1, lam infinite
        return min((float(smooth[best]), float(rho[best])), (whole, 1.0))


def white(modulation: str, *, snr_db: float, dimensions: int) -> WhiteLeak:
    """Return what a tap at a symbol SNR in dB learns from ``dimensions`` real dimensions in white noise."""
    return WhiteLeak(density=information_density(modulation, snr_db), dimensions=dimensions)


@lru_cache(maxsize=256)
def interleaved(modulation: str, *, snr_db: float, coherence: tuple[tuple[int, int], ...]) -> InterleavedLeak:
    """Return what a tap at a mean symbol SNR in dB learns under Rayleigh fading.

    ``coherence`` holds (coherence blocks, real dimensions of each), the fading of all of them independent.
    """
    if not isfinite(snr_db):
        raise ValueError(f"the SNR must be finite, got {snr_db} dB")
    mean, total = 0.0, np.zeros(_RHO_FADED.size)
    for count, dimensions in coherence:
        level, log_weight = _rayleigh(dimensions * MODULATIONS[modulation].bits_per_symbol // 2)
        table = _faded_table(modulation)(np.clip(snr_db + 10.0 / log(10.0) * level, _TABLE_DB[0], _TABLE_DB[-1]))
        mean += count * dimensions * _mean(table[:, -1], np.exp(log_weight))
        exponent = log(2.0) * dimensions * table[:, :-1] + log_weight[:, None]
        total += count / log(2.0) * _log_sum(exponent.T)
    return InterleavedLeak(mean_bits=mean, cumulant=total)


def least_random_bits(leak: Leak, *, log2_delta_max: float, at_most: int) -> int | None:
    """Return the least number of fresh random bits that keeps one block's leakage below the target, or None above ``at_most``."""
    if leak.mean_bits >= at_most:  # below the tap's information no number of bits hides the message
        return None
    if leak.bound(at_most)[0] > log2_delta_max:
        return None
    low, high = int(leak.mean_bits), at_most
    while high - low > 1:  # the bound falls with random_bits, so bisection is exact
        middle = (low + high) // 2
        low, high = (low, middle) if leak.bound(middle)[0] <= log2_delta_max else (middle, high)
    return high


def total_log2_delta(design: SecrecyDesign, blocks_sent: int) -> float:
    """Return log2 of the leakage bound over all blocks sent, retransmissions included (union bound: delta times blocks).

    The advantage in telling any two messages apart is at most twice that. Zero blocks leak nothing: minus infinity.
    """
    if blocks_sent < 0:
        raise ValueError(f"cannot have sent {blocks_sent} blocks")
    return min(0.0, design.log2_delta + log2(blocks_sent)) if blocks_sent else float("-inf")


def log2_mutual_information(design: SecrecyDesign, blocks_sent: int) -> float:
    """Return log2 of a bound in bit on the mutual information of uniform messages and all that the tap heard of them.

    ``I <= 2 delta (b + log2(1 / (2 delta)))`` for ``2 delta <= 1 / 4`` and b message bits in all (continuity of entropy);
    above that the trivial b. A consequence of the total variation bound, for reports: it guarantees nothing further.
    """
    message_bits = design.message_bits * blocks_sent
    log2_twice = 1.0 + total_log2_delta(design, blocks_sent)
    if not blocks_sent:
        return float("-inf")
    return min(log2(message_bits), log2_twice + log2(message_bits - log2_twice)) if log2_twice <= -2.0 else log2(message_bits)


def _nodes(amplitudes: Floats, sigma: float) -> int:
    """Keep at least 40 nodes per noise deviation, so that low noise does not slip between the nodes."""
    span = float(amplitudes.max() - amplitudes.min()) / sigma + 24.0
    return max(_NODES, min(40_001, int(40.0 * span) | 1))


def _cumulant(values: Floats, weights: Floats, rho: float) -> tuple[float, float]:
    tilted = rho * values
    peak = float(tilted.max())
    terms = weights * np.exp2(tilted - peak)
    total = float(terms.sum())
    return peak + log2(total), _mean(values, terms) / total


def _mean(values: Floats, weights: Floats) -> float:
    """Return the weighted sum. Not a matrix product: those wait for threads of their own on a busy machine."""
    return float((weights * values).sum())


def _bound(
    rho: Floats | np.float64, k: Floats | np.float64, k1: Floats | np.float64, *, dimensions: int, random_bits: int
) -> Floats:
    lam = dimensions * k1
    tail = rho * lam - dimensions * k
    return np.asarray(np.logaddexp2(-tail, -1.0 - 0.5 * (random_bits - lam + tail)))


def _rayleigh(bits: int) -> tuple[Floats, Floats]:
    """Return log g and the log of its weight for exponential g, fine enough for ``E 2**f(g)`` with ``f`` from 0 to ``bits``.

    The trapezoid rule in log g. The integrand's peaks are about ``most ** -0.5`` wide or wider, and a step is 0.4 of that; what
    lies beyond ``most`` adds less than exp(-50). (Gauss-Laguerre nodes miss the peaks by far.)
    """
    most = bits * log(2.0) + 50.0
    level = np.arange(log(_FADE_LEAST), log(most), 0.4 * most**-0.5)
    log_weight = level - np.exp(level)
    return level, log_weight - _log_sum(log_weight)


@lru_cache(maxsize=8)
def _faded_table(modulation: str) -> CubicSpline:
    """Return, over the SNR in dB, ``K`` of one dimension at every rho of the grid for fading, and last the mean of ``i``."""
    amplitudes = np.array(MODULATIONS[modulation].amplitudes)
    sent = amplitudes[amplitudes > 0.0]  # the others by symmetry
    weights = np.tile(np.exp(-0.5 * _TABLE_NOISE**2), sent.size)
    weights /= weights.sum()
    rows = np.empty((_TABLE_DB.size, _RHO_FADED.size + 1))
    for row, snr_db in zip(rows, _TABLE_DB, strict=True):
        gaps = np.sqrt(float(from_db(snr_db))) * (sent[:, None] - amplitudes)  # in noise deviations
        rivals = -(gaps[:, None, :] * (_TABLE_NOISE[None, :, None] + 0.5 * gaps[:, None, :]))  # log of W(z|other) / W(z|sent)
        values = (log(amplitudes.size) - _log_sum(rivals)).reshape(-1) / log(2.0)
        row[:-1] = np.log2((np.exp2(_RHO_FADED[:, None] * values) * weights).sum(axis=1))
        row[-1] = _mean(values, weights)
    return CubicSpline(_TABLE_DB, rows)


def _log_sum(logs: Floats) -> Floats:
    """Return the logarithm of the sum of exponentials along the last axis."""
    peak = logs.max(axis=-1)
    return peak + np.log(np.exp(logs - peak[..., None]).sum(axis=-1))
