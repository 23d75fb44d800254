"""What is reported to the coordinator as messages: devices, channels, keys for a sum, measured utility."""

from hushtune_common import messages as ours
from hushtune_common.secagg.messages import Advertisement
from hushtune_common.units import FlopPerSecond, Joule, PowerRatio, Second, Watt
from hushtune_common.wire import fields
from hushtune_common.wire.convert_sums import advertisement_from_wire, advertisement_to_wire
from hushtune_common.wire.v1 import coordinator_pb2


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
