"""What happens when coordinator, owner or a member lies? Somebody notices, or the round fails; nobody's update is open."""

from dataclasses import replace

import pytest

from hushtune_common.errors import (
    DigestMismatch,
    Equivocation,
    LimitExceeded,
    MalformedUpdate,
    QuorumMissed,
    Replayed,
    StaleRound,
    UntrustedSigner,
)
from hushtune_common.messages import ClientId, Digest
from hushtune_common.secagg.aggregator import Aggregator, AggregatorState
from hushtune_common.secagg.graph import Graph
from hushtune_common.secagg.member import Member
from hushtune_common.secagg.messages import Advertisement, Opening, Roster, Survivors, Upload, Vow, Vows
from tests.secagg import OWNER, Rehearsal, named, reached, signer, terms_for, verify

C1, C2, C3, C4, C5 = named(5)


# --- lies of the relay ------------------------------------------------------------------------------------------------


def other_keys(rehearsal: Rehearsal, name: ClientId) -> Advertisement:
    return rehearsal.members[name].begin().advertisement


def roster_with(rehearsal: Rehearsal, said: Advertisement) -> Roster:
    return Roster(advertisements=tuple(said if a.member == said.member else a for a in rehearsal.roster.advertisements))


def advertised(rehearsal: Rehearsal) -> Roster:
    for name in rehearsal.names:
        rehearsal.relayed = rehearsal.relay.advertise(rehearsal.relayed, rehearsal.states[name].advertisement)
    rehearsal.relayed = rehearsal.relay.close_advertisements(rehearsal.relayed, among=rehearsal.names)
    return rehearsal.roster


def test_keys_that_their_owner_did_not_sign_are_refused_by_everybody():
    rehearsal = Rehearsal(3)
    advertised(rehearsal)
    forged = roster_with(rehearsal, replace(other_keys(rehearsal, C2), proof=rehearsal.states[C2].advertisement.proof))
    with pytest.raises(UntrustedSigner, match="c02"):
        rehearsal.members[C1].meet(rehearsal.states[C1], forged)
    with pytest.raises(UntrustedSigner, match="c02"):
        rehearsal.aggregator.meet(AggregatorState(), forged)


def test_keys_of_another_round_are_refused():
    rehearsal = Rehearsal(3)
    advertised(rehearsal)
    earlier = Member(terms_for(round_id=2), name=C2, sign=signer(C2), verify=verify).begin().advertisement
    with pytest.raises(UntrustedSigner):
        rehearsal.members[C1].meet(rehearsal.states[C1], roster_with(rehearsal, earlier))


def test_a_member_knows_its_own_keys():
    rehearsal = Rehearsal(3)
    advertised(rehearsal)
    with pytest.raises(Equivocation):
        rehearsal.members[C2].meet(rehearsal.states[C2], roster_with(rehearsal, other_keys(rehearsal, C2)))
    without = Roster(advertisements=tuple(a for a in rehearsal.roster.advertisements if a.member != C2))
    with pytest.raises(Equivocation):
        rehearsal.members[C2].meet(rehearsal.states[C2], without)


def test_a_second_roster_is_refused():
    rehearsal = reached("deal", Rehearsal(3))
    with pytest.raises(Equivocation):
        rehearsal.members[C1].meet(rehearsal.states[C1], roster_with(rehearsal, other_keys(rehearsal, C2)))


@pytest.mark.parametrize(("least", "most", "fault"), [(4, 64, QuorumMissed), (2, 2, LimitExceeded)])
def test_a_roster_of_another_size_than_agreed_on_is_refused(least: int, most: int, fault: type[Exception]):
    # A relay that bends its own rule: the members hold it to theirs.
    terms = replace(terms_for(), members_min=least, members_max=most)
    members = {n: Member(terms, name=n, sign=signer(n), verify=verify) for n in named(3)}
    states = {n: m.begin() for n, m in members.items()}
    roster = Roster(advertisements=tuple(states[n].advertisement for n in named(3)))
    with pytest.raises(fault):
        members[C1].meet(states[C1], roster)
    with pytest.raises(fault):
        Aggregator(terms, verify=verify).meet(AggregatorState(), roster)


