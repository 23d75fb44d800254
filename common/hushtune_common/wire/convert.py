"""How do our values become messages, and which messages are refused? The one module that knows protobuf and our dataclasses.

``X_to_wire`` is total; ``X_from_wire`` checks everything a peer could send and raises ``MalformedUpdate`` naming the field.
"""

from math import isfinite

from hushtune_common import messages as ours
from hushtune_common.config import TimingConfig
from hushtune_common.errors import MalformedUpdate, VersionMismatch
from hushtune_common.secagg.messages import Advertisement
from hushtune_common.units import Decibel, FlopPerSecond, Hertz, Joule, PowerRatio, Second, Watt
from hushtune_common.wire import fields
from hushtune_common.wire.convert_sums import advertisement_from_wire, advertisement_to_wire, word_from_wire, word_to_wire
from hushtune_common.wire.v1 import air_pb2, coordinator_pb2, owner_pb2

PROTOCOL_MAJOR = 2
"""Both sides must speak the same."""
PROTOCOL_MINOR = 3
"""The smaller of the two is spoken. 1: a client tells of another channel before it transmits, assignments name theirs. 2: an
assignment grants bytes in place of bits per weight, the owner may bring a measured utility; every round has an emulator, and the
owner says whether another round follows. 3: secure aggregation."""
PROTOCOL_MINOR_MIN = 2
"""Who speaks less could not read what it is granted."""

_KEY_BYTES_MAX = 8192
_TENSORS_MAX = 20_000
_DIMENSIONS_MAX = 8
_CLIENTS_MAX = 10_000
_CODEWORDS_MAX = 65_536
_MODULATIONS = tuple(ours.BITS_PER_SYMBOL)
_SEED_BYTES_MAX = 1_048_576
"""Longest hash seed or dither: of the largest hash block there can be, four times over."""

_GATE_DECISIONS = {
    ours.GateDecision.GRANTED: coordinator_pb2.GATE_DECISION_GRANTED,
    ours.GateDecision.DEFERRED: coordinator_pb2.GATE_DECISION_DEFERRED,
    ours.GateDecision.EXCLUDED: coordinator_pb2.GATE_DECISION_EXCLUDED,
}
_DIRECTIVE_KINDS = {
    ours.DirectiveKind.ROUND_OPENED: coordinator_pb2.DIRECTIVE_KIND_ROUND_OPENED,
    ours.DirectiveKind.ASSIGNED: coordinator_pb2.DIRECTIVE_KIND_ASSIGNED,
    ours.DirectiveKind.ROUND_CLOSED: coordinator_pb2.DIRECTIVE_KIND_ROUND_CLOSED,
    ours.DirectiveKind.DRAIN: coordinator_pb2.DIRECTIVE_KIND_DRAIN,
    ours.DirectiveKind.CONCLUDE: coordinator_pb2.DIRECTIVE_KIND_CONCLUDE,
    ours.DirectiveKind.SUM: coordinator_pb2.DIRECTIVE_KIND_SUM,
}
_TAP_MODELS = {
    ours.TapModel.FIXED: coordinator_pb2.TAP_MODEL_FIXED,
    ours.TapModel.OUTAGE: coordinator_pb2.TAP_MODEL_OUTAGE,
    ours.TapModel.INTERLEAVED: coordinator_pb2.TAP_MODEL_INTERLEAVED,
}
_PROTECTIONS = {
    ours.Protection.PAYLOAD: coordinator_pb2.PROTECTION_PAYLOAD,
    ours.Protection.KEY: coordinator_pb2.PROTECTION_KEY,
    ours.Protection.CRYPTO_ONLY: coordinator_pb2.PROTECTION_CRYPTO_ONLY,
}
_PARTS = {ours.Part.PAYLOAD: air_pb2.PART_PAYLOAD, ours.Part.KEY: air_pb2.PART_KEY}
_LISTENERS = {ours.Listener.MAIN: air_pb2.LISTENER_MAIN, ours.Listener.TAP: air_pb2.LISTENER_TAP}


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


def run_from_wire(text: str) -> ours.RunId:
    """Read a run's name, which becomes the name of folders; `MalformedUpdate` for anything else."""
    try:
        ours.require_name(text, of="run")
    except ValueError as error:
        raise MalformedUpdate(str(error)) from error
    return ours.RunId(text)


