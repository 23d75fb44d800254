"""How does an exception travel, and which exception does a failed call mean? One table, both ways.

A refusal carries ``google.rpc.Status`` with ``ErrorInfo(reason, domain="hushtune")``; the reason names the exception class.
"""

import asyncio
import secrets
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import DecodeError, Message
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from hushtune_common import errors
from hushtune_common.errors import (
    DeadlineExceeded,
    HushtuneError,
    LimitExceeded,
    NotYours,
    OffsetMismatch,
    PeerLost,
    VersionMismatch,
)

DOMAIN = "hushtune"
_MESSAGE_CHARS_MAX = 500
_RETRY_S_MAX = 60.0
"""No peer makes us wait longer for one try."""

_Code = grpc.StatusCode

_TABLE: Mapping[type[HushtuneError], grpc.StatusCode] = {
    errors.InvalidEnvelope: _Code.INVALID_ARGUMENT,
    errors.MalformedUpdate: _Code.INVALID_ARGUMENT,
    errors.StaleRound: _Code.FAILED_PRECONDITION,
    errors.DigestMismatch: _Code.DATA_LOSS,
    errors.NotYours: _Code.PERMISSION_DENIED,
    errors.CertificateRevoked: _Code.PERMISSION_DENIED,
    errors.Replayed: _Code.ALREADY_EXISTS,
    errors.VersionMismatch: _Code.FAILED_PRECONDITION,
    errors.ScenarioMismatch: _Code.FAILED_PRECONDITION,
    errors.LimitExceeded: _Code.RESOURCE_EXHAUSTED,
    errors.UntrustedSigner: _Code.PERMISSION_DENIED,
    errors.Equivocation: _Code.FAILED_PRECONDITION,
    errors.ChannelOutage: _Code.ABORTED,
    errors.DeadlineExceeded: _Code.DEADLINE_EXCEEDED,
    errors.OffsetMismatch: _Code.OUT_OF_RANGE,
    errors.PartCorrupt: _Code.ABORTED,
    errors.PeerLost: _Code.UNAVAILABLE,
    errors.StorageFull: _Code.RESOURCE_EXHAUSTED,
    errors.Infeasible: _Code.FAILED_PRECONDITION,
    errors.QuorumMissed: _Code.FAILED_PRECONDITION,
    errors.SecrecyUnavailable: _Code.FAILED_PRECONDITION,
}
_BY_REASON: Mapping[str, type[HushtuneError]] = {kind.reason: kind for kind in _TABLE}
_RETRY_AFTER_S: Mapping[str, int] = {errors.StorageFull.reason: 5, errors.PeerLost.reason: 1}
_PUBLIC_TEXT: Mapping[str, str] = {errors.InvalidEnvelope.reason: "the update was refused"}
"""Fixed texts, where the reason itself would help an attacker."""

_WITHOUT_REASON: Mapping[grpc.StatusCode, type[HushtuneError]] = {
    _Code.UNAVAILABLE: PeerLost,
    _Code.CANCELLED: PeerLost,
    # Our handlers' defects carry a reason. Without one this is the library's own word for a connection that was cut, or a stream
    # that the peer ended, while a message was being sent (https://github.com/grpc/grpc/issues/36066).
    _Code.INTERNAL: PeerLost,
    _Code.UNKNOWN: PeerLost,
    _Code.DEADLINE_EXCEEDED: DeadlineExceeded,
    _Code.UNIMPLEMENTED: VersionMismatch,
    _Code.RESOURCE_EXHAUSTED: LimitExceeded,
    _Code.PERMISSION_DENIED: NotYours,
    _Code.UNAUTHENTICATED: NotYours,
}
"""What a status means when gRPC itself made it."""


def to_status(error: BaseException) -> tuple[grpc.StatusCode, str, str, dict[str, str]]:
    """Return status code, reason, public message and metadata; errors that are not for peers become ``INTERNAL``.

    The message of an ``INTERNAL`` carries a fresh incident id, which is in the metadata too, and nothing of the error.
    """
    kind = next((k for k in type(error).__mro__ if k in _TABLE), None)
    if kind is None or not isinstance(error, HushtuneError):
        incident = secrets.token_hex(6)
        return _Code.INTERNAL, HushtuneError.reason, f"internal error, incident {incident}", {"incident": incident}
    metadata = {"committed_size": str(error.committed_size)} if isinstance(error, OffsetMismatch) else {}
    message = _PUBLIC_TEXT.get(kind.reason, str(error) or kind.reason)[:_MESSAGE_CHARS_MAX]
    return _TABLE[kind], kind.reason, message, metadata


