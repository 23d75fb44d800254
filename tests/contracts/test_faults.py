"""Do errors keep their meaning across the wire?"""

from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2

from hushtune_common import errors
from hushtune_common.wire import faults


def below(kind: type[errors.HushtuneError]) -> Iterator[type[errors.HushtuneError]]:
    for child in kind.__subclasses__():
        yield child
        yield from below(child)


def failed(
    code: grpc.StatusCode, message: str, *, reason: str | None = None, domain: str = "hushtune", **metadata: str
) -> grpc.aio.AioRpcError:
    """Return a failed call as a peer of any make would send it (google.rpc.Status in ``grpc-status-details-bin``)."""
    trailer: tuple[tuple[str, Any], ...] = ()
    if reason is not None:
        detail = any_pb2.Any()
        detail.Pack(error_details_pb2.ErrorInfo(reason=reason, domain=domain, metadata=metadata))
        status = status_pb2.Status(code=code.value[0], message=message, details=[detail])
        trailer = (("grpc-status-details-bin", status.SerializeToString()),)
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(*trailer), details=message)


@pytest.mark.parametrize("kind", list(below(errors.ProtocolFault)))
def test_every_fault_of_a_peer_is_told_to_it_by_a_stable_reason(kind: type[errors.HushtuneError]):
    code, reason, message, _ = faults.to_status(kind("what was wrong"))
    assert reason == kind.reason
    assert code is not grpc.StatusCode.INTERNAL
    returned = faults.from_rpc_error(failed(code, message, reason=reason))
    assert type(returned) is kind
    assert kind is errors.InvalidEnvelope or "what was wrong" in str(returned)


def test_only_operating_faults_are_worth_a_retry():
    retried = {grpc.StatusCode.UNAVAILABLE}  # the one status that the channels repeat by themselves
    kinds = [kind for kind in below(errors.ProtocolFault) if faults.to_status(kind("x"))[0] in retried]
    assert not kinds


def test_an_update_is_refused_without_detail():
    _, reason, message, metadata = faults.to_status(errors.InvalidEnvelope("the tag of block 7 is wrong"))
    assert (reason, metadata) == ("UPDATE_REFUSED", {})
    assert "tag" not in message


@pytest.mark.parametrize("error", [KeyError("secret"), errors.ConfigError("path", "secret"), errors.TrainerFailed("secret")])
def test_what_is_not_for_peers_becomes_an_incident(error: Exception):
    code, reason, message, metadata = faults.to_status(error)
    assert (code, reason) == (grpc.StatusCode.INTERNAL, "INTERNAL")
    assert "secret" not in message
    assert metadata["incident"] in message
    assert faults.to_status(error)[3] != metadata


def test_messages_are_bounded():
    assert len(faults.to_status(errors.MalformedUpdate("x" * 10_000))[2]) <= 500


def test_the_committed_size_travels():
    code, reason, message, metadata = faults.to_status(errors.OffsetMismatch(4 << 20))
    returned = faults.from_rpc_error(failed(code, message, reason=reason, **metadata))
    assert isinstance(returned, errors.OffsetMismatch)
    assert returned.committed_size == 4 << 20


@pytest.mark.parametrize("size", ["", "-1", "x", "٣", "9" * 30])
def test_a_bad_committed_size_is_a_lost_peer(size: str):
    call = failed(grpc.StatusCode.OUT_OF_RANGE, "resume", reason="OFFSET_MISMATCH", committed_size=size)
    assert type(faults.from_rpc_error(call)) is errors.PeerLost


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (grpc.StatusCode.UNAVAILABLE, errors.PeerLost),
        (grpc.StatusCode.DEADLINE_EXCEEDED, errors.DeadlineExceeded),
        (grpc.StatusCode.CANCELLED, errors.PeerLost),
        (grpc.StatusCode.UNIMPLEMENTED, errors.VersionMismatch),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, errors.LimitExceeded),
        (grpc.StatusCode.INTERNAL, errors.PeerLost),
        (grpc.StatusCode.DATA_LOSS, errors.HushtuneError),
    ],
)
def test_a_status_that_grpc_made_has_a_type_too(code: grpc.StatusCode, kind: type[errors.HushtuneError]):
    assert type(faults.from_rpc_error(failed(code, "socket closed"))) is kind


def test_a_defect_of_the_peer_is_no_lost_peer_and_not_worth_a_retry():
    call = failed(grpc.StatusCode.INTERNAL, "internal error, incident 42", reason="INTERNAL", incident="42")
    returned = faults.from_rpc_error(call)
    assert type(returned) is errors.HushtuneError
    assert "incident 42" in str(returned)


@pytest.mark.parametrize(("reason", "domain"), [("NO_SUCH_REASON", "hushtune"), ("STALE_ROUND", "example.org")])
def test_reasons_of_others_do_not_choose_the_type(reason: str, domain: str):
    call = failed(grpc.StatusCode.UNAVAILABLE, "x", reason=reason, domain=domain)
    assert type(faults.from_rpc_error(call)) is errors.PeerLost


def test_translated_raises_the_typed_error_and_keeps_the_cause():
    call = failed(grpc.StatusCode.FAILED_PRECONDITION, "round 3 is over", reason="STALE_ROUND")
    with pytest.raises(errors.StaleRound, match="round 3 is over") as raised, faults.translated():
        raise call
    assert raised.value.__cause__ is call
