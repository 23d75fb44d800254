"""Does the owner get the sum of exactly the survivors, and nobody anything else, whoever goes and whenever?"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest

from hushtune_common.adapter import AdapterState
from hushtune_common.errors import QuorumMissed, Replayed, StaleRound
from hushtune_common.messages import ClientId, Digest, RunId
from hushtune_common.secagg import record
from hushtune_common.secagg.aggregator import AggregatorState
from hushtune_common.secagg.grid import Grid, TensorGrid
from hushtune_common.secagg.member import Member, MemberState
from hushtune_common.secagg.messages import Terms
from hushtune_common.secagg.relay import Relay, RelayState, Stage
from tests.secagg import OWNER, STAGES, Rehearsal, named, reached, signer, terms_for, verify, witness_of

C1, C2, C3, C4, C5 = named(5)


# --- sums -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [2, 3, 5, 9])
def test_the_sum_of_everybody_is_the_sum(count: int):
    rehearsal = Rehearsal(count)
    assert (rehearsal.whole() == rehearsal.expected()).all()
    assert rehearsal.survivors.members == named(count)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("gone", [(C1,), (C3,), (C5, C2)], ids=str)
def test_whoever_drops_out_at_any_stage_leaves_the_sum_of_the_others(stage: str, gone: Sequence[ClientId]):
    rehearsal = Rehearsal(5)
    for name in STAGES:
        getattr(rehearsal, name)(without=gone if name == stage else ())

    assert (rehearsal.total() == rehearsal.expected()).all()
    # Whose payload has come is in the sum, though it be gone when the masks come off.
    counted = set(named(5)) - (set(gone) if stage in {"advertise", "deal", "upload"} else set())
    assert set(rehearsal.survivors.members) == counted
    witness = witness_of(rehearsal)
    assert witness.readable() == [frozenset(counted)]
    assert (witness.read(counted) == rehearsal.expected()).all()
    assert not witness.both_open()


@pytest.mark.parametrize(("degree", "share"), [(4, 0.5), (6, 0.6)])
def test_neighbours_on_a_ring_are_enough(degree: int, share: float):
    rehearsal = Rehearsal(11, terms=terms_for(degree=degree, share=share))
    rehearsal.advertise()
    rehearsal.deal(without=(C1,))
    rehearsal.upload(without=(C4,))
    rehearsal.vow()
    rehearsal.open()
    assert (rehearsal.total() == rehearsal.expected()).all()
    assert witness_of(rehearsal).readable() == [frozenset(named(11)) - {C1, C4}]


def test_a_payload_that_comes_too_late_is_neither_added_nor_opened():
    rehearsal = reached("upload", Rehearsal(5))
    rehearsal.upload(late=(C2,))
    with pytest.raises(StaleRound):
        rehearsal.aggregator.take(rehearsal.aggregate, rehearsal.uploads[C2])
    rehearsal.vow()
    rehearsal.open()

    assert (rehearsal.total() == rehearsal.expected()).all()
    witness = witness_of(rehearsal)
    assert C2 in witness.uploads  # its key is open by now, and its own mask is not
    assert not witness.found_out(rehearsal.plain)
    assert witness.readable() == [frozenset({C1, C3, C4, C5})]


def test_a_payload_that_the_round_does_not_count_is_not_added():
    rehearsal = reached("upload", Rehearsal(5))
    aggregator = rehearsal.aggregator
    for name in rehearsal.names:
        rehearsal.uploads[name] = rehearsal.mask(name)
        rehearsal.aggregate = aggregator.take(rehearsal.aggregate, rehearsal.uploads[name])
    rehearsal.aggregate = aggregator.close(rehearsal.aggregate, among=(C1, C2, C4, C5))
    assert rehearsal.aggregate.survivors is not None
    rehearsal.relayed = rehearsal.relay.announce(rehearsal.relayed, rehearsal.aggregate.survivors)
    rehearsal.vow(without=(C3,))
    rehearsal.open()
    assert rehearsal.survivors.members == (C1, C2, C4, C5)
    assert (rehearsal.total() == rehearsal.expected()).all()
    assert not witness_of(rehearsal).found_out(rehearsal.plain)


def test_a_mean_of_adapters_comes_out_of_masked_words():
    grid = Grid(tensors=(TensorGrid(name="w", shape=(30, 7), clip=0.01, digits=5),), weight_max=60)
    rehearsal = Rehearsal(4, terms=replace(terms_for(words=grid.words), grid=grid.digest))
    rng = np.random.default_rng(5)
    shipped = AdapterState({"w": rng.standard_normal((30, 7)).astype(np.float32)})
    changes = {n: (0.003 * rng.standard_normal((30, 7))).astype(np.float32) for n in rehearsal.names}
    weights = {C1: 10, C2: 20, C3: 30, C4: 40}
    for n in rehearsal.names:
        returned = AdapterState({"w": shipped.tensors["w"] + changes[n]})
        rehearsal.plain[n] = grid.encode(returned, shipped=shipped, weight=weights[n]).words
    for name in STAGES:
        getattr(rehearsal, name)(without=(C4,) if name == "upload" else ())

    mean = grid.decode(rehearsal.total(), shipped=shipped)
    wanted = shipped.tensors["w"] + sum(weights[n] * changes[n].astype(np.float64) for n in (C1, C2, C3)) / 60
    assert mean.weight == 60
    assert np.abs(mean.state.tensors["w"] - wanted).max() <= 0.5 * grid.step(grid.tensors[0]) + 1e-6


@pytest.mark.parametrize("stage", ["advertise", "deal", "upload", "vow"])
def test_below_the_quorum_the_round_ends_and_nothing_is_open(stage: str):
    rehearsal = reached(stage, Rehearsal(5, terms=terms_for(members_min=3)))
    with pytest.raises(QuorumMissed):
        getattr(rehearsal, stage)(without=(C1, C2, C3))
    if rehearsal.relayed.roster is not None:
        witness = witness_of(rehearsal)
        assert not witness.readable()
        assert not witness.found_out(rehearsal.plain)


def test_with_too_few_openings_the_masks_stay_on():
    rehearsal = reached("open", Rehearsal(5))
    rehearsal.open(without=(C1, C2, C3))
    assert rehearsal.aggregator.lacking(rehearsal.aggregate) == frozenset(named(5))
    with pytest.raises(QuorumMissed, match="too few shares"):
        rehearsal.total()
    assert not witness_of(rehearsal).readable()


# --- once more, late, after a restart ---------------------------------------------------------------------------------


def restarted(state: MemberState) -> MemberState:
    return record.from_bytes(record.to_bytes(state), MemberState)


def test_a_member_that_is_killed_at_any_point_says_the_same_again():
    rehearsal = Rehearsal(4)
    member = rehearsal.members[C2]
    said: list[object] = []

    def sayings(state: MemberState) -> list[object]:
        found: list[object] = [state.advertisement]
        if state.roster is not None:
            found.append(member.deal(state))
        if state.delivery is not None:
            found.append(member.mask(state, rehearsal.plain[C2])[1])
        if state.confirmed:
            found += [state.vow, member.opening(state)]
        return found

    for stage in STAGES:
        getattr(rehearsal, stage)()
        rehearsal.states[C2] = restarted(rehearsal.states[C2])
        now = sayings(rehearsal.states[C2])
        assert now[: len(said)] == said
        said = now
    assert len(said) == 5


def test_what_comes_twice_changes_nothing():
    rehearsal = Rehearsal(4)
    rehearsal.whole()
    member, state = rehearsal.members[C1], rehearsal.states[C1]
    assert member.meet(state, rehearsal.roster) == state
    assert member.receive(state, rehearsal.delivery(C1)) == state
    assert member.mask(state, rehearsal.plain[C1])[0] == state
    assert member.stand(state, rehearsal.survivors) == state
    assert member.confirm(state, rehearsal.vows) == state

    relay, relayed = rehearsal.relay, rehearsal.relayed
    assert relay.advertise(relayed, state.advertisement) == relayed
    assert relay.deal(relayed, member.deal(state)) == relayed
    assert relay.announce(relayed, rehearsal.survivors) == relayed
    assert state.vow is not None
    assert relay.vow(relayed, state.vow) == relayed
    assert relay.close_vows(relay.close_deals(relay.close_advertisements(relayed, among=()))) == relayed

    aggregator, aggregate = rehearsal.aggregator, rehearsal.aggregate
    assert aggregator.meet(aggregate, rehearsal.roster) == aggregate
    assert aggregator.receive(aggregate, rehearsal.delivery(C1)) == aggregate
    assert aggregator.take(aggregate, rehearsal.uploads[C1]) == aggregate
    assert aggregator.open(aggregate, member.opening(state)) == aggregate


def test_relay_and_aggregator_survive_a_restart():
    rehearsal = Rehearsal(4)
    for stage in STAGES:
        getattr(rehearsal, stage)(without=(C3,) if stage == "upload" else ())
        rehearsal.relayed = record.from_bytes(record.to_bytes(rehearsal.relayed), RelayState)
        rehearsal.aggregate = record.from_bytes(record.to_bytes(rehearsal.aggregate), AggregatorState)
    assert (rehearsal.total() == rehearsal.expected()).all()


def test_a_mask_is_never_put_on_two_payloads():
    rehearsal = reached("upload", Rehearsal(4))
    first = rehearsal.mask(C1)
    with pytest.raises(Replayed):
        rehearsal.mask(C1, rehearsal.plain[C2])
    assert rehearsal.mask(C1) == first


def test_equal_payloads_in_two_rounds_have_nothing_in_common():
    one, two = (reached("upload", Rehearsal(3, terms=terms_for(words=500, round_id=k))) for k in (1, 2))
    words = one.plain[C1]
    masked = [np.frombuffer(r.mask(C1, words).words, dtype="<u8") for r in (one, two)]
    assert not (masked[0] == masked[1]).any()


AHEAD: dict[str, Callable[[Rehearsal], object]] = {
    "parcels": lambda r: r.members[C1].receive(r.members[C1].begin(), r.delivery(C1)),
    "dealing": lambda r: r.members[C1].deal(r.members[C1].begin()),
    "masking": lambda r: r.members[C1].mask(r.members[C1].begin(), r.plain[C1]),
    "survivors": lambda r: r.members[C1].stand(r.members[C1].begin(), r.survivors),
    "vows": lambda r: r.members[C1].confirm(r.members[C1].begin(), r.vows),
    "opening": lambda r: r.members[C1].opening(replace(r.states[C1], confirmed=False)),
    "deal": lambda r: r.relay.deal(RelayState(), r.members[C1].deal(r.states[C1])),
    "delivery": lambda r: r.relay.delivery(RelayState(), C1),
    "announcement": lambda r: r.relay.announce(RelayState(), r.survivors),
    "vow": lambda r: r.relay.vow(RelayState(), r.vows.vows[0]),
    "dealers": lambda r: r.aggregator.receive(AggregatorState(), r.delivery(OWNER)),
    "upload": lambda r: r.aggregator.take(AggregatorState(), r.uploads[C1]),
    "total": lambda r: r.aggregator.total(AggregatorState(), ()),
}


@pytest.mark.parametrize("ahead", AHEAD.values(), ids=list(AHEAD))
def test_what_comes_ahead_of_its_stage_is_told_so(ahead: Callable[[Rehearsal], object]):
    rehearsal = Rehearsal(3)
    rehearsal.whole()
    with pytest.raises(StaleRound):
        ahead(rehearsal)


def test_the_relay_says_whom_it_waits_for():
    rehearsal = Rehearsal(4)
    waiting = [rehearsal.relay.waiting_for(rehearsal.relayed, rehearsal.names)]
    for stage in STAGES:
        getattr(rehearsal, stage)(without=(C4,) if stage == "deal" else ())
        waiting.append(rehearsal.relay.waiting_for(rehearsal.relayed, rehearsal.names))
    assert waiting == [set(named(4)), set(named(4)), set(), {C1, C2, C3}, set(), set()]
    assert rehearsal.relayed.stage is Stage.DONE


# --- terms ------------------------------------------------------------------------------------------------------------


USELESS: dict[str, Callable[[Terms], Terms]] = {
    "minority": lambda t: replace(t, share=0.49),
    "more than all": lambda t: replace(t, share=1.0),
    "sums of one": lambda t: replace(t, members_min=1),
    "room for one": lambda t: replace(t, members_max=1),
    "ring of two": lambda t: replace(t, degree=2),
    "odd ring": lambda t: replace(t, degree=5),
    "nothing to add": lambda t: replace(t, words=0),
    "no round": lambda t: replace(t, round_id=0),
    "more colluders than room": lambda t: replace(t, colluders=65),
}


@pytest.mark.parametrize("change", USELESS.values(), ids=list(USELESS))
def test_terms_that_protect_nobody_are_refused(change: Callable[[Terms], Terms]):
    with pytest.raises(ValueError, match=r"share|members_min|degree|rounds count|colluders"):
        change(terms_for())


def test_every_term_is_part_of_the_digest():
    terms = terms_for()
    others = (
        replace(terms, run=RunId("run-2")),
        replace(terms, round_id=2),
        replace(terms, grid=Digest.of(b"other")),
        replace(terms, words=5),
        replace(terms, members_min=3),
        replace(terms, members_max=63),
        replace(terms, share=0.6),
        replace(terms, degree=4),
        replace(terms, colluders=1),
    )
    assert len({t.digest for t in (terms, *others)}) == 10


def test_the_relay_leaves_out_whom_the_round_is_not_for():
    terms = terms_for()
    relay, relayed = Relay(terms), RelayState()
    for name in named(4):
        relayed = relay.advertise(relayed, Member(terms, name=name, sign=signer(name), verify=verify).begin().advertisement)
    roster = relay.close_advertisements(relayed, among=(C1, C3)).roster
    assert roster is not None
    assert roster.members == (C1, C3)
