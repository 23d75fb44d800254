"""What are updates worth in this run, by the share of their bytes? Measured before the first round, once for an emulator.

What was found lies in the owner's state folder under the digest of all that it depends on, so that a restart brings the same
curve; single results lie in the cache besides, so that a measurement that was interrupted goes on.
"""

import hashlib
import logging
from pathlib import Path
from typing import Final

import msgspec

from hushtune_common.clock import Clock
from hushtune_common.config import Scenario
from hushtune_common.errors import ConfigError
from hushtune_common.logs import log_event
from hushtune_common.messages import Digest, UtilityCurve
from hushtune_server.owner.calibration.curve import HELD_WINDOWS, Calibrated, calibrate, plan_of
from hushtune_server.owner.calibration.measure import Plan
from hushtune_server.owner.emulators.engine import Workplace

FILE: Final = "utility.json"
"""Name in the owner's state folder."""
_FORMAT: Final = "hushtune-utility/1"
_HELD_SHARE: Final = 3
"""Of little text at most one window in so many scores, the others train."""
_log = logging.getLogger(__name__)


class Kept(msgspec.Struct, frozen=True, kw_only=True):
    """What the state folder holds: the curve, what it was measured for, and how much training on public text gained."""

    format: str
    of: str
    curve: UtilityCurve
    bytes: tuple[int, ...]
    gain_nats: float
    too_small: tuple[float, ...]


def worth(scenario: Scenario, *, bundle: Path, place: Workplace, state_dir: Path, clock: Clock) -> UtilityCurve:
    """Return what updates are worth with the emulator in ``bundle``: measured now, or in an earlier life of this process.

    Blocks for as long as a client trains, and a few passes over public text besides. ``ConfigError`` names the setting where
    there is too little public text, or where training on it gains nothing that could be kept.
    """
    plan = planned(scenario, windows=len(place.text.windows))
    of, path = _subject(scenario, plan, bundle=bundle), state_dir / FILE
    known = _read(path)
    reused = known is not None and (known.format, known.of) == (_FORMAT, of)
    if known is None or not reused:
        place.telling.phase("measuring what updates are worth")
        known = _kept(calibrate(scenario, bundle, at=place, plan=plan, clock=clock), of=of)
        _write(path, known)
    _tell(known, reused=reused)
    return known.curve


def planned(scenario: Scenario, *, windows: int) -> Plan:
    """Return which shares are measured, on how many of so many public windows: as many train as at a client, if there are."""
    held = min(HELD_WINDOWS, windows // _HELD_SHARE)
    try:
        return plan_of(scenario, train_windows=min(scenario.data.train_windows, windows - held), held_windows=held)
    except ValueError as error:
        advice = f"with {windows} public windows and share_min {scenario.coordinator.allocator.share_min:g}"
        raise ConfigError("coordinator.allocator.utility.kind", f"nothing can be measured {advice}: {error}") from error


def _subject(scenario: Scenario, plan: Plan, *, bundle: Path) -> str:
    """Return the digest of what a curve is about."""
    with bundle.open("rb") as file:
        emulator = hashlib.file_digest(file, "sha256").hexdigest()
    facts = {
        "emulator": emulator,
        "seed": scenario.seed,
        "training": scenario.training,
        "codec": scenario.codec,
        "compute": scenario.compute,
        "rounds": scenario.coordinator.rounds,
        "shares": plan.shares,
        "windows": (plan.train_windows, plan.held_windows),
        "public": Path(scenario.data.public).name,
    }
    return Digest.of(msgspec.json.encode(facts, order="sorted")).hex


def _kept(found: Calibrated, *, of: str) -> Kept:
    return Kept(
        format=_FORMAT,
        of=of,
        curve=found.curve,
        bytes=tuple(found.measurement.sizes.tolist()),
        gain_nats=found.gain_nats,
        too_small=found.measurement.too_small,
    )


def _read(path: Path) -> Kept | None:
    """Return what an earlier life left; nothing where that is not there or not to be read, since it can be measured again."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Kept)
    except (OSError, msgspec.DecodeError):
        return None


def _write(path: Path, kept: Kept) -> None:
    partial = path.with_suffix(".partial")
    partial.write_bytes(msgspec.json.format(msgspec.json.encode(kept), indent=1) + b"\n")
    partial.replace(path)


def _tell(kept: Kept, *, reused: bool) -> None:
    curve = kept.curve
    log_event(
        _log,
        "utility_calibrated",
        offset=curve.offset,
        weight=curve.weight,
        shape=curve.shape,
        share_min=curve.share_min,
        points=[list(point) for point in curve.points],
        bytes=list(kept.bytes),
        gain_nats=kept.gain_nats,
        too_small=list(kept.too_small),
        reused=reused,
    )
