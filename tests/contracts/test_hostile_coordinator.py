"""Can a coordinator that says whatever it likes fill a client's disk, its log or its memory?"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from itertools import count
from pathlib import Path

import pytest

from hushtune_client.conductor import Conductor, Duty
from hushtune_client.phases import Idle
from hushtune_client.progress import Status
from hushtune_client.state import ClientState
from hushtune_common.errors import LimitExceeded
from hushtune_common.messages import Beat, Directive, DirectiveKind
from tests.fakes import FakeClock
from tests.loopback import CLIENT, LoopbackCoordinator, World, assignment_of

MOST = 40


class Talker(LoopbackCoordinator):
    """A coordinator that says all of ``words`` and never waits."""

    def __init__(self, words: Iterator[Directive]) -> None:
        super().__init__(World())
        self._words = words

    async def follow(self, beat: Callable[[], Beat]) -> AsyncIterator[Directive]:
        for word in self._words:
            await asyncio.sleep(0)
            yield word


class Nobody:
    """Duties that do nothing."""

    async def perform(self, command: Duty) -> None:
        """Leave it."""


def rounds_without_end() -> Iterator[Directive]:
    """Open one round after the other."""
    return (Directive(seq=n, kind=DirectiveKind.ROUND_OPENED, round_id=n) for n in count(1))


def assignments_without_end() -> Iterator[Directive]:
    """Assign anew, and something else each time."""
    yield Directive(seq=1, kind=DirectiveKind.ROUND_OPENED, round_id=1)
    for n in count(2):
        yield Directive(seq=n, kind=DirectiveKind.ASSIGNED, round_id=1, assignment=assignment_of(budget_bytes=1000 + n))


def words_without_meaning() -> Iterator[Directive]:
    """Close a round that never was."""
    return (Directive(seq=n, kind=DirectiveKind.ROUND_CLOSED, round_id=7) for n in count(1))


def one_word_again_and_again() -> Iterator[Directive]:
    """Repeat one word, then end the run."""
    yield from (Directive(seq=1, kind=DirectiveKind.ROUND_OPENED, round_id=1) for _ in range(20 * MOST))
    yield Directive(seq=2, kind=DirectiveKind.DRAIN, round_id=1)


async def led(folder: Path, words: Iterator[Directive]) -> ClientState:
    state = ClientState.open(folder, client=CLIENT, attempts_max=3, directives_max=MOST)
    try:
        conductor = Conductor(Talker(words), state=state, status=Status(), clock=FakeClock(autojump=True))
        await conductor.conduct(Nobody())
    finally:
        await state.close()
    return state


@pytest.mark.parametrize("words", [rounds_without_end, assignments_without_end, words_without_meaning])
def test_a_coordinator_that_never_ends_is_left_after_so_many_words(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, words: Callable[[], Iterator[Directive]]
) -> None:
    with caplog.at_level("INFO"), pytest.raises(LimitExceeded, match=r"limits\.directives_max"):
        asyncio.run(led(tmp_path, words()))

    assert len(caplog.records) < 4 * MOST
    assert sum(file.stat().st_size for file in tmp_path.glob("journal*")) < 1 << 20
    assert len(list((tmp_path / "rounds").glob("*"))) <= MOST


def test_a_word_that_is_repeated_without_end_leaves_one_line_and_one_event(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO"):
        state = asyncio.run(led(tmp_path, one_word_again_and_again()))

    assert sum(record.message == "round_opened" for record in caplog.records) == 1
    assert state.last_seen_seq == 2
    assert not isinstance(state.current, Idle)
