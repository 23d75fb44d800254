"""The owner's plane as messages: manifests and verdicts."""

from hushtune_common import messages as ours
from hushtune_common.errors import MalformedUpdate
from hushtune_common.wire import fields
from hushtune_common.wire.v1 import owner_pb2

_KEY_BYTES_MAX = 8192
_TENSORS_MAX = 20_000
_DIMENSIONS_MAX = 8


def manifest_to_wire(value: ours.EmulatorManifest) -> owner_pb2.GetManifestResponse:
    """Encode a manifest."""
    return owner_pb2.GetManifestResponse(
        emulator_digest=value.emulator.value,
        size_bytes=value.size_bytes,
        base_digest=value.base.value,
        plan_digest=value.plan.value,
        tokenizer_digest=value.tokenizer.value,
        adapter=[
            owner_pb2.TensorSpec(name=spec.name, shape=spec.shape, dtype=spec.dtype, block=spec.block) for spec in value.adapter
        ],
        sealing_key=value.sealing_key,
        codec=value.codec,
        round_id=value.round_id,
        revision=None if value.revision is None else _revision_to_wire(value.revision),
    )


def _revision_to_wire(value: ours.Revision) -> owner_pb2.Revision:
    return owner_pb2.Revision(
        base_digest=value.base.value,
        base_bytes=value.base_bytes,
        blob_digest=value.blob.value,
        size_bytes=value.size_bytes,
    )


def _revision_from_wire(pb: owner_pb2.Revision) -> ours.Revision:
    return ours.Revision(
        base=fields.digest("revision.base_digest", pb.base_digest),
        base_bytes=pb.base_bytes,
        blob=fields.digest("revision.blob_digest", pb.blob_digest),
        size_bytes=pb.size_bytes,
    )


def manifest_from_wire(pb: owner_pb2.GetManifestResponse) -> ours.EmulatorManifest:
    """Decode a manifest."""
    fields.bounded("adapter", pb.adapter, _TENSORS_MAX)
    if not 0 < len(pb.sealing_key) <= _KEY_BYTES_MAX:
        raise MalformedUpdate(f"sealing_key: has {len(pb.sealing_key)} bytes, expected 1 to {_KEY_BYTES_MAX}")
    with fields.within("manifest"):
        return ours.EmulatorManifest(
            emulator=fields.digest("emulator_digest", pb.emulator_digest),
            size_bytes=pb.size_bytes,
            base=fields.digest("base_digest", pb.base_digest),
            plan=fields.digest("plan_digest", pb.plan_digest),
            tokenizer=fields.digest("tokenizer_digest", pb.tokenizer_digest),
            adapter=tuple(_tensor_from_wire(f"adapter[{index}]", spec) for index, spec in enumerate(pb.adapter)),
            sealing_key=pb.sealing_key,
            codec=fields.text("codec", pb.codec, required=True),
            round_id=pb.round_id,
            revision=_revision_from_wire(pb.revision) if pb.HasField("revision") else None,
        )


def _tensor_from_wire(field: str, pb: owner_pb2.TensorSpec) -> ours.TensorSpec:
    fields.bounded(f"{field}.shape", pb.shape, _DIMENSIONS_MAX)
    with fields.within(field):
        return ours.TensorSpec(
            name=fields.text(f"{field}.name", pb.name, required=True), shape=tuple(pb.shape), dtype=pb.dtype, block=pb.block
        )


def verdict_to_wire(value: ours.Verdict) -> owner_pb2.GetVerdictResponse:
    """Encode a verdict; the client is the caller, so it does not travel."""
    key = value.key
    return owner_pb2.GetVerdictResponse(
        run=key.run,
        round_id=key.round_id,
        attempt=key.attempt,
        accepted=value.accepted,
        kept=value.kept,
        reason=value.reason,
        score=value.score,
    )


def verdict_from_wire(pb: owner_pb2.GetVerdictResponse, *, client: ours.ClientId) -> ours.Verdict:
    """Decode the verdict that ``client`` has asked for."""
    return ours.Verdict(
        key=fields.update_key(pb.run, pb.round_id, client, pb.attempt),
        accepted=pb.accepted,
        kept=pb.kept,
        reason=fields.text("reason", pb.reason),
        score=fields.finite("score", pb.score) if pb.HasField("score") else None,
    )
