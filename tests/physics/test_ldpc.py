"""Is the code the one it claims to be, and does its decoder do exactly what is written, as well as theory wants?"""

import numpy as np
import pytest
from numpy.typing import NDArray

from hushtune_common.link.base_graph import INFO_COLUMNS, LIFTING, checks, rows_for
from hushtune_common.link.ldpc import CODE_BITS_MAX, INFO_BITS, INFO_BYTES, decode, encode

Bits = NDArray[np.uint8]  # (N, bits), one per byte
GRAPHS = [(8448, 4, 76), (9600, 5, 79), (10240, 7, 96), (12672, 13, 144), (16896, 24, 210), (25344, 46, 316)]
# code bits, symbol SNR in dB, iterations allowed; the second and fourth mix words that come back with words that do not
NOISY = [(10240, 6.0, 12), (10240, 5.2, 6), (10240, 3.0, 5), (16896, 1.7, 12), (25344, -0.6, 9), (9608, 6.5, 12), (8448, 9.0, 12)]


def random_words(count: int, *, seed: int = 1) -> Bits:
    return np.random.default_rng(seed).integers(0, 256, (count, INFO_BYTES), dtype=np.uint8)


def unpacked(packed: Bits) -> Bits:
    return np.unpackbits(packed, axis=1, bitorder="little")


def heard(words: Bits, *, code_bits: int, snr_db: float, seed: int = 2) -> NDArray[np.int8]:
    """Send over QPSK and white noise: the log likelihood ratios, three steps per unit."""
    amplitudes = 1.0 - 2.0 * unpacked(encode(words, code_bits=code_bits))
    snr = 10.0 ** (snr_db / 10.0)
    noisy = amplitudes + np.random.default_rng(seed).standard_normal(amplitudes.shape) / np.sqrt(snr)
    return np.clip(np.round(3.0 * 2.0 * snr * noisy), -127, 127).astype(np.int8)


def reference_decode(soft: NDArray[np.int8], *, code_bits: int, iterations: int) -> tuple[Bits, int]:
    """Decode one word in plain numpy as the module's docstring says: no packing, no copies, every turn a roll."""
    graph = checks(rows_for(code_bits))
    rows = [range(a, b) for a, b in zip(graph.start, graph.start[1:], strict=False)]
    entry = list(zip(graph.column, graph.shift, strict=True))
    flat = np.zeros(graph.columns * LIFTING, dtype=np.int64)
    flat[2 * LIFTING : 2 * LIFTING + code_bits] = soft.clip(-41, 41)
    posterior = flat.reshape(graph.columns, LIFTING)
    message = np.zeros((len(entry), LIFTING), dtype=np.int64)
    for count in range(1, iterations + 1):
        for row in rows:
            extrinsic = np.array([np.roll(posterior[entry[e][0]], -entry[e][1]) - message[e] for e in row]).clip(-127, 127)
            sizes = np.sort(np.abs(extrinsic), axis=0)
            least = np.where(np.abs(extrinsic) == sizes[0], sizes[1], sizes[0])
            negative = (extrinsic < 0) ^ (np.sum(extrinsic < 0, axis=0) % 2 == 1)
            message[row.start : row.stop] = np.where(negative, -1, 1) * np.minimum(least - (least >> 2), 42)
            for e, value in zip(row, (extrinsic + message[row.start : row.stop]).clip(-127, 127), strict=True):
                posterior[entry[e][0]] = np.roll(value, entry[e][1])
        bits = (posterior < 0).astype(np.uint8)
        parities = [np.bitwise_xor.reduce([np.roll(bits[entry[e][0]], -entry[e][1]) for e in row]) for row in rows]
        if np.all(posterior) and not np.any(parities):
            return np.packbits(bits[:INFO_COLUMNS], bitorder="little"), count
    return np.packbits((posterior < 0)[:INFO_COLUMNS], bitorder="little"), -iterations


@pytest.mark.parametrize(("code_bits", "rows", "entries"), GRAPHS)
def test_a_rate_uses_as_many_rows_and_entries_as_the_standard_gives_it(code_bits: int, rows: int, entries: int) -> None:
    graph = checks(rows_for(code_bits))
    assert (graph.rows, graph.columns, graph.column.size) == (rows, 22 + rows, entries)
    assert all(np.all(np.diff(graph.column[a:b]) > 0) for a, b in zip(graph.start, graph.start[1:], strict=False))


