"""Where does the eavesdropper practise? Blocks of two messages of her own, made with public seeds and heard in her own noise."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from hushtune_common.link.frame import chunk_blocks
from hushtune_common.link.modem import Path, received, soft_values
from hushtune_common.link.modular import BlockCode, dither_rows
from hushtune_common.link.noise import NoiseKey
from hushtune_common.link.randomness import SecretRng, SeededRandomness
from hushtune_common.messages import SecrecyDesign
from hushtune_common.seeding import SeedTree
from hushtune_common.units import from_db

Bytes = NDArray[np.uint8]
Soft = NDArray[np.int8]
Single = NDArray[np.float32]
Labels = NDArray[np.bool_]

_NOISELESS: Final = 1e30


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A code to attack: ``toeplitz`` and ``dither`` are public; a hash seed of zeros leaves the message as it is."""

    design: SecrecyDesign
    hashed: bool
    toeplitz: bytes
    dither: bytes
    snr_db: float


class Bench:
    """Makes blocks of the two messages, one after the other in turn, and receives them in noise of its own."""

    def __init__(self, subject: Subject, *, seeds: SeedTree, threads: int) -> None:
        """Set up the sender's code for ``subject``; ``seeds`` are for random bits and noise."""
        self.design = subject.design
        self.snr = float(from_db(subject.snr_db))
        self._code = BlockCode(self.design, toeplitz=subject.toeplitz)
        self._dither = dither_rows(self.design, subject.dither)
        self._randomness = SeededRandomness(seeds.child("random-bits"))
        self._key = NoiseKey.of(seeds.child("noise"))
        self._threads = threads
        self._played = 0

    @property
    def dimensions(self) -> int:
        """Soft values of a block."""
        return self.design.codewords * self.design.code_bits

    def soft(self, count: int) -> Iterator[tuple[Labels, Soft]]:
        """Yield labels (c,) and soft values (c, dimensions) of ``count`` more blocks, chunk by chunk."""
        step = chunk_blocks(self.design)
        for size, _ in ranges(count, step=step):
            labels, coded = self.sent(size)
            path = self._path(first=self._played * self.design.codewords)
            self._played += size
            rows = coded.reshape(size * self.design.codewords, -1)
            modulation, dither = self.design.modulation, self._dither
            soft = soft_values(rows, dither=dither, modulation=modulation, path=path, threads=self._threads)
            yield labels, soft.reshape(size, -1)

    def sent(self, count: int) -> tuple[Labels, Bytes]:
        """Return labels (count,) and coded blocks (count, codewords, bytes) of both messages in turn."""
        labels = np.arange(self._played, self._played + count) % 2 == 1
        return labels, self._encode(labels, self._randomness)

    def candidates(self) -> tuple[Labels, Bytes]:
        """Return every block that there is: both messages with all values of the random bits; shapes as those of ``sent``."""
        values = 1 << self.design.random_bits
        pair = [self._encode(np.full(values, label), _EveryValue(self.design.random_bits // 8)) for label in (False, True)]
        return np.repeat([False, True], values), np.concatenate(pair)

    def points(self, coded: Bytes, *, word: int, first: int | None) -> Single:
        """Return codeword ``word`` of blocks (count, codewords, bytes) as received (count, real dimensions), not rounded.

        The noise is that of codewords ``first`` and on; there is none without.
        """
        path = self._path(first=0, snr=_NOISELESS) if first is None else self._path(first=first)
        modulation, dither = self.design.modulation, self._dither[word : word + 1]
        heard = received(np.ascontiguousarray(coded[:, word]), dither=dither, modulation=modulation, path=path)
        return heard.view(np.float32)

    def _encode(self, labels: Labels, randomness: SecretRng) -> Bytes:
        # Payloads of zeros and of ones: without a hash as far apart as two messages can be.
        payloads = np.repeat(np.where(labels, np.uint8(255), np.uint8(0))[:, None], self.design.payload_bytes, axis=1)
        rows = self._code.encode(payloads, randomness=randomness, threads=self._threads)
        return rows.reshape(labels.size, self.design.codewords, -1)

    def _path(self, *, first: int, snr: float | None = None) -> Path:
        return Path(snr=self.snr if snr is None else snr, gains=None, key=self._key, first=first)


class _EveryValue:
    """In place of random bits: all values of ``size`` bytes, one after the other."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._next = 0

    @property
    def secret(self) -> bool:
        """Never."""
        return False

    def draw(self, count: int) -> bytes:
        """Return the next values, ``count`` bytes of them."""
        values = range(self._next, self._next + count // self._size)
        self._next = values.stop
        return b"".join(value.to_bytes(self._size, "big") for value in values)


def ranges(count: int, *, step: int) -> Iterator[tuple[int, int]]:
    """Yield size and start of the chunks of ``count`` rows."""
    return ((min(step, count - start), start) for start in range(0, count, step))
