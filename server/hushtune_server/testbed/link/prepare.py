"""Compiles the link's machine code once, so that the processes of a run find it on disk instead of each compiling it at once."""

import numpy as np

from hushtune_common.link import modem
from hushtune_common.link.mcs import MODULATIONS, point_named
from hushtune_common.link.modular import BlockCode, dither_rows, draw_public
from hushtune_common.link.noise import NoiseKey
from hushtune_common.link.randomness import OsRandomness
from hushtune_common.link.wiretap import design as make_design
from hushtune_common.seeding import SeedTree


def prepare() -> None:
    """Send one hash block through every compiled stage: about 20 s the first time on a machine, a second afterwards."""
    randomness = OsRandomness()
    for modulation in MODULATIONS:
        design = make_design(point_named(f"{modulation}-0.5"), codewords=1, snr_tap_db=-15.0, log2_delta=-64.0)
        toeplitz, dither = draw_public(design, randomness=randomness)
        code = BlockCode(design, toeplitz=toeplitz)
        coded = code.encode(np.zeros((1, design.payload_bytes), dtype=np.uint8), randomness=randomness)
        rows = dither_rows(design, dither)
        for gains in (None, np.ones((1, 2), dtype=np.float32)):
            path = modem.Path(snr=100.0, gains=gains, key=NoiseKey.of(SeedTree(0).child("prepare")), first=0)
            soft = modem.soft_values(coded, dither=rows, modulation=modulation, path=path)
            modem.densities(coded, dither=rows, modulation=modulation, path=path)
            modem.received(coded, dither=rows, modulation=modulation, path=path)
            code.decode(soft.reshape(1, 1, -1), iterations=2)