def test_two_rosters_for_two_members_leave_no_sum_and_open_nothing():
    rehearsal = Rehearsal(4)
    advertised(rehearsal)
    twin = Member(rehearsal.terms, name=C4, sign=signer(C4), verify=verify)  # C4 has helped the relay to other keys
    other = roster_with(rehearsal, twin.begin().advertisement)
    states = {n: rehearsal.members[n].meet(rehearsal.states[n], other if n == C1 else rehearsal.roster) for n in (C1, C2, C3)}
    deals = {n: rehearsal.members[n].deal(states[n]) for n in states}
    with pytest.raises(MalformedUpdate, match="another roster"):
        rehearsal.relay.deal(rehearsal.relayed, deals[C1])
    relayed = rehearsal.relayed
    for name in (C2, C3):
        relayed = rehearsal.relay.deal(relayed, deals[name])
    relayed = replace(relayed, deals=(deals[C1], *relayed.deals))
    relayed = rehearsal.relay.close_deals(relayed)
    with pytest.raises(Equivocation):
        rehearsal.members[C1].receive(states[C1], rehearsal.relay.delivery(relayed, C1))


def test_parcels_that_were_swapped_or_broken_are_shares_not_held():
    rehearsal = reached("deal", Rehearsal(5))
    for name in rehearsal.names:
        rehearsal.relayed = rehearsal.relay.deal(rehearsal.relayed, rehearsal.members[name].deal(rehearsal.states[name]))
    rehearsal.relayed = rehearsal.relay.close_deals(rehearsal.relayed)
    rehearsal.aggregate = rehearsal.aggregator.receive(rehearsal.aggregate, rehearsal.delivery(OWNER))
    for name in rehearsal.names:
        delivery = rehearsal.delivery(name)
        if name == C1:
            (a, first), (b, second), *rest = delivery.parcels
            delivery = replace(delivery, parcels=((a, second), (b, first), *rest))
        rehearsal.states[name] = rehearsal.members[name].receive(rehearsal.states[name], delivery)
    rehearsal.upload()
    rehearsal.vow()
    rehearsal.open()
    assert {n for n, _ in next(o for o in rehearsal.aggregate.openings if o.member == C1).seeds} == {C1, C4, C5}
    assert (rehearsal.total() == rehearsal.expected()).all()


def test_other_dealers_for_other_members_leave_no_sum():
    rehearsal = reached("deal", Rehearsal(5))
    for name in rehearsal.names:
        rehearsal.relayed = rehearsal.relay.deal(rehearsal.relayed, rehearsal.members[name].deal(rehearsal.states[name]))
    rehearsal.relayed = rehearsal.relay.close_deals(rehearsal.relayed)
    rehearsal.aggregate = rehearsal.aggregator.receive(rehearsal.aggregate, rehearsal.delivery(OWNER))
    short = replace(rehearsal.delivery(C1), dealers=(C1, C2, C3), parcels=())
    state = rehearsal.members[C1].receive(rehearsal.states[C1], short)
    state, upload = rehearsal.members[C1].mask(state, rehearsal.plain[C1])
    with pytest.raises(DigestMismatch):
        rehearsal.aggregator.take(rehearsal.aggregate, upload)
    view = rehearsal.delivery(OWNER).view
    with pytest.raises(Equivocation):
        rehearsal.members[C1].stand(state, Survivors(view=view, members=named(5)))


def test_too_few_dealers_and_strangers_are_refused():
    rehearsal = reached("upload", Rehearsal(5))
    fresh = replace(rehearsal.states[C1], delivery=None)
    whole = rehearsal.delivery(C1)
    with pytest.raises(QuorumMissed):
        rehearsal.members[C1].receive(fresh, replace(whole, dealers=(C1, C2), parcels=()))
    with pytest.raises(MalformedUpdate):
        rehearsal.members[C1].receive(fresh, replace(whole, dealers=(C1, C2, C3, ClientId("c99")), parcels=()))
    with pytest.raises(StaleRound):
        rehearsal.members[C1].receive(fresh, replace(whole, dealers=(C2, C3, C4, C5)))
    with pytest.raises(Equivocation):
        rehearsal.members[C1].receive(rehearsal.states[C1], replace(whole, dealers=(C1, C2, C3), parcels=()))


# --- lies of the owner ------------------------------------------------------------------------------------------------


def standing(rehearsal: Rehearsal, *members: ClientId) -> Survivors:
    return Survivors(view=rehearsal.delivery(OWNER).view, members=tuple(sorted(members)))


def test_a_member_stands_to_one_set_of_survivors_only():
    rehearsal = reached("vow", Rehearsal(5))
    member = rehearsal.members[C1]
    state = member.stand(rehearsal.states[C1], standing(rehearsal, C1, C2, C3))
    with pytest.raises(Equivocation):
        member.stand(state, rehearsal.survivors)


