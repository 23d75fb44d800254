"""Does a listener get the rest and nothing twice from a stream that breaks, and nothing at all from one that lies?"""

# ruff: noqa: N802 - gRPC method names

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec import structs

from hushtune_common.config import LimitsConfig
from hushtune_common.errors import LimitExceeded, MalformedUpdate, PeerLost
from hushtune_common.link.fidelity import Fidelity
from hushtune_common.link.reception import Reception
from hushtune_common.messages import Listener, Part
from hushtune_common.wire.v1 import air_pb2
from hushtune_server.air.service import AirService
from hushtune_server.air.sky import Sky
from tests.air_stage import DESIGN, UPDATE, notices, order, running
from tests.kits import Kits
from tests.radio import random_update, scenario


class TearingService(AirService):
    """The air over a connection that breaks after so many chunks of each stream."""

    def __init__(self, sky: Sky, *, breaks: list[int]) -> None:
        super().__init__(sky)
        self._breaks = breaks
        self.asked: list[int] = []

    async def Receive(self, request: air_pb2.ReceiveRequest, context: Any) -> AsyncIterator[air_pb2.ReceiveResponse]:
        self.asked.append(request.first_chunk)
        left = self._breaks.pop(0) if self._breaks else None
        async with aclosing(super().Receive(request, context)) as responses:  # pyright: ignore[reportArgumentType]
            async for response in responses:
                if left == 0:
                    raise PeerLost("torn")
                left = None if left is None else left - 1
                yield response
        if left is not None:
            raise PeerLost("torn at the end")


class LyingService(AirService):
    """An air that says something else than it announced."""

    def __init__(self, sky: Sky, *, lie: str) -> None:
        super().__init__(sky)
        self._lie = lie

    async def Receive(self, request: air_pb2.ReceiveRequest, context: Any) -> AsyncIterator[air_pb2.ReceiveResponse]:
        async with aclosing(super().Receive(request, context)) as responses:  # pyright: ignore[reportArgumentType]
            heard = [response async for response in responses]
        for response in self._changed(heard):
            yield response

    def _changed(self, heard: list[air_pb2.ReceiveResponse]) -> list[air_pb2.ReceiveResponse]:
        first, second = heard[0], heard[1]
        match self._lie:
            case "skipped":
                return [first, *heard[2:]]
            case "twice":
                return [first, *heard]
            case "renumbered":
                return [first, air_pb2.ReceiveResponse(chunk=1, reception=first.reception)]
            case "short":
                return heard[:-1]
            case "long":
                return [*heard, air_pb2.ReceiveResponse(chunk=len(heard), reception=heard[-1].reception)]
            case "garbage":
                return [first, air_pb2.ReceiveResponse(chunk=1, reception=second.reception[:-1])]
            case _:
                return [replaced(response, **{self._lie: other_than(self._lie)}) for response in heard]


def other_than(name: str) -> Any:
    others = {"listener": Listener.TAP, "part": Part.KEY, "update_bytes": 10**6, "fidelity": Fidelity.HYBRID}
    return others[name]


def replaced(response: air_pb2.ReceiveResponse, **fields: Any) -> air_pb2.ReceiveResponse:
    changed = replace(Reception.from_bytes(response.reception), **fields)
    return air_pb2.ReceiveResponse(chunk=response.chunk, reception=changed.to_bytes())


class StallingService(AirService):
    """An air whose first stream stands still."""

    stalls = 1

    async def Receive(self, request: air_pb2.ReceiveRequest, context: Any) -> AsyncIterator[air_pb2.ReceiveResponse]:
        async with aclosing(super().Receive(request, context)) as responses:  # pyright: ignore[reportArgumentType]
            async for response in responses:
                if response.chunk == 1 and self.stalls:
                    self.stalls -= 1
                    await asyncio.Event().wait()
                yield response


@pytest.fixture
def kits(tmp_path: Path) -> Kits:
    return Kits(tmp_path / "kits")


