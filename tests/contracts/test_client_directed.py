"""Does a client do what a newer assignment says, and not what an older one said?"""

import asyncio
import io
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hushtune_client.ports import Sounding
from hushtune_common import config
from hushtune_common.messages import Assignment, Directive, DirectiveKind, Verdict
from hushtune_common.units import FlopPerSecond, Hertz, PowerRatio, Second, Watt
from tests.client_stage import GRANTED, KEY, Stage, events, logged, received, run, sized, stage_in, started, with_settings
from tests.kits import Kits
from tests.loopback import GAIN, REFUSED, World, assignment_of
from tests.loopback_grpc import serving


@pytest.fixture(scope="module")
def kits(tmp_path_factory: pytest.TempPathFactory) -> Kits:
    return Kits(tmp_path_factory.mktemp("kits"))


@pytest.fixture
def stage(tmp_path: Path, kits: Kits) -> Stage:
    return stage_in(tmp_path, kits=kits)


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    with logged() as stream:
        yield stream


async def directed_anew(world: World, newer: Assignment) -> None:
    """Play coordinator and owner, and assign something else in the middle of training."""
    world.post(Directive(seq=1, kind=DirectiveKind.ROUND_OPENED, round_id=1))
    await world.until(lambda: bool(world.reports))
    world.post(Directive(seq=2, kind=DirectiveKind.ASSIGNED, round_id=1, assignment=sized(GRANTED, world)))
    await world.until(lambda: any(beat.phase == "training" for beat in world.beats))
    world.post(Directive(seq=3, kind=DirectiveKind.ASSIGNED, round_id=1, assignment=sized(newer, world)))
    await world.until(lambda: bool(world.completions))
    accepted = tuple(c.key.client for c in world.completions.values() if c.uploaded)
    world.post(Directive(seq=4, kind=DirectiveKind.ROUND_CLOSED, round_id=1, accepted=accepted, last=True))
    world.judge(Verdict(key=KEY, accepted=True, kept=True, reason="", score=12.5))


async def taking_part(stage: Stage, newer: Assignment, *, epochs: int) -> list[dict[str, Any]]:
    """Return what a real client logged whose assignment was replaced by ``newer`` in mid-training."""
    long = ["--set", f"training.epochs={epochs}"]
    stage.world.scenario = config.load(stage.path, overrides=long[1:]).digest
    async with serving(stage.world, kits=stage.kits, folder=stage.folder) as at:
        directing = asyncio.create_task(directed_anew(stage.world, newer))
        process = await started(stage, at.owner, at.coordinator, at.air, *long)
        output, errors = await asyncio.wait_for(process.communicate(), 60.0)
        directing.cancel()
    assert process.returncode == 0, errors
    return [json.loads(line) for line in output.splitlines()]


@pytest.mark.slow
def test_a_newer_assignment_changes_clock_band_and_power_and_training_goes_on(stage: Stage) -> None:
    newer = replace(GRANTED, bandwidth=Hertz(3e6), power=Watt(6e-5), clock=FlopPerSecond(1.9e12))
    told = run(taking_part(stage, newer, epochs=600))
    assert [e["event"] for e in told].count("training_finished") == 1
    assert [e["clock_flops"] for e in told if e["event"] == "clock_changed"] == [1.9e12]
    assert {(sent.bandwidth, sent.power) for sent, _ in stage.world.sent.values()} == {(3e6, 6e-5)}
    assert received(stage).tensors


async def moved_after_training(world: World) -> None:
    """Play coordinator and owner to a client whose channel is worse, and its clock slower, once it has trained."""
    world.post(Directive(seq=1, kind=DirectiveKind.ROUND_OPENED, round_id=1))
    await world.until(lambda: bool(world.reports))
    first = replace(GRANTED, channel=next(iter(world.reports.values())).channel)
    world.post(Directive(seq=2, kind=DirectiveKind.ASSIGNED, round_id=1, assignment=sized(first, world)))
    world.sounding = Sounding(gain_main=PowerRatio(0.1 * GAIN), at=Second(7.0))
    await world.until(lambda: bool(world.channels))
    newer = replace(first, clock=FlopPerSecond(1.9e12), channel=world.channels[0][2])
    world.post(Directive(seq=3, kind=DirectiveKind.ASSIGNED, round_id=1, assignment=sized(newer, world)))
    await world.until(lambda: bool(world.completions))
    accepted = tuple(c.key.client for c in world.completions.values() if c.uploaded)
    world.post(Directive(seq=4, kind=DirectiveKind.ROUND_CLOSED, round_id=1, accepted=accepted, last=True))
    world.judge(Verdict(key=KEY, accepted=True, kept=True, reason="", score=12.5))


@pytest.mark.slow
def test_a_clock_assigned_after_training_is_not_the_one_that_training_is_said_to_have_kept(
    stage: Stage, log: io.StringIO
) -> None:
    # Nobody looks in the middle of training, however long it takes: the client measures when it is about to seal.
    with_settings(stage, "air.sounding_s=1000")

    async def work() -> None:
        directing = asyncio.create_task(moved_after_training(stage.world))
        assert await stage.take_part() == 0
        await directing

    run(work())
    (trained,) = [e for e in events(log) if e["event"] == "training_finished"]
    assert trained["clock_share"] == pytest.approx(GRANTED.clock / stage.scenario.clients[0].clock_max_flops)
    assert [e["clock_flops"] for e in events(log) if e["event"] == "clock_changed"] == [1.9e12]


@pytest.mark.slow
def test_a_withdrawn_grant_ends_the_training_and_nothing_is_sent(stage: Stage) -> None:
    run(taking_part(stage, assignment_of(gate=REFUSED), epochs=100_000))
    (done,) = stage.world.completions.values()
    assert (done.uploaded, REFUSED.reason in done.reason) == (False, True)
    assert not stage.world.sent
