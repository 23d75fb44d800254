"""Who is calling, and what happens when a handler raises?"""

import inspect
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any

import grpc

from hushtune_common.errors import HushtuneError, NotYours, ProtocolFault
from hushtune_common.logs import log_event
from hushtune_common.messages import Caller, Role
from hushtune_common.wire import faults

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


class Gatekeeper(grpc.aio.ServerInterceptor):
    """Refuses callers without identity, and turns what handlers raise into statuses. All four arities."""

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
        serializers = {
            "request_deserializer": handler.request_deserializer,
            "response_serializer": handler.response_serializer,
        }
        if handler.request_streaming and handler.response_streaming:
            return grpc.stream_stream_rpc_method_handler(_streaming(handler.stream_stream, method), **serializers)
        if handler.request_streaming:
            return grpc.stream_unary_rpc_method_handler(_single(handler.stream_unary, method), **serializers)
        if handler.response_streaming:
            return grpc.unary_stream_rpc_method_handler(_streaming(handler.unary_stream, method), **serializers)
        return grpc.unary_unary_rpc_method_handler(_single(handler.unary_unary, method), **serializers)


def _single(inner: Callable[..., Awaitable[Any]], method: str) -> Callable[..., Awaitable[Any]]:
    async def call(request: Any, context: Any) -> Any:
        try:
            caller_of(context)
            return await inner(request, context)
        except grpc.aio.BaseError:
            raise  # the handler has ended the call itself
        except Exception as error:
            return await _refuse(context, method, error)

    return call


def _streaming(inner: Callable[..., Any], method: str) -> Callable[..., Any]:
    # grpc.aio tells generators from handlers that write to the context by the function's kind, so the kind is kept.
    if inspect.iscoroutinefunction(inner):
        return _single(inner, method)

    async def stream(request: Any, context: Any) -> AsyncIterator[Any]:
        try:
            caller_of(context)
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
        _logger.error("call_failed", exc_info=error, extra={"hushtune_fields": {"incident": incident, "method": method}})
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
