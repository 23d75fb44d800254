"""Does the modem send and demap what the standards and theory say, with the same noise in every view?"""

import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from hushtune_common.link.leakage import information_density
from hushtune_common.link.mcs import MODULATIONS
from hushtune_common.link.modem import BITS_PER_DIMENSION, Path, densities, received, soft_values
from hushtune_common.link.modem_kernels import UNITS
from hushtune_common.link.noise import NoiseKey, normals
from hushtune_common.seeding import SeedTree

Bits = NDArray[np.uint8]
Floats = NDArray[np.float64]

KEY = NoiseKey.of(SeedTree(7).child("modem"))
CODE_BITS = 960  # whole symbols in every modulation, no whole number of noise tiles
NAMES = ("qpsk", "qam16", "qam64")
SNR_DB = {"qpsk": 3.0, "qam16": 9.0, "qam64": 15.0}
Z = 4.5


def bits_of(*shape: int, seed: int = 1) -> Bits:
    return np.random.default_rng(seed).integers(0, 2, size=shape, dtype=np.uint8)


def packed(bits: Bits) -> Bits:
    return np.packbits(bits, axis=-1, bitorder="little")


def path(snr_db: float, *, gains: NDArray[np.float32] | None = None, first: int = 0, key: NoiseKey = KEY) -> Path:
    return Path(snr=10 ** (snr_db / 10), gains=gains, key=key, first=first)


def rayleigh(count: int, blocks: int) -> NDArray[np.float32]:
    return np.random.default_rng(5).exponential(size=(count, blocks)).astype(np.float32)


def standard_symbols(bits: Bits, modulation: str) -> NDArray[np.complex128]:
    """One codeword through the bit interleaver of TS 38.212 5.4.2.2 and the mappers of TS 38.211 5.1, bit by bit."""
    order = {"qpsk": 2, "qam16": 4, "qam64": 6}[modulation]
    columns = bits.size // order
    f = np.empty_like(bits)
    for j in range(columns):
        for i in range(order):
            f[i + j * order] = bits[i * columns + j]
    b = 1.0 - 2.0 * f.reshape(columns, order).astype(np.float64)
    match order:
        case 2:
            return (b[:, 0] + 1j * b[:, 1]) / np.sqrt(2.0)
        case 4:
            return (b[:, 0] * (2 - b[:, 2]) + 1j * b[:, 1] * (2 - b[:, 3])) / np.sqrt(10.0)
        case _:
            real = b[:, 0] * (4 - b[:, 2] * (2 - b[:, 4]))
            return (real + 1j * b[:, 1] * (4 - b[:, 3] * (2 - b[:, 5]))) / np.sqrt(42.0)


def labels(modulation: str) -> tuple[Bits, Floats]:
    """The M bits of every amplitude of one dimension, and the amplitudes, from the mapping of the standard."""
    m = BITS_PER_DIMENSION[modulation]
    every = (np.arange(2**m)[:, None] >> np.arange(m) & 1).astype(np.uint8)
    sent = np.repeat(every, 2, axis=1)  # in-phase and quadrature bits alternate; both dimensions carry the same
    points = [standard_symbols(row, modulation)[0].real for row in sent]
    return every, np.sqrt(2.0) * np.array(points)


def reference_llr(z: NDArray[np.complex64], h: Floats, modulation: str, snr: float) -> Floats:
    """Log-likelihood ratios (N, n) in double precision from received points: exact for QPSK, max-log by enumeration else."""
    every, amplitudes = labels(modulation)
    y = np.concatenate([z.real, z.imag], axis=1).astype(np.float64)
    metric = -0.5 * snr * (y[..., None] - np.concatenate([h, h], axis=1)[..., None] * amplitudes) ** 2
    planes = [metric[..., every[:, k] == 0].max(-1) - metric[..., every[:, k] == 1].max(-1) for k in range(every.shape[1])]
    return np.concatenate(planes, axis=1)


def amplitude_gains(gains: NDArray[np.float32] | None, count: int, symbols: int) -> Floats:
    if gains is None:
        return np.ones((count, symbols))
    return np.sqrt(np.array([[row[s % row.size] for s in range(symbols)] for row in gains.astype(np.float64)]))


@pytest.mark.parametrize("modulation", NAMES)
def test_amplitudes_have_unit_mean_square_and_are_those_of_the_coding_points(modulation: str) -> None:
    amplitudes = np.sort(labels(modulation)[1])
    assert np.mean(amplitudes**2) == pytest.approx(1.0)
    assert np.diff(amplitudes) == pytest.approx(2.0 * UNITS[modulation])
    if modulation in MODULATIONS:
        assert amplitudes == pytest.approx(np.sort(MODULATIONS[modulation].amplitudes))


