"""Which blocks a listener decodes: effective SNR under fading, block error tables, and the draw itself.

Fading follows mutual-information effective SNR mapping (MIESM): ``I(effective) = mean_j I(snr_j)`` with the constellation's own
mutual information, so there is nothing to fit.
"""

from dataclasses import dataclass
from functools import lru_cache
from math import ceil
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri

from hushtune_common.config import AirConfig
from hushtune_common.link.channel import Decibels, Flags, Frame, Reception
from hushtune_common.link.leakage import information_density
from hushtune_common.link.mcs import CodingPoint, point_of
from hushtune_common.messages import Listener, SecrecyDesign
from hushtune_common.seeding import NoiseRng, SeedTree
from hushtune_common.units import to_db

Floats = NDArray[np.float64]

_INFORMATION_DB: Final[Floats] = np.arange(-40.0, 30.25, 0.25)
_CHUNK_BLOCKS: Final = 4096
_FADING_DRAWS: Final = 4096
_SEARCH_DB: Final = (-20.0, 60.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fading:
    """How a codeword fades: over ``subbands`` independent Rayleigh coherence blocks, or not at all (0)."""

    subbands: int

    def __post_init__(self) -> None:
        """Check the range."""
        if self.subbands < 0:
            raise ValueError(f"cannot fade over {self.subbands} coherence blocks")

    @staticmethod
    def of(air: AirConfig) -> "Fading":
        """Return the fading of a scenario."""
        return Fading(subbands=air.subbands if air.fading == "rayleigh_block" else 0)


NO_FADING: Final = Fading(subbands=0)


def block_error_rate(point: CodingPoint, snr_db: Floats) -> Floats:
    """Return the error rate of one codeword at each SNR, white noise.

    Linear in (dB, Qinv(rate)) between the measured rows; rows without an error count as 1 / (2 blocks), which is also the least
    rate ever returned. A table that ends above that is continued at the slope of its last two rows. Below the first row every
    block fails.
    """
    knots_db, knots_q, floor = _waterfall(point)
    rate = np.maximum(ndtr(-np.interp(snr_db, knots_db, knots_q)), floor)
    return np.where(snr_db < knots_db[0], 1.0, rate)


def effective_snr_db(modulation: str, snr_db: Floats) -> Floats:
    """Return the white-noise SNR that carries the same information as the coherence blocks on the last axis of ``snr_db``.

    The result saturates where the constellation is full (17 dB with QPSK, 24 dB with 16-QAM), far above any waterfall.
    """
    information = _information(modulation)
    mean = np.interp(snr_db, _INFORMATION_DB[: information.size], information).mean(axis=-1)
    return np.interp(mean, information, _INFORMATION_DB[: information.size])


def hash_block_error_rate(point: CodingPoint, *, snr_db: float, codewords: int, fading: Fading = NO_FADING) -> float:
    """Return the probability that a hash block is lost at a mean SNR: one failed codeword voids all of them."""
    if fading.subbands:
        faded = snr_db + _unit_fading_db(fading.subbands)
        codeword = float(block_error_rate(point, effective_snr_db(point.modulation, faded)).mean())
    else:
        codeword = float(block_error_rate(point, np.array(snr_db)))
    return 1.0 - (1.0 - codeword) ** codewords


@lru_cache(maxsize=256)
def required_snr_db(point: CodingPoint, *, codewords: int, block_error_max: float, fading: Fading = NO_FADING) -> float:
    """Return the least mean SNR in dB (rounded up to 0.01 dB) at which a hash block is lost at most that often; inf if never."""
    low, high = _SEARCH_DB

    def fails(snr_db: float) -> bool:
        return hash_block_error_rate(point, snr_db=snr_db, codewords=codewords, fading=fading) > block_error_max

    if fails(high):
        return float("inf")
    while high - low > 1e-3:
        middle = 0.5 * (low + high)
        low, high = (middle, high) if fails(middle) else (low, middle)
    return ceil(high * 100.0) / 100.0


def hear(frame: Frame, *, listener: Listener, design: SecrecyDesign, snr: float, fading: Fading, seeds: SeedTree) -> Reception:
    """Return what a listener with mean SNR ``snr`` (linear) hears of a frame; equal ``seeds`` give equal receptions.

    A hash block is heard when all its codewords decode. A codeword fades over its own coherence blocks.
    """
    rng = seeds.generator()
    parts = [
        _draw(min(_CHUNK_BLOCKS, frame.count - start), design=design, snr_db=to_db(snr), fading=fading, rng=rng)
        for start in range(0, frame.count, _CHUNK_BLOCKS)
    ]
    heard = np.concatenate([p[0] for p in parts])
    snr_db = np.concatenate([p[1] for p in parts])
    return Reception.of(frame, listener=listener, heard=heard, snr_db=snr_db)


def _draw(count: int, *, design: SecrecyDesign, snr_db: float, fading: Fading, rng: NoiseRng) -> tuple[Flags, Decibels]:
    """Draw ``count`` hash blocks: heard flags and mean SNRs in dB, both (count,)."""
    point = point_of(design)
    shape = (count, design.codewords)
    if fading.subbands:
        gains = rng.exponential(size=(*shape, fading.subbands))
        rate = block_error_rate(point, effective_snr_db(point.modulation, snr_db + 10.0 * np.log10(gains)))
        seen = snr_db + 10.0 * np.log10(gains.mean(axis=(1, 2)))
    else:
        rate = block_error_rate(point, np.array(snr_db))
        seen = np.full(count, snr_db)
    heard: Flags = np.all(rng.random(shape) >= rate, axis=1)
    return heard, seen.astype(np.float32)


@lru_cache(maxsize=16)
def _waterfall(point: CodingPoint) -> tuple[Floats, Floats, float]:
    """Return the table's knots as SNR in dB and Qinv(rate), continued to its floor, and the floor."""
    least = [1.0 / (2.0 * blocks) for _, _, blocks in point.bler]
    snr_db = [row[0] for row in point.bler]
    q = [float(-ndtri(min(max(row[1], e), 1.0 - e))) for row, e in zip(point.bler, least, strict=True)]
    floor = min(least)
    end = float(-ndtri(floor))
    if q[-1] < end:
        snr_db.append(snr_db[-1] + (end - q[-1]) * (snr_db[-1] - snr_db[-2]) / (q[-1] - q[-2]))
        q.append(end)
    return np.array(snr_db), np.array(q), floor


@lru_cache(maxsize=8)
def _information(modulation: str) -> Floats:
    """Return mutual information per dimension on the SNR grid, cut where it no longer rises."""
    values = np.array([information_density(modulation, float(s)).mean for s in _INFORMATION_DB])
    rising = np.flatnonzero(np.diff(values) < 1e-12)
    return values[: rising[0] + 1] if rising.size else values


@lru_cache(maxsize=8)
def _unit_fading_db(subbands: int) -> Floats:
    """Return a fixed sample of unit-mean Rayleigh power gains in dB, (draws, subbands): an integral, not an experiment."""
    rng = SeedTree(0).child("fading-average", str(subbands)).generator()
    return 10.0 * np.log10(rng.exponential(size=(_FADING_DRAWS, subbands)))
