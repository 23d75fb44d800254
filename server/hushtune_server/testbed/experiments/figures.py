"""How do the experiments look: mean and spread over the seeds, in colours and marks that survive a black and white printer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hushtune_server.coordinator.problems.utility import Floats
from hushtune_server.testbed.experiments.contenders import OPTIMUM
from hushtune_server.testbed.experiments.problems import Sweep
from hushtune_server.testbed.plots import MAIN_COLOUR, TAP_COLOUR

Lines = Sequence[Mapping[str, Any]]
_GREY: Final = "#6b6b6b"
_LIGHT: Final = "#a8a8a8"
_BLOCKS_SHOWN: Final = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class _Style:
    """How a method is drawn everywhere; ``banded`` ones show their spread."""

    colour: str
    line: str
    mark: str
    banded: bool = False


_STYLES: Final[Mapping[str, _Style]] = {
    OPTIMUM: _Style(colour=MAIN_COLOUR, line="-", mark="o", banded=True),
    "alternating_free": _Style(colour=TAP_COLOUR, line="-", mark="s", banded=True),
    "alternating_strict": _Style(colour=TAP_COLOUR, line="--", mark="s"),
    "computation_only": _Style(colour=_GREY, line="-", mark="^"),
    "communication_only": _Style(colour=_GREY, line="--", mark="v"),
    "resources_only": _Style(colour=_GREY, line=":", mark="D"),
    "shares_only": _Style(colour=_GREY, line="-.", mark="P"),
    "secrecy_blind": _Style(colour=MAIN_COLOUR, line=":", mark="x"),
    "random": _Style(colour=_LIGHT, line=":", mark="."),
    "average": _Style(colour="#111111", line="-", mark="+", banded=True),
}
_PANELS: Final = (
    ("ratio", "utility over cost U/S", "linear"),
    ("share_mean", "mean share φ", "linear"),
    ("time_s", "delay T, s", "log"),
    ("energy_j", "energy, J", "log"),
)


def save(figure: Figure, path: Path) -> None:
    """Write an SVG file; equal figures give equal files."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with rc_context({"svg.hashsalt": path.stem}):
        figure.savefig(path, metadata={"Date": None})


def sweep_figure(sweep: Sweep, lines: Lines, labels: Mapping[str, str]) -> Figure:
    """Draw ratio, share, delay and energy over the varied quantity; bands are one standard deviation over the seeds."""
    figure, axes = _figure(2, 2, size=(8.0, 6.6))
    for one, (column, label, scale) in zip(axes, _PANELS, strict=True):
        for name, style in _STYLES.items():
            curve = _over_seeds(lines, x=sweep.column, y=column, method=name, geometric=scale == "log")
            _plot(one, curve, style=style, label=labels[name])
        one.set(ylabel=label, yscale=scale, xscale="log" if sweep.logarithmic else "linear")
    for one in axes[2:]:
        one.set_xlabel(sweep.label)
    if sweep.logarithmic:
        at = sorted({float(line[sweep.column]) for line in lines})
        for one in axes:
            one.set_xticks(at, [f"{x:g}" for x in at], fontsize=8)
            one.set_xticks([], minor=True)
    _legend(figure, axes[0], columns=5)
    return figure


def convergence_figure(lines: Lines, labels: Mapping[str, str]) -> Figure:
    """Draw the ratio over that of the joint optimum after every block; a run that has ended stays where it is."""
    figure, axes = _figure(1, 2, size=(8.0, 3.8))
    drawn = [line for line in lines if line["status"] == "ok"]
    last = min(_BLOCKS_SHOWN, max(line["block"] for line in drawn))
    for one, (rate, title) in zip(axes, (("exact", "exact secrecy rate"), ("tangent", "SCA on the secrecy rate")), strict=True):
        for name in ("alternating_free", "alternating_strict"):
            paths = _paths([line for line in drawn if line["rate"] == rate and line["method"] == name], last)
            blocks, style = np.arange(last + 1, dtype=np.float64), _STYLES[name]
            mean, spread = paths.mean(axis=0), paths.std(axis=0)
            curve = _Curve(x=blocks, mean=mean, low=mean - spread, high=mean + spread)
            _plot(one, curve, style=replace(style, banded=True), label=labels[name])
        one.axhline(1.0, color=MAIN_COLOUR, linewidth=1.2, label=labels[OPTIMUM])
        one.set(title=title, xlabel="blocks solved (odd: shares and y, even: resources)", ylim=(0.0, 1.05))
    axes[0].set_ylabel("y over the optimum's U/S")
    _legend(figure, axes[0], columns=3)
    return figure


