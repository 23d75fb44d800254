"""A process of its own that trains for some steps and says how fast it was and how large it became; see `cost`."""

import json
import resource
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from hushtune_common.clock import SystemClock
from hushtune_common.config import ComputeConfig, TrainingConfig
from hushtune_common.model.finetune import Progress, Unpaced, finetune
from hushtune_common.seeding import SeedTree


def main() -> None:
    """Read an order as JSON from standard input, train, and print the result as JSON."""
    order = json.load(sys.stdin)
    windows = np.array(order["windows"], dtype=np.int64)
    config = msgspec.structs.replace(msgspec.convert(order["training"], TrainingConfig), epochs=1)
    compute = msgspec.convert(order["compute"], ComputeConfig)
    clock = SystemClock()
    ends: list[float] = []
    train = _everything if order["trained"] == "full" else _adapter
    train(Path(order["bundle"]), windows, config, compute, lambda: ends.append(float(clock.monotonic())))
    tokens = windows.size / len(ends) * (len(ends) - 1)
    speed = tokens / max(ends[-1] - ends[0], 1e-9)
    print(json.dumps({"tokens_per_s": speed, "peak_bytes": peak_bytes(), "steps": len(ends)}))


def peak_bytes() -> int:
    """Return the largest resident set that this program had.

    Linux counts it for the program (VmHWM); getrusage would count what the parent had when it started us, if that was more.
    """
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii")
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return 1024 * next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:"))


def _adapter(bundle: Path, windows: Any, config: TrainingConfig, compute: ComputeConfig, stepped: Callable[[], None]) -> None:
    def report(_progress: Progress) -> None:
        stepped()

    governor = Unpaced(clock=SystemClock())
    finetune(bundle, windows, config=config, compute=compute, seeds=SeedTree(1), governor=governor, report=report)


def _everything(bundle: Path, windows: Any, config: TrainingConfig, compute: ComputeConfig, stepped: Callable[[], None]) -> None:
    from hushtune_server.testbed.attacks.thief import opened, tuned

    plain = msgspec.structs.replace(config, lora=None, dp=None)
    loot = opened(bundle, compute=compute)
    tuned(loot, windows, config=plain, seeds=SeedTree(1), progress=lambda _done, _total: stepped())


if __name__ == "__main__":
    main()
