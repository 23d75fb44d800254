"""What keeps a round going as messages: directives, signs of life, completions, settlements, conclusions."""

from hushtune_common import messages as ours
from hushtune_common.errors import MalformedUpdate
from hushtune_common.units import Joule, Second
from hushtune_common.wire import fields
from hushtune_common.wire.convert.assignments import assignment_from_wire, assignment_to_wire
from hushtune_common.wire.convert_sums import word_from_wire, word_to_wire
from hushtune_common.wire.v1 import coordinator_pb2

_CLIENTS_MAX = 10_000
_DIRECTIVE_KINDS = {
    ours.DirectiveKind.ROUND_OPENED: coordinator_pb2.DIRECTIVE_KIND_ROUND_OPENED,
    ours.DirectiveKind.ASSIGNED: coordinator_pb2.DIRECTIVE_KIND_ASSIGNED,
    ours.DirectiveKind.ROUND_CLOSED: coordinator_pb2.DIRECTIVE_KIND_ROUND_CLOSED,
    ours.DirectiveKind.DRAIN: coordinator_pb2.DIRECTIVE_KIND_DRAIN,
    ours.DirectiveKind.CONCLUDE: coordinator_pb2.DIRECTIVE_KIND_CONCLUDE,
    ours.DirectiveKind.SUM: coordinator_pb2.DIRECTIVE_KIND_SUM,
}


def directive_to_wire(value: ours.Directive) -> coordinator_pb2.FollowResponse:
    """Encode a directive."""
    return coordinator_pb2.FollowResponse(
        seq=value.seq,
        kind=_DIRECTIVE_KINDS[value.kind],
        round_id=value.round_id,
        assignment=None if value.assignment is None else assignment_to_wire(value.assignment),
        accepted=value.accepted,
        failed_reason=value.failed_reason,
        last=value.last,
        sum=None if value.sum is None else word_to_wire(value.sum),
    )


def directive_from_wire(pb: coordinator_pb2.FollowResponse) -> ours.Directive:
    """Decode a directive; one of kind ``ASSIGNED`` has an assignment, one of kind ``SUM`` a word, no other has."""
    kind = fields.member("kind", pb.kind, _DIRECTIVE_KINDS)
    if (kind is ours.DirectiveKind.ASSIGNED) != pb.HasField("assignment"):
        raise MalformedUpdate(f"assignment: is {'absent' if kind is ours.DirectiveKind.ASSIGNED else 'present'} in {kind}")
    if (kind is ours.DirectiveKind.SUM) != pb.HasField("sum"):
        raise MalformedUpdate(f"sum: is {'absent' if kind is ours.DirectiveKind.SUM else 'present'} in {kind}")
    fields.bounded("accepted", pb.accepted, _CLIENTS_MAX)
    return ours.Directive(
        seq=fields.count("seq", pb.seq, least=1),
        kind=kind,
        round_id=fields.count("round_id", pb.round_id),
        assignment=assignment_from_wire(pb.assignment) if pb.HasField("assignment") else None,
        accepted=tuple(fields.client_id(f"accepted[{index}]", name) for index, name in enumerate(pb.accepted)),
        failed_reason=fields.text("failed_reason", pb.failed_reason),
        last=pb.last,
        sum=word_from_wire(pb.sum) if pb.HasField("sum") else None,
    )


def beat_to_wire(value: ours.Beat) -> coordinator_pb2.FollowRequest:
    """Encode a beat."""
    return coordinator_pb2.FollowRequest(last_seen_seq=value.last_seen_seq, phase=value.phase, progress=value.progress)


def beat_from_wire(pb: coordinator_pb2.FollowRequest) -> ours.Beat:
    """Decode a beat."""
    return ours.Beat(
        last_seen_seq=fields.count("last_seen_seq", pb.last_seen_seq),
        phase=fields.text("phase", pb.phase),
        progress=fields.count("progress", pb.progress),
    )


def completion_to_wire(value: ours.Completion) -> coordinator_pb2.CompleteRequest:
    """Encode a completion; the client is the caller, so it does not travel."""
    return coordinator_pb2.CompleteRequest(
        run=value.key.run,
        round_id=value.key.round_id,
        attempt=value.key.attempt,
        uploaded=value.uploaded,
        reason=value.reason,
        bytes_raw=value.bytes_raw,
        bytes_uploaded=value.bytes_uploaded,
        airtime_s=value.airtime,
        train_s=value.train_seconds,
        energy_j=value.energy,
    )


def completion_from_wire(pb: coordinator_pb2.CompleteRequest, *, caller: ours.Caller) -> ours.Completion:
    """Decode the completion of ``caller``."""
    return ours.Completion(
        key=fields.update_key(pb.run, pb.round_id, caller.name, pb.attempt),
        uploaded=pb.uploaded,
        reason=fields.text("reason", pb.reason),
        bytes_raw=fields.count("bytes_raw", pb.bytes_raw),
        bytes_uploaded=fields.count("bytes_uploaded", pb.bytes_uploaded),
        airtime=Second(fields.not_negative("airtime_s", pb.airtime_s)),
        train_seconds=Second(fields.not_negative("train_s", pb.train_s)),
        energy=Joule(fields.not_negative("energy_j", pb.energy_j)),
    )


def settlement_to_wire(value: ours.Settlement) -> coordinator_pb2.SettleRequest:
    """Encode a settlement."""
    key = value.key
    return coordinator_pb2.SettleRequest(
        run=key.run, round_id=key.round_id, client=key.client, attempt=key.attempt, accepted=value.accepted
    )


def settlement_from_wire(pb: coordinator_pb2.SettleRequest) -> ours.Settlement:
    """Decode a settlement; the servicer checks that the caller is the owner."""
    return ours.Settlement(key=fields.update_key(pb.run, pb.round_id, pb.client, pb.attempt), accepted=pb.accepted)


def conclusion_to_wire(value: ours.Conclusion) -> coordinator_pb2.ConcludeRequest:
    """Encode a conclusion."""
    return coordinator_pb2.ConcludeRequest(run=value.run, round_id=value.round_id, last=value.last, reason=value.reason)


def conclusion_from_wire(pb: coordinator_pb2.ConcludeRequest) -> ours.Conclusion:
    """Decode a conclusion; the servicer checks that the caller is the owner."""
    with fields.within("conclusion"):
        return ours.Conclusion(
            run=ours.RunId(pb.run),
            round_id=fields.count("round_id", pb.round_id, least=1),
            last=pb.last,
            reason=fields.text("reason", pb.reason),
        )
