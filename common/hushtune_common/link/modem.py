"""What a listener hears of a codeword: mapping, fading, noise and the demapper's soft values.

Shapes: N codewords, D dithers (one per codeword of a hash block), B coherence blocks. A codeword has ``n`` coded bits, M per real
dimension, so n / M dimensions and half as many complex symbols.

The NR bit interleaver (TS 38.212, 5.4.2.2) writes the code bits by rows and reads symbols by columns; with the Gray mapping of
TS 38.211 (5.1) this makes dimension ``j`` carry sign bit ``j`` and magnitude bits ``n / M + j`` and ``2 n / M + j``, where the
first half of the dimensions are in phase, the second half in quadrature. So each pass below runs over contiguous memory.

Noise is simulated and repeatable, see ``noise``, so this is for studying listeners; it keeps no secret from who knows the key.
Like the noise, results are the same to the bit for every chunking and, since no arithmetic is fused or reordered, on every
processor that rounds as IEEE 754 says.
"""

from dataclasses import dataclass
from math import isfinite, log2, sqrt
from typing import Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from hushtune_common.link.kernels import kernel, spread
from hushtune_common.link.noise import TILE, NoiseKey, check_codewords, fill

Bytes = NDArray[np.uint8]
Single = NDArray[np.float32]
T = TypeVar("T", bound=np.generic)

BITS_PER_DIMENSION: Final = {"qpsk": 1, "qam16": 2, "qam64": 3}
"""M for each modulation."""
UNITS: Final = {"qpsk": 1.0, "qam16": 1.0 / sqrt(5.0), "qam64": 1.0 / sqrt(21.0)}
"""Half the distance between neighbouring amplitudes; amplitudes are odd multiples, of mean square 1."""
LLR_SCALE: Final = 3.0
"""Steps of a soft value per unit of log-likelihood ratio."""
LLR_MAX: Final = 127
"""Where soft values saturate, in steps."""
_SNR_RANGE: Final = (1e-30, 1e30)

