"""Does a client stop when told, come back after a crash, and leave no child and no text behind?"""

import asyncio
import io
import json
import signal
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from hushtune_common import config
from hushtune_common.errors import QuorumMissed
from hushtune_common.messages import Directive, DirectiveKind, Protection
from tests.client_stage import GRANTED, Stage, direct, logged, received, run, sized, stage_in, started, with_settings
from tests.kits import Kits
from tests.loopback import assignment_of
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


async def until_logged(process: asyncio.subprocess.Process, event: str) -> None:
    assert process.stdout is not None
    async for line in process.stdout:
        if json.loads(line)["event"] == event:
            return
    assert process.stderr is not None
    pytest.fail(f"ended before {event}: {(await process.stderr.read()).decode()}")


@pytest.mark.slow
def test_a_terminated_client_leaves_and_ends_with_its_child_within_five_seconds(stage: Stage) -> None:
    async def work() -> None:
        forever = ["--set", "training.epochs=100000"]
        stage.world.scenario = config.load(stage.path, overrides=forever[1:]).digest
        async with serving(stage.world, kits=stage.kits, folder=stage.folder) as at:
            directing = asyncio.create_task(direct(stage.world, GRANTED))
            process = await started(stage, at.owner, at.coordinator, at.air, *forever)
            await until_logged(process, "training_progressed")
            family = psutil.Process(process.pid).children(recursive=True)
            process.send_signal(signal.SIGTERM)
            _, errors = await asyncio.wait_for(process.communicate(), 5.0)
            directing.cancel()
        assert process.returncode == 130, errors
        assert errors == b""
        assert psutil.wait_procs(family, timeout=2.0)[1] == []
        assert stage.world.left == ["interrupted"]

    run(work())


@pytest.mark.slow
def test_a_client_whose_last_round_failed_as_a_whole_does_not_end_as_if_all_were_well(stage: Stage, log: io.StringIO) -> None:
    async def fail() -> None:
        world = stage.world
        world.post(Directive(seq=1, kind=DirectiveKind.ROUND_OPENED, round_id=1))
        await world.until(lambda: bool(world.reports))
        gone = "the owner is gone"
        world.post(Directive(seq=2, kind=DirectiveKind.ROUND_CLOSED, round_id=1, failed_reason=gone, last=True))

    async def work() -> None:
        failing = asyncio.create_task(fail())
        assert await stage.take_part() == QuorumMissed.exit_code
        await failing

    run(work())
    assert stage.world.left == ["the run is over"]


@pytest.mark.slow
def test_a_run_that_is_called_off_in_training_leaves_no_private_text_behind(stage: Stage, log: io.StringIO) -> None:
    async def call_off() -> None:
        world = stage.world
        world.post(Directive(seq=1, kind=DirectiveKind.ROUND_OPENED, round_id=1))
        await world.until(lambda: bool(world.reports))
        world.post(Directive(seq=2, kind=DirectiveKind.ASSIGNED, round_id=1, assignment=sized(GRANTED, world)))
        await world.until(lambda: any(beat.phase == "training" for beat in world.beats))
        world.post(Directive(seq=3, kind=DirectiveKind.DRAIN, round_id=1))

    async def work() -> None:
        calling = asyncio.create_task(call_off())
        assert await stage.take_part() == 0
        await calling

    with_settings(stage, "training.epochs=100000")
    run(work())
    assert list((stage.folder / "state" / "rounds" / "1").iterdir()) == []


@pytest.mark.slow
def test_a_killed_client_goes_on_where_it_was(stage: Stage) -> None:
    async def work() -> None:
        slow = ["--set", "training.epochs=300"]
        stage.world.scenario = config.load(stage.path, overrides=slow[1:]).digest
        async with serving(stage.world, kits=stage.kits, folder=stage.folder) as at:
            directing = asyncio.create_task(direct(stage.world, GRANTED))
            first = await started(stage, at.owner, at.coordinator, at.air, *slow)
            await until_logged(first, "training_progressed")
            first.kill()
            await first.communicate()
            second = await started(stage, at.owner, at.coordinator, at.air, *slow)
            output, errors = await second.communicate()
            directing.cancel()
        assert second.returncode == 0, errors
        names = [json.loads(line)["event"] for line in output.splitlines()]
        assert "training_finished" in names
        assert "device_reported" not in names, "the report was made in the first life"
        (done,) = stage.world.completions.values()
        assert done.uploaded

    run(work())


@pytest.mark.slow
def test_a_client_killed_while_on_air_sends_the_same_frame_again(stage: Stage) -> None:
    async def work() -> None:
        stage.world.silent = True
        key_first = ["--set", "secrecy.protections=['key']"]
        with_settings(stage, *key_first[1:])
        async with serving(stage.world, kits=stage.kits, folder=stage.folder) as at:
            directing = asyncio.create_task(direct(stage.world, assignment_of(protection=Protection.KEY)))
            first = await started(stage, at.owner, at.coordinator, at.air, *key_first)
            await until_logged(first, "frame_encoded")
            await stage.world.until(lambda: bool(stage.world.sent))
            first.kill()
            await first.communicate()
            stage.world.speak()
            second = await started(stage, at.owner, at.coordinator, at.air, *key_first)
            output, errors = await second.communicate()
            directing.cancel()
        assert second.returncode == 0, errors
        told = [e for line in output.splitlines() if (e := json.loads(line))["event"].startswith("frame_")]
        assert [(e["event"], e["part"], e["attempt"]) for e in told] == [
            ("frame_reused", "key", 1),
            ("frame_transmitted", "key", 1),
            ("frame_encoded", "payload", 2),
            ("frame_transmitted", "payload", 2),
        ]
        assert received(stage).tensors

    run(work())
