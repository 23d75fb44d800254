"""A network between production stubs and production servicers, without sockets: calls are late, break, come twice, are damaged.

A message of one call never overtakes another one of the same call, as on a connection; those of different calls do. What breaks
is a connection: the caller learns it at once, the called may learn it much later, or when its own patience ends.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

import grpc
import numpy as np

from hushtune_common.messages import Caller
from hushtune_common.wire.interceptors import Gatekeeper

_LATE_S = 400.0


@dataclass(frozen=True, kw_only=True)
class NetworkWeather:
    """How bad the network is: the longest delay of a message, the share of messages at which a connection breaks, of broken
    connections that the called does not hear of, of answered calls that are made twice, and of parts that arrive damaged."""

    delay_s: float
    breaks: float
    half_open: float
    twice: float
    damage: float


CALM = NetworkWeather(delay_s=0.01, breaks=0.0, half_open=0.0, twice=0.0, damage=0.0)


class _Status(Exception):
    """The servicer ended the call with this status."""

    def __init__(self, status: Any) -> None:
        super().__init__(str(status))
        self.status = status


class _Context:
    """What a servicer is told about a call."""

    def __init__(self, caller: Caller) -> None:
        self._caller = caller

    def auth_context(self) -> dict[str, list[bytes]]:
        return {"peer_uri": [self._caller.uri.encode()]}

    def peer(self) -> str:
        return "simulated"

    async def abort_with_status(self, status: Any) -> None:
        raise _Status(status)


class Host:
    """Where servicers live: up or down; what runs in it ends when it goes down."""

    def __init__(self) -> None:
        self.up = False
        self._handlers: dict[str, Any] = {}
        self._tasks: dict[asyncio.Task[Any], None] = {}

    async def serve(self, *registrations: Callable[[Any], None]) -> None:
        """Come up with these servicers, behind the interceptor that all of ours stand behind."""
        self._handlers = {}
        for register in registrations:
            register(self)
        for path, handler in list(self._handlers.items()):
            self._handlers[path] = await self._guarded(path, handler)
        self.up = True

    def add_generic_rpc_handlers(self, handlers: object) -> None:
        """Part of what a server is registered with; the other part has all that is needed."""

    def add_registered_method_handlers(self, service: str, handlers: dict[str, Any]) -> None:
        self._handlers |= {f"/{service}/{name}": handler for name, handler in handlers.items()}

    def handler(self, path: str) -> Any:
        return self._handlers[path]

    def spawn(self, work: Any) -> "asyncio.Task[Any]":
        task = asyncio.ensure_future(work)
        self._tasks[task] = None
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: "asyncio.Task[Any]") -> None:
        self._tasks.pop(task, None)

    def crash(self) -> None:
        """Go down at once."""
        self.up = False
        for task in list(self._tasks):
            task.cancel()

    async def _guarded(self, path: str, handler: Any) -> Any:
        async def found(_: Any) -> Any:
            return handler

        class Details:
            method = path

        return await Gatekeeper().intercept_service(found, Details())  # type: ignore[arg-type]


class Channel:
    """What a production stub calls through, as one caller."""

    def __init__(self, host: Host, *, caller: Caller, rng: np.random.Generator, weather: Callable[[], NetworkWeather]) -> None:
        self._host = host
        self._caller = caller
        self._rng = rng
        self._weather = weather

    def unary_unary(self, path: str, **about: Any) -> Callable[..., Any]:
        async def call(request: Any, **_: Any) -> Any:
            if self._happens(self._weather().twice):
                await self._ask(path, about, request)
            return await self._ask(path, about, request)

        return call

    async def _ask(self, path: str, about: dict[str, Any], request: Any) -> Any:
        answers = [a async for a in self._stream(path, about, self._given(request), single_request=True)]
        return answers[0]

    def unary_stream(self, path: str, **about: Any) -> Callable[..., Any]:
        def call(request: Any, **_: Any) -> "_Streaming":
            return _Streaming(self._stream(path, about, self._given(request), single_request=True))

        return call

    def stream_unary(self, path: str, **about: Any) -> Callable[..., Any]:
        def call(**_: Any) -> "_Sending":
            return _Sending(lambda requests: self._stream(path, about, requests, single_request=False))

        return call

    def stream_stream(self, path: str, **about: Any) -> Callable[..., Any]:
        def call(requests: AsyncIterator[Any], **_: Any) -> "_Streaming":
            return _Streaming(self._stream(path, about, requests, single_request=False))

        return call

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        return grpc.ChannelConnectivity.READY

    async def wait_for_state_change(self, state: grpc.ChannelConnectivity) -> None:
        await asyncio.get_running_loop().create_future()

    async def _given(self, request: Any) -> AsyncIterator[Any]:
        yield request

    def _happens(self, share: float) -> bool:
        return share > 0.0 and float(self._rng.random()) < share

    async def _pass(self) -> bool:
        """Let a message travel; whether the connection broke under it."""
        await asyncio.sleep(self._weather().delay_s * float(self._rng.random()))
        return self._happens(self._weather().breaks)

    async def _stream(
        self, path: str, serializers: dict[str, Any], requests: AsyncIterator[Any], *, single_request: bool
    ) -> AsyncIterator[Any]:
        """Make one call: requests flow up while responses flow down."""
        upward: asyncio.Queue[bytes | None] = asyncio.Queue()
        downward: asyncio.Queue[Any] = asyncio.Queue()
        if await self._pass() or not self._host.up:
            raise _broken("connection refused")
        called = self._host.spawn(self._serve(path, upward, downward, single_request=single_request))
        sender = asyncio.ensure_future(self._send(requests, serializers["request_serializer"], upward, downward))
        try:
            while True:
                kind, value = await downward.get()
                if kind == "broken" or await self._pass():
                    raise _broken("connection lost")
                if kind == "status":
                    raise value
                if kind == "end":
                    return
                yield serializers["response_deserializer"](value)
        finally:
            sender.cancel()
            if self._happens(self._weather().half_open):
                asyncio.get_running_loop().call_later(_LATE_S * float(self._rng.random()), called.cancel)
            else:
                called.cancel()

    async def _send(self, requests: AsyncIterator[Any], serialize: Callable[[Any], bytes], upward: Any, downward: Any) -> None:
        async for request in requests:
            if await self._pass():
                downward.put_nowait(("broken", None))
                return
            upward.put_nowait(self._damaged(request, serialize))
        upward.put_nowait(None)

    def _damaged(self, request: Any, serialize: Callable[[Any], bytes]) -> bytes:
        data: bytes = getattr(request, "data", b"")
        if data and self._happens(self._weather().damage):
            at, bit = int(self._rng.integers(len(data))), 1 << int(self._rng.integers(8))
            other = type(request)()
            other.CopyFrom(request)
            other.data = data[:at] + bytes([data[at] ^ bit]) + data[at + 1 :]
            request = other
        return serialize(request)

    async def _serve(self, path: str, upward: Any, downward: Any, *, single_request: bool) -> None:
        handler, context = self._host.handler(path), _Context(self._caller)

        async def arriving() -> AsyncIterator[Any]:
            while (message := await upward.get()) is not None:
                yield handler.request_deserializer(message)

        try:
            requests: Any = arriving()
            if single_request:
                requests = await anext(requests)
            if handler.response_streaming:
                act = handler.stream_stream if handler.request_streaming else handler.unary_stream
                async for response in act(requests, context):
                    downward.put_nowait(("message", handler.response_serializer(response)))
            else:
                act = handler.stream_unary if handler.request_streaming else handler.unary_unary
                response = await act(requests, context)
                downward.put_nowait(("message", handler.response_serializer(response)))
            downward.put_nowait(("end", None))
        except _Status as ended:
            downward.put_nowait(("status", _error_of(ended.status)))
        except asyncio.CancelledError:
            downward.put_nowait(("broken", None))
            raise


class _Streaming:
    """A call whose responses are iterated."""

    def __init__(self, responses: AsyncIterator[Any]) -> None:
        self._responses = responses

    def __aiter__(self) -> AsyncIterator[Any]:
        return self._responses

    def cancel(self) -> None:
        """The iterator is closed by whoever drops it."""


class _Sending:
    """A call that is written to, and then awaited."""

    def __init__(self, call: Callable[[AsyncIterator[Any]], AsyncIterator[Any]]) -> None:
        self._queue: asyncio.Queue[Any] = asyncio.Queue(maxsize=1)
        self._task = asyncio.ensure_future(self._answer(call))

    async def write(self, request: Any) -> None:
        await self._put(request)

    async def done_writing(self) -> None:
        await self._put(None)

    def __await__(self) -> Any:
        return self._task.__await__()

    async def code(self) -> grpc.StatusCode:
        """Return how the call has ended, once it has."""
        await asyncio.wait((self._task,))
        if self._task.cancelled():
            return grpc.StatusCode.CANCELLED
        error = self._task.exception()
        return error.code() if isinstance(error, grpc.aio.AioRpcError) else grpc.StatusCode.OK

    def cancel(self) -> None:
        self._task.cancel()
        self._task.add_done_callback(lambda task: task.cancelled() or task.exception())

    async def _put(self, item: Any) -> None:
        putting = asyncio.ensure_future(self._queue.put(item))
        await asyncio.wait((putting, self._task), return_when=asyncio.FIRST_COMPLETED)
        if not putting.done():
            putting.cancel()
            raise asyncio.InvalidStateError("the call is over")

    async def _answer(self, call: Callable[[AsyncIterator[Any]], AsyncIterator[Any]]) -> Any:
        async def requests() -> AsyncIterator[Any]:
            while (item := await self._queue.get()) is not None:
                yield item

        answers = [answer async for answer in call(requests())]
        return answers[0]


def _broken(problem: str) -> grpc.aio.AioRpcError:
    return grpc.aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, grpc.aio.Metadata(), grpc.aio.Metadata(), details=problem)


def _error_of(status: Any) -> grpc.aio.AioRpcError:
    return grpc.aio.AioRpcError(
        status.code, grpc.aio.Metadata(), grpc.aio.Metadata(*status.trailing_metadata), details=status.details
    )
