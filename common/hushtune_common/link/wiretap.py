"""The wiretap code's design: how a hash block divides into message and random bits for an assumed eavesdropper."""

from collections.abc import Sequence
from functools import lru_cache
from math import isfinite

from hushtune_common.errors import SecrecyUnavailable
from hushtune_common.link import leakage
from hushtune_common.link.mcs import CodingPoint
from hushtune_common.messages import SecrecyDesign
from hushtune_common.units import Decibel, Hertz, Second

MESSAGE_BITS_LEAST = 64
"""Below this a hash block carries hardly more than its checksum."""


@lru_cache(maxsize=4096)
def design(point: CodingPoint, *, codewords: int, snr_tap_db: float, log2_delta: float) -> SecrecyDesign:
    """Return the hash block of ``codewords`` words that leaks at most ``2**log2_delta`` to a tap at ``snr_tap_db`` or below.

    Message bits are rounded down to whole bytes and the remainder is random. The owner's public acknowledgement of a block may
    tell the tap one bit; it costs nothing with QPSK (a sign-symmetric decoder fails on the noise alone), one random bit
    otherwise. Raises ``SecrecyUnavailable`` when fewer than 64 message bits would remain.
    """
    if codewords < 1 or not isfinite(log2_delta) or log2_delta >= 0.0:
        raise ValueError(f"impossible demand: {codewords} codewords, log2_delta {log2_delta}")
    snr = max(snr_tap_db, leakage.SNR_FLOOR_DB)
    density = leakage.information_density(point.modulation, snr)
    total = codewords * point.info_bits
    dimensions = codewords * point.dimensions
    acknowledged = 0 if point.modulation == "qpsk" else 1
    at_most = total - MESSAGE_BITS_LEAST - acknowledged
    least = leakage.random_bits(density, dimensions=dimensions, log2_delta_max=log2_delta, at_most=at_most)
    if least is None:
        raise SecrecyUnavailable(
            f"{point.name}: a tap at {snr_tap_db:.1f} dB learns {dimensions * density.mean:.0f} of the {total} bits of a hash "
            f"block on average; fewer than {MESSAGE_BITS_LEAST} message bits remain at a leakage of 2^{log2_delta:g}"
        )
    message = (total - least - acknowledged) // 8 * 8
    rho = leakage.log2_delta(density, dimensions=dimensions, random_bits=total - message - acknowledged)[1]
    symbols = codewords * point.code_bits // point.bits_per_symbol
    return SecrecyDesign(
        modulation=point.modulation,
        code_bits=point.code_bits,
        info_bits=point.info_bits,
        codewords=codewords,
        message_bits=message,
        random_bits=total - message,
        snr_tap_design_db=Decibel(snr),
        log2_delta=log2_delta,
        rho=rho,
        rate=message / symbols,
    )


def block_count(design: SecrecyDesign, update_bytes: int) -> int:
    """Return how many hash blocks carry ``update_bytes``."""
    return -(-update_bytes // design.payload_bytes)


def airtime(design: SecrecyDesign, *, blocks: int | Sequence[int], bandwidth: Hertz) -> Second:
    """Return the seconds on air of so many hash blocks (or of these), one complex symbol per hertz and second."""
    count = blocks if isinstance(blocks, int) else len(blocks)
    return Second(count * design.symbols / bandwidth)
