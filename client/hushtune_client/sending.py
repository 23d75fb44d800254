"""How does one attempt of a sealed update get on the air? Coded, uploaded, allowed, ordered, acknowledged."""

import logging
from threading import Event as Flag

from hushtune_client import telemetry, uplink
from hushtune_client.consent import require_protected
from hushtune_client.material import Aside
from hushtune_client.phases import (
    FrameAnswered,
    Send,
)
from hushtune_client.ports import Ports
from hushtune_client.progress import Status, TransferLog
from hushtune_client.sounding import Sounder
from hushtune_client.state import ClientState, seen_through
from hushtune_common.clock import Clock
from hushtune_common.config import Scenario
from hushtune_common.errors import MalformedUpdate, SecrecyUnavailable
from hushtune_common.logs import log_event
from hushtune_common.messages import Assignment, Transmission, UpdateKey
from hushtune_common.units import Second

_logger = logging.getLogger(__name__)


class Sender:
    """Sends attempts. Sending one again, as a restarted process does, sends the same frame."""

    def __init__(
        self,
        *,
        scenario: Scenario,
        ports: Ports,
        state: ClientState,
        status: Status,
        clock: Clock,
        aside: Aside,
        sounder: Sounder,
        framer: uplink.Framer,
    ) -> None:
        """Take everything."""
        self._scenario = scenario
        self._ports = ports
        self._state = state
        self._status = status
        self._clock = clock
        self._aside = aside
        self._sounder = sounder
        self._framer = framer

    async def send(self, command: Send) -> FrameAnswered:
        """Put one attempt of a part on the air, and return what the owner lacks of the part then."""
        assignment, part, attempt = command.assignment, command.part, command.attempt
        design = assignment.design_of(part)
        key = self._state.key(assignment.round_id, attempt=attempt)
        seed = self._state.link_seed(assignment.round_id, part, design=design)
        frame = await self._frame(command, key=key, toeplitz=seed.toeplitz)
        size = frame.layout.size
        self._status.enter("uploading")
        transfer = TransferLog("frame", clock=self._clock, status=self._status)
        digest = await self._ports.air.write_frame(key, frame.path, progress=transfer)
        transfer.finish(size)
        await self._require_still_secret(assignment)
        transmission = Transmission(
            key=key,
            part=part,
            frame=digest,
            frame_bytes=size,
            design=design,
            seed=seed,
            power=assignment.power,
            bandwidth=assignment.bandwidth,
        )
        outcome = await self._ports.air.transmit(transmission, cleared=lambda: self._cleared(assignment.round_id))
        energy = telemetry.transmit_energy(power=assignment.power, airtime=outcome.airtime)
        log_event(
            _logger,
            "frame_transmitted",
            round_id=assignment.round_id,
            attempt=attempt,
            part=part,
            protection=assignment.protection,
            blocks=frame.layout.count,
            bytes_frame=size,
            airtime_s=outcome.airtime,
            energy_j=energy,
            energy_kind=telemetry.ENERGY_LABEL,
            missing=len(outcome.missing),
            digest_frame=digest,
            fidelity=self._scenario.air.fidelity,
        )
        return FrameAnswered(
            round_id=assignment.round_id,
            part=part,
            attempt=attempt,
            frame_bytes=size,
            airtime=Second(outcome.airtime),
            energy=energy,
            missing=outcome.missing,
        )

    async def _cleared(self, round_id: int) -> None:
        """Return once the coordinator has said that what was assigned still holds; a round that was missed is stale."""
        self._status.enter("waiting to transmit")
        await self._ports.coordinator.ask_to_send(round_id)
        self._status.enter("on air")

    async def _require_still_secret(self, assignment: Assignment) -> None:
        """Measure once more: raise `SecrecyUnavailable` when this device went where its code does not hide the update."""
        await self._sounder.measure(assignment.round_id)
        device = self._sounder.device(assignment)
        try:
            await self._aside(lambda: require_protected(assignment, scenario=self._scenario, device=device))
        except MalformedUpdate as error:
            raise SecrecyUnavailable(f"this device stands elsewhere since the update was sealed: {error}") from error

    async def _frame(self, command: Send, *, key: UpdateKey, toeplitz: bytes) -> uplink.Frame:
        """Have the frame of an attempt on disk: coded now, or found there after a restart."""
        self._status.enter("coding a frame")
        round_id, part = command.assignment.round_id, command.part
        files = self._state.files(round_id)
        files.forget_frames(before=command.attempt)  # answered, all of them
        started, stopped = self._clock.monotonic(), Flag()
        work = self._aside(
            lambda: self._framer.frame(
                self._state.message(round_id, part),
                path=files.frame(command.attempt),
                key=key,
                part=part,
                design=command.assignment.design_of(part),
                toeplitz=toeplitz,
                only=command.only,
                stopped=stopped,
            )
        )
        frame = await seen_through(work, cancel=stopped.set)
        log_event(
            _logger,
            "frame_reused" if frame.reused else "frame_encoded",
            round_id=round_id,
            attempt=command.attempt,
            part=part,
            blocks=frame.layout.count,
            blocks_coded=frame.layout.coded_count,
            bytes_frame=frame.layout.size,
            seconds=round(self._clock.monotonic() - started, 3),
            fidelity=frame.layout.fidelity,
            randomness=self._scenario.secrecy.randomness,
        )
        return frame
