"""Does every clock, real or fake, obey the laws of ``Clock``?"""

import asyncio

import pytest

from hushtune_common.clock import Clock, SystemClock
from tests.fakes import FakeClock


@pytest.fixture(params=["system", "fake"])
def clock(request: pytest.FixtureRequest) -> Clock:
    return SystemClock() if request.param == "system" else FakeClock(autojump=True)


def test_the_monotonic_clock_never_decreases(clock: Clock) -> None:
    readings = [clock.monotonic() for _ in range(100)]

    assert readings == sorted(readings)


def test_a_sleep_lasts_at_least_as_long_as_asked(clock: Clock) -> None:
    before = clock.monotonic()

    asyncio.run(clock.sleep(0.01))

    assert clock.monotonic() - before >= 0.01


def test_a_pause_lasts_at_least_as_long_as_asked(clock: Clock) -> None:
    before = clock.monotonic()

    clock.pause(0.01)

    assert clock.monotonic() - before >= 0.01


def test_sleepers_of_a_standing_clock_wake_in_their_time() -> None:
    async def story() -> list[float]:
        clock = FakeClock()
        woken: list[float] = []

        async def sleeper(seconds: float) -> None:
            await clock.sleep(seconds)
            woken.append(seconds)

        async with asyncio.TaskGroup() as group:
            for seconds in (3.0, 1.0):
                group.create_task(sleeper(seconds))
            await asyncio.sleep(0)
            for _ in range(3):
                clock.advance(1.0)
                for _ in range(3):
                    await asyncio.sleep(0)
        return woken

    assert asyncio.run(story()) == [1.0, 3.0]


def test_time_does_not_run_backwards() -> None:
    with pytest.raises(ValueError, match="backwards"):
        FakeClock().advance(-1.0)
