"""``hushtune membership RUN``: what do the adapters that a run returned give away about the windows they were trained on?"""

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import App, Parameter
from rich.console import Console
from rich.table import Table

from hushtune_common.errors import ConfigError
from hushtune_server.owner.commands import MODEL_CACHE
from hushtune_server.testbed import rundir

if TYPE_CHECKING:
    from hushtune_common.config import Scenario
    from hushtune_server.testbed.membership.attack import MembershipReport, Windows

ASSUMED = (
    "The attacker is the owner: it holds the base model, the returned blocks, and whole windows to ask about, cut where the "
    "client cut them. A record seen in parts is harder to recognise.",
    "Members are the client's training windows; the others are windows of the same source that nobody trained on. Where the two "
    "differ by themselves, the base model's scores say so, and so do the scores that are not taken against it.",
    "An interval that includes 0.5 says that these scores found nothing in so many windows, not that nothing is there.",
)


def register(app: App) -> None:
    """Add the command to the command line."""
    app.command(membership)


def membership(
    run_id: str = "latest",
    *,
    runs: Annotated[Path, Parameter(help="Folder that holds the run directories.")] = Path("runs"),
    cache: Annotated[Path, Parameter(help="Where converted model weights are kept between runs.")] = MODEL_CACHE,
    json_: Annotated[bool, Parameter(name="--json", help="Print the result as JSON.")] = False,
) -> int:
    """Try to tell, from each client's returned adapter, which windows it was trained on.

    Needs the state of a finished run: testbed run --keep-state. Scores each adapter plugged into the full model.

    Example: hushtune membership latest
    """
    from hushtune_common import config

    run = rundir.find(runs, run_id)
    scenario = config.load(run.scenario)
    found: dict[str, MembershipReport] = {}
    for name, report in attacked(run, scenario, cache=cache):
        found[name] = report
        print(f"{name}: {report.guesses[0].score} {report.guesses[0].auc:.3f}", file=sys.stderr)
    if json_:
        result = {"run": run.id, "assumed": said(scenario), "adapters": {n: r.to_json() for n, r in found.items()}}
        sys.stdout.write(json.dumps(result, indent=2) + "\n")
    else:
        _print(found, scenario)
    return 0


def attacked(run: rundir.RunDirectory, scenario: "Scenario", *, cache: Path) -> Iterator[tuple[str, "MembershipReport"]]:
    """Yield the report on each returned adapter of a finished run, by client, and on their mean as ``aggregate``.

    `ConfigError` when the run's state is gone or nothing was returned.
    """
    from hushtune_common.adapter import load_adapter
    from hushtune_common.model.bundle import read_bundle
    from hushtune_common.seeding import SeedTree
    from hushtune_server.testbed.membership.attack import judged, losses_of
    from hushtune_server.testbed.referee import gather

    bundle = rundir.read_json(run.state("owner") / "owner.json").get("bundle")
    if bundle is None or not Path(bundle).exists():
        raise ConfigError(run.id, "its emulator and adapters are gone; run it with: hushtune testbed run … --keep-state")
    evidence = gather(run, scenario, cache=cache)
    if not evidence.adapters:
        raise ConfigError(run.id, "no client returned an adapter; see: hushtune runs show " + run.id)
    members = {**own_windows(scenario, bundle=Path(bundle)), "aggregate": evidence.train}
    model = evidence.source.load(scenario.compute)
    base = {name: losses_of(model, members[name]) for name in evidence.adapters}
    base_others = losses_of(model, evidence.test)
    schema = read_bundle(Path(bundle)).schema
    for name, path in evidence.adapters.items():
        model.set_adapter(load_adapter(path, schema).tensors)
        tuned = [losses_of(model, members[name]), losses_of(model, evidence.test)]
        yield name, judged(tuned, [base[name], base_others], seeds=SeedTree(scenario.seed).child("membership", name))


def own_windows(scenario: "Scenario", *, bundle: Path) -> Mapping[str, "Windows"]:
    """Return the windows that each client trained on, as the clients derive them."""
    from hushtune_common.model.bundle import read_bundle
    from hushtune_common.model.data import load_records, share_out
    from hushtune_common.seeding import SeedTree

    tokens, data = read_bundle(bundle).tokens, scenario.data
    clients = [c.id for c in scenario.clients]
    seeds = SeedTree(scenario.seed).child("data")
    shares = share_out(load_records(data.private), clients=clients, how=data.split, seeds=seeds)
    return {c: tokens.windows(shares.train[c], length=data.window_tokens, limit=data.train_windows) for c in clients}


def said(scenario: "Scenario") -> list[str]:
    """Return what the figures rest on."""
    dp = scenario.training.dp
    promise = (
        "Training made no promise about single windows (no training.dp)."
        if dp is None
        else f"Training promised epsilon {dp.epsilon:g} at delta {dp.delta:g} for single windows; that bounds any attack, and "
        "these figures are of a few."
    )
    return [*ASSUMED, promise]


def _print(found: Mapping[str, "MembershipReport"], scenario: "Scenario") -> None:
    table = Table(title="Telling trained windows from others, 95 % intervals", title_justify="left", box=None)
    for heading in ("adapter", "score"):
        table.add_column(heading)
    for heading in ("AUC", "interval", "found at 1 % false", "interval"):
        table.add_column(heading, justify="right")
    for name, report in found.items():
        for guess in report.guesses:
            table.add_row(
                f"{name} ({report.members} v {report.nonmembers})",
                guess.score,
                f"{guess.auc:.3f}",
                f"{guess.auc_low:.3f} to {guess.auc_high:.3f}",
                f"{guess.hits:.2f}",
                f"{guess.hits_low:.2f} to {guess.hits_high:.2f}",
                style="bold" if guess.tells else "",
            )
    console = Console()
    console.print(table)
    console.print("\nWhat this rests on:")
    for assumption in said(scenario):
        console.print(f"  - {assumption}", markup=False)
