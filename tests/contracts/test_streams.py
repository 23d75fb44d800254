"""Does a stream that lasts as long as a run come back in time, and bear with a peer that is away, but not for ever?"""

import asyncio
from collections.abc import AsyncGenerator

import pytest

from hushtune_common.errors import PeerLost
from hushtune_common.seeding import SeedTree
from hushtune_common.wire.streams import resumed
from tests.fakes import FakeClock

IDLE_S = 12.0


class Peer:
    """Answers from ``back_s`` on with one item for each stream, then breaks off; before that it cannot be reached."""

    def __init__(self, clock: FakeClock, *, back_s: float) -> None:
        self.clock, self.back_s = clock, back_s
        self.tried_s: list[float] = []

    async def begin(self) -> AsyncGenerator[int, None]:
        self.tried_s.append(self.clock.monotonic())
        if self.clock.monotonic() < self.back_s:
            raise PeerLost("away")
        yield len(self.tried_s)
        raise PeerLost("broken off")


async def first_item(peer: Peer, seed: int, *, patience_s: float) -> int:
    seeds, clock = SeedTree(seed), peer.clock
    stream = resumed(peer.begin, clock=clock, seeds=seeds, attempts_max=3, lasting_s=IDLE_S, ends=False, patience_s=patience_s)
    try:
        return await anext(stream)
    finally:
        await stream.aclose()


@pytest.mark.parametrize("seed", range(20))
def test_whoever_is_back_is_met_within_a_quarter_of_the_time_after_which_silence_is_death(seed: int) -> None:
    peer = Peer(FakeClock(autojump=True), back_s=20.0)
    asyncio.run(first_item(peer, seed, patience_s=2 * IDLE_S))
    assert 0.0 <= peer.tried_s[-1] - peer.back_s <= IDLE_S / 4
    assert all(later - before <= IDLE_S / 4 for before, later in zip(peer.tried_s, peer.tried_s[1:], strict=False))


@pytest.mark.parametrize("seed", range(5))
def test_a_peer_that_stays_away_is_given_up_after_the_tries_and_the_patience_and_not_much_later(seed: int) -> None:
    peer = Peer(FakeClock(autojump=True), back_s=1e9)
    with pytest.raises(PeerLost, match="away"):
        asyncio.run(first_item(peer, seed, patience_s=2 * IDLE_S))
    assert 2 * IDLE_S <= peer.tried_s[-1] <= 2.25 * IDLE_S
    impatient = Peer(FakeClock(autojump=True), back_s=1e9)
    with pytest.raises(PeerLost):
        asyncio.run(first_item(impatient, seed, patience_s=0.0))
    assert len(impatient.tried_s) == 3
