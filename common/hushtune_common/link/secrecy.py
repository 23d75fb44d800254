"""Closed forms of the radio link: path gain, noise, the assumed bound on the tap, secrecy rate and outage."""

from math import expm1, hypot, isfinite, log, log1p, log2, log10
from typing import Final

from hushtune_common.config import ClientConfig, Position, Scenario
from hushtune_common.units import NOISE_DENSITY_W_PER_HZ, Hertz, Metre, PowerRatio, Watt, from_db

DISTANCE_MIN: Final = Metre(10.0)
"""Closer than this the far-field path loss means nothing; every link is at least this long."""


def path_gain(distance: Metre) -> PowerRatio:
    """Return the mean power gain over a distance: path loss 128.1 + 37.6 log10(d / km) dB, the urban macro model of 3GPP."""
    if not (isfinite(distance) and distance >= 0.0):
        raise ValueError(f"a distance is finite and not negative, got {distance} m")
    return from_db(-(128.1 + 37.6 * log10(max(distance, DISTANCE_MIN) / 1000.0)))


def distance_between(a: Position, b: Position) -> Metre:
    """Return the distance of two places in metres."""
    return Metre(hypot(a.x_m - b.x_m, a.y_m - b.y_m))


def tap_gain_bound(scenario: Scenario, client: ClientConfig) -> PowerRatio:
    """Return the *assumed* upper bound on the eavesdropper's gain from this client: its mean path gain plus a margin.

    The margin (``secrecy.tap_margin_db``) has to cover shadowing and whatever else could favour the tap. Every leakage bound
    rests on this assumption; nothing measures it.
    """
    distance = distance_between(client.position, scenario.air.eavesdropper)
    return PowerRatio(path_gain(distance) * from_db(scenario.secrecy.tap_margin_db))


def noise_power(bandwidth: Hertz) -> Watt:
    """Return thermal noise in a bandwidth."""
    return Watt(NOISE_DENSITY_W_PER_HZ * bandwidth)


def snr(*, power: Watt, gain: PowerRatio, bandwidth: Hertz) -> PowerRatio:
    """Return the mean symbol SNR of a transmission as a linear ratio."""
    return PowerRatio(power * gain / noise_power(bandwidth))


def gaussian_secrecy_rate(snr_main: float, snr_tap: float) -> float:
    """Return the Gaussian secrecy capacity in bit per complex symbol: a baseline that overstates what a finite code delivers."""
    # Leung-Yan-Cheong and Hellman (1978): the difference of the two capacities.
    return max(0.0, log2(1.0 + snr_main) - log2(1.0 + snr_tap))


def outage_factor(outage: float) -> float:
    """Return the factor over its mean that a Rayleigh-faded SNR exceeds with probability ``outage``: ln(1 / outage)."""
    if not 0.0 < outage < 1.0:
        raise ValueError(f"an outage probability lies between 0 and 1, got {outage}")
    return log(1.0 / outage)


def any_outage(outage: float, count: int) -> float:
    """Return the probability that at least one of ``count`` independent coherence blocks is in outage."""
    return -expm1(count * log1p(-outage))
