"""The bit-exact medium: every coded bit is modulated, faded, disturbed and demapped."""

import numpy as np
from numpy.typing import NDArray

from hushtune_common.config import Scenario
from hushtune_common.link.abstraction import Fading, fading_gains
from hushtune_common.link.frame import FrameChunk
from hushtune_common.link.modem import Path, gain_log2, soft_values
from hushtune_common.link.modular import dither_rows
from hushtune_common.link.noise import NoiseKey
from hushtune_common.link.reception import Reception
from hushtune_common.messages import Listener, Transmission
from hushtune_common.seeding import SeedTree
from hushtune_common.units import PowerRatio, to_db
from hushtune_server.air.medium import Medium, level, require_known, stream_of

Bytes = NDArray[np.uint8]
Soft = NDArray[np.int8]
Decibels = NDArray[np.float32]

_FADED_LEAST = 1e-12
"""Least mean gain of a block that is told: deeper fades are one to every receiver, and zero has no level."""


class BitExactMedium:
    """Gives each listener soft values of every coded bit, through its own fading and noise."""

    def __init__(self, scenario: Scenario) -> None:
        """Take the fading that both links go through, each with its own draws, and the threads that compute it."""
        self._scenario = scenario
        self._fading = Fading.of(scenario.air)
        self._threads = scenario.compute.link_threads

    def hear(
        self, chunk: FrameChunk, *, listener: Listener, transmission: Transmission, gain: PowerRatio, seeds: SeedTree
    ) -> Reception:
        """Return soft values of all blocks."""
        require_known(chunk.layout, transmission=transmission, scenario=self._scenario)
        soft, gained, snr_db = self.coded(chunk, listener=listener, transmission=transmission, gain=gain, seeds=seeds)
        heard = np.ones(chunk.count, dtype=np.bool_)
        return Reception.of(chunk, listener=listener, heard=heard, snr_db=snr_db, gain_log2=gained, soft=soft)

    def coded(
        self, chunk: FrameChunk, *, listener: Listener, transmission: Transmission, gain: PowerRatio, seeds: SeedTree
    ) -> tuple[Soft, int, Decibels]:
        """Return soft values (blocks, codewords, code_bits), the logarithm to base 2 of the receiver's gain in them, and mean
        SNRs in dB (blocks,) of the coded blocks of a chunk.
        """
        design = transmission.design
        path = path_of(chunk, listener=listener, transmission=transmission, gain=gain, fading=self._fading, seeds=seeds)
        words, dither = codewords_of(chunk.rows, transmission)
        soft = soft_values(words, dither=dither, modulation=design.modulation, path=path, threads=self._threads)
        seen_db = _seen_db(path, codewords=design.codewords, blocks=len(chunk.rows))
        gained = gain_log2(design.modulation, snr=path.snr)
        return soft.reshape(-1, design.codewords, design.code_bits), gained, seen_db


def path_of(
    chunk: FrameChunk, *, listener: Listener, transmission: Transmission, gain: PowerRatio, fading: Fading, seeds: SeedTree
) -> Path:
    """Return the channel of one listener over the coded blocks of a chunk, one row of gains per codeword.

    Noise belongs to the number of a codeword in the whole frame, fading to the number of the chunk: chunks may be heard in any
    order and again.
    """
    own, codewords = stream_of(transmission, listener, seeds), transmission.design.codewords
    faded = own.child("fading", str(chunk.number))
    return Path(
        snr=level(transmission, gain),
        gains=fading_gains(len(chunk.rows), codewords=codewords, fading=fading, seeds=faded),
        key=NoiseKey.of(own.child("noise")),
        first=chunk.coded_start * codewords,
    )


def codewords_of(rows: Bytes, transmission: Transmission) -> tuple[Bytes, Bytes]:
    """Return coded blocks (N, coded_bytes) as codewords (N * codewords, code_bits / 8), and the dither of each in a block."""
    dither = dither_rows(transmission.design, transmission.seed.dither)
    return rows.reshape(-1, dither.shape[1]), dither


def _seen_db(path: Path, *, codewords: int, blocks: int) -> Decibels:
    if path.gains is None:
        return np.full(blocks, to_db(path.snr), dtype=np.float32)
    mean = path.gains.reshape(blocks, codewords * path.gains.shape[1]).mean(axis=1, dtype=np.float64)
    return (to_db(path.snr) + 10.0 * np.log10(np.maximum(mean, _FADED_LEAST))).astype(np.float32)


_conforms: type[Medium] = BitExactMedium
