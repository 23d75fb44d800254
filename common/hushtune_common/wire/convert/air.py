"""The air's plane as messages: transmissions, notices, receipts."""

from hushtune_common import messages as ours
from hushtune_common.units import Hertz, Second, Watt
from hushtune_common.wire import fields
from hushtune_common.wire.convert.assignments import design_from_wire, design_to_wire
from hushtune_common.wire.v1 import air_pb2

_SEED_BYTES_MAX = 1_048_576
"""Longest hash seed or dither: of the largest hash block there can be, four times over."""
_PARTS = {ours.Part.PAYLOAD: air_pb2.PART_PAYLOAD, ours.Part.KEY: air_pb2.PART_KEY}
_LISTENERS = {ours.Listener.MAIN: air_pb2.LISTENER_MAIN, ours.Listener.TAP: air_pb2.LISTENER_TAP}


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
