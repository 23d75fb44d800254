"""How does a person read a codec curve? As a table on a terminal."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

Json = Mapping[str, Any]
HEADINGS = ("MB", "x fp16", "bit/weight", "write MB/s", "read MB/s", "perplexity", "increase %", "SNR dB")
_AGAINST = {"ours lower": "ours lower", "even": "even", "peer lower": "PEER LOWER", "no answer": "too short for ours"}


def print_curve(document: Json, *, console: Console) -> None:
    """Print both scores without a codec, every way of writing by its bytes, and who lies below whom."""
    words = {"full_zero_shot": "full model, zero-shot", "uncompressed": "plug-in, nothing written"}
    for name, label in words.items():
        score = document["settings"][name]
        console.print(f"{label:<26} perplexity {perplexity_text(score)}")
    table = Table(title="\nWhat a plug-in loses for the bytes its adapter has", title_justify="left")
    table.add_column("way")
    for heading in (*HEADINGS, "ours at its bytes"):
        table.add_column(heading, justify="right")
    for row in in_order(document):
        table.add_row(row["name"], *cells(row), duel_text(document, row), style="bold" if row["kind"] == "ours" else "")
    console.print(table)
    for row in in_order(document):
        if "failed" in row:
            console.print(f"{row['name']}: {row['failed']}", style="bold red", markup=False)
    console.print(document["statement"], markup=False)


def in_order(document: Json) -> list[Json]:
    """Return all rows, the largest file first; those that failed last."""
    return sorted([*document["ours"], *document["peers"]], key=lambda row: (-row.get("bytes", 0.0), row["name"]))


def cells(row: Json) -> list[str]:
    """Return the numbers of a row in the order of the headings."""
    if "failed" in row:
        return ["-"] * len(HEADINGS)
    speeds = (row["encode_mb_per_s"], row["decode_mb_per_s"])
    return [
        f"{row['bytes'] / 1e6:.2f}",
        f"{row['times_smaller_than_fp16']:.2f}",
        f"{row['bits_per_weight']:.3f}",
        *(f"{speed:.0f}" for speed in speeds),
        f"{row['perplexity']:.2f}",
        increase_text(row["increase_percent"]),
        "exact" if row["snr_db"] is None else f"{row['snr_db']:.1f}",
    ]


def duel_text(document: Json, row: Json) -> str:
    """Return what ours does at the bytes of a peer's row; nothing for a row of ours."""
    found = next((duel for duel in document["duels"] if duel["peer"] == row["name"]), None)
    if found is None:
        return ""
    if "nats" not in found:
        return _AGAINST[found["verdict"]]
    nats = found["nats"]
    return f"{_AGAINST[found['verdict']]}: {nats['value']:+.4f} [{nats['low']:+.4f}, {nats['high']:+.4f}]"


def perplexity_text(score: Json) -> str:
    """Return a perplexity with its interval."""
    return f"{score['perplexity']:.2f} [{score['perplexity_low']:.2f}, {score['perplexity_high']:.2f}]"


def increase_text(increase: Json) -> str:
    """Return an increase in per cent with its interval, as exactly as it is small."""
    digits = 3 if abs(increase["high"] - increase["low"]) < 1.0 else 1
    ends: Sequence[float] = (increase["low"], increase["high"])
    return f"{increase['value']:+.{digits}f} [{ends[0]:+.{digits}f}, {ends[1]:+.{digits}f}]"
