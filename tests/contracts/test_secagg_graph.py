"""Is the ring as hard to take apart as is said, and how many may collude?"""

from itertools import combinations

import pytest

from hushtune_common.messages import ClientId, Digest
from hushtune_common.secagg.graph import Graph, colluders_max
from hushtune_common.secagg.messages import Terms
from tests.secagg import named, terms_for

ROSTER = Digest.of(b"roster")


def graph(count: int, degree: int) -> Graph:
    return Graph.of(named(count), roster=ROSTER, degree=degree)


@pytest.mark.parametrize(("count", "degree"), [(5, 0), (5, 4), (9, 4), (10, 6), (12, 8)])
def test_neighbourhood_is_mutual_and_equally_large(count: int, degree: int):
    ring = graph(count, degree)
    wanted = min(degree or count - 1, count - 1)
    for name in ring.ring:
        near = ring.neighbours(name)
        assert len(near) == wanted
        assert name not in near
        assert all(name in ring.neighbours(other) for other in near)


@pytest.mark.parametrize("degree", [0, 6, 8])
def test_a_reach_all_round_is_everybody(degree: int):
    ring = graph(7, degree)
    assert ring.holders(ClientId("c03")) == frozenset(named(7))


def test_the_order_on_the_ring_is_another_with_every_roster():
    orders = {Graph.of(named(8), roster=Digest.of(bytes([k])), degree=4).ring for k in range(20)}
    assert len(orders) == 20


@pytest.mark.parametrize(("count", "degree"), [(9, 4), (10, 4), (11, 6)])
def test_as_many_as_the_degree_have_to_go_before_the_ring_falls_apart(count: int, degree: int):
    ring, everybody = graph(count, degree), frozenset(named(count))
    assert all(ring.connected(everybody - set(gone)) for gone in combinations(named(count), degree - 1))
    assert not all(ring.connected(everybody - set(gone)) for gone in combinations(named(count), degree))


def test_nobody_is_not_joined_to_anybody_else():
    assert graph(4, 0).connected(frozenset())


def secrets_stay_closed(terms: Terms, *, holders: int, colluders: int) -> bool:
    """Try every way in which honest holders can be made to give one of the two, with the colluders giving both."""
    needed, honest = terms.threshold(holders), holders - colluders
    return not any(seeds + colluders >= needed and honest - seeds + colluders >= needed for seeds in range(honest + 1))


@pytest.mark.parametrize("share", [0.5, 0.6, 2 / 3, 0.8])
@pytest.mark.parametrize("count", range(2, 14))
def test_among_all_the_promise_is_what_trying_every_split_finds(count: int, share: float):
    terms = terms_for(share=share)
    most = colluders_max(terms, members=count)
    two_honest = [terms.threshold(count) - c >= 2 for c in range(count)]
    closed = [secrets_stay_closed(terms, holders=count, colluders=c) for c in range(count)]
    assert [a and b for a, b in zip(two_honest, closed, strict=True)] == [c <= most for c in range(count)]


@pytest.mark.parametrize(("count", "degree", "share"), [(9, 6, 0.7), (10, 8, 0.8), (11, 8, 0.75)])
def test_on_a_ring_no_colluders_and_dropped_take_the_honest_apart(count: int, degree: int, share: float):
    terms, ring = terms_for(share=share, degree=degree), graph(count, degree)
    most = colluders_max(terms, members=count)
    away = most + count - terms.threshold(count)
    assert most >= 0
    assert secrets_stay_closed(terms, holders=degree + 1, colluders=most)
    assert all(ring.connected(frozenset(named(count)) - set(gone)) for gone in combinations(named(count), away))


def test_a_majority_and_no_more_covers_coordinator_and_owner_and_hardly_a_member():
    assert [colluders_max(terms_for(), members=n) for n in (2, 3, 4, 5, 10)] == [0, 0, 1, 0, 1]
    assert [colluders_max(terms_for(share=2 / 3), members=n) for n in (3, 4, 7, 10)] == [1, 1, 2, 3]
