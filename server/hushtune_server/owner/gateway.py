"""How does the owner speak to the coordinator, and answer the air?"""

from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import Any

import grpc

from hushtune_common.clock import Clock
from hushtune_common.config import Scenario, TimingConfig
from hushtune_common.link.reception import Reception
from hushtune_common.messages import Beat, Conclusion, Directive, Receipt, ReceptionNotice, RunId, Settlement, UtilityCurve
from hushtune_common.secagg.messages import Survivors
from hushtune_common.secagg.terms import Layout
from hushtune_common.seeding import SeedTree
from hushtune_common.wire import convert, convert_sums, faults
from hushtune_common.wire.listening import AirListener
from hushtune_common.wire.streams import PATIENCE, reconnected, resumed
from hushtune_common.wire.v1 import air_pb2_grpc, coordinator_pb2_grpc
from hushtune_common.wire.v1 import coordinator_pb2 as pb
from hushtune_server.owner.ports import AirPort, CoordinatorPort

_BEATS_PER_IDLE = 6


class CoordinatorGateway:
    """The coordinator, over a channel.

    Laws: directives come in rising ``seq`` and none is missed across reconnects; settling or concluding twice has no second
    effect.
    """

    def __init__(self, channel: grpc.aio.Channel, scenario: Scenario, *, clock: Clock, seeds: SeedTree) -> None:
        """Speak over ``channel``."""
        self._scenario = scenario
        self._timing: TimingConfig = scenario.timing
        self._clock = clock
        self._seeds = seeds
        self._idle_s = scenario.timing.idle_s
        self._channel = channel
        self._stub: Any = coordinator_pb2_grpc.CoordinatorStub(channel)

    async def run(self) -> RunId:
        """Return which run this is, without entering it; `MalformedUpdate` for a name that is none."""
        with faults.translated():
            response: pb.GetRunResponse = await self._stub.GetRun(pb.GetRunRequest(), timeout=self._timing.idle_s)
        return convert.run_from_wire(response.run)

    async def join(self, *, curve: UtilityCurve | None = None, layout: Layout | None = None) -> RunId:
        """Enter the run with what updates are worth, where that was measured, and how their numbers are laid out to be added.

        `ScenarioMismatch` or `VersionMismatch` when this process does not belong there, `MalformedUpdate` for a curve that nobody
        can plan with.
        """
        request = pb.JoinRequest(
            protocol_major=convert.PROTOCOL_MAJOR,
            protocol_minor=convert.PROTOCOL_MINOR,
            scenario_digest=self._scenario.digest.value,
            curve=None if curve is None else convert.curve_to_wire(curve),
            sum_layout=None if layout is None else convert_sums.layout_to_wire(layout),
        )
        with faults.translated():
            response: pb.JoinResponse = await self._stub.Join(request, timeout=self._timing.idle_s)
        run, timing = convert.welcome_from_wire(response)
        self._idle_s = timing.idle_s  # the coordinator owns the timeouts
        return run

    async def tell_worth(self, curve: UtilityCurve) -> None:
        """Say what updates are worth from now on: whoever is in the run and enters it again changes nothing else."""
        await self.join(curve=curve)

    async def follow(self, phase: Callable[[], str]) -> AsyncGenerator[Directive, None]:
        """Yield directives until the coordinator ends the stream, sending beats; `PeerLost` when it stays away."""
        seen, beats = 0, 0

        async def upstream() -> AsyncIterator[pb.FollowRequest]:
            nonlocal beats
            while True:
                beats += 1
                yield convert.beat_to_wire(Beat(last_seen_seq=seen, phase=phase(), progress=beats))
                await self._clock.sleep(self._idle_s / _BEATS_PER_IDLE)

        def begin() -> AsyncIterator[pb.FollowResponse]:
            return self._stub.Follow(upstream(), wait_for_ready=False)

        async for response in resumed(
            begin,
            clock=self._clock,
            seeds=self._seeds.child("follow"),
            attempts_max=self._scenario.limits.attempts_max,
            lasting_s=self._idle_s,
            ends=True,
            back=lambda: reconnected(self._channel),
            patience_s=PATIENCE * self._idle_s,
        ):
            directive = convert.directive_from_wire(response)
            if directive.seq > seen:
                seen = directive.seq
                yield directive

    async def settle(self, settlement: Settlement) -> None:
        """Say whether an update was accepted, and nothing else about it."""
        with faults.translated():
            await self._stub.Settle(convert.settlement_to_wire(settlement), timeout=self._timing.idle_s)

    async def announce(self, run: RunId, round_id: int, survivors: Survivors) -> None:
        """Name those whose payloads are going to be added."""
        request = convert_sums.announcement_to_wire(survivors, run=run, round_id=round_id)
        with faults.translated():
            await self._stub.Announce(request, timeout=self._timing.idle_s)

    async def conclude(self, conclusion: Conclusion) -> None:
        """Say that a round is dealt with, and whether another one shall follow."""
        with faults.translated():
            await self._stub.Conclude(convert.conclusion_to_wire(conclusion), timeout=self._timing.idle_s)


class AirGateway:
    """The owner's receiver: hears through ``listener``, answers over ``channel``."""

    def __init__(self, channel: grpc.aio.Channel, listener: AirListener, *, timing: TimingConfig) -> None:
        """Join both directions."""
        self._timing = timing
        self._listener = listener
        self._stub: Any = air_pb2_grpc.AirStub(channel)

    def notices(self) -> AsyncGenerator[ReceptionNotice, None]:
        """Yield what was heard, for ever; `PeerLost` when the air stays away."""
        return self._listener.notices()

    def receive(self, notice: ReceptionNotice) -> AsyncGenerator[Reception, None]:
        """Yield what is heard of a transmission; `StaleRound` when it can no longer be heard."""
        return self._listener.receive(notice)

    async def acknowledge(self, receipt: Receipt) -> None:
        """Say which blocks are still missing. Repeating it has no second effect."""
        with faults.translated():
            await self._stub.Acknowledge(convert.receipt_to_ack(receipt), timeout=self._timing.idle_s)


_coordinator: type[CoordinatorPort] = CoordinatorGateway
_air: type[AirPort] = AirGateway
