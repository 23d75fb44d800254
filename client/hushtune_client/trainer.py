"""How does training run beside a parent that must keep answering? In a warm child process: orders in, progress out.

The child is a fresh interpreter (never a fork: gRPC's threads do not survive one), started with the client, so that it imports
torch while the client still joins the run; it serves any number of orders. Parent and child exchange JSON bytes over a pipe;
token windows travel as a ``.npy`` file, the trained adapter as a safetensors file. The parent never imports torch.
"""

import asyncio
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec

from hushtune_client.governor import Throttle
from hushtune_client.training_pipe import STOP_S, Child
from hushtune_common.clock import Clock
from hushtune_common.config import ComputeConfig, TrainingConfig
from hushtune_common.errors import StorageFull, TrainerFailed
from hushtune_common.logs import log_event
from hushtune_common.seeding import SeedTree
from hushtune_common.units import Second

_logger = logging.getLogger(__name__)
_LOG_EVERY_S = 0.5


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

    Laws: a child that dies or diverges raises `TrainerFailed` in ``train``, one that finds the disk full ``StorageFull``, and the
    next order gets a fresh child; ``stop`` and the cancellation of ``train`` leave no child behind.
    """

    def __init__(self, *, clock: Clock, throttle: Throttle | None = None) -> None:
        """Take the ``clock`` that spaces progress events, and what keeps the assigned clock (pauses only by default)."""
        self._clock = clock
        self._throttle = throttle or Throttle()
        self._busy = False
        self._child: Child | None = None

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
        self._child = Child()
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
        if not await child.ended(within_s=STOP_S):
            child.process.kill()
            await child.ended(within_s=STOP_S)
        log_event(_logger, "trainer_stopped", exit_code=child.process.returncode)

    async def _follow(
        self,
        child: "Child",
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
                case "failed" if body.get("fault") == StorageFull.reason:
                    raise StorageFull(str(body.get("reason", "the disk is full")))  # worth another training when there is room
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
