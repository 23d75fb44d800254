"""Is a ring as hard to take apart as is said, and how many may collude?"""

from itertools import combinations

import numpy as np
import pytest

from hushtune_common.messages import ClientId, Digest
from hushtune_common.secagg.admission import colluders_max
from hushtune_common.secagg.graph import Graph
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


def pieces(ring: Graph, among: frozenset[ClientId]) -> int:
    """Walk over the graph without all others; return in how many pieces it is."""
    left, found = set(among), 0
    while left:
        reached, fresh = set[ClientId](), {min(left)}
        while fresh:
            reached |= fresh
            fresh = {near for name in fresh for near in ring.neighbours(name) if near in among} - reached
        left -= reached
        found += 1
    return found


def least_cut(ring: Graph, among: frozenset[ClientId]) -> int:
    """Try to take out every set, the small ones first."""
    for size in range(len(among)):
        if any(len(among) - size < 2 or pieces(ring, among - set(gone)) > 1 for gone in combinations(sorted(among), size)):
            return size
    return 0


@pytest.mark.parametrize(("count", "degree"), [(6, 4), (9, 4), (10, 4), (10, 6), (11, 6), (7, 0)])
def test_as_many_as_the_degree_take_a_ring_apart(count: int, degree: int):
    ring, everybody = graph(count, degree), frozenset(named(count))
    assert ring.cut(everybody) == least_cut(ring, everybody) == (degree or count - 1)


@pytest.mark.parametrize(("count", "degree"), [(9, 4), (10, 6), (11, 4), (12, 6), (8, 0)])
def test_the_cut_of_survivors_is_what_trying_everything_finds(count: int, degree: int):
    ring, rng = graph(count, degree), np.random.default_rng([count, degree])
    for _ in range(25):
        among = frozenset(ClientId(str(n)) for n in rng.permutation(named(count))[: int(rng.integers(2, count + 1))])
        assert ring.cut(among) == least_cut(ring, among)


@pytest.mark.parametrize("degree", [0, 4])
def test_nobody_and_one_alone_are_taken_apart_by_nobody(degree: int):
    assert graph(8, degree).cut(frozenset()) == graph(8, degree).cut(frozenset(named(1))) == 0


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


@pytest.mark.parametrize(("count", "degree", "share"), [(9, 6, 0.7), (20, 8, 0.8), (11, 4, 0.5)])
def test_on_a_ring_it_is_neighbours_that_hold_the_secrets(count: int, degree: int, share: float):
    terms = terms_for(share=share, degree=degree)
    most = colluders_max(terms, members=count)
    assert [secrets_stay_closed(terms, holders=degree + 1, colluders=c) for c in range(most + 2)] == [True] * (most + 1) + [False]


def test_a_majority_and_no_more_covers_coordinator_and_owner_and_hardly_a_member():
    assert [colluders_max(terms_for(), members=n) for n in (2, 3, 4, 5, 10)] == [0, 0, 1, 0, 1]
    assert [colluders_max(terms_for(share=2 / 3), members=n) for n in (3, 4, 7, 10)] == [1, 1, 2, 3]
