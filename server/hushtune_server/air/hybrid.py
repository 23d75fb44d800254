"""The hybrid medium: a sample of the blocks goes through the bit-exact medium, the rest through the abstract one."""

import numpy as np

from hushtune_common.config import Scenario
from hushtune_common.link.frame import FrameChunk
from hushtune_common.link.reception import Reception
from hushtune_common.messages import Listener, Transmission
from hushtune_common.seeding import SeedTree
from hushtune_common.units import PowerRatio
from hushtune_server.air.abstract import AbstractMedium
from hushtune_server.air.bit_exact import BitExactMedium
from hushtune_server.air.medium import Medium, require_known


class HybridMedium:
    """Two media, fed one chunk each with its own kind of blocks; nothing is drawn here."""

    def __init__(self, scenario: Scenario) -> None:
        """Make both media of one scenario."""
        self._scenario = scenario
        self._exact = BitExactMedium(scenario)
        self._abstract = AbstractMedium(scenario)

    def hear(
        self, chunk: FrameChunk, *, listener: Listener, transmission: Transmission, gain: PowerRatio, seeds: SeedTree
    ) -> Reception:
        """Return soft values of the coded blocks, and of the bare ones those that came through."""
        require_known(chunk.layout, transmission=transmission, scenario=self._scenario)
        soft, gained, coded_db = self._exact.coded(chunk, listener=listener, transmission=transmission, gain=gain, seeds=seeds)
        fate, bare_db = self._abstract.bare(chunk, listener=listener, transmission=transmission, gain=gain, seeds=seeds)
        heard = np.ones(chunk.count, dtype=np.bool_)
        snr_db = np.empty(chunk.count, dtype=np.float32)
        heard[~chunk.coded] = fate
        snr_db[chunk.coded], snr_db[~chunk.coded] = coded_db, bare_db
        return Reception.of(chunk, listener=listener, heard=heard, snr_db=snr_db, gain_log2=gained, soft=soft)


_conforms: type[Medium] = HybridMedium
