"""Closed forms of the radio link: path gain, noise, the assumed bound on the tap, secrecy rates and outages.

SNRs are linear unless they say dB; rates are in bit per complex symbol. Capacities and their outages hold for codes of endless
length: baselines for figures, never a reason to send.
"""

from math import e, exp, expm1, hypot, isfinite, log, log1p, log2, log10, sqrt
from typing import Final

from scipy.special import gammaincc, ndtri, ndtri_exp

from hushtune_common.config import ClientConfig, Position, Scenario
from hushtune_common.link.leakage import information_density
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


def second_order_secrecy_rate(
    snr_main: float, snr_tap: float, *, symbols: int, block_error_rate: float, log2_delta: float
) -> float:
    """Return what ``symbols`` complex Gaussian symbols could carry secretly, to second order in their number.

    Capacities less ``sqrt(V_B / n) Qinv(block error rate) + sqrt(V_E / n) Qinv(delta)``, with the dispersion of the Gaussian
    channel; terms of order ``log(n) / n`` are left out. The form follows Yang, Schaefer and Poor (arXiv 1706.03866); it is
    reconstructed, not taken from there word by word. A benchmark, neither a bound on this code nor a design.
    """
    gap = log2(1.0 + snr_main) - log2(1.0 + snr_tap)
    dispersion = (_gaussian_dispersion(snr_main), _gaussian_dispersion(snr_tap))
    return _second_order(gap, dispersion, symbols=symbols, block_error_rate=block_error_rate, log2_delta=log2_delta)


def second_order_constrained_rate(
    modulation: str, *, snr_main_db: float, snr_tap_db: float, symbols: int, block_error_rate: float, log2_delta: float
) -> float:
    """Return the same benchmark for a uniform constellation, with its own mutual information and dispersion."""
    main, tap = information_density(modulation, snr_main_db), information_density(modulation, snr_tap_db)
    gap, dispersion = 2.0 * (main.mean - tap.mean), (2.0 * main.variance, 2.0 * tap.variance)  # two dimensions per symbol
    return _second_order(gap, dispersion, symbols=symbols, block_error_rate=block_error_rate, log2_delta=log2_delta)


def positive_secrecy_probability(mean_main: float, mean_tap: float) -> float:
    """Return how often the owner's channel is the better one when both fade (Rayleigh) around these mean SNRs."""
    # Bloch, Barros, Rodrigues and McLaughlin (2008).
    return mean_main / (mean_main + mean_tap)


def secrecy_outage(mean_main: float, mean_tap: float, *, rate: float) -> float:
    """Return how often the Gaussian secrecy capacity is below ``rate`` when both links fade (Rayleigh) and nobody knows how."""
    # Bloch, Barros, Rodrigues and McLaughlin (2008).
    factor = 2.0**rate
    return 1.0 - mean_main / (mean_main + factor * mean_tap) * exp(-(factor - 1.0) / mean_main)


def secrecy_outage_known_main(snr_main: float, mean_tap: float, *, rate: float, antennas: int = 1) -> float:
    """Return how often a Rayleigh-faded tap can learn something of a Gaussian code of ``rate`` when the owner's SNR is known.

    The code sends at the owner's capacity. The tap combines ``antennas`` independently faded copies (maximum ratio): its SNR is
    ``mean_tap`` times a gamma variable.
    """
    # Zhou, McKay, Maham and Hjorungnes (2011) for one antenna; the regularised upper incomplete gamma function for several.
    if antennas < 1:
        raise ValueError(f"a tap has at least one antenna, got {antennas}")
    allowed = (1.0 + snr_main) / 2.0**rate - 1.0
    return float(gammaincc(antennas, allowed / mean_tap)) if allowed > 0.0 else 1.0


def outage_factor(outage: float) -> float:
    """Return the factor over its mean that a Rayleigh-faded SNR exceeds with probability ``outage``: ln(1 / outage)."""
    if not 0.0 < outage < 1.0:
        raise ValueError(f"an outage probability lies between 0 and 1, got {outage}")
    return log(1.0 / outage)


def any_outage(outage: float, count: int) -> float:
    """Return the probability that at least one of ``count`` independent coherence blocks is in outage."""
    return -expm1(count * log1p(-outage))


def _gaussian_dispersion(snr: float) -> float:
    """Variance of the information density in bit squared per complex symbol (Polyanskiy, Poor and Verdu 2010, twice the real)."""
    return snr * (snr + 2.0) / (snr + 1.0) ** 2 * log2(e) ** 2


def _second_order(
    gap: float, dispersion: tuple[float, float], *, symbols: int, block_error_rate: float, log2_delta: float
) -> float:
    if symbols < 1 or not 0.0 < block_error_rate < 1.0 or not log2_delta < 0.0:
        raise ValueError(f"impossible demand: {symbols} symbols, error rate {block_error_rate}, log2_delta {log2_delta}")
    lost = sqrt(dispersion[0] / symbols) * -float(ndtri(block_error_rate))
    hidden = sqrt(dispersion[1] / symbols) * -float(ndtri_exp(log2_delta * log(2.0)))
    return max(0.0, gap - lost - hidden)
