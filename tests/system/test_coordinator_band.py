"""Does the coordinator's process share band out again when somebody dies or moves, and keep what is in use?"""

from pathlib import Path

import pytest

from hushtune_common.errors import NotYours, StaleRound
from hushtune_common.messages import Directive, DirectiveKind, GateDecision
from tests.coordinator_stage import C1, C2, CLOCK, IDLE_S, coordinator, everybody, record_of, run, scenario_of, until_assigned
from tests.fakes import report_of
from tests.kits import Kits

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def kits(tmp_path_factory: pytest.TempPathFactory) -> Kits:
    return Kits(tmp_path_factory.mktemp("kits"))


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
