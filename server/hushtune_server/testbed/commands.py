"""``hushtune testbed …`` and ``hushtune runs …``: run an experiment on this machine, and read past ones."""

import asyncio
import json
import sys
from collections.abc import Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter
from rich.console import Console
from rich.table import Table

from hushtune_common import config, logs
from hushtune_common.clock import SystemClock
from hushtune_common.errors import ConfigError, HushtuneError
from hushtune_common.outlook import TRACES_HELP
from hushtune_server.owner.commands import MODEL_CACHE
from hushtune_server.testbed import rundir, tables
from hushtune_server.testbed.chaos import commands as chaos
from hushtune_server.testbed.dashboard import commands as dashboards
from hushtune_server.testbed.emulators import commands as emulators
from hushtune_server.testbed.experiments import commands as experiments
from hushtune_server.testbed.link import commands as link
from hushtune_server.testbed.logbook import commands as logbook
from hushtune_server.testbed.membership import commands as membership
from hushtune_server.testbed.metrics import commands as metrics_commands
from hushtune_server.testbed.page import commands as page
from hushtune_server.testbed.solve import commands as solve
from hushtune_server.testbed.trace import commands as trace
from hushtune_server.testbed.transport import commands as transport

ScenarioFile = Annotated[Path, Parameter(help="The experiment as a TOML file, such as scenarios/demo.toml.")]
Runs = Annotated[Path, Parameter(help="Folder that holds the run directories.")]
Cache = Annotated[Path, Parameter(help="Where converted model weights are kept between runs.")]
Overrides = Annotated[
    list[str] | None, Parameter(name="--set", help="Override a setting, for example training.epochs=2 (repeatable).")
]
_RUNS = Path("runs")


def register(app: App) -> None:
    """Add the ``testbed`` and ``runs`` commands to the command line."""
    testbed = App(name="testbed", help="Run a whole experiment on this machine: every role a process of its own.")
    testbed.command(run)
    testbed.command(sweep)
    testbed.command(referee)
    transport.register(testbed)
    chaos.register(testbed)
    app.command(testbed)
    runs = App(name="runs", help="Read the results and logs of past runs.")
    runs.command(list_runs, name="list")
    runs.command(show)
    logbook.register(app, runs=runs)
    trace.register(app)
    page.register(app)
    dashboards.register(app)
    metrics_commands.register(app)
    app.command(runs)
    link.register(app)
    membership.register(app)
    solve.register(app)
    experiments.register(app)
    emulators.register(app["emulator"])


def run(
    scenario: ScenarioFile,
    *,
    clients: Annotated[
        int | None, Parameter(help="Number of data owners; more than the scenario names are placed for you.")
    ] = None,
    seed: Annotated[int | None, Parameter(help="Seed instead of the scenario's.")] = None,
    set_: Overrides = None,
    bound: Annotated[bool, Parameter(help="Also train the adapter blocks in the full model, and the full model (slow).")] = False,
    live: Annotated[
        bool | None, Parameter(negative="--no-live", help="Live view; by default when standard output is a terminal.")
    ] = None,
    keep_state: Annotated[bool, Parameter(help="Keep the big blobs and the run's keys.")] = False,
    metrics: Annotated[
        bool,
        Parameter(help="Serve each process's metrics at a free port of this machine; runs/<id>/metrics.json lists them."),
    ] = False,
    traces: Annotated[str | None, Parameter(help=TRACES_HELP)] = None,
    dashboard: Annotated[bool, Parameter(help="Also show the run on a web page of this machine while it goes on.")] = False,
    runs: Runs = _RUNS,
    cache: Cache = MODEL_CACHE,
) -> int:
    """Run SCENARIO to its end and print the result.

    Starts coordinator, air, owner, eavesdropper and clients, each as a process with a certificate of its own, shows what they do,
    scores the result on held-out text and writes `runs/<id>/report.json` and, as a page for people, `report.html` beside it.
    Ctrl-C stops everything within seconds.

    Example: hushtune testbed run scenarios/demo.toml --clients 3 --seed 2
    """
    from hushtune_server.testbed.launch import Options, Outcome, run_experiment

    resolved = _resolved(scenario, clients=clients, overrides=[*(set_ or []), *([f"seed={seed}"] if seed is not None else [])])
    console = Console()
    options = Options(
        runs=runs,
        cache=cache,
        live=console.is_terminal if live is None else live,
        bound=bound,
        keep_state=keep_state,
        metrics=metrics,
        traces=traces,
    )
    if not options.live:
        console.print(f"running {resolved.name} with {len(resolved.clients)} clients, seed {resolved.seed}; logs below {runs}/")

    def work() -> Coroutine[Any, Any, Outcome]:
        return run_experiment(resolved, options=options, clock=SystemClock(), console=console)

    def tell(said: str) -> None:
        console.print(said, soft_wrap=True)

    followed = dashboards.beside(work, runs=runs, listen="127.0.0.1:0", tell=tell) if dashboard else work()
    outcome = asyncio.run(followed)
    tables.print_report(rundir.read_json(outcome.run.report), console=console)
    page_at = _page(outcome.run, console)
    console.print(
        f"\n{page_at or outcome.run.report}   (hushtune runs show {outcome.run.id}, hushtune logs {outcome.run.id} --client c1)"
    )
    return outcome.code


