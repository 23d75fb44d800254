"""Assignments as messages: gates, designs, plans."""

from hushtune_common import messages as ours
from hushtune_common.errors import MalformedUpdate
from hushtune_common.units import Decibel, FlopPerSecond, Hertz, Second, Watt
from hushtune_common.wire import fields
from hushtune_common.wire.convert.reports import channel_from_wire, channel_to_wire
from hushtune_common.wire.v1 import coordinator_pb2

_CODEWORDS_MAX = 65_536
_MODULATIONS = tuple(ours.BITS_PER_SYMBOL)
_GATE_DECISIONS = {
    ours.GateDecision.GRANTED: coordinator_pb2.GATE_DECISION_GRANTED,
    ours.GateDecision.DEFERRED: coordinator_pb2.GATE_DECISION_DEFERRED,
    ours.GateDecision.EXCLUDED: coordinator_pb2.GATE_DECISION_EXCLUDED,
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
