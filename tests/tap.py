"""What the tap hears, made without an air: notices and receptions of frames under a seed of the test's own."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from hushtune_common.link.abstraction import NO_FADING, Fading, fading_gains, fates
from hushtune_common.link.fidelity import Fidelity
from hushtune_common.link.frame import FrameReader
from hushtune_common.link.modem import Path, gain_log2, soft_values
from hushtune_common.link.modular import dither_rows
from hushtune_common.link.noise import NoiseKey
from hushtune_common.link.reception import Reception
from hushtune_common.messages import Listener, Part, ReceptionNotice, SecrecyDesign
from hushtune_common.seeding import SeedTree
from hushtune_common.units import Second, from_db
from tests.radio import frame_bytes, link_seed, reader, transmission


@dataclass(frozen=True, kw_only=True)
class Overheard:
    """One transmission as the tap has it."""

    notice: ReceptionNotice
    chunks: tuple[Reception, ...]


def overhear(
    update: bytes,
    design: SecrecyDesign,
    *,
    snr_db: float,
    fidelity: Fidelity = Fidelity.BIT_EXACT,
    part: Part = Part.PAYLOAD,
    attempt: int = 1,
    only: list[int] | None = None,
    fading: Fading = NO_FADING,
    client: str = "c1",
) -> Overheard:
    """Send ``update`` and hear it at a mean SNR; equal arguments give equal receptions."""
    blob = frame_bytes(update, design, fidelity=fidelity, part=part, only=only, seed=attempt)
    # The seed of a part is drawn once, for all its attempts; here each attempt has its own, and the tap takes what is announced.
    order = transmission(blob, design, part=part, seed=link_seed(design, seed=attempt), client=client, attempt=attempt)
    notice = ReceptionNotice(
        seq=attempt,
        listener=Listener.TAP,
        transmission=order,
        blocks=reader(blob).layout.count,
        update_bytes=len(update),
        fidelity=fidelity.value,
        airtime=Second(1.0),
        acknowledged=False,
    )
    return Overheard(notice=notice, chunks=tuple(_chunks(reader(blob), notice, snr_db=snr_db, fading=fading)))


def _chunks(frame: FrameReader, notice: ReceptionNotice, *, snr_db: float, fading: Fading) -> Iterator[Reception]:
    sent, snr = notice.transmission, float(from_db(snr_db))
    design, seeds = sent.design, SeedTree(99).child("tap", str(sent.key.attempt))
    for number in range(frame.chunk_count(design)):
        chunk = frame.chunk(number, design=design)
        own = seeds.child(str(number))
        gains = fading_gains(chunk.count, codewords=design.codewords, fading=fading, seeds=own.child("fading"))
        heard, levels = fates(chunk.count, design=design, snr=snr, gains=gains, seeds=own.child("fate"))
        rows = None if gains is None else gains[np.repeat(chunk.coded, design.codewords)]
        first = chunk.coded_start * design.codewords
        soft = soft_values(
            chunk.rows.reshape(-1, design.code_bits // 8),
            dither=dither_rows(design, sent.seed.dither),
            modulation=design.modulation,
            path=Path(snr=snr, gains=rows, key=NoiseKey.of(seeds), first=first),
        )
        yield Reception.from_bytes(
            Reception.of(
                chunk,
                listener=Listener.TAP,
                heard=heard | chunk.coded,
                snr_db=levels.astype(np.float32),
                gain_log2=gain_log2(design.modulation, snr=snr),
                soft=soft.reshape(-1, design.codewords, design.code_bits),
            ).to_bytes()
        )
