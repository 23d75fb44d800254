"""Physical units as types, and the only conversions to and from decibels."""

from math import log10
from typing import NewType

Watt = NewType("Watt", float)
Hertz = NewType("Hertz", float)
Joule = NewType("Joule", float)
Second = NewType("Second", float)
Metre = NewType("Metre", float)
PowerRatio = NewType("PowerRatio", float)
"""A linear ratio of powers: an SNR, or a channel gain."""
Decibel = NewType("Decibel", float)
FlopPerSecond = NewType("FlopPerSecond", float)

NOISE_DENSITY_W_PER_HZ = 10 ** ((-174.0 - 30.0) / 10.0)
"""Thermal noise at room temperature, -174 dBm/Hz."""


def to_db(ratio: float) -> Decibel:
    """Return a positive power ratio in decibels; zero gives minus infinity."""
    if ratio < 0.0:
        raise ValueError(f"a power ratio is not negative, got {ratio}")
    return Decibel(10.0 * log10(ratio) if ratio > 0.0 else float("-inf"))


def from_db(level: float) -> PowerRatio:
    """Return decibels as a linear power ratio."""
    return PowerRatio(10.0 ** (level / 10.0))
