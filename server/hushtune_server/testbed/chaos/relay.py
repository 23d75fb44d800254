"""What can go wrong with the messages between two processes, beneath TLS? A relay that has the keys of both ends.

Nobody between two peers can change a message under TLS unnoticed. To see what a peer makes of one that was damaged before it was
sealed (bad memory, a faulty middlebox that ends TLS), the relay ends the caller's TLS with the server's own kit and opens another
one to the server with the caller's kit. Calls pass through as bytes; no message is understood, but for its size and for one text.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

import grpc

from hushtune_common.clock import Clock
from hushtune_common.config import TimingConfig
from hushtune_common.messages import Role
from hushtune_common.wire import endpoint
from hushtune_common.wire.endpoint import Kit, Server, connect

_END: Any = vars(grpc.aio)["EOF"]  # exported, but missing from its type stubs
_RELEASE_S = 5.0
_BIG_BYTES = 4096
"""A message above this is a part of a blob, and its middle is the part's content."""


@dataclass(slots=True)
class Mischief:
    """What a relay does, and what it has done. Methods are given by their last name, such as ``Write``.

    ``lose_replies`` of which the next reply is received and not passed on; ``damage_parts`` is how many writes are still to have
    their next part damaged; ``other_digest`` (64 hexadecimal digits) takes the place of the digest in every blob's name;
    ``stall_after`` parts a write stands still and is not ended from here; the connection and its pings go on.
    """

    lose_replies: set[str] = field(default_factory=set[str])
    damage_parts: int = 0
    other_digest: bytes = b""
    stall_after: int | None = None
    replies_lost: list[str] = field(default_factory=list[str])
    parts_damaged: int = 0
    stalled: int = 0
    calls: list[str] = field(default_factory=list[str])


class Relay(grpc.GenericRpcHandler):
    """Passes every call on to a server; made by `open_relay`."""

    def __init__(self, mischief: Mischief) -> None:
        """Do ``mischief`` to what passes."""
        self.mischief = mischief
        self._channel: grpc.aio.Channel | None = None
        self._released = asyncio.Event()
        self._left: dict[asyncio.Future[Any], Any] = {}

    async def release(self) -> None:
        """End the calls that were left standing, and wait until nothing of them runs any more."""
        self._released.set()
        for call in self._left.values():
            call.cancel()
        if self._left:
            await asyncio.wait([*self._left], timeout=_RELEASE_S)

    def point_at(self, channel: grpc.aio.Channel) -> None:
        """Pass calls on over ``channel`` from now on."""
        self._channel = channel

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        """Return the handler of any method: messages up and down as they come."""
        method = str(handler_call_details.method)

        async def handle(requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
            async with aclosing(self._passed(method, requests, context)) as responses:
                async for response in responses:
                    yield response

        return grpc.stream_stream_rpc_method_handler(handle)

    async def _passed(self, method: str, requests: AsyncIterator[bytes], context: Any) -> AsyncGenerator[bytes]:
        name = method.rpartition("/")[2]
        self.mischief.calls.append(name)
        stalled = self.mischief.stalled
        if self._channel is None:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the relay leads nowhere")
            return
        upward = self._changed(name, requests)
        call: Any = self._channel.stream_stream(method)(upward, timeout=context.time_remaining())
        try:
            while (response := await self._read(call)) is not _END:
                if name in self.mischief.lose_replies:
                    self.mischief.lose_replies.discard(name)
                    self.mischief.replies_lost.append(name)
                    await context.abort(grpc.StatusCode.UNAVAILABLE, "the connection was lost")
                yield response
        except grpc.aio.AioRpcError as error:
            await context.abort(error.code(), error.details() or "", tuple(error.trailing_metadata() or ()))
        finally:
            if stalled == self.mischief.stalled:
                call.cancel()  # whoever stalls does not hang up either: the server has to

    async def _read(self, call: Any) -> Any:
        """Return the next response. Shielded: a read that is cancelled ends its call, and a stalled one is not ours to end."""
        reading = asyncio.ensure_future(call.read())
        self._left[reading] = call
        reading.add_done_callback(self._seen)
        return await asyncio.shield(reading)

    def _seen(self, task: "asyncio.Future[Any]") -> None:
        self._left.pop(task, None)
        if not task.cancelled():
            task.exception()  # whoever waited for it has it, or nobody does any more

    async def _changed(self, name: str, requests: AsyncIterator[bytes]) -> AsyncGenerator[bytes]:
        mischief, parts, damaged = self.mischief, 0, False
        async for request in requests:
            message = request
            if mischief.other_digest:
                message = _renamed(message, mischief.other_digest)
            if name == "Write" and len(message) > _BIG_BYTES:
                if mischief.stall_after is not None and parts >= mischief.stall_after:
                    mischief.stall_after = None
                    mischief.stalled += 1
                    await self._released.wait()  # the call is given up by the server, long before
                    return
                if mischief.damage_parts > 0 and not damaged:
                    damaged = True
                    mischief.damage_parts -= 1
                    mischief.parts_damaged += 1
                    message = _flipped(message)
                parts += 1
            yield message


class OpenRelay:
    """A relay that listens, and its way to the server."""

    def __init__(self, relay: Relay, server: Server, *, role: Role, kit: Kit, timing: TimingConfig) -> None:
        """Use `open_relay`."""
        self.mischief = relay.mischief
        self.address = server.address
        self._relay = relay
        self._server = server
        self._role = role
        self._kit = kit
        self._timing = timing
        self._channel: grpc.aio.Channel | None = None

    async def point_at(self, address: str) -> None:
        """Lead to the server at ``address`` from now on, as the caller."""
        before, self._channel = self._channel, connect(address, role=self._role, kit=self._kit, timing=self._timing)
        self._relay.point_at(self._channel)
        if before is not None:
            await before.close()

    async def close(self) -> None:
        """Stop listening and hang up."""
        await self._relay.release()
        await self._server.stop(0.0)
        if self._channel is not None:
            await self._channel.close()


async def open_relay(*, role: Role, server: Kit, caller: Kit, timing: TimingConfig, clock: Clock) -> OpenRelay:
    """Listen on a free port as the server of ``role`` with its kit; calls go on with the ``caller``'s kit."""
    relay = Relay(Mischief())

    def register(target: grpc.aio.Server) -> None:
        target.add_generic_rpc_handlers((relay,))

    listening = await endpoint.serve([register], names=[], listen="127.0.0.1:0", kit=server, clock=clock, timing=timing)
    return OpenRelay(relay, listening, role=role, kit=caller, timing=timing)


def _flipped(message: bytes) -> bytes:
    middle = len(message) // 2
    return message[:middle] + bytes([message[middle] ^ 0x01]) + message[middle + 1 :]


def _renamed(message: bytes, digest: bytes) -> bytes:
    """Return the message with the digest of the blob name that it carries replaced; names end in ``/DIGEST/SIZE``."""
    head, slash, rest = message.partition(b"/")
    while slash:
        if len(rest) > len(digest) and rest[len(digest) : len(digest) + 1] == b"/" and _is_hex(rest[: len(digest)]):
            return head + slash + digest + rest[len(digest) :]
        more, slash, rest = rest.partition(b"/")
        head = head + b"/" + more
    return message


def _is_hex(text: bytes) -> bool:
    return all(character in b"0123456789abcdef" for character in text)
