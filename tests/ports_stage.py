"""A client's ports to a scripted world, in process and over gRPC, for tests that both obey the same laws."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from hushtune_client.ports import Ports
from hushtune_common.link.fidelity import Fidelity
from hushtune_common.link.frame import frame_parts
from hushtune_common.link.modular import BlockCode
from hushtune_common.link.randomness import OsRandomness
from hushtune_common.messages import Digest, Part, Transmission, UpdateKey
from hushtune_common.metrics.board import Board
from hushtune_common.units import Hertz, Watt
from tests.kits import Kits
from tests.loopback import CLIENT, DESIGN, RUN, SCENARIO, World, link_seed, loopback_ports
from tests.loopback_grpc import grpc_ports

Open = Callable[..., AbstractAsyncContextManager[Ports]]
KEY = UpdateKey(run=RUN, round_id=1, client=CLIENT, attempt=1)
UPDATE = bytes(range(256)) * 20


def frame_of(update: bytes, *, part: Part = Part.PAYLOAD) -> bytes:
    count = -(-len(update) // DESIGN.payload_bytes)
    seed = link_seed()
    pieces = frame_parts(
        update,
        part=part,
        design=DESIGN,
        code=BlockCode(DESIGN, toeplitz=seed.toeplitz),
        fidelity=Fidelity.ABSTRACT,
        coded=np.zeros(count, dtype=np.bool_),
        randomness=OsRandomness(),
    )
    return b"".join(pieces)


FRAME = frame_of(UPDATE)
WAYS = ("in process", "over gRPC", "over gRPC, watched")


def ways_to(folder: Path, *, kits: Kits, way: str) -> Open:
    """Return what opens a client's ports to a scripted world in one of `WAYS`."""

    @asynccontextmanager
    async def in_process(world: World, scenario: Digest = SCENARIO) -> AsyncGenerator[Ports]:
        yield loopback_ports(world, folder=folder, scenario=scenario)

    def over_grpc(world: World, scenario: Digest = SCENARIO) -> AbstractAsyncContextManager[Ports]:
        watch = Board(role="client", clients=[CLIENT]).watch if way == "over gRPC, watched" else None
        return grpc_ports(world, kits=kits, folder=folder, scenario=scenario, watch=watch)

    return in_process if way == "in process" else over_grpc


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(work, 30.0))


def transmission(attempt: int = 1, frame: bytes = FRAME, part: Part = Part.PAYLOAD) -> Transmission:
    return Transmission(
        key=replace(KEY, attempt=attempt),
        part=part,
        frame=Digest.of(frame),
        frame_bytes=len(frame),
        design=DESIGN,
        seed=link_seed(),
        power=Watt(0.1),
        bandwidth=Hertz(1e6),
    )


def kept(folder: Path, frame: bytes) -> Path:
    path = folder / "frame.bin"
    path.write_bytes(frame)
    return path
