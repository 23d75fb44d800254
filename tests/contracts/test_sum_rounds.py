"""Does the coordinator carry a sum as the relay has it, tell each stage once, and end every round, whoever drops out?"""

import json
from collections.abc import Iterable
from dataclasses import replace

import pytest

from hushtune_common.aggregation import SecureConfig
from hushtune_common.errors import MalformedUpdate, Replayed
from hushtune_common.messages import ClientId, Digest, DirectiveKind, SumWord
from hushtune_common.secagg.member import Member as Party
from hushtune_common.secagg.member import MemberState
from hushtune_common.secagg.messages import Delivery, Roster, Survivors, Vow, Vows
from hushtune_common.secagg.terms import Layout
from hushtune_common.units import Second
from hushtune_server.coordinator.adding import sum_after
from hushtune_server.coordinator.events import (
    OWNER,
    Announced,
    Dealt,
    Died,
    Event,
    Joined,
    Member,
    Reported,
    Vowed,
    from_body,
    kind_of,
    to_body,
)
from hushtune_server.coordinator.phases import Assigned, Closed, Concluding, Failed, Gathering, Open, State
from hushtune_server.coordinator.rounds import advance, fold
from hushtune_server.coordinator.sums import SumRules
from tests.contracts.test_rounds import C1, C2, C3, RULES, RUN, completed, concluded, joined, settled, solved, ticked
from tests.fakes import report_of
from tests.secagg import signer, verify

ALL = (C1, C2, C3)
LAYOUT = Layout(grid=Digest.of(b"grid"), words=4)
SUMS = SumRules(options=SecureConfig(), run=RUN, members_max=3, deal_s=Second(300.0), vow_s=Second(150.0))
SECURE = replace(RULES, sums=SUMS)


class Play:
    """A run whose clients are real members; every event goes through the journal's form on its way."""

    def __init__(self) -> None:
        self.terms = SUMS.terms(LAYOUT, round_id=1)
        self.parties = {c: Party(self.terms, name=c, sign=signer(c), verify=verify) for c in ALL}
        self.known: dict[ClientId, MemberState] = {c: p.begin() for c, p in self.parties.items()}
        self.state, self.events = State(), list[Event]()

    def take(self, *events: Event) -> None:
        for event in events:
            stored = from_body(kind_of(event), json.loads(json.dumps(to_body(event))))
            assert stored == event
            self.state, _ = advance(self.state, stored, rules=SECURE)
            self.events.append(stored)

    def words(self, member: Member) -> list[SumWord]:
        return [d.sum for d in self.state.posted(member, after=0) if d.sum is not None]

    def begin(self, *, deferred: frozenset[ClientId] = frozenset()) -> None:
        self.take(*joined(*ALL), Joined(at=Second(0.0), member=OWNER, layout=LAYOUT))
        for client in ALL:
            said = self.known[client].advertisement
            self.take(Reported(at=Second(1.0), report=report_of(client, 1), advertisement=said))
        self.take(solved(*ALL, deferred=deferred))

    def deal(self, *clients: ClientId, at: float = 3.0) -> None:
        for client in clients:
            (roster,) = (w for w in self.words(Member(client)) if isinstance(w, Roster))
            self.known[client] = self.parties[client].meet(self.known[client], roster)
            self.take(Dealt(at=Second(at), round_id=1, deal=self.parties[client].deal(self.known[client])))

    def survivors(self, *clients: ClientId) -> Survivors:
        (dealers,) = (w for w in self.words(OWNER) if isinstance(w, Delivery))
        return Survivors(view=dealers.view, members=clients)

    def to_the_end(self, *clients: ClientId) -> None:
        self.take(*(completed(c) for c in clients), *(settled(c) for c in clients), ticked(140.0))

    def announce(self, *clients: ClientId, at: float = 141.0) -> None:
        self.take(Announced(at=Second(at), round_id=1, survivors=self.survivors(*clients)))

    def vow(self, *clients: ClientId, at: float = 142.0) -> None:
        for client in clients:
            self.take(Vowed(at=Second(at), round_id=1, vow=Vow(member=client, proof=b"I stand to them")))


def kinds(words: Iterable[SumWord]) -> list[str]:
    return [type(word).__name__ for word in words]


def test_a_sum_goes_through_its_stages_and_each_is_told_once_to_whom_it_concerns() -> None:
    play = Play()
    play.begin()
    play.deal(*ALL)
    play.to_the_end(*ALL)
    play.announce(*ALL)
    play.vow(*ALL)
    assert [kinds(play.words(Member(c))) for c in ALL] == [["Roster", "Delivery", "Survivors", "Vows"]] * 3
    assert kinds(play.words(OWNER)) == ["Roster", "Delivery"]
    for client in ALL:
        (delivery,) = (w for w in play.words(Member(client)) if isinstance(w, Delivery))
        assert [dealer for dealer, _ in delivery.parcels] == [c for c in ALL if c != client], "each gets its own parcels"
    (told,) = (w for w in play.words(OWNER) if isinstance(w, Delivery))
    assert told.parcels == (), "the owner gets names"
    assert fold(play.events, rules=SECURE) == play.state


