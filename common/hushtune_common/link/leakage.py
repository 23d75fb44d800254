"""How much an eavesdropper at a given SNR learns from one hash block: information density and the leakage bound.

Notation: ``a`` is one real dimension of a uniform constellation, ``z = a + noise`` with variance ``1 / snr`` (``a`` has mean
square 1), ``i = log2 W(z|a) / Q(z)`` the information density and ``K(rho) = log2 E 2**(rho i)`` its cumulant function.
The bound below follows Hayashi (arXiv 1010.1358, 1202.0322) and Bellare, Tessaro and Vardy for a universal hash before a code
with uniform inputs. It is derived along those lines, not peer reviewed; it was checked against exact enumeration of small codes.
"""

from dataclasses import dataclass
from functools import lru_cache
from math import isfinite, log2
from typing import Final, cast

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import fminbound

from hushtune_common.link.mcs import MODULATIONS
from hushtune_common.messages import SecrecyDesign
from hushtune_common.units import from_db

Floats = NDArray[np.float64]

_NODES: Final = 1001
"""Trapezoid nodes; more change neither I, V, K (9 digits) nor any resulting integer."""
_RHO_GRID: Final[Floats] = np.geomspace(0.01, 1.0, 30)
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
    mean = float(weights @ values)
    pairs = np.array([_cumulant(values, weights, rho) for rho in _RHO_GRID])
    return InformationDensity(
        values=values,
        weights=weights,
        mean=mean,
        variance=float(weights @ (values - mean) ** 2),
        grid=(pairs[:, 0], pairs[:, 1]),
    )


def log2_delta(density: InformationDensity, *, dimensions: int, random_bits: int) -> tuple[float, float]:
    """Return the bound on one block's leakage (log2 of total variation, mean over the seed) and the rho that gives it.

    For every 0 < rho <= 1, with lam = n K'(rho) and L = rho lam - n K(rho),
    ``delta <= 2**-L + 0.5 * 2**(-(random_bits - lam + L) / 2)``; every rho is valid, so the search can only waste bits.
    Without the tail (lam infinite, rho 1) ``delta <= 0.5 * 2**(-(random_bits - n K(1)) / 2)``, the better form at very low SNR,
    where the tail cannot be made small.
    """
    whole = -1.0 - 0.5 * (random_bits - dimensions * float(density.grid[0][-1]))
    cumulant, slope = density.grid
    coarse = _bound(_RHO_GRID, cumulant, slope, dimensions=dimensions, random_bits=random_bits)
    best = int(coarse.argmin())
    low, high = _RHO_GRID[max(best - 1, 0)], _RHO_GRID[min(best + 1, _RHO_GRID.size - 1)]

    def at(rho: float) -> float:
        k, k1 = density.cumulant(rho)
        return float(_bound(np.float64(rho), np.float64(k), np.float64(k1), dimensions=dimensions, random_bits=random_bits))

    rho = float(cast(float, fminbound(at, float(low), float(high), xtol=1e-6)))  # a numpy scalar would not survive a journal
    return min((at(rho), rho), (float(coarse[best]), float(_RHO_GRID[best])), (whole, 1.0))


def random_bits(density: InformationDensity, *, dimensions: int, log2_delta_max: float, at_most: int) -> int | None:
    """Return the least number of fresh random bits that keeps one block's leakage below the target, or None above ``at_most``."""
    if dimensions * density.mean >= at_most:  # below the tap's information no number of bits hides the message
        return None
    if log2_delta(density, dimensions=dimensions, random_bits=at_most)[0] > log2_delta_max:
        return None
    low, high = int(dimensions * density.mean), at_most
    while high - low > 1:  # the bound falls with random_bits, so bisection is exact
        middle = (low + high) // 2
        met = log2_delta(density, dimensions=dimensions, random_bits=middle)[0] <= log2_delta_max
        low, high = (low, middle) if met else (middle, high)
    return high


def total_log2_delta(design: SecrecyDesign, blocks_sent: int) -> float:
    """Return log2 of the leakage bound over all blocks sent, retransmissions included (union bound: delta times blocks).

    The advantage in telling any two messages apart is at most twice that. Zero blocks leak nothing: minus infinity.
    """
    if blocks_sent < 0:
        raise ValueError(f"cannot have sent {blocks_sent} blocks")
    return min(0.0, design.log2_delta + log2(blocks_sent)) if blocks_sent else float("-inf")


def _nodes(amplitudes: Floats, sigma: float) -> int:
    """Keep at least 40 nodes per noise deviation, so that low noise does not slip between the nodes."""
    span = float(amplitudes.max() - amplitudes.min()) / sigma + 24.0
    return max(_NODES, min(40_001, int(40.0 * span) | 1))


def _cumulant(values: Floats, weights: Floats, rho: float) -> tuple[float, float]:
    tilted = rho * values
    peak = float(tilted.max())
    terms = weights * np.exp2(tilted - peak)
    total = float(terms.sum())
    return peak + log2(total), float(terms @ values) / total


def _bound(
    rho: Floats | np.float64, k: Floats | np.float64, k1: Floats | np.float64, *, dimensions: int, random_bits: int
) -> Floats:
    lam = dimensions * k1
    tail = rho * lam - dimensions * k
    return np.asarray(np.logaddexp2(-tail, -1.0 - 0.5 * (random_bits - lam + tail)))
