"""How much of a transfer may be on its way at once? As much as the way carries in a small part of ``idle_s``.

Whatever was sent and has not arrived (in buffers of sockets, of gRPC, of the network) delays everything behind it: the answer
to a keepalive ping, too, which is taken for a lost connection when it is late. gRPC bounds this by a flow-control window that it
opens to many megabytes on any way, and it counts a connection as alive only if pings are answered, not if bytes arrive. On a link
of 16 kB/s a megabyte is a minute. So a transfer goes in legs: small at first, larger as long as they arrive quickly.
"""

import asyncio
from collections.abc import Awaitable, Callable

from hushtune_common.clock import Clock
from hushtune_common.errors import DeadlineExceeded

LEG_BYTES_MIN = 16 << 10
LEG_BYTES_MAX = 8 << 20

_SHARE = 1 / 16
"""What is on its way is to arrive within this share of ``idle_s``: a ping behind it has two thirds."""
_GROWTH, _GROWTH_AFTER_A_CUT = 64, 2
_REQUEST_BYTES = 384
"""What a small request takes on its way at least, with the headers of its layers."""


class Pace:
    """How long a leg may be, from how long the last one took.

    Laws: a leg has `LEG_BYTES_MIN` to `LEG_BYTES_MAX` bytes; on a way of constant rate legs settle at what arrives in a sixteenth
    of ``idle_s``, or at the shortest. A way that let a burst through, seemed fast, and then lost the connection, loses it once:
    after that legs at most double.
    """

    def __init__(self, *, idle_s: float) -> None:
        """Begin with the shortest leg: nothing is known about the way."""
        self._wanted_s = idle_s * _SHARE
        self._growth = _GROWTH
        self.leg_bytes = LEG_BYTES_MIN

    def answered(self, seconds: float) -> None:
        """Note how long a small request took: a slow way shows in that already, and a fast one may begin with longer legs."""
        if self._growth == _GROWTH:
            self._set(_REQUEST_BYTES * self._wanted_s / max(seconds, 1e-6))

    def took(self, seconds: float) -> None:
        """Note how long a whole leg was on its way, what was sent before it and had not arrived yet included."""
        self._set(self.leg_bytes * min(self._growth, self._wanted_s / max(seconds, 1e-6)))

    def cut(self) -> None:
        """Note that a try has ended early: begin anew, and grow slowly from now on."""
        self.leg_bytes, self._growth = LEG_BYTES_MIN, _GROWTH_AFTER_A_CUT

    def _set(self, wanted: float) -> None:
        self.leg_bytes = int(min(LEG_BYTES_MAX, max(LEG_BYTES_MIN, wanted)))


class Legs:
    """Keeps an upload from having more than two legs on its way: one is confirmed while the next is sent, and no way runs dry.

    After a leg the peer is asked something that it answers at once, over the same connection: the answer says that the leg has
    come through. One question is open at a time.
    """

    def __init__(self, pace: Pace, *, ask: Callable[[], Awaitable[object]], clock: Clock) -> None:
        """Measure with ``clock``; nothing has been sent yet."""
        self._pace = pace
        self._ask = ask
        self._clock = clock
        self._began_s = clock.monotonic()
        self._sent = 0
        self._asked: asyncio.Future[None] | None = None

    @property
    def leg_bytes(self) -> int:
        """How long the leg is that is being sent."""
        return self._pace.leg_bytes

    async def sent(self, count: int, *, over: "asyncio.Future[object]", idle_s: float) -> None:
        """Note ``count`` more bytes, and when a leg is full, wait for the one before; `DeadlineExceeded` after ``idle_s``.

        ``over`` ends with the upload: nothing is waited for then, its own answer says why. Raises what ``ask`` does.
        """
        self._sent += count
        if self._asked is not None and (self._asked.done() or self._sent >= self._pace.leg_bytes):
            await self._confirmed(self._asked, over=over, idle_s=idle_s)
        if self._asked is None and self._sent >= self._pace.leg_bytes:
            self._asked = asyncio.ensure_future(self._timed(self._began_s))
            self._began_s, self._sent = self._clock.monotonic(), 0

    async def close(self) -> None:
        """Wait for no answer any more."""
        if self._asked is not None:
            self._asked.cancel()
            await asyncio.wait({self._asked})
            if not self._asked.cancelled():
                self._asked.exception()  # seen: the upload's own answer is what counts

    async def _confirmed(self, asked: "asyncio.Future[None]", *, over: "asyncio.Future[object]", idle_s: float) -> None:
        await asyncio.wait({asked, over}, timeout=idle_s, return_when=asyncio.FIRST_COMPLETED)
        if over.done():
            return
        if not asked.done():
            raise DeadlineExceeded(f"nothing moved for {idle_s:g} s")
        asked.result()
        self._asked = None

    async def _timed(self, began_s: float) -> None:
        await self._ask()
        self._pace.took(self._clock.monotonic() - began_s)
