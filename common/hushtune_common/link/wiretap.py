"""The wiretap code's design: how a hash block divides into message and random bits for an assumed eavesdropper."""

from collections.abc import Sequence
from functools import lru_cache
from math import floor, isfinite
from typing import Final

from hushtune_common.errors import SecrecyUnavailable
from hushtune_common.link import leakage
from hushtune_common.link.mcs import CodingPoint, point_of
from hushtune_common.messages import SecrecyDesign, TapModel
from hushtune_common.units import Decibel, Hertz, Second

MESSAGE_BITS_LEAST = 64
"""Below this a hash block carries hardly more than its checksum."""
_SNR_MOST_DB: Final = 40.0
"""No constellation hides anything from a tap above this."""


@lru_cache(maxsize=4096)
def design(
    point: CodingPoint,
    *,
    codewords: int,
    snr_tap_db: float,
    log2_delta: float,
    tap_model: TapModel = TapModel.FIXED,
    subbands: int = 0,
) -> SecrecyDesign:
    """Return the hash block of ``codewords`` words that leaks at most ``2**log2_delta`` to a tap at ``snr_tap_db`` or below.

    What the SNR means is up to ``tap_model``: with the outage design the caller has already raised it above the mean, with the
    interleaved one it is the mean over Rayleigh fading that is independent in ``codewords * subbands`` coherence blocks.
    Message bits are rounded down to whole bytes and the remainder is random. The owner's public acknowledgement of a block may
    tell the tap one bit; it costs nothing with QPSK (a sign-symmetric decoder fails on the noise alone), one random bit
    otherwise. Raises ``SecrecyUnavailable`` when fewer than 64 message bits would remain.
    """
    if codewords < 1 or not isfinite(log2_delta) or log2_delta >= 0.0 or subbands < 0:
        raise ValueError(f"impossible demand: {codewords} codewords, log2_delta {log2_delta}, {subbands} coherence blocks")
    if tap_model is TapModel.INTERLEAVED and not 1 <= subbands <= point.dimensions // 2:
        raise ValueError(f"a codeword of {point.name} cannot be interleaved over {subbands} coherence blocks")
    snr = max(snr_tap_db, leakage.SNR_FLOOR_DB)
    leak = _leak(point, codewords=codewords, snr_tap_db=snr, tap_model=tap_model, subbands=subbands)
    total, most = codewords * point.info_bits, _random_bits_most(point, codewords)
    least = leakage.least_random_bits(leak, log2_delta_max=log2_delta, at_most=most)
    if least is None:
        limit = snr_tap_limit_db(point, codewords=codewords, log2_delta=log2_delta, tap_model=tap_model, subbands=subbands)
        raise SecrecyUnavailable(
            f"{point.name}: a tap at {snr_tap_db:.1f} dB ({tap_model}) learns {leak.mean_bits:.0f} of the {total} bits of a hash "
            f"block on average; fewer than {MESSAGE_BITS_LEAST} message bits remain at a leakage of 2^{log2_delta:g}; with "
            f"{codewords} codewords per hash block this point hides something from a tap of at most {limit:.1f} dB"
        )
    acknowledged = _acknowledged(point)
    message = (total - least - acknowledged) // 8 * 8
    return SecrecyDesign(
        modulation=point.modulation,
        code_bits=point.code_bits,
        info_bits=point.info_bits,
        codewords=codewords,
        message_bits=message,
        random_bits=total - message,
        snr_tap_design_db=Decibel(snr),
        log2_delta=log2_delta,
        rho=leak.bound(total - message - acknowledged)[1],
        rate=message / _symbols(point, codewords),
        tap_model=tap_model,
        subbands=subbands,
    )


def open_design(point: CodingPoint, *, codewords: int, subbands: int = 0) -> SecrecyDesign:
    """Return a hash block without a hash: plain error correction that hides nothing; every information bit is message."""
    if codewords < 1:
        raise ValueError(f"a hash block has at least one codeword, got {codewords}")
    message = codewords * point.info_bits
    return SecrecyDesign(
        modulation=point.modulation,
        code_bits=point.code_bits,
        info_bits=point.info_bits,
        codewords=codewords,
        message_bits=message,
        random_bits=0,
        snr_tap_design_db=Decibel(0.0),
        log2_delta=0.0,
        rho=0.0,
        rate=message / _symbols(point, codewords),
        subbands=subbands,
    )


