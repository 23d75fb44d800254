"""How does a person read a comparison? As tables on a terminal."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from hushtune_server.testbed.emulators.search import Answer

Json = Mapping[str, Any]
_UNITS = {"nats": "nats per token", "error": "share of texts"}
_HEADINGS = ("MB", "shown", "owner CPU s", "emulator ZS", "emulator FT", "plug-in", "delta", "recovery")


def print_comparison(document: Json, *, console: Console) -> None:
    """Print the five settings of every emulator, with what is the same for all of them above."""
    settings: Json = document["settings"]
    what = "accuracy" if document["task"] == "classify" else "perplexity"
    words = {"full_zero_shot": "full model, zero-shot", "full_fine_tuned": "full fine-tuning", "bound": "bound"}
    for name, label in words.items():
        if name in settings:
            console.print(f"{label:<22} {what} {score_text(settings[name])}")
    title = f"\n{what.capitalize()} on held-out private text; delta and gap in {_UNITS[document['unit']]}"
    console.print(_table(document["emulators"], title=title))
    for row in document["emulators"]:
        for why in row["failed"]:
            console.print(f"{row['name']}: {why}", style="bold red", markup=False)


def print_answer(found: Answer, *, console: Console) -> None:
    """Print the front of a search and what to take."""
    table = Table(title="Emulators that no other beats", title_justify="left")
    for heading in ("emulator", "MB", "plug-in (recovery)", "gap"):
        table.add_column(heading, justify="left" if heading == "emulator" else "right")
    for point in found.front:
        style = "bold" if point == found.taken else ""
        table.add_row(point.name, f"{point.bytes / 1e6:.1f}", f"{point.plug_in:.3f}", f"{point.gap:.3f}", style=style)
    console.print(table)
    if found.taken is not None:
        console.print(f"take {found.taken.name}", style="bold")


def _table(rows: Sequence[Json], *, title: str) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column("emulator")
    attacks = sorted({name for row in rows for name in row.get("attacks", {})})
    for heading in (*_HEADINGS, *(f"gap to {name}" for name in attacks)):
        table.add_column(heading, justify="right")
    for row in sorted(rows, key=_rank):
        table.add_row(row["name"], *_cells(row), *(_interval(_gap(row, name)) for name in attacks))
    return table


def _gap(row: Json, name: str) -> Json | None:
    return row.get("attacks", {}).get(name, {}).get("gap")


def _rank(row: Json) -> tuple[float, str]:
    plug_in = row.get("settings", {}).get("plug_in")
    return (float("inf") if plug_in is None else loss_of(plug_in)[0], str(row["name"]))


def _cells(row: Json) -> list[str]:
    if "bytes" not in row:
        return ["-"] * len(_HEADINGS)
    settings: Json = row.get("settings", {})
    scores = [score_text(settings.get(s)) for s in ("emulator_zero_shot", "emulator_fine_tuned", "plug_in")]
    return [
        f"{row['bytes'] / 1e6:.1f}",
        f"{100 * row['shown_share']:.0f} %",
        f"{row['owner_cpu_s']:.0f}",
        *scores,
        _interval(row.get("delta")),
        _interval(row.get("recovery")),
    ]


def score_text(score: Json | None, *, missing: str = "-") -> str:
    """Return a score with its interval, as people know it: perplexity, or accuracy in percent."""
    if score is None:
        return missing
    if "accuracy" in score:
        low, high = (100.0 * score[f"accuracy_{side}"] for side in ("low", "high"))
        return f"{100.0 * score['accuracy']:.1f} % [{low:.1f}, {high:.1f}]"
    return f"{score['perplexity']:.2f} [{score['perplexity_low']:.2f}, {score['perplexity_high']:.2f}]"


def loss_of(score: Json) -> tuple[float, float, float]:
    """Return the loss of a score, and the ends of its interval; lower is better."""
    unit = "error" if "error" in score else "nats"
    return float(score[unit]), float(score[f"{unit}_low"]), float(score[f"{unit}_high"])


def _interval(number: Json | None) -> str:
    if number is None or number["value"] is None:
        return "-"
    return f"{number['value']:.3f}" + ("" if number["low"] is None else f" [{number['low']:.3f}, {number['high']:.3f}]")
