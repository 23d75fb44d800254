"""Does the coordinator's process take a run from the first Join to the last directive, over real mTLS?"""

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs

from hushtune_common.clock import SystemClock
from hushtune_common.config import AllocatorConfig, Scenario, UtilityConfig, parse
from hushtune_common.errors import MalformedUpdate, NotYours, QuorumMissed, ScenarioMismatch, StaleRound, VersionMismatch
from hushtune_common.messages import (
    Beat,
    Channel,
    ClientId,
    Completion,
    Conclusion,
    Directive,
    DirectiveKind,
    GateDecision,
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
from tests.fakes import CURVE, FixedSolver, report_of
from tests.kits import Kits

pytestmark = pytest.mark.slow

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


@pytest.fixture(scope="module")
def kits(tmp_path_factory: pytest.TempPathFactory) -> Kits:
    return Kits(tmp_path_factory.mktemp("kits"))


def test_two_clients_and_the_owner_finish_a_round(kits: Kits, tmp_path: Path) -> None:
    scenario = scenario_of()

    async def story() -> None:
        async with coordinator(kits, tmp_path, scenario) as process, everybody(process, kits, scenario) as cast:
            await until_assigned(cast)
            for line, client in ((cast.c1, C1), (cast.c2, C2)):
                await line.complete(client)
                await cast.owner.settle(client)
            for line in (cast.owner, cast.c1, cast.c2):
                closed = await line.wait_for(DirectiveKind.ROUND_CLOSED)
                assert (closed.accepted, closed.last) == ((C1, C2), True)
                line.drop()
            assert await process.ended == 0
            assert [d.seq for d in cast.c1.heard] == sorted({d.seq for d in cast.c1.heard})

    run(story)
    record = record_of(tmp_path)
    assert (record["state"], record["accepted"], record["missing"]) == ("closed", [C1, C2], [])
    assert record["allocation"]["method"] == "global"
    assert {a["gate"]["decision"] for a in record["assignments"]} == {GateDecision.GRANTED}
    assert [(c["client"], c["bytes_uploaded"], c["train_s"]) for c in record["completions"]] == [(C1, 500, 3.0), (C2, 500, 3.0)]


def test_a_client_whose_stream_breaks_is_dead_and_the_round_closes_without_it(kits: Kits, tmp_path: Path) -> None:
    scenario = scenario_of(share=0.5)

    async def story() -> None:
        async with coordinator(kits, tmp_path, scenario) as process, everybody(process, kits, scenario) as cast:
            await until_assigned(cast)
            began_at = CLOCK.monotonic()
            cast.c2.drop()
            await cast.c1.complete(C1)
            await cast.owner.settle(C1)

            closed = await cast.c1.wait_for(DirectiveKind.ROUND_CLOSED)

            # The quorum alone would have waited 30 s; half of idle_s of broken stream is enough to give up on the other.
            assert closed.accepted == (C1,)
            assert CLOCK.monotonic() - began_at < 15.0
            for line in (cast.owner, cast.c1):
                line.drop()
            assert await process.ended == 0

    run(story)
    record = record_of(tmp_path)
    assert (record["accepted"], record["died"]) == ([C1], [C2])
    assert record["reasons"][C2].startswith("died: silent for")


def bandwidth_of(directive: Directive) -> float:
    assert directive.assignment is not None
    return directive.assignment.bandwidth


def test_the_band_of_a_client_that_dies_goes_to_the_other_and_its_grant_is_withdrawn(kits: Kits, tmp_path: Path) -> None:
    scenario = scenario_of(share=0.5)

    async def story() -> None:
        async with coordinator(kits, tmp_path, scenario) as process, everybody(process, kits, scenario) as cast:
            await until_assigned(cast)
            before = bandwidth_of(cast.c1.heard[-1])
            cast.c2.drop()
            after = await cast.c1.wait_for(DirectiveKind.ASSIGNED)
            assert bandwidth_of(after) == pytest.approx(2 * before)
            await cast.c2.join()
            cast.c2.follow()
            withdrawal = (await cast.c2.wait_for(DirectiveKind.ASSIGNED)).assignment
            assert withdrawal is not None
            assert withdrawal.gate.decision is GateDecision.DEFERRED
            await cast.c1.complete(C1)
            await cast.owner.settle(C1)
            await cast.c2.complete(C2, uploaded=False)
            closed = await cast.c1.wait_for(DirectiveKind.ROUND_CLOSED)
            assert closed.accepted == (C1,)
            process.stop.set()

    run(story)
    assert record_of(tmp_path)["withdrawn"] == [C2]


def test_a_client_whose_channel_got_worse_is_assigned_for_it_and_all_may_finish(kits: Kits, tmp_path: Path) -> None:
    scenario = scenario_of()

    async def story() -> None:
        async with coordinator(kits, tmp_path, scenario) as process, everybody(process, kits, scenario) as cast:
            await until_assigned(cast)
            (before,) = (d.assignment for d in cast.c2.heard if d.assignment)
            worse = await cast.c2.change_channel(gain_main=5e-10, at=5.0)
            after = (await cast.c2.wait_for(DirectiveKind.ASSIGNED)).assignment
            assert after is not None
            assert (before.channel, after.channel) == (report_of(C2, 1).channel, worse)
            assert after.power / after.bandwidth > before.power / before.bandwidth
            await cast.c2.change_channel(gain_main=5e-10, at=5.0)
            for line, client in ((cast.c1, C1), (cast.c2, C2)):
                await line.complete(client)
                await cast.owner.settle(client)
            await cast.c1.wait_for(DirectiveKind.ROUND_CLOSED)
            with pytest.raises(StaleRound):
                await cast.c2.change_channel(gain_main=1e-11, at=6.0, round_id=2)
            process.stop.set()

    run(story)
    record = record_of(tmp_path)
    assert record["accepted"] == [C1, C2]
    assert [s["occasion"] for s in record["solutions"]] == ["first", "after channel change of c2"]
    assert all(s["allocation"]["claim"] == "certificate" for s in record["solutions"])


def test_a_client_whose_new_channel_is_no_better_than_the_taps_is_refused_and_its_band_goes_to_the_other(
    kits: Kits, tmp_path: Path
) -> None:
    scenario = scenario_of(share=0.5)

    async def story() -> None:
        async with coordinator(kits, tmp_path, scenario) as process, everybody(process, kits, scenario) as cast:
            await until_assigned(cast)
            before = bandwidth_of(cast.c1.heard[-1])
            await cast.c2.change_channel(gain_main=1e-14, at=5.0)
            refusal = (await cast.c2.wait_for(DirectiveKind.ASSIGNED)).assignment
            assert refusal is not None
            assert (refusal.protection, "above the owner's" in refusal.gate.reason) == (None, True)
            assert bandwidth_of(await cast.c1.wait_for(DirectiveKind.ASSIGNED)) == pytest.approx(2 * before)
            with pytest.raises(NotYours):
                await cast.c2.complete(C2)
            await cast.c2.complete(C2, uploaded=False)
            await cast.c1.complete(C1)
            await cast.owner.settle(C1)
            await cast.c1.wait_for(DirectiveKind.ROUND_CLOSED)
            process.stop.set()

    run(story)
    record = record_of(tmp_path)
    assert (record["accepted"], record["withdrawn"]) == ([C1], [])
    assert record["reasons"][C2].startswith("gate excluded: the assumed tap gain")


def test_a_client_that_says_it_transmits_keeps_its_band_when_it_dies(kits: Kits, tmp_path: Path) -> None:
    scenario = scenario_of(share=0.5)

    async def story() -> None:
        async with coordinator(kits, tmp_path, scenario) as process, everybody(process, kits, scenario) as cast:
            await until_assigned(cast)
            cast.c2.phase = "on air"
            await CLOCK.sleep(IDLE_S / 2)
            cast.c2.drop()
            await CLOCK.sleep(IDLE_S)
            await cast.c1.complete(C1)
            await cast.owner.settle(C1)
            await cast.c1.wait_for(DirectiveKind.ROUND_CLOSED)
            assert sum(d.kind is DirectiveKind.ASSIGNED for d in cast.c1.heard) == 1
            process.stop.set()

    run(story)
    assert record_of(tmp_path)["withdrawn"] == []


def test_a_reconnected_client_lives_on_and_misses_nothing(kits: Kits, tmp_path: Path) -> None:
    scenario = scenario_of()

    async def story() -> None:
        async with coordinator(kits, tmp_path, scenario) as process, everybody(process, kits, scenario) as cast:
            await cast.c1.wait_for(DirectiveKind.ROUND_OPENED)
            cast.c1.drop()
            await cast.c1.report(C1)
            await cast.c2.wait_for(DirectiveKind.ROUND_OPENED)
            await cast.c2.report(C2)
            await cast.c2.wait_for(DirectiveKind.ASSIGNED)

            cast.c1.follow()
            await cast.c1.wait_for(DirectiveKind.ASSIGNED)
            cast.c1.drop()
            cast.c1.seen = 0
            cast.c1.follow()
            await cast.c1.wait_for(DirectiveKind.ASSIGNED)

            kinds = [d.kind for d in cast.c1.heard]
            assert kinds == [DirectiveKind.ROUND_OPENED, DirectiveKind.ASSIGNED] * 2
            process.stop.set()

    run(story)


def test_a_restarted_coordinator_goes_on_where_it_stopped(kits: Kits, tmp_path: Path) -> None:
    scenario = scenario_of()

    async def story() -> None:
        async with coordinator(kits, tmp_path, scenario) as process, everybody(process, kits, scenario) as cast:
            await until_assigned(cast)
            await cast.c1.complete(C1)
            await cast.owner.settle(C1)
            seen = cast.c2.seen
            began_at = CLOCK.monotonic()
            process.stop.set()
            assert await process.ended == 0
            assert CLOCK.monotonic() - began_at < 5.0
        async with coordinator(kits, tmp_path, scenario) as process, everybody(process, kits, scenario) as cast:
            cast.c2.drop()
            cast.c2.seen = seen
            cast.c2.follow()
            await cast.c2.complete(C2)
            await cast.owner.settle(C2)
            closed = await cast.c2.wait_for(DirectiveKind.ROUND_CLOSED)
            assert closed.accepted == (C1, C2)
            assert len(cast.c2.heard) == 1
            process.stop.set()

    run(story)
    assert record_of(tmp_path)["accepted"] == [C1, C2]


def test_the_second_round_follows_the_first_once_the_owner_has_concluded_it(kits: Kits, tmp_path: Path) -> None:
    scenario = scenario_of(rounds=2)

    async def story() -> None:
        async with coordinator(kits, tmp_path, scenario) as process, everybody(process, kits, scenario) as cast:
            for round_id in (1, 2):
                await until_assigned(cast, round_id)
                for client in (C1, C2):
                    await cast.owner.settle(client, round_id=round_id)
                if round_id == 1:
                    concluding = await cast.owner.wait_for(DirectiveKind.CONCLUDE)
                    assert concluding.accepted == (C1, C2)
                    with pytest.raises(NotYours):
                        await cast.c1.conclude(1)
                    await cast.owner.conclude(1)
                closed = await cast.owner.wait_for(DirectiveKind.ROUND_CLOSED)
                assert (closed.round_id, closed.last) == (round_id, round_id == 2)
            with pytest.raises(StaleRound):
                await cast.c1.report(C1, round_id=1)
            process.stop.set()

    run(story)
    assert [record_of(tmp_path, n)["state"] for n in (1, 2)] == ["closed", "closed"]


def test_an_owner_that_wants_no_further_round_ends_the_run_in_order_also_over_a_restart(kits: Kits, tmp_path: Path) -> None:
    scenario = scenario_of(rounds=5)

    async def story() -> None:
        async with coordinator(kits, tmp_path, scenario) as process, everybody(process, kits, scenario) as cast:
            await until_assigned(cast)
            for client in (C1, C2):
                await cast.owner.settle(client)
            await cast.owner.wait_for(DirectiveKind.CONCLUDE)
            process.stop.set()
            await process.ended
        async with coordinator(kits, tmp_path, scenario) as process, everybody(process, kits, scenario) as cast:
            assert (await cast.owner.wait_for(DirectiveKind.CONCLUDE)).round_id == 1
            for _ in range(2):
                await cast.owner.conclude(1, reason="no better for 2 rounds")
            for line in (cast.owner, cast.c1, cast.c2):
                assert (await line.wait_for(DirectiveKind.ROUND_CLOSED)).last
                line.drop()
            assert await process.ended == 0

    run(story)
    record = record_of(tmp_path)
    assert (record["state"], record["last"], record["stopped"]) == ("closed", True, "no better for 2 rounds")


def test_a_round_without_quorum_ends_the_process_with_its_exit_code(kits: Kits, tmp_path: Path) -> None:
    scenario = scenario_of()

    async def story() -> None:
        async with (
            coordinator(kits, tmp_path, scenario, solver=FixedSolver(deferred=frozenset({C2}))) as process,
            everybody(process, kits, scenario) as cast,
        ):
            await until_assigned(cast)
            for line in (cast.owner, cast.c1, cast.c2):
                closed = await line.wait_for(DirectiveKind.ROUND_CLOSED)
                assert "at most 1 can deliver" in closed.failed_reason
                line.drop()
            assert await process.ended == QuorumMissed.exit_code

    run(story)
    record = record_of(tmp_path)
    assert (record["state"], record["reasons"][C2]) == ("failed", "gate deferred: fixed")
    assert record["assignments"][0]["gate"]["snr_tap_bound_db"] is None


def test_who_does_not_belong_is_refused(kits: Kits, tmp_path: Path) -> None:
    scenario = scenario_of()

    async def story() -> None:
        async with (
            coordinator(kits, tmp_path, scenario) as process,
            line_to(process, kits, scenario, Role.CLIENT, "c9") as stranger,
            line_to(process, kits, scenario, Role.AIR, "air") as air,
            line_to(process, kits, scenario, Role.CLIENT, C1) as c1,
            line_to(process, kits, scenario, Role.OPERATOR, "operator") as operator,
        ):
            for line in (stranger, air):
                with pytest.raises(NotYours):
                    await line.join()
            with pytest.raises(VersionMismatch):
                await c1.call("Join", pb.JoinRequest(protocol_major=9, scenario_digest=scenario.digest.value))
            with pytest.raises(VersionMismatch, match="minor"):
                await c1.call("Join", pb.JoinRequest(protocol_major=convert.PROTOCOL_MAJOR, protocol_minor=1))
            major, minor = convert.PROTOCOL_MAJOR, convert.PROTOCOL_MINOR
            foreign = pb.JoinRequest(protocol_major=major, protocol_minor=minor, scenario_digest=bytes(32))
            with pytest.raises(ScenarioMismatch):
                await c1.call("Join", foreign)
            with pytest.raises(StaleRound):
                await c1.report(C1)
            with pytest.raises(NotYours):
                await c1.settle(C1)
            with pytest.raises(NotYours):
                await c1.complete(C1)
            c1.follow()
            with pytest.raises(NotYours):
                await c1.wait_for(DirectiveKind.ROUND_OPENED)
            assert (await operator.call("GetRun", pb.GetRunRequest())).state == "gathering"

    run(story)


def curve(**changes: float) -> pb.UtilityCurve:
    told = convert.curve_to_wire(CURVE)
    for name, value in changes.items():
        setattr(told, name, value)
    return told


WRONG_CURVES = [{"weight": -1.0}, {"shape": 0.0}, {"offset": float("nan")}, {"share_min": 1.5}]


def test_a_measured_utility_opens_the_round_and_one_that_nobody_can_plan_with_is_refused(kits: Kits, tmp_path: Path) -> None:
    allocator = AllocatorConfig(utility=UtilityConfig(kind="measured"))
    plain = scenario_of()
    scenario = structs.replace(plain, coordinator=structs.replace(plain.coordinator, allocator=allocator))

    async def story() -> None:
        async with (
            coordinator(kits, tmp_path, scenario, solver=FixedSolver()) as process,
            line_to(process, kits, scenario, Role.OWNER, "owner") as owner,
            line_to(process, kits, scenario, Role.CLIENT, C1) as c1,
            line_to(process, kits, scenario, Role.CLIENT, C2) as c2,
        ):
            for line in (c1, c2):
                await line.join()
                line.follow()
            with pytest.raises(NotYours, match="only the owner"):
                await c1.join(curve=curve())
            with pytest.raises(MalformedUpdate, match="brings no curve"):
                await owner.join()
            for wrong in WRONG_CURVES:
                with pytest.raises(MalformedUpdate, match="curve"):
                    await owner.join(curve=curve(**wrong))
            await owner.join(curve=curve())
            owner.follow()
            await owner.join()  # it came before, so it may come back without
            await until_assigned(Cast(owner=owner, c1=c1, c2=c2))
            for line, client in ((c1, C1), (c2, C2)):
                await line.complete(client, uploaded=False)
            for line in (owner, c1, c2):
                await line.wait_for(DirectiveKind.ROUND_CLOSED)
                line.drop()
            await process.ended

    run(story)
    assert record_of(tmp_path)["utility"]["shape"] == CURVE.shape


def test_a_state_folder_of_another_scenario_is_refused(kits: Kits, tmp_path: Path) -> None:
    async def story() -> None:
        async with coordinator(kits, tmp_path, scenario_of()):
            pass
        with pytest.raises(ScenarioMismatch, match="empty state folder"):
            async with coordinator(kits, tmp_path, scenario_of(name="another")):
                pass

    run(story)
