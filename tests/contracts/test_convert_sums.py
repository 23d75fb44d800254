"""Does every word on a sum survive the wire, and is what nobody can have said refused by name?"""

from collections.abc import Callable
from typing import Any

import pytest
from google.protobuf.message import Message
from hypothesis import given
from hypothesis import strategies as st

from hushtune_common.errors import MalformedUpdate
from hushtune_common.messages import ClientId, Digest, RunId
from hushtune_common.secagg.messages import (
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
from hushtune_common.secagg.shamir import SHARE_BYTES
from hushtune_common.secagg.terms import Layout
from hushtune_common.wire import convert_sums
from hushtune_common.wire.v1 import coordinator_pb2, sums_pb2

RUN = RunId("run-1")
names = st.from_regex(r"[a-z0-9][a-z0-9-]{0,8}", fullmatch=True).map(ClientId)
groups = st.lists(names, min_size=1, max_size=4, unique=True).map(lambda found: tuple(sorted(found)))
digests = st.binary(min_size=32, max_size=32).map(Digest)
keys = st.binary(min_size=32, max_size=32)
proofs = st.binary(min_size=1, max_size=40)
rounds = st.integers(1, 1000)


def given_each(found: tuple[ClientId, ...], size: int) -> tuple[tuple[ClientId, bytes], ...]:
    return tuple((name, name.encode().ljust(size, b".")) for name in found)


advertisements = st.builds(Advertisement, member=names, channel_key=keys, mask_key=keys, commitment=digests, proof=proofs)
rosters = st.lists(advertisements, max_size=3, unique_by=lambda ad: ad.member).map(
    lambda found: Roster(advertisements=tuple(sorted(found, key=lambda ad: ad.member)))
)
survivors = st.builds(Survivors, view=digests, members=groups)


def delivery_of(roster: Digest, dealers: tuple[ClientId, ...]) -> Delivery:
    return Delivery(roster=roster, dealers=dealers, parcels=given_each(dealers, PARCEL_BYTES))


def vows_of(among: Survivors, proof: bytes) -> Vows:
    return Vows(survivors=among, vows=tuple(Vow(member=name, proof=proof) for name in among.members))


def deal_of(roster: Digest, holders: tuple[ClientId, ...]) -> Deal:
    return Deal(dealer=ClientId("c1"), roster=roster, parcels=given_each(holders, PARCEL_BYTES))


def opening_of(digest: Digest, group: tuple[ClientId, ...]) -> Opening:
    seeds, opened = given_each(group[:1], SHARE_BYTES), given_each(group[1:], SHARE_BYTES)
    return Opening(member=ClientId("c1"), survivors=digest, seeds=seeds, keys=opened)


deliveries = st.builds(delivery_of, digests, groups)
vows = st.builds(vows_of, survivors, proofs)
openings = st.builds(opening_of, digests, groups)
KINDS: dict[str, tuple[st.SearchStrategy[Any], Callable[[Any], Message], Callable[[Any], Any]]] = {
    "layout": (st.builds(Layout, grid=digests, words=rounds), convert_sums.layout_to_wire, convert_sums.layout_from_wire),
    "word": (rosters | deliveries | survivors | vows, convert_sums.word_to_wire, convert_sums.word_from_wire),
    "deal": (
        st.tuples(rounds, st.builds(deal_of, digests, groups)),
        lambda value: convert_sums.deal_to_wire(value[1], round_id=value[0]),
        lambda pb: convert_sums.deal_from_wire(pb, caller="c1"),
    ),
    "vow": (
        st.tuples(rounds, st.builds(Vow, member=st.just(ClientId("c1")), proof=proofs)),
        lambda value: convert_sums.vow_to_wire(value[1], round_id=value[0]),
        lambda pb: convert_sums.vow_from_wire(pb, caller="c1"),
    ),
    "announcement": (
        st.tuples(st.just(RUN), rounds, survivors),
        lambda value: convert_sums.announcement_to_wire(value[2], run=value[0], round_id=value[1]),
        convert_sums.announcement_from_wire,
    ),
    "opening": (
        openings,
        lambda value: convert_sums.opening_to_wire(value, run=RUN, round_id=1),
        lambda pb: convert_sums.opening_from_wire(pb, caller="c1"),
    ),
}


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
def test_every_word_on_a_sum_survives_the_wire(kind: str, data: st.DataObject) -> None:
    strategy, encode, decode = KINDS[kind]
    value = data.draw(strategy)
    message = encode(value)
    assert decode(type(message).FromString(message.SerializeToString())) == value


@given(advertisements)
def test_keys_are_those_of_the_caller_whatever_the_message_says(said: Advertisement) -> None:
    found = convert_sums.advertisement_from_wire(convert_sums.advertisement_to_wire(said), field="keys", member="somebody-else")
    assert found.member == "somebody-else"


WRONG: dict[str, tuple[Callable[[], object], str]] = {
    "a short key": (
        lambda: convert_sums.advertisement_from_wire(sums_pb2.Advertisement(member="c1", commitment=bytes(32)), field="keys"),
        "keys: c1: keys have 32 bytes",
    ),
    "a long proof": (
        lambda: convert_sums.advertisement_from_wire(sums_pb2.Advertisement(proof=bytes(PROOF_BYTES_MAX + 1)), field="keys"),
        "keys.proof",
    ),
    "a short parcel": (
        lambda: convert_sums.deal_from_wire(
            coordinator_pb2.DealRequest(
                round_id=1, roster_digest=bytes(32), parcels=[sums_pb2.Named(member="c2", data=b"short")]
            ),
            caller="c1",
        ),
        "deal: parcels have 82 bytes",
    ),
    "a long parcel": (
        lambda: convert_sums.deal_from_wire(
            coordinator_pb2.DealRequest(
                round_id=1, roster_digest=bytes(32), parcels=[sums_pb2.Named(member="c2", data=bytes(99))]
            ),
            caller="c1",
        ),
        "parcels of c2",
    ),
    "names out of order": (
        lambda: convert_sums.survivors_from_wire(sums_pb2.SumSurvivors(view=bytes(32), members=["c2", "c1"])),
        "survivors: ",
    ),
    "no word": (lambda: convert_sums.word_from_wire(sums_pb2.SumWord()), "sum: says nothing"),
    "an empty vow": (lambda: convert_sums.vow_from_wire(coordinator_pb2.VowRequest(round_id=1), caller="c1"), "vow: "),
    "a round before the first": (
        lambda: convert_sums.vow_from_wire(coordinator_pb2.VowRequest(proof=b"said"), caller="c1"),
        "round_id",
    ),
    "no words": (lambda: convert_sums.layout_from_wire(sums_pb2.SumLayout(grid_digest=bytes(32))), "sum_layout: words"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_what_nobody_can_have_said_is_refused_by_name(kind: str) -> None:
    read, problem = WRONG[kind]
    with pytest.raises(MalformedUpdate, match=problem):
        read()
