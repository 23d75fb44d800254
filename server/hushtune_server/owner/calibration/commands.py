"""``hushtune codec calibrate``: the owner measures, on public text alone, what an update is worth by the share of its bytes."""

import json
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, Parameter

from hushtune_common.errors import ConfigError
from hushtune_server.owner.commands import MODEL_CACHE
from hushtune_server.words import extra

if TYPE_CHECKING:
    from hushtune_common.config import Scenario
    from hushtune_server.owner.calibration.curve import Calibrated
    from hushtune_server.owner.calibration.measure import Plan
    from hushtune_server.owner.emulators.opening import Opened

FORMAT = "hushtune-utility-curve/1"


def register(app: App) -> None:
    """Add the ``codec`` commands to the command line."""
    codec = App(name="codec", help="What the adapter's way home costs: bytes against what the plug-in loses.")
    codec.command(calibrate)
    app.command(codec)


def calibrate(
    scenario: Annotated[Path, Parameter(help="A scenario; its model, emulator, training and codec are what is measured.")],
    *,
    out: Annotated[Path, Parameter(help="File to write the curve to, JSON; the figure goes beside it, as SVG.")],
    shares: Annotated[
        str | None,
        Parameter(help="Shares to measure, separated by commas; nine from coordinator.allocator.share_min to 1 unless said."),
    ] = None,
    train_windows: Annotated[int | None, Parameter(help="Public windows that train; data.train_windows unless said.")] = None,
    held_windows: Annotated[int, Parameter(help="Public windows that score, and train nothing.")] = 48,
    resamples: Annotated[int, Parameter(help="Resamples of these windows, for intervals and band.")] = 1000,
    emulator: Annotated[
        Path | None, Parameter(help="An emulator made before (`hushtune emulator build`); the scenario's is made unless given.")
    ] = None,
    set_: Annotated[
        tuple[str, ...], Parameter(name="--set", help="Override one scenario key: `path.to.key=value`; repeatable.")
    ] = (),
    figure: Annotated[bool, Parameter(negative="--no-figure", help="Draw the figure; it needs matplotlib.")] = True,
    json_: Annotated[bool, Parameter(name="--json", help="Print the curve as JSON instead of a table.")] = False,
    cache: Annotated[Path, Parameter(help="Folder for models and intermediate results, shared between runs.")] = MODEL_CACHE,
) -> None:
    """Measure what an update is worth by the share phi of its bytes, and fit `u(phi) = offset - weight * phi**-shape`.

    Plays a client on public text: trains the adapter blocks on the emulator, writes them with the scenario's codec at every
    share, plugs what was read into the full model, and scores public windows that trained nothing. Worth is the gain kept: 1 is
    the uncompressed adapter's gain, 0 the model as it was. No client text is read and nothing is sent.

    A coordinator whose `coordinator.allocator.utility.kind` is "measured" plans with such a curve. What was measured is kept in
    the cache: a killed calibration goes on where it was, and one with other shares computes only those.

    Example: `hushtune codec calibrate scenarios/demo.toml --out runs/curve.json --shares 0.1,0.2,0.4,0.7,1`
    """
    from hushtune_common import config

    draw = _artist(wanted=figure)
    resolved = config.load(scenario, overrides=set_)
    plan = _plan(resolved, shares=shares, train_windows=train_windows, held_windows=held_windows)
    if resamples < 100:
        raise ConfigError("--resamples", f"at least 100 make an interval, got {resamples}")
    with extra("owner"):
        from hushtune_common.clock import SystemClock
        from hushtune_server.owner.calibration.curve import calibrate as measured_curve
        from hushtune_server.owner.emulators.opening import opened
    clock = SystemClock()
    start = opened(resolved, cache=cache, telling=_telling())
    with _bundle(resolved, start, given=emulator, cache=cache) as bundle:
        found = measured_curve(resolved, bundle, at=start.place, plan=plan, clock=clock, resamples=resamples)
    document = _document(found, resolved, date=clock.wall().isoformat(timespec="seconds"))
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
        if draw is not None:
            draw(found, out.with_suffix(".svg"))
    except OSError as error:
        raise ConfigError("--out", f"cannot write {out} ({error.strerror})") from error
    print(json.dumps(document, indent=1) if json_ else _table(found))
    if not json_:
        print(f"written to {out}" + (f", drawn in {out.with_suffix('.svg')}" if figure else ""))


