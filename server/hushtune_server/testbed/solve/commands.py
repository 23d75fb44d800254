"""``hushtune solve``: the resource problem of one round, for people who study it and have no testbed in mind."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import App, Parameter, validators

from hushtune_common.errors import ConfigError
from hushtune_server.testbed.solve.methods import METHODS, Method

if TYPE_CHECKING:
    from hushtune_common.seeding import SeedTree
    from hushtune_server.coordinator.problems.instance import Instance

_CLIENTS = validators.Number(gte=1, lte=100_000)
_SECONDS = validators.Number(gte=0.1, lte=86_400.0)
_SEED = validators.Number(gte=0, lt=2**63)


def register(app: App) -> None:
    """Add the command ``solve`` to the command line."""
    app.command(solve)


def solve(
    instance: Annotated[Path | None, Parameter(help="The problem, a .toml or .json file (docs/SOLVE.md).")] = None,
    *,
    allocator: Annotated[Method, Parameter(help="Whose choice is shown, client by client.")] = "global",
    compare: Annotated[bool, Parameter(help="Ask every allocator and print them side by side.")] = False,
    admission: Annotated[
        bool,
        Parameter(help="Let `global` leave clients out where that raises the objective; all share out among the rest."),
    ] = False,
    random: Annotated[
        int | None, Parameter(help="Draw a problem of this many clients instead of reading one.", validator=_CLIENTS)
    ] = None,
    seed: Annotated[int, Parameter(help="Seed of the draw, and of the allocator `random`.", validator=_SEED)] = 1,
    scale: Annotated[
        Literal["default", "extreme"],
        Parameter(help="Of the draw: a plausible cell, or everything over many decades, to torture solvers."),
    ] = "default",
    write: Annotated[Path | None, Parameter(help="Write the problem to this .toml or .json file.")] = None,
    limit_s: Annotated[float, Parameter(help="Time that each allocator may take, in seconds.", validator=_SECONDS)] = 60.0,
    figures: Annotated[Path | None, Parameter(help="Write figures (SVG) into this folder; made if missing.")] = None,
    out: Annotated[Path | None, Parameter(help="Write the JSON document to this file.")] = None,
    json_: Annotated[bool, Parameter(name="--json", help="Print one JSON document instead of tables.")] = False,
) -> int:
    """Choose every client's share of the adapter, band, power and clock, and say how far from the best choice that can be.

    The problem: N clients each train a share of an adapter, upload it over their own band with an eavesdropper listening, and a
    shared machine plugs it in. Time and energy cost, shares are worth something; the ratio of the two is to be large (or their
    difference, or see docs/SOLVE.md for more objectives, deadlines, least rates and discrete levels).

    `global` solves it by its structure and proves its answer: no choice whatsoever is above the bound it prints. `conic` asks
    general convex solvers. `alternating` takes turns between shares and resources as published (arXiv 2407.00347, rebuilt from
    its public text); in `alternating-strict` the time stays with the resources, so that shares can never grow. `equal_share`,
    `random`, `communication_only` and `computation_only` are baselines, and `secrecy_blind` is what an optimum is worth that does
    not know of the eavesdropper. Those that need cvxpy are left out where it is missing.

    Try `hushtune solve --random 10 --write cell.toml`, which draws a problem, keeps it and solves it; then `hushtune solve
    cell.toml --compare`, which puts all allocators side by side; or `hushtune solve --random 100 --seed 7 --compare --json`,
    which prints objective, upper_bound, gap, cpu_ms and status of each for other programs.

    Exit codes: 0 solved, 3 a field is wrong, 4 a package is missing, 9 nothing satisfies the constraints (the least change that
    would is named), 10 the allocator failed, 11 out of time.
    """
    from rich.console import Console

    from hushtune_common.seeding import SeedTree
    from hushtune_server.testbed.solve import report
    from hushtune_server.testbed.solve.compare import Bench
    from hushtune_server.testbed.solve.files import check_place, write_text

    if out is not None:
        check_place(out, option="--out")
    seeds = SeedTree(seed)
    problem, source = _problem(instance, random, seeds=seeds, scale=scale)
    if write is not None:
        _write(problem, write)
    asked: set[Method] = set(METHODS) if compare else {allocator}
    if figures is not None:
        asked.add("equal_share")  # what the figure of the choice is drawn beside
    found = Bench(seeds=seeds, limit_s=limit_s, tell=_tell, admission=admission).compare(problem, asked)
    document = report.to_json(problem, found, chosen=allocator, source=source)
    text = json.dumps(document, indent=1, allow_nan=False, ensure_ascii=False) + "\n"
    if out is not None:
        write_text(out, text, option="--out")
    if figures is not None:
        from hushtune_server.testbed.solve.figures import draw

        for path in draw(problem, found, chosen=allocator, folder=figures):
            _tell(f"figure: {path}")
    if json_:
        sys.stdout.write(text)
    else:
        console = Console()
        report.print_comparison(problem, found, console=console)
        report.print_choice(problem, found.rows[allocator], console=console)
    error = found.rows[allocator].error
    if error is not None:
        raise error
    return 0


def _problem(
    path: Path | None, clients: int | None, *, seeds: "SeedTree", scale: Literal["default", "extreme"]
) -> "tuple[Instance, dict[str, Any]]":
    """Return the problem, and what a reader of the result must know to have it again."""
    if (path is None) == (clients is None):
        raise ConfigError("INSTANCE", "give a file, or --random N to draw one; exactly one of the two")
    if path is not None:
        if scale != "default":
            raise ConfigError("--scale", "belongs to --random; a file says everything itself")
        from hushtune_server.testbed.solve.files import read_instance

        return read_instance(path), {"file": str(path), "seed": seeds.root}
    from hushtune_server.coordinator.problems.draws import random_instance

    drawn = random_instance(clients=clients or 1, seeds=seeds, scale=scale)
    return drawn, {"random": clients, "seed": seeds.root, "scale": scale}


def _write(problem: "Instance", path: Path) -> None:
    from hushtune_server.testbed.solve.files import check_form, check_place, instance_text, write_text

    check_form(path, option="--write")
    check_place(path, option="--write")
    write_text(path, instance_text(problem, suffix=path.suffix), option="--write")
    _tell(f"problem of {problem.clients} clients written to {path}")


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
