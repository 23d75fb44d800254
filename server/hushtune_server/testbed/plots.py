"""The figures of a run's report: what the owner decodes, what stays secret, what the tap's channel gave away."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hushtune_common.errors import SecrecyUnavailable
from hushtune_common.link import wiretap
from hushtune_common.link.abstraction import block_error_rate
from hushtune_common.link.mcs import CODING_POINTS, CodingPoint
from hushtune_common.link.secrecy import gaussian_secrecy_rate, second_order_secrecy_rate
from hushtune_common.messages import TapModel
from hushtune_common.units import from_db

MAIN_COLOUR: Final = "#1b6ca8"
TAP_COLOUR: Final = "#b3402a"
_GREY: Final = "#6b6b6b"
_TAP_GRID_DB: Final = np.arange(-14.0, 8.1, 0.5)
_SIZE: Final = (7.0, 4.2)
_ABREAST_MAX: Final = 4
"""Clients that a figure shows or names side by side; more would leave no room for its axes."""

Json = Mapping[str, Any]


def draw(link: Json, folder: Path) -> dict[str, str]:
    """Write every figure that ``link`` (the report's part about the link) has data for; return file names by what they show.

    Equal reports give equal files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    names: dict[str, str] = {}
    for what, make in figures(link).items():
        figure = make()
        with rc_context({"svg.hashsalt": what}):  # names inside the file are random otherwise
            figure.savefig(folder / f"{what}.svg", metadata={"Date": None})
        names[what] = f"{folder.name}/{what}.svg"
    return names


def figures(link: Json) -> dict[str, Callable[[], Figure]]:
    """Return what draws each figure that ``link`` has data for, by what it shows."""
    senders = [c for c in link["clients"] if c.get("design") and c.get("transmissions")]
    metered = [s for s in senders if s.get("density")]
    seen = next((s for s in senders if s.get("constellation")), None)
    made: dict[str, Callable[[], Figure]] = {}
    if senders:
        made = {"block_errors": lambda: _block_errors(senders), "secret_rate": lambda: _secret_rate(senders[0])}
    if metered:
        made["information_density"] = lambda: _information_density(metered)
    if seen is not None:
        made["constellation"] = lambda: _constellation(seen)
    return made


def _figure(title: str, *, columns: int = 1) -> tuple[Figure, Sequence[Axes]]:
    figure = Figure(figsize=_SIZE, layout="constrained")
    axes = np.atleast_1d(figure.subplots(1, columns))
    figure.suptitle(title, fontsize=11)
    for one in axes:
        one.grid(visible=True, alpha=0.25)
        one.spines[["top", "right"]].set_visible(False)
    return figure, list(axes)


def _block_errors(senders: Sequence[Json]) -> Figure:
    """The owner's block error rate over SNR, with where each client operates."""
    figure, (axes,) = _figure("Block errors at the owner (one codeword, white noise), and where the clients operate")
    for point in _points_of(senders):
        snr_db = np.array([row[0] for row in point.bler])
        fine = np.linspace(snr_db[0], snr_db[-1], 200)
        (line,) = axes.semilogy(fine, block_error_rate(point, fine), label=point.name)
        seen = [(row[0], row[1]) for row in point.bler if row[1] > 0.0]
        axes.semilogy([s for s, _ in seen], [r for _, r in seen], "o", color=line.get_color(), markersize=4)
    for level in sorted({s["snr_main_db"] for s in senders}):
        axes.axvline(level, color=_GREY, linestyle=":", linewidth=1)
        who = [s["client"] for s in senders if s["snr_main_db"] == level]
        note = axes.annotate(_few(who), (level, 1e-2), rotation=90, ha="right", va="center", fontsize=8, color=_GREY)
        note.set_in_layout(False)  # a long name shall not squeeze the axes
    axes.set(xlabel="symbol SNR at the owner, dB", ylabel="block error rate", ylim=(1e-5, 1.5))
    axes.legend(frameon=False)
    return figure


def _few(names: Sequence[str]) -> str:
    more = len(names) - _ABREAST_MAX
    return ", ".join(names[:_ABREAST_MAX]) + (f" and {more} more" if more > 0 else "")


def _secret_rate(sender: Json) -> Figure:
    """Secret rate over the tap's SNR at the first client's operating point: this code, what finite length allows, the formula."""
    design, main_db = sender["design"], sender["snr_main_db"]
    point = next(p for p in CODING_POINTS if (p.modulation, p.code_bits) == (design["modulation"], design["code_bits"]))
    figure, (axes,) = _figure(f"Secret rate at {main_db:.1f} dB to the owner, leakage 2^{design['log2_delta']:g} per hash block")
    symbols = design["codewords"] * point.code_bits // point.bits_per_symbol
    grid_db = np.arange(_TAP_GRID_DB[0], max(_TAP_GRID_DB[-1], design["snr_tap_design_db"] + 2.0) + 0.1, 0.5)
    baseline = [gaussian_secrecy_rate(from_db(main_db), from_db(float(t))) for t in grid_db]
    finite = [
        second_order_secrecy_rate(
            from_db(main_db), from_db(float(t)), symbols=symbols, block_error_rate=1e-3, log2_delta=design["log2_delta"]
        )
        for t in grid_db
    ]
    ours = [coded_rate(point, snr_tap_db=float(t), design=design) for t in grid_db]
    axes.plot(grid_db, baseline, "--", color=_GREY, label="difference of Gaussian capacities (no code reaches it)")
    axes.plot(grid_db, finite, ":", color=_GREY, label="second order in block length (reconstructed form)")
    axes.plot(grid_db, ours, color=MAIN_COLOUR, label=f"this code: {point.name}, {design['codewords']} codewords")
    axes.axvline(design["snr_tap_design_db"], color=TAP_COLOUR, linewidth=1)
    mean = "mean " if design["tap_model"] == TapModel.INTERLEAVED else ""
    axes.set(xlabel=f"{mean}symbol SNR at the tap, dB", ylabel="secret bit per complex symbol", ylim=(0, None))
    axes.annotate(
        " assumed tap",
        (design["snr_tap_design_db"], 0.97),
        xycoords=("data", "axes fraction"),
        color=TAP_COLOUR,
        fontsize=8,
        va="top",
    )
    axes.legend(frameon=False, fontsize=8, loc="lower left")
    return figure


def coded_rate(point: CodingPoint, *, snr_tap_db: float, design: Json) -> float:
    """Return the secret rate of a design like ``design`` for a tap at ``snr_tap_db``, in bit per complex symbol; 0 for none."""
    try:
        made = wiretap.design(
            point,
            codewords=design["codewords"],
            snr_tap_db=snr_tap_db,
            log2_delta=design["log2_delta"],
            tap_model=TapModel(design["tap_model"]),
            subbands=design["subbands"],
        )
    except SecrecyUnavailable:
        return 0.0
    return made.rate


def _information_density(metered: Sequence[Json]) -> Figure:
    """What the tap's channel gave away in each metered hash block, against the random bits that pay for it."""
    shown = metered[:_ABREAST_MAX]
    some = "" if shown == metered else f" ({len(shown)} of {len(metered)} clients)"
    title = f"Information that the tap's channel passed, per hash block, and the budget{some}"
    figure, axes = _figure(title, columns=len(shown))
    for one, sender in zip(axes, shown, strict=True):
        density, budget = sender["density"], sender["design"]["random_bits"]
        # The edge shows bars that are thinner than a line.
        one.hist(density["values_bits"], bins=24, color=TAP_COLOUR, edgecolor=TAP_COLOUR, alpha=0.75)
        one.axvline(budget, color=MAIN_COLOUR, linewidth=1.5)
        one.annotate(
            "budget r",
            (budget, 0.97),
            xycoords=("data", "axes fraction"),
            color=MAIN_COLOUR,
            fontsize=8,
            ha="right",
            va="top",
            rotation=90,
        )
        one.set(xlabel="bits per hash block", title=sender["client"])
    axes[0].set_ylabel("hash blocks")
    return figure


def _constellation(shown: Json) -> Figure:
    """The same symbols as the owner and the tap receive them."""
    figure, axes = _figure(f"One hash block of {shown['client']}, as received", columns=2)
    for one, who, colour in zip(axes, ("main", "tap"), (MAIN_COLOUR, TAP_COLOUR), strict=True):
        points = np.array(shown["constellation"][who])
        one.plot(points[:, 0], points[:, 1], ".", color=colour, markersize=4, alpha=0.7)
        one.set_aspect("equal", adjustable="datalim")
        one.set(title="owner" if who == "main" else "eavesdropper", xlabel="in phase", ylabel="quadrature")
    return figure


def _points_of(senders: Sequence[Json]) -> list[CodingPoint]:
    used = {(s["design"]["modulation"], s["design"]["code_bits"]) for s in senders}
    return [p for p in CODING_POINTS if (p.modulation, p.code_bits) in used]
