"""How do the words of secure aggregation become messages, and which messages are refused? Beside ``convert``, for sums alone."""

from collections.abc import Iterable, Sequence

from hushtune_common.errors import MalformedUpdate
from hushtune_common.messages import ClientId, RunId, SumWord, require_name
from hushtune_common.secagg.messages import (
    MEMBERS_MAX,
    PARCEL_BYTES,
    PROOF_BYTES_MAX,
    Advertisement,
    Deal,
    Delivery,
    Opening,
    Roster,
    Survivors,
    Vow,
    Vows,
)
from hushtune_common.secagg.terms import Layout
from hushtune_common.wire import fields
from hushtune_common.wire.v1 import coordinator_pb2, owner_pb2, sums_pb2


def layout_to_wire(value: Layout) -> sums_pb2.SumLayout:
    """Encode what the coordinator is told of the numbers' layout."""
    return sums_pb2.SumLayout(grid_digest=value.grid.value, words=value.words)


def layout_from_wire(pb: sums_pb2.SumLayout) -> Layout:
    """Decode what the owner tells of the numbers' layout."""
    with fields.within("sum_layout"):
        return Layout(grid=fields.digest("sum_layout.grid_digest", pb.grid_digest), words=pb.words)


def advertisement_to_wire(value: Advertisement) -> sums_pb2.Advertisement:
    """Encode a member's keys."""
    return sums_pb2.Advertisement(
        member=value.member,
        channel_key=value.channel_key,
        mask_key=value.mask_key,
        commitment=value.commitment.value,
        proof=value.proof,
    )


def advertisement_from_wire(pb: sums_pb2.Advertisement, *, field: str, member: str | None = None) -> Advertisement:
    """Decode a member's keys: those of ``member``, whatever the message says, where the caller is known."""
    fields.bounded(f"{field}.proof", pb.proof, PROOF_BYTES_MAX)
    with fields.within(field):
        return Advertisement(
            member=ClientId(pb.member if member is None else member),
            channel_key=pb.channel_key,
            mask_key=pb.mask_key,
            commitment=fields.digest(f"{field}.commitment", pb.commitment),
            proof=pb.proof,
        )


def word_to_wire(value: SumWord) -> sums_pb2.SumWord:
    """Encode what the coordinator carries."""
    match value:
        case Roster():
            listed = [advertisement_to_wire(ad) for ad in value.advertisements]
            return sums_pb2.SumWord(roster=sums_pb2.SumRoster(advertisements=listed))
        case Delivery():
            return sums_pb2.SumWord(delivery=_delivery_to_wire(value))
        case Survivors():
            return sums_pb2.SumWord(survivors=survivors_to_wire(value))
        case Vows():
            vows = [sums_pb2.Vow(member=vow.member, proof=vow.proof) for vow in value.vows]
            return sums_pb2.SumWord(vows=sums_pb2.SumVows(survivors=survivors_to_wire(value.survivors), vows=vows))
        case _:
            raise ValueError(f"{type(value).__name__} is no word that travels")


def word_from_wire(pb: sums_pb2.SumWord) -> SumWord:
    """Decode what the coordinator carried."""
    match pb.WhichOneof("word"):
        case "roster":
            fields.bounded("sum.roster", pb.roster.advertisements, MEMBERS_MAX)
            with fields.within("sum.roster"):
                listed = (advertisement_from_wire(ad, field="sum.roster") for ad in pb.roster.advertisements)
                return Roster(advertisements=tuple(listed))
        case "delivery":
            return _delivery_from_wire(pb.delivery)
        case "survivors":
            return survivors_from_wire(pb.survivors)
        case "vows":
            return _vows_from_wire(pb.vows)
        case None:
            raise MalformedUpdate("sum: says nothing that is known here")


def deal_to_wire(value: Deal, *, round_id: int) -> coordinator_pb2.DealRequest:
    """Encode a member's parcels; the dealer is the caller, so it does not travel."""
    return coordinator_pb2.DealRequest(round_id=round_id, roster_digest=value.roster.value, parcels=_named(value.parcels))


def deal_from_wire(pb: coordinator_pb2.DealRequest, *, caller: str) -> tuple[int, Deal]:
    """Decode the round and the parcels of ``caller``."""
    with fields.within("deal"):
        deal = Deal(
            dealer=ClientId(caller),
            roster=fields.digest("roster_digest", pb.roster_digest),
            parcels=_pairs("parcels", pb.parcels, bytes_max=PARCEL_BYTES),
        )
    return fields.count("round_id", pb.round_id, least=1), deal


