"""``hushtune emulator compare`` and ``search``: they need private text, so they belong to the testbed and never to the owner."""

import importlib.metadata
import json
import shlex
import sys
from dataclasses import asdict, dataclass
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, Parameter

from hushtune_common.errors import ConfigError, Infeasible
from hushtune_server.owner.commands import MODEL_CACHE

if TYPE_CHECKING:
    from rich.console import Console

    from hushtune_common.model.plan import Plan
    from hushtune_server.testbed.emulators.schema import Comparison

_WIDTH = 160
_OUT = Path("runs/emulators")
_PACKAGES = ("hushtune-server", "torch", "transformers", "numpy")

ComparisonFile = Annotated[Path, Parameter(help="The comparison, a TOML file such as scenarios/emulators.toml.")]
Out = Annotated[Path, Parameter(help="Folder of results; every finished cell is kept in it and found again.")]
Cache = Annotated[Path, Parameter(help="Folder for converted models, shared between runs.")]
Seeds = Annotated[str | None, Parameter(help="Training seeds instead of the file's, separated by commas.")]
Methods = Annotated[str | None, Parameter(help="Only these emulators of the file, by name, separated by commas.")]
Replan = Annotated[bool, Parameter(help="Make plans again although they are known, after the code of a method changed.")]
Overrides = Annotated[
    list[str] | None, Parameter(name="--set", help="Override a setting, for example data.test_windows=20 (repeatable).")
]


Json = dict[str, Any]


def register(emulator: App) -> None:
    """Add ``compare`` and ``search`` to the commands about emulators."""
    emulator.command(compare)
    emulator.command(search)


def compare(
    *,
    scenario: ComparisonFile,
    out: Out = _OUT,
    seeds: Seeds = None,
    methods: Methods = None,
    set_: Overrides = None,
    cost: Annotated[bool, Parameter(help="Also measure speed and memory of a client's training.")] = False,
    document: Annotated[
        Path | None, Parameter(help="Write the results as a Markdown document, figures beside it, such as docs/results/x.md.")
    ] = None,
    json_: Annotated[bool, Parameter(name="--json", help="Print the result as one JSON document.")] = False,
    replan: Replan = False,
    cache: Cache = MODEL_CACHE,
) -> int:
    """Compare emulators on the same model, text, seeds and bytes: full model, emulator and plug-in, before and after training.

    Learning rates are chosen on a held-out part of the training text, for every arm and attack; test windows score and nothing
    else. Every finished cell is kept in the folder of results under the digest of all that it depends on: a killed comparison
    goes on where it was, and another comparison with the same cells finds them there. A training that diverges is reported and
    stops nothing. Result and figures are in that folder too.

    Example: hushtune emulator compare --scenario scenarios/emulators.toml --methods uniform,ablation --json
    """
    from hushtune_server.testbed.emulators import schema

    asked = schema.load(scenario, overrides=set_ or ()).only(names=_listed(methods), seeds=_numbers(seeds))
    if cost and asked.task != "language":
        raise ConfigError("--cost", "is measured for language models; leave it out for an encoder")
    command = _said("compare", scenario, seeds=seeds, methods=methods, set_=set_)
    run = _run(asked, out=out, cache=cache, replan=replan, command=command, cost=cost)
    _keep(run, folder=out)
    if document is not None:
        _document(run, file=document)
    _print(run.document, as_json=json_)
    return 0


def search(
    *,
    scenario: ComparisonFile,
    plug_in_min: Annotated[float | None, Parameter(help="Least share of full fine-tuning's gain that the plug-in has.")] = None,
    gap_min: Annotated[float | None, Parameter(help="Least nats by which the plug-in is ahead of the strongest attack.")] = None,
    bytes_max: Annotated[float | None, Parameter(help="Most bytes shipped, such as 3e8.")] = None,
    sizes: Annotated[
        int, Parameter(help="Try every method at so many of its sizes; 0 takes the emulators as the file has them.")
    ] = 0,
    sure: Annotated[bool, Parameter(help="Judge by the lower ends of the intervals.")] = False,
    plan: Annotated[Path | None, Parameter(help="Write the plan to take to this file, JSON.")] = None,
    out: Out = _OUT,
    seeds: Seeds = None,
    methods: Methods = None,
    set_: Overrides = None,
    json_: Annotated[bool, Parameter(name="--json", help="Print the answer as JSON.")] = False,
    replan: Replan = False,
    cache: Cache = MODEL_CACHE,
) -> int:
    """Find the emulator to take: the front of those that no other beats, and of those that meet every demand the best plug-in.

    Computes what is not known yet, as `compare` does. Exit code 9 when no emulator meets the demands; what is missed, and by how
    much, is said.

    Example: hushtune emulator search --scenario scenarios/emulators.toml --plug-in-min 0.8 --gap-min 0 --bytes-max 4e8 --sizes 4
    """
    from hushtune_common.model.sources import open_source
    from hushtune_server.owner.emulators.planning import request_of
    from hushtune_server.testbed.emulators import schema
    from hushtune_server.testbed.emulators.report import print_answer
    from hushtune_server.testbed.emulators.search import Demands, answer, at_sizes, points_of

    asked = schema.load(scenario, overrides=set_ or ()).only(names=_listed(methods), seeds=_numbers(seeds))
    if sizes < 0 or (bytes_max is not None and not isfinite(bytes_max)):
        raise ConfigError("--sizes" if sizes < 0 else "--bytes-max", "takes a finite number, not below 0")
    if not asked.attacks:
        raise ConfigError("attacks", "is empty; a gap needs an attack to be against")
    if sizes:
        request = request_of(asked.model, source=open_source(asked.model.source, cache=cache))
        asked = at_sizes(asked, count=sizes, request=request)
    command = _said("search", scenario, seeds=seeds, methods=methods, set_=set_)
    run = _run(asked, out=out, cache=cache, replan=replan, command=command, cost=False)
    demands = Demands(plug_in_min=plug_in_min, gap_min=gap_min, bytes_max=None if bytes_max is None else int(bytes_max))
    found = answer(points_of(run.document, sure=sure), demands)
    if found.taken is not None and plan is not None:
        plan.write_text(run.plans[found.taken.name].to_readable_json(), encoding="utf-8")
    if json_:
        sys.stdout.write(json.dumps(asdict(found), indent=1) + "\n")
    else:
        print_answer(found, console=_console())
    if found.problem is not None:
        raise Infeasible(found.problem)
    return 0


