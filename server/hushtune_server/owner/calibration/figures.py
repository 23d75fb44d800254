"""The picture of a calibration: measured shares with their intervals, the curve through them, and its band."""

from pathlib import Path

from matplotlib import rc_context
from matplotlib.figure import Figure

from hushtune_server.owner.calibration.curve import Calibrated

_COLOUR = "#1b6ca8"


def draw(found: Calibrated, file: Path) -> None:
    """Write the figure as SVG. Equal calibrations give equal files."""
    figure = Figure(figsize=(7.0, 4.2), layout="constrained")
    axes = figure.add_subplot()
    figure.suptitle("What an update keeps of the plug-in's gain, by the share of its bytes (public text)", fontsize=11)
    curve, points = found.curve, found.curve.points
    band = found.band
    axes.fill_between(band.shares, band.low, band.high, color=_COLOUR, alpha=0.15, label="95 % band of the curve")
    label = f"{curve.offset:.4g} - {curve.weight:.4g} phi^-{curve.shape:.3g}"
    axes.plot(band.shares, [curve.value(float(share)) for share in band.shares], color=_COLOUR, label=label)
    spread = [[p.value - p.low for p in points], [p.high - p.value for p in points]]
    axes.errorbar(
        [p.share for p in points],
        [p.value for p in points],
        yerr=spread,
        fmt="o",
        color="black",
        markersize=4,
        linewidth=1,
        capsize=2,
        label="measured, 95 % of resampled windows",
    )
    axes.axhline(1.0, color="#6b6b6b", linewidth=1, linestyle=":")
    axes.set(xscale="log", xlabel="share phi of a full update's bytes", ylabel="gain kept (1: uncompressed)")
    axes.grid(visible=True, alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    with rc_context({"svg.hashsalt": "calibration"}):  # names inside the file are random otherwise
        figure.savefig(file, metadata={"Date": None})