def welcome_from_wire(pb: coordinator_pb2.JoinResponse) -> tuple[ours.RunId, TimingConfig]:
    """Read the coordinator's answer to ``Join``: which run this is, and its timeouts; `VersionMismatch` when it is too old."""
    if pb.protocol_minor < PROTOCOL_MINOR_MIN:
        spoken = f"{PROTOCOL_MAJOR}.{pb.protocol_minor}"
        raise VersionMismatch(f"the coordinator speaks protocol {spoken}, at least minor {PROTOCOL_MINOR_MIN} is needed")
    timing = {"connect_s": pb.connect_s, "idle_s": pb.idle_s, "round_s": pb.round_s}
    for name, value in timing.items():
        if not (isfinite(value) and value > 0.0):
            raise MalformedUpdate(f"{name}: must be finite and positive, got {value}")
    return run_from_wire(pb.run), TimingConfig(**timing)


def report_to_wire(value: ours.ClientReport, *, advertisement: Advertisement | None = None) -> coordinator_pb2.ReportRequest:
    """Encode a report, and the keys for a sum; the client is the caller, so it does not travel."""
    return coordinator_pb2.ReportRequest(
        round_id=value.round_id,
        gain_main=value.gain_main,
        gain_tap=value.gain_tap,
        power_max_w=value.power_max,
        clock_max_flops=value.clock_max,
        energy_max_j=value.energy_max,
        sample_count=value.sample_count,
        update_bits=value.update_bits,
        train_flops=value.train_flops,
        energy_w_per_flops3=value.energy_w_per_flops3,
        sounded_at_s=value.sounded_at,
        advertisement=None if advertisement is None else advertisement_to_wire(advertisement),
    )


def report_from_wire(pb: coordinator_pb2.ReportRequest, *, caller: ours.Caller) -> ours.ClientReport:
    """Decode the report of ``caller``."""
    with fields.within("report"):
        return ours.ClientReport(
            client=ours.ClientId(caller.name),
            round_id=pb.round_id,
            gain_main=PowerRatio(fields.finite("gain_main", pb.gain_main)),
            gain_tap=PowerRatio(fields.finite("gain_tap", pb.gain_tap)),
            power_max=Watt(fields.finite("power_max_w", pb.power_max_w)),
            clock_max=FlopPerSecond(fields.finite("clock_max_flops", pb.clock_max_flops)),
            energy_max=Joule(fields.finite("energy_max_j", pb.energy_max_j)),
            sample_count=pb.sample_count,
            update_bits=pb.update_bits,
            train_flops=fields.finite("train_flops", pb.train_flops),
            energy_w_per_flops3=fields.finite("energy_w_per_flops3", pb.energy_w_per_flops3),
            sounded_at=Second(fields.not_negative("sounded_at_s", pb.sounded_at_s)),
        )


def keys_from_wire(pb: coordinator_pb2.ReportRequest, *, caller: ours.Caller) -> Advertisement | None:
    """Decode the keys for a sum that came with the report of ``caller``, none where there are none."""
    if not pb.HasField("advertisement"):
        return None
    return advertisement_from_wire(pb.advertisement, field="advertisement", member=caller.name)


def curve_to_wire(value: ours.UtilityCurve) -> coordinator_pb2.UtilityCurve:
    """Encode a measured utility."""
    return coordinator_pb2.UtilityCurve(
        offset=value.offset,
        weight=value.weight,
        shape=value.shape,
        share_min=value.share_min,
        points=[coordinator_pb2.CurvePoint(share=p.share, value=p.value, low=p.low, high=p.high) for p in value.points],
    )


def curve_from_wire(pb: coordinator_pb2.UtilityCurve) -> ours.UtilityCurve:
    """Decode a measured utility; one that is not finite, increasing and concave is refused."""
    fields.bounded("curve.points", pb.points, ours.CURVE_POINTS_MAX)
    with fields.within("curve"):
        return ours.UtilityCurve(
            offset=pb.offset,
            weight=pb.weight,
            shape=pb.shape,
            share_min=pb.share_min,
            points=tuple(ours.CurvePoint(share=p.share, value=p.value, low=p.low, high=p.high) for p in pb.points),
        )


def channel_to_wire(value: ours.Channel) -> coordinator_pb2.Channel:
    """Encode the two links of a client."""
    return coordinator_pb2.Channel(at_s=value.at, gain_main=value.gain_main, gain_tap=value.gain_tap)