def _artist(*, wanted: bool) -> "Callable[[Calibrated, Path], None] | None":
    """Return what draws the figure, none where none is wanted; a missing package is told before anything is computed."""
    if not wanted:
        return None
    with extra("testbed"):
        from hushtune_server.owner.calibration.figures import draw
    return draw


def _plan(scenario: "Scenario", *, shares: str | None, train_windows: int | None, held_windows: int) -> "Plan":
    with extra("owner"):
        from hushtune_server.owner.calibration.curve import plan_of

    try:
        asked = None if shares is None else tuple(float(part) for part in shares.split(","))
        return plan_of(scenario, shares=asked, train_windows=train_windows, held_windows=held_windows)
    except ValueError as error:
        raise ConfigError("--shares, --train-windows, --held-windows", str(error)) from error


@contextmanager
def _bundle(scenario: "Scenario", start: "Opened", *, given: Path | None, cache: Path) -> Generator[Path]:
    """Return the emulator's file: the one that is given, if it is this scenario's, or one made for as long as this takes."""
    from hushtune_common.model.bundle import read_bundle, write_bundle
    from hushtune_server.owner.emulators.engine import build
    from hushtune_server.owner.emulators.planning import shipped_plan
    from hushtune_server.owner.emulators.sensitivity import known_to_both

    if given is not None:
        try:
            plan = read_bundle(given).plan
        except OSError as error:
            raise ConfigError("--emulator", f"cannot read {given} ({error.strerror})") from error
        if (plan.base, plan.adapter) != (start.request.base, start.request.adapter):
            raise ConfigError("--emulator", f"{given} is of another model, or has other adapter blocks, than the scenario")
        yield given
        return
    options, place = scenario.owner.emulator, start.place
    built = build(options, start.request, at=place, plan=shipped_plan(options, request=start.request))
    cache.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=cache, prefix="calibration-") as folder:
        path = Path(folder) / "emulator.safetensors"
        place.telling.phase("writing the emulator")
        known = known_to_both(scenario.codec, built.plan, at=place)
        write_bundle(path, source=place.source, plan=built.plan, refinement=built.refinement, sensitivity=known)
        yield path


def _document(found: "Calibrated", scenario: "Scenario", *, date: str) -> dict[str, Any]:
    curve = found.curve
    return {
        "format": FORMAT,
        "scenario": scenario.name,
        "date": date,
        "emulator": found.measurement.emulator,
        "codec": found.measurement.codec,
        "unit": "share of the uncompressed plug-in's gain on public text",
        "gain_nats": {"value": found.gain_nats, "low": found.gain_low, "high": found.gain_high},
        "curve": {
            "offset": curve.offset,
            "weight": curve.weight,
            "shape": curve.shape,
            "share_min": curve.share_min,
            "points": [point._asdict() for point in curve.points],
        },
        "bytes": found.measurement.sizes.tolist(),
        "band": {name: getattr(found.band, name).tolist() for name in ("shares", "low", "high")},
        "too_small": list(found.measurement.too_small),
    }


def _table(found: "Calibrated") -> str:
    """Return every measured share, and the curve in words."""
    curve = found.curve
    lines = [
        f"uncompressed, training on public text gains {found.gain_nats:.4f} nats per token "
        f"[{found.gain_low:.4f}, {found.gain_high:.4f}]",
        f"{'share':>7}  {'MB':>8}  {'gain kept':>26}  {'curve':>7}",
    ]
    for point, size in zip(curve.points, found.measurement.sizes.tolist(), strict=True):
        kept = f"{point.value:.4f} [{point.low:.4f}, {point.high:.4f}]"
        lines.append(f"{point.share:7.3f}  {size / 1e6:8.3f}  {kept:>26}  {curve.value(point.share):7.4f}")
    lines += [f"{share:7.3f}  no file is so small" for share in found.measurement.too_small]
    lines.append(f"u(phi) = {curve.offset:.6g} - {curve.weight:.6g} * phi**-{curve.shape:.4g}, from phi = {curve.share_min:g} on")
    return "\n".join(lines)


def _telling() -> Any:
    from hushtune_server.owner.emulators.engine import Telling

    return Telling(phase=lambda phase: print(phase, file=sys.stderr, flush=True), progress=lambda _done, _total: None)
