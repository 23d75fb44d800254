"""``hushtune experiments …``: rebuild a paper's experiments, as numbers, figures and captions."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, Parameter, validators

from hushtune_common.errors import ConfigError

if TYPE_CHECKING:
    from hushtune_server.testbed.experiments.contenders import Contender
    from hushtune_server.testbed.experiments.mobihoc24 import Plan

Lines = list[dict[str, Any]]
STUDIES = ("convergence", "shares", "prices")


def register(app: App) -> None:
    """Add the ``experiments`` commands to the command line."""
    experiments = App(name="experiments", help="Rebuild published experiments: CSV files, figures, captions.")
    experiments.command(mobihoc24)
    app.command(experiments)


def mobihoc24(
    *,
    out: Annotated[Path, Parameter(help="Folder for CSV files, figures and README.md.")] = Path("docs/results/mobihoc24"),
    seeds: Annotated[
        int | None, Parameter(help="Problems per point; 5, or 2 with --quick.", validator=validators.Number(gte=1, lte=1000))
    ] = None,
    quick: Annotated[bool, Parameter(help="Few clients, points and seeds: under a minute, to see that it works.")] = False,
    only: Annotated[list[str] | None, Parameter(help="One experiment (repeatable); README.md is then left as it is.")] = None,
) -> int:
    """Rebuild the experiments of arXiv 2407.00347 with every allocator and baseline.

    U/S, delay, energy and shares over bandwidth, powers, clocks, number of data owners, weights and the eavesdropper's distance;
    convergence of the alternation; distribution of the shares. Progress goes to standard error. Equal commands write equal files.

    Example: hushtune experiments mobihoc24 --quick --only bandwidth --out results
    """
    from hushtune_server.testbed.experiments.contenders import contenders
    from hushtune_server.testbed.experiments.mobihoc24 import QUICK, Plan

    plan = _planned(QUICK if quick else Plan(), seeds)
    chosen = _chosen(only)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError("--out", f"cannot use the folder {out} ({error.strerror})") from error
    methods = contenders()
    tables = {name: _made(name, plan=plan, methods=methods, out=out) for name in chosen}
    if only is None:
        describe(out, plan=plan, methods=methods, tables=tables, command=_command(quick=quick, seeds=seeds))
    print(f"{len(tables)} experiments in {out}")
    return 0


def _planned(plan: "Plan", seeds: int | None) -> "Plan":
    return plan if seeds is None else replace(plan, seeds=seeds, oracle_seeds=min(seeds, plan.oracle_seeds))


def _command(*, quick: bool, seeds: int | None) -> str:
    return "hushtune experiments mobihoc24" + (" --quick" if quick else "") + ("" if seeds is None else f" --seeds {seeds}")


def _chosen(only: Sequence[str] | None) -> list[str]:
    from hushtune_server.testbed.experiments.problems import SWEEPS

    known = [*(sweep.name for sweep in SWEEPS), *STUDIES]
    unknown = [name for name in only or () if name not in known]
    if unknown:
        raise ConfigError("--only", f"expected one of {', '.join(known)}, got {unknown[0]!r}")
    return [name for name in known if only is None or name in only]


def _made(name: str, *, plan: "Plan", methods: Sequence["Contender"], out: Path) -> Lines:
    """Run one experiment and write its CSV file and figure; what is drawn and told is what the file says."""
    from hushtune_server.testbed.experiments.mobihoc24 import read_csv, write_csv

    write_csv(_run(name, plan=plan, methods=methods), out / f"{name}.csv")
    lines = read_csv(out / f"{name}.csv")
    draw(name, lines, methods=methods, out=out)
    return lines


def _run(name: str, *, plan: "Plan", methods: Sequence["Contender"]) -> Lines:
    from hushtune_server.testbed.experiments import studies
    from hushtune_server.testbed.experiments.mobihoc24 import run_sweep
    from hushtune_server.testbed.experiments.problems import SWEEPS

    match name:
        case "convergence":
            return studies.convergence(plan=plan, progress=_tell)
        case "shares":
            return studies.shares(plan=plan, methods=methods, progress=_tell)
        case "prices":
            return studies.prices(plan=plan, progress=_tell)
        case _:
            sweep = next(s for s in SWEEPS if s.name == name)
            return run_sweep(sweep, plan=plan, methods=methods, progress=_tell)


def draw(name: str, lines: Lines, *, methods: Sequence["Contender"], out: Path) -> None:
    """Write the figure of one experiment."""
    from hushtune_server.testbed.experiments import figures
    from hushtune_server.testbed.experiments.problems import SWEEPS

    labels = {m.name: m.label for m in methods}
    match name:
        case "convergence":
            figure = figures.convergence_figure(lines, labels)
        case "shares":
            figure = figures.shares_figure(lines, labels)
        case "prices":
            figure = figures.prices_figure(lines)
        case _:
            figure = figures.sweep_figure(next(s for s in SWEEPS if s.name == name), lines, labels)
    figures.save(figure, out / f"{name}.svg")


def describe(out: Path, *, plan: "Plan", methods: Sequence["Contender"], tables: Mapping[str, Lines], command: str) -> None:
    """Write README.md: setting, methods, findings and captions."""
    from hushtune_server.testbed.experiments.readme import readme

    text = readme(plan=plan, command=command, methods=methods, tables=tables)
    (out / "README.md").write_text(text, encoding="utf-8")


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
