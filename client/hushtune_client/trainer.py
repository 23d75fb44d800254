"""How does training run beside a parent that must keep answering? In a warm child process: orders in, progress out.

The child is a fresh interpreter (never a fork: gRPC's threads do not survive one), started with the client, so that it imports
torch while the client still joins the run; it serves any number of orders. Parent and child exchange JSON bytes over a pipe;
token windows travel as a ``.npy`` file, the trained adapter as a safetensors file. The parent never imports torch. The child ends
by itself when the pipe closes, so it cannot outlive its parent.
"""

import asyncio
import contextlib
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Generator
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from hushtune_client.governor import PacingGovernor, Throttle
from hushtune_common.adapter import save_adapter
from hushtune_common.clock import Clock, SystemClock
from hushtune_common.config import ComputeConfig, TrainingConfig
from hushtune_common.errors import HushtuneError, MalformedUpdate, TrainerFailed
from hushtune_common.logs import log_event
from hushtune_common.seeding import SeedTree
from hushtune_common.store.disk import disk_fault
from hushtune_common.units import Second

_logger = logging.getLogger(__name__)

_MESSAGE_BYTES_MAX = 65_536
_STOP_S = 1.0
"""How long a terminated child may take before it is killed; twice this bounds ``stop``."""
_LOG_EVERY_S = 0.5
_STANDARD_ERROR = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """One training run. ``windows`` is a ``.npy`` file of int64 (N windows, T tokens); the adapter is written to ``result``.

    ``clock_share`` is the assigned share of the device's top clock (the child paces itself to it); ``deadline`` bounds the run.
    Privacy, where it is asked for, is that of ``rounds`` such trainings together.
    """

    round_id: int
    bundle: Path
    windows: Path
    result: Path
    config: TrainingConfig
    compute: ComputeConfig
    clock_share: float
    seeds: SeedTree
    deadline: Second
    rounds: int = 1

    def __post_init__(self) -> None:
        """Refuse what no governor can pace."""
        if not 0.0 < self.clock_share <= 1.0:
            raise ValueError(f"clock_share: must be in (0, 1], got {self.clock_share}")

    def to_bytes(self, *, paced: float) -> bytes:
        """Return the order as the JSON that the child reads; ``paced`` is the share of the clock that it keeps by pauses."""
        body = {
            "bundle": str(self.bundle),
            "windows": str(self.windows),
            "result": str(self.result),
            "config": msgspec.to_builtins(self.config),
            "compute": msgspec.to_builtins(self.compute),
            "clock_share": paced,
            "seed": self.seeds.root,
            "path": list(self.seeds.path),
            "rounds": self.rounds,
        }
        return json.dumps(body).encode()


@dataclass(frozen=True, slots=True, kw_only=True)
class StepReport:
    """Progress after one optimiser step; ``tokens``, ``cpu_s`` and ``wall_s`` count from the start of training.

    ``privacy`` says what a private training will have spent at its end, and on which terms.
    """

    step: int
    steps: int
    loss: float
    tokens: int
    cpu_s: float
    wall_s: float
    privacy: dict[str, float] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """A finished training run; the losses are mean next-token nats of the first and the last batch.

    ``governor`` names what kept the clock.
    """

    steps: int
    tokens: int
    loss_first: float
    loss_last: float
    cpu: Second
    wall: Second
    governor: str


class Trainer:
    """The parent's handle on the warm child.

    Laws: a child that dies or diverges raises `TrainerFailed` in ``train`` and the next order gets a fresh child; ``stop`` and
    the cancellation of ``train`` leave no child behind.
    """

    def __init__(self, *, clock: Clock, throttle: Throttle | None = None) -> None:
        """Take the ``clock`` that spaces progress events, and what keeps the assigned clock (pauses only by default)."""
        self._clock = clock
        self._throttle = throttle or Throttle()
        self._busy = False
        self._child: _Child | None = None

    @property
    def pid(self) -> int | None:
        """Process id of the child, for supervision; ``None`` before `start` and after `stop`."""
        return None if self._child is None else self._child.process.pid

    def start(self) -> None:
        """Spawn the child, which then imports torch in its own time; does nothing when one is alive."""
        if self._child is not None:
            if self._child.alive:
                return
            self._child.connection.close()
        self._child = _Child()
        log_event(_logger, "trainer_started", pid=self._child.process.pid)

    async def train(self, order: Order, *, started: Callable[[], None], report: Callable[[StepReport], None]) -> Trained:
        """Carry out ``order``; the adapter then lies at ``order.result``.

        ``started`` is called once when the child accepts, ``report`` after every optimiser step. Raises `TrainerFailed` when
        the child dies, its numbers stop being finite, or ``order.deadline`` passes; cancellation kills the child.
        """
        self.start()
        child = self._child
        if child is None:
            raise TrainerFailed("the training process could not be started")
        try:
            with self._throttle.hold(order.clock_share) as paced:
                async with asyncio.timeout(order.deadline):
                    return await self._follow(child, order, paced=paced, started=started, report=report)
        except TimeoutError as error:
            await self.stop()
            raise TrainerFailed(f"training took longer than the {order.deadline:.0f} s of its assignment") from error
        except asyncio.CancelledError:
            await self.stop()
            raise
        finally:
            self._busy = False

    async def retune(self, clock_share: float) -> None:
        """Keep the training under way to another share of the top clock, from its next step on; nothing when there is none."""
        if not 0.0 < clock_share <= 1.0:
            raise ValueError(f"clock_share: must be in (0, 1], got {clock_share}")
        if self._busy and self._child is not None:
            await self._child.send(json.dumps({"retune": self._throttle.set(clock_share)}).encode())

    async def stop(self) -> None:
        """End the child within two seconds: asked first, then killed."""
        child, self._child = self._child, None
        if child is None:
            return
        child.connection.close()
        child.process.terminate()
        if not await child.ended(within_s=_STOP_S):
            child.process.kill()
            await child.ended(within_s=_STOP_S)
        log_event(_logger, "trainer_stopped", exit_code=child.process.returncode)

    async def _follow(
        self,
        child: "_Child",
        order: Order,
        *,
        paced: float,
        started: Callable[[], None],
        report: Callable[[StepReport], None],
    ) -> Trained:
        await child.send(order.to_bytes(paced=paced))
        self._busy = True
        first: StepReport | None = None
        last: StepReport | None = None
        logged = -_LOG_EVERY_S
        while True:
            body = await child.receive()
            match body.pop("event", None):
                case "ready":
                    continue
                case "started":
                    started()
                case "progressed":
                    last = msgspec.convert(body, StepReport)
                    first = first or last
                    report(last)
                    if last.step == last.steps or self._clock.monotonic() - logged >= _LOG_EVERY_S:
                        logged = self._clock.monotonic()
                        _log_progress(order, last)
                case "finished" if first is not None and last is not None:
                    if last.privacy is not None:
                        log_event(_logger, "privacy_spent", round_id=order.round_id, terms=last.privacy)
                    return Trained(
                        steps=last.steps,
                        tokens=last.tokens,
                        loss_first=first.loss,
                        loss_last=last.loss,
                        cpu=Second(last.cpu_s),
                        wall=Second(last.wall_s),
                        governor=self._throttle.name,
                    )
                case "failed":
                    raise TrainerFailed(str(body.get("reason", "no reason given")))
                case other:
                    raise TrainerFailed(f"the training process said something unexpected: {other!r}")