def _paths(lines: Lines, last: int) -> Floats:
    """Return (seeds, blocks), the last value of each seed repeated to the end of the axis."""
    paths: list[list[float]] = []
    for seed in sorted({line["seed"] for line in lines}):
        path = [float(line["relative"]) for line in lines if line["seed"] == seed]
        paths.append((path + [path[-1]] * last)[: last + 1])
    return np.array(paths)


def shares_figure(lines: Lines, labels: Mapping[str, str]) -> Figure:
    """Draw which shares clients get, one panel per method."""
    names = ("global", "alternating_free", "alternating_strict")
    figure, axes = _figure(1, len(names), size=(8.0, 3.2))
    edges = np.linspace(0.0, 1.0, 21)
    for one, name in zip(axes, names, strict=True):
        found = [line["share"] for line in lines if line["method"] == name]
        seeds = len({line["seed"] for line in lines if line["method"] == name})
        colour = _STYLES[name].colour
        one.hist(found, bins=edges.tolist(), weights=np.full(len(found), 1.0 / len(found)), color=colour, alpha=0.8)
        one.set(title=f"{labels[name]}, {seeds} seeds", xlabel="share φ of a client")
        one.title.set_fontsize(8)
    top = max(one.get_ylim()[1] for one in axes)
    for one in axes:
        one.set_ylim(0.0, top)
    axes[0].set_ylabel("part of all clients")
    return figure


def prices_figure(lines: Lines) -> Figure:
    """Draw the mean best share over the weights of the cost, for the ratio and with y held."""
    figure, axes = _figure(1, 2, size=(8.0, 3.6))
    titles = {"time_weight_per_s": "weight of time multiplied", "energy_weight_per_j": "weight of energy multiplied"}
    kinds = {"ratio": (MAIN_COLOUR, "o", "the ratio U/S"), "difference": (TAP_COLOUR, "s", "U - y S, y held")}
    for one, (weight, title) in zip(axes, titles.items(), strict=True):
        for kind, (colour, mark, label) in kinds.items():
            chosen = [{**line, "method": kind} for line in lines if (line["weight"], line["objective"]) == (weight, kind)]
            curve = _over_seeds(chosen, x="factor", y="share_mean", method=kind)
            _plot(one, curve, style=_Style(colour=colour, line="-", mark=mark, banded=True), label=label)
        one.set(xscale="log", xlabel=title, ylim=(0.0, 1.0))
    axes[0].set_ylabel("mean best share φ")
    _legend(figure, axes[0], columns=2)
    return figure


def _figure(rows: int, columns: int, *, size: tuple[float, float]) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=size, layout="constrained")
    axes = list(np.atleast_1d(figure.subplots(rows, columns)).ravel())
    for one in axes:
        one.grid(visible=True, alpha=0.25)
        one.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _legend(figure: Figure, axes: Axes, *, columns: int) -> None:
    handles, names = axes.get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=columns, frameon=False, fontsize=8)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Curve:
    """Mean and spread over the seeds at every x."""

    x: Floats
    mean: Floats
    low: Floats
    high: Floats


def _over_seeds(lines: Lines, *, x: str, y: str, method: str, geometric: bool = False) -> _Curve:
    """Return mean and one standard deviation of ``y`` over the seeds with an answer, of its logarithm if ``geometric``."""
    values: dict[float, list[float]] = {}
    for line in lines:
        if line["method"] == method and line[y] is not None:
            value = float(line[y])
            values.setdefault(float(line[x]), []).append(float(np.log(value)) if geometric else value)
    at = sorted(values)
    mean = np.array([float(np.mean(values[k])) for k in at])
    spread = np.array([float(np.std(values[k])) for k in at])
    ends = [np.exp(e) if geometric else e for e in (mean, mean - spread, mean + spread)]
    return _Curve(x=np.array(at), mean=ends[0], low=ends[1], high=ends[2])


def _plot(axes: Axes, curve: _Curve, *, style: _Style, label: str) -> None:
    line, mark, colour = style.line, style.mark, style.colour
    axes.plot(curve.x, curve.mean, linestyle=line, marker=mark, color=colour, markersize=4, linewidth=1.2, label=label)
    if style.banded:
        axes.fill_between(curve.x, curve.low, curve.high, color=colour, alpha=0.12, linewidth=0)
