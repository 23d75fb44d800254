"""Does liveness tell the dead from the busy?"""

from hypothesis import given
from hypothesis import strategies as st

from hushtune_common.units import Second
from hushtune_server.coordinator.events import Member
from hushtune_server.coordinator.liveness import Health, Liveness

IDLE_S = 30.0
C1 = Member("c1")


def watched(at: float = 0.0) -> Liveness:
    return Liveness(idle_s=Second(IDLE_S), looked_at=Second(at)).connected(C1, Second(at))


@given(st.lists(st.floats(0.01, 14.9), max_size=30))
def test_a_member_that_beats_is_never_even_suspect(gaps: list[float]) -> None:
    liveness, now = watched(), 0.0
    for gap in gaps:
        now += gap
        assert liveness.health(C1, Second(now)) is Health.ALIVE
        liveness = liveness.heard(C1, Second(now))


def test_silence_makes_suspect_after_three_beats_and_dead_after_six() -> None:
    liveness = watched()

    assert liveness.health(C1, Second(14.9)) is Health.ALIVE
    assert liveness.health(C1, Second(15.0)) is Health.SUSPECT
    assert liveness.health(C1, Second(29.9)) is Health.SUSPECT
    assert liveness.health(C1, Second(30.0)) is Health.DEAD


def test_a_broken_stream_kills_in_half_the_time() -> None:
    liveness = watched().heard(C1, Second(10.0)).disconnected(C1, Second(10.0))

    assert liveness.dead(Second(24.9)) == ()
    assert liveness.dead(Second(25.0)) == (C1,)


def test_a_call_does_not_mend_a_broken_stream() -> None:
    liveness = watched().disconnected(C1, Second(10.0)).heard(C1, Second(20.0))

    assert liveness.dead(Second(25.0)) == (C1,)


@given(st.floats(0.0, 14.9))
def test_a_reconnect_in_time_is_not_fatal(pause: float) -> None:
    liveness = watched().disconnected(C1, Second(10.0)).connected(C1, Second(10.0 + pause))

    assert liveness.health(C1, Second(10.0 + pause)) is Health.ALIVE
    assert liveness.dead(Second(25.0)) == ()


@given(st.floats(5.1, 1e6))
def test_a_pause_of_ours_is_charged_to_nobody(pause: float) -> None:
    before = watched().heard(C1, Second(10.0)).looked(Second(5.0)).looked(Second(10.0))

    after = before.looked(Second(10.0 + pause))

    assert after.health(C1, Second(10.0 + pause)) is Health.ALIVE


def test_looking_in_time_shifts_nothing() -> None:
    liveness = watched()
    for tick in range(1, 31):
        liveness = liveness.looked(Second(tick))

    assert liveness.dead(Second(30.0)) == (C1,)


def test_who_is_forgotten_is_not_reported_again() -> None:
    liveness = watched().forgotten(C1).disconnected(C1, Second(1.0))

    assert liveness.dead(Second(100.0)) == ()
    assert liveness.health(C1, Second(1.0)) is Health.DEAD