def _log_progress(order: Order, step: StepReport) -> None:
    log_event(
        _logger,
        "training_progressed",
        round_id=order.round_id,
        step=step.step,
        steps=step.steps,
        loss=round(step.loss, 4),
        tokens_per_s=round(step.tokens / max(step.wall_s, 1e-9), 1),
    )


class _Child:
    """A child process and the parent's end of its pipe."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            number = theirs.fileno()
            # -P: nothing in the current folder may stand in for a module of ours.
            command = [sys.executable, "-P", "-m", "hushtune_client.trainer", str(number)]
            # Ctrl-C reaches every process of a terminal; only the parent answers it, and it stops the child in order.
            with _blocked(signal.SIGINT):
                self.process = subprocess.Popen(  # noqa: S603 - a fixed command
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=_STANDARD_ERROR,  # standard output is the parent's log
                    pass_fds=[number],
                )
        self.connection = Connection(ours.detach())

    @property
    def alive(self) -> bool:
        """Whether the process still runs."""
        return self.process.poll() is None

    async def ended(self, *, within_s: float) -> bool:
        """Wait for the end; return false when it did not come in time."""
        try:
            await asyncio.to_thread(self.process.wait, within_s)
        except subprocess.TimeoutExpired:
            return False
        return True

    async def send(self, data: bytes) -> None:
        """Send one message; `TrainerFailed` when nobody reads any more."""
        try:
            self.connection.send_bytes(data)
        except OSError as error:
            raise await self._death() from error

    async def receive(self) -> dict[str, Any]:
        """Wait for one message; `TrainerFailed` when the child has died."""
        await _readable(self.connection.fileno())
        try:
            body = json.loads(self.connection.recv_bytes(_MESSAGE_BYTES_MAX))
        except (EOFError, OSError) as error:
            raise await self._death() from error
        if not isinstance(body, dict):
            raise TrainerFailed("the training process sent something that is not an object")
        return body

    async def _death(self) -> TrainerFailed:
        await self.ended(within_s=_STOP_S)
        return TrainerFailed(f"the training process died (exit code {self.process.returncode}); its standard error says more")


async def _readable(descriptor: int) -> None:
    loop = asyncio.get_running_loop()
    arrived: asyncio.Future[None] = loop.create_future()

    def wake() -> None:
        if not arrived.done():
            arrived.set_result(None)

    loop.add_reader(descriptor, wake)
    try:
        await arrived
    finally:
        loop.remove_reader(descriptor)


@contextlib.contextmanager
def _blocked(kind: signal.Signals) -> Generator[None]:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {kind})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


# --- the child's side -------------------------------------------------------------------------------------------------


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
        _tell(connection, event="failed", reason=f"{type(fault).__name__}: {fault}")
    else:
        _tell(connection, event="finished")


def _watch(connection: Connection, orders: SimpleQueue[dict[str, Any]], reins: _Reins) -> None:
    """Queue orders, pass on changes of the clock; end the process at once when the parent closes the pipe or dies."""
    while True:
        try:
            body = json.loads(connection.recv_bytes(_MESSAGE_BYTES_MAX))
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


def save_windows(path: Path, windows: NDArray[np.int64]) -> None:
    """Write private token windows (N, T) where only this user can read them."""
    path.touch(mode=0o600)
    path.chmod(0o600)
    with path.open("wb") as file:
        np.save(file, windows, allow_pickle=False)


def load_windows(path: Path) -> NDArray[np.int64]:
    """Read token windows (N, T); `MalformedUpdate` for any other file."""
    try:
        windows = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise MalformedUpdate(f"{path.name}: not a readable array of token windows ({error})") from error
    if windows.ndim != 2 or windows.dtype != np.int64 or not len(windows):
        raise MalformedUpdate(f"{path.name}: token windows are int64 (N, T), got {windows.dtype} {windows.shape}")
    return windows


if __name__ == "__main__":
    _serve(Connection(int(sys.argv[1])))
