"""The final tables of a run, for people."""

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from hushtune_server.testbed import rounds as rounds_of
from hushtune_server.testbed.sums import print_sums

SETTINGS = (
    ("full_zero_shot", "full model, zero-shot"),
    ("emulator_zero_shot", "emulator, zero-shot"),
    ("emulator_fine_tuned", "emulator with the returned adapter blocks, averaged"),
    ("plug_in", "plug-in: full model with the same averaged blocks"),
    ("bound", "bound: adapter blocks trained in the full model"),
    ("full_fine_tuned", "full fine-tuning"),
)


def print_report(report: Mapping[str, Any], *, console: Console) -> None:
    """Print the result of a run: settings, clients, eavesdropper, and what the claims rest on."""
    console.print(_settings(report))
    rounds = report.get("rounds") or []
    if len(rounds) > 1:
        console.print(rounds_of.table(rounds))
    if why := rounds_of.ending(rounds):
        console.print(why, markup=False)
    console.print(_radio(report))
    if report.get("link"):
        console.print(_bits(report["link"]))
    console.print(_updates(report))
    console.print(_work(report))
    if any((report.get("plan") or {}).values()):
        console.print(_plan(report))
    for client in report["clients"]:
        if client["gate"] not in (None, "granted") or client["outcome"] != "accepted":
            told = str(client["gate_reason"]) in client["outcome"]
            why = f" ({client['gate_reason']})" if client["gate"] in ("deferred", "excluded") and not told else ""
            console.print(f"  {client['id']}: {client['outcome']}{why}", markup=False)  # a client says why it did not upload
    _print_utility(report, console)
    _print_solutions(report, console)
    _print_owner(report, console)
    _print_tap(report, console)
    wall_s = report.get("wall_s") or 0.0
    peaks: Mapping[str, int] = report.get("peak_rss_bytes") or {}
    figures: Mapping[str, str] = report.get("figures") or {}
    if figures:
        console.print(f"Figures: {', '.join(figures.values())}")
    if peaks:
        name, peak = max(peaks.items(), key=lambda item: item[1])
        console.print(f"\n{wall_s:.0f} s wall; largest process {name} with {peak / 1e9:.2f} GB resident")
    if report.get("problem"):
        console.print(f"{report['status']}: {report['problem']}", style="bold red", markup=False)


def _settings(report: Mapping[str, Any]) -> Table:
    table = Table(title=f"\nPerplexity on held-out private text (seed {report['seed']})", title_justify="left")
    table.add_column("setting")
    table.add_column("perplexity", justify="right")
    scores: Mapping[str, Any] = report.get("settings") or {}
    for key, label in SETTINGS:
        if key in scores:
            table.add_row(label, f"{scores[key]['perplexity']:.1f}", style="bold" if key == "plug_in" else "")
    if not scores:
        table.add_row("not scored: the run did not get that far", "")
    return table


def _radio(report: Mapping[str, Any]) -> Table:
    table = Table(title=f"Secrecy gate and air (fidelity: {report['fidelity']})", title_justify="left")
    for heading in ("client", "gate"):
        table.add_column(heading)
    for heading in ("owner dB", "tap dB (assumed)", "secret bit/symbol", "airtime s"):
        table.add_column(heading, justify="right")
    for client in report["clients"]:
        gate: Mapping[str, Any] = client["gate_numbers"]
        table.add_row(
            client["id"],
            str(client["gate"] or "-"),
            _number(gate.get("snr_main_db"), 1),
            _number(gate.get("snr_tap_bound_db"), 1),
            _number(gate.get("rate_coded"), 2),
            _number(client["airtime_s"], 1),
        )
    return table


