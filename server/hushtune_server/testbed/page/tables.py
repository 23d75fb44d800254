"""Which numbers does a run's page show, in which tables? Text in cells, ready to be read; nothing of it is markup."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from hushtune_common.events.event import unit_of
from hushtune_server.testbed.emulators.statistics import Interval
from hushtune_server.testbed.logbook import readable
from hushtune_server.testbed.logbook.choosing import counted
from hushtune_server.testbed.page import intervals
from hushtune_server.testbed.page.gathering import Json, Material
from hushtune_server.testbed.page.phases import spans
from hushtune_server.testbed.tables import SETTINGS

NOTHING: Final = "–"


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A table for people: a caption, headings, and rows whose first cell names the row.

    ``numeric`` says of which columns the cells are numbers; ``strong`` are rows to point out, ``bad`` rows to warn of; ``empty``
    is what to say instead where there are no rows.
    """

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numeric: frozenset[int] = frozenset()
    strong: frozenset[int] = frozenset()
    bad: frozenset[int] = frozenset()
    note: str = ""
    empty: str = ""

    def __post_init__(self) -> None:
        """Refuse rows that do not fit the headings."""
        if any(len(row) != len(self.columns) for row in self.rows):
            raise ValueError(f"{self.caption}: a row has another length than the {len(self.columns)} headings")


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """How one column is made: its heading, and its cell from an entry."""

    heading: str
    cell: Callable[[Any], str]
    numeric: bool = True


def table(
    caption: str,
    columns: Sequence[Column],
    entries: Sequence[Any],
    *,
    note: str = "",
    bad: frozenset[int] = frozenset(),
    empty: str = "",
) -> Table:
    """Return a table with a row for each of ``entries``."""
    return Table(
        caption=caption,
        columns=tuple(column.heading for column in columns),
        rows=tuple(tuple(column.cell(entry) for column in columns) for entry in entries),
        numeric=frozenset(k for k, column in enumerate(columns) if column.numeric),
        note=note,
        bad=bad,
        empty=empty,
    )


def shown(name: str, given: object) -> str:
    """Return a value with its unit, which the ``name`` carries; a dash for nothing."""
    return NOTHING if given is None else readable.value(name, given)


def number(given: object, digits: int = 2, *, unit: str = "") -> str:
    """Return a number with so many digits after the point; a dash for anything else."""
    if not isinstance(given, int | float) or isinstance(given, bool):
        return NOTHING
    return f"{given:.{digits}f}{f' {unit}' if unit else ''}"


def pair(name: str, given: object, other: object) -> str:
    """Return two values, the other in brackets; a line may break between them, and nowhere else."""
    first, second = (shown(name, one).replace(" ", "\N{NO-BREAK SPACE}") for one in (given, other))
    return f"{first} ({second})"


def with_range(text: str, low: str, high: str) -> str:
    """Return a number with the ends of its interval in brackets; a line may break before the brackets, and nowhere else."""
    first, ends = (part.replace(" ", "\N{NO-BREAK SPACE}") for part in (text, f"({low} to {high})"))
    return f"{first} {ends}"


def settings(material: Material) -> Table:
    """The settings' perplexities with their intervals over the windows, and what each is beside the full model as it was."""
    scores: Mapping[str, Json] = material.report.get("settings") or {}
    base: Json = scores.get("full_zero_shot") or {}
    kept = [(key, label, scores[key]) for key, label in SETTINGS if key in scores]
    known = any(intervals.perplexity(score) is not None for _, _, score in kept)
    rows = tuple((label, *_scored(s, {} if key == "full_zero_shot" else base)) for key, label, s in kept)
    return Table(
        caption="Perplexity on held-out private text",
        columns=("setting", "perplexity", "loss, nats per token", "beside the full model"),
        rows=rows,
        numeric=frozenset({1, 2, 3}),
        strong=frozenset(k for k, (key, _, _) in enumerate(kept) if key == "plug_in"),
        note=_OF_WINDOWS if known else "",
        empty="Not scored: the run did not get that far.",
    )


_OF_WINDOWS: Final = (
    "In brackets: 95 % intervals by resampling the windows of text, differences paired window by window. They say how far other "
    "text of the same kind may differ, not other seeds, which hushtune testbed sweep measures."
)


