"""What did one scenario bring over several seeds? Scores with means and intervals, what differs between seeds, and every run."""

from collections.abc import Sequence
from os.path import relpath
from pathlib import Path
from statistics import stdev
from typing import Any, Final

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from hushtune_server.testbed.emulators.statistics import Interval
from hushtune_server.testbed.page import compare, intervals, pages
from hushtune_server.testbed.page.figures import SHORT, Drawing, axes_of
from hushtune_server.testbed.page.gathering import Json, Material
from hushtune_server.testbed.page.inline import GREY, LIGHT, OWNER
from hushtune_server.testbed.page.tables import NOTHING, Table, number, with_range
from hushtune_server.testbed.tables import SETTINGS

_COMPARED: Final = (
    ("plug_in", "full_zero_shot", "plug-in beside the full model as it was"),
    ("plug_in", "emulator_fine_tuned", "plug-in beside the emulator with the same blocks"),
    ("bound", "full_zero_shot", "bound beside the full model as it was"),
    ("full_fine_tuned", "full_zero_shot", "full fine-tuning beside the full model as it was"),
)
"""A setting, what it is set beside, and how that is called."""

_MINUS: Final = "\N{MINUS SIGN}"


def render(materials: Sequence[Material], *, at: Path, problem: str = "") -> str:
    """Return the page about the runs of a sweep, to lie at ``at``; ``problem`` says why it ended early."""
    made = {d.name: d for d in (_scores(materials), _changes(materials)) if d is not None}
    first = materials[0]
    return (
        pages.environment()
        .get_template("sweep.html.j2")
        .render(
            scenario=first.report.get("scenario"),
            seeds=[_seed(m) for m in materials],
            problem=" ".join(part for part in (problem, _mixed(materials)) if part),
            cards=cards(materials),
            figures=pages.framed(made),
            settings=settings(materials),
            changes=changes(materials),
            told=_told(materials),
            clients=compare.clients(materials),
            differences=_differences(materials),
            runs=[(_seed(m), m.run.id, str(m.report.get("status")), _link(m, at)) for m in materials],
            commands=pages.commands(first)[:1],
            versions_said=pages.versions_said(first),
            scenario_text=first.scenario_text,
        )
    )


def _mixed(materials: Sequence[Material]) -> str:
    """Say that means would mix what is not alike: runs that differ in more than their seeds, or not in these."""
    said = "; ".join(
        [
            *(["they differ in more than the seed, as below"] if _differences(materials).rows else []),
            *(["a seed is there more than once"] if len({_seed(m) for m in materials}) < len(materials) else []),
        ]
    )
    return f"These runs are no sweep of one scenario ({said}): do not rely on means and intervals." if said else ""


def _differences(materials: Sequence[Material]) -> Table:
    return compare.differences(materials, but=frozenset({"seed"}))


def _link(material: Material, at: Path) -> str:
    """Return the way from the page to the page of a run, as a relative address."""
    return Path(relpath(material.run.path.resolve() / pages.PAGE, at.resolve().parent)).as_posix()


def _seed(material: Material) -> str:
    return str(material.report.get("seed"))


def _score(material: Material, key: str) -> float | None:
    score: Json = (material.report.get("settings") or {}).get(key) or {}
    found = score.get("perplexity")
    return float(found) if isinstance(found, int | float) else None


def _known(materials: Sequence[Material], key: str) -> list[float]:
    return [score for m in materials if (score := _score(m, key)) is not None]


def settings(materials: Sequence[Material]) -> Table:
    """Every setting's perplexity by seed, its mean with Student's 95 % interval, and its sample deviation."""
    rows = [(label, key, [_score(m, key) for m in materials]) for key, label in SETTINGS if _known(materials, key)]
    return Table(
        caption="Perplexity on held-out private text, by seed",
        columns=_columns(materials, "setting"),
        rows=tuple((label, *(number(v, 1) for v in values), *_summed(values, unit="")) for label, _, values in rows),
        numeric=frozenset(range(1, len(materials) + 3)),
        strong=frozenset(k for k, (_, key, _) in enumerate(rows) if key == "plug_in"),
        note=_OF_SEEDS,
        empty="Nothing was scored: no run got that far.",
    )


_OF_SEEDS: Final = (
    "In brackets: Student's 95 % interval over the seeds, of the loss and so of the logarithm, wide for few seeds. A seed moves "
    "the split of the text, shadowing, and the order of training; the model and the text are the same."
)


def changes(materials: Sequence[Material]) -> Table:
    """By how many percent settings differ, seed by seed: paired, so that what a seed does to both sides falls out."""
    rows = [(label, _paired(materials, one, other)) for one, other, label in _COMPARED]
    kept = [(label, values) for label, values in rows if any(v is not None for v in values)]
    return Table(
        caption="Change of the perplexity, in percent, by seed",
        columns=_columns(materials, "what"),
        rows=tuple((label, *(_percent(v) for v in values), *_summed(values, unit=" %")) for label, values in kept),
        numeric=frozenset(range(1, len(materials) + 3)),
        note="Differences are taken within each seed. An interval that holds 0 says that these seeds do not tell.",
        empty="No two settings were scored in one run.",
    )


def _columns(materials: Sequence[Material], first: str) -> tuple[str, ...]:
    return (first, *(f"seed {_seed(m)}" for m in materials), "mean (95 %)", "s.d.")


def _paired(materials: Sequence[Material], one: str, other: str) -> list[float | None]:
    pairs = [(_score(m, one), _score(m, other)) for m in materials]
    return [None if a is None or not b else 100.0 * (a / b - 1.0) for a, b in pairs]


