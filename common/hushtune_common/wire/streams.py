"""How does a long stream survive a reconnect?"""

from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from typing import Any, TypeVar

from hushtune_common.clock import Clock
from hushtune_common.errors import DeadlineExceeded, PeerLost
from hushtune_common.seeding import SeedTree
from hushtune_common.wire import faults

T = TypeVar("T")

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
) -> AsyncGenerator[T, None]:
    """Yield the items of one stream after another; ``begin`` opens the next one where the last item left off.

    A peer that cannot be reached is tried ``attempts_max`` times in a row, with full jitter, and then raised as `PeerLost`; an
    item, or a stream that lasted ``lasting_s``, starts the count again. With ``ends``, a stream that the peer ends in order is
    the end; without it that is one more reason to reconnect. Every other error of the peer is raised at once.
    """
    rng = seeds.generator()
    failures = 0
    while True:
        started_s = clock.monotonic()
        problem: PeerLost | DeadlineExceeded
        try:
            with faults.translated():
                async with aclosing(_generated(begin())) as items:
                    async for item in items:
                        failures = 0
                        yield item
            if ends:
                return
            problem = PeerLost("the peer ended the stream")
        except (PeerLost, DeadlineExceeded) as error:
            problem = error
        failures = 1 if clock.monotonic() - started_s >= lasting_s else failures + 1
        if failures >= attempts_max:
            raise problem
        await clock.sleep(float(rng.uniform(0.0, min(_BACKOFF_CAP_S, _BACKOFF_BASE_S * 2.0**failures))))


async def _generated(call: Any) -> AsyncGenerator[Any, None]:
    """Iterate a call or a generator, and cancel the call when the consumer has had enough."""
    try:
        async for item in call:
            yield item
    finally:
        cancel = getattr(call, "cancel", None)
        if cancel is not None:
            cancel()