def _said(command: str, scenario: Path, *, seeds: str | None, methods: str | None, set_: list[str] | None) -> str:
    """Return the command with all that changes its numbers, as a person would type it."""
    pairs = [("--scenario", str(scenario)), ("--methods", methods), ("--seeds", seeds), *(("--set", s) for s in set_ or ())]
    return shlex.join(["hushtune", "emulator", command, *(part for key, value in pairs if value for part in (key, value))])


@dataclass(frozen=True, slots=True, kw_only=True)
class _Ran:
    document: Json
    plans: "dict[str, Plan]"
    cost: list[Json]


def _run(comparison: "Comparison", *, out: Path, cache: Path, replan: bool, command: str, cost: bool) -> _Ran:
    """Compute every cell of a comparison that is not known, telling a person how far it is."""
    from hushtune_common.clock import SystemClock
    from hushtune_common.model.sources import open_source
    from hushtune_server.owner.emulators.engine import Telling
    from hushtune_server.testbed.emulators import compare as comparing
    from hushtune_server.testbed.emulators.bench import Bench
    from hushtune_server.testbed.emulators.cells import Cells
    from hushtune_server.testbed.emulators.cost import client_costs
    from hushtune_server.testbed.emulators.forge import Forge, trains
    from hushtune_server.testbed.emulators.progress import Ticker

    clock = SystemClock()
    counts = comparing.cell_counts(comparison, makes=lambda entry: len(comparison.seeds) if trains(entry) else 1)
    ticker = Ticker(expected=counts, clock=clock)
    cells = Cells(out / "cells", clock=clock, tell=ticker.settled)
    telling = Telling(phase=ticker.phase, progress=ticker.step)
    source = open_source(comparison.model.source, cache=cache)
    forge = Forge(source, comparison=comparison, cells=cells, work=out / "work", telling=telling, replan=replan)
    bench = Bench(comparison=comparison, forge=forge, cells=cells, clock=clock, stepped=ticker.step)
    try:
        results = comparing.run(bench)
        costs = client_costs(bench, results, tell=ticker.phase) if cost else []
    finally:
        forge.clear()
    facts = {"date": clock.wall().isoformat(timespec="seconds"), "versions": _versions(), "command": command, "cost": costs}
    plans = {row.entry.name: row.emulators[0].plan for row in results.rows if row.emulators}
    return _Ran(document=comparing.document(bench, results, facts=facts), plans=plans, cost=costs)


def _keep(run: _Ran, *, folder: Path) -> None:
    """Write result and figures into the folder of results."""
    from hushtune_server.testbed.emulators.figures import draw
    from hushtune_server.testbed.rundir import write_json

    name = run.document["name"]
    draw(run.document, _parameters(run), folder / name)
    write_json(folder / f"{name}.json", run.document)


def _document(run: _Ran, *, file: Path) -> None:
    from hushtune_server.testbed.emulators.figures import draw
    from hushtune_server.testbed.emulators.results import document_text

    file.parent.mkdir(parents=True, exist_ok=True)
    figures = draw(run.document, _parameters(run), file.with_suffix(""))
    file.write_text(document_text(run.document, figures=figures, cost=run.cost), encoding="utf-8")


def _parameters(run: _Ran) -> dict[str, Json]:
    return {name: dict(plan.parameters) for name, plan in run.plans.items()}


def _print(document: Json, *, as_json: bool) -> None:
    from hushtune_server.testbed.emulators.report import print_comparison

    if as_json:
        sys.stdout.write(json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    else:
        print_comparison(document, console=_console())


def _console() -> "Console":
    """Return where tables go: as wide as the terminal, and wide enough where there is none."""
    from rich.console import Console

    console = Console()
    return console if console.is_terminal else Console(width=_WIDTH)


def _listed(text: str | None) -> list[str] | None:
    return None if text is None else [part.strip() for part in text.split(",") if part.strip()]


def _numbers(text: str | None) -> list[int] | None:
    parts = _listed(text)
    try:
        numbers = None if parts is None else [int(part) for part in parts]
    except ValueError as error:
        raise ConfigError("--seeds", f"whole numbers separated by commas, got {text!r}") from error
    if numbers is not None and (not numbers or len(set(numbers)) < len(numbers)):
        raise ConfigError("--seeds", f"at least one, and each once, got {text!r}")
    return numbers


def _versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in _PACKAGES}