def _page(run: rundir.RunDirectory, console: Console) -> Path | None:
    """Write the run's page; a run that came this far does not fail because of it."""
    from hushtune_server.testbed.page.pages import write

    try:
        return write(run)
    except (HushtuneError, OSError) as error:
        console.print(f"no page could be written: {error}", style="yellow", markup=False)
        return None


def sweep(
    scenario: ScenarioFile,
    *,
    seeds: Annotated[str, Parameter(help="Seeds, separated by commas.")] = "1,2,3",
    clients: Annotated[int | None, Parameter(help="Number of data owners.")] = None,
    set_: Overrides = None,
    bound: Annotated[bool, Parameter(help="Also the bound and full fine-tuning (slow).")] = False,
    json_: Annotated[bool, Parameter(name="--json", help="Print the sweep as JSON.")] = False,
    out: Annotated[Path | None, Parameter(help="The page to write; beside the runs unless given.")] = None,
    runs: Runs = _RUNS,
    cache: Cache = MODEL_CACHE,
) -> int:
    """Run SCENARIO once per seed and print mean and spread; a seed that fails ends the sweep with its exit code.

    Each run gets its page, report.html, and all of them one: scores by setting and seed with means, intervals and figures, and
    links to the runs. `hushtune report --sweep` makes that page of runs that are there.

    Example: hushtune testbed sweep scenarios/demo.toml --seeds 1,2,3
    """
    from hushtune_server.testbed.launch import Options, run_experiment
    from hushtune_server.testbed.sweep import print_sweep, to_json

    if not all(part.strip().lstrip("-").isdigit() for part in seeds.split(",")):
        raise ConfigError("--seeds", f"whole numbers separated by commas, got {seeds!r}")
    console = Console(stderr=json_)
    options = Options(runs=runs, cache=cache, live=console.is_terminal, bound=bound)
    reports: list[dict[str, Any]] = []
    found: list[rundir.RunDirectory] = []
    for seed in seeds.split(","):
        resolved = _resolved(scenario, clients=clients, overrides=[*(set_ or []), f"seed={seed.strip()}"])
        outcome = asyncio.run(run_experiment(resolved, options=options, clock=SystemClock(), console=console))
        reports.append(rundir.read_json(outcome.run.report))
        found.append(outcome.run)
        page_at = _page(outcome.run, console)
        if outcome.code != 0:
            tables.print_report(reports[-1], console=console)
            _sweep_page(found, console, out=out, problem=f"Seed {seed.strip()} failed and ended the sweep; its page says why.")
            return outcome.code
        console.print(f"{outcome.run.id}: {page_at or outcome.run.report}", soft_wrap=True)
    print_sweep(reports, console=console)
    _sweep_page(found, console, out=out)
    if json_:
        sys.stdout.write(json.dumps(to_json(reports), indent=2) + "\n")
    return 0


