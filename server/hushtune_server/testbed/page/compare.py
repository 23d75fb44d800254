"""How do runs differ, side by side? Scores, costs and claims, and every line of the scenarios that is not the same."""

from collections.abc import Callable, Mapping, Sequence
from typing import Final

import numpy as np
from matplotlib.figure import Figure

from hushtune_server.testbed.page import pages, tables
from hushtune_server.testbed.page.figures import SHORT, Drawing, axes_of, literal
from hushtune_server.testbed.page.gathering import Json, Material
from hushtune_server.testbed.page.tables import NOTHING, Table
from hushtune_server.testbed.tables import SETTINGS

_COLOURS: Final = ("#1b6ca8", "#b7791f", "#2e7d4f", "#6b4fa0", "#b3402a", "#6b6b6b")


def render(materials: Sequence[Material]) -> str:
    """Return one page about several runs."""
    made = {"compared": drawn} if (drawn := _settings(materials)) is not None else {}
    return (
        pages.environment()
        .get_template("compare.html.j2")
        .render(
            runs=[material.report for material in materials],
            figures=pages.framed(made),
            results=_results(materials),
            clients=clients(materials),
            differences=differences(materials),
        )
    )


def _columns(materials: Sequence[Material], first: str) -> tuple[str, ...]:
    return (first, *(str(material.report.get("run")) for material in materials))


def _numeric(materials: Sequence[Material]) -> frozenset[int]:
    return frozenset(range(1, len(materials) + 1))


def _results(materials: Sequence[Material]) -> Table:
    rows = [(label, *(_perplexity(m, key) for m in materials)) for key, label in SETTINGS]
    rows = [row for row in rows if {*row[1:]} != {NOTHING}]
    rows += [(label, *(tell(m) for m in materials)) for label, tell in TOLD.items()]
    return Table(caption="Results", columns=_columns(materials, "what"), rows=tuple(rows), numeric=_numeric(materials))


def _perplexity(material: Material, key: str) -> str:
    return tables.number(((material.report.get("settings") or {}).get(key) or {}).get("perplexity"), 1)


def _sum(material: Material, key: str) -> float | None:
    found = [c[key] for c in material.clients if c.get(key) is not None]
    return float(sum(found)) if found else None


def _worst(material: Material) -> str:
    found = material.coded
    if any(c.get("bound_void") for c in found):
        return "void"
    return f"2^{max(float(c['log2_delta_total']) for c in found):.1f}" if found else NOTHING


def _accepted(material: Material) -> str:
    return f"{sum(bool(c.get('accepted')) for c in material.clients)} of {len(material.clients)}"


TOLD: Final[Mapping[str, Callable[[Material], str]]] = {
    "status": lambda m: str(m.report.get("status")),
    "adapters accepted": _accepted,
    "leakage to Eve, at most": _worst,
    "sent by all clients": lambda m: tables.shown("bytes", _sum(m, "bytes_uploaded")),
    "energy of all clients (modelled)": lambda m: tables.shown("energy_j", _sum(m, "energy_j")),
    "allocation": lambda m: str((m.report.get("allocation") or {}).get("method", NOTHING)),
    "utility over cost": lambda m: tables.number((m.report.get("allocation") or {}).get("objective"), 4),
    "wall time": lambda m: tables.shown("seconds", m.report.get("wall_s")),
    "seed": lambda m: str(m.report.get("seed")),
    "source revision": lambda m: str((m.report.get("versions") or {}).get("revision", NOTHING)),
}


def clients(materials: Sequence[Material]) -> Table:
    """Each client's fate in every run."""
    names = list(dict.fromkeys(str(c["id"]) for m in materials for c in m.clients))
    rows = [(name, *(_client(m, name) for m in materials)) for name in names]
    note = "Gate, share of the update, outcome; then the perplexity of the full model with this client's adapter alone."
    return Table(caption="Clients", columns=_columns(materials, "client"), rows=tuple(rows), note=note)


def _client(material: Material, name: str) -> str:
    client: Json | None = next((c for c in material.clients if c["id"] == name), None)
    if client is None:
        return NOTHING
    share = tables.shown("adapter_share", (client.get("update") or {}).get("share"))
    score = tables.number((client.get("plug_in") or {}).get("perplexity"), 1)
    return f"{client.get('gate') or NOTHING}, {share}, {client.get('outcome') or NOTHING}, {score}"


def differences(materials: Sequence[Material], *, but: frozenset[str] = frozenset()) -> Table:
    """Every line of the scenarios that is not the same, ``but`` these settings."""
    flat = [dict(_flat(material.scenario)) for material in materials]
    keys = list(dict.fromkeys(key for one in flat for key in one))
    rows = [
        (key, *(one.get(key, NOTHING) for one in flat))
        for key in keys
        if key not in but and len({one.get(key) for one in flat}) > 1
    ]
    same = "The scenarios are the same, line by line."
    return Table(
        caption="What the scenarios say differently", columns=_columns(materials, "setting"), rows=tuple(rows), empty=same
    )


def _flat(value: object, path: str = "") -> list[tuple[str, str]]:
    """Return every setting by its path; entries of a list by their id, or their number."""
    match value:
        case dict():
            return [pair for key, inner in value.items() for pair in _flat(inner, f"{path}.{key}".strip("."))]
        case list() if value and all(isinstance(entry, dict) for entry in value):
            named = [(str(entry.get("id", k)), entry) for k, entry in enumerate(value)]
            return [pair for name, entry in named for pair in _flat(entry, f"{path}.{name}")]
        case _:
            return [(path, str(value))]


def _settings(materials: Sequence[Material]) -> Drawing | None:
    scores = [material.report.get("settings") or {} for material in materials]
    shown = [(key, label) for key, label in SETTINGS if any(key in one for one in scores)]
    if not shown or len(materials) > len(_COLOURS):
        return None

    def draw() -> Figure:
        figure, (axes,) = axes_of(height=0.9 + 0.22 * len(shown) * (len(materials) + 1))
        height = 0.8 / len(materials)
        for number, (material, one) in enumerate(zip(materials, scores, strict=True)):
            place = np.arange(len(shown)) + (number - (len(materials) - 1) / 2) * height
            values = [(one.get(key) or {}).get("perplexity", 0.0) for key, _ in shown]
            bars = axes.barh(place, values, height, color=_COLOURS[number], label=literal(str(material.report.get("run"))))
            axes.bar_label(bars, fmt="%.1f", padding=3, fontsize=8)
        axes.set_yticks(range(len(shown)), [SHORT.get(key, label) for key, label in shown])
        axes.invert_yaxis()
        axes.margins(x=0.12)
        axes.grid(visible=False, axis="y")
        axes.set_xlabel("perplexity on held-out private text (lower is better)")
        figure.legend(frameon=False, loc="outside upper center", fontsize=8)
        return figure

    return Drawing(name="compared", title="Perplexity by setting", shows="Of each run.", draw=draw)