def test_no_round_opens_before_the_owner_has_told_the_layout_and_its_first_word_counts() -> None:
    play = Play()
    play.take(*joined(OWNER, *ALL))
    assert isinstance(play.state.phase, Gathering)
    play.take(Joined(at=Second(1.0), member=OWNER, layout=LAYOUT))
    assert isinstance(play.state.phase, Open)
    play.take(Joined(at=Second(2.0), member=OWNER, layout=replace(LAYOUT, words=5)))
    assert play.state.layout == LAYOUT


def test_the_last_round_is_concluded_too_and_only_the_owner_ends_it() -> None:
    play = Play()
    play.begin()
    play.deal(*ALL)
    play.to_the_end(*ALL)
    assert isinstance(play.state.phase, Concluding)
    assert play.state.posted(OWNER, after=0)[-1].kind is DirectiveKind.CONCLUDE
    play.take(concluded(at=200.0))
    assert isinstance(play.state.phase, Closed)
    assert play.state.phase.last


def test_who_was_granted_nothing_is_in_no_roster_and_a_roster_that_is_too_small_fails_the_round() -> None:
    play = Play()
    play.begin(deferred=frozenset({C3}))
    assert isinstance(play.state.phase, Failed)
    assert "2 members advertised keys, 3 are needed" in play.state.phase.reason


def test_who_dies_before_it_has_dealt_is_waited_for_no_longer_and_is_told_so_when_it_comes_back() -> None:
    play = Play()
    play.begin()
    play.deal(C1, C2)
    assert kinds(play.words(OWNER)) == ["Roster"]
    play.take(Died(at=Second(20.0), member=Member(C3), silent_s=Second(15.0)))
    (dealers,) = (w for w in play.words(OWNER) if isinstance(w, Delivery))
    assert dealers.dealers == (C1, C2)
    (told,) = (w for w in play.words(Member(C3)) if isinstance(w, Delivery))
    assert C3 not in told.dealers


def test_deals_are_waited_for_no_longer_than_their_time() -> None:
    play = Play()
    play.begin()
    play.deal(C1, C2)
    play.take(ticked(301.0))
    assert kinds(play.words(OWNER)) == ["Roster"]
    play.take(ticked(303.0))
    assert kinds(play.words(OWNER)) == ["Roster", "Delivery"]


def test_a_round_in_which_too_few_have_dealt_fails_and_says_so() -> None:
    play = Play()
    play.begin()
    play.deal(C1)
    play.take(ticked(303.0))
    assert isinstance(play.state.phase, Failed)
    assert "1 of 3 members dealt, 2 are needed" in play.state.phase.reason


def test_survivors_are_among_those_whose_update_was_accepted() -> None:
    play = Play()
    play.begin()
    play.deal(*ALL)
    play.take(completed(C1), completed(C2), settled(C1), settled(C2), settled(C3, accepted=False), ticked(140.0))
    wrong = Announced(at=Second(141.0), round_id=1, survivors=play.survivors(C1, C3))
    with pytest.raises(MalformedUpdate, match="c3 had no update accepted"):
        sum_after(play.state.phase, wrong, at=wrong.at)
    before = play.state
    play.take(wrong)
    assert play.state is before
    play.announce(C1, C2)
    assert kinds(play.words(Member(C2)))[-1] == "Survivors"
    assert kinds(play.words(Member(C3)))[-1] == "Delivery", "whoever is none hears nothing of it"


def test_vows_wait_for_the_living_and_a_survivor_that_comes_back_can_still_vow() -> None:
    play = Play()
    play.begin()
    play.deal(*ALL)
    play.to_the_end(C1, C2, C3)
    play.announce(C1, C2, C3)
    for client in (C2, C3):
        play.take(Died(at=Second(150.0), member=Member(client), silent_s=Second(15.0)))
    play.vow(C1, at=151.0)
    assert kinds(play.words(Member(C1)))[-1] == "Survivors", "one vow is no quorum"
    play.take(*joined(C2, at=160.0))
    play.vow(C2, at=161.0)
    (vows,) = (w for w in play.words(Member(C1)) if isinstance(w, Vows))
    assert [vow.member for vow in vows.vows] == [C1, C2]


def test_another_word_than_before_is_refused_and_the_same_one_changes_nothing() -> None:
    play = Play()
    play.begin()
    play.deal(*ALL)
    (deal,) = (e for e in play.events if isinstance(e, Dealt) and e.deal.dealer == C1)
    parcels = tuple((holder, bytes(82)) for holder, _ in deal.deal.parcels)
    with pytest.raises(Replayed, match="dealt otherwise"):
        sum_after(play.state.phase, replace(deal, deal=replace(deal.deal, parcels=parcels)), at=Second(4.0))
    before = play.state
    play.take(deal)
    assert play.state is before
    assert isinstance(before.phase, Assigned)


def test_survivors_that_are_announced_again_are_told_once() -> None:
    play = Play()
    play.begin()
    play.deal(*ALL)
    play.to_the_end(*ALL)
    play.announce(*ALL)
    before = play.state
    play.announce(*ALL, at=141.5)
    assert play.state is before
