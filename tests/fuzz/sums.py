"""What words on a sum are there to start from, and what reads them?"""

from collections.abc import Callable
from typing import Any

from google.protobuf.message import Message

from hushtune_common.messages import ClientId, Digest, RunId
from hushtune_common.secagg.messages import PARCEL_BYTES, Advertisement, Deal, Delivery, Opening, Roster, Survivors, Vow, Vows
from hushtune_common.secagg.shamir import SHARE_BYTES
from hushtune_common.secagg.terms import Layout
from hushtune_common.wire import convert_sums

_RUN, _C1, _C2 = RunId("run-1"), ClientId("c1"), ClientId("c2")
_DIGEST = Digest.of(b"roster")


def wire() -> dict[str, tuple[Message, Callable[[Any], object]]]:
    """Return valid messages with their decoders, by name."""
    keys = Advertisement(member=_C1, channel_key=bytes(32), mask_key=bytes(32), commitment=_DIGEST, proof=b"proof")
    parcels = ((_C2, bytes(PARCEL_BYTES)),)
    survivors = Survivors(view=_DIGEST, members=(_C1, _C2))
    vows = Vows(survivors=survivors, vows=(Vow(member=_C1, proof=b"p"), Vow(member=_C2, proof=b"q")))
    deal = Deal(dealer=_C1, roster=_DIGEST, parcels=parcels)
    opening = Opening(member=_C1, survivors=_DIGEST, seeds=((_C1, bytes(SHARE_BYTES)),), keys=((_C2, bytes(SHARE_BYTES)),))
    words = {
        "roster": Roster(advertisements=(keys,)),
        "delivery": Delivery(roster=_DIGEST, dealers=(_C2,), parcels=parcels),
        "vows": vows,
    }
    carried = {f"sum-{name}": (convert_sums.word_to_wire(word), convert_sums.word_from_wire) for name, word in words.items()}
    return {
        **carried,
        "sum-layout": (convert_sums.layout_to_wire(Layout(grid=_DIGEST, words=4)), convert_sums.layout_from_wire),
        "sum-keys": (
            convert_sums.advertisement_to_wire(keys),
            lambda m: convert_sums.advertisement_from_wire(m, field="keys", member="c1"),
        ),
        "sum-deal": (convert_sums.deal_to_wire(deal, round_id=1), lambda m: convert_sums.deal_from_wire(m, caller="c1")),
        "sum-survivors": (
            convert_sums.announcement_to_wire(survivors, run=_RUN, round_id=1),
            convert_sums.announcement_from_wire,
        ),
        "sum-vow": (
            convert_sums.vow_to_wire(vows.vows[0], round_id=1),
            lambda m: convert_sums.vow_from_wire(m, caller="c1"),
        ),
        "sum-opening": (
            convert_sums.opening_to_wire(opening, run=_RUN, round_id=1),
            lambda m: convert_sums.opening_from_wire(m, caller="c1"),
        ),
    }