def channel_from_wire(pb: coordinator_pb2.Channel) -> ours.Channel:
    """Decode the two links of a client."""
    with fields.within("channel"):
        return ours.Channel(
            at=Second(fields.not_negative("channel.at_s", pb.at_s)),
            gain_main=PowerRatio(fields.finite("channel.gain_main", pb.gain_main)),
            gain_tap=PowerRatio(fields.finite("channel.gain_tap", pb.gain_tap)),
        )


def new_channel_to_wire(value: ours.Channel, *, round_id: int) -> coordinator_pb2.ReportChannelRequest:
    """Encode the word that the channel is another one in a round; the client is the caller, so it does not travel."""
    return coordinator_pb2.ReportChannelRequest(round_id=round_id, channel=channel_to_wire(value))


def new_channel_from_wire(pb: coordinator_pb2.ReportChannelRequest) -> tuple[int, ours.Channel]:
    """Decode the round and the channel that its client has now."""
    return fields.count("round_id", pb.round_id, least=1), channel_from_wire(pb.channel)


def design_to_wire(value: ours.SecrecyDesign) -> coordinator_pb2.SecrecyDesign:
    """Encode a secrecy design."""
    return coordinator_pb2.SecrecyDesign(
        modulation=value.modulation,
        code_bits=value.code_bits,
        info_bits=value.info_bits,
        codewords=value.codewords,
        message_bits=value.message_bits,
        random_bits=value.random_bits,
        snr_tap_design_db=value.snr_tap_design_db,
        log2_delta=value.log2_delta,
        rho=value.rho,
        rate=value.rate,
        tap_model=_TAP_MODELS[value.tap_model],
        subbands=value.subbands,
    )


def design_from_wire(pb: coordinator_pb2.SecrecyDesign) -> ours.SecrecyDesign:
    """Decode a secrecy design."""
    if pb.modulation not in _MODULATIONS:
        raise MalformedUpdate(f"design.modulation: use one of {', '.join(_MODULATIONS)}, got {pb.modulation[:20]!r}")
    if not 1 <= pb.codewords <= _CODEWORDS_MAX:
        raise MalformedUpdate(f"design.codewords: must be 1 to {_CODEWORDS_MAX}, got {pb.codewords}")
    if not 1 <= pb.info_bits < pb.code_bits:
        raise MalformedUpdate(f"design.info_bits: must be at least 1 and below code_bits, got {pb.info_bits} of {pb.code_bits}")
    with fields.within("design"):
        return ours.SecrecyDesign(
            modulation=pb.modulation,
            code_bits=pb.code_bits,
            info_bits=pb.info_bits,
            codewords=pb.codewords,
            message_bits=pb.message_bits,
            random_bits=pb.random_bits,
            snr_tap_design_db=Decibel(fields.finite("design.snr_tap_design_db", pb.snr_tap_design_db)),
            log2_delta=fields.finite("design.log2_delta", pb.log2_delta),
            rho=fields.finite("design.rho", pb.rho),
            rate=fields.not_negative("design.rate", pb.rate),
            tap_model=fields.member("design.tap_model", pb.tap_model, _TAP_MODELS),
            subbands=pb.subbands,
        )


def gate_to_wire(value: ours.Gate) -> coordinator_pb2.Gate:
    """Encode a gate's decision with its numbers."""
    return coordinator_pb2.Gate(
        decision=_GATE_DECISIONS[value.decision],
        reason=value.reason,
        snr_main_db=value.snr_main_db,
        snr_tap_bound_db=value.snr_tap_bound_db,
        block_error_rate=value.block_error_rate,
        rate_coded=value.rate_coded,
        rate_gaussian=value.rate_gaussian,
    )


def gate_from_wire(pb: coordinator_pb2.Gate) -> ours.Gate:
    """Decode a gate's decision. Levels may be minus infinity, which is no power at all."""
    return ours.Gate(
        decision=fields.member("gate.decision", pb.decision, _GATE_DECISIONS),
        reason=fields.text("gate.reason", pb.reason),
        snr_main_db=fields.level("gate.snr_main_db", pb.snr_main_db),
        snr_tap_bound_db=fields.level("gate.snr_tap_bound_db", pb.snr_tap_bound_db),
        block_error_rate=fields.share("gate.block_error_rate", pb.block_error_rate),
        rate_coded=fields.finite("gate.rate_coded", pb.rate_coded),
        rate_gaussian=fields.finite("gate.rate_gaussian", pb.rate_gaussian),
    )


