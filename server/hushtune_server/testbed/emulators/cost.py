"""What does training cost a client in time and memory, beside training the whole model? Each in a fresh process, one at a time.

Peak memory is the resident set of the process: interpreter, libraries, the loaded file, and what training holds. Nothing is taken
off, so that ratios understate what training itself saves.
"""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from hushtune_common.errors import TrainerFailed
from hushtune_common.model.plan import Plan
from hushtune_server.testbed.emulators.bench import Bench
from hushtune_server.testbed.emulators.compare import Results, Row
from hushtune_server.testbed.emulators.tasks import texts_of

Json = dict[str, Any]

STEPS = 6
LIMIT_S = 600.0


def client_costs(bench: Bench, results: Results, *, tell: Callable[[str], None]) -> list[Json]:
    """Measure full fine-tuning, the adapter blocks in the full model, and those on the emulator with the best plug-in.

    Speeds are tokens per second over all steps but the first. Ratios are to full fine-tuning with AdamW, in this run.
    """
    forge = bench.forge
    whole = Plan.keep_all(forge.source, adapter=tuple(range(forge.source.block_count)))
    ours = Plan.keep_all(forge.source, adapter=forge.request.adapter)
    cases: list[tuple[str, str, Callable[[], Path]]] = [
        ("everything in the full model", "full", lambda: forge.written(whole)),
        ("adapter blocks in the full model", "adapter", lambda: forge.written(ours)),
    ]
    best = min((row for row in results.rows if row.emulators), key=_plug_in, default=None)
    if best is not None:
        emulator = best.emulators[0]
        cases.append((f"adapter blocks on {best.entry.name}", "adapter", lambda: forge.bundle(emulator)))
    measured: list[Json] = []
    for what, trained, bundle in cases:
        tell(f"measuring what a client's training costs: {what}")
        measured.append({"what": what, **_measured(bench, bundle(), trained=trained)})
    full = measured[0]
    for row in measured:
        row["speed_ratio"] = row["tokens_per_s"] / full["tokens_per_s"]
        row["memory_ratio"] = full["peak_bytes"] / row["peak_bytes"]
    return measured


def _plug_in(row: Row) -> float:
    losses = [np.mean(cell["losses"]["full"]) for cell in row.fine_tuned if "losses" in cell]
    return float(np.mean(losses)) if losses else float("inf")


def _measured(bench: Bench, bundle: Path, *, trained: str) -> Json:
    """Run the child that trains for some steps and says what it took."""
    comparison = bench.comparison
    texts = texts_of(comparison, source=bench.forge.source)
    count = STEPS * comparison.training.batch_windows
    order = {
        "bundle": str(bundle),
        "trained": trained,
        "steps": STEPS,
        "windows": np.resize(texts.train, (count, texts.train.shape[1])).tolist(),  # too few are taken again
        "training": msgspec.to_builtins(comparison.training),
        "compute": msgspec.to_builtins(comparison.compute),
    }
    command = [sys.executable, "-m", "hushtune_server.testbed.emulators.cost_child"]
    try:
        done = subprocess.run(  # noqa: S603 - our own module
            command, input=json.dumps(order), capture_output=True, text=True, timeout=LIMIT_S, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise TrainerFailed(f"the process that measures costs took more than {LIMIT_S:.0f} s and was ended") from error
    if done.returncode != 0:
        raise TrainerFailed(f"the process that measures costs ended with {done.returncode}: {done.stderr.strip()[-300:]}")
    return json.loads(done.stdout)
