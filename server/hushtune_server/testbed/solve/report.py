"""What does a comparison of allocators look like: as one JSON document, and on a terminal of 80 columns?"""

from collections.abc import Mapping, Sequence
from math import isfinite
from typing import Any, Final

import numpy as np
from rich.console import Console
from rich.table import Table

from hushtune_server.coordinator.allocators.solution import Solution
from hushtune_server.coordinator.problems.instance import Instance
from hushtune_server.testbed.solve.compare import TIMING, Comparison, Row
from hushtune_server.testbed.solve.methods import Method

PROVENANCE: Final[Mapping[str, str]] = {
    "problem": "published (arXiv 2407.00347): who takes part, which quantities are chosen, the ratio U / S",
    "secrecy rate": "published (Leung-Yan-Cheong and Hellman 1978): difference of two Gaussian capacities; no code reaches it",
    "delay and energy": "published for a related problem (arXiv 2409.20247): work / clock, constant x clock^2 x work",
    "share of the work": "reconstructed: train_tflop (s0 + (1 - s0) share), update_mbit share, plug_in_tflop share",
    "utility": "reconstructed: the kind, its weights and its shapes are fields of the instance",
    "cost": "reconstructed: both weights are fields of the instance",
    "defaults of --random": "reconstructed, except path loss, -174 dBm/Hz and 20 MHz",
    "alternating": "skeleton published (Dinkelbach, fractional programming, SCA, two blocks), its details reconstructed",
    "global": "derived here, not peer reviewed; each answer is held against a dual bound that is computed apart from it",
}
"""Where every formula comes from; part of the JSON document."""
_CLIENTS_SHOWN: Final = 20
_NOTES_SHOWN: Final = 8


def to_json(instance: Instance, compared: Comparison, *, chosen: Method, source: Mapping[str, Any]) -> dict[str, Any]:
    """Return the whole result as one document without infinities; times in ms, all other units in the names."""
    solution = compared.rows[chosen].solution
    return {
        "instance": {
            **source,
            "clients": instance.clients,
            "objective": instance.objective.kind,
            "utility": instance.utility.kind,
            "in_theorem": instance.in_theorem,
        },
        "upper_bound": compared.upper_bound,
        "upper_bound_cpu_ms": compared.bound_cpu_ms,
        "upper_bound_problem": compared.bound_problem or None,
        "admitted": compared.admitted,
        "cpu_ms_is": TIMING,
        "allocators": {method: _row(row) for method, row in compared.rows.items()},
        "allocator": chosen,
        "choice": None if solution is None else _choice(instance, solution),
        "provenance": dict(PROVENANCE),
    }


def _row(row: Row) -> dict[str, Any]:
    s = row.solution
    found = None if s is None else s.evaluation
    return {
        "status": row.status,
        "problem": None if row.error is None else str(row.error),
        "objective": None if found is None else _finite(found.objective),
        "upper_bound": row.upper_bound,
        "gap": row.gap,
        "ratio": row.ratio,
        "cpu_ms": row.cpu_ms,
        "claim": row.claim,
        "tier": None if s is None else s.tier,
        "sweeps": None if s is None else s.sweeps,
        "excluded": [] if s is None else list(s.excluded),
        "worst_residual": None if found is None else _finite(found.worst),
        "utility": None if found is None else _finite(found.utility),
        "cost": None if found is None else _finite(found.cost),
        "time_s": None if found is None else _finite(found.time_s),
        "energy_j": None if found is None else _finite(found.energy_j),
        "notes": [] if s is None else list(s.notes),
    }


def _choice(instance: Instance, solution: Solution) -> dict[str, Any]:
    found = _columns(instance, solution)
    names, columns = ["name", *found], [instance.names, *(numbers.tolist() for numbers in found.values())]
    return {
        "time_s": _finite(solution.evaluation.time_s),
        "clients": [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)],
    }


