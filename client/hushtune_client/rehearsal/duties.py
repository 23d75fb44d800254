"""What does a client do for a round when there is nothing to train and nobody to send to?

Every command of the production machine is answered at once: reports and completions go to the coordinator as always, training
and transmission are skipped. What a person would wait for is measured here.
"""

import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from hushtune_client import phases, telemetry
from hushtune_client.phases import Event
from hushtune_client.ports import CoordinatorPort
from hushtune_client.progress import Status
from hushtune_client.state import ClientState
from hushtune_common.clock import Clock
from hushtune_common.config import ClientConfig
from hushtune_common.logs import log_event
from hushtune_common.messages import Assignment, ClientReport
from hushtune_common.units import Joule, PowerRatio, Second

_logger = logging.getLogger(__name__)

SENT = "update_rehearsed"
"""The event that stands in for a transmission: whoever plays the owner settles for it."""

_GAIN_MAIN = PowerRatio(1e-9)
_GAIN_TAP = PowerRatio(1e-13)
_UPDATE_BITS = 8_000_000
_TRAIN_FLOPS = 1e12
_SAMPLES = 100


@dataclass(slots=True)
class Waits:
    """How long this client waited in each round, in seconds: from its report to its assignment, and for each answer."""

    assignment_s: list[float] = field(default_factory=list[float])
    report_s: list[float] = field(default_factory=list[float])
    complete_s: list[float] = field(default_factory=list[float])


class LightDuties:
    """Carries out the commands of one client's rounds without training, sealing and sending."""

    def __init__(
        self, device: ClientConfig, *, coordinator: CoordinatorPort, state: ClientState, status: Status, clock: Clock
    ) -> None:
        """Report as ``device`` to ``coordinator``."""
        self.waits = Waits()
        self._device = device
        self._coordinator = coordinator
        self._state = state
        self._status = status
        self._clock = clock
        self._reported_at: dict[int, Second] = {}

    async def perform(
        self,
        command: phases.Measure | phases.Train | phases.Watch | phases.Retune | phases.Send | phases.Conclude | phases.AskVerdict,
    ) -> Event | None:
        """Carry out ``command``; raises what the coordinator's port raises."""
        match command:
            case phases.Measure():
                await self._report(command.round_id)
                return None
            case phases.Train():
                return self._trained(command.assignment)
            case phases.Watch() | phases.Retune():
                return None  # a channel that stands still, and no training to slow down
            case phases.Send():
                return await self._sent(command)
            case phases.Conclude():
                await self._timed(self.waits.complete_s, lambda: self._coordinator.complete(command.completion))
                return None
            case phases.AskVerdict():
                return phases.VerdictReached(round_id=command.round_id)

    async def _report(self, round_id: int) -> None:
        report = report_of(self._device, round_id=round_id)
        self._reported_at = {round_id: self._clock.monotonic()}
        await self._timed(self.waits.report_s, lambda: self._coordinator.report(report))

    def _trained(self, assignment: Assignment) -> phases.UpdateSealed:
        reported_at = self._reported_at.get(assignment.round_id)
        if reported_at is not None:  # else the report was made in an earlier life
            self.waits.assignment_s.append(self._clock.monotonic() - reported_at)
        return phases.UpdateSealed(
            round_id=assignment.round_id, bytes_raw=0, train_seconds=Second(0.0), energy=Joule(0.0), assignment=assignment
        )

    async def _sent(self, command: phases.Send) -> phases.FrameAnswered:
        round_id = command.assignment.round_id
        await self._coordinator.ask_to_send(round_id)
        self._status.advance(1)
        log_event(_logger, SENT, round_id=round_id, client=self._device.id, attempt=command.attempt)
        return phases.FrameAnswered(
            round_id=round_id,
            part=command.part,
            attempt=command.attempt,
            frame_bytes=0,
            airtime=Second(0.0),
            energy=Joule(0.0),
            missing=(),
        )

    async def _timed(self, into: list[float], call: Callable[[], Awaitable[None]]) -> None:
        began_at = self._clock.monotonic()
        await call()
        into.append(self._clock.monotonic() - began_at)


def report_of(device: ClientConfig, *, round_id: int) -> ClientReport:
    """Return what ``device`` reports where it hears the owner well and the tap hardly hears it."""
    return telemetry.device_report(
        device,
        round_id=round_id,
        gain_main=_GAIN_MAIN,
        gain_tap=_GAIN_TAP,
        sample_count=_SAMPLES,
        expected_bits=_UPDATE_BITS,
        train_flops=_TRAIN_FLOPS,
    )