def survivors_to_wire(value: Survivors) -> sums_pb2.SumSurvivors:
    """Encode the names of the survivors."""
    return sums_pb2.SumSurvivors(view=value.view.value, members=value.members)


def survivors_from_wire(pb: sums_pb2.SumSurvivors) -> Survivors:
    """Decode the names of the survivors."""
    fields.bounded("survivors.members", pb.members, MEMBERS_MAX)
    with fields.within("survivors"):
        return Survivors(view=fields.digest("survivors.view", pb.view), members=tuple(ClientId(name) for name in pb.members))


def announcement_to_wire(value: Survivors, *, run: RunId, round_id: int) -> coordinator_pb2.AnnounceRequest:
    """Encode the owner's word on the survivors of a round."""
    return coordinator_pb2.AnnounceRequest(run=run, round_id=round_id, survivors=survivors_to_wire(value))


def announcement_from_wire(pb: coordinator_pb2.AnnounceRequest) -> tuple[RunId, int, Survivors]:
    """Decode run, round and survivors; the servicer checks that the caller is the owner."""
    return _run(pb.run), fields.count("round_id", pb.round_id, least=1), survivors_from_wire(pb.survivors)


def vow_to_wire(value: Vow, *, round_id: int) -> coordinator_pb2.VowRequest:
    """Encode a vow; its member is the caller, so it does not travel."""
    return coordinator_pb2.VowRequest(round_id=round_id, proof=value.proof)


def vow_from_wire(pb: coordinator_pb2.VowRequest, *, caller: str) -> tuple[int, Vow]:
    """Decode the round and the vow of ``caller``."""
    with fields.within("vow"):
        return fields.count("round_id", pb.round_id, least=1), Vow(member=ClientId(caller), proof=pb.proof)


def opening_to_wire(value: Opening, *, run: RunId, round_id: int) -> owner_pb2.OpenRequest:
    """Encode a survivor's shares; its member is the caller, so it does not travel."""
    return owner_pb2.OpenRequest(
        run=run,
        round_id=round_id,
        survivors_digest=value.survivors.value,
        seeds=_named(value.seeds),
        keys=_named(value.keys),
    )


def opening_from_wire(pb: owner_pb2.OpenRequest, *, caller: str) -> Opening:
    """Decode the shares of ``caller``."""
    with fields.within("opening"):
        return Opening(
            member=ClientId(caller),
            survivors=fields.digest("survivors_digest", pb.survivors_digest),
            seeds=_pairs("seeds", pb.seeds, bytes_max=PARCEL_BYTES),
            keys=_pairs("keys", pb.keys, bytes_max=PARCEL_BYTES),
        )


def _delivery_to_wire(value: Delivery) -> sums_pb2.SumDelivery:
    return sums_pb2.SumDelivery(roster_digest=value.roster.value, dealers=value.dealers, parcels=_named(value.parcels))


def _delivery_from_wire(pb: sums_pb2.SumDelivery) -> Delivery:
    fields.bounded("sum.delivery.dealers", pb.dealers, MEMBERS_MAX)
    with fields.within("sum.delivery"):
        return Delivery(
            roster=fields.digest("sum.delivery.roster_digest", pb.roster_digest),
            dealers=tuple(ClientId(name) for name in pb.dealers),
            parcels=_pairs("sum.delivery.parcels", pb.parcels, bytes_max=PARCEL_BYTES),
        )


def _vows_from_wire(pb: sums_pb2.SumVows) -> Vows:
    fields.bounded("sum.vows", pb.vows, MEMBERS_MAX)
    with fields.within("sum.vows"):
        vows = tuple(Vow(member=ClientId(vow.member), proof=vow.proof) for vow in pb.vows)
        return Vows(survivors=survivors_from_wire(pb.survivors), vows=vows)


def _named(pairs: Iterable[tuple[ClientId, bytes]]) -> list[sums_pb2.Named]:
    return [sums_pb2.Named(member=name, data=data) for name, data in pairs]


def _pairs(field: str, pbs: Sequence[sums_pb2.Named], *, bytes_max: int) -> tuple[tuple[ClientId, bytes], ...]:
    fields.bounded(field, pbs, MEMBERS_MAX)
    for pb in pbs:
        fields.bounded(f"{field} of {pb.member[:63]}", pb.data, bytes_max)
    return tuple((fields.client_id(field, pb.member), pb.data) for pb in pbs)


def _run(name: str) -> RunId:
    with fields.within("run"):
        require_name(name, of="run")
    return RunId(name)
