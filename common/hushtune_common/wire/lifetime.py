"""How does a process end when it is told to?"""

import asyncio
import logging
import signal
from collections.abc import Coroutine, Generator
from contextlib import contextmanager
from typing import Any

from hushtune_common.logs import log_event

_logger = logging.getLogger(__name__)
_STOPPING = (signal.SIGTERM, signal.SIGINT)


@contextmanager
def stop_signal() -> Generator[asyncio.Event]:
    """Give an event that SIGTERM or SIGINT sets, instead of ending the process where it stands. Main thread only.

    SIGHUP ends nothing: a training does not stop because a terminal was closed, and there is nothing to reload by hand, since
    certificates and revocation lists are read again when their files change.
    """
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in _STOPPING:
        loop.add_signal_handler(number, stop.set)
    loop.add_signal_handler(signal.SIGHUP, _hung_up)
    try:
        yield stop
    finally:
        for number in (*_STOPPING, signal.SIGHUP):
            loop.remove_signal_handler(number)


def _hung_up() -> None:
    remedy = "send SIGTERM to end the process; certificates and revocation lists are read again by themselves"
    log_event(_logger, "hangup_passed_over", remedy=remedy)


async def run_until(stop: asyncio.Event, work: Coroutine[Any, Any, None]) -> bool:
    """Run ``work``; return whether it finished. When ``stop`` is set first, ``work`` is cancelled and waited for.

    An error of ``work`` is raised here, also when it happens while being cancelled.
    """
    working = asyncio.create_task(work)
    stopping = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait({working, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            working.result()
            return True
    finally:
        stopping.cancel()
        working.cancel()
        await asyncio.wait({working, stopping})
    if not working.cancelled():
        working.result()
    return False
