"""Is the hash the Toeplitz matrix that it is said to be, and does it collide as seldom as a universal hash must?"""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.signal import fftconvolve

from hushtune_common.link.toeplitz import Toeplitz

Bytes = NDArray[np.uint8]
Bits = NDArray[np.uint8]


def dense(seed_bits: Bits, *, message_bits: int, random_bits: int) -> Bits:
    """The definition: row i and column j hold seed bit i - j + r - 1."""
    return seed_bits[np.arange(message_bits)[:, None] - np.arange(random_bits)[None, :] + random_bits - 1]


def bits_of(packed: Bytes) -> Bits:
    return np.unpackbits(packed, axis=1, bitorder="little")


def some(count: int, message_bits: int, random_bits: int, *, seed: int = 0) -> tuple[bytes, Bytes]:
    rng = np.random.default_rng(seed)
    return rng.bytes((message_bits + random_bits) // 8), rng.integers(0, 256, (count, random_bits // 8), dtype=np.uint8)


def by_convolution(seed: bytes, x2: Bytes, *, message_bits: int) -> Bytes:
    """The product as a polynomial product over the integers (by FFT), taken modulo 2."""
    random_bits = 8 * x2.shape[1]
    s = np.unpackbits(np.frombuffer(seed, dtype=np.uint8)).astype(np.float64)
    whole = fftconvolve(s[None, :], bits_of(x2).astype(np.float64), axes=1)
    part = np.rint(whole[:, random_bits - 1 : random_bits - 1 + message_bits]).astype(np.int64)
    return np.packbits((part & 1).astype(np.uint8), axis=1, bitorder="little")


def test_over_all_seeds_every_difference_takes_every_value_equally_often() -> None:
    b, r = 3, 4
    seeds = [np.array(s, dtype=np.uint8) for s in itertools.product((0, 1), repeat=b + r - 1)]
    for difference in list(itertools.product((0, 1), repeat=r))[1:]:
        values = [tuple(dense(s, message_bits=b, random_bits=r) @ np.array(difference) % 2) for s in seeds]
        assert {values.count(v) for v in itertools.product((0, 1), repeat=b)} == {len(seeds) // 2**b}


@pytest.mark.slow
@given(message=st.integers(1, 200), random=st.integers(1, 200), rows=st.integers(1, 5), seed=st.integers(0, 9))
def test_the_fast_product_is_the_dense_one(message: int, random: int, rows: int, seed: int) -> None:
    b, r = 8 * message, 8 * random
    public, x2 = some(rows, b, r, seed=seed)
    matrix = dense(np.unpackbits(np.frombuffer(public, dtype=np.uint8)), message_bits=b, random_bits=r).astype(np.int64)
    expected = bits_of(x2) @ matrix.T % 2
    assert np.array_equal(bits_of(Toeplitz(public, message_bits=b, random_bits=r).multiply(x2)), expected)


@pytest.mark.parametrize(
    ("message_bits", "random_bits"),
    [(304, 120), (5744, 2704), (2664, 5784), (4096, 4096), (4104, 4088), (24384, 9408), (9408, 24384), (100_200, 34_968)],
)
def test_the_fast_product_is_the_convolution_at_the_sizes_of_designs(message_bits: int, random_bits: int) -> None:
    public, x2 = some(3, message_bits, random_bits)
    product = Toeplitz(public, message_bits=message_bits, random_bits=random_bits).multiply(x2)
    assert np.array_equal(product, by_convolution(public, x2, message_bits=message_bits))


@pytest.mark.parametrize("rows", [1, 2, 127, 128, 129, 300])
@pytest.mark.parametrize("threads", [1, 3])
def test_rows_do_not_depend_on_the_batch_they_come_in(rows: int, threads: int) -> None:
    public, x2 = some(300, 5744, 2704)
    matrix = Toeplitz(public, message_bits=5744, random_bits=2704)
    assert np.array_equal(matrix.multiply(x2[:rows], threads=threads), by_convolution(public, x2[:rows], message_bits=5744))


def test_the_product_is_linear_and_zero_gives_zero() -> None:
    public, x2 = some(2, 24384, 9408)
    matrix = Toeplitz(public, message_bits=24384, random_bits=9408)
    assert np.array_equal(matrix.multiply(x2[:1] ^ x2[1:]), matrix.multiply(x2[:1]) ^ matrix.multiply(x2[1:]))
    assert not matrix.multiply(np.zeros_like(x2)).any()
    assert matrix.multiply(x2[:0]).shape == (0, 3048)


def test_one_random_bit_alone_shows_its_column_of_the_seed() -> None:
    public, _ = some(0, 304, 120)
    x2 = np.packbits(np.eye(120, dtype=np.uint8), axis=1, bitorder="little")
    product = bits_of(Toeplitz(public, message_bits=304, random_bits=120).multiply(x2))
    seed_bits = "".join(f"{byte:08b}" for byte in public)
    assert all("".join(map(str, product[j])) == seed_bits[119 - j : 119 - j + 304] for j in range(120))


def test_masking_changes_the_message_half_only_and_undoes_itself() -> None:
    public, words = some(5, 5744, 2704)[0], some(5, 5744, 8448)[1]
    masked, matrix = words.copy(), Toeplitz(public, message_bits=5744, random_bits=2704)
    matrix.mask(masked)
    assert np.array_equal(masked[:, 718:], words[:, 718:])
    assert np.array_equal(masked[:, :718] ^ words[:, :718], matrix.multiply(words[:, 718:]))
    matrix.mask(masked)
    assert np.array_equal(masked, words)


@pytest.mark.parametrize("message_bits", [64, 8448])
def test_without_random_bits_nothing_is_masked(message_bits: int) -> None:
    matrix = Toeplitz(b"", message_bits=message_bits, random_bits=0)
    words = some(3, 8, message_bits)[1]
    untouched = words.copy()
    matrix.mask(words)
    assert np.array_equal(words, untouched)
    assert not matrix.multiply(np.empty((3, 0), dtype=np.uint8)).any()


@pytest.mark.parametrize(("size", "message_bits", "random_bits"), [(52, 304, 120), (54, 304, 120), (1, 304, 0), (53, 303, 121)])
def test_a_seed_that_does_not_fit_is_refused(size: int, message_bits: int, random_bits: int) -> None:
    with pytest.raises(ValueError, match="hash"):
        Toeplitz(bytes(size), message_bits=message_bits, random_bits=random_bits)


def test_words_of_another_shape_or_that_may_not_be_written_are_refused() -> None:
    matrix = Toeplitz(bytes(53), message_bits=304, random_bits=120)
    frozen = np.zeros((2, 53), dtype=np.uint8)
    frozen.flags.writeable = False
    for words in (np.zeros((2, 54), np.uint8), np.zeros(53, np.uint8), frozen):
        with pytest.raises(ValueError, match="writable"):
            matrix.mask(words)
