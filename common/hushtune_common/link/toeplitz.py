"""The universal hash of the wiretap code: a random Toeplitz matrix over GF(2), multiplied fast.

``T[i, j] = s[i - j + r - 1]`` for 0 <= i < b message bits and 0 <= j < r random bits, with ``s`` the bits of a public seed. For a
uniform seed and two different vectors x2 the products agree with probability 2**-b, so ``x1 xor T x2`` is a universal hash of
(x1, x2) (Carter and Wegman 1979; this form, an identity beside a Toeplitz matrix: Hayashi and Tsurumaru, arXiv 1311.5322).

Layout: the bits of the seed are read most significant first, vectors are packed least significant first (bit i is bit i % 8 of
byte i // 8).

The product goes by the method of four Russians: column j is ``s`` from bit r - 1 - j on, so byte ``h`` of the *reversed* x2, of
value v, contributes ``table[v]`` from byte h on, where ``table[v]`` combines eight shifts of ``s``. Output byte w so takes byte
h + w of the table for each h, and all pairs (tile of h, tile of w) with the same sum of places share 128 columns of the table.
These fit the first-level cache and are made anew for each sum, then serve all rows of the batch. Which bytes are read depends on
the random bits: whoever can time the sender's cache is outside of what the hash protects against.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from hushtune_common.link.kernels import kernel, spread
from hushtune_common.link.lanes import WIDTH, exclusive_or, load, store

Bytes = NDArray[np.uint8]
Lanes = NDArray[np.int8]

_SPAN: Final = 2 * WIDTH
"""Table columns that one pair of tiles touches (and one byte more than needed)."""
_BATCH: Final = 256
"""Rows that share one making of the tables."""


class Toeplitz:
    """One matrix, ready to be multiplied. Holds about as many bytes as eight seeds."""

    def __init__(self, seed: bytes, *, message_bits: int, random_bits: int) -> None:
        """Prepare the matrix of ``message_bits`` rows and ``random_bits`` columns, both multiples of 8.

        Raises:
            ValueError: other sizes, or a seed that is not ``ceil((message_bits + random_bits - 1) / 8)`` bytes long (none without
                random bits).
        """
        if message_bits % 8 or random_bits % 8 or message_bits < 8 or random_bits < 0:
            raise ValueError(f"a hash of {message_bits} message and {random_bits} random bits has no whole bytes")
        wanted = (message_bits + random_bits) // 8 if random_bits else 0
        if len(seed) != wanted:
            raise ValueError(f"a hash seed of {len(seed)} bytes, but {message_bits} + {random_bits} bits take {wanted}")
        self.message_bytes: Final = message_bits // 8
        self.random_bytes: Final = random_bits // 8
        self._shifts: Final = _shifted(seed, size=_up(self.message_bytes) + _up(self.random_bytes))

    def multiply(self, x2: Bytes, *, threads: int = 1) -> Bytes:
        """Return ``T x2`` as (N, message bytes) for x2 (N, random bytes)."""
        words = np.zeros((len(x2), self.message_bytes + self.random_bytes), dtype=np.uint8)
        words[:, self.message_bytes :] = x2
        self.mask(words, threads=threads)
        return words[:, : self.message_bytes]

    def mask(self, words: Bytes, *, threads: int = 1) -> None:
        """Replace x1 by ``x1 xor T x2`` in rows ``x1 || x2``, (N, message bytes + random bytes), in place; its own inverse.

        ``ValueError`` unless ``words`` is a contiguous, writable array of that shape.
        """
        width = self.message_bytes + self.random_bytes
        if words.dtype != np.uint8 or words.ndim != 2 or words.shape[1] != width:
            raise ValueError(f"words are uint8 of shape (N, {width}), not {words.dtype} of shape {words.shape}")
        if not (words.flags.c_contiguous and words.flags.writeable):
            raise ValueError("words are changed in place: they must be contiguous and writable")
        if not self.random_bytes:
            return

        def work(first: int, last: int) -> None:
            for at in range(first, last, _BATCH):
                _mask_rows(words[at : min(last, at + _BATCH)], self._shifts, self.message_bytes)

        spread(work, count=len(words), threads=threads)


def _up(size: int) -> int:
    """Round up to whole vectors."""
    return -(-size // WIDTH) * WIDTH


def _shifted(seed: bytes, *, size: int) -> Lanes:
    """Return (8, size): row t is the seed, least significant bit first, from bit 7 - t on, then zeros."""
    bits = np.zeros(8 * size + 8, dtype=np.uint8)
    bits[: 8 * len(seed)] = np.unpackbits(np.frombuffer(seed, dtype=np.uint8))
    rows = [np.packbits(bits[7 - t : 7 - t + 8 * size], bitorder="little") for t in range(8)]
    return np.stack(rows).view(np.int8)


@kernel
def _mask_rows(words: Bytes, shifts: Lanes, message_bytes: int) -> None:
    rows, width = words.shape
    random_bytes = width - message_bytes
    tiles_in = (random_bytes + WIDTH - 1) // WIDTH
    tiles_out = (message_bytes + WIDTH - 1) // WIDTH
    reversed_x2 = np.zeros((rows, tiles_in * WIDTH), dtype=np.uint8)
    for n in range(rows):
        for h in range(random_bytes):
            reversed_x2[n, h] = words[n, width - 1 - h]
    products = np.zeros((rows, tiles_out * WIDTH), dtype=np.int8)
    table = np.zeros(256 * _SPAN, dtype=np.int8)
    for place in range(tiles_in + tiles_out - 1):
        _fill_table(table, shifts, place * WIDTH)
        for n in range(rows):
            for tile in range(max(0, place - tiles_out + 1), min(tiles_in, place + 1)):
                _add_tile(products[n], (place - tile) * WIDTH, table, reversed_x2[n], tile * WIDTH)
    for n in range(rows):
        for w in range(message_bytes):
            words[n, w] ^= np.uint8(products[n, w])


@kernel
def _fill_table(table: Lanes, shifts: Lanes, start: int) -> None:
    """Set row v to the sum of the shifts whose bit is set in v, columns ``start`` on; row 0 stays zero."""
    for t in range(8):
        for v in range(1 << t):
            for at in range(0, _SPAN, WIDTH):
                with_bit = exclusive_or(load(table, v * _SPAN + at), load(shifts[t], start + at))
                store(table, ((1 << t) + v) * _SPAN + at, with_bit)


@kernel
def _add_tile(product: Lanes, at: int, table: Lanes, selectors: Bytes, first: int) -> None:
    """Add what one tile of the reversed x2 contributes to one tile of the product."""
    total = load(product, at)
    for k in range(WIDTH):
        total = exclusive_or(total, load(table, selectors[first + k] * _SPAN + k))
    store(product, at, total)
