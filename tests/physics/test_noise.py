"""Is the noise Gaussian, the same in every order of drawing, and different for every codeword and key?"""

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from hushtune_common.link.noise import GROUPS, TILE, NoiseKey, box_muller, normals
from hushtune_common.seeding import SeedTree

KEY = NoiseKey.of(SeedTree(11).child("noise"))
SIDE = 1024  # samples are looked at as SIDE codewords of SIDE samples
Z = 4.5
"""Deviations that a correct generator may be off; about one in 150 000 checks would fail by chance, and seeds are fixed."""


@pytest.fixture(scope="module")
def sample() -> NDArray[np.float64]:
    return normals(KEY, first=0, rows=SIDE, length=SIDE).astype(np.float64)


def philox(counter: tuple[int, int, int, int], key: tuple[int, int]) -> list[int]:
    """Philox4x32-10 with Python integers, written from the round function in the paper."""
    x, k = list(counter), list(key)
    for _ in range(10):
        p, q = 0xD2511F53 * x[0], 0xCD9E8D57 * x[2]
        x = [(q >> 32) ^ x[1] ^ k[0], q % 2**32, (p >> 32) ^ x[3] ^ k[1], p % 2**32]
        k = [(k[0] + 0x9E3779B9) % 2**32, (k[1] + 0xBB67AE85) % 2**32]
    return x