def _scored(score: Json, base: Json) -> tuple[str, str, str]:
    beside = NOTHING if not base else f"{100.0 * (score['perplexity'] / base['perplexity'] - 1.0):+.1f} %"
    return (
        _with(number(score["perplexity"], 1), intervals.perplexity(score), digits=1),
        number(score["loss_nats"], 4),
        _with(beside, intervals.change(score, base) if base else None, digits=1, sign="+"),
    )


def _with(text: str, interval: Interval | None, *, digits: int, sign: str = "") -> str:
    """Return a number with its interval, if it has one."""
    if interval is None:
        return text
    return with_range(text, *(f"{end:{sign}.{digits}f}" for end in (interval.low, interval.high))).replace("-", "\N{MINUS SIGN}")


def updates(material: Material) -> Table:
    """The size of each update on its way, and what became of it."""
    columns = [
        Column(heading="client", cell=lambda c: c["id"], numeric=False),
        Column(heading="raw", cell=lambda c: shown("bytes", c.get("bytes_raw"))),
        Column(heading="granted", cell=lambda c: shown("bytes", c["update"].get("budget_bytes"))),
        Column(heading="encoded", cell=lambda c: shown("bytes", c["update"].get("bytes_encoded"))),
        Column(heading="bits per weight", cell=lambda c: number(c["update"].get("bits_per_weight"), 3)),
        Column(heading="sealed", cell=lambda c: shown("bytes", c["update"].get("bytes_sealed"))),
        Column(heading="sent", cell=lambda c: shown("bytes", c.get("bytes_uploaded"))),
        Column(heading="plug-in perplexity", cell=lambda c: number((c.get("plug_in") or {}).get("perplexity"), 1)),
        Column(heading="outcome", cell=lambda c: c.get("outcome") or NOTHING, numeric=False),
    ]
    bad = frozenset(k for k, c in enumerate(material.clients) if not c.get("accepted"))
    note = (
        "Sent has redundancy and repeats. The perplexity is of the full model with this client's adapter alone, on private text."
    )
    return table("Updates and what became of them", columns, material.clients, note=note, bad=bad)


def ledger(material: Material) -> Table:
    """Energy and time of each client, planned and realised."""
    plan: Mapping[str, Json | None] = material.report.get("plan") or {}
    entries = [(name, entry) for name, entry in plan.items() if entry]

    def both(key: str) -> Callable[[tuple[str, Json]], str]:
        return lambda e: pair(key, e[1]["realised"].get(key), e[1]["planned"].get(key))

    columns = [
        Column(heading="client", cell=lambda e: e[0], numeric=False),
        Column(heading="computing", cell=both("compute_j")),
        Column(heading="radio", cell=both("radio_j")),
        Column(heading="training on the device", cell=both("train_s")),
        Column(heading="on air", cell=both("airtime_s")),
        Column(heading="training on this machine", cell=lambda e: shown("train_s", e[1].get("train_wall_s"))),
    ]
    note = "In brackets: as planned. Energy, the device's clock and airtime are modelled; only the last column was measured."
    return table("Energy and time", columns, entries, note=note, empty="Nobody trained or sent.")


def energy_of_rounds(material: Material) -> Mapping[object, float]:
    """Return by round the energy of all clients, in J and modelled; of the last one alone where that is all that is known."""
    told = [(r.round_id, [(c.get("cost") or {}).get("energy_j", c.get("energy_j")) for c in r.clients]) for r in material.rounds]
    sums = {number: [float(j) for j in each if isinstance(j, int | float)] for number, each in told}
    return {number: sum(each) for number, each in sums.items() if each}


def rounds(material: Material) -> Table:
    """What each round brought and cost."""
    energy = energy_of_rounds(material)
    columns = [
        Column(heading="round", cell=lambda r: str(r.get("round_id")), numeric=False),
        Column(heading="accepted", cell=lambda r: ", ".join(r.get("accepted") or ()) or NOTHING, numeric=False),
        Column(heading="missing", cell=lambda r: ", ".join(r.get("missing") or ()) or NOTHING, numeric=False),
        Column(
            heading="public perplexity before", cell=lambda r: number((r.get("owner") or {}).get("perplexity_public_before"), 1)
        ),
        Column(heading="after", cell=lambda r: number((r.get("owner") or {}).get("perplexity_public"), 1)),
        Column(heading="down", cell=lambda r: shown("bytes", (r.get("downlink") or {}).get("bytes"))),
        Column(heading="up", cell=lambda r: shown("bytes", r.get("uplink_bytes"))),
        Column(heading="energy", cell=lambda r: shown("energy_j", energy.get(r.get("round_id")))),
        Column(heading="took", cell=lambda r: shown("seconds", r.get("seconds"))),
        Column(
            heading="the model",
            cell=lambda r: {True: "kept it", False: "rolled back", None: NOTHING}[(r.get("owner") or {}).get("kept")],
            numeric=False,
        ),
    ]
    return table("Rounds", columns, material.report.get("rounds") or [], note=_OF_ROUNDS, empty="No round came to an end.")


