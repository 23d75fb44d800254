"""Do the parts of the rate-distortion codec do what textbooks say: turns, reflections, entropy coding, exact distances?"""

from fractions import Fraction

import constriction
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from scipy.linalg import block_diag, hadamard

from hushtune_common.adapter import Float32
from hushtune_common.codec import entropy
from hushtune_common.codec.ans import Decoder, Quantiles
from hushtune_common.codec.classes import foretold
from hushtune_common.codec.coordinates import Coordinates
from hushtune_common.codec.entropy import ALPHABET_MAX, Reader, Table
from hushtune_common.codec.lossless import distances, moved
from hushtune_common.codec.reflectors import Reflectors
from hushtune_common.codec.rotation import signs, turn, turn_back
from hushtune_common.codec.sensitivity import TensorSensitivity
from hushtune_common.errors import MalformedUpdate
from tests.codecs import dense, same_bits

Float64 = NDArray[np.float64]


def drawn(seed: int, *shape: int) -> Float32:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def sylvester(rows: int) -> Float64:
    """The matrix that turns so many rows: Hadamard matrices of 64, then of the powers of two that the rest is made of."""
    sizes = [64] * (rows // 64) + [1 << b for b in range(5, -1, -1) if rows % 64 >> b & 1]
    return np.asarray(block_diag(*(hadamard(n) / np.sqrt(n) for n in sizes)), dtype=np.float64)


@pytest.mark.parametrize(("rows", "columns"), [(64, 32), (128, 5), (39, 33), (1, 70), (70, 1), (103, 40), (63, 3)])
def test_a_turn_is_a_product_with_hadamard_matrices_run_by_run_and_column_by_column(rows: int, columns: int):
    matrix, by_row, by_column = drawn(1, rows, columns), np.exp2(drawn(2, rows)), np.exp2(drawn(3, columns))
    out, back = np.empty(rows * columns, np.float32), np.empty_like(matrix)
    turn(matrix, row_scale=by_row, column_scale=by_column, out=out)
    whole = sylvester(rows) @ (matrix.astype(np.float64) * by_column * by_row[:, None])
    wanted = np.concatenate([whole[first : first + 64].T.ravel() for first in range(0, rows, 64)])
    np.testing.assert_allclose(out, wanted, atol=2e-6 * np.abs(wanted).max())
    turn_back(out, row_scale=np.reciprocal(by_row), column_scale=np.reciprocal(by_column), out=back)
    np.testing.assert_allclose(back, matrix, atol=1e-5)


def test_the_signs_are_the_first_bits_of_splitmix64():
    published = (0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F, 0xF88BB8A8724C81EC, 0x1B39896A51A8749B)
    assert signs(5).tolist() == [-1.0 if z >> 63 else 1.0 for z in published]
    assert abs(float(signs(1 << 14).mean())) < 4 / 2**7  # four standard deviations of fair coins


@given(st.integers(0, 1000), st.integers(1, 12), st.integers(1, 12))
def test_reflections_are_the_dense_orthogonal_matrix_of_the_textbook(seed: int, size: int, count: int):
    basis, _ = np.linalg.qr(np.random.default_rng(seed).standard_normal((size, size)))
    directions = np.ascontiguousarray(basis[:, : min(count, size)].T, dtype=np.float32)
    found, whole = Reflectors.along(directions), dense(directions)
    matrix, covariance = drawn(seed, 5, size), np.cov(drawn(seed + 1, size, 3 * size)).reshape(size, size)
    np.testing.assert_allclose(found.forth(matrix), matrix @ whole, atol=2e-5)
    there = found.forth(matrix)
    found.back(there)
    np.testing.assert_allclose(there, matrix, atol=2e-5)
    np.testing.assert_allclose(whole.T @ whole, np.eye(size), atol=1e-6)
    np.testing.assert_allclose(found.variances(covariance), np.diag(whole.T @ covariance @ whole), atol=1e-5)


def test_the_axes_of_the_pivots_go_to_the_directions_and_all_others_stay_close():
    basis, _ = np.linalg.qr(np.random.default_rng(4).standard_normal((200, 3)))
    found = Reflectors.along(np.ascontiguousarray(basis.T, dtype=np.float32))
    whole = found.forth(np.eye(200, dtype=np.float32))  # its rows are where the axes' coefficients go: this is Q
    for direction, pivot in zip(basis.T, found.pivots, strict=True):
        assert abs(float(whole[:, pivot] @ direction)) == pytest.approx(1.0, abs=1e-5)
    others = [j for j in range(200) if j not in found.pivots]
    assert np.abs(np.diag(whole)[others]).min() > 0.8


def test_along_an_axis_nothing_but_signs_changes():
    found = Reflectors.along(np.eye(2, 6, 3, dtype=np.float32))
    assert found.pivots == (3, 4)
    np.testing.assert_allclose(np.abs(found.forth(np.eye(6, dtype=np.float32))), np.eye(6), atol=1e-7)


@settings(max_examples=30)
@given(st.integers(0, 1000), st.integers(1, 130), st.integers(1, 40))
def test_the_length_in_coordinates_is_what_the_loss_minds_and_back_is_the_way_back(seed: int, rows: int, columns: int):
    rng = np.random.default_rng(seed)
    axes, _ = np.linalg.qr(rng.standard_normal((columns, min(3, columns))))
    by_row, by_column = (np.exp2(rng.uniform(-4, 4, n)).astype(np.float32) for n in (rows, columns))
    along = np.ascontiguousarray(axes.T, dtype=np.float32)
    found = Coordinates.of((rows, columns), TensorSensitivity(rows=by_row, columns=by_column, directions=along))
    change, turned = drawn(seed, rows, columns), np.empty(rows * columns, np.float32)
    found.forth(change, out=turned)
    minded = float((by_row[:, None] * by_column * (change @ dense(along)) ** 2).sum())
    assert float(np.square(turned, dtype=np.float64).sum()) == pytest.approx(minded, rel=1e-4)
    assert found.variances(turned).sum() * rows == pytest.approx(minded, rel=1e-4)
    np.testing.assert_allclose(found.back(turned, scale=2.0), 2.0 * change, atol=1e-4)


DISTRIBUTIONS = {
    "one of a hundred": (0.99, 0.01),
    "signs and zeros": (0.02, 0.95, 0.03),
    "eight even ones": (0.125,) * 8,
    "a discrete normal": tuple(np.exp(-((np.arange(41) - 20) ** 2) / 40.0)),
    "a wide one": tuple(np.exp(-np.abs(np.arange(1001) - 500) / 80.0)),
}


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_the_words_are_within_one_percent_of_the_entropy_of_what_they_say(name: str):
    share = np.array(DISTRIBUTIONS[name]) / sum(DISTRIBUTIONS[name])
    numbers = (np.random.default_rng(5).choice(share.size, size=150_001, p=share) - share.size // 2).astype(np.int16)
    table, seen = Table.of(numbers), np.unique(numbers, return_counts=True)[1] / numbers.size
    written = entropy.write([(table, numbers)])
    ideal = -float((seen * np.log2(seen)).sum()) * numbers.size / 8
    assert ideal - 8 <= len(written) <= 1.01 * ideal + 8
    assert entropy.read(written, [(table, numbers.size)])[0].tolist() == numbers.tolist()


streams = st.lists(
    st.integers(1, 400).flatmap(
        lambda spread: hnp.arrays(np.int16, st.integers(0, 60), elements=st.integers(-(spread // 2), spread))
    ),
    max_size=5,
)


@settings(max_examples=100)
@given(streams)
def test_streams_of_any_alphabets_come_back_from_their_words_and_tables(numbers: list[NDArray[np.int16]]):
    tables = [Table.of(n) for n in numbers]
    reader = Reader(b"".join(t.to_bytes() for t in tables))
    read = [reader.table() for _ in tables]
    reader.end()
    words = entropy.write(list(zip(tables, numbers, strict=True)))
    found = entropy.read(words, [(t, n.size) for t, n in zip(read, numbers, strict=True)])
    assert [f.tolist() for f in found] == [n.tolist() for n in numbers]
    with pytest.raises(MalformedUpdate):
        entropy.read(words + b"\1\0\0\0", [(t, n.size) for t, n in zip(read, numbers, strict=True)])


@pytest.mark.parametrize("size", [2, 3, 9, 256, 1023, 4096, 6561])
@settings(max_examples=40)
@given(st.integers(0, 1 << 30), st.integers(0, 30), st.floats(0.0, 30.0), st.sampled_from([0.1, 1.0]))
def test_words_are_read_as_the_library_reads_them_whoever_wrote_them(size: int, seed: int, count: int, skew: float, kept: float):
    rng = np.random.default_rng(seed)
    shares = rng.random(size) ** skew * (rng.random(size) < kept)
    shares[rng.integers(size)] += 1e-9
    words = rng.integers(0, 1 << 32, count, dtype=np.uint64).astype(np.uint32)
    words[-1:] |= np.uint32(1)
    library = constriction.stream.stack.AnsCoder(words)
    model = constriction.stream.model.Categorical(shares, perfect=False)
    ours, quantiles, digits = Decoder(words), Quantiles.of(shares), np.arange(size, dtype=np.int16)[:, None]
    for some in (3, 0, 40):  # also past the end of the words
        found = np.empty(some, np.int16)
        ours.read(quantiles, digits, out=found)
        assert found.tolist() == library.decode(model, some).tolist()
        assert ours.is_empty == library.is_empty()


def test_words_that_no_coder_writes_are_malformed():
    table = Table(low=0, weights=(1, 1))
    for words, why in ((b"\1\0\0", "whole number of words"), (b"\1\0\0\0\0\0\0\0", "last word"), (b"\1\2\3\4" * 9, "left over")):
        with pytest.raises(MalformedUpdate, match=why):
            entropy.read(words, [(table, 8)])


@pytest.mark.parametrize(
    ("low", "weights"),
    [(0, ()), (0, (0, 0)), (0, (1,) * (ALPHABET_MAX + 1)), (-0x8001, (1, 1)), (0x7FFF, (1, 1)), (0, (2, -1))],
)
def test_an_alphabet_that_nothing_can_be_written_with_is_refused(low: int, weights: tuple[int, ...]):
    with pytest.raises(ValueError, match=r"alphabet|16 bits"):
        Table(low=low, weights=weights)


@given(st.lists(st.tuples(st.integers(1, 22), st.integers(0, 30)), min_size=1, max_size=4), st.data())
def test_low_bits_fill_whole_bytes_from_the_lowest_bit_on(parts: list[tuple[int, int]], data: st.DataObject):
    lows = [data.draw(hnp.arrays(np.uint32, n, elements=st.integers(0, (1 << bits) - 1))) for bits, n in parts]
    packed = entropy.pack_lows([(low, bits) for low, (bits, _) in zip(lows, parts, strict=True)])
    by_hand = b"".join(
        sum(int(v) << (bits * i) for i, v in enumerate(low)).to_bytes(-(-bits * n // 8), "little")
        for low, (bits, n) in zip(lows, parts, strict=True)
    )
    sizes = [(n, bits) for bits, n in parts]
    assert packed == by_hand
    assert [u.tolist() for u in entropy.unpack_lows(packed, sizes)] == [low.tolist() for low in lows]
    with pytest.raises(MalformedUpdate, match="low bits, expected"):
        entropy.unpack_lows(packed + b"\0", sizes)


def test_padding_after_the_low_bits_must_be_empty():
    packed = entropy.pack_lows([(np.array([1, 2, 3], np.uint32), 3)])
    with pytest.raises(MalformedUpdate, match="padding"):
        entropy.unpack_lows(packed[:1] + bytes([packed[1] | 0x80]), [(3, 3)])


patterns = hnp.arrays(np.uint32, st.integers(1, 40), elements=st.integers(0, (1 << 32) - 1))


@given(patterns, st.data())
def test_any_pattern_comes_back_from_its_distance_to_any_other(returned: NDArray[np.uint32], data: st.DataObject):
    finite = st.integers(0, 0x7F7FFFFF) | st.integers(0x80000000, 0xFF7FFFFF)
    shipped = data.draw(hnp.arrays(np.uint32, returned.size, elements=finite)).view(np.float32)
    lengths, bits = distances(returned.view(np.float32), shipped)
    assert same_bits(moved(shipped, lengths, bits), returned.view(np.float32))


@given(st.floats(-(2.0**127), 2.0**127, width=32), st.integers(-5, 5))
def test_a_distance_counts_the_floats_between_and_is_as_long_as_that_number(value: float, steps: int):
    shipped = returned = np.array([value if value else 0.0], np.float32)
    for _ in range(abs(steps)):
        returned = np.nextafter(returned, np.float32(np.inf if steps > 0 else -np.inf))
    crossed = abs(Fraction(float(returned[0]))) > 0 and np.signbit(returned[0]) != np.signbit(shipped[0])
    lengths, bits = distances(returned, shipped)
    away = steps + (np.sign(steps) if crossed else 0)  # there are two zeros
    folded = 2 * away if away >= 0 else -2 * away - 1
    exponent = int(shipped.view(np.uint32)[0]) >> 23 & 0xFF
    assert int(lengths[0]) - exponent == int(folded).bit_length()
    assert len(bits) == -(-max(0, int(folded).bit_length() - 1) // 8)


@given(st.integers(-400, 400), hnp.arrays(np.float32, 9, elements=st.floats(2.0**-24, 2.0**24, width=32)))
def test_the_class_that_both_sides_foretell_is_the_nearest_whole_octave(quarter: int, columns: Float32):
    octaves = np.log2(columns.astype(np.float64)) + quarter / 4
    found = foretold(columns, quarter=quarter)
    assert (np.abs(found - octaves) <= 0.5 + 1e-9).all()
