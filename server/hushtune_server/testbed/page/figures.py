"""Which figures does a run's page have, and what does each of them show? Drawn alike for a page, a PNG and a PDF."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from hushtune_common.errors import ConfigError
from hushtune_server.testbed import plots
from hushtune_server.testbed.logbook import readable
from hushtune_server.testbed.page.gathering import Json, Material
from hushtune_server.testbed.page.inline import AMBER, CLIENT, FAINT, GREY, LIGHT, OWNER, TAP, VIOLET, inline, screen
from hushtune_server.testbed.page.phases import Span, spans
from hushtune_server.testbed.tables import SETTINGS

_WIDE: Final = 5.2
_CLIENTS_MAX: Final = 24
"""Clients that a figure has room for; the tables have all of them."""

_LEAST_S: Final = 0.5
"""Processes that were busy for less than this are no bar."""

_NAME_MAX: Final = 26
_CURVES_NAMED_MAX: Final = 9

FORMATS: Final = ("png", "pdf", "svg")

_KIND_COLOURS: Final[Mapping[str, str]] = {
    "training": CLIENT,
    "transfer": OWNER,
    "on air": AMBER,
    "computing": VIOLET,
    "waiting": FAINT,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawing:
    """One figure: its name (a file's, too), what it is called, what to look for in it, and how to draw it.

    ``says`` has its numbers in words, for those who cannot see it.
    """

    name: str
    title: str
    shows: str
    draw: Callable[[], Figure]
    says: str = ""

    def svg(self) -> str:
        """Return it as an element of a page."""
        with rc_context(screen()):
            figure = self.draw()
            figure.suptitle("")
            width, height = figure.get_size_inches()
            if width > _WIDE:
                figure.set_size_inches(_WIDE, height * _WIDE / width)
            return inline(figure, name=self.name, label=" ".join([f"{self.title}.", self.shows, self.says]).strip())


def drawings(material: Material) -> dict[str, Drawing]:
    """Return every figure that the run has data for, by name."""
    found = [_settings(material), _link(material), _shares(material), _timeline(material), _ledger(material), _losses(material)]
    found += [_bits(name, make) for name, make in _of_bits(material).items()]
    return {drawing.name: drawing for drawing in found if drawing is not None}


def save(made: Mapping[str, Drawing], folder: Path, *, formats: Sequence[str]) -> list[Path]:
    """Write every figure to ``folder`` in each of ``formats``; return the files."""
    unknown = [name for name in formats if name not in FORMATS]
    if unknown:
        raise ConfigError("--formats", f"{unknown[0]!r} is none of {', '.join(FORMATS)}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return [_saved(drawing, folder / f"{drawing.name}.{kind}") for drawing in made.values() for kind in formats]
    except OSError as error:
        raise ConfigError("--figures", f"cannot write to {folder} ({error.strerror})") from error


def _saved(drawing: Drawing, path: Path) -> Path:
    with rc_context({"svg.hashsalt": drawing.name}):
        figure = drawing.draw()
        figure.suptitle(drawing.title, fontsize=11)
        dated = {"png": {"Software": None}, "pdf": {"CreationDate": None}, "svg": {"Date": None}}[path.suffix[1:]]
        figure.savefig(path, dpi=200, metadata=cast(Any, dated))
    return path


def axes_of(*, rows: int = 1, columns: int = 1, height: float = 2.6) -> tuple[Figure, list[Axes]]:
    """Return an empty figure of the width that all have, ``height`` inches high, with its axes row by row."""
    figure = Figure(figsize=(_WIDE, height), layout="constrained")
    axes = [cast(Axes, one) for one in np.atleast_1d(figure.subplots(rows, columns)).flatten()]
    for one in axes:
        one.grid(visible=True, alpha=0.5, color=LIGHT, linewidth=0.5)
        one.set_axisbelow(True)
        one.spines[["top", "right"]].set_visible(False)
        one.tick_params(length=2)
    return figure, axes


def literal(name: str) -> str:
    """Return a name as matplotlib shows it letter by letter, cut to fit: dollar signs would begin a formula."""
    return readable.plain(name if len(name) <= _NAME_MAX else name[: _NAME_MAX - 1] + "…").replace("$", r"\$")


def _some(material: Material) -> str:
    """Say that not all clients are in a figure, where that is so."""
    count = len(material.clients)
    return "" if count <= _CLIENTS_MAX else f" The first {_CLIENTS_MAX} of {count} clients; the table has all."


def _settings(material: Material) -> Drawing | None:
    scores: Mapping[str, Json] = material.report.get("settings") or {}
    shown = [(key, label) for key, label in SETTINGS if key in scores]
    if not shown:
        return None

    def draw() -> Figure:
        figure, (axes,) = axes_of(height=0.6 + 0.36 * len(shown))
        values = [scores[key]["perplexity"] for key, _ in shown]
        bars = axes.barh(
            [SHORT.get(key, label) for key, label in shown],
            values,
            color=[OWNER if key == "plug_in" else GREY for key, _ in shown],
            height=0.62,
        )
        axes.bar_label(bars, fmt="%.1f", padding=3)
        axes.invert_yaxis()
        axes.grid(visible=False, axis="y")
        axes.set(xlabel="perplexity on held-out private text (lower is better)", xlim=(0, 1.15 * max(values)))
        return figure

    said = "; ".join(f"{label} {scores[key]['perplexity']:.1f}" for key, label in shown)
    shows = "Scored on text that nobody trained on; lower is better."
    return Drawing(name="settings", title="Perplexity by setting", shows=shows, says=f"{said}.", draw=draw)


SHORT: Final = {
    "full_zero_shot": "full model, as it was",
    "emulator_zero_shot": "emulator, as shipped",
    "emulator_fine_tuned": "emulator + returned blocks",
    "plug_in": "plug-in: full model + blocks",
    "bound": "bound: trained in the model",
    "full_fine_tuned": "full fine-tuning",
}
"""The settings in few words, for a figure."""


def _link(material: Material) -> Drawing | None:
    shown = [c for c in material.clients if c.get("gate_numbers")][:_CLIENTS_MAX]
    if not shown:
        return None

    def draw() -> Figure:
        figure, (axes,) = axes_of(height=1.3 + 0.3 * len(shown))
        for row, client in enumerate(shown):
            gate = client["gate_numbers"]
            true_db = material.on_air(client["id"]).get("snr_tap_true_db")
            axes.plot([gate["snr_tap_bound_db"], gate["snr_main_db"]], [row, row], "-", color=LIGHT, linewidth=3, zorder=1)
            axes.plot(gate["snr_main_db"], row, "o", color=OWNER, markersize=7)
            axes.plot(gate["snr_tap_bound_db"], row, "o", markerfacecolor="none", markeredgecolor=TAP, markersize=7)
            if true_db is not None:
                axes.plot(true_db, row, "x", color=TAP, markersize=6)
        axes.set_yticks(range(len(shown)), [literal(c["id"]) for c in shown])
        axes.set_ylim(len(shown) - 0.4, -0.6)
        axes.set_xlabel("symbol SNR, dB")
        axes.legend(handles=_link_legend(), frameon=False, ncols=3, loc="lower center", bbox_to_anchor=(0.45, 1.0), fontsize=8)
        return figure

    said = "; ".join(
        f"{c['id']}: owner {c['gate_numbers']['snr_main_db']:.1f} dB, tap at most {c['gate_numbers']['snr_tap_bound_db']:.1f} dB"
        for c in shown
    )
    shows = "The secrecy gate lets a client send only where the owner hears enough better than the tap is assumed to."
    shows += _some(material)
    return Drawing(name="link", title="What the owner and the tap hear", shows=shows, says=f"{said}.", draw=draw)


def _link_legend() -> list[Line2D]:
    return [
        Line2D([], [], marker="o", color=OWNER, linestyle="", label="owner"),
        Line2D([], [], marker="o", markerfacecolor="none", markeredgecolor=TAP, linestyle="", label="tap, assumed at most"),
        Line2D([], [], marker="x", color=TAP, linestyle="", label="tap, true (testbed)"),
    ]


_SHARED_OUT: Final = (
    ("band, MHz", "bandwidth_hz", 1e-6),
    ("share of the update, %", "adapter_share", 100.0),
    ("airtime, s", "airtime_s", 1.0),
    ("energy, J (modelled)", "energy_j", 1.0),
)


def _shares(material: Material) -> Drawing | None:
    shown = [c for c in material.clients if (c.get("assignment") or {}).get("planned")][:_CLIENTS_MAX]
    equal: Mapping[str, Json] = (material.report.get("equal_share") or {}).get("clients") or {}
    if not shown:
        return None

    def draw() -> Figure:
        figure, axes = axes_of(rows=2, columns=2, height=3.6)
        place = np.arange(len(shown))
        for one, (title, key, scale) in zip(axes, _SHARED_OUT, strict=True):
            mine = [scale * (planned(c, key) or 0.0) for c in shown]
            theirs = [scale * (equal.get(c["id"], {}).get(key) or 0.0) for c in shown]
            width = 0.38 if equal else 0.6
            one.bar(place - (width / 2 if equal else 0.0), mine, width, color=OWNER)
            if equal:
                one.bar(place + width / 2, theirs, width, color=LIGHT)
            one.set_title(title, fontsize=9)
            one.set_xticks(place, [literal(c["id"]) for c in shown], rotation=0 if len(shown) <= 6 else 90)
            one.grid(visible=False, axis="x")
        handles = [Patch(color=OWNER, label="as assigned"), *([Patch(color=LIGHT, label="equal share")] if equal else [])]
        figure.legend(handles=handles, frameon=False, loc="outside upper center", ncols=2, fontsize=8)
        return figure

    title = "Allocation beside an equal share" if equal else "Allocation"
    return Drawing(name="allocation", title=title, shows=f"What each client was to have.{_some(material)}", draw=draw)


def planned(client: Mapping[str, Any], key: str) -> float | None:
    """Return what was planned for a client: of the assignment itself, or of what was expected of it."""
    assignment: Json = client.get("assignment") or {}
    expected: Json = assignment.get("planned") or {}
    if key == "energy_j":
        return None if not expected else float(expected["compute_j"]) + float(expected["radio_j"])
    found = expected.get(key) if key in expected else assignment.get(key)
    return float(found) if isinstance(found, int | float) else None


def _timeline(material: Material) -> Drawing | None:
    found = spans(material.lines)
    names = [name for name in found if sum(span.seconds for span in found[name]) >= _LEAST_S][: _CLIENTS_MAX + 6]
    if not names:
        return None
    begin = min(span.began for name in names for span in found[name])

    def draw() -> Figure:
        figure, (axes,) = axes_of(height=0.9 + 0.26 * len(names))
        for row, name in enumerate(names):
            for span in found[name]:
                _bar(axes, span, row=row, begin=begin)
        for attacked in (line for line in material.lines if line.event == "reception_attacked" and line.process in names):
            axes.plot(attacked.moment - begin, names.index(attacked.process), "|", color=TAP, markersize=9, markeredgewidth=1.5)
        axes.set_yticks(range(len(names)), [literal(name) for name in names])
        axes.set_ylim(len(names) - 0.4, -0.6)
        axes.grid(visible=False, axis="y")
        axes.set_xlabel("seconds since the first line of the logs")
        handles = [Patch(color=colour, label=kind) for kind, colour in _KIND_COLOURS.items()]
        handles.append(cast(Any, Line2D([], [], marker="|", color=TAP, linestyle="", label="tap attacks")))
        axes.legend(handles=handles, frameon=False, ncols=3, loc="lower center", bbox_to_anchor=(0.42, 1.0), fontsize=8)
        return figure

    return Drawing(
        name="timeline",
        title="What every process did, and when",
        shows="One bar per process; the table below has the phases.",
        draw=draw,
    )


def _bar(axes: Axes, span: Span, *, row: int, begin: float) -> None:
    left, colour = span.began - begin, _KIND_COLOURS[span.kind]
    axes.barh(row, max(span.seconds, 0.05), left=left, height=0.66, color=colour, linewidth=0)


def _ledger(material: Material) -> Drawing | None:
    plan: Mapping[str, Json | None] = material.report.get("plan") or {}
    rows = [(name, entry["realised"]) for name, entry in plan.items() if entry and entry["realised"].get("compute_j") is not None]
    rows = rows[:_CLIENTS_MAX]
    if not rows:
        return None

    def draw() -> Figure:
        figure, axes = axes_of(columns=2, height=1.2 + 0.28 * len(rows))
        for one, (title, parts) in zip(axes, _LEDGER, strict=True):
            left = np.zeros(len(rows))
            for key, label, colour in parts:
                values = np.array([entry.get(key) or 0.0 for _, entry in rows])
                one.barh([literal(name) for name, _ in rows], values, left=left, color=colour, height=0.6, label=label)
                left = left + values
            one.invert_yaxis()
            one.grid(visible=False, axis="y")
            one.set_title(title, fontsize=9)
            one.legend(frameon=False, fontsize=8, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.16))
        axes[1].tick_params(labelleft=False)
        return figure

    return Drawing(
        name="ledger",
        title="Energy and time of each client, modelled",
        shows=f"Computation and radio, stacked.{_some(material)}",
        draw=draw,
    )


_LEDGER: Final = (
    ("energy, J", (("compute_j", "computing", CLIENT), ("radio_j", "radio", AMBER))),
    ("time of the device, s", (("train_s", "training", CLIENT), ("airtime_s", "on air", AMBER))),
)


def _losses(material: Material) -> Drawing | None:
    curves: dict[str, list[tuple[float, float]]] = {}
    for line in material.lines:
        step, loss = line.record.get("step"), line.record.get("loss")
        if line.event == "training_progressed" and line.client and isinstance(step, int) and isinstance(loss, int | float):
            curves.setdefault(f"{line.client}, round {line.round_id}", []).append((step, loss))
    curves = {name: points for name, points in curves.items() if len(points) > 1}
    if not curves:
        return None

    def draw() -> Figure:
        figure, (axes,) = axes_of(height=2.6)
        for name, points in sorted(curves.items())[:_CLIENTS_MAX]:
            steps, losses = zip(*points, strict=True)
            axes.plot(steps, losses, ".-", linewidth=1.2, label=literal(name))
        axes.set(xlabel="optimiser step", ylabel="loss, nats per token")
        if len(curves) <= _CURVES_NAMED_MAX:
            figure.legend(frameon=False, fontsize=8, ncols=3, loc="outside upper center")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        return figure

    return Drawing(name="losses", title="Training loss at the clients", shows="Mean of a batch, as logged on the way.", draw=draw)


def _of_bits(material: Material) -> Mapping[str, Callable[[], Figure]]:
    """Return what draws the referee's figures, with names that fit into them."""
    clients = [{**entry, "client": literal(str(entry.get("client")))} for entry in material.link.get("clients") or ()]
    return plots.figures({"clients": clients}) if clients else {}


def _bits(name: str, make: Callable[[], Figure]) -> Drawing:
    title, shows = _ABOUT_BITS[name]
    return Drawing(name=name, title=title, shows=shows, draw=make)


_ABOUT_BITS: Final[Mapping[str, tuple[str, str]]] = {
    "block_errors": (
        "Block errors at the owner, and where the clients operate",
        "Block error rate over symbol SNR for each code in use; dotted lines mark the clients.",
    ),
    "secret_rate": (
        "Secret rate over the tap's SNR",
        "Secret bits per symbol of this code, of what finite length allows (reconstructed form), and of a formula out of reach.",
    ),
    "information_density": (
        "Information that the tap's channel passed, and the budget of random bits",
        "Bits per hash block that the channel to the tap passed, as a histogram; the line is the budget that pays.",
    ),
    "constellation": (
        "One hash block, as the owner and the tap received it",
        "The same symbols with the noise of either receiver.",
    ),
}