_OF_ROUNDS: Final = (
    "Bytes and energy (modelled) are of all clients together. A round closes when enough clients have come through, without "
    "those who are missing."
)


def inputs(material: Material) -> Table:
    """What went in, by its digest: equal digests, equal bytes."""
    owner: Json = material.report.get("owner") or {}
    found = [("scenario", material.report.get("scenario_digest")), *((what, owner.get(key)) for key, what in _WENT_IN)]
    rows = tuple((what, str(digest)) for what, digest in found if digest)
    return Table(caption="What went in, by SHA-256", columns=("what", "digest"), rows=rows)


_WENT_IN: Final = (
    ("base", "the full model's weights"),
    ("tokenizer", "tokenizer"),
    ("plan", "plan of the emulator"),
    ("emulator", "emulator as published"),
)


def timeline(material: Material) -> Table:
    """The phases of every process: what the figure shows, in words."""
    found = spans(material.lines)
    begin = min((span.began for each in found.values() for span in each), default=0.0)
    entries = [(name, span) for name, each in found.items() for span in each if span.seconds >= _LEAST_S]
    columns = [
        Column(heading="process", cell=lambda e: e[0], numeric=False),
        Column(heading="phase", cell=lambda e: e[1].phase, numeric=False),
        Column(heading="began after", cell=lambda e: shown("seconds", e[1].began - begin)),
        Column(heading="took", cell=lambda e: shown("seconds", e[1].seconds)),
    ]
    return table("Phases of every process", columns, entries, note=f"Without those shorter than {_LEAST_S:g} s.")


_LEAST_S: Final = 0.2


def log_summary(material: Material) -> Table:
    """How often each event occurs, and in which processes."""
    where: dict[str, dict[str, None]] = {}
    for line in material.lines:
        where.setdefault(line.event, {})[line.process] = None
    entries = [(event, count, ", ".join(where[event])) for event, count in counted(material.lines).items()]
    columns = [
        Column(heading="event", cell=lambda e: e[0] or "(none)", numeric=False),
        Column(heading="times", cell=lambda e: str(e[1])),
        Column(heading="processes", cell=lambda e: e[2], numeric=False),
    ]
    damaged = sum(material.damaged.values())
    note = f"{len(material.lines)} lines in all" + (f"; {damaged} damaged lines were left out" if damaged else "")
    return table("Events in the logs", columns, entries, note=f"{note}. docs/EVENTS.md says what each means.")


_TROUBLE_MAX: Final = 40


def trouble(material: Material) -> Table:
    """Warnings and errors, in order of time."""
    found = [line for line in material.lines if line.level not in ("info", "debug")]
    columns = [
        Column(heading="time (UTC)", cell=lambda e: str(e.record.get("time", ""))[11:23] or NOTHING, numeric=False),
        Column(heading="process", cell=lambda e: e.process, numeric=False),
        Column(heading="event", cell=lambda e: e.event, numeric=False),
        Column(heading="what", cell=_what, numeric=False),
    ]
    note = f"The first {_TROUBLE_MAX} of {len(found)}." if len(found) > _TROUBLE_MAX else ""
    return table("Warnings and errors", columns, found[:_TROUBLE_MAX], note=note, empty="No warnings and no errors.")


def _what(line: Any) -> str:
    skipped = {"time", "level", "event", "role", "name", "exception"}
    return "; ".join(f"{readable.label(k)}: {readable.value(k, v)}" for k, v in line.record.items() if k not in skipped)


def versions(material: Material) -> Table:
    """What the result depends on."""
    found: Mapping[str, str] = material.report.get("versions") or {}
    peaks: Mapping[str, int] = material.report.get("peak_rss_bytes") or {}
    rows = [*((name, str(value)) for name, value in found.items())]
    rows += [(f"most memory of {name}", readable.number(peak, unit_of("bytes"))) for name, peak in peaks.items()]
    return Table(caption="Versions, and memory that was used", columns=("what", "which"), rows=tuple(rows))
