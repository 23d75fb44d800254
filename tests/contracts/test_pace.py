"""Does a transfer put no more on its way than the way carries in time, and does it use a fast one?"""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from hushtune_common.errors import DeadlineExceeded
from hushtune_common.wire.pace import LEG_BYTES_MAX, LEG_BYTES_MIN, Legs, Pace
from tests.fakes import FakeClock

IDLE_S = 8.0


def travelled(pace: Pace, *, rate: float, legs: int, ahead: int = 1) -> list[float]:
    """Send legs over a way of ``rate`` bytes per second, each behind ``ahead - 1`` as long as itself; return their seconds."""
    seconds: list[float] = []
    for _ in range(legs):
        seconds.append(ahead * pace.leg_bytes / rate)
        pace.took(seconds[-1])
    return seconds


@pytest.mark.parametrize("rate", [64 << 10, 200e3, 1e6, 10e6, 1e9])
@pytest.mark.parametrize("ahead", [1, 2])
def test_on_a_way_of_constant_rate_what_is_on_its_way_arrives_in_a_sixteenth_of_idle_s(rate: float, ahead: int) -> None:
    pace = Pace(idle_s=IDLE_S)
    seconds = travelled(pace, rate=rate, legs=12, ahead=ahead)
    assert max(seconds) <= IDLE_S / 16 * 1.001
    wanted = min(LEG_BYTES_MAX, rate * IDLE_S / 16 / ahead)
    assert pace.leg_bytes == pytest.approx(wanted, rel=0.01)


@pytest.mark.parametrize("rate", [100.0, 8e3, 16e3])
def test_a_way_that_is_too_slow_for_that_gets_the_shortest_legs(rate: float) -> None:
    pace = Pace(idle_s=IDLE_S)
    travelled(pace, rate=rate, legs=5, ahead=2)
    assert pace.leg_bytes <= max(LEG_BYTES_MIN, rate * IDLE_S / 32)


def test_a_fast_way_is_used_after_few_legs_and_one_that_was_cut_is_explored_slowly() -> None:
    pace = Pace(idle_s=30.0)
    pace.took(1e-3)
    pace.took(5e-3)
    assert pace.leg_bytes == LEG_BYTES_MAX
    pace.cut()
    assert pace.leg_bytes == LEG_BYTES_MIN
    pace.answered(1e-4)  # quick answers are not believed any more
    assert pace.leg_bytes == LEG_BYTES_MIN
    pace.took(1e-3)
    assert pace.leg_bytes == 2 * LEG_BYTES_MIN


@pytest.mark.parametrize(("seconds", "expected"), [(0.0, LEG_BYTES_MAX), (1e-3, 384 * 1875), (1.0, LEG_BYTES_MIN)])
def test_the_first_answer_says_how_long_the_first_leg_may_be(seconds: float, expected: int) -> None:
    pace = Pace(idle_s=30.0)
    pace.answered(seconds)
    assert pace.leg_bytes == pytest.approx(expected)


def sending(run: Callable[[Legs, list["asyncio.Future[None]"]], Awaitable[None]]) -> None:
    """Run with legs whose questions are answered by hand."""

    async def main() -> None:
        questions: list[asyncio.Future[None]] = []

        def ask() -> "asyncio.Future[None]":
            questions.append(asyncio.get_running_loop().create_future())
            return questions[-1]

        legs = Legs(Pace(idle_s=IDLE_S), ask=ask, clock=FakeClock())
        try:
            await run(legs, questions)
        finally:
            await legs.close()

    asyncio.run(main())


def test_a_third_leg_waits_until_the_first_has_come_through() -> None:
    async def run(legs: Legs, questions: list["asyncio.Future[None]"]) -> None:
        over: asyncio.Future[object] = asyncio.get_running_loop().create_future()
        await legs.sent(LEG_BYTES_MIN, over=over, idle_s=60.0)
        await legs.sent(LEG_BYTES_MIN - 1, over=over, idle_s=60.0)
        third = asyncio.ensure_future(legs.sent(1, over=over, idle_s=60.0))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert (len(questions), third.done()) == (1, False)
        questions[0].set_result(None)
        await third
        assert legs.leg_bytes == 64 * LEG_BYTES_MIN

    sending(run)


def test_a_way_on_which_nothing_comes_through_is_left_after_idle_s_and_an_upload_that_has_ended_at_once() -> None:
    async def run(legs: Legs, questions: list["asyncio.Future[None]"]) -> None:
        over: asyncio.Future[object] = asyncio.get_running_loop().create_future()
        await legs.sent(LEG_BYTES_MIN, over=over, idle_s=60.0)
        with pytest.raises(DeadlineExceeded, match=r"nothing moved for 0\.01 s"):
            await legs.sent(LEG_BYTES_MIN, over=over, idle_s=0.01)
        over.set_result(None)
        await legs.sent(LEG_BYTES_MIN, over=over, idle_s=60.0)

    sending(run)
