"""A process of its own that trains for some steps and says how fast it was and how large it became; see `cost`."""

import json
import resource
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

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
    idle = resident_bytes("VmRSS")
    train = _everything if order["trained"] == "full" else _adapter
    train(Path(order["bundle"]), windows, config, compute, lambda: ends.append(float(clock.monotonic())))
    tokens = windows.size / len(ends) * (len(ends) - 1)
    speed = tokens / max(ends[-1] - ends[0], 1e-9)
    print(json.dumps({"tokens_per_s": speed, "peak_bytes": resident_bytes("VmHWM"), "idle_bytes": idle, "steps": len(ends)}))


def resident_bytes(which: Literal["VmRSS", "VmHWM"]) -> int:
    """Return the resident set of this program, now or at its largest; where the system does not tell, the largest either way.

    Linux counts it for the program; getrusage would count what the parent had when it started us, if that was more.
    """
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii")
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return 1024 * next(int(line.split()[1]) for line in status.splitlines() if line.startswith(f"{which}:"))


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
