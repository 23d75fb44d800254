"""When does a broken stream come back: after its wait, or as soon as the peer does?"""

import asyncio
from collections.abc import AsyncIterator

import pytest

from hushtune_common.errors import PeerLost
from hushtune_common.seeding import SeedTree
from hushtune_common.wire.streams import resumed
from tests.fakes import FakeClock

ATTEMPTS = 6


async def broken() -> AsyncIterator[int]:
    raise PeerLost("gone")
    yield 0


async def taken(clock: FakeClock, *, hopes: list[float]) -> None:
    """Follow a peer that is gone; it seems to come back at once, each time that somebody waits for that."""

    async def back() -> None:
        hopes.append(clock.monotonic())

    stream = resumed(broken, clock=clock, seeds=SeedTree(1), attempts_max=ATTEMPTS, lasting_s=30.0, ends=False, back=back)
    async for _ in stream:
        raise AssertionError("nothing ever comes")


async def patient(clock: FakeClock, task: "asyncio.Task[None]") -> None:
    """Let time pass, a second at a time, while anybody sleeps."""
    while not task.done():
        for _ in range(20):
            await asyncio.sleep(0)
        clock.advance(1.0)


def test_a_wait_ends_when_the_peer_is_back_but_never_twice_in_a_row() -> None:
    clock, hopes = FakeClock(), list[float]()

    async def story() -> None:
        task = asyncio.create_task(taken(clock, hopes=hopes))
        await patient(clock, task)
        with pytest.raises(PeerLost):
            task.result()

    asyncio.run(story())
    # Five waits lie between six attempts; the first, third and fifth were cut short.
    assert len(hopes) == 3
    assert hopes == sorted(set(hopes))