def _bits(link: Mapping[str, Any]) -> Table:
    which = f", round {link['round_id']}" if link.get("rounds", 1) > 1 else ""
    title = f"Bits on air ({link['fidelity']}{which}): what arrived, and what the tap made of it"
    table = Table(title=title, title_justify="left", caption=_caption(link), caption_justify="left")
    table.add_column("client")
    table.add_column("code hides", width=7)
    table.add_column("owner exact", width=5)
    table.add_column("tap bit errors", width=9, justify="right")
    for heading in ("CRC passes", "most bits passed", "budget bits", "log2 bound"):
        table.add_column(heading, width=6, justify="right")
    for client in link["clients"]:
        bits, density = client["tap_bits"] or {}, client["density"] or {}
        errors = _number(bits.get("bit_error_rate"), 5)
        void = client["log2_delta_total"] is not None and client["bound_void"]
        table.add_row(
            client["client"],
            {"crypto_only": "nothing"}.get(client["protection"], client["protection"] or "-"),
            {True: "yes", False: "NO", None: "-"}[client["owner_has_every_byte"]],
            errors if client["tap_bits_protected"] or not bits else f"({errors})",
            "-" if client["tap_crc_passes"] is None else str(client["tap_crc_passes"]),
            _number(density.get("max_bits"), 0),
            _number(density.get("budget_bits"), 0),
            "void" if void else _number(client["log2_delta_total"], 1),
        )
    return table


def _caption(link: Mapping[str, Any]) -> str:
    """Say what the numbers are worth."""
    said = [link["caveat"]]
    if any(c["tap_bits"] and not c["tap_bits_protected"] for c in link["clients"]):
        said.append("in brackets: an update that the code does not hide")
    if link.get("rounds", 1) > 1:
        over = [c["log2_delta_all_rounds"] for c in link["clients"] if c["log2_delta_all_rounds"] is not None]
        said += [f"over {link['rounds']} rounds the log2 bound is at most {max(over):.1f} for any client"] if over else []
    void = {c["bound_void"]: None for c in link["clients"] if c["bound_void"] and c["log2_delta_total"] is not None}
    return "; ".join([*said, *(f"VOID: {why}" for why in void)])


def _updates(report: Mapping[str, Any]) -> Table:
    """Show the share of its bytes that each update was granted, and what came of it."""
    caption = "share: phi, of the bytes that codec.bits grant; sealed is encoded with its seal; sent has redundancy and repeats"
    noise = {c["noise"]["statement"]: None for c in report["clients"] if c.get("noise")}
    caption = "; ".join([caption, *(f"hidden in noise: {said}" for said in noise)])
    table = Table(title="Updates", title_justify="left", caption=caption, caption_justify="left")
    table.add_column("client")
    for heading in ("raw MB", "share", "granted MB", "encoded MB", "bits per weight", "sealed MB", "sent MB"):
        table.add_column(heading, justify="right")
    for client in report["clients"]:
        update: Mapping[str, Any] = client["update"]
        table.add_row(
            client["id"],
            _number(client["bytes_raw"], 1, scale=1e-6),
            _number(update["share"], 3),
            _number(update["budget_bytes"], 3, scale=1e-6),
            _number(update["bytes_encoded"], 3, scale=1e-6),
            _number(update["bits_per_weight"], 3),
            _number(update["bytes_sealed"], 3, scale=1e-6),
            _number(client["bytes_uploaded"], 2, scale=1e-6),
        )
    return table


def _work(report: Mapping[str, Any]) -> Table:
    table = Table(title="Clients' work (clock and energy are modelled)", title_justify="left")
    table.add_column("client")
    for heading in ("train s", "clock share", "energy J", "plug-in ppl"):
        table.add_column(heading, justify="right")
    table.add_column("accepted")
    for client in report["clients"]:
        table.add_row(
            client["id"],
            _number(client["train_s"], 1),
            _number(client["training"].get("clock_share"), 2),
            _number(client["energy_j"], 1),
            _number((client.get("plug_in") or {}).get("perplexity"), 1),
            "yes" if client["accepted"] else "no",
        )
    return table