def reference(a: NDArray[np.int64], b: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Two normals from two words each, in double precision."""
    radius = np.sqrt(-2.0 * np.log((a + 0.5) / 2**32))
    low = (b << 2) % 2**32
    angle = np.pi / 4 * np.where(low < 2**31, low, low - 2**32) / 2**31
    x, y = np.cos(angle) * np.where(b >> 31, -1, 1), np.sin(angle)
    mirror = (b >> 30 & 1) == 1
    return radius * np.where(mirror, y, x), radius * np.where(mirror, x, y)


def test_the_words_are_those_of_the_published_generator() -> None:
    # Known answers of the authors' Random123 library for philox4x32 with 10 rounds.
    assert philox((0, 0, 0, 0), (0, 0)) == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    ones = 2**32 - 1
    assert philox((ones, ones, ones, ones), (ones, ones)) == [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]


@pytest.mark.parametrize(("codeword", "group"), [(0, 0), (0, 127), (1, 128), (77, 300), (2**32 - 1, 511)])
def test_every_sample_follows_from_key_codeword_and_position(codeword: int, group: int) -> None:
    row = normals(KEY, first=codeword, rows=1, length=4 * TILE)[0]
    words = philox((group, codeword, KEY.high % 2**32, KEY.high >> 32), (KEY.low % 2**32, KEY.low >> 32))
    start = group // GROUPS * TILE + group % GROUPS
    a, b = np.array(words).reshape(2, 2).T
    assert row[start : start + TILE : GROUPS] == pytest.approx(np.transpose(reference(a, b)).ravel(), abs=2e-6)


def test_the_transform_is_as_accurate_as_stated() -> None:
    words = np.random.default_rng(1).integers(0, 2**32, size=(200, 2, 2, GROUPS), dtype=np.uint32)
    words[0, 0, :, :4] = ((0, 1, 2**32 - 1, 2**31), (0, 2**29, 2**30, 2**32 - 1))
    out = np.empty((200, 2, 2, GROUPS), dtype=np.float32)
    for tile in range(200):
        box_muller(out[tile].reshape(-1), words[tile].reshape(-1))
    wanted = np.stack(reference(*np.moveaxis(words.astype(np.int64), 2, 0)), axis=2)
    radius = np.hypot(wanted[:, :, 0], wanted[:, :, 1])[:, :, None]
    assert np.all(np.abs(out - wanted) <= 5e-7 * np.maximum(1.0, radius) + 2.0**-25 / radius)
    assert np.hypot(out[0, 0, 0, 0], out[0, 0, 1, 0]) == pytest.approx(np.sqrt(66.0 * np.log(2.0)), rel=1e-6)


@pytest.mark.parametrize(("order", "mean", "variance"), [(1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96), (6, 15, 10_170)])
def test_moments_are_those_of_the_normal_law(sample: NDArray[np.float64], order: int, mean: int, variance: int) -> None:
    deviation = np.sqrt(variance / sample.size)  # E z**(2k) - (E z**k)**2, with E z**(2k) = (2k - 1)!!
    assert abs((sample**order).mean() - mean) < Z * deviation


def test_the_distribution_is_normal(sample: NDArray[np.float64]) -> None:
    assert stats.kstest(sample.ravel(), "norm").pvalue > 1e-4
    for column in (0, 1, GROUPS, 2 * GROUPS, 3 * GROUPS):
        assert stats.kstest(sample[:, column], "norm").pvalue > 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("threshold", [3.0, 4.0, 5.0])
def test_tails_have_the_right_weight(threshold: float) -> None:
    rows = 8192
    beyond = sum(int((np.abs(normals(KEY, first=w, rows=1024, length=4096)) > threshold).sum()) for w in range(0, rows, 1024))
    chance = 2.0 * float(stats.norm.sf(threshold))
    assert stats.binomtest(beyond, rows * 4096, chance).pvalue > 1e-5


def test_radius_and_angle_are_independent(sample: NDArray[np.float64]) -> None:
    x, y = sample[:, :GROUPS].ravel(), sample[:, GROUPS : 2 * GROUPS].ravel()
    turns = np.arctan2(y, x) / (2.0 * np.pi) % 1.0
    energy = (x**2 + y**2) / 2.0
    assert stats.kstest(turns, "uniform").pvalue > 1e-4
    assert stats.kstest(energy, "expon").pvalue > 1e-4
    table = np.histogram2d(turns, np.exp(-energy), bins=16, range=((0, 1), (0, 1)))[0]
    assert stats.chisquare(table.ravel()).pvalue > 1e-4


def test_positions_are_uncorrelated(sample: NDArray[np.float64]) -> None:
    correlation = (sample.T @ sample)[np.triu_indices(SIDE, 1)] / np.sqrt(SIDE)  # over codewords; near standard normal
    squares = ((sample**2 - 1).T @ (sample**2 - 1))[np.triu_indices(SIDE, 1)] / (2.0 * np.sqrt(SIDE))
    for values, bound in ((correlation, 6.5), (squares, 9.0)):  # 5e5 pairs; products of squares have heavier tails
        assert abs((values**2).mean() - 1.0) < Z * np.sqrt(3.0 * 4.0 / values.size)
        assert np.abs(values).max() < bound


def test_codewords_are_uncorrelated_at_every_lag(sample: NDArray[np.float64]) -> None:
    correlation = (sample @ sample.T)[np.triu_indices(SIDE, 1)] / np.sqrt(SIDE)
    assert abs((correlation**2).mean() - 1.0) < Z * np.sqrt(3.0 * 4.0 / correlation.size)
    assert np.abs(correlation).max() < 6.5
    spectrum = np.abs(np.fft.rfft(sample.ravel()))[1:-1] ** 2 / sample.size
    assert spectrum.max() < np.log(spectrum.size) + 12.0  # exponential, so no period stands out
    assert stats.kstest(spectrum, "expon").pvalue > 1e-4


@pytest.mark.parametrize("bit", [0, 1, 31, 32, 63, 64, 95, 96, 127])
def test_keys_that_differ_in_one_bit_give_unrelated_noise(bit: int) -> None:
    whole = KEY.high << 64 | KEY.low
    other = NoiseKey((whole ^ 1 << bit) >> 64, (whole ^ 1 << bit) % 2**64)
    a, b = (normals(key, first=5, rows=16, length=4096).astype(np.float64) for key in (KEY, other))
    assert not np.any(a == b) or (a == b).mean() < 1e-3
    assert abs((a * b).mean()) < Z / np.sqrt(a.size)


def test_chunks_join_seamlessly() -> None:
    whole = normals(KEY, first=3, rows=10, length=1000)
    parts = [normals(KEY, first=3, rows=4, length=1000), normals(KEY, first=7, rows=6, length=1000)]
    assert np.array_equal(whole, np.concatenate(parts))


def test_a_shorter_codeword_hears_the_beginning_of_the_same_noise() -> None:
    long = normals(KEY, first=3, rows=2, length=2000)
    for length in (0, 1, 511, 512, 513):
        assert np.array_equal(normals(KEY, first=3, rows=2, length=length), long[:, :length])


def test_a_key_is_a_function_of_the_node() -> None:
    assert NoiseKey.of(SeedTree(1).child("owner")) == NoiseKey.of(SeedTree(1).child("owner"))
    keys = [NoiseKey.of(SeedTree(root).child(name)) for root in range(20) for name in ("owner", "tap")]
    assert len({word for key in keys for word in (key.high, key.low)}) == 80


@pytest.mark.parametrize(("high", "low"), [(-1, 0), (0, -1), (2**64, 0), (0, 2**64)])
def test_a_key_of_more_than_128_bits_is_refused(high: int, low: int) -> None:
    with pytest.raises(ValueError, match="64-bit"):
        NoiseKey(high, low)


@pytest.mark.parametrize(("first", "rows"), [(-1, 1), (2**32, 1), (2**32 - 4, 5)])
def test_codewords_beyond_the_counter_are_refused(first: int, rows: int) -> None:
    with pytest.raises(ValueError, match="32 bits"):
        normals(KEY, first=first, rows=rows, length=8)
