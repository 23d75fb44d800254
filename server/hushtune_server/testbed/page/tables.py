"""Which numbers does a run's page show, in which tables? Text in cells, ready to be read; nothing of it is markup."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from hushtune_common.events.event import unit_of
from hushtune_server.testbed.logbook import readable
from hushtune_server.testbed.logbook.choosing import counted
from hushtune_server.testbed.page.figures import planned
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
    caption: str, columns: Sequence[Column], entries: Sequence[Any], *, note: str = "", bad: frozenset[int] = frozenset()
) -> Table:
    """Return a table with a row for each of ``entries``."""
    return Table(
        caption=caption,
        columns=tuple(column.heading for column in columns),
        rows=tuple(tuple(column.cell(entry) for column in columns) for entry in entries),
        numeric=frozenset(k for k, column in enumerate(columns) if column.numeric),
        note=note,
        bad=bad,
    )


def shown(name: str, given: object) -> str:
    """Return a value with its unit, which the ``name`` carries; a dash for nothing."""
    return NOTHING if given is None else readable.value(name, given)


def number(given: object, digits: int = 2, *, unit: str = "") -> str:
    """Return a number with so many digits after the point; a dash for anything else."""
    if not isinstance(given, int | float) or isinstance(given, bool):
        return NOTHING
    return f"{given:.{digits}f}{f' {unit}' if unit else ''}"


def _pair(name: str, given: object, other: object) -> str:
    """Return two values, the other in brackets; a line may break between them, and nowhere else."""
    first, second = (shown(name, one).replace(" ", "\N{NO-BREAK SPACE}") for one in (given, other))
    return f"{first} ({second})"


def settings(material: Material) -> Table:
    """The settings' perplexities, with what each is beside the full model as it was."""
    scores: Mapping[str, Json] = material.report.get("settings") or {}
    base = (scores.get("full_zero_shot") or {}).get("perplexity")
    kept = [(key, label, scores[key]) for key, label in SETTINGS if key in scores]
    rows = tuple(
        (label, number(s["perplexity"], 1), number(s["loss_nats"], 4), _beside(s["perplexity"], base)) for _, label, s in kept
    )
    return Table(
        caption="Perplexity on held-out private text",
        columns=("setting", "perplexity", "loss, nats per token", "beside the full model"),
        rows=rows,
        numeric=frozenset({1, 2, 3}),
        strong=frozenset(k for k, (key, _, _) in enumerate(kept) if key == "plug_in"),
        empty="Not scored: the run did not get that far.",
    )


def _beside(perplexity: float, base: float | None) -> str:
    return NOTHING if not base else f"{100.0 * (perplexity / base - 1.0):+.1f} %"


def gate(material: Material) -> Table:
    """The secrecy gate's decisions with the numbers that decided them."""
    true_db = {c["id"]: material.on_air(c["id"]).get("snr_tap_true_db") for c in material.clients}
    columns = [
        Column(heading="client", cell=lambda c: c["id"], numeric=False),
        Column(heading="decision", cell=lambda c: c.get("gate") or NOTHING, numeric=False),
        Column(heading="owner, dB", cell=lambda c: number(c["gate_numbers"].get("snr_main_db"), 1)),
        Column(heading="tap assumed at most, dB", cell=lambda c: number(c["gate_numbers"].get("snr_tap_bound_db"), 1)),
        Column(heading="tap true, dB", cell=lambda c: number(true_db[c["id"]], 1)),
        Column(heading="secret bit/symbol", cell=lambda c: number(c["gate_numbers"].get("rate_coded"), 2)),
        Column(heading="Gaussian baseline", cell=lambda c: number(c["gate_numbers"].get("rate_gaussian"), 2)),
        Column(heading="block errors expected", cell=lambda c: shown("p_x", c["gate_numbers"].get("block_error_rate"))),
        Column(heading="why", cell=lambda c: c.get("gate_reason") or NOTHING, numeric=False),
    ]
    bad = frozenset(k for k, c in enumerate(material.clients) if c.get("gate") not in ("granted", None))
    note = (
        "The tap's true SNR is known in a testbed only. The baseline, a difference of Gaussian capacities, is reached by no code."
    )
    return table("Link quality and secrecy gate", columns, material.clients, note=note, bad=bad)


def ears(material: Material) -> Table:
    """What the owner (Bob) and the eavesdropper (Eve) made of the same transmissions."""
    entries = [c for c in material.link.get("clients") or () if c.get("transmissions")]
    failed = _failed_blocks(material)
    columns = [
        Column(heading="client", cell=lambda c: c["client"], numeric=False),
        Column(
            heading="code hides",
            cell=lambda c: {"crypto_only": "nothing"}.get(c["protection"], c["protection"] or NOTHING),
            numeric=False,
        ),
        Column(heading="Bob: bits wrong", cell=lambda c: {True: "0", False: "some", None: NOTHING}[c["owner_has_every_byte"]]),
        Column(heading="Bob: blocks to repeat", cell=lambda c: failed.get(c["client"], NOTHING)),
        Column(heading="Eve: bit error rate", cell=lambda c: number((c["tap_bits"] or {}).get("bit_error_rate"), 5)),
        Column(heading="bits compared", cell=lambda c: shown("n", (c["tap_bits"] or {}).get("bits_compared"))),
        Column(
            heading="Eve: check sums held", cell=lambda c: NOTHING if c["tap_crc_passes"] is None else str(c["tap_crc_passes"])
        ),
        Column(heading="most bits passed", cell=lambda c: number((c["density"] or {}).get("max_bits"), 0)),
        Column(heading="budget, bits", cell=lambda c: number((c["density"] or {}).get("budget_bits"), 0)),
        Column(
            heading="leakage at most",
            cell=lambda c: NOTHING if c["log2_delta_total"] is None else f"2^{c['log2_delta_total']:.1f}",
        ),
        Column(
            heading="assumption held",
            cell=lambda c: {True: "yes", False: "NO", None: "not known"}[c["tap_assumption_held"]],
            numeric=False,
        ),
    ]
    bad = frozenset(k for k, c in enumerate(entries) if c.get("bound_void") or c["owner_has_every_byte"] is False)
    void = {c["bound_void"]: None for c in entries if c.get("bound_void")}
    note = "; ".join([str(material.link.get("caveat", "")), *(f"VOID: {why}" for why in void)])
    return table("What Bob (the owner) and Eve made of the same transmissions", columns, entries, note=_sentence(note), bad=bad)


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + ("." if text and not text.endswith(".") else "")


