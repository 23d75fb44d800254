"""Does the air's time begin with the first sounding, never run back, and move the gains?"""

import asyncio
from pathlib import Path

import numpy as np
import pytest

from hushtune_common.errors import NotYours
from hushtune_common.link.secrecy import path_gain
from hushtune_common.messages import Role
from hushtune_common.units import Metre
from hushtune_common.wire import faults
from hushtune_common.wire.v1 import air_pb2
from hushtune_server.air.ledger import Sent
from tests.air_stage import Air, order, running
from tests.fakes import FakeClock
from tests.kits import Kits


@pytest.fixture
def kits(tmp_path: Path) -> Kits:
    return Kits(tmp_path / "kits")


MOVES = [{"client": "c1", "after_s": 10.0, "position": {"x_m": 200.0, "y_m": 0.0}}]


async def sounded(air: Air, client: str = "c1") -> air_pb2.SoundResponse:
    with faults.translated():
        return await air.stub(Role.CLIENT, client).Sound(air_pb2.SoundRequest(round_id=1), timeout=5)


def test_the_airs_time_begins_with_the_first_sounding_and_gains_follow_it(kits: Kits, tmp_path: Path) -> None:
    async def play() -> None:
        clock = FakeClock(start=1000.0)
        async with running(kits, tmp_path, clock=clock, moves=MOVES) as air:
            clock.advance(500.0)
            first = await sounded(air, "c2")
            clock.advance(9.0)
            before = await sounded(air)
            clock.advance(1.5)
            after = await sounded(air)
            assert (first.at_s, before.at_s, after.at_s) == (0.0, 9.0, 10.5)
            assert (before.gain_main, after.gain_main) == pytest.approx((path_gain(Metre(60.0)), path_gain(Metre(200.0))))

    asyncio.run(play())


def test_a_transmission_is_heard_over_the_channel_of_its_moment_whenever_that_is(kits: Kits, tmp_path: Path) -> None:
    async def play() -> tuple[Sent, Sent, bytes, bytes]:
        clock = FakeClock()
        async with running(kits, tmp_path, clock=clock, moves=MOVES) as air:
            await sounded(air)
            near = await air.put_on_air(*order())
            before = await air.ask(Role.OWNER, "owner", near.transmission.key)
            clock.advance(60.0)
            far = await air.put_on_air(*order(attempt=2))
            after = await air.ask(Role.OWNER, "owner", near.transmission.key)
            return near, far, before[0].reception, after[0].reception

    near, far, before, after = asyncio.run(play())
    assert before == after
    assert (near.at, far.at) == (0.0, 60.0)
    assert near.snr_main_db - far.snr_main_db == pytest.approx(37.6 * np.log10(200.0 / 60.0))
    assert far.snr_tap_db - near.snr_tap_db == pytest.approx(37.6 * np.log10(390.0 / 250.0))


def test_the_airs_time_never_runs_backwards_over_a_restart(kits: Kits, tmp_path: Path) -> None:
    async def play() -> list[float]:
        found = list[float]()
        for waits in ((0.0, 0.9, 3.0, 0.5), (0.0, 4.0)):
            clock = FakeClock(start=7.0)
            async with running(kits, tmp_path, clock=clock, moves=MOVES) as air:
                for wait in waits:
                    clock.advance(wait)
                    found.append((await sounded(air)).at_s)
        return found

    moments = asyncio.run(play())
    assert moments == sorted(moments)
    assert moments[-1] == pytest.approx(3.9 + 1.0 + 4.0), "from the last mark, a second later, and four seconds on"


def test_where_nothing_moves_time_stands_still(kits: Kits, tmp_path: Path) -> None:
    async def play() -> None:
        clock = FakeClock()
        async with running(kits, tmp_path, clock=clock) as air:
            first = await sounded(air)
            clock.advance(100.0)
            assert await sounded(air) == first
            assert (first.at_s, air.sky.ledger.marked) == (0.0, None)

    asyncio.run(play())


def test_a_client_hears_its_own_gain_as_the_map_says(kits: Kits, tmp_path: Path) -> None:
    async def play() -> None:
        async with running(kits, tmp_path) as air:
            response = await air.stub(Role.CLIENT, "c1").Sound(air_pb2.SoundRequest(round_id=1), timeout=5)
            loss_db = 128.1 + 37.6 * -1.2218487496163564  # 60 m: log10(0.06)
            assert response.gain_main == pytest.approx(10 ** (-loss_db / 10))
            with pytest.raises(NotYours), faults.translated():
                await air.stub(Role.OWNER, "owner").Sound(air_pb2.SoundRequest(round_id=1), timeout=5)

    asyncio.run(play())
