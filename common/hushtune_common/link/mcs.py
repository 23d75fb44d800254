"""Which modulation and coding points exist, and how often each fails: data only."""

from dataclasses import dataclass
from math import sqrt
from typing import Final

from hushtune_common.messages import SecrecyDesign


@dataclass(frozen=True, slots=True, kw_only=True)
class Modulation:
    """A square constellation as two equal real dimensions; ``amplitudes`` of one dimension have mean square 1."""

    name: str
    bits_per_symbol: int
    amplitudes: tuple[float, ...]


MODULATIONS: Final = {
    "qpsk": Modulation(name="qpsk", bits_per_symbol=2, amplitudes=(-1.0, 1.0)),
    "qam16": Modulation(name="qam16", bits_per_symbol=4, amplitudes=tuple(a / sqrt(5.0) for a in (-3.0, -1.0, 1.0, 3.0))),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class CodingPoint:
    """One modulation with one code rate.

    ``bler`` holds ``(SNR in dB, block error rate, blocks simulated)`` by rising SNR: symbol SNR, one codeword, white noise.
    A rate of 0 means that no error was seen in that many blocks; below the first row every block fails.
    """

    name: str
    modulation: str
    code_bits: int
    info_bits: int = 8448
    bler: tuple[tuple[float, float, int], ...]
    provenance: str

    def __post_init__(self) -> None:
        """Check that the table is one falling waterfall."""
        if self.modulation not in MODULATIONS or not 0 < self.info_bits < self.code_bits:
            raise ValueError(f"{self.name}: unknown modulation {self.modulation!r} or impossible code length")
        snr = [row[0] for row in self.bler]
        rates = [row[1] for row in self.bler]
        if len(self.bler) < 2 or snr != sorted(set(snr)) or rates != sorted(rates, reverse=True):
            raise ValueError(f"{self.name}: the block error table must fall with rising SNR")

    @property
    def bits_per_symbol(self) -> int:
        """Coded bits per complex symbol."""
        return MODULATIONS[self.modulation].bits_per_symbol

    @property
    def dimensions(self) -> int:
        """Real dimensions of one codeword: two per complex symbol."""
        return 2 * self.code_bits // self.bits_per_symbol


_PROVENANCE: Final = (
    "5G NR LDPC (base graph 1, Z = 384), white noise, measured with a prototype decoder (int8 layered min-sum, 12 iterations, "
    "no bit interleaver, at most 6000 blocks per point); to be regenerated from the bit-exact link"
)
_BLOCKS: Final = 6000

CODING_POINTS: Final[tuple[CodingPoint, ...]] = (
    CodingPoint(
        name="qam16-0.825",
        modulation="qam16",
        code_bits=10_240,
        bler=(
            (11.0, 1.0, _BLOCKS),
            (11.2, 0.983, _BLOCKS),
            (11.4, 0.603, _BLOCKS),
            (11.6, 5.6e-2, _BLOCKS),
            (12.0, 0.0, _BLOCKS),
        ),
        provenance=_PROVENANCE,
    ),
    CodingPoint(
        name="qam16-0.5",
        modulation="qam16",
        code_bits=16_896,
        bler=((6.6, 1.0, _BLOCKS), (6.8, 0.997, _BLOCKS), (7.0, 0.883, _BLOCKS), (7.2, 0.232, _BLOCKS)),
        provenance=_PROVENANCE,
    ),
    CodingPoint(
        name="qpsk-0.825",
        modulation="qpsk",
        code_bits=10_240,
        bler=(
            (4.8, 1.0, _BLOCKS),
            (5.0, 0.917, _BLOCKS),
            (5.2, 0.285, _BLOCKS),
            (5.4, 5.2e-3, _BLOCKS),
            (5.6, 0.0, _BLOCKS),
            (5.8, 0.0, _BLOCKS),
            (6.0, 0.0, _BLOCKS),
        ),
        provenance=_PROVENANCE,
    ),
    CodingPoint(
        name="qpsk-0.5",
        modulation="qpsk",
        code_bits=16_896,
        bler=((1.2, 1.0, _BLOCKS), (1.4, 0.993, _BLOCKS), (1.6, 0.583, _BLOCKS), (1.8, 2.3e-2, _BLOCKS)),
        provenance=_PROVENANCE,
    ),
)
"""The points on offer, by falling rate."""


def point_of(design: SecrecyDesign) -> CodingPoint:
    """Return the coding point that a design uses; ``ValueError`` when there is none like it."""
    for point in CODING_POINTS:
        if (point.modulation, point.code_bits, point.info_bits) == (design.modulation, design.code_bits, design.info_bits):
            return point
    raise ValueError(f"no coding point is {design.modulation} with {design.info_bits} of {design.code_bits} bits")