def assignment_to_wire(value: ours.Assignment) -> coordinator_pb2.Assignment:
    """Encode an assignment."""
    return coordinator_pb2.Assignment(
        client=value.client,
        round_id=value.round_id,
        gate=gate_to_wire(value.gate),
        adapter_share=value.adapter_share,
        bandwidth_hz=value.bandwidth,
        power_w=value.power,
        clock_flops=value.clock,
        secrecy_rate_bps=value.secrecy_rate_bps,
        deadline_s=value.deadline,
        protection=_PROTECTIONS[value.protection] if value.protection else coordinator_pb2.PROTECTION_UNSPECIFIED,
        design=None if value.design is None else design_to_wire(value.design),
        carrier=None if value.carrier is None else design_to_wire(value.carrier),
        budget_bytes=value.budget_bytes,
        planned=None if value.planned is None else _planned_to_wire(value.planned),
        channel=None if value.channel is None else channel_to_wire(value.channel),
    )


def _planned_to_wire(value: ours.Planned) -> coordinator_pb2.Planned:
    return coordinator_pb2.Planned(
        wait_s=value.wait_s,
        train_s=value.train_s,
        airtime_s=value.airtime_s,
        plug_in_s=value.plug_in_s,
        compute_j=value.compute_j,
        radio_j=value.radio_j,
        update_bits=value.update_bits,
    )


def _planned_from_wire(pb: coordinator_pb2.Planned) -> ours.Planned:
    return ours.Planned(
        wait_s=fields.not_negative("planned.wait_s", pb.wait_s),
        train_s=fields.not_negative("planned.train_s", pb.train_s),
        airtime_s=fields.not_negative("planned.airtime_s", pb.airtime_s),
        plug_in_s=fields.not_negative("planned.plug_in_s", pb.plug_in_s),
        compute_j=fields.not_negative("planned.compute_j", pb.compute_j),
        radio_j=fields.not_negative("planned.radio_j", pb.radio_j),
        update_bits=fields.not_negative("planned.update_bits", pb.update_bits),
    )


def assignment_from_wire(pb: coordinator_pb2.Assignment) -> ours.Assignment:
    """Decode an assignment."""
    with fields.within("assignment"):
        return ours.Assignment(
            client=fields.client_id("assignment.client", pb.client),
            round_id=fields.count("assignment.round_id", pb.round_id, least=1),
            gate=gate_from_wire(pb.gate),
            adapter_share=fields.finite("assignment.adapter_share", pb.adapter_share),
            bandwidth=Hertz(fields.not_negative("assignment.bandwidth_hz", pb.bandwidth_hz)),
            power=Watt(fields.not_negative("assignment.power_w", pb.power_w)),
            clock=FlopPerSecond(fields.not_negative("assignment.clock_flops", pb.clock_flops)),
            secrecy_rate_bps=fields.not_negative("assignment.secrecy_rate_bps", pb.secrecy_rate_bps),
            deadline=Second(fields.not_negative("assignment.deadline_s", pb.deadline_s)),
            protection=fields.member("assignment.protection", pb.protection, _PROTECTIONS) if pb.protection else None,
            design=design_from_wire(pb.design) if pb.HasField("design") else None,
            carrier=design_from_wire(pb.carrier) if pb.HasField("carrier") else None,
            budget_bytes=fields.count("assignment.budget_bytes", pb.budget_bytes, least=1),
            planned=_planned_from_wire(pb.planned) if pb.HasField("planned") else None,
            channel=channel_from_wire(pb.channel) if pb.HasField("channel") else None,
        )


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


def transmission_to_wire(value: ours.Transmission) -> air_pb2.Transmission:
    """Encode a transmission."""
    key = value.key
    return air_pb2.Transmission(
        run=key.run,
        round_id=key.round_id,
        client=key.client,
        attempt=key.attempt,
        part=_PARTS[value.part],
        frame_digest=value.frame.value,
        frame_bytes=value.frame_bytes,
        design=design_to_wire(value.design),
        seed=air_pb2.LinkSeed(toeplitz=value.seed.toeplitz, dither=value.seed.dither, tag=value.seed.tag),
        power_w=value.power,
        bandwidth_hz=value.bandwidth,
    )


