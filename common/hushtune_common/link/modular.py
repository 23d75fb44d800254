"""The modular wiretap code: how a payload becomes a row of codewords that hides it, and how soft values become the payload again.

A hash block is m = payload || CRC-32 and fresh random bits x2. The information word x = (m xor T x2) || x2, with T the public
Toeplitz matrix of ``toeplitz``, is cut into words for the LDPC code. The receiver decodes, adds T x2 once more and checks the
sum. Without random bits (an open block) the word is the message, and nothing is hidden.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from hushtune_common.link import ldpc
from hushtune_common.link.frame import checksums
from hushtune_common.link.randomness import SecretRng
from hushtune_common.link.toeplitz import Toeplitz
from hushtune_common.messages import SecrecyDesign

Bytes = NDArray[np.uint8]
SoftBits = NDArray[np.int8]
Flags = NDArray[np.bool_]
Counts = NDArray[np.int16]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Decoded:
    """What a receiver made of N hash blocks, right or wrong.

    ``payloads`` (N, payload_bytes); ``sound`` (N,): the checksum holds; ``converged`` (N,): every codeword passed its parity
    checks; ``iterations`` (N, codewords): negative where it did not.
    """

    payloads: Bytes
    sound: Flags
    converged: Flags
    iterations: Counts


class BlockCode:
    """The code of one part of one update: a design with its public hash seed."""

    def __init__(self, design: SecrecyDesign, *, toeplitz: bytes) -> None:
        """Prepare the hash; ``ValueError`` for a seed of another length or a design of another LDPC code."""
        if design.info_bits != ldpc.INFO_BITS:
            raise ValueError(f"a codeword carries {ldpc.INFO_BITS} bits, the design asks for {design.info_bits}")
        self.design: Final = design
        self._hash: Final = Toeplitz(toeplitz, message_bits=design.message_bits, random_bits=design.random_bits)

    def encode(self, payloads: Bytes, *, randomness: SecretRng, threads: int = 1) -> Bytes:
        """Return rows (N, coded_bytes), codewords one after the other, of payloads (N, payload_bytes).

        Each row has random bits of its own, drawn anew in every call.
        """
        design, count = self.design, len(payloads)
        if payloads.shape != (count, design.payload_bytes) or payloads.dtype != np.uint8:
            raise ValueError(f"payloads are uint8 of shape (N, {design.payload_bytes}), not {payloads.shape}")
        message = design.message_bits // 8
        words = np.empty((count, design.codewords * ldpc.INFO_BYTES), dtype=np.uint8)
        words[:, : design.payload_bytes] = payloads
        words[:, design.payload_bytes : message] = checksums(payloads)
        drawn = randomness.draw(count * design.random_bits // 8)
        words[:, message:] = np.frombuffer(drawn, dtype=np.uint8).reshape(count, -1) if drawn else 0
        self._hash.mask(words, threads=threads)
        coded = ldpc.encode(words.reshape(-1, ldpc.INFO_BYTES), code_bits=design.code_bits, threads=threads)
        return coded.reshape(count, design.coded_bytes)

    def decode(self, soft: SoftBits, *, iterations: int, threads: int = 1) -> Decoded:
        """Return what the soft values (N, codewords, code_bits), positive where 0 is likelier, say after so many iterations.

        The payloads are views of what was decoded. ``ValueError`` for soft values of another shape.
        """
        design, count = self.design, len(soft)
        if soft.shape != (count, design.codewords, design.code_bits):
            raise ValueError(f"soft values are of shape (N, {design.codewords}, {design.code_bits}), not {soft.shape}")
        each = soft.reshape(-1, design.code_bits)
        decoded, used = ldpc.decode(each, code_bits=design.code_bits, iterations=iterations, threads=threads)
        words = decoded.reshape(count, design.codewords * ldpc.INFO_BYTES)
        used = used.reshape(count, design.codewords)
        self._hash.mask(words, threads=threads)
        payloads, checksum = np.split(words[:, : design.message_bits // 8], [design.payload_bytes], axis=1)
        return Decoded(
            payloads=payloads,
            sound=(checksum == checksums(payloads)).all(axis=1),
            converged=np.all(used > 0, axis=1),
            iterations=used,
        )


def dither_rows(design: SecrecyDesign, dither: bytes) -> Bytes:
    """Return the dither of each codeword of a hash block, (codewords, code_bits / 8); ``ValueError`` for another length.

    Every coded bit has a dither bit of its own: with more than two amplitudes, only that makes the symbols of all codewords
    uniform and independent, as the leakage bound assumes.
    """
    if len(dither) != design.coded_bytes:
        raise ValueError(f"a dither of {len(dither)} bytes, but a hash block has {design.coded_bytes}")
    return np.frombuffer(dither, dtype=np.uint8).reshape(design.codewords, design.code_bits // 8)


def draw_public(design: SecrecyDesign, *, randomness: SecretRng) -> tuple[bytes, bytes]:
    """Return a fresh hash seed and dither of the lengths that ``design`` asks for.

    To be drawn after the message was fixed: the bound is a mean over both, and says nothing of a message that depends on them.
    """
    return randomness.draw(design.toeplitz_bytes), randomness.draw(design.coded_bytes)