@pytest.mark.parametrize("breaks", [[0, 1, 2, 0], [3], [2, 1]])
def test_a_listener_whose_stream_breaks_gets_the_rest_and_nothing_twice(kits: Kits, tmp_path: Path, breaks: list[int]) -> None:
    async def play() -> None:
        update = random_update(200 * DESIGN.payload_bytes)
        async with running(kits, tmp_path, serve=lambda sky: TearingService(sky, breaks=breaks)) as air:
            await air.put_on_air(*order(update=update))
            receptions = await air.hear(Listener.MAIN)
            assert [r.chunk for r in receptions] == [0, 1, 2, 3]
            assert np.concatenate([r.indices for r in receptions]).tolist() == list(range(200))
            assert isinstance(air.service, TearingService)
            assert air.service.asked == sorted(air.service.asked)
            assert len(air.service.asked) > 1

    asyncio.run(play())


def test_a_listener_gives_up_when_nothing_gets_through(kits: Kits, tmp_path: Path) -> None:
    async def play() -> None:
        limits = LimitsConfig(attempts_max=2)
        async with running(kits, tmp_path, serve=lambda sky: TearingService(sky, breaks=[0] * 9), limits=limits) as air:
            await air.put_on_air(*order())
            with pytest.raises(PeerLost, match="torn"):
                await air.hear(Listener.MAIN)
            assert isinstance(air.service, TearingService)
            assert air.service.asked == [0, 0]

    asyncio.run(play())


@pytest.mark.parametrize(
    "lie", ["skipped", "twice", "renumbered", "short", "long", "garbage", "listener", "part", "update_bytes", "fidelity"]
)
def test_a_listener_refuses_what_was_not_announced(kits: Kits, tmp_path: Path, lie: str) -> None:
    async def play() -> None:
        update = random_update(190 * DESIGN.payload_bytes)
        async with running(kits, tmp_path, serve=lambda sky: LyingService(sky, lie=lie)) as air:
            await air.put_on_air(*order(update=update))
            with pytest.raises(MalformedUpdate):
                await air.hear(Listener.MAIN)

    asyncio.run(play())


def test_a_listener_refuses_an_update_that_is_too_large_before_it_hears_any_of_it(kits: Kits, tmp_path: Path) -> None:
    async def play() -> None:
        async with running(kits, tmp_path) as air:
            await air.put_on_air(*order())
            narrow = structs.replace(air.scenario, limits=LimitsConfig(update_bytes_max=len(UPDATE) - 1))
            with pytest.raises(LimitExceeded):
                await air.hear(Listener.MAIN, setting=narrow)
            assert air.medium.chunks == []

    asyncio.run(play())


def test_a_listener_refuses_bytes_that_were_handed_over_where_bits_were_agreed(kits: Kits, tmp_path: Path) -> None:
    async def play() -> None:
        async with running(kits, tmp_path) as air:
            await air.put_on_air(*order())
            agreed = scenario(air={"fidelity": "bit_exact" if air.scenario.air.fidelity == "abstract" else "abstract"})
            listener = air.listener(Listener.MAIN, setting=agreed)
            (notice,) = await notices(listener, 1)
            with pytest.raises(MalformedUpdate, match="fidelity"):
                await anext(listener.receive(notice))

    asyncio.run(play())


def test_a_stream_that_stands_still_is_begun_again_where_it_stood(kits: Kits, tmp_path: Path) -> None:
    async def play() -> None:
        async with running(kits, tmp_path, serve=StallingService) as air:
            await air.put_on_air(*order(update=random_update(190 * DESIGN.payload_bytes)))
            impatient = structs.replace(air.scenario, timing=structs.replace(air.scenario.timing, idle_s=0.1))
            assert [r.chunk for r in await air.hear(Listener.MAIN, setting=impatient)] == [0, 1, 2]

    asyncio.run(play())


def test_one_chunk_is_computed_ahead_of_the_listener_and_no_more(kits: Kits, tmp_path: Path) -> None:
    async def play() -> None:
        async with running(kits, tmp_path) as air:
            sending, blob = order(update=random_update(400 * DESIGN.payload_bytes))
            await air.put_on_air(sending, blob)
            async with aclosing(air.sky.receptions(sending.key, Listener.MAIN, first=0)) as chunks:
                for taken in range(1, 4):
                    assert (await anext(chunks))[0] == taken - 1
                    for _ in range(taken + 1 if taken == 1 else 1):
                        assert await asyncio.to_thread(air.medium.arrived.acquire, timeout=10)
                    assert [number for _, number in air.medium.chunks] == list(range(taken + 1))
            assert len(air.medium.chunks) == 4

    asyncio.run(play())
