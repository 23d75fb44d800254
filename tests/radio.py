"""A small scenario, reports and frames that tests of the link, the air, the allocator and the tap share."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from hushtune_common.config import Scenario, parse
from hushtune_common.link.fidelity import Fidelity, coded_blocks
from hushtune_common.link.frame import FrameReader, blocks_of, frame_parts
from hushtune_common.link.mcs import CODING_POINTS
from hushtune_common.link.modular import BlockCode, draw_public
from hushtune_common.link.randomness import SeededRandomness
from hushtune_common.link.wiretap import design
from hushtune_common.messages import (
    ClientId,
    ClientReport,
    Digest,
    LinkSeed,
    Part,
    RunId,
    SecrecyDesign,
    Transmission,
    UpdateKey,
)
from hushtune_common.seeding import SeedTree
from hushtune_common.units import FlopPerSecond, Hertz, Joule, PowerRatio, Watt, from_db

POINTS = {point.name: point for point in CODING_POINTS}


def scenario(*, air: dict[str, Any] | None = None, secrecy: dict[str, Any] | None = None, seed: int = 1) -> Scenario:
    """The demo's map: three clients near the owner, the eavesdropper 450 m away."""
    places = {"c1": (60.0, 0.0, 0.2), "c2": (-45.0, 50.0, 5e-4), "c3": (-20.0, -70.0, 8e-5)}
    clients = [{"id": i, "position": {"x_m": x, "y_m": y}, "power_max_w": p} for i, (x, y, p) in places.items()]
    return parse(
        {
            "name": "radio",
            "seed": seed,
            "model": {"source": "random:blocks=6"},
            "data": {"private": "txt:a", "public": "txt:b"},
            "clients": clients,
            "air": air or {},
            "secrecy": secrecy or {},
        }
    )


def report(
    name: str, *, main_db: float, tap_db: float, power_max: float = 0.2, clock_max: float = 2e12, update_bits: int = 80_000_000
) -> ClientReport:
    """A report with gains in dB."""
    return ClientReport(
        client=ClientId(name),
        round_id=1,
        gain_main=from_db(main_db),
        gain_tap=from_db(tap_db),
        power_max=Watt(power_max),
        clock_max=FlopPerSecond(clock_max),
        energy_max=Joule(1000.0),
        sample_count=100,
        update_bits=update_bits,
        train_flops=1e12,
        energy_w_per_flops3=1e-36,
    )


def qpsk_design(*, snr_tap_db: float = -5.0, codewords: int = 4) -> SecrecyDesign:
    """The QPSK design at rate 0.825."""
    return design(POINTS["qpsk-0.825"], codewords=codewords, snr_tap_db=snr_tap_db, log2_delta=-64.0)


def random_update(size: int, *, seed: int = 0) -> bytes:
    """Bytes that look sealed."""
    return SeedTree(seed).child("update").generator().bytes(size)


def link_seed(secrecy: SecrecyDesign, *, seed: int = 0) -> LinkSeed:
    """Public randomness of the right lengths, without a real tag."""
    toeplitz, dither = draw_public(secrecy, randomness=SeededRandomness(SeedTree(seed).child("link")))
    return LinkSeed(toeplitz=toeplitz, dither=dither, tag=bytes(32))


def frame_bytes(
    update: bytes,
    secrecy: SecrecyDesign,
    *,
    fidelity: Fidelity = Fidelity.ABSTRACT,
    part: Part = Part.PAYLOAD,
    only: Sequence[int] | None = None,
    share: float = 0.5,
    seed: int = 0,
) -> bytes:
    """A frame of an update, or of some of its blocks, under ``link_seed(secrecy, seed=seed)``."""
    count = blocks_of(len(update), design=secrecy, only=only).size
    seeds = SeedTree(seed).child("frame")
    pieces = frame_parts(
        update,
        part=part,
        design=secrecy,
        code=BlockCode(secrecy, toeplitz=link_seed(secrecy, seed=seed).toeplitz),
        fidelity=fidelity,
        coded=coded_blocks(fidelity, count=count, share=share, seeds=seeds.child("coded")),
        only=only,
        randomness=SeededRandomness(seeds.child("random")),
    )
    return b"".join(pieces)


def reader(blob: bytes) -> FrameReader:
    """Reads a frame that is in memory."""
    return FrameReader(lambda offset, size: blob[offset : offset + size], len(blob))


def transmission(
    blob: bytes,
    secrecy: SecrecyDesign,
    *,
    part: Part = Part.PAYLOAD,
    seed: LinkSeed | None = None,
    client: str = "c1",
    attempt: int = 1,
    snr_db: float = 6.0,
) -> Transmission:
    """An order to send the frame ``blob`` so that a gain of 1 over 1 MHz gives ``snr_db``."""
    bandwidth = Hertz(1e6)
    noise = 10 ** (-20.4) * bandwidth
    return Transmission(
        key=UpdateKey(run=RunId("run-1"), round_id=1, client=ClientId(client), attempt=attempt),
        part=part,
        frame=Digest.of(blob),
        frame_bytes=len(blob),
        design=secrecy,
        seed=seed or link_seed(secrecy),
        power=Watt(10 ** (snr_db / 10) * noise),
        bandwidth=bandwidth,
    )


ONE = PowerRatio(1.0)


def heard_indices(indices: np.ndarray[Any, np.dtype[np.uint32]], heard: np.ndarray[Any, np.dtype[np.bool_]]) -> set[int]:
    """The indices of the heard blocks."""
    return {int(i) for i in indices[heard]}