_MASKS: Final = np.packbits(
    np.repeat(np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little"), 8, axis=1), axis=1
).view(np.uint64)[:, 0]
"""For each byte, its bits as eight bytes, lowest bit first: 0 for a clear bit and -1 for a set one."""
_CLIP: Final = np.float32(LLR_MAX)
_INTEGER: Final = np.float32(1.5 * 2.0**23)
"""Added to a float32 of magnitude below 2**22, leaves its nearest integer in the low bits of the sum."""
_ONE: Final = np.float32(1.0)
_TWO: Final = np.float32(2.0)
_THREE: Final = np.float32(3.0)
_FOUR: Final = np.float32(4.0)
_UNITS: Final = tuple(np.float32(u) for u in UNITS.values())

_EXPONENT: Final = np.int32(23)
_BIAS: Final = np.int32(127)
_ROOT_HALF_BITS: Final = np.int32(0x3F3504F3)  # the float32 next to sqrt(1/2), read as an integer
_SMALLEST: Final = np.float32(-126.0)
_HALF_LOG2_E: Final = np.float32(0.5 * log2(np.e))
# Minimax polynomials: 2**f for abs(f) <= 1/2, to 2e-9; log2(1 + f) / f for 1 + f from sqrt(1/2) to sqrt(2), to 4e-8.
_EXP2: Final = tuple(
    np.float32(c) for c in (1.0, 0.693147207, 0.240226515, 0.0555032722, 0.00961799451, 0.00134004317, 0.000154780220)
)
_LOG2: Final = tuple(
    np.float32(c)
    for c in (
        1.44269500,
        -0.721347199,
        0.480910280,
        -0.360716264,
        0.287939095,
        -0.238675678,
        0.215212249,
        -0.208933832,
        0.129264325,
    )
)


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
        low, high = _SNR_RANGE
        if not (isfinite(self.snr) and low <= self.snr <= high):
            raise ValueError(f"the SNR must lie between {low} and {high} (linear), got {self.snr}")
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


def soft_values(coded: Bytes, *, dither: Bytes, modulation: str, path: Path, threads: int = 1) -> NDArray[np.int8]:
    """Return the soft values (N, n) of codewords ``coded`` (N, n / 8), packed lowest bit first: positive means 0.

    Codeword ``path.first + i`` is sent as the constellation point of ``coded[i] XOR dither[(path.first + i) % D]``. The receiver
    knows the fading. Values are log-likelihood ratios (exact for QPSK, max-log otherwise) times ``LLR_SCALE``, rounded to the
    nearest integer and clipped to ``LLR_MAX``; the dither is already undone. ``ValueError`` when shapes do not fit.
    """
    job = _Job.of(coded, dither=dither, modulation=modulation, path=path)
    out = np.empty((coded.shape[0], 8 * coded.shape[1]), dtype=np.int8)

    def work(start: int, stop: int) -> None:
        _soft_rows(out[start:stop], *job.rows(start, stop), *job.law(start))

    spread(work, count=coded.shape[0], threads=threads)
    return out


def densities(coded: Bytes, *, dither: Bytes, modulation: str, path: Path) -> NDArray[np.float64]:
    """Return the realised information density of each codeword in bit, (N,): sum over dimensions of log2 W(z|a) / Q(z).

    ``Q`` is the output density for uniform amplitudes given the fading. Noise and arguments are those of ``soft_values``.
    Single precision within makes an error below 0.01 bit per codeword.
    """
    job = _Job.of(coded, dither=dither, modulation=modulation, path=path)
    out = np.empty(coded.shape[0])
    _density_rows(out, *job.rows(0, coded.shape[0]), *job.law(0))
    return out


def received(coded: Bytes, *, dither: Bytes, modulation: str, path: Path) -> NDArray[np.complex64]:
    """Return the received points (N, n / (2 M)): amplitude times fading plus noise, phase equalised, in symbol order.

    Noise and arguments are those of ``soft_values``.
    """
    job = _Job.of(coded, dither=dither, modulation=modulation, path=path)
    out = np.empty((coded.shape[0], job.dimensions // 2), dtype=np.complex64)
    _received_rows(out, *job.rows(0, coded.shape[0]), *job.law(0))
    return out


def _plain(values: NDArray[T], dtype: type[T]) -> NDArray[T]:
    """Return ``values`` contiguous and writable (a copy if they are not), the one form that is compiled for."""
    return np.require(values, dtype=dtype, requirements=["C", "W"])


@kernel
def _soft_rows(
    out: NDArray[np.int8],
    coded: Bytes,
    dither: Bytes,
    gains: Single,
    bits: int,
    snr: np.float32,
    high: np.uint64,
    low: np.uint64,
    first: np.uint64,
) -> None:
    n = out.shape[1]
    dims = n // bits
    sent, flip, words = np.empty(n // 8, dtype=np.uint64), np.empty(n // 8, dtype=np.uint64), np.empty(TILE, dtype=np.uint32)
    fading, a, z = np.ones(dims // 2, dtype=np.float32), np.empty(dims, dtype=np.float32), _scratch(dims)
    scale = np.float32(LLR_SCALE) * _TWO * snr * _UNITS[bits - 1]  # at a distance y from a border the LLR is 2 unit y / sigma**2
    for row in range(out.shape[0]):
        codeword = first + np.uint64(row)
        _spread_bits(sent, flip, coded[row], dither[np.int64(codeword) % dither.shape[0]])
        _map(a, sent.view(np.int8), bits)
        _fade(fading, gains[row])
        fill(z, words, high, low, codeword)
        _disturb(z, a, fading, _ONE / np.sqrt(snr))
        if bits == 1:
            _demap_qpsk(out[row], z, fading, flip.view(np.int8), scale)
        elif bits == 2:
            _demap_qam16(out[row], z, fading, flip.view(np.int8), scale)
        else:
            _demap_qam64(out[row], z, fading, flip.view(np.int8), scale)


@kernel
def _received_rows(
    out: NDArray[np.complex64],
    coded: Bytes,
    dither: Bytes,
    gains: Single,
    bits: int,
    snr: np.float32,
    high: np.uint64,
    low: np.uint64,
    first: np.uint64,
) -> None:
    symbols = out.shape[1]
    size = coded.shape[1]
    sent, flip, words = np.empty(size, dtype=np.uint64), np.empty(size, dtype=np.uint64), np.empty(TILE, dtype=np.uint32)
    fading, a, z = np.ones(symbols, dtype=np.float32), np.empty(2 * symbols, dtype=np.float32), _scratch(2 * symbols)
    for row in range(out.shape[0]):
        codeword = first + np.uint64(row)
        _spread_bits(sent, flip, coded[row], dither[np.int64(codeword) % dither.shape[0]])
        _map(a, sent.view(np.int8), bits)
        _fade(fading, gains[row])
        fill(z, words, high, low, codeword)
        _disturb(z, a, fading, _ONE / np.sqrt(snr))
        for s in range(symbols):
            out[row, s] = np.complex64(complex(z[s], z[symbols + s]))


@kernel
def _density_rows(
    out: NDArray[np.float64],
    coded: Bytes,
    dither: Bytes,
    gains: Single,
    bits: int,
    snr: np.float32,
    high: np.uint64,
    low: np.uint64,
    first: np.uint64,
) -> None:
    size = coded.shape[1]
    dims = 8 * size // bits
    sent, flip, words = np.empty(size, dtype=np.uint64), np.empty(size, dtype=np.uint64), np.empty(TILE, dtype=np.uint32)
    fading, a, noise = np.ones(dims // 2, dtype=np.float32), np.empty(dims, dtype=np.float32), _scratch(dims)
    total = _scratch(dims)
    for row in range(out.shape[0]):
        codeword = first + np.uint64(row)
        _spread_bits(sent, flip, coded[row], dither[np.int64(codeword) % dither.shape[0]])
        _map(a, sent.view(np.int8), bits)
        _fade(fading, gains[row])
        fill(noise, words, high, low, codeword)
        total[:dims], total[dims:] = np.float32(0.0), _ONE  # what is beyond the codeword adds log2(1)
        for k in range(1 << bits):
            _add_likelihood(total, a, noise, fading, np.float32(2 * k + 1 - (1 << bits)) * _UNITS[bits - 1], np.sqrt(snr))
        out[row] = dims * bits - _sum_of_logs(total)


@kernel
def _scratch(dims: int) -> Single:
    return np.empty(-(-dims // TILE) * TILE, dtype=np.float32)


@kernel
def _spread_bits(sent: NDArray[np.uint64], flip: NDArray[np.uint64], coded: Bytes, dither: Bytes) -> None:
    """Write one byte per bit, 0 or -1: of ``coded XOR dither`` to ``sent``, of ``dither`` to ``flip``."""
    for i in range(coded.size):
        sent[i] = _MASKS[coded[i] ^ dither[i]]
        flip[i] = _MASKS[dither[i]]


@kernel
def _map(a: Single, sent: NDArray[np.int8], bits: int) -> None:
    """Write the amplitudes; ``sent`` holds 0 or -1 per bit."""
    dims, unit = a.size, _UNITS[bits - 1]
    if bits == 1:
        for j in range(dims):
            a[j] = _ONE + _TWO * np.float32(sent[j])
    elif bits == 2:
        for j in range(dims):
            a[j] = (_ONE + _TWO * np.float32(sent[j])) * (_ONE - _TWO * np.float32(sent[dims + j])) * unit
    else:
        for j in range(dims):
            inner = (_ONE + _TWO * np.float32(sent[dims + j])) * (_ONE - _TWO * np.float32(sent[2 * dims + j]))
            a[j] = (_ONE + _TWO * np.float32(sent[j])) * (_FOUR - inner) * unit


@kernel
def _fade(fading: Single, gains: Single) -> None:
    """Write the amplitude gain of each symbol: coherence blocks take turns. No gains leave it as it is."""
    if gains.size:
        for b in range(gains.size):
            fading[b] = np.sqrt(gains[b])
        done = gains.size
        while done < fading.size:  # each copy doubles what is there, so that few and long copies do
            count = min(done, fading.size - done)
            fading[done : done + count] = fading[:count]
            done += count


@kernel
def _disturb(z: Single, a: Single, fading: Single, sigma: np.float32) -> None:
    """Turn the normals ``z`` into received values in place."""
    symbols = fading.size
    for half in range(2):
        start = half * symbols
        for s in range(symbols):
            z[start + s] = fading[s] * a[start + s] + sigma * z[start + s]


@kernel
def _quantised(value: np.float32, flip: np.int8) -> np.int8:
    """Round, clip, and change the sign where ``flip`` is -1."""
    clipped = min(max(value, -_CLIP), _CLIP)
    steps = np.float32(clipped + _INTEGER).view(np.int32)
    return np.int8((np.int8(steps) ^ flip) - flip)


@kernel
def _demap_qpsk(out: NDArray[np.int8], z: Single, fading: Single, flip: NDArray[np.int8], scale: np.float32) -> None:
    symbols = fading.size
    for half in range(2):
        start = half * symbols
        for s in range(symbols):
            out[start + s] = _quantised(scale * fading[s] * z[start + s], flip[start + s])


@kernel
def _demap_qam16(out: NDArray[np.int8], z: Single, fading: Single, flip: NDArray[np.int8], scale: np.float32) -> None:
    """With amplitudes of 1 and 3 units ``u``: sign ``max(|z|, 2 |z| - 2 u)`` with the sign of ``z``, magnitude ``2 u - |z|``."""
    symbols = fading.size
    dims = 2 * symbols
    for half in range(2):
        start = half * symbols
        for s in range(symbols):
            j = start + s
            slope, u = scale * fading[s], _UNITS[1] * fading[s]
            y = abs(z[j])
            sign = np.copysign(max(y, _TWO * (y - u)), z[j])
            out[j] = _quantised(slope * sign, flip[j])
            out[dims + j] = _quantised(slope * (_TWO * u - y), flip[dims + j])


@kernel
def _demap_qam64(out: NDArray[np.int8], z: Single, fading: Single, flip: NDArray[np.int8], scale: np.float32) -> None:
    """With amplitudes of 1, 3, 5 and 7 units: as 16-QAM around 0 for the sign, then twice around 4 units for the magnitude."""
    symbols = fading.size
    dims = 2 * symbols
    for half in range(2):
        start = half * symbols
        for s in range(symbols):
            j = start + s
            slope, u = scale * fading[s], _UNITS[2] * fading[s]
            y = abs(z[j])
            sign = np.copysign(max(max(y, _TWO * (y - u)), max(_THREE * (y - _TWO * u), _FOUR * (y - _THREE * u))), z[j])
            out[j] = _quantised(slope * sign, flip[j])
            inner = _FOUR * u - y
            w = abs(inner)
            out[dims + j] = _quantised(slope * np.copysign(max(w, _TWO * (w - u)), inner), flip[dims + j])
            out[2 * dims + j] = _quantised(slope * (_TWO * u - w), flip[2 * dims + j])


@kernel
def _add_likelihood(total: Single, a: Single, noise: Single, fading: Single, amplitude: np.float32, root_snr: np.float32) -> None:
    """Add ``W(z|amplitude) / W(z|a)`` of each dimension: exp(-d (2 noise + d) / 2), d their distance in deviations."""
    symbols = fading.size
    for half in range(2):
        start = half * symbols
        for s in range(symbols):
            j = start + s
            d = root_snr * fading[s] * (a[j] - amplitude)
            total[j] += _exp2(-_HALF_LOG2_E * d * (_TWO * noise[j] + d))


@kernel
def _sum_of_logs(values: Single) -> float:
    """Return the sum of base-2 logarithms of values of at least 1 (whole tiles); partial sums keep it exact and vectorised."""
    size = values.size // 2
    for j in range(size):
        values[j] = _log2(values[j] * values[size + j])
    while size % 2 == 0:
        size //= 2
        for j in range(size):
            values[j] += values[size + j]
    return values[:size].sum()


@kernel
def _exp2(x: np.float32) -> np.float32:
    clipped = max(x, _SMALLEST)
    shifted = np.float32(clipped + _INTEGER)
    f = clipped - (shifted - _INTEGER)
    power = np.int32(np.int32(shifted.view(np.int32)) + _BIAS)
    q = _EXP2[6]
    for k in range(5, -1, -1):
        q = q * f + _EXP2[k]
    return q * np.int32(power << _EXPONENT).view(np.float32)


@kernel
def _log2(x: np.float32) -> np.float32:
    bits = np.float32(x).view(np.int32)
    exponent = np.int32(np.int32(bits - _ROOT_HALF_BITS) >> _EXPONENT)
    f = np.int32(bits - np.int32(exponent << _EXPONENT)).view(np.float32) - _ONE
    q = _LOG2[8]
    for k in range(7, -1, -1):
        q = q * f + _LOG2[k]
    return np.float32(exponent) + f * q
