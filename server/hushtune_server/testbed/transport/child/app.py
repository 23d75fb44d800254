"""An air with one frame on it, for whoever measures how fast it is heard: ``python -m ... FOLDER``, an order in JSON on stdin.

It can be heard through noise, and as it would be without computing any; beside it, the bare peer has messages as long.
"""

import asyncio
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from hushtune_common import config
from hushtune_common.clock import SystemClock
from hushtune_common.config import Scenario, TimingConfig
from hushtune_common.link.fidelity import Fidelity, coded_blocks
from hushtune_common.link.frame import FrameChunk, frame_parts
from hushtune_common.link.mcs import CODING_POINTS
from hushtune_common.link.modular import BlockCode, draw_public
from hushtune_common.link.randomness import SeededRandomness
from hushtune_common.link.reception import Reception
from hushtune_common.link.wiretap import design
from hushtune_common.messages import (
    ClientId,
    Digest,
    LinkSeed,
    Listener,
    Part,
    RunId,
    SecrecyDesign,
    Transmission,
    UpdateKey,
)
from hushtune_common.seeding import SeedTree
from hushtune_common.store.blobs import BlobStore
from hushtune_common.store.journal import Journal
from hushtune_common.units import Hertz, PowerRatio, Watt
from hushtune_common.wire.endpoint import Kit, Server, serve
from hushtune_server.air.bit_exact import BitExactMedium
from hushtune_server.air.fading import Geography
from hushtune_server.air.medium import Medium
from hushtune_server.air.service import AirService, register_air
from hushtune_server.air.sky import Sky
from hushtune_server.testbed.transport.bare import serve_bare

CLOCK = SystemClock()
TIMING = TimingConfig()
SEEDS = SeedTree(1)
_ANYWHERE = "127.0.0.1:0"
_SNR_TAP_DB = -5.0
_GIB = 1 << 30

Json = dict[str, Any]


def main() -> None:
    """Serve until the parent closes our standard input."""
    asyncio.run(_air(Path(sys.argv[1]), json.loads(sys.stdin.readline())))


def _say(about: Json) -> None:
    print(json.dumps(about), flush=True)


async def _until_told() -> None:
    await asyncio.to_thread(sys.stdin.read)


async def _listening(kit: Kit, register: Callable[[Any], None]) -> Server:
    return await serve([register], names=[], listen=_ANYWHERE, kit=kit, clock=CLOCK, timing=TIMING)


class _StillMedium:
    """What is heard costs nothing to compute: the same soft values for every block."""

    def hear(
        self, chunk: FrameChunk, *, listener: Listener, transmission: Transmission, gain: PowerRatio, seeds: SeedTree
    ) -> Reception:
        """Return soft values of no meaning, in the right number."""
        secrecy, count = transmission.design, chunk.count
        soft = np.ones((count, secrecy.codewords, secrecy.code_bits), dtype=np.int8)
        heard, snr_db = np.ones(count, dtype=np.bool_), np.zeros(count, dtype=np.float32)
        return Reception.of(chunk, listener=listener, heard=heard, snr_db=snr_db, gain_log2=0, soft=soft)


_conforms: type[Medium] = _StillMedium


async def _air(folder: Path, order: Json) -> None:
    kit, scenario = Kit.load(folder / "kits" / "air"), air_scenario()
    transmission, frame = _frame(order["blocks"], scenario=scenario)
    media: dict[str, Medium] = {"noisy": BitExactMedium(scenario), "still": _StillMedium()}
    servers, about, journals = [], Json(), []
    for name, medium in media.items():
        store = BlobStore(folder / name, quota_bytes=_GIB)
        journal = Journal.open(folder / f"{name}.sqlite", schema="bench-air")
        geography = Geography(scenario, SEEDS)
        sky = Sky(scenario, medium=medium, geography=geography, store=store, journal=journal, clock=CLOCK, seeds=SEEDS)
        await asyncio.to_thread(store.put, f"frames/{transmission.key.text}", frame)
        await sky.send(transmission)
        servers.append(await _listening(kit, register_air(AirService(sky))))
        journals.append(journal)
        about[name] = servers[-1].address
    step = order["message_bytes"]
    bare, about["bare"] = await serve_bare(kit, file=folder / "bare.bin", messages=[bytes(step)] * order["messages"])
    _say(about)
    await _until_told()
    for server in servers:
        await server.stop(0.0)
    await bare.stop(0.0)
    for journal in journals:
        await journal.close()


def air_scenario() -> Scenario:
    """Return one client near the owner, the tap far away, nothing but noise between them."""
    return config.parse(
        {
            "name": "listener",
            "seed": 1,
            "model": {"source": "random:blocks=6,hidden=32,heads=4,vocab=256,seed=1"},
            "data": {"private": "txt:none", "public": "txt:none"},
            "air": {"shadowing_db": 0.0, "metered_blocks": 0},
            "clients": [{"id": "c1", "position": {"x_m": 60.0, "y_m": 0.0}}],
        }
    )


def secrecy_design() -> SecrecyDesign:
    """Return the QPSK design at rate 0.825 that hides from a tap at -5 dB."""
    point = next(p for p in CODING_POINTS if p.name == "qpsk-0.825")
    return design(point, codewords=4, snr_tap_db=_SNR_TAP_DB, log2_delta=-64.0)


def _frame(blocks: int, *, scenario: Scenario) -> tuple[Transmission, bytes]:
    secrecy = secrecy_design()
    update = SEEDS.child("update").generator().bytes(blocks * secrecy.payload_bytes)
    toeplitz, dither = draw_public(secrecy, randomness=SeededRandomness(SEEDS.child("link")))
    pieces = frame_parts(
        update,
        part=Part.PAYLOAD,
        design=secrecy,
        code=BlockCode(secrecy, toeplitz=toeplitz),
        fidelity=Fidelity.BIT_EXACT,
        coded=coded_blocks(Fidelity.BIT_EXACT, count=blocks, share=1.0, seeds=SEEDS),
        randomness=SeededRandomness(SEEDS.child("random")),
        threads=scenario.compute.link_threads,
    )
    frame = b"".join(pieces)
    transmission = Transmission(
        key=UpdateKey(run=RunId("bench"), round_id=1, client=ClientId("c1"), attempt=1),
        part=Part.PAYLOAD,
        frame=Digest.of(frame),
        frame_bytes=len(frame),
        design=secrecy,
        seed=LinkSeed(toeplitz=toeplitz, dither=dither, tag=bytes(32)),
        power=Watt(2e-5),
        bandwidth=Hertz(1e6),
    )
    return transmission, frame


if __name__ == "__main__":
    main()
