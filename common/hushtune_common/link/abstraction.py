"""Which blocks a listener decodes: effective SNR under fading, block error tables, the draw itself, and what contradicts it.

Fading follows mutual-information effective SNR mapping (MIESM): ``I(effective) = mean_j I(snr_j)`` with the constellation's own
mutual information. Measured beside real decoding it is exact for QPSK and a constant too high for larger constellations; that
constant comes with each coding point's table.
"""

from dataclasses import dataclass
from functools import lru_cache
from math import ceil
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.special import betainc, ndtr, ndtri

from hushtune_common.config import AirConfig
from hushtune_common.link.leakage import information_density
from hushtune_common.link.mcs import CodingPoint, point_of
from hushtune_common.messages import SecrecyDesign
from hushtune_common.seeding import SeedTree
from hushtune_common.units import to_db

Floats = NDArray[np.float64]
Gains = NDArray[np.float32]
Flags = NDArray[np.bool_]
Decibels = NDArray[np.float32]

CONTRADICTION_P: Final = 1e-6
"""Below this p-value of `consistent`, a sample of blocks contradicts the tables."""
TABLE_ERROR_DB: Final = 0.05
"""How far a block error table may be off along the SNR, in white noise."""
MAPPING_ERROR_DB: Final = 0.1
"""The same under fading, where the effective SNR mapping adds what its constant leaves over."""

_INFORMATION_DB: Final[Floats] = np.arange(-40.0, 30.25, 0.25)
_FADING_DRAWS: Final = 4096
_SEARCH_DB: Final = (-20.0, 60.0)
_GAIN_LEAST: Final = 1e-12
"""Deeper fades are one to every receiver, and zero has no level."""
_UNSEEN: Final = 6.9
"""Errors that a row without any would still have expected with a probability of 1e-3."""
_GRID_PER_DB: Final = 4


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
    rate ever returned. Below the first row every block fails.
    """
    knots_db, knots_q, floor = _waterfall(point)
    rate = np.maximum(ndtr(-np.interp(snr_db, knots_db, knots_q)), floor)
    return np.where(snr_db < knots_db[0], 1.0, rate)


def effective_snr_db(modulation: str, snr_db: Floats) -> Floats:
    """Return the white-noise SNR that carries the same information as the coherence blocks on the last axis of ``snr_db``.

    The result saturates where the constellation is full (17 dB with QPSK, 24 dB with 16-QAM, 30 dB with 64-QAM), far above any
    waterfall.
    """
    information = _information(modulation)
    mean = np.interp(snr_db, _INFORMATION_DB[: information.size], information).mean(axis=-1)
    return np.interp(mean, information, _INFORMATION_DB[: information.size])


def faded_block_error_rate(point: CodingPoint, snr_db: Floats) -> Floats:
    """Return the error rate of one codeword whose coherence blocks, on the last axis, have these SNRs."""
    return block_error_rate(point, effective_snr_db(point.modulation, snr_db) - point.fading_loss_db)


def hash_block_error_rate(point: CodingPoint, *, snr_db: float, codewords: int, fading: Fading = NO_FADING) -> float:
    """Return the probability that a hash block is lost at a mean SNR: one failed codeword voids all of them."""
    if fading.subbands:
        codeword = float(faded_block_error_rate(point, snr_db + _unit_fading_db(fading.subbands)).mean())
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


def fading_gains(count: int, *, codewords: int, fading: Fading, seeds: SeedTree) -> Gains | None:
    """Return power gains of unit mean for each codeword of ``count`` hash blocks, (count * codewords, coherence blocks).

    None without fading. Equal ``seeds`` give equal gains.
    """
    if not fading.subbands:
        return None
    return seeds.generator().standard_exponential(size=(count * codewords, fading.subbands), dtype=np.float32)


def fates(count: int, *, design: SecrecyDesign, snr: float, gains: Gains | None, seeds: SeedTree) -> tuple[Flags, Decibels]:
    """Draw which of ``count`` hash blocks are decoded at a mean SNR (linear); equal ``seeds`` give equal fates.

    A block is decoded when all its codewords are, each at its own effective SNR. ``gains`` are those of `fading_gains`.
    Returns flags and mean SNRs in dB, (count,) each.
    """
    point, level = point_of(design), to_db(snr)
    if gains is None:
        rate = np.broadcast_to(block_error_rate(point, np.array(level)), (count, design.codewords))
        seen = np.full(count, level)
    else:
        rate = faded_block_error_rate(point, level + _decibels(gains).reshape(count, design.codewords, -1))
        seen = level + _decibels(gains.reshape(count, -1).mean(axis=1, dtype=np.float64))
    decoded: Flags = np.all(seeds.generator().random((count, design.codewords)) >= rate, axis=1)
    return decoded, seen.astype(np.float32)


def consistent(
    design: SecrecyDesign, *, snr_db: NDArray[np.floating], failed: int, of: int, error_db: float | None = None
) -> float:
    """Return the two-sided p-value of ``failed`` among ``of`` hash blocks that were sent bit by bit, if the tables are right.

    ``snr_db`` are the blocks' mean SNRs (of,), or one for all. "Right" allows the tables to be off by ``error_db`` along the SNR
    (`TABLE_ERROR_DB`, under fading `MAPPING_ERROR_DB`) and their rows without an error to hide a rate too small to be seen. How a
    block's mean divides among its coherence blocks is averaged over: under Rayleigh fading it is independent of the mean.
    Failures of blocks with unequal rates are less spread than binomial ones of the mean rate (Hoeffding 1956), whose tails
    therefore bound theirs. Values below `CONTRADICTION_P` are no accident.
    """
    if not 0 <= failed <= of or of < 1:
        raise ValueError(f"{failed} of {of} blocks cannot have failed")
    level = np.broadcast_to(np.asarray(snr_db, dtype=np.float64), (of,))
    if error_db is None:
        error_db = MAPPING_ERROR_DB if design.subbands else TABLE_ERROR_DB
    most = float(_failure_rates(design, level - error_db)[1].mean())
    least = float(_failure_rates(design, level + error_db)[0].mean())
    at_least = float(betainc(failed, of - failed + 1, most)) if failed else 1.0
    at_most = float(betainc(of - failed, failed + 1, 1.0 - least)) if failed < of else 1.0
    return min(1.0, 2.0 * at_least, 2.0 * at_most)


def _failure_rates(design: SecrecyDesign, level_db: Floats) -> tuple[Floats, Floats]:
    """Return the least and greatest probabilities, (blocks,) each, that hash blocks of these mean SNRs are lost."""
    point = point_of(design)
    if not design.subbands:
        least, most = _error_range(point, level_db)
        return 1.0 - (1.0 - least) ** design.codewords, 1.0 - (1.0 - most) ** design.codewords
    place = level_db * _GRID_PER_DB
    steps = np.arange(np.floor(place.min()), np.ceil(place.max()) + 1.0)
    known = np.array([_faded_failure(point, design.codewords, design.subbands, int(step)) for step in steps])
    return np.interp(place, steps, known[:, 0]), np.interp(place, steps, known[:, 1])


@lru_cache(maxsize=1024)
def _faded_failure(point: CodingPoint, codewords: int, subbands: int, step: int) -> tuple[float, float]:
    """Return the range of the loss probability of a hash block whose gains average to ``step`` quarters of a dB."""
    faded = step / _GRID_PER_DB + _divided_fading_db(codewords, subbands)
    effective = effective_snr_db(point.modulation, faded) - point.fading_loss_db
    found: list[float] = []
    for rate, sign in zip(_error_range(point, effective), (-1.0, 1.0), strict=True):
        lost = 1.0 - np.prod(1.0 - rate, axis=-1)
        found.append(float(np.clip(lost.mean() + sign * 3.0 * lost.std() / lost.size**0.5, 0.0, 1.0)))
    return found[0], found[1]


def _error_range(point: CodingPoint, snr_db: Floats) -> tuple[Floats, Floats]:
    """Return the rates that the table allows: where no error was seen, from none to what would hardly have gone unseen."""
    floor = _waterfall(point)[2]
    rate = block_error_rate(point, snr_db)
    unseen = rate <= floor * (1.0 + 1e-9)
    return np.where(unseen, 0.0, rate), np.maximum(rate, 2.0 * _UNSEEN * floor)


@lru_cache(maxsize=16)
def _waterfall(point: CodingPoint) -> tuple[Floats, Floats, float]:
    """Return the table's knots as SNR in dB and Qinv(rate), and the least rate that it can tell from none."""
    least = [1.0 / (2.0 * blocks) for _, _, blocks in point.bler]
    snr_db = [row[0] for row in point.bler]
    q = [float(-ndtri(min(max(row[1], e), 1.0 - e))) for row, e in zip(point.bler, least, strict=True)]
    return np.array(snr_db), np.array(q), least[-1]