def test_too_few_survivors_are_refused():
    rehearsal = reached("vow", Rehearsal(5))
    with pytest.raises(QuorumMissed):
        rehearsal.members[C1].stand(rehearsal.states[C1], standing(rehearsal, C1, C2))


def test_whoever_is_left_out_has_nothing_to_say():
    rehearsal = reached("vow", Rehearsal(5))
    assert rehearsal.members[C1].stand(rehearsal.states[C1], standing(rehearsal, C2, C3, C4)) == rehearsal.states[C1]


def test_whoever_has_sent_nothing_does_not_count_as_a_survivor():
    rehearsal = reached("vow", Rehearsal(5))
    with pytest.raises(Equivocation, match="sent nothing"):
        rehearsal.members[C1].stand(replace(rehearsal.states[C1], payload=None), rehearsal.survivors)


def test_survivors_without_a_mask_between_them_are_refused():
    # Of a ring of twelve with two neighbours on either side, two halves that do not touch.
    rehearsal = reached("vow", Rehearsal(12, terms=terms_for(degree=4)))
    ring = Graph.of(named(12), roster=rehearsal.roster.digest(rehearsal.terms), degree=4).ring
    halves = (*ring[0:4], *ring[6:10])
    with pytest.raises(QuorumMissed, match="take the survivors apart"):
        rehearsal.members[ring[1]].stand(rehearsal.states[ring[1]], standing(rehearsal, *halves))


def test_survivors_that_the_colluders_agreed_on_could_take_apart_are_refused():
    # Of the same ring, all but two beside each other: two more on the other side would cut it.
    rehearsal = reached("vow", Rehearsal(12, terms=terms_for(degree=4, share=0.6, colluders=1)))
    ring = Graph.of(named(12), roster=rehearsal.roster.digest(rehearsal.terms), degree=4).ring
    state = rehearsal.states[ring[6]]
    rehearsal.members[ring[6]].stand(state, standing(rehearsal, *ring[2:]))
    with pytest.raises(QuorumMissed, match="1 colluders would"):
        rehearsal.members[ring[6]].stand(state, standing(rehearsal, *(set(ring[2:]) - {ring[8]})))


def test_a_roster_that_does_not_withstand_the_colluders_agreed_on_is_refused():
    terms = terms_for(colluders=2)
    members = {n: Member(terms, name=n, sign=signer(n), verify=verify) for n in named(5)}
    states = {n: m.begin() for n, m in members.items()}
    roster = Roster(advertisements=tuple(states[n].advertisement for n in named(5)))
    with pytest.raises(QuorumMissed, match="5 members withstand 0 colluders, 2 were agreed on"):
        members[C1].meet(states[C1], roster)
    with pytest.raises(QuorumMissed):
        Aggregator(terms, verify=verify).meet(AggregatorState(), roster)


def test_nothing_is_opened_on_vows_that_do_not_hold():
    rehearsal = reached("open", Rehearsal(5))
    member, state = rehearsal.members[C1], rehearsal.states[C1]
    forged = tuple(Vow(member=v.member, proof=b"\x00" * 32) if v.member != C1 else v for v in rehearsal.vows.vows)
    for vows in (forged, rehearsal.vows.vows[:2]):
        with pytest.raises(QuorumMissed, match="vows hold"):
            member.confirm(state, Vows(survivors=rehearsal.survivors, vows=vows))
    with pytest.raises(Equivocation):
        member.confirm(state, Vows(survivors=standing(rehearsal, C1, C2, C3), vows=rehearsal.vows.vows))
    with pytest.raises(StaleRound):
        member.opening(state)


def test_vows_for_other_survivors_do_not_count():
    rehearsal = reached("vow", Rehearsal(5))
    other = standing(rehearsal, C1, C2, C3)
    elsewhere = {n: rehearsal.members[n].stand(rehearsal.states[n], other).vow for n in (C2, C3)}
    state = rehearsal.members[C1].stand(rehearsal.states[C1], rehearsal.survivors)
    mixed = tuple(v for v in (state.vow, *elsewhere.values()) if v is not None)
    with pytest.raises(QuorumMissed):
        rehearsal.members[C1].confirm(state, Vows(survivors=rehearsal.survivors, vows=mixed))


# --- lies of a member -------------------------------------------------------------------------------------------------


def forged(opening: Opening) -> Opening:
    return replace(opening, seeds=tuple((n, bytes([share[0] ^ 1]) + share[1:]) for n, share in opening.seeds))


