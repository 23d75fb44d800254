"""``hushtune emulator compare`` and ``search``: they need private text, so they belong to the testbed and never to the owner."""

import importlib.metadata
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import App, Parameter

from hushtune_common.errors import ConfigError
from hushtune_server.owner.commands import MODEL_CACHE

if TYPE_CHECKING:
    from rich.console import Console

    from hushtune_server.testbed.emulators.schema import Comparison

_WIDTH = 160
_OUT = Path("runs/emulators")
_PACKAGES = ("hushtune-server", "torch", "transformers", "numpy")

ComparisonFile = Annotated[Path, Parameter(help="The comparison, a TOML file such as scenarios/emulators.toml.")]
Out = Annotated[Path, Parameter(help="Folder of results; every finished cell is kept in it and found again.")]
Cache = Annotated[Path, Parameter(help="Folder for converted models, shared between runs.")]
Seeds = Annotated[str | None, Parameter(help="Training seeds instead of the file's, separated by commas.")]
Methods = Annotated[str | None, Parameter(help="Only these emulators of the file, by name, separated by commas.")]
Overrides = Annotated[
    list[str] | None, Parameter(name="--set", help="Override a setting, for example data.test_windows=20 (repeatable).")
]


def register(emulator: App) -> None:
    """Add ``compare`` and ``search`` to the commands about emulators."""
    emulator.command(compare)


def compare(
    *,
    scenario: ComparisonFile,
    out: Out = _OUT,
    seeds: Seeds = None,
    methods: Methods = None,
    set_: Overrides = None,
    json_: Annotated[bool, Parameter(name="--json", help="Print the result as one JSON document.", negative=())] = False,
    replan: Annotated[
        bool, Parameter(help="Make plans again although they are known, after the code of a method changed.", negative=())
    ] = False,
    cache: Cache = MODEL_CACHE,
) -> int:
    """Compare emulators on the same model, text, seeds and bytes: full model, emulator and plug-in, before and after training.

    Learning rates are chosen on a held-out part of the training text, for every arm; test windows score and nothing else. Every
    finished cell is kept in the folder of results under the digest of all that it depends on: a killed comparison goes on where
    it was, and another comparison with the same cells finds them there. A training that diverges is reported and stops nothing.

    Example: hushtune emulator compare --scenario scenarios/emulators.toml --methods uniform,ablation --json
    """
    from hushtune_common.clock import SystemClock
    from hushtune_common.model.sources import open_source
    from hushtune_server.owner.emulators.engine import Telling
    from hushtune_server.testbed.emulators import compare as comparing
    from hushtune_server.testbed.emulators import schema
    from hushtune_server.testbed.emulators.bench import Bench
    from hushtune_server.testbed.emulators.cells import Cells
    from hushtune_server.testbed.emulators.forge import Forge, trains
    from hushtune_server.testbed.emulators.progress import Ticker
    from hushtune_server.testbed.emulators.report import print_comparison
    from hushtune_server.testbed.rundir import write_json

    asked = schema.load(scenario, overrides=set_ or ()).only(names=_listed(methods), seeds=_numbers(seeds))
    clock = SystemClock()
    counts = comparing.cell_counts(asked, makes=lambda entry: len(asked.seeds) if trains(entry) else 1)
    ticker = Ticker(expected=counts, clock=clock)
    cells = Cells(out / "cells", clock=clock, tell=ticker.settled)
    telling = Telling(phase=ticker.phase, progress=ticker.step)
    source = open_source(asked.model.source, cache=cache)
    forge = Forge(source, comparison=asked, cells=cells, work=out / "work", telling=telling, replan=replan)
    bench = Bench(comparison=asked, forge=forge, cells=cells, clock=clock, stepped=ticker.step)
    try:
        results = comparing.run(bench)
    finally:
        forge.clear()
    facts = {"date": clock.wall().isoformat(timespec="seconds"), "versions": _versions(), "command": _command(scenario, asked)}
    document = comparing.document(bench, results, facts=facts)
    write_json(out / f"{asked.name}.json", document)
    if json_:
        sys.stdout.write(json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    else:
        print_comparison(document, console=_console())
    return 0


def _console() -> "Console":
    """Return where tables go: as wide as the terminal, and wide enough where there is none."""
    from rich.console import Console

    console = Console()
    return console if console.is_terminal else Console(width=_WIDTH)


def _listed(text: str | None) -> list[str] | None:
    return None if text is None else [part.strip() for part in text.split(",") if part.strip()]


def _numbers(text: str | None) -> list[int] | None:
    parts = _listed(text)
    if parts is not None and not all(part.lstrip("-").isdigit() for part in parts):
        raise ConfigError("--seeds", f"whole numbers separated by commas, got {text!r}")
    return None if parts is None else [int(part) for part in parts]


def _versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in _PACKAGES}


def _command(scenario: Path, asked: "Comparison") -> str:
    return f"hushtune emulator compare --scenario {scenario} --seeds {','.join(map(str, asked.seeds))}"
