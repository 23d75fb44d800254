"""Who is calling, may it still, and what happens when a handler raises?"""

import asyncio
import inspect
import logging
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Sequence
from contextlib import AbstractContextManager, aclosing, contextmanager
from typing import Any

import grpc

from hushtune_common.errors import HushtuneError, LimitExceeded, NotYours, ProtocolFault
from hushtune_common.logs import log_defect, log_event
from hushtune_common.messages import Caller, Role
from hushtune_common.wire import faults
from hushtune_common.wire.revocation import Revocations, peer_serial

CALLS_MAX = 256
"""Calls of one caller at the same time, unless a scenario says otherwise."""

_HEALTH = "/grpc.health.v1.Health/Check"
_logger = logging.getLogger(__name__)


def caller_of(context: Any, *roles: Role) -> Caller:
    """Return the identity in the peer's certificate; ``NotYours`` without one, or when ``roles`` are given and it has none.

    Nothing in a request is ever believed about who is calling.
    """
    uris = [bytes(uri) for uri in context.auth_context().get("peer_uri", ())]
    if len(uris) != 1:
        raise NotYours(f"a Hushtune certificate names exactly one identity, this one {len(uris)}")
    try:
        caller = Caller.from_uri(uris[0].decode("ascii"))
    except ValueError as error:
        raise NotYours(f"the certificate carries no Hushtune identity: {error}") from None
    if roles and caller.role not in roles:
        raise NotYours(f"{caller.uri} may not do this; {' and '.join(roles)} may")
    return caller


_Guard = Callable[[Any], AbstractContextManager[None]]
"""Lets the caller of a context in, for as long as its call lasts."""


class Gatekeeper(grpc.aio.ServerInterceptor):
    """Refuses callers without identity or with a revoked certificate, and turns what handlers raise into statuses.

    All four arities. ``about`` is metadata that goes with the answer to a health check: what a doctor asks of a server.
    """

    def __init__(
        self,
        revocations: Revocations | None = None,
        *,
        about: Callable[[], Sequence[tuple[str, str]]] = tuple,
        calls_max: int = CALLS_MAX,
    ) -> None:
        """Take the list to go by; without one only the authority's signature and the dates count.

        One caller has at most ``calls_max`` calls at the same time, whatever the number of its connections.
        """
        self._calls_max = calls_max
        self._running: Counter[Caller] = Counter()
        self._revocations = revocations
        self._about = about
        self._calls: dict[asyncio.Task[Any], int] = {}
        self._cut: set[asyncio.Task[Any]] = set()

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Wrap the handler of one call."""
        handler = await continuation(handler_call_details)
        if handler is None:
            return handler
        method = str(handler_call_details.method)
        guard = self._told if method == _HEALTH else self._admitted
        serializers = {
            "request_deserializer": handler.request_deserializer,
            "response_serializer": handler.response_serializer,
        }
        if handler.request_streaming and handler.response_streaming:
            return grpc.stream_stream_rpc_method_handler(_streaming(handler.stream_stream, method, guard), **serializers)
        if handler.request_streaming:
            return grpc.stream_unary_rpc_method_handler(_single(handler.stream_unary, method, guard), **serializers)
        if handler.response_streaming:
            return grpc.unary_stream_rpc_method_handler(_streaming(handler.unary_stream, method, guard), **serializers)
        return grpc.unary_unary_rpc_method_handler(_single(handler.unary_unary, method, guard), **serializers)

    def end_revoked(self) -> None:
        """End the running calls whose caller's certificate is on the list by now; each of them hears why."""
        revocations = self._revocations
        for task, serial in self._calls.items():
            if revocations is not None and revocations.is_revoked(serial) and task not in self._cut:
                self._cut.add(task)
                task.cancel()

    @contextmanager
    def _counted(self, caller: Caller) -> Generator[None]:
        if self._running[caller] >= self._calls_max:
            raise LimitExceeded(f"{caller.uri} has {self._calls_max} calls here, which is limits.calls_max; let some of them end")
        self._running[caller] += 1
        try:
            yield
        finally:
            self._running[caller] -= 1
            if not self._running[caller]:
                del self._running[caller]

    @contextmanager
    def _admitted(self, context: Any) -> Generator[None]:
        caller = caller_of(context)
        with self._counted(caller), self._not_revoked(caller, context):
            yield

    @contextmanager
    def _not_revoked(self, caller: Caller, context: Any) -> Generator[None]:
        task = asyncio.current_task()
        if self._revocations is None or task is None:
            yield
            return
        serial = peer_serial(context)
        self._revocations.require_good(caller, serial)
        self._calls[task] = serial
        try:
            yield
        except asyncio.CancelledError:
            if task in self._cut:
                task.uncancel()  # the call ends by a refusal, which is still to be sent
                self._revocations.require_good(caller, serial)
            raise
        finally:
            self._calls.pop(task, None)
            self._cut.discard(task)

    @contextmanager
    def _told(self, context: Any) -> Generator[None]:
        with self._admitted(context):
            context.set_trailing_metadata(tuple(self._about()))
            yield


def _single(inner: Callable[..., Awaitable[Any]], method: str, guard: _Guard) -> Callable[..., Awaitable[Any]]:
    async def call(request: Any, context: Any) -> Any:
        try:
            with guard(context):
                return await inner(request, context)
        except grpc.aio.BaseError:
            raise  # the handler has ended the call itself
        except Exception as error:
            return await _refuse(context, method, error)

    return call


def _streaming(inner: Callable[..., Any], method: str, guard: _Guard) -> Callable[..., Any]:
    # grpc.aio tells generators from handlers that write to the context by the function's kind, so the kind is kept.
    if inspect.iscoroutinefunction(inner):
        return _single(inner, method, guard)

    async def stream(request: Any, context: Any) -> AsyncIterator[Any]:
        try:
            with guard(context):
                async with aclosing(inner(request, context)) as responses:
                    async for response in responses:
                        yield response
        except grpc.aio.BaseError:
            raise
        except Exception as error:
            await _refuse(context, method, error)

    return stream


async def _refuse(context: Any, method: str, error: Exception) -> None:
    fault = faults.to_status(error)
    _, reason, _, metadata = fault
    if "incident" in metadata:
        incident = metadata["incident"]
        log_defect(_logger, "call_failed", error, incident=incident, method=method)
    elif isinstance(error, HushtuneError):
        level = logging.WARNING if isinstance(error, ProtocolFault) else logging.INFO
        who, text = _shown_caller(context), str(error)
        log_event(_logger, "call_refused", level=level, reason=reason, method=method, caller=who, problem=text)
    await faults.abort_as(context, fault)


def _shown_caller(context: Any) -> str:
    try:
        return caller_of(context).uri
    except NotYours:
        return str(context.peer())