def _percent(value: float | None) -> str:
    return NOTHING if value is None else f"{value:+.1f} %".replace("-", _MINUS)


def _summed(values: Sequence[float | None], *, unit: str) -> tuple[str, str]:
    known = [v for v in values if v is not None]
    found = _of_percent(known) if unit else intervals.ratio(known)
    if found is None:
        return NOTHING, NOTHING
    sign = "+" if unit else ""
    said = [f"{end:{sign}.1f}".replace("-", _MINUS) for end in (found.value, found.low, found.high)]
    return with_range(f"{said[0]}{unit}", said[1], f"{said[2]}{unit}"), f"{stdev(known):.1f}"


def _of_percent(values: Sequence[float]) -> Interval | None:
    """Return the mean of changes in percent with the interval of the ratios that they are."""
    found = intervals.ratio([1.0 + value / 100.0 for value in values])
    if found is None:
        return None
    ends = (100.0 * (end - 1.0) for end in (found.value, found.low, found.high))
    return Interval(**dict(zip(("value", "low", "high"), ends, strict=True)))


def _told(materials: Sequence[Material]) -> Table:
    left_out = ("seed", "allocation")
    rows = [(label, *(tell(m) for m in materials)) for label, tell in compare.TOLD.items() if label not in left_out]
    names = tuple(f"seed {_seed(m)}" for m in materials)
    return Table(
        caption="Claims and costs, by seed",
        columns=("what", *names),
        rows=tuple(rows),
        numeric=frozenset(range(1, len(materials) + 1)),
    )


def cards(materials: Sequence[Material]) -> list[pages.Card]:
    """Return the numbers that matter most."""
    values = [v for v in _paired(materials, "plug_in", "full_zero_shot") if v is not None]
    made = [pages.Card(value=str(len(materials)), label="seeds", note=", ".join(_seed(m) for m in materials))]
    if values:
        found = _of_percent(values)
        held = "" if found is None else f"95 %: {_percent(found.low)} to {_percent(found.high)}; "
        worse = sum(v >= 0.0 for v in values)
        made.append(
            pages.Card(
                value=_percent(sum(values) / len(values)),
                label="perplexity of the full model, by plugging in",
                note=f"{held}better with {len(values) - worse} of {len(values)} seeds",
                mood="bad" if worse else "good",
            )
        )
    accepted = [sum(bool(c.get("accepted")) for c in m.clients) for m in materials]
    everybody = sum(len(m.clients) for m in materials)
    made.append(pages.Card(value=f"{sum(accepted)} of {everybody}", label="clients' adapters accepted", note="over all seeds"))
    void = sum(any(c.get("bound_void") for c in m.coded) for m in materials)
    made.append(
        pages.Card(
            value=str(void),
            label="seeds in which the bound on Eve is void",
            mood="bad" if void else "good",
            note="its assumption did not hold" if void else "",
        )
    )
    return made


def _scores(materials: Sequence[Material]) -> Drawing | None:
    shown = [(key, label, values) for key, label in SETTINGS if (values := _known(materials, key))]
    if not shown:
        return None

    def draw() -> Figure:
        figure, (axes,) = axes_of(height=0.7 + 0.4 * len(shown))
        for row, (key, _, values) in enumerate(shown):
            colour = OWNER if key == "plug_in" else GREY
            _interval(axes, row, intervals.ratio(values), colour)
            axes.plot(values, [row] * len(values), "o", color=colour, markersize=4.5, alpha=0.75)
        axes.set_yticks(range(len(shown)), [SHORT.get(key, label) for key, label, _ in shown])
        axes.set_ylim(len(shown) - 0.4, -0.6)
        axes.grid(visible=False, axis="y")
        axes.set_xlabel("perplexity on held-out private text (lower is better)")
        return figure

    return Drawing(name="sweep", title="Perplexity by setting", shows=_DOTS, says=_in_words(shown), draw=draw)


_DOTS: Final = "A dot for each seed; the bar is the 95 % interval of the mean, its tick the mean."


def _in_words(shown: Sequence[tuple[str, str, Sequence[float]]]) -> str:
    return "; ".join(f"{label}: {', '.join(f'{v:.1f}' for v in values)}" for _, label, values in shown) + "."


def _interval(axes: Any, row: int, found: Interval | None, colour: str) -> None:
    if found is not None:
        axes.plot([found.low, found.high], [row, row], "-", color=LIGHT, linewidth=7, solid_capstyle="butt", zorder=1)
        axes.plot(found.value, row, "|", color=colour, markersize=15, markeredgewidth=2)


def _changes(materials: Sequence[Material]) -> Drawing | None:
    values = [
        (_seed(m), v) for m, v in zip(materials, _paired(materials, "plug_in", "full_zero_shot"), strict=True) if v is not None
    ]
    if not values:
        return None

    def draw() -> Figure:
        figure, (axes,) = axes_of(height=0.9 + 0.3 * len(values))
        bars = axes.barh(range(len(values)), [v for _, v in values], color=OWNER, height=0.6)
        axes.set_yticks(range(len(values)), [f"seed {seed}" for seed, _ in values])
        axes.bar_label(bars, fmt="%+.1f", padding=3, fontsize=8)
        axes.axvline(0.0, color=GREY, linewidth=0.8)
        axes.invert_yaxis()
        axes.margins(x=0.18)
        axes.grid(visible=False, axis="y")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel("change of perplexity by plugging in, % (lower is better)")
        return figure

    shows = "Beside the full model as it was, on the same text; below zero is a gain."
    said = "; ".join(f"seed {seed}: {v:+.1f} %" for seed, v in values)
    return Drawing(name="changes", title="What plugging in changes", shows=shows, says=f"{said}.", draw=draw)
