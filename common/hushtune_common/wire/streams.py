"""How does a long stream survive a reconnect?"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any, TypeVar

import grpc

from hushtune_common.clock import Clock
from hushtune_common.errors import DeadlineExceeded, PeerLost
from hushtune_common.seeding import SeedTree
from hushtune_common.wire import faults

T = TypeVar("T")

PATIENCE = 2.0
"""For how many ``idle_s`` a stream that lasts as long as a run is tried again: a server may take that long to come back."""

_BACKOFF_BASE_S = 0.5
_BACKOFF_CAP_S = 20.0


async def resumed(
    begin: Callable[[], AsyncIterator[T]],
    *,
    clock: Clock,
    seeds: SeedTree,
    attempts_max: int,
    lasting_s: float,
    ends: bool,
    patience_s: float = 0.0,
    back: Callable[[], Awaitable[None]] | None = None,
) -> AsyncGenerator[T, None]:
    """Yield the items of one stream after another; ``begin`` opens the next one where the last item left off.

    A peer that cannot be reached is tried at least ``attempts_max`` times in a row and for ``patience_s``, with full jitter, and
    then raised as `PeerLost`; an item, or a stream that lasted ``lasting_s``, starts both counts again. No wait is longer than a
    quarter of ``lasting_s``: a peer that is back must not take us for dead meanwhile. With ``ends``, a stream that the peer ends
    in order is the end; without it that is one more reason to reconnect. Every other error of the peer is raised at once.

    ``back`` returns once a peer that was gone can be reached again, such as `reconnected`: a wait ends with it, but never two
    in a row, so that a peer that answers only to break again is not met more often than without it.
    """
    rng = seeds.generator()
    failures, good_s = 0, clock.monotonic()
    cut_short = False
    cap_s = min(_BACKOFF_CAP_S, lasting_s / 4)
    while True:
        started_s = clock.monotonic()
        problem: PeerLost | DeadlineExceeded
        try:
            with faults.translated():
                async with aclosing(_generated(begin())) as items:
                    async for item in items:
                        failures = 0
                        yield item
                        good_s = clock.monotonic()
            if ends:
                return
            problem = PeerLost("the peer ended the stream")
        except (PeerLost, DeadlineExceeded) as error:
            problem = error
        now_s = clock.monotonic()
        failures, good_s = (1, now_s) if now_s - started_s >= lasting_s else (failures + 1, good_s)
        if failures >= attempts_max and now_s - good_s >= patience_s:
            raise problem
        wait_s = float(rng.uniform(0.0, min(cap_s, _BACKOFF_BASE_S * 2.0**failures)))
        cut_short = await _slept(wait_s, clock=clock, back=None if cut_short else back)


async def reconnected(channel: grpc.aio.Channel) -> None:
    """Wait until ``channel``, whose connection is lost, has one again; it dials meanwhile. For ever, if none was lost."""
    state = channel.get_state(try_to_connect=True)
    lost = state is not grpc.ChannelConnectivity.READY
    while not (lost and state is grpc.ChannelConnectivity.READY):
        await channel.wait_for_state_change(state)
        state = channel.get_state(try_to_connect=True)
        lost = lost or state is not grpc.ChannelConnectivity.READY


async def _slept(seconds: float, *, clock: Clock, back: Callable[[], Awaitable[None]] | None) -> bool:
    """Wait for ``seconds``, or until ``back`` returns; whether that ended the wait."""
    if back is None:
        await clock.sleep(seconds)
        return False
    sleeping, hoping = asyncio.ensure_future(clock.sleep(seconds)), asyncio.ensure_future(back())
    try:
        await asyncio.wait((sleeping, hoping), return_when=asyncio.FIRST_COMPLETED)
        return hoping.done() and not sleeping.done()
    finally:
        for task in (sleeping, hoping):
            task.cancel()
        await asyncio.gather(sleeping, hoping, return_exceptions=True)


async def _generated(call: Any) -> AsyncGenerator[Any, None]:
    """Iterate a call or a generator, and cancel the call when the consumer has had enough."""
    try:
        async for item in call:
            yield item
    finally:
        cancel = getattr(call, "cancel", None)
        if cancel is not None:
            cancel()
