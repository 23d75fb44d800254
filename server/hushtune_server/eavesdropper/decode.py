"""What does the eavesdropper make of one chunk: payloads, right or wrong, and how the decoder fared?

She runs the owner's decoder with as many iterations as the scenario gives her, and takes the hash off with the public seed. A
block that was sent again carries other random bits, so its codewords are others: there is nothing to combine, and each time is a
new try.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from hushtune_common.link.modem_kernels import LLR_SCALE
from hushtune_common.link.modular import BlockCode
from hushtune_common.link.reception import Reception, bare_payloads
from hushtune_common.seeding import SeedTree

Bytes = NDArray[np.uint8]
Indices = NDArray[np.uint32]
Flags = NDArray[np.bool_]
Counts = NDArray[np.int16]

_GAUGED_BLOCKS: Final = 16
_SIZES: Final = 129
"""How many sizes a soft value can have."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Reading:
    """One chunk after the attack.

    Of the ``coded`` coded blocks those at ``indices`` (n,) were decoded: ``payloads`` (n, payload_bytes), ``sound`` (n,) where
    the checksum holds, ``iterations`` (n, codewords), negative where parity checks failed. Of the ``bare`` ones ``bare_indices``
    and ``bare_payloads`` came through. ``sign_errors`` of ``signs`` soft values have the wrong sign, by their own account.
    """

    coded: int
    indices: Indices
    payloads: Bytes
    sound: Flags
    iterations: Counts
    bare: int
    bare_indices: Indices
    bare_payloads: Bytes
    sign_errors: float
    signs: int


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockDecoder:
    """Decodes all coded blocks of a chunk, or a random ``share`` of them, with up to ``iterations``."""

    iterations: int
    threads: int = 1
    share: float = 1.0

    def read(self, reception: Reception, *, code: BlockCode, seeds: SeedTree) -> Reading:
        """Return what a chunk gives; ``seeds`` choose the sample. The first chunk of a frame has at least one block in it.

        ``ValueError`` when the soft values are not of the design of ``code``.
        """
        coded = len(reception.soft)
        chosen = self._sample(coded, first=reception.chunk == 0, seeds=seeds)
        soft = reception.soft if chosen.all() else reception.soft[chosen]
        decoded = code.decode(soft, iterations=self.iterations, threads=self.threads)
        bare_indices, bare = bare_payloads(reception)
        sizes = np.bincount(np.abs(soft[:_GAUGED_BLOCKS].astype(np.int16)).ravel(), minlength=_SIZES)
        return Reading(
            coded=coded,
            indices=reception.coded_indices[chosen],
            payloads=decoded.payloads,
            sound=decoded.sound,
            iterations=decoded.iterations,
            bare=reception.count - coded,
            bare_indices=bare_indices,
            bare_payloads=bare,
            sign_errors=float(sizes @ _wrong(reception.gain_log2)),
            signs=int(sizes.sum()),
        )

    def _sample(self, count: int, *, first: bool, seeds: SeedTree) -> Flags:
        if self.share >= 1.0 or not count:
            return np.ones(count, dtype=np.bool_)
        rng = seeds.generator()
        flags = rng.random(count) < self.share
        flags[int(rng.integers(count))] |= first
        return flags


def _wrong(gain_log2: int) -> NDArray[np.float64]:
    """Return, by the size of a soft value, the probability that its sign is wrong: what a log-likelihood ratio says of itself."""
    return 1.0 / (1.0 + np.exp(np.arange(_SIZES) / (LLR_SCALE * 2.0**gain_log2)))