@pytest.mark.parametrize("rows", [3, 47])
def test_there_is_no_graph_without_its_core_or_beyond_its_table(rows: int) -> None:
    with pytest.raises(ValueError, match="4 to 46 rows"):
        checks(rows)


@pytest.mark.parametrize("rows", [4, 5, 7, 24, 46])
def test_every_codeword_passes_every_check(rows: int) -> None:
    words, graph = random_words(3), checks(rows)
    sent = unpacked(encode(words, code_bits=(20 + rows) * LIFTING))
    columns = np.concatenate([unpacked(words)[:, : 2 * LIFTING], sent], axis=1).reshape(3, graph.columns, LIFTING)
    for a, b in zip(graph.start, graph.start[1:], strict=False):
        turned = [np.roll(columns[:, graph.column[e]], -graph.shift[e], axis=1) for e in range(a, b)]
        assert not np.bitwise_xor.reduce(turned).any()


def test_the_code_is_linear() -> None:
    a, b = random_words(4, seed=3), random_words(4, seed=4)
    for code_bits in (9600, 10240, 25344):
        total = encode(a, code_bits=code_bits) ^ encode(b, code_bits=code_bits)
        assert np.array_equal(encode(a ^ b, code_bits=code_bits), total)


def test_information_is_sent_as_it_is_but_for_its_first_768_bits() -> None:
    words = random_words(3)
    assert np.array_equal(encode(words, code_bits=10240)[:, :960], words[:, 96:])