async def abort(context: Any, error: BaseException) -> NoReturn:
    """End the call of ``context`` (a servicer context) with the rich status of ``error``."""
    await abort_as(context, to_status(error))


async def abort_as(context: Any, fault: tuple[grpc.StatusCode, str, str, dict[str, str]]) -> NoReturn:
    """End the call with a status made by ``to_status``; for callers that log the incident id first."""
    code, reason, message, metadata = fault
    details = [_packed(error_details_pb2.ErrorInfo(reason=reason, domain=DOMAIN, metadata=metadata))]
    if reason in _RETRY_AFTER_S:
        delay = duration_pb2.Duration(seconds=_RETRY_AFTER_S[reason])
        details.append(_packed(error_details_pb2.RetryInfo(retry_delay=delay)))
    if reason == errors.MalformedUpdate.reason:
        field, _, problem = message.partition(": ")
        violation = error_details_pb2.BadRequest.FieldViolation(field=field, description=problem)
        details.append(_packed(error_details_pb2.BadRequest(field_violations=[violation])))
    status = status_pb2.Status(code=code.value[0], message=message, details=details)
    await context.abort_with_status(rpc_status.to_status(status))
    raise AssertionError("abort_with_status returned")


def from_rpc_error(error: grpc.aio.AioRpcError) -> HushtuneError:
    """Return the typed error that a failed call means: by its ``ErrorInfo``, else by its status."""
    found = _details(error)
    info = next((detail for detail in found if isinstance(detail, error_details_pb2.ErrorInfo)), None)
    message = error.details() or error.code().name
    if info is None or info.reason not in _BY_REASON:
        if info is not None and info.reason == HushtuneError.reason:
            return HushtuneError(message)
        return _WITHOUT_REASON.get(error.code(), HushtuneError)(f"{error.code().name}: {message}")
    if info.reason == OffsetMismatch.reason:
        size = info.metadata.get("committed_size", "")
        return OffsetMismatch(int(size)) if size.isascii() and size.isdigit() and len(size) < 20 else PeerLost(message)
    if info.reason == errors.StorageFull.reason:
        return _storage_full(message, found)
    return _BY_REASON[info.reason](message)


@contextmanager
def translated() -> Generator[None]:
    """Raise the typed error instead of ``AioRpcError``; wrap every call to a peer in it."""
    try:
        yield
    except grpc.aio.AioRpcError as error:
        raise from_rpc_error(error) from error
    except grpc.aio.UsageError as error:
        raise PeerLost(f"the channel is closed: {error}") from error
    except asyncio.InvalidStateError as error:
        # grpc.aio raises it for a write to a call that has already ended.
        raise PeerLost(f"the call is over: {error}") from error


def _packed(message: Any) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(message)
    return packed


def _storage_full(message: str, found: Sequence[Message]) -> errors.StorageFull:
    told = next((detail.retry_delay for detail in found if isinstance(detail, error_details_pb2.RetryInfo)), None)
    if told is None:
        return errors.StorageFull(message)
    return errors.StorageFull(message, retry_after_s=min(max(told.seconds + told.nanos * 1e-9, 0.1), _RETRY_S_MAX))


def _details(error: grpc.aio.AioRpcError) -> Sequence[Message]:
    """Return what a status says of itself beyond its message, if it is one of ours."""
    try:
        status = rpc_status.from_call(error)  # type: ignore[arg-type]  # it reads three methods, which both kinds of call have
        return [] if status is None else [made for detail in status.details if (made := _unpacked(detail)) is not None]
    except (ValueError, DecodeError):
        return []  # code or message of the trailer contradict the call's own, or it is no status at all: not ours


def _unpacked(detail: any_pb2.Any) -> Message | None:
    info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
    if detail.Unpack(info):
        return info if info.domain == DOMAIN else None
    return retry if detail.Unpack(retry) else None
