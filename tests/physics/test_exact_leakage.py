"""Does the leakage bound hold where everything can be enumerated, and how much of the exact leakage do bit errors miss?

The second-order Reed-Muller code of 32 bits with a Toeplitz hash over its 16 information bits, sent as binary amplitudes: all
65 536 posteriors are computed for each noise draw. The table that is compared with averaged over 150 noise draws with 8 hashes,
we over 24 with 24 (the leakage of eight message bits differs more from hash to hash than from draw to draw), so tolerances come
from the spread over draws and over hashes.
"""

import itertools
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pytest
from numpy.typing import NDArray

from hushtune_common.link.leakage import white
from hushtune_common.seeding import SeedTree

Floats = NDArray[np.float64]

MESSAGE_BITS = (1, 4, 8)
SNRS_DB = (-15.0, -12.0, -10.0, -8.0, -5.0, 0.0)
DRAWS, HASHES = 24, 24
TABLE = [  # message bits, SNR, exact total variation, exact mutual information, error rate of the best bit decisions, bound
    (1, -10.0, 4.5e-3, 2.5e-4, 0.4955, 1.1e-2),
    (1, -5.0, 3.9e-2, 9.5e-3, 0.461, 9.5e-2),
    (4, -10.0, 1.3e-2, 1.1e-3, 0.4966, 3.2e-2),
    (8, -15.0, 3.2e-2, 1.1e-2, 0.4997, 5.1e-2),
    (8, -10.0, 8.0e-2, 3.7e-2, 0.497, 1.3e-1),
    (8, 0.0, 9.1e-1, 6.1, 0.155, 1.0),
]

pytestmark = pytest.mark.slow


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Exact:
    """What the tap knows, (hashes, draws)."""

    variation: Floats
    information: Floats
    bit_errors: Floats


@pytest.mark.parametrize("message", MESSAGE_BITS)
@pytest.mark.parametrize("snr_db", SNRS_DB)
def test_the_bound_lies_above_the_exact_leakage(message: int, snr_db: float) -> None:
    exact = _enumerate(snr_db)[message].variation
    bound = _bound(message, snr_db)
    assert exact.mean() <= bound + 3.0 * _error(exact)
    assert bound <= 1.0


@pytest.mark.parametrize(("message", "snr_db", "variation", "information", "bit_errors", "bound"), TABLE)
def test_the_enumeration_gives_the_published_values(
    message: int, snr_db: float, variation: float, information: float, bit_errors: float, bound: float
) -> None:
    found = _enumerate(snr_db)[message]
    assert _bound(message, snr_db) == pytest.approx(bound, rel=0.05)
    expected = (variation, information, bit_errors)
    for values, value in zip((found.variation, found.information, found.bit_errors), expected, strict=True):
        assert abs(values.mean() - value) < 4.0 * _error(values, hashes=(HASHES, 8), draws=(DRAWS, 150)) + 0.02 * value


def test_bit_errors_near_one_half_go_with_a_leak() -> None:
    found = _enumerate(-10.0)[8]
    assert found.bit_errors.mean() > 0.49
    assert found.variation.mean() > 0.05


def _bound(message: int, snr_db: float) -> float:
    return min(1.0, 2.0 ** white("qpsk", snr_db=snr_db, dimensions=32).bound(16 - message)[0])


def _error(values: Floats, *, hashes: tuple[int, ...] = (HASHES,), draws: tuple[int, ...] = (DRAWS,)) -> float:
    """Standard error of the difference of means over samples of so many hashes and draws each."""
    by_hash, by_draw = values.mean(axis=1).var(ddof=1), values.mean(axis=0).var(ddof=1)
    return float(sum(by_hash / h + by_draw / d for h, d in zip(hashes, draws, strict=True)) ** 0.5)


@lru_cache(maxsize=1)
def _code() -> tuple[NDArray[np.int64], Floats]:
    """All information words, (65536, 16), and their code words as amplitudes, (65536, 32)."""
    points = (np.arange(32)[:, None] >> np.arange(5)) & 1
    products = [points[:, i] & points[:, j] for i, j in itertools.combinations(range(5), 2)]
    generator = np.array([np.ones(32, dtype=np.int64), *points.T, *products])
    words = (np.arange(1 << 16)[:, None] >> np.arange(16)) & 1
    return words, 1.0 - 2.0 * ((words @ generator) & 1).astype(np.float64)


@lru_cache(maxsize=72)
def _groups(message: int, number: int) -> NDArray[np.int64]:
    """The message that each information word ``x1 || x2`` carries, ``x1 XOR T x2`` with ``T[i, j] = s[i - j + r - 1]``."""
    words, _ = _code()
    seed = SeedTree(5).child("hash", str(message), str(number)).generator().integers(0, 2, size=15)
    fresh = 16 - message
    toeplitz = np.array([[seed[i - j + fresh - 1] for j in range(fresh)] for i in range(message)])
    return ((words[:, :message] + words[:, message:] @ toeplitz.T) & 1) @ (1 << np.arange(message))


@lru_cache(maxsize=8)
def _enumerate(snr_db: float) -> dict[int, Exact]:
    rng = SeedTree(5).child("noise", str(snr_db)).generator()
    _, amplitudes = _code()
    variance = 10.0 ** (-snr_db / 10.0)
    sent = amplitudes[rng.integers(1 << 16, size=DRAWS)]
    heard = sent + np.sqrt(variance) * rng.standard_normal((DRAWS, 32))
    exponent = heard @ amplitudes.T / variance
    likelihood = np.exp(exponent - exponent.max(axis=1, keepdims=True))  # (draws, words)
    likelihood /= likelihood.sum(axis=1, keepdims=True)
    return {message: _knowledge(likelihood, message) for message in MESSAGE_BITS}


def _knowledge(likelihood: Floats, message: int) -> Exact:
    bits = (np.arange(1 << message)[:, None] >> np.arange(message)) & 1
    found = np.empty((3, HASHES, DRAWS))
    for number in range(HASHES):
        members = np.argsort(_groups(message, number), kind="stable").reshape(1 << message, -1)  # every message is equally likely
        posterior = np.stack([row[members].sum(axis=1) for row in likelihood])
        one = posterior @ bits
        found[0, number] = 0.5 * np.abs(posterior - 2.0**-message).sum(axis=1)
        found[1, number] = message + (posterior * np.log2(np.maximum(posterior, 1e-300))).sum(axis=1)
        found[2, number] = np.minimum(one, 1.0 - one).mean(axis=1)
    return Exact(variation=found[0], information=found[1], bit_errors=found[2])
