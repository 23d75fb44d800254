"""How does a person read what the faults did? One row for each."""

from collections.abc import Mapping, Sequence
from typing import Any

_PAGE = """# Faults, played and measured

Made by `hushtune testbed chaos --document docs/results/chaos.md`; each run of the command writes the same table below `--out`,
with every claim that was checked in `chaos.json`. What an operator sees of each fault, and does, is in
[OPERATIONS.md](../OPERATIONS.md).

Every fault happens to real processes with certificates, on one machine. On every way between two of them sits a proxy that
delays, slows, cuts, freezes or damages connections; processes are stopped and killed by signals, at the moment at which their log
says that they entered a state. Parts are damaged, replies lost and uploads stalled beneath TLS, by a relay that has the keys of
both ends: a bit that is turned over in a TLS stream only ends the connection, which is played as well. Clocks are off for what a
process itself reads; for its TLS library, whose clock is the machine's, certificates were issued ten minutes ahead. Bad
certificates are shown by processes of a run, and to each server by a TLS client of the suite's own, which dials where they would
not.

"""

_HEAD = ("#", "fault", "what was done", "what happened", "lost", "recovery s", "passed")


def to_markdown(result: Mapping[str, Any]) -> str:
    """Return the result as a Markdown table, with the claims that did not hold below it."""
    faults: Sequence[Mapping[str, Any]] = result["faults"]
    rows = [_row(*_HEAD), _row(*("---" for _ in _HEAD)), *(_row(*_cells(fault)) for fault in faults)]
    timing, versions = result["timing_s"], result["versions"]
    held = sum(len(fault["checks"]) for fault in faults)
    about = f"revision {versions.get('revision', 'unknown')}, Python {versions.get('python')}, grpcio {versions.get('grpcio')}"
    idle = f"idle_s = {timing['idle']:g} s ({timing['idle_where_killed']:g} s for faults 3 to 5)"
    shortened = f"{idle}, connect_s = {timing['connect']:g} s and round_s = {timing['round']:g} s"
    note = f"{held} claims checked in {result['wall_s']:.0f} s, with {shortened} (shortened); {about}."
    before, after = result["load_average"]
    machine = f"The machine has {result['cores']} cores; its load average was {before:g} when it began and {after:g} at the end."
    return "\n".join([*rows, "", note, machine, *_failures(faults)]) + "\n"


def to_page(result: Mapping[str, Any]) -> str:
    """Return the result as a page of the documents: what was played, and the table."""
    return _PAGE + to_markdown(result)


def _cells(fault: Mapping[str, Any]) -> tuple[str, ...]:
    recovery = fault["recovery_s"]
    return (
        str(fault["fault"]),
        str(fault["title"]),
        str(fault["done"]),
        str(fault["happened"]),
        str(fault["lost"]),
        "-" if recovery is None else f"{recovery:.1f}",
        "yes" if fault["passed"] else "**no**",
    )


def _failures(faults: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = [
        f"- fault {fault['fault']}: {check['claim']} (found: {check['found']})"
        for fault in faults
        for check in fault["checks"]
        if not check["held"]
    ]
    return ["", "Claims that did not hold:", "", *lines] if lines else []


def _row(*cells: str) -> str:
    return "| " + " | ".join(cell.replace("|", "/").replace("\n", " ") for cell in cells) + " |"
