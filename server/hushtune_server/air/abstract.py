"""The abstract medium: block errors drawn from tables, bytes handed over as they are."""

import numpy as np
from numpy.typing import NDArray

from hushtune_common.config import Scenario
from hushtune_common.link.abstraction import Fading, fading_gains, fates
from hushtune_common.link.frame import FrameChunk
from hushtune_common.link.reception import Reception
from hushtune_common.messages import Listener, Transmission
from hushtune_common.seeding import SeedTree
from hushtune_common.units import PowerRatio
from hushtune_server.air.medium import Medium, level, require_known, stream_of

Flags = NDArray[np.bool_]
Decibels = NDArray[np.float32]


class AbstractMedium:
    """Draws which hash blocks each listener decodes at its own SNR; makes no claim about bits."""

    def __init__(self, scenario: Scenario) -> None:
        """Take from the scenario the fading that both links go through, each with its own draws."""
        self._scenario = scenario
        self._fading = Fading.of(scenario.air)

    def hear(
        self, chunk: FrameChunk, *, listener: Listener, transmission: Transmission, gain: PowerRatio, seeds: SeedTree
    ) -> Reception:
        """Return the blocks that came through."""
        require_known(chunk.layout, transmission=transmission, scenario=self._scenario)
        heard, snr_db = self.bare(chunk, listener=listener, transmission=transmission, gain=gain, seeds=seeds)
        design = transmission.design
        soft = np.empty((0, design.codewords, design.code_bits), dtype=np.int8)
        return Reception.of(chunk, listener=listener, heard=heard, snr_db=snr_db, gain_log2=0, soft=soft)

    def bare(
        self, chunk: FrameChunk, *, listener: Listener, transmission: Transmission, gain: PowerRatio, seeds: SeedTree
    ) -> tuple[Flags, Decibels]:
        """Return the fates and mean SNRs in dB of the bare blocks of a chunk, (blocks,) each."""
        count, design = len(chunk.bare), transmission.design
        if not count:
            return np.empty(0, dtype=np.bool_), np.empty(0, dtype=np.float32)
        own = stream_of(transmission, listener, seeds).child("fate", str(chunk.number))
        gains = fading_gains(count, codewords=design.codewords, fading=self._fading, seeds=own.child("fading"))
        return fates(count, design=design, snr=level(transmission, gain), gains=gains, seeds=own)


_conforms: type[Medium] = AbstractMedium
