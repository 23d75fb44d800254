"""What is an update worth by its share, in shares of what it gains uncompressed, and how sure is that?

Worth is the *gain kept*: by how much the plug-in's loss on public text falls with what was read, over how much it falls with the
adapter as it was trained. 1 is uncompressed, 0 the model as it was. Unlike nats it carries over to text that gains more or less.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hushtune_common.errors import ConfigError
from hushtune_common.messages import CurvePoint, UtilityCurve
from hushtune_common.seeding import SeedTree
from hushtune_server.owner.calibration.fit import Band, Floats, band, curve_through
from hushtune_server.owner.calibration.measure import Measurement

_GRID = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibrated:
    """A curve with its 95 % band, the bytes (K,) of its points, and the gain in nats per token of the uncompressed adapter."""

    curve: UtilityCurve
    band: Band
    sizes: NDArray[np.int64]
    gain_nats: float
    gain_low: float
    gain_high: float
    too_small: tuple[float, ...]


def calibrated(measurement: Measurement, *, seeds: SeedTree, resamples: int = 1000) -> Calibrated:
    """Return the curve that a measurement supports; windows are resampled, the same draws for all shares.

    `ConfigError` when training on public text gained nothing that can be told from chance, or when the curve is none to plan
    with.
    """
    gains = measurement.before - np.stack([measurement.uncompressed, *measurement.losses])  # (1 + K, N)
    means, resampled = gains.mean(axis=1), _resampled(gains, seeds=seeds, resamples=resamples)
    low, high = np.quantile(resampled[:, 0], [0.025, 0.975])
    if not low > 0.0:
        raise ConfigError(
            "data.public",
            f"training on it gains {means[0]:.4f} nats per token, between {low:.4f} and {high:.4f}, which cannot be told from "
            "nothing; let more windows train or score, or raise training.epochs",
        )
    sound = resampled[resampled[:, 0] > 0.0]
    kept = sound[:, 1:] / sound[:, :1]  # (R, K)
    points = [_point(share, kept[:, k], means[1 + k] / means[0]) for k, share in enumerate(measurement.shares.tolist())]
    try:
        curve = curve_through(points)
    except ValueError as error:
        raise ConfigError("data.public", f"gives no curve of utility: {error}") from error
    return Calibrated(
        curve=curve,
        band=band(points, kept, at=np.geomspace(curve.share_min, 1.0, _GRID)),
        sizes=measurement.sizes,
        gain_nats=float(means[0]),
        gain_low=float(low),
        gain_high=float(high),
        too_small=measurement.too_small,
    )


def _resampled(gains: Floats, *, seeds: SeedTree, resamples: int) -> Floats:
    """Return the mean gains (R, 1 + K) of resampled windows."""
    count = gains.shape[1]
    draws = seeds.child("bootstrap").generator().multinomial(count, np.full(count, 1.0 / count), size=resamples)
    return draws @ gains.T / count


def _point(share: float, kept: Floats, value: float) -> CurvePoint:
    low, high = np.quantile(kept, [0.025, 0.975])
    return CurvePoint(share, float(value), float(min(low, value)), float(max(high, value)))
