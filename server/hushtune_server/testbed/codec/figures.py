"""The picture of a codec curve: what the plug-in loses, over bytes, peers as points and ours as a line."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

Json = Mapping[str, Any]

_OURS: Final = "#1b6ca8"
_THEIRS: Final = "#b3402a"
_GREY: Final = "#6b6b6b"
_LINEAR_BELOW: Final = 0.1
"""Increases below so many per cent are drawn to scale: a logarithm cannot show that an interval holds zero."""


def draw(document: Json, folder: Path) -> dict[str, str]:
    """Write the figure; return file names by what they show. Equal documents give equal files."""
    figure = Figure(figsize=(7.0, 7.6), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    figure.suptitle("What a plug-in loses for the bytes its adapter has", fontsize=11)
    _panel(above, document, what="perplexity")
    start = document["settings"]["full_zero_shot"]["perplexity"]
    above.axhline(start, color=_GREY, linestyle=":", linewidth=1, label="full model, zero-shot")
    above.axhline(document["settings"]["uncompressed"]["perplexity"], color=_GREY, linewidth=1, label="plug-in, nothing written")
    above.set(ylabel="perplexity on held-out private text", xscale="log")
    _panel(below, document, what="increase")
    below.axhline(0.0, color=_GREY, linewidth=1)
    below.set_yscale("symlog", linthresh=_LINEAR_BELOW)
    below.set(ylabel="increase of perplexity, %", xlabel="bits per weight, of the whole file")
    above.legend(frameon=False, fontsize=8)
    folder.mkdir(parents=True, exist_ok=True)
    with rc_context({"svg.hashsalt": "curve"}):  # names inside the file are random otherwise
        figure.savefig(folder / "curve.svg", metadata={"Date": None})
    return {"loss_over_bytes": f"{folder.name}/curve.svg"}


def _panel(axes: Axes, document: Json, *, what: str) -> None:
    axes.grid(visible=True, alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    ours = sorted((row for row in document["ours"] if "failed" not in row), key=lambda row: row["bytes"])
    peers = [row for row in document["peers"] if "failed" not in row]
    _points(axes, ours, what=what, colour=_OURS, line="-", label="ours")
    _points(axes, peers, what=what, colour=_THEIRS, line="", label="peers")
    for row in _named(peers, what=what):
        place = (row["bits_per_weight"], _ends(row, what)[0])
        axes.annotate(row["name"], place, xytext=(4, 3), textcoords="offset points", fontsize=6)


def _named(peers: Sequence[Json], *, what: str) -> list[Json]:
    """Return the peers that have room for a name: one of two that differ by zstandard only; above, only who loses something."""
    names = {row["name"] for row in peers}
    single = [row for row in peers if f"{row['name']}+zstd" not in names]
    return single if what == "increase" else [row for row in single if row["increase_percent"]["low"] > 1.0]


def _points(axes: Axes, rows: Sequence[Json], *, what: str, colour: str, line: str, label: str) -> None:
    x, ends = [row["bits_per_weight"] for row in rows], [_ends(row, what) for row in rows]
    # Intervals of perplexity are those of the texts, the same for all; only differences have intervals of their own.
    spread = (
        [[max(0.0, v - low) for v, low, _ in ends], [max(0.0, high - v) for v, _, high in ends]] if what == "increase" else None
    )
    axes.errorbar(
        x,
        [value for value, _, _ in ends],
        yerr=spread,
        fmt=f"o{line}",
        color=colour,
        markersize=3.5,
        linewidth=1,
        capsize=2,
        label=label,
    )


def _ends(row: Json, what: str) -> tuple[float, float, float]:
    if what == "perplexity":
        return (row["perplexity"],) * 3
    found = row["increase_percent"]
    return found["value"], found["low"], found["high"]
