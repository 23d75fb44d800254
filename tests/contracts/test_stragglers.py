"""Does every straggler policy obey the laws of ``StragglerPolicy``?"""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hushtune_common.messages import ClientId
from hushtune_common.units import Second
from hushtune_server.coordinator.stragglers import (
    Close,
    Deadline,
    Everyone,
    Fail,
    Quorum,
    RoundView,
    StragglerPolicy,
    Wait,
)

LIMIT_S = 100.0


def policies() -> st.SearchStrategy[StragglerPolicy]:
    times = st.floats(0.0, 150.0).map(Second)
    quorum = st.builds(Quorum, share=st.floats(0.01, 1.0), wait_after_s=times, judging_s=times)
    return st.one_of(quorum, st.just(Deadline()), st.just(Everyone()))


@st.composite
def moments(draw: st.DrawFn) -> tuple[RoundView, Second]:
    """A view and a time that fit together: nobody arrived in the future."""
    of = draw(st.integers(1, 8))
    elapsed = draw(st.floats(0.0, 150.0))
    fates = draw(st.lists(st.sampled_from(["arrived", "waiting", "delivered", "out"]), min_size=of, max_size=of))
    arrived = {ClientId(f"c{k}"): Second(draw(st.floats(0.0, elapsed))) for k, fate in enumerate(fates) if fate == "arrived"}
    waiting = frozenset(ClientId(f"c{k}") for k, fate in enumerate(fates) if fate in ("waiting", "delivered"))
    delivered = frozenset(ClientId(f"c{k}") for k, fate in enumerate(fates) if fate == "delivered")
    return RoundView(of=of, arrived=arrived, waiting=waiting, delivered=delivered, limit_s=Second(LIMIT_S)), Second(elapsed)


@given(policies(), moments())
def test_nothing_waits_past_the_end_of_the_round(policy: StragglerPolicy, moment: tuple[RoundView, Second]) -> None:
    view, _ = moment

    assert not isinstance(policy.decide(view, Second(LIMIT_S)), Wait)


@given(policies(), moments())
def test_nothing_waits_for_nobody(policy: StragglerPolicy, moment: tuple[RoundView, Second]) -> None:
    view, elapsed = moment
    alone = RoundView(of=view.of, arrived=view.arrived, waiting=frozenset(), limit_s=view.limit_s)

    assert not isinstance(policy.decide(alone, elapsed), Wait)


@given(policies(), moments())
def test_a_round_closes_with_exactly_those_who_arrived(policy: StragglerPolicy, moment: tuple[RoundView, Second]) -> None:
    view, elapsed = moment

    decision = policy.decide(view, elapsed)

    if isinstance(decision, Close):
        assert decision.accepted == view.arrived.keys()
        assert len(decision.accepted) >= policy.needed(view.of) >= 1


@settings(max_examples=200)
@given(policies(), moments(), st.data())
def test_more_arrivals_never_reopen_a_round(
    policy: StragglerPolicy, moment: tuple[RoundView, Second], data: st.DataObject
) -> None:
    view, elapsed = moment
    if not isinstance(policy.decide(view, elapsed), Close):
        return
    comers = data.draw(st.sets(st.sampled_from(sorted(view.waiting)))) if view.waiting else set[ClientId]()
    arrived = {**view.arrived, **{c: Second(data.draw(st.floats(0.0, elapsed))) for c in comers}}

    left = {"waiting": view.waiting - comers, "delivered": view.delivered - comers}
    fuller = RoundView(of=view.of, arrived=arrived, limit_s=view.limit_s, **left)

    assert isinstance(policy.decide(fuller, elapsed), Close)


@given(policies(), moments(), st.floats(0.0, 100.0))
def test_time_never_reopens_a_round(policy: StragglerPolicy, moment: tuple[RoundView, Second], later: float) -> None:
    view, elapsed = moment

    if isinstance(policy.decide(view, elapsed), Close):
        assert isinstance(policy.decide(view, Second(elapsed + later)), Close)