@lru_cache(maxsize=8)
def _information(modulation: str) -> Floats:
    """Return mutual information per dimension on the SNR grid, cut where it no longer rises."""
    values = np.array([information_density(modulation, float(s)).mean for s in _INFORMATION_DB])
    rising = np.flatnonzero(np.diff(values) < 1e-12)
    return values[: rising[0] + 1] if rising.size else values


def _decibels(gains: NDArray[np.floating]) -> Floats:
    return 10.0 * np.log10(np.maximum(gains, _GAIN_LEAST, dtype=np.float64))


@lru_cache(maxsize=8)
def _unit_fading_db(subbands: int) -> Floats:
    """Return a fixed sample of unit-mean Rayleigh power gains in dB, (draws, subbands): an integral, not an experiment."""
    rng = SeedTree(0).child("fading-average", str(subbands)).generator()
    return _decibels(rng.exponential(size=(_FADING_DRAWS, subbands)))


@lru_cache(maxsize=8)
def _divided_fading_db(codewords: int, subbands: int) -> Floats:
    """Return a fixed sample, (draws, codewords, subbands) in dB, of gains divided by their mean over each hash block."""
    rng = SeedTree(0).child("fading-division", str(codewords), str(subbands)).generator()
    gains = rng.exponential(size=(_FADING_DRAWS, codewords, subbands))
    return _decibels(gains / gains.mean(axis=(1, 2), keepdims=True))
