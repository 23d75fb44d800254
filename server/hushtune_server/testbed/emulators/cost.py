"""What does training cost a client in time and memory, beside training the whole model? Each in a fresh process, one at a time.

Peak memory is the resident set of the process: interpreter, libraries, the loaded file, and what training holds. ``idle_bytes``
is what the process had before it opened the file; a ratio without it tells more of training, one with it more of the device.
"""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from hushtune_common.config import LoraConfig, TrainingConfig
from hushtune_common.errors import TrainerFailed
from hushtune_common.model.plan import Plan
from hushtune_server.testbed.emulators.bench import Bench
from hushtune_server.testbed.emulators.compare import Results
from hushtune_server.testbed.emulators.tasks import texts_of

Json = dict[str, Any]

STEPS = 6
LIMIT_S = 600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Case:
    what: str
    trained: str
    """``full`` or ``adapter``."""
    training: TrainingConfig
    bundle: Callable[[], Path]


def client_costs(bench: Bench, results: Results, *, tell: Callable[[str], None]) -> list[Json]:
    """Measure full fine-tuning, the adapter blocks in the full model, and those on every emulator, also by low-rank factors.

    Speeds are tokens per second over all steps but the first. Ratios are to the first two rows, in this run: ``speed_ratio`` to
    the same blocks in the full model, ``memory_ratio`` and ``training_memory_ratio`` (without what is idle) to full fine-tuning.
    """
    forge = bench.forge
    whole = Plan.keep_all(forge.source, adapter=tuple(range(forge.source.block_count)))
    ours = Plan.keep_all(forge.source, adapter=forge.request.adapter)
    plain, factors = bench.comparison.training, msgspec.structs.replace(bench.comparison.training, lora=LoraConfig())
    cases = [
        _Case(what="everything in the full model", trained="full", training=plain, bundle=lambda: forge.written(whole)),
        _Case(what="adapter blocks in the full model", trained="adapter", training=plain, bundle=lambda: forge.written(ours)),
    ]
    for row in results.rows:
        if row.emulators:
            bundle, name = partial(forge.bundle, row.emulators[0]), row.entry.name
            cases.append(_Case(what=f"adapter blocks on {name}", trained="adapter", training=plain, bundle=bundle))
            cases.append(_Case(what=f"LoRA in the same on {name}", trained="adapter", training=factors, bundle=bundle))
    measured: list[Json] = []
    for case in cases:
        tell(f"measuring what a client's training costs: {case.what}")
        measured.append({"what": case.what, **_measured(bench, case)})
    full, same = measured[:2]
    for row in measured:
        row["speed_ratio"] = row["tokens_per_s"] / same["tokens_per_s"]
        row["memory_ratio"] = full["peak_bytes"] / row["peak_bytes"]
        row["training_memory_ratio"] = _training_bytes(full) / _training_bytes(row)
    return measured


def _training_bytes(row: Json) -> int:
    return max(1, row["peak_bytes"] - row["idle_bytes"])


def _measured(bench: Bench, case: _Case) -> Json:
    """Run the child that trains for some steps and says what it took."""
    comparison = bench.comparison
    texts = texts_of(comparison, source=bench.forge.source)
    count = STEPS * comparison.training.batch_windows
    order = {
        "bundle": str(case.bundle()),
        "trained": case.trained,
        "steps": STEPS,
        "windows": np.resize(texts.train, (count, texts.train.shape[1])).tolist(),  # too few are taken again
        "training": msgspec.to_builtins(case.training),
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