@pytest.mark.parametrize(
    ("share", "of", "needed"), [(0.6, 3, 2), (0.6, 5, 3), (0.8, 5, 4), (0.01, 3, 1), (1.0, 7, 7), (2 / 3, 3, 2)]
)
def test_a_quorum_is_the_share_rounded_up(share: float, of: int, needed: int) -> None:
    assert Quorum(share=share, wait_after_s=Second(0.0), judging_s=Second(0.0)).needed(of) == needed


def view(*, arrived: dict[str, float], waiting: set[str]) -> RoundView:
    return RoundView(
        of=3,
        arrived={ClientId(c): Second(t) for c, t in arrived.items()},
        waiting=frozenset(ClientId(c) for c in waiting),
        limit_s=Second(LIMIT_S),
    )


def test_a_quorum_waits_a_while_for_the_rest() -> None:
    policy = Quorum(share=0.6, wait_after_s=Second(20.0), judging_s=Second(0.0))
    two_of_three = view(arrived={"c1": 5.0, "c2": 30.0}, waiting={"c3"})

    assert isinstance(policy.decide(two_of_three, Second(49.9)), Wait)
    assert policy.decide(two_of_three, Second(50.0)) == Close(accepted=frozenset({ClientId("c1"), ClientId("c2")}))


def test_who_delivered_in_time_is_not_cut_off_by_a_slow_owner_but_not_waited_for_without_end() -> None:
    policy = Quorum(share=0.6, wait_after_s=Second(20.0), judging_s=Second(30.0))
    judged = {ClientId("c1"): Second(5.0), ClientId("c2"): Second(30.0)}
    c3 = frozenset({ClientId("c3")})
    being_judged = RoundView(of=3, arrived=judged, waiting=c3, delivered=c3, limit_s=Second(LIMIT_S))
    at_work = RoundView(of=3, arrived=judged, waiting=c3, limit_s=Second(LIMIT_S))

    assert isinstance(policy.decide(being_judged, Second(59.9)), Wait)
    assert isinstance(policy.decide(being_judged, Second(60.0)), Close)
    assert isinstance(policy.decide(at_work, Second(50.0)), Close)


def test_a_quorum_out_of_reach_fails_at_once() -> None:
    decision = Quorum(share=0.6, wait_after_s=Second(20.0), judging_s=Second(0.0)).decide(
        view(arrived={"c1": 5.0}, waiting=set()), Second(6.0)
    )

    assert decision == Fail(reason="2 of 3 clients are needed, at most 1 can deliver")


def test_a_deadline_takes_whoever_is_there() -> None:
    one_of_three = view(arrived={"c1": 5.0}, waiting={"c2", "c3"})

    assert isinstance(Deadline().decide(one_of_three, Second(99.0)), Wait)
    assert isinstance(Deadline().decide(one_of_three, Second(100.0)), Close)


def test_everyone_means_everyone() -> None:
    assert isinstance(Everyone().decide(view(arrived={"c1": 1.0, "c2": 2.0}, waiting={"c3"}), Second(50.0)), Wait)
    assert isinstance(Everyone().decide(view(arrived={"c1": 1.0, "c2": 2.0}, waiting=set()), Second(50.0)), Fail)
    assert isinstance(Everyone().decide(view(arrived={"c1": 1.0, "c2": 2.0, "c3": 3.0}, waiting=set()), Second(50.0)), Close)


def test_a_client_that_delivered_is_there_or_awaited() -> None:
    with pytest.raises(ValueError, match="is waited for"):
        RoundView(of=1, arrived={}, waiting=frozenset(), delivered=frozenset({ClientId("c1")}), limit_s=Second(LIMIT_S))


def test_a_client_cannot_be_there_and_awaited() -> None:
    with pytest.raises(ValueError, match="not waited for"):
        view(arrived={"c1": 1.0}, waiting={"c1"})