def _sweep_page(found: list[rundir.RunDirectory], console: Console, *, out: Path | None, problem: str = "") -> None:
    """Write the page about all runs; a sweep that came this far does not fail because of it."""
    try:
        console.print(f"\n{page.write_sweep(found, out=out, problem=problem)}", soft_wrap=True)
    except (HushtuneError, OSError) as error:
        console.print(f"no page could be written: {error}", style="yellow", markup=False)


def _resolved(scenario: Path, *, clients: int | None, overrides: Sequence[str]) -> config.Scenario:
    resolved = config.load(scenario, overrides=overrides)
    return resolved if clients is None else config.with_clients(resolved, clients)


def referee(
    run_path: Path,
    *,
    bound: Annotated[bool, Parameter(help="Also the bound and full fine-tuning (slow).")] = False,
    cache: Cache = MODEL_CACHE,
) -> int:
    """Score a finished run on held-out text (needs the run's state; a testbed calls this itself)."""
    from hushtune_server.testbed.referee import judge

    clock = SystemClock()
    logs.configure(clock=clock, role="referee", name="referee")
    directory = rundir.RunDirectory(run_path)
    judge(directory, config.load(directory.scenario), cache=cache, bound=bound, clock=clock)
    return 0


def list_runs(
    *, runs: Runs = _RUNS, json_: Annotated[bool, Parameter(name="--json", help="One JSON object per run.")] = False
) -> int:
    """List the runs, oldest first."""
    table = Table(box=None)
    table.add_column("run", no_wrap=True)
    table.add_column("status", no_wrap=True)
    for heading in ("seed", "accepted", "zero-shot", "plug-in", "wall s"):
        table.add_column(heading)
    found = list(rundir.all_runs(runs))
    for directory in found:
        report = rundir.read_json(directory.report)
        facts = directory.facts()
        if json_:
            sys.stdout.write(json.dumps({**facts, "status": directory.status, "settings": report.get("settings")}) + "\n")
            continue
        clients: Sequence[Mapping[str, Any]] = report.get("clients", [])
        accepted = f"{sum(bool(c.get('accepted')) for c in clients)}/{len(clients)}"
        table.add_row(
            directory.id,
            directory.status,
            str(facts.get("seed", "-")),
            accepted,
            _perplexity(report, "full_zero_shot"),
            _perplexity(report, "plug_in"),
            str(facts.get("wall_s", "-")),
        )
    if not json_:
        Console().print(table if found else f"no runs in {runs}; start one with: hushtune testbed run scenarios/demo.toml")
    return 0


def show(run_id: str = "latest", *, runs: Runs = _RUNS, json_: Annotated[bool, Parameter(name="--json")] = False) -> int:
    """Show the result of RUN_ID: a run's id, a unique beginning of it, `latest`, or a run directory.

    Example: hushtune runs show latest

    Example: hushtune runs show /elsewhere/runs/demo-20261122-101500-s1
    """
    directory = rundir.find(runs, run_id)
    report = rundir.read_json(directory.report)
    if not report:
        raise ConfigError(directory.id, "has no report yet; it may still be running, see: hushtune logs " + directory.id)
    if json_:
        sys.stdout.write(json.dumps(report, indent=2, ensure_ascii=False) + "\n")
    else:
        console = Console()
        console.print(f"{directory.id}: {report['status']}")
        tables.print_report(report, console=console)
        console.print("\nWhat the claims rest on:")
        for assumption in report["assumptions"]:
            console.print(f"  - {assumption}")
    return 0


def _perplexity(report: Mapping[str, Any], setting: str) -> str:
    score = (report.get("settings") or {}).get(setting)
    return f"{score['perplexity']:.1f}" if score else "-"
