"""Which signals end a process in order, and which one does not?"""

import asyncio
import logging
import os
import signal

import pytest

from hushtune_common.wire.lifetime import run_until, stop_signal


async def ends(*numbers: signal.Signals) -> bool:
    """Return whether work is still waited for after these signals; they are sent in the middle of it."""

    async def work() -> None:
        for number in numbers:
            os.kill(os.getpid(), number)
        for _ in range(10):
            await asyncio.sleep(0)

    with stop_signal() as stop:
        return await run_until(stop, work())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_process_that_is_told_to_stop_gives_up_its_work(number: signal.Signals):
    assert not asyncio.run(ends(number))


def test_a_closed_terminal_ends_nothing_and_is_logged(caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.INFO):
        assert asyncio.run(ends(signal.SIGHUP))
    assert [record.getMessage() for record in caplog.records].count("hangup_passed_over") == 1
