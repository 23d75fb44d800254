"""How does a parent speak with the training child? A process and a pipe: JSON to it, JSON from it."""

import asyncio
import contextlib
import json
import signal
import socket
import subprocess
import sys
from collections.abc import Generator
from multiprocessing.connection import Connection
from typing import Any

from hushtune_common.errors import TrainerFailed

MESSAGE_BYTES_MAX = 65_536
STOP_S = 1.0
"""How long a terminated child may take before it is killed; twice this bounds ``stop``."""
_STANDARD_ERROR = 2


class Child:
    """A child process and the parent's end of its pipe."""

    def __init__(self) -> None:
        """Start it; standard output is the parent's log, so it writes to standard error."""
        ours, theirs = socket.socketpair()
        with theirs:
            number = theirs.fileno()
            # -P: nothing in the current folder may stand in for a module of ours.
            command = [sys.executable, "-P", "-m", "hushtune_client.training_child", str(number)]
            # Ctrl-C reaches every process of a terminal; only the parent answers it, and it stops the child in order.
            with _blocked(signal.SIGINT):
                self.process = subprocess.Popen(  # noqa: S603 - a fixed command
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=_STANDARD_ERROR,
                    pass_fds=[number],
                )
        self.connection = Connection(ours.detach())

    @property
    def alive(self) -> bool:
        """Whether the process still runs."""
        return self.process.poll() is None

    async def ended(self, *, within_s: float) -> bool:
        """Wait for the end; return false when it did not come in time."""
        try:
            await asyncio.to_thread(self.process.wait, within_s)
        except subprocess.TimeoutExpired:
            return False
        return True

    async def send(self, data: bytes) -> None:
        """Send one message; `TrainerFailed` when nobody reads any more."""
        try:
            self.connection.send_bytes(data)
        except OSError as error:
            raise await self._death() from error

    async def receive(self) -> dict[str, Any]:
        """Wait for one message; `TrainerFailed` when the child has died."""
        await _readable(self.connection.fileno())
        try:
            body = json.loads(self.connection.recv_bytes(MESSAGE_BYTES_MAX))
        except (EOFError, OSError) as error:
            raise await self._death() from error
        if not isinstance(body, dict):
            raise TrainerFailed("the training process sent something that is not an object")
        return body

    async def _death(self) -> TrainerFailed:
        await self.ended(within_s=STOP_S)
        return TrainerFailed(f"the training process died (exit code {self.process.returncode}); its standard error says more")


async def _readable(descriptor: int) -> None:
    loop = asyncio.get_running_loop()
    arrived: asyncio.Future[None] = loop.create_future()

    def wake() -> None:
        if not arrived.done():
            arrived.set_result(None)

    loop.add_reader(descriptor, wake)
    try:
        await arrived
    finally:
        loop.remove_reader(descriptor)


@contextlib.contextmanager
def _blocked(kind: signal.Signals) -> Generator[None]:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {kind})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
