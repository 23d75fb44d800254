"""What does a listener hear of rows of codewords? The compiled half of ``modem``: mapping, fading, noise, demappers, densities.

All of it stands in one file, because machine code that is kept on disk is made anew when its own file changes, and not when one
that it calls does.

The NR bit interleaver (TS 38.212, 5.4.2.2) writes the code bits by rows and reads symbols by columns; with the Gray mapping of
TS 38.211 (5.1) this makes dimension ``j`` carry sign bit ``j`` and magnitude bits ``n / M + j`` and ``2 n / M + j``, where the
first half of the dimensions are in phase, the second half in quadrature. So each pass below runs over contiguous memory.
"""

from math import log2, sqrt
from typing import Final

import numpy as np
from numpy.typing import NDArray

from hushtune_common.link.kernels import kernel
from hushtune_common.link.noise import TILE, fill

Bytes = NDArray[np.uint8]
Single = NDArray[np.float32]
UNITS: Final = {"qpsk": 1.0, "qam16": 1.0 / sqrt(5.0), "qam64": 1.0 / sqrt(21.0)}
"""Half the distance between neighbouring amplitudes; amplitudes are odd multiples, of mean square 1."""
LLR_SCALE: Final = 3.0
"""Steps of a soft value per unit of log-likelihood ratio, before the receiver's gain."""
LLR_MAX: Final = 127
"""Where soft values saturate, in steps."""
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


@kernel
def soft_rows(
    out: NDArray[np.int8],
    coded: Bytes,
    dither: Bytes,
    gains: Single,
    bits: int,
    snr: np.float32,
    high: np.uint64,
    low: np.uint64,
    first: np.uint64,
    gain: np.float32,
) -> None:
    """Write the soft values of ``modem.soft_values``, ``gain`` times as many steps per unit as without gain control.

    ``first`` is the number of the first codeword of this run.
    """
    n = out.shape[1]
    dims = n // bits
    sent, flip, words = np.empty(n // 8, dtype=np.uint64), np.empty(n // 8, dtype=np.uint64), np.empty(TILE, dtype=np.uint32)
    fading, a, z = np.ones(dims // 2, dtype=np.float32), np.empty(dims, dtype=np.float32), _scratch(dims)
    scale = np.float32(LLR_SCALE) * _TWO * snr * _UNITS[bits - 1]  # at a distance y from a border the LLR is 2 unit y / sigma**2
    scale *= gain  # a power of two: exact, so that a gain of 1 changes no bit
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
def received_rows(
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
    """Write the received points of ``modem.received``; arguments as for `soft_rows`."""
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
def density_rows(
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
    """Write the information densities of ``modem.densities``; arguments as for `soft_rows`."""
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
