"""Which modulation and coding points exist, and how often each fails: data only.

Block error tables lie beside this file in ``bler.json``, which says how they were measured; ``hushtune link bler`` makes it anew.
"""

from dataclasses import dataclass
from importlib.resources import files
from math import sqrt
from typing import Final

import msgspec

from hushtune_common.messages import BITS_PER_SYMBOL, SecrecyDesign

Row = tuple[float, float, int]
"""SNR in dB, block error rate, blocks simulated."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Modulation:
    """A square constellation as two equal real dimensions; ``amplitudes`` of one dimension have mean square 1."""

    name: str
    bits_per_symbol: int
    amplitudes: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class CodingPoint:
    """One modulation with one code rate, decoded with up to ``iterations``.

    ``bler`` holds ``(SNR in dB, block error rate, blocks simulated)`` by rising SNR: symbol SNR, one codeword, white noise.
    A rate of 0 means that no error was seen in that many blocks; below the first row every block fails. Under fading the
    effective SNR (mutual-information mapping) has to be higher by ``fading_loss_db``: fading changes how information divides
    among the bits of a symbol, which the mapping does not see.
    """

    name: str
    modulation: str
    code_bits: int
    info_bits: int = 8448
    iterations: int
    bler: tuple[Row, ...]
    fading_loss_db: float = 0.0
    provenance: str

    def __post_init__(self) -> None:
        """Check that the table is one falling waterfall."""
        if self.modulation not in MODULATIONS or not 0 < self.info_bits < self.code_bits or self.iterations < 1:
            raise ValueError(f"{self.name}: unknown modulation {self.modulation!r}, impossible code length or no iterations")
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


class PointTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What was measured of one point."""

    iterations: int
    fading_loss_db: float
    rows: tuple[Row, ...]


class BlockErrorTables(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The form of ``bler.json``: how it was measured, and one table per point."""

    provenance: dict[str, str | int]
    points: dict[str, PointTable]

    @property
    def summary(self) -> str:
        """The provenance in one line."""
        return "; ".join(f"{name}: {value}" for name, value in self.provenance.items())


def _modulation(name: str) -> Modulation:
    """Return the square constellation whose dimensions have amplitudes ..., -3, -1, 1, 3, ... scaled to mean square 1."""
    bits = BITS_PER_SYMBOL[name]
    count = 1 << bits // 2
    levels = range(1 - count, count, 2)
    scale = sqrt(sum(level * level for level in levels) / count)
    return Modulation(name=name, bits_per_symbol=bits, amplitudes=tuple(level / scale for level in levels))


def _coding_points() -> tuple[CodingPoint, ...]:
    packed = files(__package__ or "hushtune_common.link").joinpath("bler.json").read_bytes()
    measured = msgspec.json.decode(packed, type=BlockErrorTables)
    return tuple(
        CodingPoint(
            name=name,
            modulation=modulation,
            code_bits=code_bits,
            iterations=measured.points[name].iterations,
            bler=measured.points[name].rows,
            fading_loss_db=measured.points[name].fading_loss_db,
            provenance=measured.summary,
        )
        for name, modulation, code_bits in _SHAPES
    )


_SHAPES: Final = (
    ("qam64-0.825", "qam64", 10_224),  # 10 240 is no whole number of symbols of 6 bits
    ("qam64-0.667", "qam64", 12_672),
    ("qam16-0.825", "qam16", 10_240),
    ("qam64-0.5", "qam64", 16_896),
    ("qam16-0.667", "qam16", 12_672),
    ("qam16-0.5", "qam16", 16_896),
    ("qpsk-0.825", "qpsk", 10_240),
    ("qpsk-0.667", "qpsk", 12_672),
    ("qpsk-0.5", "qpsk", 16_896),
)
MODULATIONS: Final = {name: _modulation(name) for name in BITS_PER_SYMBOL}
CODING_POINTS: Final = _coding_points()
"""The points on offer, by falling rate in bit per symbol."""


def point_of(design: SecrecyDesign) -> CodingPoint:
    """Return the coding point that a design uses; ``ValueError`` when there is none like it."""
    for point in CODING_POINTS:
        if (point.modulation, point.code_bits, point.info_bits) == (design.modulation, design.code_bits, design.info_bits):
            return point
    raise ValueError(f"no coding point is {design.modulation} with {design.info_bits} of {design.code_bits} bits")


def point_named(name: str) -> CodingPoint:
    """Return the coding point of that name; ``ValueError`` when there is none."""
    for point in CODING_POINTS:
        if point.name == name:
            return point
    raise ValueError(f"no coding point is called {name!r}; there are {', '.join(point.name for point in CODING_POINTS)}")
