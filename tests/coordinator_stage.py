"""A coordinator's process over real mTLS, with a line to it for everybody who takes part."""

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from msgspec import structs

from hushtune_common.clock import SystemClock
from hushtune_common.config import Scenario, parse
from hushtune_common.messages import (
    Beat,
    Channel,
    ClientId,
    Completion,
    Conclusion,
    Directive,
    DirectiveKind,
    Role,
    RunId,
    Settlement,
    UpdateKey,
)
from hushtune_common.seeding import SeedTree
from hushtune_common.units import Joule, PowerRatio, Second
from hushtune_common.wire import convert
from hushtune_common.wire.endpoint import connect
from hushtune_common.wire.faults import translated
from hushtune_common.wire.v1 import coordinator_pb2 as pb
from hushtune_common.wire.v1 import coordinator_pb2_grpc
from hushtune_server.coordinator.app import CoordinatorOptions, serve_until
from tests.fakes import report_of
from tests.kits import Kits

RUN = RunId("run-1")
C1, C2 = ClientId("c1"), ClientId("c2")
IDLE_S = 3.0
CLOCK = SystemClock()


def scenario_of(*, share: float = 1.0, rounds: int = 1, name: str = "coordinated") -> Scenario:
    scenario = parse(
        {
            "name": name,
            "seed": 7,
            "model": {"source": "random:blocks=6,hidden=32,heads=4,vocab=256,seed=1"},
            "data": {"private": "txt:private.txt", "public": "txt:public.txt"},
            "clients": [{"id": c, "position": {"x_m": 50.0, "y_m": 0.0}} for c in (C1, C2)],
            "coordinator": {"stragglers": {"kind": "quorum", "share": share, "wait_after_s": 30.0}},
            "timing": {"connect_s": 10.0, "idle_s": IDLE_S, "round_s": 60.0},
        }
    )
    return structs.replace(scenario, coordinator=structs.replace(scenario.coordinator, rounds=rounds))


@dataclass
class Process:
    """The coordinator's process body; ``ended`` is its exit code."""

    address: str
    stop: asyncio.Event
    ended: "asyncio.Task[int]"


@asynccontextmanager
async def coordinator(kits: Kits, state: Path, scenario: Scenario, *, solver: Any = None) -> AsyncGenerator[Process]:
    stop, serving = asyncio.Event(), asyncio.get_running_loop().create_future()
    options = CoordinatorOptions(
        scenario=scenario, run=RUN, listen="127.0.0.1:0", kit=kits.folder(Role.COORDINATOR), state_dir=state
    )
    body = serve_until(stop, options, clock=CLOCK, seeds=SeedTree(1), solver=solver, serving=serving)
    task = asyncio.create_task(body)
    await asyncio.wait({task, serving}, return_when=asyncio.FIRST_COMPLETED)
    if task.done():
        task.result()
    try:
        yield Process(address=serving.result(), stop=stop, ended=task)
    finally:
        stop.set()
        await asyncio.wait({task})