def test_bits_are_packed_with_the_least_significant_first() -> None:
    words = np.zeros((1, INFO_BYTES), dtype=np.uint8)
    words[0, (768 + 13) // 8] = 1 << ((768 + 13) % 8)
    assert np.flatnonzero(unpacked(encode(words, code_bits=10240))[0])[0] == 13


@pytest.mark.parametrize("code_bits", [8448, 8456, 9208, 9216, 10000, 10240, 10376, 25336])
def test_a_shorter_codeword_is_the_beginning_of_a_longer_one(code_bits: int) -> None:
    words = random_words(2)
    longest = encode(words, code_bits=CODE_BITS_MAX)
    assert np.array_equal(encode(words, code_bits=code_bits), longest[:, : code_bits // 8])


@pytest.mark.slow
@pytest.mark.parametrize(("code_bits", "snr_db", "iterations"), NOISY)
def test_the_decoder_is_the_written_schedule_bit_for_bit(code_bits: int, snr_db: float, iterations: int) -> None:
    soft = heard(random_words(4), code_bits=code_bits, snr_db=snr_db)
    words, used = decode(soft, code_bits=code_bits, iterations=iterations)
    for k in range(len(soft)):
        bits, count = reference_decode(soft[k], code_bits=code_bits, iterations=iterations)
        assert count == used[k]
        assert np.array_equal(words[k], bits)


@pytest.mark.slow
def test_the_written_schedule_holds_for_saturated_garbage_too() -> None:
    soft = np.random.default_rng(5).choice(np.array([-128, -127, -1, 0, 1, 127], dtype=np.int8), (3, 12672))
    words, used = decode(soft, code_bits=12672, iterations=4)
    assert list(used) == [-4, -4, -4]
    for k in range(len(soft)):
        assert np.array_equal(words[k], reference_decode(soft[k], code_bits=12672, iterations=4)[0])


def test_words_come_back_above_the_threshold() -> None:
    words = random_words(300)
    for code_bits, snr_db, iterations in ((10240, 5.8, 12), (16896, 2.2, 25), (25344, 0.2, 40)):
        got, used = decode(heard(words, code_bits=code_bits, snr_db=snr_db), code_bits=code_bits, iterations=iterations)
        assert np.array_equal(got, words)
        assert used.min() > 0


def test_no_word_comes_back_below_the_threshold() -> None:
    words = random_words(100)
    got, used = decode(heard(words, code_bits=10240, snr_db=4.6), code_bits=10240, iterations=12)
    assert np.all(used == -12)
    assert np.all(np.any(got != words, axis=1))


def test_the_block_error_rate_in_the_waterfall_is_the_known_one() -> None:
    words, known = random_words(1000), 0.285  # at 5.2 dB, measured over 6000 blocks by a separate program
    got, _ = decode(heard(words, code_bits=10240, snr_db=5.2), code_bits=10240, iterations=12)
    wrong = np.mean(np.any(got != words, axis=1))
    assert abs(wrong - known) < 4.0 * np.sqrt(known * (1.0 - known) * (1 / 1000 + 1 / 6000))


def test_whether_a_word_fails_depends_on_the_noise_only() -> None:
    words, code_bits = random_words(100), 10240
    soft = heard(words, code_bits=code_bits, snr_db=5.2)
    signs = 1 - 2 * unpacked(encode(words, code_bits=code_bits)).astype(np.int8)
    sent, used = decode(soft, code_bits=code_bits, iterations=12)
    silent, used_silent = decode(soft * signs, code_bits=code_bits, iterations=12)
    assert np.array_equal(used, used_silent)
    assert np.array_equal((sent ^ silent)[used > 0], words[used > 0])


def test_the_least_signed_byte_counts_as_minus_127() -> None:
    soft = heard(random_words(8), code_bits=10240, snr_db=11.0)
    assert np.any(soft == -127)
    again = decode(np.where(soft == -127, np.int8(-128), soft), code_bits=10240, iterations=12)
    assert all(np.array_equal(a, b) for a, b in zip(decode(soft, code_bits=10240, iterations=12), again, strict=True))


@pytest.mark.parametrize("threads", [2, 3, 16])
def test_threads_change_nothing(threads: int) -> None:
    words = random_words(7)
    soft = heard(words, code_bits=10240, snr_db=5.3)
    alone, spread = (decode(soft, code_bits=10240, iterations=12, threads=n) for n in (1, threads))
    assert np.array_equal(encode(words, code_bits=10240, threads=threads), encode(words, code_bits=10240))
    assert all(np.array_equal(a, b) for a, b in zip(alone, spread, strict=True))


def test_read_only_strided_and_misplaced_arrays_are_taken_as_they_are() -> None:
    words = random_words(6)
    buffer = np.frombuffer(b"." + words.tobytes(), dtype=np.uint8, offset=1).reshape(words.shape)
    soft = heard(words, code_bits=10240, snr_db=7.0)
    reversed_rows = np.ascontiguousarray(soft[::-1])[::-1]
    assert np.array_equal(encode(buffer, code_bits=10240), encode(words, code_bits=10240))
    assert np.array_equal(decode(reversed_rows[::2], code_bits=10240, iterations=12)[0], words[::2])


def test_of_no_words_there_are_no_codewords() -> None:
    nothing = encode(random_words(0), code_bits=10240)
    words, used = decode(np.zeros((0, 10240), dtype=np.int8), code_bits=10240, iterations=12)
    assert (nothing.shape, words.shape, used.shape) == ((0, 1280), (0, INFO_BYTES), (0,))


@pytest.mark.parametrize("code_bits", [INFO_BITS - 8, 10241, CODE_BITS_MAX + 8, 0, -8])
def test_code_lengths_that_do_not_exist_are_refused(code_bits: int) -> None:
    with pytest.raises(ValueError, match="code bits"):
        encode(random_words(1), code_bits=code_bits)
    with pytest.raises(ValueError, match="code bits"):
        decode(np.zeros((1, max(code_bits, 0)), dtype=np.int8), code_bits=code_bits, iterations=12)


@pytest.mark.parametrize("shape", [(1, INFO_BYTES - 1), (1, INFO_BYTES + 1), (INFO_BYTES,), (1, 1, INFO_BYTES)])
def test_words_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="words are uint8"):
        encode(np.zeros(shape, dtype=np.uint8), code_bits=10240)


@pytest.mark.parametrize("shape", [(1, 10239), (1, 10248), (10240,), (1, 1, 10240)])
def test_soft_bits_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="soft bits are int8"):
        decode(np.zeros(shape, dtype=np.int8), code_bits=10240, iterations=12)


def test_soft_bits_of_another_type_are_refused() -> None:
    with pytest.raises(ValueError, match="soft bits are int8"):
        decode(np.zeros((1, 10240), dtype=np.uint8).view(np.bool_), code_bits=10240, iterations=12)  # pyright: ignore[reportArgumentType]  # the point


@pytest.mark.parametrize("iterations", [0, -1, 1001])
def test_iterations_out_of_bounds_are_refused(iterations: int) -> None:
    with pytest.raises(ValueError, match="iterations"):
        decode(np.zeros((1, 10240), dtype=np.int8), code_bits=10240, iterations=iterations)
