"""How do calls over the network reach the desk? Who calls, what is asked for in our own values, and what is refused at once."""

from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from typing import Any

import grpc

from hushtune_common.config import Scenario
from hushtune_common.errors import (
    MalformedUpdate,
    NotYours,
    ScenarioMismatch,
    VersionMismatch,
)
from hushtune_common.messages import (
    Beat,
    Caller,
    ClientId,
    Digest,
    Role,
    UtilityCurve,
)
from hushtune_common.secagg.terms import Layout
from hushtune_common.wire import convert, convert_sums
from hushtune_common.wire.interceptors import caller_of
from hushtune_common.wire.v1 import coordinator_pb2 as pb
from hushtune_common.wire.v1 import coordinator_pb2_grpc
from hushtune_server.coordinator.desk import Desk
from hushtune_server.coordinator.events import (
    OWNER,
    Member,
)
from hushtune_server.coordinator.phases import (
    Closed,
    Failed,
    Gathering,
    is_member,
)

Context = grpc.aio.ServicerContext[Any, Any]

SERVICE = "hushtune.v1.Coordinator"
_REASON_CHARS_MAX = 200


class CoordinatorService(coordinator_pb2_grpc.CoordinatorServicer):
    """Translates calls for the desk. Who calls is read from the certificate, never from the request."""

    def __init__(self, desk: Desk, *, scenario: Scenario, digest: Digest) -> None:
        """Take the ``desk`` and the ``scenario`` of this run with its ``digest``."""
        self._desk = desk
        self._scenario = scenario
        self._digest = digest

    async def Join(self, request: pb.JoinRequest, context: Context) -> pb.JoinResponse:
        """Let the caller in; another protocol major or another scenario is refused."""
        member = self._member(caller_of(context, Role.CLIENT, Role.OWNER))
        if request.protocol_major != convert.PROTOCOL_MAJOR:
            raise VersionMismatch(f"this is protocol {convert.PROTOCOL_MAJOR}, the caller speaks {request.protocol_major}")
        if request.protocol_minor < convert.PROTOCOL_MINOR_MIN:
            spoken = f"{request.protocol_major}.{request.protocol_minor}"
            raise VersionMismatch(f"the caller speaks protocol {spoken}, at least minor {convert.PROTOCOL_MINOR_MIN} is needed")
        if request.scenario_digest != self._digest.value:
            raise ScenarioMismatch(f"this run is of scenario {self._digest.short}; start both ends with the same file and --set")
        await self._desk.join(member, curve=self._curve(request, member), layout=self._layout(request, member))
        timing, minor = self._scenario.timing, min(request.protocol_minor, convert.PROTOCOL_MINOR)
        waits = {"connect_s": timing.connect_s, "idle_s": timing.idle_s, "round_s": timing.round_s}
        return pb.JoinResponse(run=self._desk.rules.run, protocol_minor=minor, **waits)

    async def Follow(
        self, request_iterator: AsyncIterator[pb.FollowRequest], context: Context
    ) -> AsyncIterator[pb.FollowResponse]:
        """Push directives while the caller beats."""
        member = self._member(caller_of(context, Role.CLIENT, Role.OWNER))
        async with aclosing(self._desk.follow(member, _beats(request_iterator))) as directives:
            async for directive in directives:
                yield convert.directive_to_wire(directive)

    async def Report(self, request: pb.ReportRequest, context: Context) -> pb.ReportResponse:
        """Take the caller's report."""
        caller = self._client(context)
        report = convert.report_from_wire(request, caller=caller)
        await self._desk.report(report, advertisement=convert.keys_from_wire(request, caller=caller))
        return pb.ReportResponse()

    async def Deal(self, request: pb.DealRequest, context: Context) -> pb.DealResponse:
        """Take the caller's parcels for its neighbours."""
        await self._desk.deal(*convert_sums.deal_from_wire(request, caller=self._client(context).name))
        return pb.DealResponse()

    async def Announce(self, request: pb.AnnounceRequest, context: Context) -> pb.AnnounceResponse:
        """Take the owner's word on whose payloads it is going to add."""
        caller_of(context, Role.OWNER)
        await self._desk.announce(*convert_sums.announcement_from_wire(request))
        return pb.AnnounceResponse()

    async def Vow(self, request: pb.VowRequest, context: Context) -> pb.VowResponse:
        """Take the caller's vow."""
        await self._desk.vow(*convert_sums.vow_from_wire(request, caller=self._client(context).name))
        return pb.VowResponse()

    async def ReportChannel(self, request: pb.ReportChannelRequest, context: Context) -> pb.ReportChannelResponse:
        """Take the caller's new channel."""
        caller = self._client(context)
        round_id, channel = convert.new_channel_from_wire(request)
        await self._desk.change_channel(ClientId(caller.name), round_id, channel)
        return pb.ReportChannelResponse()

    async def AskToSend(self, request: pb.AskToSendRequest, context: Context) -> pb.AskToSendResponse:
        """Tell the caller whether it may begin to transmit now."""
        await self._desk.ask_to_send(ClientId(self._client(context).name), request.round_id)
        return pb.AskToSendResponse()

    async def Complete(self, request: pb.CompleteRequest, context: Context) -> pb.CompleteResponse:
        """Take the caller's completion."""
        caller = self._client(context)
        await self._desk.complete(convert.completion_from_wire(request, caller=caller))
        return pb.CompleteResponse()

    async def Settle(self, request: pb.SettleRequest, context: Context) -> pb.SettleResponse:
        """Take the owner's judgement."""
        caller_of(context, Role.OWNER)
        await self._desk.settle(convert.settlement_from_wire(request))
        return pb.SettleResponse()

    async def Conclude(self, request: pb.ConcludeRequest, context: Context) -> pb.ConcludeResponse:
        """Take the owner's word on a round that it is through with."""
        caller_of(context, Role.OWNER)
        await self._desk.conclude(convert.conclusion_from_wire(request))
        return pb.ConcludeResponse()

    async def Leave(self, request: pb.LeaveRequest, context: Context) -> pb.LeaveResponse:
        """Let the caller go."""
        member = self._member(caller_of(context, Role.CLIENT, Role.OWNER))
        await self._desk.leave(member, request.reason[:_REASON_CHARS_MAX])
        return pb.LeaveResponse()

    async def GetRun(self, request: pb.GetRunRequest, context: Context) -> pb.GetRunResponse:
        """Tell the operator or the owner how the run stands."""
        caller_of(context, Role.OPERATOR, Role.OWNER)
        state = self._desk.state
        phase = state.phase
        solution = None if isinstance(phase, Gathering) or phase.round is None else phase.round.solution
        return pb.GetRunResponse(
            run=self._desk.rules.run,
            round_id=state.round_id,
            state=state.name,
            assignments=[convert.assignment_to_wire(a) for a in (() if solution is None else solution.assignments)],
            accepted=phase.accepted if isinstance(phase, Closed) else (),
            missing=list(phase.missing) if isinstance(phase, Closed | Failed) else (),
            failed_reason=phase.reason if isinstance(phase, Failed) else "",
        )

    def _curve(self, request: pb.JoinRequest, member: Member) -> UtilityCurve | None:
        """Return what the owner measured; nothing where the scenario takes utilities as assumed."""
        allocator = self._scenario.coordinator.allocator
        if not request.HasField("curve"):
            if member == OWNER and allocator.utility.kind == "measured" and self._desk.state.curve is None:
                raise MalformedUpdate("curve: coordinator.allocator.utility.kind is measured, and the owner brings no curve")
            return None
        if member != OWNER:
            raise NotYours(f"{member} brings a utility; only the owner measures one")
        if allocator.utility.kind != "measured":
            return None
        return convert.curve_from_wire(request.curve)

    def _layout(self, request: pb.JoinRequest, member: Member) -> Layout | None:
        """Return how the owner lays numbers out; nothing where updates are judged one by one."""
        if not request.HasField("sum_layout"):
            if member == OWNER and self._desk.rules.sums is not None:
                raise MalformedUpdate("sum_layout: owner.aggregation.kind is secure, and the owner brings none")
            return None
        if member != OWNER:
            raise NotYours(f"{member} brings a layout; only the owner has one")
        return None if self._desk.rules.sums is None else convert_sums.layout_from_wire(request.sum_layout)

    def _client(self, context: Context) -> Caller:
        caller = caller_of(context, Role.CLIENT)
        self._member(caller)
        return caller

    def _member(self, caller: Caller) -> Member:
        member = OWNER if caller.role is Role.OWNER else Member(caller.name)
        if not is_member(member, rules=self._desk.rules):
            raise NotYours(f"{caller.uri} is no client of scenario {self._scenario.name!r}")
        return member


async def _beats(requests: AsyncIterator[pb.FollowRequest]) -> AsyncIterator[Beat]:
    # A function, not an expression: the requests are not touched before the first beat is asked for, which a refusal never does.
    async for request in requests:
        yield convert.beat_from_wire(request)


def register_coordinator(service: CoordinatorService) -> Callable[[grpc.aio.Server], None]:
    """Return what adds the service to a server."""

    def register(server: grpc.aio.Server) -> None:
        coordinator_pb2_grpc.add_CoordinatorServicer_to_server(service, server)

    return register