def test_one_forged_set_of_shares_does_no_harm_while_there_is_one_to_spare():
    rehearsal = reached("open", Rehearsal(5))
    for name in (C1, C2, C3, C4):
        opening = rehearsal.opening(name)
        rehearsal.aggregate = rehearsal.aggregator.open(rehearsal.aggregate, forged(opening) if name == C2 else opening)
    assert (rehearsal.total() == rehearsal.expected()).all()


def test_forged_shares_never_change_a_sum_unnoticed():
    rehearsal = reached("open", Rehearsal(5))
    for name in (C1, C2, C3):
        opening = rehearsal.opening(name)
        rehearsal.aggregate = rehearsal.aggregator.open(rehearsal.aggregate, forged(opening) if name == C2 else opening)
    with pytest.raises(MalformedUpdate, match="do not give the secret"):
        rehearsal.total()


def test_nobodys_two_secrets_fit_into_an_opening():
    share = bytes(33)
    with pytest.raises(ValueError, match="two secrets"):
        Opening(member=C1, survivors=Digest.of(b""), seeds=((C2, share),), keys=((C2, share),))


def test_openings_of_what_must_stay_closed_are_refused():
    rehearsal = reached("upload", Rehearsal(5))
    rehearsal.upload(without=(C5,))
    rehearsal.vow()
    opening = rehearsal.opening(C1)
    aggregator, state = rehearsal.aggregator, rehearsal.aggregate
    seeds, keys = dict(opening.seeds), dict(opening.keys)
    assert (set(seeds), set(keys)) == ({C1, C2, C3, C4}, {C5})
    wrong = (
        replace(opening, seeds=opening.keys, keys=()),
        replace(opening, seeds=(), keys=((C2, seeds[C2]),)),
        replace(opening, survivors=Digest.of(b"others")),
        replace(opening, member=C5),
    )
    for lie in wrong:
        with pytest.raises(MalformedUpdate):
            aggregator.open(state, lie)
    taken = aggregator.open(state, opening)
    with pytest.raises(Replayed):
        aggregator.open(taken, forged(opening))


def test_payloads_that_cannot_be_are_refused():
    rehearsal = reached("upload", Rehearsal(4))
    upload = rehearsal.mask(C1)
    aggregator, state = rehearsal.aggregator, rehearsal.aggregate
    for lie in (replace(upload, member=ClientId("c99")), replace(upload, words=upload.words[:-8])):
        with pytest.raises(MalformedUpdate):
            aggregator.take(state, lie)
    with pytest.raises(DigestMismatch):
        aggregator.take(state, replace(upload, view=Digest.of(b"another view")))
    state = aggregator.take(state, upload)
    with pytest.raises(Replayed):
        aggregator.take(state, replace(upload, words=bytes(len(upload.words))))


def test_the_sum_is_of_the_payloads_that_were_taken():
    rehearsal = Rehearsal(3)
    rehearsal.whole()
    uploads = [rehearsal.uploads[n] for n in rehearsal.names]
    changed = replace(uploads[0], words=bytes(len(uploads[0].words)))
    for wrong in ([changed, *uploads[1:]], uploads[1:], [*uploads, uploads[0]]):
        with pytest.raises(DigestMismatch):
            rehearsal.aggregator.total(rehearsal.aggregate, wrong)


def test_a_masked_payload_has_one_form():
    rehearsal = reached("upload", Rehearsal(3))
    upload = rehearsal.mask(C1)
    data = upload.to_bytes()
    assert Upload.from_bytes(data, member=C1, terms=rehearsal.terms) == upload
    for wrong in (data[:-1], data + b"\0", b"HTSA\x02" + data[5:], b""):
        with pytest.raises(MalformedUpdate):
            Upload.from_bytes(wrong, member=C1, terms=rehearsal.terms)


def test_a_member_that_says_two_things_is_held_to_the_first():
    rehearsal = reached("deal", Rehearsal(4))
    relay = rehearsal.relay
    with pytest.raises(Replayed):
        relay.advertise(rehearsal.relayed, other_keys(rehearsal, C1))
    deals = {n: rehearsal.members[n].deal(rehearsal.states[n]) for n in rehearsal.names}
    relayed = relay.deal(rehearsal.relayed, deals[C1])
    (holder, parcel), *rest = deals[C1].parcels
    with pytest.raises(Replayed):
        relay.deal(relayed, replace(deals[C1], parcels=((holder, parcel[::-1]), *rest)))
    with pytest.raises(MalformedUpdate, match="neighbours"):
        relay.deal(relayed, replace(deals[C2], parcels=deals[C2].parcels[1:]))
