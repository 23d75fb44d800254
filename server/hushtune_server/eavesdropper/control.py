"""Would the eavesdropper notice a leak? A planted update at an SNR where she must read it, through the very same steps."""

from dataclasses import dataclass
from typing import Final

import numpy as np

from hushtune_common.link.abstraction import required_snr_db
from hushtune_common.link.fidelity import Fidelity
from hushtune_common.link.frame import FrameReader, frame_parts
from hushtune_common.link.mcs import point_of
from hushtune_common.link.modem import Path, gain_log2, soft_values
from hushtune_common.link.modular import BlockCode, dither_rows, draw_public
from hushtune_common.link.noise import NoiseKey
from hushtune_common.link.randomness import SeededRandomness
from hushtune_common.link.reception import Reception
from hushtune_common.messages import Listener, Part, SecrecyDesign
from hushtune_common.seeding import SeedTree
from hushtune_common.units import from_db
from hushtune_server.eavesdropper.decode import BlockDecoder
from hushtune_server.eavesdropper.proportion import Proportion

BLOCKS: Final = 64
MARGIN_DB: Final = 3.0
"""How far above the coding point's threshold the control is played."""
_SHARE_LEAST: Final = 0.9


@dataclass(frozen=True, slots=True, kw_only=True)
class Control:
    """The positive control: a planted update at an SNR where the tap must read it."""

    snr_db: float
    blocks: Proportion
    bytes_equal: bool

    @property
    def passed(self) -> bool:
        """Whether the attack found the planted leak."""
        return self.bytes_equal and self.blocks.share >= _SHARE_LEAST


def positive_control(
    design: SecrecyDesign, *, fidelity: Fidelity, decoder: BlockDecoder, seeds: SeedTree, margin_db: float = MARGIN_DB
) -> Control:
    """Encode an update of ``BLOCKS`` hash blocks, hear it ``margin_db`` above the threshold, and attack it.

    Where the air hands over bare blocks, every other planted one is bare. Equal arguments give an equal control. ``ValueError``
    for a design that is no coding point's.
    """
    planted = seeds.child("update").generator().bytes(BLOCKS * design.payload_bytes)
    randomness = SeededRandomness(seeds.child("random-bits"))
    toeplitz, dither = draw_public(design, randomness=randomness)
    code = BlockCode(design, toeplitz=toeplitz)
    exact = fidelity is Fidelity.BIT_EXACT
    blob = b"".join(
        frame_parts(
            planted,
            part=Part.PAYLOAD,
            design=design,
            code=code,
            fidelity=Fidelity.BIT_EXACT if exact else Fidelity.HYBRID,
            coded=np.ones(BLOCKS, dtype=np.bool_) if exact else np.arange(BLOCKS) % 2 == 0,
            randomness=randomness,
            threads=decoder.threads,
        )
    )
    reader = FrameReader(lambda offset, size: blob[offset : offset + size], len(blob))
    snr_db = required_snr_db(point_of(design), codewords=design.codewords, block_error_max=0.01) + margin_db
    truth = np.frombuffer(planted, dtype=np.uint8).reshape(BLOCKS, -1)
    every = BlockDecoder(iterations=decoder.iterations, threads=decoder.threads)
    heard, equal = 0, True
    for number in range(reader.chunk_count(design)):
        reception = _hear(reader, number, design=design, dither=dither, snr_db=snr_db, seeds=seeds, threads=decoder.threads)
        reading = every.read(Reception.from_bytes(reception.to_bytes()), code=code, seeds=seeds)
        right = reading.payloads[reading.sound] == truth[reading.indices[reading.sound]]
        equal &= bool(right.all()) and bool((reading.bare_payloads == truth[reading.bare_indices]).all())
        heard += int(reading.sound.sum()) + len(reading.bare_indices)
    return Control(snr_db=snr_db, blocks=Proportion(count=heard, of=BLOCKS), bytes_equal=equal and heard > 0)


def _hear(
    reader: FrameReader, number: int, *, design: SecrecyDesign, dither: bytes, snr_db: float, seeds: SeedTree, threads: int
) -> Reception:
    """Return a chunk as a tap with this SNR, white noise and no loss of bare blocks would hear it."""
    chunk = reader.chunk(number, design=design)
    path = Path(
        snr=float(from_db(snr_db)),
        gains=None,
        key=NoiseKey.of(seeds.child("noise")),
        first=chunk.coded_start * design.codewords,
    )
    soft = soft_values(
        chunk.rows.reshape(-1, design.code_bits // 8),
        dither=dither_rows(design, dither),
        modulation=design.modulation,
        path=path,
        threads=threads,
    )
    return Reception.of(
        chunk,
        listener=Listener.TAP,
        heard=np.ones(chunk.count, dtype=np.bool_),
        snr_db=np.full(chunk.count, snr_db, dtype=np.float32),
        gain_log2=gain_log2(design.modulation, snr=path.snr),
        soft=soft.reshape(-1, design.codewords, design.code_bits),
    )