def _failed_blocks(material: Material) -> Mapping[str, str]:
    """Return by client how many blocks the owner could not decode, of how many that were sent in the last round."""
    last = material.link.get("round_id")
    found: dict[str, dict[object, tuple[int, int]]] = {}
    for line in material.lines:
        if line.event == "reception_decoded" and line.client is not None and line.round_id == last:
            blocks, sound = line.record.get("blocks"), line.record.get("blocks_sound")
            if isinstance(blocks, int) and isinstance(sound, int):
                found.setdefault(line.client, {})[(line.record.get("part"), line.record.get("attempt"))] = (
                    blocks - sound,
                    blocks,
                )
    sums = {c: (sum(f for f, _ in each.values()), sum(b for _, b in each.values())) for c, each in found.items()}
    return {client: f"{wrong} of {of}" for client, (wrong, of) in sums.items()}


def allocation(material: Material) -> Table:
    """What each client was assigned, beside an equal share of the same round."""
    equal: Mapping[str, Json] = (material.report.get("equal_share") or {}).get("clients") or {}
    granted = [c for c in material.clients if (c.get("assignment") or {}).get("planned")]

    def both(key: str) -> Callable[[Json], str]:
        def cell(client: Json) -> str:
            other = equal.get(client["id"], {}).get(key)
            return _pair(key, planned(client, key), other) if equal else shown(key, planned(client, key))

        return cell

    columns = [
        Column(heading="client", cell=lambda c: c["id"], numeric=False),
        Column(heading="band", cell=both("bandwidth_hz")),
        Column(heading="power", cell=both("power_w")),
        Column(heading="clock", cell=both("clock_flops")),
        Column(heading="share of the update", cell=both("adapter_share")),
        Column(heading="secret rate", cell=both("secrecy_rate_bps")),
        Column(heading="airtime", cell=both("airtime_s")),
        Column(heading="energy", cell=both("energy_j")),
    ]
    note = "In brackets: what an equal share of the same round would have planned. " if equal else ""
    return table("Allocation, as planned", columns, granted, note=note + "Power, clock and energy are modelled.")


def solution(material: Material) -> str:
    """Say how good the allocation is, by its certificate and beside the equal share."""
    found: Json = material.report.get("allocation") or {}
    equal: Json = material.report.get("equal_share") or {}
    said = [f"Method {found.get('method', NOTHING)}"]
    if isinstance(found.get("objective"), int | float):
        said.append(f"utility over cost {found['objective']:.4g}")
    if isinstance(equal.get("objective"), int | float):
        said.append(f"an equal share reaches {equal['objective']:.4g}")
    if isinstance(found.get("gap"), int | float):
        said.append(f"at most {100 * found['gap']:.2g} % below the best, by its own certificate")
    if equal.get("problem"):
        said.append(f"an equal share cannot be had: {equal['problem']}")
    return "; ".join([*said, *(str(note) for note in found.get("notes") or ())]) + "."


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

    def pair(key: str) -> Callable[[tuple[str, Json]], str]:
        return lambda e: _pair(key, e[1]["realised"].get(key), e[1]["planned"].get(key))

    columns = [
        Column(heading="client", cell=lambda e: e[0], numeric=False),
        Column(heading="computing", cell=pair("compute_j")),
        Column(heading="radio", cell=pair("radio_j")),
        Column(heading="training on the device", cell=pair("train_s")),
        Column(heading="on air", cell=pair("airtime_s")),
        Column(heading="training on this machine", cell=lambda e: shown("train_s", e[1].get("train_wall_s"))),
    ]
    note = "In brackets: as planned. Energy, the device's clock and airtime are modelled; only the last column was measured."
    return table("Energy and time", columns, entries, note=note)


def rounds(material: Material) -> Table:
    """What each round brought and cost."""
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
        Column(heading="took", cell=lambda r: shown("seconds", r.get("seconds"))),
        Column(
            heading="the model",
            cell=lambda r: {True: "kept it", False: "rolled back", None: NOTHING}[(r.get("owner") or {}).get("kept")],
            numeric=False,
        ),
    ]
    return table("Rounds", columns, material.report.get("rounds") or [], note="Bytes are of all clients together.")


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
    return table("Warnings and errors", columns, found[:_TROUBLE_MAX], note=note)


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