@dataclass
class Line:
    """A scripted member on the phone: calls, and one stream at a time that beats."""

    stub: Any
    scenario: Scenario
    seen: int = 0
    heard: list[Directive] = field(default_factory=list[Directive])
    stream: Any = None
    phase: str = "testing"

    async def join(self, *, curve: pb.UtilityCurve | None = None) -> None:
        request = pb.JoinRequest(
            protocol_major=convert.PROTOCOL_MAJOR,
            protocol_minor=convert.PROTOCOL_MINOR,
            scenario_digest=self.scenario.digest.value,
            curve=curve,
        )
        await self.call("Join", request)

    async def call(self, method: str, request: Any) -> Any:
        with translated():
            return await getattr(self.stub, method)(request, timeout=20.0)

    def follow(self) -> None:
        self.stream = self.stub.Follow(self._beats())

    async def wait_for(self, kind: DirectiveKind) -> Directive:
        """Listen until a directive of this kind."""
        async with asyncio.timeout(30.0):
            while True:
                with translated():
                    directive = convert.directive_from_wire(await self.stream.read())
                self.seen = directive.seq
                self.heard.append(directive)
                if directive.kind is kind:
                    return directive

    def drop(self) -> None:
        self.stream.cancel()

    async def report(self, client: ClientId, round_id: int = 1) -> None:
        await self.call("Report", convert.report_to_wire(report_of(client, round_id)))

    async def change_channel(self, *, gain_main: float, at: float, round_id: int = 1) -> Channel:
        channel = Channel(at=Second(at), gain_main=PowerRatio(gain_main), gain_tap=PowerRatio(0.0))
        await self.call("ReportChannel", convert.new_channel_to_wire(channel, round_id=round_id))
        return channel

    async def complete(self, client: ClientId, *, uploaded: bool = True, round_id: int = 1) -> None:
        await self.call("Complete", convert.completion_to_wire(completion_of(client, uploaded=uploaded, round_id=round_id)))

    async def settle(self, client: ClientId, *, accepted: bool = True, round_id: int = 1) -> None:
        key = UpdateKey(run=RUN, round_id=round_id, client=client, attempt=1)
        await self.call("Settle", convert.settlement_to_wire(Settlement(key=key, accepted=accepted)))

    async def conclude(self, round_id: int, *, reason: str = "") -> None:
        conclusion = Conclusion(run=RUN, round_id=round_id, last=bool(reason), reason=reason)
        await self.call("Conclude", convert.conclusion_to_wire(conclusion))

    async def _beats(self) -> AsyncIterator[pb.FollowRequest]:
        while True:
            yield convert.beat_to_wire(Beat(last_seen_seq=self.seen, phase=self.phase, progress=0))
            await CLOCK.sleep(IDLE_S / 6)


@asynccontextmanager
async def line_to(process: Process, kits: Kits, scenario: Scenario, role: Role, name: str) -> AsyncGenerator[Line]:
    channel = connect(process.address, role=Role.COORDINATOR, kit=kits.kit(role, name), timing=scenario.timing)
    try:
        yield Line(stub=coordinator_pb2_grpc.CoordinatorStub(channel), scenario=scenario)
    finally:
        await channel.close()


@dataclass
class Cast:
    """Everybody who takes part, joined and following."""

    owner: Line
    c1: Line
    c2: Line


@asynccontextmanager
async def everybody(process: Process, kits: Kits, scenario: Scenario) -> AsyncGenerator[Cast]:
    async with (
        line_to(process, kits, scenario, Role.OWNER, "owner") as owner,
        line_to(process, kits, scenario, Role.CLIENT, C1) as c1,
        line_to(process, kits, scenario, Role.CLIENT, C2) as c2,
    ):
        for line in (owner, c1, c2):
            await line.join()
            line.follow()
        yield Cast(owner=owner, c1=c1, c2=c2)


async def until_assigned(cast: Cast, round_id: int = 1) -> None:
    for line, client in ((cast.c1, C1), (cast.c2, C2)):
        await line.wait_for(DirectiveKind.ROUND_OPENED)
        await line.report(client, round_id)
    for line in (cast.c1, cast.c2):
        await line.wait_for(DirectiveKind.ASSIGNED)


def completion_of(client: ClientId, *, uploaded: bool, round_id: int) -> Completion:
    return Completion(
        key=UpdateKey(run=RUN, round_id=round_id, client=client, attempt=1),
        uploaded=uploaded,
        reason="" if uploaded else "trainer failed",
        bytes_raw=1000,
        bytes_uploaded=500,
        airtime=Second(2.0),
        train_seconds=Second(3.0),
        energy=Joule(4.0),
    )


def record_of(state: Path, round_id: int = 1) -> dict[str, Any]:
    return json.loads((state / f"round-{round_id}.json").read_text())


def run(story: Callable[[], Coroutine[Any, Any, None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(60.0):
            await story()

    asyncio.run(bounded())