def log2_leakage(design: SecrecyDesign) -> float:
    """Return log2 of the leakage bound of one block of ``design``, worked out anew: ``log2_delta`` is only what it claims.

    Whoever receives a design from somebody else can hold the claim against this; 0 for an open block. ``ValueError`` for a design
    that no coding point carries, or whose tap is beyond what any block hides from.
    """
    if not design.secret:
        return 0.0
    point, snr_tap_db = point_of(design), max(design.snr_tap_design_db, leakage.SNR_FLOOR_DB)
    if snr_tap_db > _SNR_MOST_DB:
        raise ValueError(f"no block hides anything from a tap at {snr_tap_db:g} dB")
    if design.tap_model is TapModel.INTERLEAVED and not 1 <= design.subbands <= point.dimensions // 2:
        raise ValueError(f"a codeword of {point.name} cannot be interleaved over {design.subbands} coherence blocks")
    model, subbands = design.tap_model, design.subbands
    leak = _leak(point, codewords=design.codewords, snr_tap_db=snr_tap_db, tap_model=model, subbands=subbands)
    hiding = design.random_bits - _acknowledged(point)
    return 0.0 if leak.mean_bits >= hiding else min(0.0, leak.bound(hiding)[0])


@lru_cache(maxsize=256)
def snr_tap_limit_db(
    point: CodingPoint, *, codewords: int, log2_delta: float, tap_model: TapModel = TapModel.FIXED, subbands: int = 0
) -> float:
    """Return the highest tap SNR in dB (rounded down to 0.1 dB) for which ``design`` finds a hash block; -inf if none does."""

    def possible(snr_tap_db: float) -> bool:
        leak = _leak(point, codewords=codewords, snr_tap_db=snr_tap_db, tap_model=tap_model, subbands=subbands)
        most = _random_bits_most(point, codewords)
        return leak.mean_bits < most and leak.bound(most)[0] <= log2_delta

    low, high = leakage.SNR_FLOOR_DB, _SNR_MOST_DB
    if not possible(low):
        return float("-inf")
    while high - low > 0.02:
        middle = 0.5 * (low + high)
        low, high = (middle, high) if possible(middle) else (low, middle)
    return floor(low * 10.0) / 10.0


def block_count(design: SecrecyDesign, update_bytes: int) -> int:
    """Return how many hash blocks carry ``update_bytes``."""
    return -(-update_bytes // design.payload_bytes)


def airtime(design: SecrecyDesign, *, blocks: int | Sequence[int], bandwidth: Hertz) -> Second:
    """Return the seconds on air of so many hash blocks (or of these), one complex symbol per hertz and second."""
    count = blocks if isinstance(blocks, int) else len(blocks)
    return Second(count * design.symbols / bandwidth)


def _leak(point: CodingPoint, *, codewords: int, snr_tap_db: float, tap_model: TapModel, subbands: int) -> leakage.Leak:
    match tap_model:
        case TapModel.FIXED | TapModel.OUTAGE:
            return leakage.white(point.modulation, snr_db=snr_tap_db, dimensions=codewords * point.dimensions)
        case TapModel.INTERLEAVED:
            coherence = _coherence(point, codewords=codewords, subbands=subbands)
            return leakage.interleaved(point.modulation, snr_db=snr_tap_db, coherence=coherence)


def _coherence(point: CodingPoint, *, codewords: int, subbands: int) -> tuple[tuple[int, int], ...]:
    """Return (coherence blocks, real dimensions of each): symbols take the blocks of their codeword in turn."""
    symbols, longer = divmod(point.dimensions // 2, subbands)
    groups = ((codewords * longer, 2 * symbols + 2), (codewords * (subbands - longer), 2 * symbols))
    return tuple(group for group in groups if group[0])


def _random_bits_most(point: CodingPoint, codewords: int) -> int:
    return codewords * point.info_bits - MESSAGE_BITS_LEAST - _acknowledged(point)


def _acknowledged(point: CodingPoint) -> int:
    """Bits that a public acknowledgement may tell the tap."""
    return 0 if point.modulation == "qpsk" else 1


def _symbols(point: CodingPoint, codewords: int) -> int:
    return codewords * point.code_bits // point.bits_per_symbol