def _columns(instance: Instance, solution: Solution) -> dict[str, Any]:
    c, e = solution.choice, solution.evaluation
    return {
        "share": c.share,
        "budget_bytes": np.floor(c.share * instance.update_mbit * 1e6 / 8.0),
        "bits_per_weight": c.share * instance.codec_bits,
        "bandwidth_mhz": c.bandwidth_mhz,
        "power_w": c.power_w,
        "clock_tflops": c.clock_tflops,
        "server_tflops": c.server_tflops,
        "secret_rate_mbps": e.secret_rate_mbps,
        "time_s": e.client_time_s,
        "energy_j": e.compute_energy_j + e.radio_energy_j + e.server_energy_j,
    }


def _finite(number: float) -> float | None:
    return float(number) if isfinite(number) else None


def print_comparison(instance: Instance, compared: Comparison, *, console: Console) -> None:
    """Print the allocators side by side, then what went wrong with those that gave no answer."""
    goal = {"ratio": "U/S", "difference": "U - price S", "cost": "-S", "max_min": "least u/S"}[instance.objective.kind]
    table = Table(box=None, pad_edge=False)
    table.add_column("allocator", no_wrap=True)
    for heading in (goal, "of bound", "gap", "CPU ms", "sweeps"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("status", no_wrap=True)
    for row in compared.rows.values():
        table.add_row(row.method, *_numbers(row), row.status, style=None if row.solution is not None else "dim")
    console.print(table)
    if compared.upper_bound is None:
        console.print(f"no certified bound: {compared.bound_problem}", highlight=False)
    else:
        admitted = f"with {compared.admitted} of {instance.clients} clients, those admitted"
        whatever = "whatever one chooses" if compared.admitted is None else admitted
        console.print(f"{goal} <= {compared.upper_bound:.9g} {whatever} (certified)", highlight=False)
    for row in compared.rows.values():
        if row.error is not None:
            console.print(f"{row.method}: {row.error}", highlight=False, markup=False)


def _numbers(row: Row) -> Sequence[str]:
    if row.solution is None or row.error is not None:
        return ["-"] * 5
    ratio = "-" if row.ratio is None else f"{row.ratio:.4f}"
    gap = "-" if row.gap is None else f"{row.gap:.1e}"
    return f"{row.solution.evaluation.objective:.6g}", ratio, gap, f"{row.cpu_ms or 0.0:.4g}", str(row.solution.sweeps)


def print_choice(instance: Instance, row: Row, *, console: Console) -> None:
    """Print what each client is given by one allocator, and what the answer rests on."""
    solution = row.solution
    if solution is None:
        return
    e = solution.evaluation
    console.print(f"\n{row.method}: U {e.utility:.6g}, S {e.cost:.6g}, {e.time_s:.4g} s, {e.energy_j:.4g} J", highlight=False)
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("client", no_wrap=True, max_width=14)
    for heading in (
        "share",
        "bytes\nMB",
        "bits/\nweight",
        "band\nMHz",
        "power\nW",
        "clock\nTFLOP/s",
        "server\nTFLOP/s",
        "rate\nMbit/s",
        "time\ns",
        "energy\nJ",
    ):
        table.add_column(heading, justify="right", no_wrap=True)
    columns = _columns(instance, solution)
    columns["budget_bytes"] = columns["budget_bytes"] / 1e6  # shown in MB
    rows = np.column_stack(list(columns.values()))[:_CLIENTS_SHOWN]
    for name, numbers in zip(instance.names, rows, strict=False):
        table.add_row(name, *(f"{x:.3g}" for x in numbers))
    console.print(table)
    if instance.clients > _CLIENTS_SHOWN:
        console.print(f"and {instance.clients - _CLIENTS_SHOWN} more clients; all of them with --json or --out", highlight=False)
    said = f"claim: {row.claim}, tier {solution.tier}, {solution.sweeps} sweeps, worst violation of a limit {e.worst:.1e}"
    console.print(said, highlight=False)
    for note in solution.notes[:_NOTES_SHOWN]:
        console.print(f"note: {note}", highlight=False, markup=False)
    if len(solution.notes) > _NOTES_SHOWN:
        console.print(f"and {len(solution.notes) - _NOTES_SHOWN} more notes", highlight=False)
    console.print("workloads, utilities and constants are reconstructed (docs/SOLVE.md)", style="dim")
