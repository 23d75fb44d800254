"""How many calls are there, how do they end, and how long do they take? Told by interceptors on both sides."""

import asyncio
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any, Final

import grpc

from hushtune_common.clock import Clock
from hushtune_common.metrics.metric import OTHER
from hushtune_common.metrics.table import METHODS
from hushtune_common.metrics.watch import Calls

_BY_NUMBER: Final = {code.value[0]: code.name for code in grpc.StatusCode}


def split(path: str) -> tuple[str, str]:
    """Return service and method of ``/hushtune.v1.Air/Sound``, both ``other`` unless it is ours: a peer chooses the path."""
    package, _, method = path.strip("/").partition("/")
    service = package.rpartition(".")[2]
    return (service, method) if method in METHODS.get(service, ()) else (OTHER, OTHER)


class _Timed:
    """One call, from its beginning to its end, which is told once."""

    def __init__(self, calls: Calls, *, clock: Clock, side: str, path: str) -> None:
        self._calls = calls
        self._clock = clock
        self._who = {"side": side, **dict(zip(("service", "method"), split(path), strict=True))}
        self._began_s = clock.monotonic()
        calls.began(**self._who)

    def ended(self, status: str) -> None:
        self._calls.ended(**self._who, status=status, seconds=self._clock.monotonic() - self._began_s)


class ServerCalls(grpc.aio.ServerInterceptor):
    """Tells of every call that this process answers; outside of all other interceptors, so that it sees what callers see."""

    def __init__(self, calls: Calls, *, clock: Clock) -> None:
        """Tell ``calls``, by ``clock``."""
        self._calls = calls
        self._clock = clock

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Wrap the handler of one call; a method that there is not has none, and is told as unimplemented."""
        handler = await continuation(handler_call_details)
        path = str(handler_call_details.method)
        if handler is None:
            self._timed(path).ended("UNIMPLEMENTED")
            return None
        kind = f"{'stream' if handler.request_streaming else 'unary'}_{'stream' if handler.response_streaming else 'unary'}"
        inner = getattr(handler, kind)
        streams = handler.response_streaming and not inspect.iscoroutinefunction(inner)
        make = getattr(grpc, f"{kind}_rpc_method_handler")
        return make(
            (self._stream if streams else self._single)(inner, path),
            request_deserializer=handler.request_deserializer,
            response_serializer=handler.response_serializer,
        )

    def _timed(self, path: str) -> _Timed:
        return _Timed(self._calls, clock=self._clock, side="server", path=path)

    def _single(self, inner: Callable[..., Awaitable[Any]], path: str) -> Callable[..., Awaitable[Any]]:
        async def call(request: Any, context: Any) -> Any:
            timed, status = self._timed(path), "UNKNOWN"
            try:
                answer = await inner(request, context)
                status = _said(context)
                return answer
            except BaseException as error:
                status = _failed(context, error)
                raise
            finally:
                timed.ended(status)

        return call

    def _stream(self, inner: Callable[..., Any], path: str) -> Callable[..., Any]:
        async def stream(request: Any, context: Any) -> AsyncIterator[Any]:
            timed, status = self._timed(path), "CANCELLED"  # also what a stream is that nobody reads to its end
            try:
                async with aclosing(inner(request, context)) as answers:
                    async for answer in answers:
                        yield answer
                status = _said(context)
            except Exception as error:
                status = _failed(context, error)
                raise
            finally:
                timed.ended(status)

        return stream


def _said(context: Any) -> str:
    code = context.code()
    number = code.value[0] if isinstance(code, grpc.StatusCode) else code
    return _BY_NUMBER.get(number or 0, "UNKNOWN")


def _failed(context: Any, error: BaseException) -> str:
    if isinstance(error, asyncio.CancelledError):
        return "CANCELLED"
    said = _said(context)
    return "UNKNOWN" if said == "OK" else said


class _ClientCalls:
    """Tells of the calls of one channel; the call itself is handed on as it is, and only its end is listened for."""

    def __init__(self, calls: Calls, *, clock: Clock) -> None:
        self._calls = calls
        self._clock = clock

    async def _told(self, continuation: Callable[[Any, Any], Awaitable[Any]], details: Any, request: Any) -> Any:
        method = details.method
        timed = _Timed(
            self._calls, clock=self._clock, side="client", path=method.decode() if isinstance(method, bytes) else method
        )
        call = await continuation(details, request)

        def over(ended: Any) -> None:
            task = asyncio.ensure_future(_status(ended))
            task.add_done_callback(lambda status: timed.ended("CANCELLED" if status.cancelled() else status.result()))

        call.add_done_callback(over)
        return call


async def _status(call: Any) -> str:
    code = await call.code()
    return code.name if isinstance(code, grpc.StatusCode) else "UNKNOWN"


class _UnaryUnary(_ClientCalls, grpc.aio.UnaryUnaryClientInterceptor):  # pyright: ignore[reportMissingTypeArgument]
    async def intercept_unary_unary(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        return await self._told(continuation, client_call_details, request)


class _UnaryStream(_ClientCalls, grpc.aio.UnaryStreamClientInterceptor):  # pyright: ignore[reportMissingTypeArgument]
    async def intercept_unary_stream(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        return await self._told(continuation, client_call_details, request)


class _StreamUnary(_ClientCalls, grpc.aio.StreamUnaryClientInterceptor):  # pyright: ignore[reportMissingTypeArgument]
    async def intercept_stream_unary(self, continuation: Any, client_call_details: Any, request_iterator: Any) -> Any:
        return await self._told(continuation, client_call_details, request_iterator)


class _StreamStream(_ClientCalls, grpc.aio.StreamStreamClientInterceptor):  # pyright: ignore[reportMissingTypeArgument]
    async def intercept_stream_stream(self, continuation: Any, client_call_details: Any, request_iterator: Any) -> Any:
        return await self._told(continuation, client_call_details, request_iterator)


def client_calls(calls: Calls | None, *, clock: Clock) -> list[grpc.aio.ClientInterceptor]:
    """Return the interceptors of a channel that tell ``calls``; none where nobody asks."""
    if calls is None:
        return []
    kinds = (_UnaryUnary, _UnaryStream, _StreamUnary, _StreamStream)
    return [kind(calls, clock=clock) for kind in kinds]