def _plan(report: Mapping[str, Any]) -> Table:
    caption = (
        "train s: operations over the assigned clock, as planned, so a device's, not this machine's seconds, which stand under "
        "wall s. Energy is modelled. Airtime is planned as a mean over retransmissions, Mbit is the sealed update."
    )
    table = Table(title="Planned and realised, with the deviation", title_justify="left", caption=caption, caption_justify="left")
    table.add_column("client")
    for heading in _PLANNED:
        table.add_column(heading, justify="right")
    table.add_column("wall s", justify="right")
    for client, entry in report["plan"].items():
        if entry:
            _add_plan(table, client, entry)
    return table


_PLANNED: Mapping[str, tuple[str, int, float]] = {
    "train s": ("train_s", 2, 1.0),
    "airtime s": ("airtime_s", 2, 1.0),
    "Mbit": ("update_bits", 2, 1e-6),
    "compute J": ("compute_j", 1, 1.0),
    "radio J": ("radio_j", 3, 1.0),
}


def _add_plan(table: Table, client: str, entry: Mapping[str, Any]) -> None:
    for label, key in ((client, "planned"), ("  realised", "realised")):
        cells = [_number(entry[key][name], digits, scale=scale) for name, digits, scale in _PLANNED.values()]
        table.add_row(label, *cells, _number(entry["train_wall_s"], 1) if key == "realised" else "")
    off = [entry["deviation_percent"][name] for name, _, _ in _PLANNED.values()]
    table.add_row("  deviation", *("-" if value is None else f"{value:+.1f} %" for value in off), "", end_section=True)


def _print_utility(report: Mapping[str, Any], console: Console) -> None:
    """Say what updates were worth to the allocator, where that was measured."""
    curve: Mapping[str, Any] = (report.get("utility") or {}).get("measured") or {}
    if curve:
        points = ", ".join(f"{value:.3g} at {share:.3g}" for share, value, *_ in curve["points"])
        form = f"{curve['offset']:.3g} - {curve['weight']:.3g} * share^-{curve['shape']:.3g}"
        console.print(f"Utility by the share of an update, measured by the owner: {form} (from {points})", markup=False)


_SOLUTIONS_MAX = 4


def _print_solutions(report: Mapping[str, Any], console: Console) -> None:
    """Say how often a round was shared out anew, and why."""
    for entry in report.get("rounds") or ():
        solutions = entry.get("solutions") or ()
        if len(solutions) > 1:
            told = "; ".join(_solution(s) for s in solutions[:_SOLUTIONS_MAX])
            told += f"; {rest} more in the report" if (rest := len(solutions) - _SOLUTIONS_MAX) > 0 else ""
            console.print(f"Round {entry['round_id']} was shared out {len(solutions)} times: {told}", markup=False)


def _solution(solution: Mapping[str, Any]) -> str:
    said = f"{solution['occasion']} at {_number(solution['at_s'], 1)} s"
    if solution["failed"]:
        return f"{said} (nothing found: {solution['failed']})"
    certificate = solution["allocation"]
    gap = "none" if certificate["gap"] is None else f"{certificate['gap']:.1e}"
    return f"{said} ({certificate['method']} for {len(solution['clients'])} clients, gap {gap})"


def _print_owner(report: Mapping[str, Any], console: Console) -> None:
    owner = report.get("owner") or {}
    final = owner.get("aggregate") or {}
    if final:
        decision = "kept" if final.get("kept") else "rolled back"
        count = len(final.get("clients") or [])
        console.print(
            f"\nOwner: {decision} the aggregate of {count} adapters; its own test on public text: perplexity "
            f"{_number(final.get('perplexity_public_before'), 1)} -> {_number(final.get('perplexity_public'), 1)}"
        )
    print_sums(report, console)


def _print_tap(report: Mapping[str, Any], console: Console) -> None:
    tap = report.get("eavesdropper") or {}
    if tap:
        if not tap.get("complete", True):
            console.print("Eavesdropper: stopped before it had attacked everything; what follows is part of it")
        console.print(f"Eavesdropper: {tap.get('summary') or tap.get('statement') or tap}")


def _number(value: object, digits: int, *, scale: float = 1.0) -> str:
    return f"{value * scale:.{digits}f}" if isinstance(value, int | float) else "-"
