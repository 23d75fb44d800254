"""What a listener hears of a codeword: mapping, fading, noise and the demapper's soft values.

Shapes: N codewords, D dithers (one per codeword of a hash block), B coherence blocks. A codeword has ``n`` coded bits, M per real
dimension, so n / M dimensions and half as many complex symbols.

Noise is simulated and repeatable, see ``noise``, so this is for studying listeners; it keeps no secret from who knows the key.
Like the noise, results are the same to the bit for every chunking and, since no arithmetic is fused or reordered, on every
processor that rounds as IEEE 754 says.
"""

from dataclasses import dataclass
from math import isfinite
from typing import Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from hushtune_common.link.kernels import spread
from hushtune_common.link.modem_kernels import Bytes, Single, density_rows, received_rows, soft_rows
from hushtune_common.link.noise import NoiseKey, check_codewords

T = TypeVar("T", bound=np.generic)
BITS_PER_DIMENSION: Final = {"qpsk": 1, "qam16": 2, "qam64": 3}
"""M for each modulation."""
_SNR_RANGE: Final = (1e-30, 1e30)
_SNR_FULL: Final = {"qpsk": 0.25, "qam16": 1.0, "qam64": 2.0}
"""From which SNR on (linear) rounding costs less than 1 % of the information without gain: far below what decodes."""
_DOUBLINGS: Final = 64
"""Enough for the least SNR that a path may have."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Path:
    """What one listener's channel does to a run of codewords.

    ``snr`` is the mean symbol SNR Es/N0 (linear): with amplitudes of mean square 1 each real dimension gets noise of variance
    1 / snr. ``gains`` (N, B) are power gains of each codeword's coherence blocks, of unit mean, or None for white noise alone;
    symbol ``s`` lies in coherence block ``s % B``. The noise of the codewords ``first``, ``first + 1``, ... is that of ``key``.
    """

    snr: float
    gains: Single | None
    key: NoiseKey
    first: int

    def __post_init__(self) -> None:
        """Check ranges."""
        _check_snr(self.snr)
        check_codewords(self.first, 0)
        gains = self.gains
        if gains is not None and (gains.ndim != 2 or gains.shape[1] < 1 or not np.all((gains >= 0.0) & np.isfinite(gains))):
            raise ValueError("gains must be finite and at least 0, of shape (codewords, coherence blocks)")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Job:
    """Checked arguments in the form that compiled code takes."""

    coded: Bytes
    dither: Bytes
    gains: Single
    bits: int
    snr: np.float32
    key: tuple[np.uint64, np.uint64]
    first: int

    @staticmethod
    def of(coded: Bytes, *, dither: Bytes, modulation: str, path: Path) -> "_Job":
        if modulation not in BITS_PER_DIMENSION:
            raise ValueError(f"unknown modulation {modulation!r}")
        bits = BITS_PER_DIMENSION[modulation]
        count, size = coded.shape
        if not size or 8 * size % (2 * bits):
            raise ValueError(f"{8 * size} code bits are no whole number of {modulation} symbols")
        if dither.ndim != 2 or dither.shape[0] < 1 or dither.shape[1] != size:
            raise ValueError(f"the dither must have rows of {size} bytes like the codewords, got {dither.shape}")
        gains = np.empty((count, 0), dtype=np.float32) if path.gains is None else path.gains
        if gains.shape[0] != count or gains.shape[1] > 4 * size // bits:
            raise ValueError(f"gains {gains.shape} do not fit {count} codewords of {4 * size // bits} symbols")
        check_codewords(path.first, count)
        return _Job(
            coded=_plain(coded, np.uint8),
            dither=_plain(dither, np.uint8),
            gains=_plain(gains, np.float32),
            bits=bits,
            snr=np.float32(path.snr),
            key=path.key.words,
            first=path.first,
        )

    @property
    def dimensions(self) -> int:
        return 8 * self.coded.shape[1] // self.bits

    def rows(self, start: int, stop: int) -> tuple[Bytes, Bytes, Single]:
        return self.coded[start:stop], self.dither, self.gains[start:stop]

    def law(self, start: int) -> tuple[int, np.float32, np.uint64, np.uint64, np.uint64]:
        return self.bits, self.snr, *self.key, np.uint64(self.first + start)


def gain_log2(modulation: str, *, snr: float) -> int:
    """Return the base-2 logarithm of a receiver's gain at a mean SNR (linear): 0 where soft values fill their range without.

    Below, the fewest doublings that make values as large as they are where gain begins: amplitudes of log-likelihood ratios
    fall with the root of the SNR, so one doubling makes up for a factor of 4. Depends on nothing that is secret.
    ``ValueError`` for a modulation or an SNR that there is not.
    """
    if modulation not in _SNR_FULL:
        raise ValueError(f"unknown modulation {modulation!r}")
    _check_snr(snr)
    return next(k for k in range(_DOUBLINGS) if snr * 4.0**k >= _SNR_FULL[modulation])


def soft_values(coded: Bytes, *, dither: Bytes, modulation: str, path: Path, threads: int = 1) -> NDArray[np.int8]:
    """Return the soft values (N, n) of codewords ``coded`` (N, n / 8), packed lowest bit first: positive means 0.

    Codeword ``path.first + i`` is sent as the constellation point of ``coded[i] XOR dither[(path.first + i) % D]``. The receiver
    knows the fading. Values are log-likelihood ratios (exact for QPSK, max-log otherwise) times ``LLR_SCALE`` and the gain, 2 to
    the `gain_log2` of modulation and ``path.snr``, rounded to the nearest integer and clipped to ``LLR_MAX``; the dither is
    already undone. ``ValueError`` when shapes do not fit.
    """
    job = _Job.of(coded, dither=dither, modulation=modulation, path=path)
    gain = np.float32(2.0 ** gain_log2(modulation, snr=path.snr))
    out = np.empty((coded.shape[0], 8 * coded.shape[1]), dtype=np.int8)

    def work(start: int, stop: int) -> None:
        soft_rows(out[start:stop], *job.rows(start, stop), *job.law(start), gain)

    spread(work, count=coded.shape[0], threads=threads)
    return out


def densities(coded: Bytes, *, dither: Bytes, modulation: str, path: Path) -> NDArray[np.float64]:
    """Return the realised information density of each codeword in bit, (N,): sum over dimensions of log2 W(z|a) / Q(z).

    ``Q`` is the output density for uniform amplitudes given the fading. Noise and arguments are those of ``soft_values``.
    Single precision within makes an error below 0.01 bit per codeword.
    """
    job = _Job.of(coded, dither=dither, modulation=modulation, path=path)
    out = np.empty(coded.shape[0])
    density_rows(out, *job.rows(0, coded.shape[0]), *job.law(0))
    return out


def received(coded: Bytes, *, dither: Bytes, modulation: str, path: Path) -> NDArray[np.complex64]:
    """Return the received points (N, n / (2 M)): amplitude times fading plus noise, phase equalised, in symbol order.

    Noise and arguments are those of ``soft_values``.
    """
    job = _Job.of(coded, dither=dither, modulation=modulation, path=path)
    out = np.empty((coded.shape[0], job.dimensions // 2), dtype=np.complex64)
    received_rows(out, *job.rows(0, coded.shape[0]), *job.law(0))
    return out


def _check_snr(snr: float) -> None:
    low, high = _SNR_RANGE
    if not (isfinite(snr) and low <= snr <= high):
        raise ValueError(f"the SNR must lie between {low} and {high} (linear), got {snr}")


def _plain(values: NDArray[T], dtype: type[T]) -> NDArray[T]:
    """Return ``values`` contiguous and writable (a copy if they are not), the one form that is compiled for."""
    return np.require(values, dtype=dtype, requirements=["C", "W"])
