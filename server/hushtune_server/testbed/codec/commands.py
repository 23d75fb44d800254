"""``hushtune codec curve``: it needs private text, so it belongs to the testbed and never to the owner."""

import importlib.metadata
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, Parameter

from hushtune_server.owner.commands import MODEL_CACHE

if TYPE_CHECKING:
    from hushtune_server.testbed.codec.schema import CurveScenario

_WIDTH = 190
_PACKAGES = ("hushtune-server", "torch", "transformers", "numpy", "zstandard")

Json = dict[str, Any]


def register(codec: App) -> None:
    """Add ``curve`` to the commands about codecs."""
    codec.command(curve)


def curve(
    scenario: Annotated[Path, Parameter(help="The curve, a TOML file such as scenarios/codec.toml.")],
    *,
    out: Annotated[
        Path, Parameter(help="Folder of results; adapters and every finished cell are kept in it and found again.")
    ] = (Path("runs/codec")),
    set_: Annotated[tuple[str, ...], Parameter(name="--set", help="Override a setting, for example seeds=[1]; repeatable.")] = (),
    document: Annotated[
        Path | None, Parameter(help="Write the results as a Markdown document, its figure beside it, such as docs/results/x.md.")
    ] = None,
    json_: Annotated[bool, Parameter(name="--json", help="Print the result as one JSON document.")] = False,
    again: Annotated[
        bool, Parameter(help="Write and score everything again, after the code of a codec changed; adapters stay.")
    ] = False,
    cache: Annotated[Path, Parameter(help="Folder for converted models, shared between runs.")] = MODEL_CACHE,
) -> int:
    """Draw what a plug-in loses over the bytes that its adapter had: our codec, and everybody else's, in the same run.

    Trains the adapter blocks on the emulator as a client does, once for each seed. Every codec writes the same adapters to
    files, reads them back, and what was read is plugged into the full model and scored on held-out private windows. At the bytes
    that each peer took, ours is measured too, so that who lies below whom is checked and not drawn; rows that lie below ours are
    named.

    What is finished is kept under the digest of all that it depends on: a run that was killed goes on where it was. Table and
    JSON say how sure every number is; speeds are worth something on an idle machine only.

    The file says model, text, emulator, training and seeds as scenarios/emulators.toml does; `[codec]` is that of a scenario,
    `[curve]` has the budgets in bits per weight, `[peers]` who takes part; `also` names further codecs of ours, none by default:
    `--set 'also=[{rank=32},{kind="jopeq",noise={epsilon=16}}]'`.

    Examples: `hushtune codec curve scenarios/codec.toml`, a quick look with
    `hushtune codec curve scenarios/codec.toml --set seeds=[1] --set curve.budgets=[4,1]`
    """
    from hushtune_server.testbed.codec import schema
    from hushtune_server.testbed.codec.figures import draw
    from hushtune_server.testbed.codec.report import print_curve
    from hushtune_server.testbed.codec.results import document_text
    from hushtune_server.testbed.rundir import write_json

    asked = schema.load(scenario, overrides=set_)
    found = _run(asked, out=out, cache=cache, again=again, command=_said(scenario, set_))
    draw(found, out / found["name"])
    write_json(out / f"{found['name']}.json", found)
    if document is not None:
        document.parent.mkdir(parents=True, exist_ok=True)
        text = document_text(found, figures=draw(found, document.with_suffix("")))
        document.write_text(text, encoding="utf-8")
    if json_:
        sys.stdout.write(json.dumps(found, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
        return 0
    from rich.console import Console

    console = Console()
    print_curve(found, console=console if console.is_terminal else Console(width=_WIDTH))
    return 0


def _run(scenario: "CurveScenario", *, out: Path, cache: Path, again: bool, command: str) -> Json:
    """Compute every cell that is not known, telling a person how far it is, and return the document."""
    from hushtune_common.clock import SystemClock
    from hushtune_common.model.sources import open_source
    from hushtune_server.owner.emulators.engine import Telling
    from hushtune_server.testbed.codec.adapters import Adapters
    from hushtune_server.testbed.codec.bench import CurveBench
    from hushtune_server.testbed.codec.summary import document
    from hushtune_server.testbed.emulators.cells import Cells
    from hushtune_server.testbed.emulators.forge import Forge
    from hushtune_server.testbed.emulators.progress import Ticker
    from hushtune_server.testbed.emulators.tasks import texts_of

    clock, comparison = SystemClock(), scenario.comparison
    ticker = Ticker(expected=_counts(scenario), clock=clock)
    cells = Cells(out / "cells", clock=clock, tell=ticker.settled)
    telling = Telling(phase=ticker.phase, progress=ticker.step)
    source = open_source(comparison.model.source, cache=cache)
    texts = texts_of(comparison, source=source)
    forge = Forge(source, comparison=comparison, cells=cells, work=out / "work", telling=telling)
    adapters = Adapters(
        scenario, forge=forge, texts=texts, cells=cells, folder=out / "adapters", clock=clock, stepped=ticker.step
    )
    bench = CurveBench(
        scenario,
        forge=forge,
        texts=texts,
        adapters=adapters,
        cells=cells,
        clock=clock,
        again=again,
    )
    try:
        results = bench.run()
    finally:
        forge.clear()
    facts = {"date": clock.wall().isoformat(timespec="seconds"), "versions": _versions(), "command": command}
    return document(bench, results, facts=facts)


def _counts(scenario: "CurveScenario") -> dict[str, int]:
    """Return how many cells there are of each kind, where nothing trains the emulator."""
    from hushtune_server.testbed.codec.peers import peers_of

    others = len(scenario.also) * len(scenario.curve.budgets)
    seeds, peers = len(scenario.comparison.seeds), len(peers_of(scenario.peers)) + others
    ways = len(scenario.curve.budgets) + peers * (2 if scenario.curve.same_bytes else 1)
    return {"emulator": 1, "adapter": seeds, "score": 1 + seeds * (1 + ways), "sent": seeds * ways}


def _said(scenario: Path, overrides: Sequence[str]) -> str:
    """Return the command with all that changes its numbers, as a person would type it."""
    return shlex.join(["hushtune", "codec", "curve", str(scenario), *(part for s in overrides for part in ("--set", s))])


def _versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in _PACKAGES}
