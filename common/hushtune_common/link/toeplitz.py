"""The universal hash of the wiretap code: a random Toeplitz matrix over GF(2), multiplied fast.

``T[i, j] = s[i - j + r - 1]`` for 0 <= i < b message bits and 0 <= j < r random bits, with ``s`` the bits of a public seed. For a
uniform seed and two different vectors x2 the products agree with probability 2**-b, so ``x1 xor T x2`` is a universal hash of
(x1, x2) (Carter and Wegman 1979; this form, an identity beside a Toeplitz matrix: Hayashi and Tsurumaru, arXiv 1311.5322).
The seed is read most significant bit first; vectors are packed least significant bit first, bit i in byte i // 8.

How the product is made. Column j is ``s`` from bit r - 1 - j on. Cut x2, filled with zeros in front, and the product into tiles
of 64 bytes; count the tiles of x2 from its end. Then tile i of x2 meets tile j of the product through ``window[i + j]`` alone:
the 128 bytes of ``s`` from byte 64 (i + j) on, in eight shifts.

* Within a pair of tiles, the method of four Russians: ``table[v]`` is the sum of the shifts that the bits of the byte v select,
  so byte k of the tile adds 64 bytes of one row, from 63 - k on. The table (32 KiB, about a first-level cache) is made anew for
  each window and serves all rows of a batch and all pairs of the same i + j.
* Over the tiles, Karatsuba's rule: with e and o the tiles of even and odd number and W the window, even tiles of the product are
  ``(W[2p] + W[2p+1]) e + W[2p+1] (e + o)`` and odd ones ``(W[2p+1] + W[2p+2]) o + W[2p+1] (e + o)``: three products of half the
  length, where four were needed.

Which bytes are read depends on the random bits: whoever can time the sender's cache is not what this hash protects against.
"""

from typing import Final

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from hushtune_common.link.kernels import kernel, spread
from hushtune_common.link.lanes import WIDTH, exclusive_or, load, store

Bytes = NDArray[np.uint8]
SignedBytes = NDArray[np.int8]

_WINDOW: Final = 2 * WIDTH
_BATCH: Final = 128
"""Rows that share one making of the tables."""
_SPLIT_TILES: Final = 8
"""Least tiles, of x2 and of the product, for which halving pays."""


