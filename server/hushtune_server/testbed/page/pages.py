"""How is a run told on one page? Facts into a template that escapes all of them; one file, no script, nothing fetched."""

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any, Final

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from hushtune_common.errors import ConfigError
from hushtune_server.testbed.logbook import readable
from hushtune_server.testbed.page import links, tables
from hushtune_server.testbed.page.claims import claims, learns
from hushtune_server.testbed.page.figures import Drawing, drawings
from hushtune_server.testbed.page.gathering import Material, Round, gather
from hushtune_server.testbed.page.ways import ways
from hushtune_server.testbed.rundir import FAILED, FINISHED, RunDirectory

PAGE: Final = "report.html"
ENDED: Final = (FINISHED, FAILED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """A figure on a page: drawn by us, so it goes in as it is."""

    title: str
    shows: str
    svg: Markup


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """One number at the top of the page, with what it is and what it means; ``mood`` is good, bad or plain."""

    value: str
    label: str
    note: str = ""
    mood: str = "plain"


@cache
def environment() -> Environment:
    """Return the templates' environment: everything is escaped, and a name that is not there is an error."""
    made = Environment(
        loader=PackageLoader("hushtune_server.testbed.page"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters["powers"] = powers
    return made


def powers(text: object) -> Markup:
    """Return a text, escaped, in which powers such as 2^-52.6 have their exponent raised."""
    return Markup(re.sub(r"\b2\^-?(\d+(?:\.\d+)?)", _raised, str(escape(text))))  # noqa: S704 - escaped first


def _raised(found: re.Match[str]) -> str:
    sign = "\N{MINUS SIGN}" if "^-" in found[0] else ""
    return f"2<sup>{sign}{found[1]}</sup>"


def render(material: Material) -> str:
    """Return the page of a run as HTML."""
    return environment().get_template("page.html.j2").render(_context(material))


def write(run: RunDirectory, path: Path | None = None) -> Path:
    """Write the page of a run, beside its report unless ``path`` says otherwise, and return where it lies."""
    return put(run.path / PAGE if path is None else path, render(gather(run)))


def put(path: Path, text: str) -> Path:
    """Replace ``path`` by a page; `ConfigError` where that cannot be done."""
    fresh = path.with_name(path.name + ".new")
    try:
        fresh.write_text(text, encoding="utf-8")
        fresh.replace(path)
    except OSError as error:
        raise ConfigError("--out", f"cannot write {path} ({error.strerror})") from error
    return path


def framed(made: Mapping[str, Drawing]) -> Mapping[str, Figure]:
    """Return drawings as figures of a page."""
    # The element comes from a drawing of ours, whose words matplotlib has escaped; it is parsed and written once more.
    return {n: Figure(title=d.title, shows=d.shows, svg=Markup(d.svg())) for n, d in made.items()}  # noqa: S704


def _context(material: Material) -> dict[str, Any]:
    return {
        "report": material.report,
        "started": _moment(material.facts.get("started")),
        "versions_said": versions_said(material),
        "cards": cards(material),
        "figures": framed(drawings(material)),
        "claims": claims(material),
        "learns": learns(material),
        "assumptions": material.report.get("assumptions") or [],
        "tables": {
            "settings": tables.settings(material),
            "attacks": links.attacks(material),
            "updates": tables.updates(material),
            "ways": ways(material),
            "ledger": tables.ledger(material),
            "rounds": tables.rounds(material),
            "timeline": tables.timeline(material),
            "events": tables.log_summary(material),
            "trouble": tables.trouble(material),
            "versions": tables.versions(material),
            "inputs": tables.inputs(material),
        },
        "attacks_said": links.attacks_in_a_line(material),
        "rounds": [_told(material, each) for each in reversed(material.rounds)],
        "rounds_left_out": max(0, len(material.report.get("rounds") or ()) - len(material.rounds)),
        "eve": (material.report.get("eavesdropper") or {}).get("summary") or "no evidence was left",
        "scenario_text": material.scenario_text,
        "commands": commands(material),
        "wall": "" if material.report.get("wall_s") is None else tables.shown("seconds", material.report["wall_s"]),
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class ToldRound:
    """One round on the page: a line about it, then tables of the gate, of both ears, and of what was shared out."""

    number: str
    summary: str
    gate: tables.Table
    ears: tables.Table
    reasons: Sequence[tuple[str, str]]
    allocation: tables.Table
    solution: str


def _told(material: Material, told: Round) -> ToldRound:
    return ToldRound(
        number=str(told.round_id),
        summary=_came_to(material, told),
        gate=links.gate(told),
        ears=links.ears(material, told),
        reasons=links.reasons(told),
        allocation=links.allocation(told),
        solution=links.solution(told),
    )


def _came_to(material: Material, told: Round) -> str:
    """Say in a line what came of a round, and without whom it closed."""
    entry = next((r for r in material.report.get("rounds") or () if r.get("round_id") == told.round_id), {})
    if entry.get("failed_reason"):
        return f"failed: {entry['failed_reason']}"
    accepted, missing = (", ".join(map(str, entry.get(key) or ())) for key in ("accepted", "missing"))
    said = f"accepted {accepted or 'nobody'}" if entry else "not over"
    return f"{said}; closed by quorum without {missing}" if accepted and missing else said


def _moment(text: object) -> str:
    """Return a moment as people write it; what is none, as it stands."""
    try:
        return f"{datetime.fromisoformat(str(text)).astimezone(UTC):%Y-%m-%d %H:%M} UTC"
    except ValueError:
        return "at an unknown time" if text is None else str(text)


_NAMED: Final = {"hushtune-server": "Hushtune", "revision": "revision", "python": "Python", "torch": "torch", "numpy": "NumPy"}


def versions_said(material: Material) -> str:
    """Return the versions that matter most in a line."""
    found: Mapping[str, Any] = material.report.get("versions") or {}
    return ", ".join(f"{name} {found[key]}" for key, name in _NAMED.items() if key in found)


def commands(material: Material) -> Sequence[str]:
    """Return what to type to have the run again, as it was started first."""
    command = [str(part) for part in material.facts.get("command") or []]
    run = material.run.id
    again = shlex.join(["hushtune", *command]) if command else f"hushtune testbed run {shlex.quote(str(material.run.scenario))}"
    return (
        again,
        f"hushtune testbed run {shlex.quote(str(material.run.scenario))}",
        f"hushtune logs {shlex.quote(run)} --explain",
    )


def cards(material: Material) -> list[Card]:
    """Return the numbers that matter most."""
    made = [_gain(material), _accepted(material), _leak(material), _tap(material), _energy(material)]
    return [card for card in made if card is not None]


def _gain(material: Material) -> Card | None:
    scores: Mapping[str, Any] = material.report.get("settings") or {}
    if not {"plug_in", "full_zero_shot"} <= {*scores}:
        return None
    after, before = scores["plug_in"]["perplexity"], scores["full_zero_shot"]["perplexity"]
    return Card(
        value=f"{before:.1f} → {after:.1f}",
        label="perplexity of the full model",
        note=f"{100 * (after / before - 1):+.1f} % by plugging in, on held-out private text",
        mood="good" if after < before else "bad",
    )


def _accepted(material: Material) -> Card:
    count = sum(bool(c.get("accepted")) for c in material.clients)
    mood = "good" if count == len(material.clients) and count else "bad" if material.report.get("status") in ENDED else "plain"
    return Card(value=f"{count} of {len(material.clients)}", label="clients' adapters accepted", mood=mood)


def _leak(material: Material) -> Card | None:
    coded = material.coded
    if not coded:
        return None
    worst, void = max(float(c["log2_delta_total"]) for c in coded), any(c.get("bound_void") for c in coded)
    return Card(
        value="void" if void else f"2^{worst:.1f}",
        label="leakage to Eve, at most",
        note="total variation per update, if her SNR stays below the assumed bound",
        mood="bad" if void else "plain",
    )


def _tap(material: Material) -> Card | None:
    bits = [c["tap_bits"]["bit_error_rate"] for c in material.link.get("clients") or () if c.get("tap_bits")]
    if not bits:
        return None
    return Card(value=f"{min(bits):.4f}", label="Eve's least bit error rate", note="one half is guessing; that proves no secrecy")


def _energy(material: Material) -> Card | None:
    spent = tables.energy_of_rounds(material)
    if not spent:
        return None
    note = "modelled from the scenario" + (f", {len(material.rounds)} rounds" if len(material.rounds) > 1 else "")
    return Card(value=readable.number(sum(spent.values()), "J"), label="energy of all clients", note=note)
