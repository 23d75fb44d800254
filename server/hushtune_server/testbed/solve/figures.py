"""The figures of a comparison: how much of the bound each allocator reaches, and what each client is given."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hushtune_common.errors import ConfigError
from hushtune_common.store.disk import disk_fault
from hushtune_server.coordinator.allocators.solution import Solution
from hushtune_server.coordinator.problems.instance import Instance
from hushtune_server.testbed.solve.compare import Comparison
from hushtune_server.testbed.solve.methods import Method

_OURS: Final = "#1b6ca8"
_OTHER: Final = "#b8b8b8"
_BOUND: Final = "#b3402a"
_GOALS: Final = {"ratio": "U / S", "difference": "U - price S", "cost": "-S", "max_min": "least u / S"}
_NAMED_MAX: Final = 24
"""More clients have no names on the axis."""
_CAPTION: Final = (
    "Workloads, utilities and constants are a reconstruction of arXiv 2407.00347; rates are Gaussian secrecy capacities."
)


def draw(instance: Instance, compared: Comparison, *, chosen: Method, folder: Path) -> list[Path]:
    """Write the figures that there are answers for and return their paths; equal results give equal files."""
    made = {"allocators": _allocators(instance, compared, chosen), "choice": _choice(instance, compared, chosen)}
    paths: list[Path] = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, figure in made.items():
            if figure is not None:
                paths.append(folder / f"{name}.svg")
                with rc_context({"svg.hashsalt": name}):  # names inside the file are random otherwise
                    figure.savefig(paths[-1], metadata={"Date": None})
    except OSError as error:
        raise disk_fault(error) or ConfigError("--figures", f"cannot write into {folder} ({error.strerror})") from error
    return paths


def _figure(title: str, *, rows: int, height: float) -> tuple[Figure, Sequence[Axes]]:
    figure = Figure(figsize=(7.0, height), layout="constrained")
    axes = list(np.atleast_1d(figure.subplots(rows, 1, sharex=rows > 1)))
    figure.suptitle(title, fontsize=11)
    figure.supxlabel(_CAPTION, fontsize=6.5)
    for one in axes:
        one.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _allocators(instance: Instance, compared: Comparison, chosen: Method) -> Figure | None:
    """The objective of every allocator that answered, against the bound."""
    rows = [row for row in compared.rows.values() if row.solution is not None and row.error is None]
    if not rows:
        return None
    goal = _GOALS[instance.objective.kind]
    figure, (axes,) = _figure(f"{goal} against what no allocation exceeds, {instance.clients} clients", rows=1, height=3.6)
    objectives = [row.solution.evaluation.objective for row in rows if row.solution is not None]
    colours = [_OURS if row.method == chosen else _OTHER for row in rows]
    bars = axes.barh([row.method for row in rows], objectives, color=colours)
    axes.bar_label(bars, [_label(row.ratio) for row in rows], padding=3, fontsize=8)
    if compared.upper_bound is not None:
        axes.axvline(compared.upper_bound, color=_BOUND, linewidth=1.2, label=f"certified bound {compared.upper_bound:.6g}")
        axes.legend(frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.18))
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.set_xlabel(goal)
    return figure


def _label(ratio: float | None) -> str:
    return "" if ratio is None else f"{100.0 * ratio:.2f} %"


def _choice(instance: Instance, compared: Comparison, chosen: Method) -> Figure | None:
    """Share, band, power and clock of every client: the chosen allocator's beside the even split."""
    row, even = compared.rows[chosen], compared.rows.get("equal_share")
    if row.solution is None:
        return None
    figure, axes = _figure(f"What each client is given by {chosen}", rows=4, height=7.2)
    other = None if even is None or chosen == "equal_share" else even.solution
    panels = zip(axes, _panels(row.solution), [None] * 4 if other is None else _panels(other), strict=True)
    for one, (heading, numbers), beside in panels:
        edges = np.arange(numbers.size + 1) - 0.5
        one.stairs(numbers, edges, fill=True, color=_OURS, alpha=0.75, label=chosen)
        if beside is not None:
            one.stairs(beside[1], edges, color="black", linewidth=1.0, label="equal_share")
        one.set_ylabel(heading)
        one.set_ylim(0.0, None)
    axes[0].legend(frameon=False, fontsize=8, ncols=2, loc="lower right", bbox_to_anchor=(1.0, 1.0))
    if instance.clients <= _NAMED_MAX:
        axes[-1].set_xticks(range(instance.clients), [name[:14] for name in instance.names], rotation=60, ha="right", fontsize=7)
    else:
        axes[-1].set_xlabel("clients, in the order of the instance")
    return figure


def _panels(solution: Solution) -> "list[tuple[str, np.ndarray[tuple[int, ...], np.dtype[np.float64]]]]":
    c = solution.choice
    return [
        ("share", c.share),
        ("band, MHz", c.bandwidth_mhz),
        ("power, W", c.power_w),
        ("clock, TFLOP/s", c.clock_tflops),
    ]
