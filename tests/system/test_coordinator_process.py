"""Does the coordinator's process take a run from the first Join to the last directive, over real mTLS?"""

from pathlib import Path

import pytest
from msgspec import structs

from hushtune_common.config import AllocatorConfig, UtilityConfig
from hushtune_common.errors import MalformedUpdate, NotYours, QuorumMissed, ScenarioMismatch, StaleRound, VersionMismatch
from hushtune_common.messages import DirectiveKind, GateDecision, Role
from hushtune_common.wire import convert
from hushtune_common.wire.v1 import coordinator_pb2 as pb
from tests.coordinator_stage import (
    C1,
    C2,
    CLOCK,
    Cast,
    coordinator,
    everybody,
    line_to,
    record_of,
    run,
    scenario_of,
    until_assigned,
)
from tests.fakes import CURVE, FixedSolver
from tests.kits import Kits

pytestmark = pytest.mark.slow


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