@pytest.mark.parametrize("modulation", NAMES)
def test_symbols_are_those_of_the_standard(modulation: str) -> None:
    coded, dither = bits_of(3, CODE_BITS), bits_of(1, CODE_BITS, seed=2)
    z = received(packed(coded), dither=packed(dither), modulation=modulation, path=path(200.0))
    wanted = [standard_symbols(row ^ dither[0], modulation) for row in coded]
    assert z == pytest.approx(np.sqrt(2.0) * np.array(wanted), abs=1e-6)


@pytest.mark.parametrize("modulation", NAMES)
@pytest.mark.parametrize("blocks", [None, 1, 3, 16, CODE_BITS // 6])
@pytest.mark.parametrize("dithers", [0, 1, 3])
def test_soft_values_are_the_rounded_likelihood_ratios(modulation: str, blocks: int | None, dithers: int) -> None:
    count, first = 8, 5
    coded, dither = bits_of(count, CODE_BITS), bits_of(max(1, dithers), CODE_BITS, seed=2) * min(1, dithers)
    gains = None if blocks is None else rayleigh(count, blocks)
    way = path(SNR_DB[modulation], gains=gains, first=first)
    z = received(packed(coded), dither=packed(dither), modulation=modulation, path=way)
    got = soft_values(packed(coded), dither=packed(dither), modulation=modulation, path=way)
    signs = 1.0 - 2.0 * dither[(first + np.arange(count)) % dither.shape[0]]
    llr = reference_llr(z, amplitude_gains(gains, count, z.shape[1]), modulation, way.snr)
    steps = np.clip(3.0 * llr, -127, 127) * signs
    assert np.all(np.abs(got - steps) <= 0.5 + 2e-4)
    assert (got == np.rint(steps)).mean() > 0.999


@pytest.mark.parametrize("modulation", NAMES)
def test_received_points_are_the_faded_symbols_plus_the_noise_of_the_codeword(modulation: str) -> None:
    coded, gains = bits_of(6, CODE_BITS), rayleigh(6, 5)
    way = path(2.0, gains=gains, first=9)
    z = received(packed(coded), dither=packed(coded[:1] * 0), modulation=modulation, path=way)
    symbols = z.shape[1]
    noise = normals(KEY, first=9, rows=6, length=2 * symbols) / np.sqrt(way.snr)
    clean = np.sqrt(2.0) * np.array([standard_symbols(row, modulation) for row in coded])
    wanted = amplitude_gains(gains, 6, symbols) * clean + noise[:, :symbols] + 1j * noise[:, symbols:]
    assert z == pytest.approx(wanted, abs=1e-5)


@pytest.mark.parametrize("modulation", NAMES)
def test_without_noise_the_bits_come_back(modulation: str) -> None:
    coded, dither = bits_of(4, CODE_BITS), bits_of(2, CODE_BITS, seed=2)
    for gains in (None, rayleigh(4, 7)):
        got = soft_values(packed(coded), dither=packed(dither), modulation=modulation, path=path(80.0, gains=gains))
        assert np.array_equal(got < 0, coded == 1)
        assert np.array_equal(np.abs(got), np.full(got.shape, 127))


@pytest.mark.parametrize("modulation", NAMES)
def test_a_dead_path_says_nothing(modulation: str) -> None:
    coded = bits_of(4, CODE_BITS)
    way = path(10.0, gains=np.zeros((4, 2), dtype=np.float32))
    assert not soft_values(packed(coded), dither=packed(coded), modulation=modulation, path=way).any()
    assert densities(packed(coded), dither=packed(coded), modulation=modulation, path=way) == pytest.approx(0.0, abs=1e-3)


def error_rates(modulation: str, snr: float) -> Floats:
    """Error rate of each of the M bits with hard decisions: the Gaussian mass over the decision regions where it differs."""
    every, amplitudes = labels(modulation)
    order = np.argsort(amplitudes)
    edges = np.concatenate([[-np.inf], (amplitudes[order][1:] + amplitudes[order][:-1]) / 2, [np.inf]])
    mass = np.diff(stats.norm.cdf((edges[None, :] - amplitudes[:, None]) * np.sqrt(snr)), axis=1)  # (sent, decided)
    wrong = every[:, None, :] != every[order][None, :, :]
    return (mass[..., None] * wrong).sum(axis=1).mean(axis=0)


def hard_decisions(z: NDArray[np.complex64], modulation: str) -> Bits:
    """Bits (N, n) of the nearest amplitudes, in the order of the code."""
    every, amplitudes = labels(modulation)
    y = np.concatenate([z.real, z.imag], axis=1)
    nearest = every[np.abs(y[..., None] - amplitudes).argmin(axis=-1)]
    return np.concatenate([nearest[..., k] for k in range(every.shape[1])], axis=1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("modulation", "snr_db"), [("qpsk", 0.0), ("qpsk", 9.0), ("qam16", 12.0), ("qam64", 6.0), ("qam64", 20.0)]
)
def test_uncoded_error_rates_are_those_of_theory(modulation: str, snr_db: float) -> None:
    coded, dither = bits_of(100, 9600), bits_of(4, 9600, seed=2)
    sent = packed(coded), packed(dither), path(snr_db)
    decided = hard_decisions(received(sent[0], dither=sent[1], modulation=modulation, path=sent[2]), modulation)
    wrong = decided != coded ^ dither[np.arange(100) % 4]
    for plane, rate in zip(
        np.split(wrong, BITS_PER_DIMENSION[modulation], axis=1), error_rates(modulation, sent[2].snr), strict=True
    ):
        assert stats.binomtest(int(plane.sum()), plane.size, rate).pvalue > 1e-5
    soft = soft_values(sent[0], dither=sent[1], modulation=modulation, path=sent[2])
    assert np.array_equal((soft < 0)[soft != 0], (decided ^ dither[np.arange(100) % 4] == 1)[soft != 0])


def test_qpsk_errors_follow_the_q_function() -> None:
    assert error_rates("qpsk", 4.0)[0] == pytest.approx(stats.norm.sf(2.0))


@pytest.mark.parametrize("modulation", NAMES)
@pytest.mark.parametrize("snr_db", [-10.0, 0.0, 12.0, 40.0])
@pytest.mark.parametrize("blocks", [None, 5])
def test_densities_are_those_of_the_received_points(modulation: str, snr_db: float, blocks: int | None) -> None:
    coded, dither = bits_of(6, CODE_BITS), bits_of(2, CODE_BITS, seed=2)
    gains = None if blocks is None else rayleigh(6, blocks)
    way = path(snr_db, gains=gains, first=3)
    z = received(packed(coded), dither=packed(dither), modulation=modulation, path=way)
    symbols = np.array([standard_symbols(row ^ dither[(3 + i) % 2], modulation) for i, row in enumerate(coded)])
    amplitudes = labels(modulation)[1]
    h = np.tile(amplitude_gains(gains, 6, z.shape[1]), 2)
    y, a = (np.concatenate([v.real, v.imag], axis=1) for v in (z.astype(np.complex128), np.sqrt(2.0) * symbols))
    exponents = -0.5 * way.snr * (y[..., None] - h[..., None] * amplitudes) ** 2
    own = -0.5 * way.snr * (y - h * a) ** 2
    wanted = (own - np.logaddexp.reduce(exponents, axis=-1) + np.log(amplitudes.size)).sum(axis=1) / np.log(2.0)
    got = densities(packed(coded), dither=packed(dither), modulation=modulation, path=way)
    assert got == pytest.approx(wanted, abs=2e-3)  # float32 points, against double precision


@pytest.mark.slow
@pytest.mark.parametrize("modulation", [name for name in NAMES if name in MODULATIONS])
@pytest.mark.parametrize("snr_db", [-5.0, 3.0, 10.0])
def test_densities_have_the_mean_and_the_variance_of_the_leakage_bound(modulation: str, snr_db: float) -> None:
    count = 2000
    law, dims = information_density(modulation, snr_db), 960 // BITS_PER_DIMENSION[modulation]
    coded, dither = bits_of(count, 960), bits_of(4, 960, seed=2)
    got = densities(packed(coded), dither=packed(dither), modulation=modulation, path=path(snr_db))
    assert abs(got.mean() - dims * law.mean) < Z * np.sqrt(dims * law.variance / count)
    fourth = ((got - got.mean()) ** 4).mean() / got.var() ** 2
    assert abs(got.var() / (dims * law.variance) - 1.0) < Z * np.sqrt((fourth - 1.0) / count)


@pytest.mark.slow
def test_faded_densities_have_the_mean_of_their_coherence_blocks() -> None:
    count, gains = 1000, np.array([0.1, 0.5, 1.0, 3.0], dtype=np.float32)
    way = path(2.0, gains=np.tile(gains, (count, 1)))
    got = densities(packed(bits_of(count, 960)), dither=packed(bits_of(1, 960)), modulation="qam16", path=way)
    laws = [information_density("qam16", 2.0 + 10.0 * float(np.log10(g))) for g in gains]
    mean, variance = 120 * sum(law.mean for law in laws), 120 * sum(law.variance for law in laws)
    assert abs(got.mean() - mean) < Z * np.sqrt(variance / count)


@pytest.mark.parametrize("modulation", NAMES)
def test_chunks_and_threads_change_nothing(modulation: str) -> None:
    coded, dither, gains = packed(bits_of(10, CODE_BITS)), packed(bits_of(3, CODE_BITS, seed=2)), rayleigh(10, 4)

    def way(start: int, stop: int) -> Path:
        return path(5.0, gains=gains[start:stop], first=2**31 + start)

    whole = soft_values(coded, dither=dither, modulation=modulation, path=way(0, 10), threads=3)
    dense = densities(coded, dither=dither, modulation=modulation, path=way(0, 10))
    for start, stop in ((0, 4), (4, 10)):
        part = coded[start:stop]
        assert np.array_equal(whole[start:stop], soft_values(part, dither=dither, modulation=modulation, path=way(start, stop)))
        assert np.array_equal(dense[start:stop], densities(part, dither=dither, modulation=modulation, path=way(start, stop)))


DIGEST = """
import hashlib
import numpy as np
from hushtune_common.link.modem import Path, soft_values
from hushtune_common.link.noise import NoiseKey, normals
coded, gains = np.arange(960, dtype=np.uint8).reshape(4, 240), np.linspace(0.1, 2.0, 12, dtype=np.float32).reshape(4, 3)
path = Path(snr=20.0, gains=gains, key=NoiseKey(1, 2), first=3)
soft = soft_values(coded, dither=coded[:2], modulation="qam64", path=path)
print(hashlib.sha256(soft.tobytes() + normals(NoiseKey(1, 2), first=3, rows=40, length=5000).tobytes()).hexdigest())
"""


@pytest.mark.slow
def test_the_plainest_processor_gives_the_same_bits(tmp_path: pathlib.Path) -> None:
    plain = {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": "", "NUMBA_CACHE_DIR": str(tmp_path)}
    runs = [
        subprocess.run([sys.executable, "-c", DIGEST], env=os.environ | more, capture_output=True, text=True, check=True)
        for more in ({}, plain)
    ]
    assert runs[0].stdout == runs[1].stdout


def test_read_only_bytes_are_taken_as_they_come() -> None:
    coded = packed(bits_of(4, CODE_BITS))
    frozen = np.frombuffer(coded.tobytes(), dtype=np.uint8).reshape(coded.shape)
    got = [
        soft_values(c, dither=frozen[:1], modulation="qpsk", path=path(3.0)) for c in (coded, frozen, np.asfortranarray(coded))
    ]
    assert np.array_equal(got[0], got[1])
    assert np.array_equal(got[0], got[2])


def test_nothing_sent_is_nothing_heard() -> None:
    none = np.empty((0, 120), dtype=np.uint8)
    assert soft_values(none, dither=packed(bits_of(1, 960)), modulation="qam64", path=path(3.0)).shape == (0, 960)


@pytest.mark.parametrize("snr", [0.0, -1.0, float("nan"), float("inf")])
def test_an_impossible_snr_is_refused(snr: float) -> None:
    with pytest.raises(ValueError, match="SNR"):
        Path(snr=snr, gains=None, key=KEY, first=0)


@pytest.mark.parametrize("gains", [[1.0], [[-1.0]], [[float("nan")]], [[]]])
def test_impossible_gains_are_refused(gains: list[float]) -> None:
    with pytest.raises(ValueError, match="gains"):
        path(3.0, gains=np.array(gains, dtype=np.float32))


@pytest.mark.parametrize(
    ("shape", "dither", "gains", "modulation"),
    [
        ((2, 120), (1, 119), None, "qpsk"),
        ((2, 120), (0, 120), None, "qpsk"),
        ((2, 121), (1, 121), None, "qam64"),
        ((2, 0), (1, 0), None, "qpsk"),
        ((2, 120), (1, 120), (3, 2), "qpsk"),
        ((2, 120), (1, 120), (2, 481), "qpsk"),
        ((2, 120), (1, 120), None, "8psk"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(
    shape: tuple[int, int], dither: tuple[int, int], gains: tuple[int, int] | None, modulation: str
) -> None:
    way = path(3.0, gains=None if gains is None else np.ones(gains, dtype=np.float32))
    with pytest.raises(ValueError, match=r"modulation|symbols|dither"):
        soft_values(np.zeros(shape, np.uint8), dither=np.zeros(dither, np.uint8), modulation=modulation, path=way)
