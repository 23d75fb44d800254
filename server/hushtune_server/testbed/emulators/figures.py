"""Pictures of a comparison: what an emulator is worth at its size, what the owner keeps, and which blocks matter."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hushtune_server.testbed.emulators.report import loss_of

Json = Mapping[str, Any]

_OURS: Final = "#1b6ca8"
_THEIRS: Final = "#b3402a"
_GREY: Final = "#6b6b6b"
_AXES: Final = {"nats": "nats per token on held-out private text", "error": "share of held-out texts misjudged"}
_IMPORTANCE: Final = ("loss_rise_nats", "influence", "score", "similarity_to_next")


def draw(document: Json, plans: Mapping[str, Json], folder: Path) -> dict[str, str]:
    """Write the figures that there is data for; return file names by what they show. Equal documents give equal files.

    ``plans`` are the parameters of plans by name of the emulator.
    """
    rows = sorted((row for row in document["emulators"] if "delta" in row), key=lambda row: (row["bytes"], row["name"]))
    made = {
        "plug_in": _plug_in(document, rows) if rows else None,
        "delta": _delta(rows) if rows else None,
        "importance": _importance(plans),
    }
    folder.mkdir(parents=True, exist_ok=True)
    names: dict[str, str] = {}
    for what, figure in made.items():
        if figure is not None:
            with rc_context({"svg.hashsalt": what}):  # names inside the file are random otherwise
                figure.savefig(folder / f"{what}.svg", metadata={"Date": None})
            names[what] = f"{folder.name}/{what}.svg"
    return names


def _figure(title: str, *, rows: int = 1) -> tuple[Figure, Sequence[Axes]]:
    figure = Figure(figsize=(7.0, 1.4 + 2.8 * rows), layout="constrained")
    axes = [figure.add_subplot(rows, 1, k + 1) for k in range(rows)]
    figure.suptitle(title, fontsize=11)
    for one in axes:
        one.grid(visible=True, alpha=0.25)
        one.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _plug_in(document: Json, rows: Sequence[Json]) -> Figure:
    figure, (axes,) = _figure("Plug-in and emulator after training, over bytes shipped")
    for setting, colour, label in (("plug_in", _OURS, "plug-in"), ("emulator_fine_tuned", _THEIRS, "emulator")):
        scores = [loss_of(row["settings"][setting]) for row in rows]
        _points(axes, rows, scores, colour=colour, label=label, names=setting == "plug_in")
    for setting, style in (("full_zero_shot", ":"), ("bound", "--"), ("full_fine_tuned", "-")):
        if setting in document["settings"]:
            axes.axhline(
                loss_of(document["settings"][setting])[0], color=_GREY, linestyle=style, linewidth=1, label=_said(setting)
            )
    axes.set(xlabel="MB", ylabel=_AXES[document["unit"]])
    axes.legend(frameon=False, fontsize=8)
    return figure


def _delta(rows: Sequence[Json]) -> Figure:
    figure, (axes,) = _figure("By how much the plug-in is ahead of whoever holds the emulator")
    deltas = [_ends(row["delta"]) for row in rows]
    _points(axes, rows, deltas, colour=_OURS, label="adapter blocks trained", names=True)
    attacks = sorted({name for row in rows for name, found in row.get("attacks", {}).items() if found})
    for name in attacks:
        attacked = [row for row in rows if row["attacks"].get(name)]
        scores = [_ends(row["attacks"][name]["gap"]) for row in attacked]
        _points(axes, attacked, scores, colour=_THEIRS, label=f"attack {name}", names=False)
    axes.axhline(0.0, color=_GREY, linewidth=1)
    axes.set(xlabel="MB", ylabel="difference of losses")
    axes.legend(frameon=False, fontsize=8)
    return figure


Ends = tuple[float, float, float]
"""A number and the ends of its interval."""


def _points(axes: Axes, rows: Sequence[Json], scores: Sequence[Ends], *, colour: str, label: str, names: bool) -> None:
    x, y = [row["bytes"] / 1e6 for row in rows], [value for value, _, _ in scores]
    below = [max(0.0, value - low) for value, low, _ in scores]
    above = [max(0.0, high - value) for value, _, high in scores]
    axes.errorbar(x, y, yerr=[below, above], fmt="o", color=colour, markersize=4, linewidth=1, capsize=2, label=label)
    if names:
        for row, across, up in zip(rows, x, y, strict=True):
            axes.annotate(row["name"], (across, up), xytext=(4, 4), textcoords="offset points", fontsize=7)


def _ends(number: Json) -> Ends:
    value = float(number["value"])
    return (value, value, value) if number["low"] is None else (value, float(number["low"]), float(number["high"]))


def _importance(plans: Mapping[str, Json]) -> Figure | None:
    """What each method measured of every block; nothing for methods that measure nothing of single blocks."""
    found = {name: scores for name, parameters in sorted(plans.items()) if (scores := _scores_of(parameters))}
    if not found:
        return None
    figure, axes = _figure("What was measured of each block on public text", rows=len(found))
    for one, (name, (what, scores)) in zip(axes, found.items(), strict=True):
        one.bar(list(scores), list(scores.values()), color=_OURS, alpha=0.8)
        one.set(title=name, ylabel=what.replace("_", " "))
    axes[-1].set_xlabel("block, by original index")
    return figure


def _scores_of(parameters: Json) -> tuple[str, dict[int, float]] | None:
    for what in _IMPORTANCE:
        values = parameters.get(what)
        if isinstance(values, Mapping) and values and all(isinstance(v, int | float) for v in values.values()):
            return what, {int(block): float(value) for block, value in values.items()}
    return None


def _said(setting: str) -> str:
    return {"full_zero_shot": "full model", "bound": "bound", "full_fine_tuned": "full fine-tuning"}[setting]
