"""What does the training child do with its orders? It trains, and tells its parent how far it is.

The child serves any number of orders over a pipe, as JSON; it ends by itself when the pipe closes, so it cannot outlive its
parent.
"""

import contextlib
import json
import os
import sys
import threading
import traceback
from dataclasses import asdict
from multiprocessing.connection import Connection
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import msgspec

from hushtune_client.governor import PacingGovernor
from hushtune_client.training_pipe import MESSAGE_BYTES_MAX
from hushtune_client.windows import load_windows
from hushtune_common.adapter import save_adapter
from hushtune_common.clock import SystemClock
from hushtune_common.config import ComputeConfig, TrainingConfig
from hushtune_common.errors import HushtuneError, TrainerFailed
from hushtune_common.seeding import SeedTree
from hushtune_common.store.disk import disk_fault


class _Reins:
    """The share of the clock to keep: the newest word of the parent counts, also one that comes before training begins."""

    def __init__(self) -> None:
        self._turn = threading.Lock()
        self._share = 1.0
        self._governor: PacingGovernor | None = None

    def tell(self, share: float) -> None:
        """Take a share: of an order that arrives, or for the training under way."""
        with self._turn:
            self._share = share
            if self._governor is not None:
                self._governor.retune(share)

    def governor(self, *, threads: int) -> PacingGovernor:
        """Return a governor that keeps to the newest share."""
        with self._turn:
            self._governor = PacingGovernor(self._share, clock=SystemClock(), threads=threads)
            return self._governor


def _serve(connection: Connection) -> None:
    """Serve orders until the parent goes away. This is the child's whole life."""
    orders: SimpleQueue[dict[str, Any]] = SimpleQueue()
    reins = _Reins()
    threading.Thread(target=_watch, args=(connection, orders, reins), daemon=True).start()
    try:
        _warm_up()
        _tell(connection, event="ready")
        while True:
            _answer(connection, orders.get(), reins)
    except Exception as error:  # the edge of a process: the parent must hear of a defect before it ends
        traceback.print_exc()
        _tell(connection, event="failed", reason=f"defect in the training process: {type(error).__name__}")
        raise SystemExit(TrainerFailed.exit_code) from error


def _answer(connection: Connection, order: dict[str, Any], reins: _Reins) -> None:
    try:
        _obey(connection, order, reins)
    except Exception as error:  # a full disk is told like a fault of ours; the rest ends the process
        fault = error if isinstance(error, HushtuneError) else disk_fault(error)
        if fault is None:
            raise
        _tell(connection, event="failed", fault=fault.reason, reason=f"{type(fault).__name__}: {fault}")
    else:
        _tell(connection, event="finished")


def _watch(connection: Connection, orders: SimpleQueue[dict[str, Any]], reins: _Reins) -> None:
    """Queue orders, pass on changes of the clock; end the process at once when the parent closes the pipe or dies."""
    while True:
        try:
            body = json.loads(connection.recv_bytes(MESSAGE_BYTES_MAX))
        except (EOFError, OSError):
            os._exit(0)
        if "retune" in body:
            reins.tell(body["retune"])
        else:
            # The parent gives one order at a time, so the share cannot be one of another training.
            reins.tell(body["clock_share"])
            orders.put(body)


def _warm_up() -> None:
    """Import torch and the model code, which takes seconds, before the first order needs them."""
    import hushtune_client.finetune  # noqa: F401  # pyright: ignore[reportUnusedImport] - imported for its effect on start-up time


def _tell(connection: Connection, **body: object) -> None:
    with contextlib.suppress(OSError):  # the watching thread notices a closed pipe and ends the process
        connection.send_bytes(json.dumps(body).encode())


def _obey(connection: Connection, order: dict[str, Any], reins: _Reins) -> None:
    from hushtune_client.finetune import Progress, finetune

    windows = load_windows(Path(order["windows"]))
    compute = msgspec.convert(order["compute"], ComputeConfig)
    _tell(connection, event="started")

    def report(progress: Progress) -> None:
        _tell(
            connection,
            event="progressed",
            step=progress.step,
            steps=progress.steps,
            loss=float(progress.loss),
            tokens=progress.tokens,
            cpu_s=float(progress.cpu_s),
            wall_s=float(progress.wall_s),
            privacy=None if progress.privacy is None else asdict(progress.privacy),
        )

    state = finetune(
        Path(order["bundle"]),
        windows,
        config=msgspec.convert(order["config"], TrainingConfig),
        compute=compute,
        seeds=SeedTree(order["seed"], tuple(order["path"])),
        governor=reins.governor(threads=compute.threads),
        report=report,
        rounds=order["rounds"],
    )
    result = Path(order["result"])
    partial = result.with_suffix(".partial")
    save_adapter(partial, state)
    partial.replace(result)


if __name__ == "__main__":
    _serve(Connection(int(sys.argv[1])))
