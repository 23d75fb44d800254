"""One scenario over several seeds: the same experiment again, and the spread of its results."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Any

from rich.console import Console
from rich.table import Table

from hushtune_server.testbed.tables import SETTINGS


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """Mean and sample standard deviation of one setting's perplexity over seeds."""

    mean: float
    deviation: float
    values: tuple[float, ...]


def summarise(reports: Sequence[Mapping[str, Any]]) -> dict[str, Spread]:
    """Return the spread of every setting that all ``reports`` have."""
    found: dict[str, Spread] = {}
    for setting, _ in SETTINGS:
        if reports and all(setting in r["settings"] for r in reports):
            values = tuple(float(r["settings"][setting]["perplexity"]) for r in reports)
            found[setting] = Spread(mean=mean(values), deviation=stdev(values) if len(values) > 1 else 0.0, values=values)
    return found


def to_json(reports: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the sweep as plain values: per seed and over seeds, with what it cost."""
    return {
        "runs": [r["run"] for r in reports],
        "seeds": [r["seed"] for r in reports],
        "settings": {
            name: {"mean": spread.mean, "standard_deviation": spread.deviation, "values": list(spread.values)}
            for name, spread in summarise(reports).items()
        },
        "wall_s": [r["wall_s"] for r in reports],
        "peak_rss_bytes": {
            name: max(int(r["peak_rss_bytes"].get(name, 0)) for r in reports)
            for name in sorted({name for r in reports for name in r["peak_rss_bytes"]})
        },
    }


def print_sweep(reports: Sequence[Mapping[str, Any]], *, console: Console) -> None:
    """Print perplexity by setting and seed, then wall time and peak memory."""
    body = to_json(reports)
    table = Table(title="\nPerplexity on held-out private text", title_justify="left")
    table.add_column("setting")
    for seed in body["seeds"]:
        table.add_column(f"seed {seed}", justify="right")
    table.add_column("mean", justify="right")
    table.add_column("s.d.", justify="right")
    labels = dict(SETTINGS)
    for name, spread in summarise(reports).items():
        table.add_row(labels[name], *(f"{v:.1f}" for v in spread.values), f"{spread.mean:.1f}", f"{spread.deviation:.1f}")
    console.print(table)
    console.print("wall s: " + ", ".join(f"{w:.0f}" for w in body["wall_s"]))
    console.print("peak resident MB: " + ", ".join(f"{n} {b / 1e6:.0f}" for n, b in body["peak_rss_bytes"].items()))
