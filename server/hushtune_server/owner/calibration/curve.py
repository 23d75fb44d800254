"""What is an update worth by its share, in shares of what it gains uncompressed, and how sure is that?

Worth is the *gain kept*: by how much the plug-in's loss on public text falls with what was read, over how much it falls with the
adapter as it was trained. 1 is uncompressed, 0 the model as it was. Unlike nats it carries over to text that gains more or less.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hushtune_common.clock import Clock
from hushtune_common.config import Scenario
from hushtune_common.errors import ConfigError
from hushtune_common.messages import CurvePoint, UtilityCurve
from hushtune_common.seeding import SeedTree
from hushtune_server.owner.calibration.fit import Band, Floats, band, curve_through
from hushtune_server.owner.calibration.measure import Calibration, Measurement, Plan, shares_from
from hushtune_server.owner.emulators.engine import Workplace

HELD_WINDOWS = 48
"""Public windows that score, unless said otherwise."""
_GRID = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibrated:
    """A curve with its 95 % band, what was measured, and the gain in nats per token of the uncompressed adapter."""

    curve: UtilityCurve
    band: Band
    measurement: Measurement
    gain_nats: float
    gain_low: float
    gain_high: float


def plan_of(
    scenario: Scenario,
    *,
    shares: tuple[float, ...] | None = None,
    train_windows: int | None = None,
    held_windows: int = HELD_WINDOWS,
) -> Plan:
    """Return what is measured for a scenario unless said otherwise: from its least share up, as many windows as a client has.

    ``ValueError`` as `Plan`.
    """
    return Plan(
        shares=shares_from(scenario.coordinator.allocator.share_min) if shares is None else shares,
        train_windows=scenario.data.train_windows if train_windows is None else train_windows,
        held_windows=held_windows,
    )


def calibrate(
    scenario: Scenario,
    bundle: Path,
    *,
    at: Workplace,
    plan: Plan,
    clock: Clock,
    resamples: int = 1000,
) -> Calibrated:
    """Measure what updates of the emulator in ``bundle`` are worth by their share, and fit the curve. Minutes for a large model.

    What is known from before is not computed again, as long as ``at`` has the same folder and seeds. `ConfigError` names what is
    too short, too small or gains nothing.
    """
    work = Calibration(
        bundle,
        at=at,
        training=scenario.training,
        codec=scenario.codec,
        clock=clock,
        rounds=scenario.coordinator.rounds,
    )
    return calibrated(work.measure(plan), seeds=at.seeds.child("calibration"), resamples=resamples)


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
        measurement=measurement,
        gain_nats=float(means[0]),
        gain_low=float(low),
        gain_high=float(high),
    )


def _resampled(gains: Floats, *, seeds: SeedTree, resamples: int) -> Floats:
    """Return the mean gains (R, 1 + K) of resampled windows."""
    count = gains.shape[1]
    draws = seeds.child("bootstrap").generator().multinomial(count, np.full(count, 1.0 / count), size=resamples)
    return draws @ gains.T / count


def _point(share: float, kept: Floats, value: float) -> CurvePoint:
    low, high = np.quantile(kept, [0.025, 0.975])
    return CurvePoint(share, float(value), float(min(low, value)), float(max(high, value)))