def transmission_from_wire(pb: air_pb2.Transmission) -> ours.Transmission:
    """Decode a transmission; the servicer checks that the client in it is the caller."""
    with fields.within("transmission"):
        return ours.Transmission(
            key=fields.update_key(pb.run, pb.round_id, pb.client, pb.attempt),
            part=fields.member("part", pb.part, _PARTS),
            frame=fields.digest("frame_digest", pb.frame_digest),
            frame_bytes=pb.frame_bytes,
            design=design_from_wire(pb.design),
            seed=_seed_from_wire(pb.seed),
            power=Watt(fields.finite("power_w", pb.power_w)),
            bandwidth=Hertz(fields.finite("bandwidth_hz", pb.bandwidth_hz)),
        )


def _seed_from_wire(pb: air_pb2.LinkSeed) -> ours.LinkSeed:
    fields.bounded("seed.toeplitz", pb.toeplitz, _SEED_BYTES_MAX)
    fields.bounded("seed.dither", pb.dither, _SEED_BYTES_MAX)
    return ours.LinkSeed(toeplitz=pb.toeplitz, dither=pb.dither, tag=pb.tag)


def notice_to_wire(value: ours.ReceptionNotice) -> air_pb2.ListenResponse:
    """Encode a reception notice."""
    return air_pb2.ListenResponse(
        seq=value.seq,
        listener=_LISTENERS[value.listener],
        transmission=transmission_to_wire(value.transmission),
        blocks=value.blocks,
        update_bytes=value.update_bytes,
        fidelity=value.fidelity,
        airtime_s=value.airtime,
        acknowledged=value.acknowledged,
    )


def notice_from_wire(pb: air_pb2.ListenResponse) -> ours.ReceptionNotice:
    """Decode a reception notice."""
    return ours.ReceptionNotice(
        seq=fields.count("seq", pb.seq, least=1),
        listener=fields.member("listener", pb.listener, _LISTENERS),
        transmission=transmission_from_wire(pb.transmission),
        blocks=fields.count("blocks", pb.blocks, least=1),
        update_bytes=fields.count("update_bytes", pb.update_bytes, least=1),
        fidelity=fields.text("fidelity", pb.fidelity, required=True),
        airtime=Second(fields.not_negative("airtime_s", pb.airtime_s)),
        acknowledged=pb.acknowledged,
    )


def receive_to_wire(key: ours.UpdateKey, *, first_chunk: int) -> air_pb2.ReceiveRequest:
    """Encode the wish to hear a transmission from a chunk on."""
    return air_pb2.ReceiveRequest(
        run=key.run, round_id=key.round_id, client=key.client, attempt=key.attempt, first_chunk=first_chunk
    )


def receive_from_wire(pb: air_pb2.ReceiveRequest) -> tuple[ours.UpdateKey, int]:
    """Decode which transmission is to be heard, and from which chunk on."""
    key = fields.update_key(pb.run, pb.round_id, pb.client, pb.attempt)
    return key, fields.count("first_chunk", pb.first_chunk)


def receipt_to_ack(value: ours.Receipt) -> air_pb2.AcknowledgeRequest:
    """Encode the owner's receipt for the air."""
    key = value.key
    return air_pb2.AcknowledgeRequest(
        run=key.run, round_id=key.round_id, client=key.client, attempt=key.attempt, missing=value.missing
    )


def receipt_from_ack(pb: air_pb2.AcknowledgeRequest) -> ours.Receipt:
    """Decode the owner's receipt; the servicer checks that the caller is the owner."""
    return ours.Receipt(
        key=fields.update_key(pb.run, pb.round_id, pb.client, pb.attempt), missing=fields.block_indices("missing", pb.missing)
    )


def receipt_to_transmit(value: ours.Receipt | None, *, airtime: Second) -> air_pb2.TransmitResponse:
    """Encode what ``Transmit`` streams back: the time on air, and on its last message the owner's receipt."""
    missing = () if value is None else value.missing
    return air_pb2.TransmitResponse(airtime_s=airtime, acknowledged=value is not None, missing=missing)


def receipt_from_transmit(pb: air_pb2.TransmitResponse, *, key: ours.UpdateKey) -> ours.Receipt | None:
    """Decode the receipt for the transmission ``key``; nothing until the owner has answered."""
    fields.not_negative("airtime_s", pb.airtime_s)
    return ours.Receipt(key=key, missing=fields.block_indices("missing", pb.missing)) if pb.acknowledged else None
