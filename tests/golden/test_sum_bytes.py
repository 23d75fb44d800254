"""Has a byte of what travels for a sum changed? One committed message of every kind; a change breaks peers of other versions."""

from collections.abc import Callable
from typing import Any

import pytest

from hushtune_common.messages import Caller, ClientId, Digest, Directive, DirectiveKind, Role, RunId
from hushtune_common.secagg.messages import (
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
from hushtune_common.wire import convert, convert_sums
from hushtune_common.wire.v1 import sums_pb2

C1, C2, RUN = ClientId("c1"), ClientId("c2"), RunId("run-1")
CALLER = Caller(role=Role.CLIENT, name="c1")
FIRST, SECOND = Digest(bytes(32)), Digest(bytes([1]) * 32)
KEYS = Advertisement(member=C1, channel_key=bytes([2]) * 32, mask_key=bytes([3]) * 32, commitment=SECOND, proof=b"said")
SURVIVORS = Survivors(view=FIRST, members=(C1, C2))
VOW = Vow(member=C1, proof=b"vowed")
Convert = Callable[[Any], Any]

VALUES: dict[str, tuple[Any, Convert, Convert]] = {
    "layout": (Layout(grid=FIRST, words=300), convert_sums.layout_to_wire, convert_sums.layout_from_wire),
    "advertisement": (
        KEYS,
        convert_sums.advertisement_to_wire,
        lambda pb: convert_sums.advertisement_from_wire(pb, field="advertisement"),
    ),
    "roster": (Roster(advertisements=(KEYS,)), convert_sums.word_to_wire, convert_sums.word_from_wire),
    "delivery": (
        Delivery(roster=FIRST, dealers=(C1, C2), parcels=((C2, bytes(82)),)),
        convert_sums.word_to_wire,
        convert_sums.word_from_wire,
    ),
    "survivors": (SURVIVORS, convert_sums.word_to_wire, convert_sums.word_from_wire),
    "vows": (Vows(survivors=SURVIVORS, vows=(VOW,)), convert_sums.word_to_wire, convert_sums.word_from_wire),
    "directive": (
        Directive(seq=8, kind=DirectiveKind.SUM, round_id=2, sum=SURVIVORS),
        convert.directive_to_wire,
        convert.directive_from_wire,
    ),
    "deal": (
        (2, Deal(dealer=C1, roster=SECOND, parcels=((C2, bytes(82)),))),
        lambda value: convert_sums.deal_to_wire(value[1], round_id=value[0]),
        lambda pb: convert_sums.deal_from_wire(pb, caller="c1"),
    ),
    "announcement": (
        (RUN, 2, SURVIVORS),
        lambda value: convert_sums.announcement_to_wire(value[2], run=value[0], round_id=value[1]),
        convert_sums.announcement_from_wire,
    ),
    "vow": (
        (2, VOW),
        lambda value: convert_sums.vow_to_wire(value[1], round_id=value[0]),
        lambda pb: convert_sums.vow_from_wire(pb, caller="c1"),
    ),
    "opening": (
        Opening(member=C1, survivors=SECOND, seeds=((C1, bytes(33)),), keys=((C2, bytes([4]) * 33),)),
        lambda value: convert_sums.opening_to_wire(value, run=RUN, round_id=2),
        lambda pb: convert_sums.opening_from_wire(pb, caller="c1"),
    ),
}
GOLDEN: dict[str, str] = {
    "layout": "0a20000000000000000000000000000000000000000000000000000000000000000010ac02",
    "advertisement": (
        "0a026331122002020202020202020202020202020202020202020202020202020202020202021a2003030303030303030303030303030303"
        "03030303030303030303030303030303222001010101010101010101010101010101010101010101010101010101010101012a0473616964"
    ),
    "roster": (
        "0a720a700a026331122002020202020202020202020202020202020202020202020202020202020202021a20030303030303030303030303"
        "0303030303030303030303030303030303030303222001010101010101010101010101010101010101010101010101010101010101012a04"
        "73616964"
    ),
    "delivery": (
        "1284010a20000000000000000000000000000000000000000000000000000000000000000012026331120263321a580a0263321252000000"
        "0000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000"
        "0000000000000000000000000000000000000000000000"
    ),
    "survivors": "1a2a0a2000000000000000000000000000000000000000000000000000000000000000001202633112026332",
    "vows": (
        "22390a2a0a2000000000000000000000000000000000000000000000000000000000000000001202633112026332120b0a0263311205766f776564"
    ),
    "directive": ("080810061802422c1a2a0a2000000000000000000000000000000000000000000000000000000000000000001202633112026332"),
    "deal": (
        "0802122001010101010101010101010101010101010101010101010101010101010101011a580a0263321252000000000000000000000000"
        "0000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000"
        "0000000000000000000000000000"
    ),
    "announcement": (
        "0a0572756e2d3110021a2a0a2000000000000000000000000000000000000000000000000000000000000000001202633112026332"
    ),
    "vow": "08021205766f776564",
    "opening": (
        "0a0572756e2d3110021a20010101010101010101010101010101010101010101010101010101010101010122270a02633112210000000000"
        "000000000000000000000000000000000000000000000000000000002a270a02633212210404040404040404040404040404040404040404"
        "04040404040404040404040404"
    ),
}


@pytest.mark.parametrize("kind", VALUES)
def test_words_on_sums_keep_their_bytes_both_ways(kind: str) -> None:
    value, encode, decode = VALUES[kind]
    message = encode(value)
    assert message.SerializeToString(deterministic=True).hex() == GOLDEN[kind]
    assert decode(type(message).FromString(bytes.fromhex(GOLDEN[kind]))) == value


def test_every_message_on_sums_is_here() -> None:
    seen = {type(encode(value)).DESCRIPTOR.name for value, encode, _ in VALUES.values()}
    seen |= {field.name.capitalize() for field in sums_pb2.SumWord.DESCRIPTOR.fields}
    inside = {"Named", "Vow"}
    known = {*sums_pb2.DESCRIPTOR.message_types_by_name}
    assert {name.removeprefix("Sum") for name in known - inside} <= {name.removeprefix("Sum") for name in seen}