class Toeplitz:
    """One matrix, ready to be multiplied. Its windows take 16 to 80 times the bytes of its seed."""

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
        tiles = -(-self.random_bytes // WIDTH), -(-self.message_bytes // WIDTH)
        self._halvings: Final = max(0, (min(tiles) // _SPLIT_TILES).bit_length())
        unit = 1 << self._halvings
        self._tiles: Final = -(-tiles[0] // unit) * unit, -(-tiles[1] // unit) * unit
        self._windows: Final = _windows(seed, count=max(1, sum(self._tiles) - 1), halvings=self._halvings)

    def multiply(self, x2: Bytes, *, threads: int = 1) -> Bytes:
        """Return ``T x2`` as (N, message bytes) for x2 (N, random bytes)."""
        words = np.zeros((len(x2), self.message_bytes + self.random_bytes), dtype=np.uint8)
        words[:, self.message_bytes :] = x2
        self.mask(words, threads=threads)
        return words[:, : self.message_bytes]

    def mask(self, words: Bytes, *, threads: int = 1) -> None:
        """Replace x1 by ``x1 xor T x2`` in rows ``x1 || x2``, (N, message bytes + random bytes), in place; its own inverse.

        ``ValueError`` unless ``words`` has that shape and is of bytes that may be written.
        """
        width = self.message_bytes + self.random_bytes
        if words.dtype != np.uint8 or words.ndim != 2 or words.shape[1] != width or not words.flags.writeable:
            raise ValueError(f"words are writable bytes of shape (N, {width}), not {words.dtype} of shape {words.shape}")
        if not self.random_bytes:
            return

        def work(first: int, last: int) -> None:
            for at in range(first, last, _BATCH):
                self._mask_batch(words[at : min(last, at + _BATCH)])

        spread(work, count=len(words), threads=threads)

    def _mask_batch(self, words: Bytes) -> None:
        count, rows = len(words), len(words) + len(words) % 2
        tiles_in, tiles_out = self._tiles
        x2 = np.zeros((rows, tiles_in * WIDTH), dtype=np.uint8)
        x2[:count, -self.random_bytes :] = words[:, self.message_bytes :]
        factors = _halved(x2.reshape(rows, tiles_in, WIDTH).transpose(1, 0, 2)[::-1], self._halvings)
        products = np.zeros((len(factors), tiles_out >> self._halvings, rows, WIDTH), dtype=np.int8)
        pairs = rows // 2, 2 * WIDTH
        _add_products(products.reshape(*products.shape[:2], *pairs), factors.reshape(*factors.shape[:2], *pairs), self._windows)
        product = _joined(products, self._halvings).transpose(1, 0, 2).reshape(rows, -1).view(np.uint8)
        x1 = words[:, : self.message_bytes]
        np.bitwise_xor(x1, product[:count, : self.message_bytes], out=x1)


def _windows(seed: bytes, *, count: int, halvings: int) -> SignedBytes:
    """Return the windows of each product, (3**halvings, windows, 8, 128): shift t begins at bit 7 - t of the window."""
    size = (count + 1) * WIDTH
    bits = np.zeros(8 * size + 8, dtype=np.uint8)
    bits[: 8 * len(seed)] = np.unpackbits(np.frombuffer(seed, dtype=np.uint8))
    shifts = np.stack([np.packbits(bits[7 - t : 7 - t + 8 * size], bitorder="little") for t in range(8)])
    windows = sliding_window_view(shifts, _WINDOW, axis=1)[:, ::WIDTH].transpose(1, 0, 2)[None]
    for _ in range(halvings):
        even, odd = windows[:, 0::2], windows[:, 1::2]
        windows = np.concatenate((even[:, :-1] ^ odd, odd ^ even[:, 1:], odd))
    return np.ascontiguousarray(windows).view(np.int8)


def _halved(tiles: Bytes, halvings: int) -> Bytes:
    """Return the factors of each product, (3**halvings, tiles, rows, 64), of the tiles (tiles, rows, 64) of x2."""
    factors = tiles[None]
    for _ in range(halvings):
        even, odd = factors[:, 0::2], factors[:, 1::2]
        factors = np.concatenate((even, odd, even ^ odd))
    return np.ascontiguousarray(factors)


def _joined(products: SignedBytes, halvings: int) -> SignedBytes:
    """Return the tiles (tiles, rows, 64) that the products (3**halvings, tiles, rows, 64) add up to."""
    for _ in range(halvings):
        even, odd, both = np.split(products, 3)
        pairs = np.stack((even ^ both, odd ^ both), axis=2)
        products = pairs.reshape(len(even), -1, *products.shape[2:])
    return products[0]


@kernel
def _add_products(products: SignedBytes, factors: Bytes, windows: SignedBytes) -> None:
    """Add to each product (P, tiles, pairs of rows, 128) what its factor, alike, and its windows (P, windows, 8, 128) give."""
    parts, tiles_out, pairs, _ = products.shape
    tiles_in = factors.shape[1]
    table = np.zeros(256 * _WINDOW, dtype=np.int8)
    for part in range(parts):
        for place in range(tiles_in + tiles_out - 1):
            _fill_table(table, windows[part, place])
            for tile in range(max(0, place - tiles_out + 1), min(tiles_in, place + 1)):
                for pair in range(pairs):
                    _add_tiles(products[part, place - tile, pair], factors[part, tile, pair], table)


@kernel
def _fill_table(table: SignedBytes, shifts: SignedBytes) -> None:
    """Set row v to the sum of the shifts whose bit is set in v; row 0 stays zero."""
    for t in range(8):
        for v in range(1 << t):
            for at in range(0, _WINDOW, WIDTH):
                combined = exclusive_or(load(table, v * _WINDOW + at), load(shifts[t], at))
                store(table, ((1 << t) + v) * _WINDOW + at, combined)


@kernel
def _add_tiles(product: SignedBytes, selectors: Bytes, table: SignedBytes) -> None:
    """Add what one tile of x2 contributes to one tile of the product, for two rows: the one computes while the other waits."""
    first, second = load(product, 0), load(product, WIDTH)
    for k in range(WIDTH):  # selectors are indexed without a sign: nothing has to be asked about counting from the end
        column = WIDTH - 1 - k
        first = exclusive_or(first, load(table, np.int64(selectors[np.uint64(k)]) * _WINDOW + column))
        second = exclusive_or(second, load(table, np.int64(selectors[np.uint64(WIDTH + k)]) * _WINDOW + column))
    store(product, 0, first)
    store(product, WIDTH, second)
