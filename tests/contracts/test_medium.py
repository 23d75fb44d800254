"""Does every medium keep its laws, and does the bit-exact one disturb bits as theory says?"""

import time
import tracemalloc
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import kstest, norm

from hushtune_common.config import Scenario
from hushtune_common.errors import MalformedUpdate, StaleRound
from hushtune_common.link.fidelity import Fidelity
from hushtune_common.link.frame import FrameChunk, FrameReader, frame_layout, frame_parts
from hushtune_common.link.modular import BlockCode
from hushtune_common.link.randomness import SeededRandomness
from hushtune_common.link.reception import Reception, bare_payloads
from hushtune_common.link.wiretap import design
from hushtune_common.messages import Listener, Part, RunId, SecrecyDesign, Transmission
from hushtune_common.seeding import SeedTree
from hushtune_common.units import PowerRatio, from_db
from hushtune_server.air.abstract import AbstractMedium
from hushtune_server.air.bit_exact import BitExactMedium
from hushtune_server.air.hybrid import HybridMedium
from hushtune_server.air.medium import Gains, Medium
from hushtune_server.air.replay import FrameFile, Replay
from tests.radio import ONE, POINTS, frame_bytes, link_seed, qpsk_design, random_update, reader, scenario, transmission

DESIGN = qpsk_design(codewords=1)
SEEDS = SeedTree(1).child("air")
FIDELITIES = {"bit_exact": BitExactMedium, "abstract": AbstractMedium, "hybrid": HybridMedium}
FADINGS = ("none", "rayleigh_block")


def setting(fidelity: str, *, fading: str = "none", codewords: int = 1, subbands: int = 16) -> Scenario:
    air = {"fidelity": fidelity, "fading": fading, "subbands": subbands}
    return scenario(air=air, secrecy={"codewords": codewords})


def medium_of(fidelity: str, **options: Any) -> Medium:
    return FIDELITIES[fidelity](setting(fidelity, **options))


CASES = [(fidelity, fading) for fidelity in FIDELITIES for fading in FADINGS]
MEDIA = [(fidelity, medium_of(fidelity, fading=fading)) for fidelity, fading in CASES]
media = pytest.mark.parametrize(("fidelity", "medium"), MEDIA, ids=["-".join(case) for case in CASES])
# Where white noise and fading make about half of the blocks be lost.
LOSING = [(AbstractMedium(setting("abstract", fading=f)), level) for f, level in zip(FADINGS, (5.15, 10.0), strict=True)]
losing = pytest.mark.parametrize(("medium", "snr_db"), LOSING, ids=FADINGS)


def blob_of(blocks: int, fidelity: str, *, secrecy: SecrecyDesign = DESIGN) -> bytes:
    return frame_bytes(random_update(blocks * secrecy.payload_bytes - 3), secrecy, fidelity=Fidelity(fidelity))


def mixed(coded: Iterable[bool], fidelity: Fidelity) -> bytes:
    """A frame whose blocks have these forms."""
    flags = np.array(list(coded))
    update = random_update(flags.size * DESIGN.payload_bytes)
    code = BlockCode(DESIGN, toeplitz=link_seed(DESIGN).toeplitz)
    randomness = SeededRandomness(SEEDS.child("random"))
    about: dict[str, Any] = {"part": Part.PAYLOAD, "design": DESIGN, "code": code, "fidelity": fidelity, "coded": flags}
    return b"".join(frame_parts(update, **about, randomness=randomness))


def hear(
    medium: Medium,
    blob: bytes,
    *,
    listener: Listener = Listener.MAIN,
    secrecy: SecrecyDesign = DESIGN,
    snr_db: float = 5.2,
    gain: PowerRatio = ONE,
    numbers: Iterable[int] | None = None,
    run: str = "run-1",
    round_id: int = 1,
    **order: Any,
) -> list[Reception]:
    """What a listener hears of a frame, chunk by chunk, or of the chunks ``numbers`` in this order."""
    frame = reader(blob)
    sending = transmission(blob, secrecy, snr_db=snr_db, **order)
    sending = replace(sending, key=replace(sending.key, run=RunId(run), round_id=round_id))
    wanted = range(frame.chunk_count(secrecy)) if numbers is None else numbers
    return [heard_chunk(medium, frame, number, listener=listener, sending=sending, gain=gain) for number in wanted]


def heard_chunk(
    medium: Medium, frame: FrameReader, number: int, *, listener: Listener, sending: Transmission, gain: PowerRatio = ONE
) -> Reception:
    chunk = frame.chunk(number, design=sending.design)
    return medium.hear(chunk, listener=listener, transmission=sending, gain=gain, seeds=SEEDS)


def fates(receptions: list[Reception]) -> NDArray[np.float64]:
    return np.concatenate([r.heard for r in receptions]).astype(float)


def sent_signs(blob: bytes, secrecy: SecrecyDesign) -> NDArray[np.int8]:
    """What the soft values of a noiseless receiver have as signs, (blocks, codewords, code_bits)."""
    frame = reader(blob)
    rows = np.concatenate([frame.chunk(k, design=secrecy).rows for k in range(frame.chunk_count(secrecy))])
    bits = np.unpackbits(rows, axis=1, bitorder="little").reshape(-1, secrecy.codewords, secrecy.code_bits)
    return np.where(bits == 1, -1, 1).astype(np.int8)


def soft_of(receptions: list[Reception]) -> NDArray[np.int8]:
    return np.concatenate([r.soft for r in receptions])


@media
def test_replaying_gives_equal_receptions_whatever_the_order_of_chunks(fidelity: str, medium: Medium) -> None:
    blob = blob_of(700, fidelity)
    for listener in Listener:
        forwards = [r.to_bytes() for r in hear(medium, blob, listener=listener)]
        backwards = [r.to_bytes() for r in hear(medium, blob, listener=listener, numbers=(2, 1, 0))]
        assert forwards == backwards[::-1]


@losing
def test_main_and_tap_have_independent_fates(medium: Medium, snr_db: float) -> None:
    blob = blob_of(2000, "abstract")
    main, tap = (fates(hear(medium, blob, listener=listener, snr_db=snr_db)) for listener in Listener)
    assert 0.1 < main.mean() < 0.9
    assert abs(np.corrcoef(main, tap)[0, 1]) < 4 / 2000**0.5


def test_main_and_tap_have_independent_noise() -> None:
    blob, medium = blob_of(40, "bit_exact"), medium_of("bit_exact")
    signs = sent_signs(blob, DESIGN)
    main, tap = (signs * soft_of(hear(medium, blob, listener=listener, snr_db=-5.0)) for listener in Listener)
    assert abs(np.corrcoef(main.ravel(), tap.ravel())[0, 1]) < 4.5 / main.size**0.5


@losing
@pytest.mark.parametrize(
    "other", [{"attempt": 2}, {"client": "c2"}, {"round_id": 2}, {"run": "run-2"}], ids=lambda o: next(iter(o))
)
def test_every_part_of_the_key_has_fates_of_its_own(medium: Medium, snr_db: float, other: dict[str, Any]) -> None:
    blob = blob_of(500, "abstract")
    for listener in Listener:
        first, second = (fates(hear(medium, blob, listener=listener, snr_db=snr_db, **o)) for o in ({}, other))
        assert (first != second).any()


@pytest.mark.parametrize(
    "other", [{"attempt": 2}, {"client": "c2"}, {"round_id": 2}, {"run": "run-2"}], ids=lambda o: next(iter(o))
)
def test_every_part_of_the_key_has_noise_of_its_own(other: dict[str, Any]) -> None:
    blob, medium = blob_of(3, "bit_exact"), medium_of("bit_exact")
    signs = sent_signs(blob, DESIGN)
    first, second = (signs * soft_of(hear(medium, blob, snr_db=-5.0, **o)) for o in ({}, other))
    assert abs(np.corrcoef(first.ravel(), second.ravel())[0, 1]) < 4.5 / first.size**0.5


def test_no_two_codewords_of_a_frame_share_noise_also_across_chunks() -> None:
    secrecy = qpsk_design()
    blob = blob_of(66, "bit_exact", secrecy=secrecy)  # 64 and 2
    receptions = hear(medium_of("bit_exact", codewords=4), blob, secrecy=secrecy, snr_db=-5.0)
    noise = (sent_signs(blob, secrecy) * soft_of(receptions)).reshape(66 * 4, -1).astype(np.float32)
    assert len(receptions) == 2
    assert np.abs(np.corrcoef(noise) - np.eye(len(noise))).max() < 6.5 / noise.shape[1] ** 0.5


@media
def test_with_ample_snr_nearly_everything_arrives_unchanged(fidelity: str, medium: Medium) -> None:
    blob = blob_of(300, fidelity)
    receptions = hear(medium, blob, snr_db=40.0)
    right = np.sign(soft_of(receptions)) == sent_signs(blob, DESIGN)
    assert right.size == 0 or right.mean() > 0.999  # deep fades take some
    assert fates(receptions).mean() > 0.98
    update, size = random_update(300 * DESIGN.payload_bytes - 3) + bytes(3), DESIGN.payload_bytes
    for indices, payloads in map(bare_payloads, receptions):
        assert all(row.tobytes() == update[i * size : (i + 1) * size] for i, row in zip(indices, payloads, strict=True))


@media
def test_in_the_designed_regime_the_tap_gets_no_bare_block(fidelity: str, medium: Medium) -> None:
    receptions = hear(medium, blob_of(250, fidelity), listener=Listener.TAP, snr_db=6.0, gain=from_db(-14.0))
    bare = np.concatenate([~r.coded for r in receptions])
    assert not fates(receptions)[bare].any()
    assert all(r.bare.size == 0 for r in receptions)


@media
@given(size=st.integers(1, 20_000), snr_db=st.floats(-20.0, 30.0))
def test_frame_and_listener_are_kept(fidelity: str, medium: Medium, size: int, snr_db: float) -> None:
    blob = frame_bytes(random_update(size), DESIGN, fidelity=Fidelity(fidelity))
    (chunk,) = [reader(blob).chunk(0, design=DESIGN)]
    for listener in Listener:
        (reception,) = hear(medium, blob, listener=listener, snr_db=snr_db)
        assert (reception.listener, reception.chunk, reception.update_bytes) == (listener, 0, size)
        assert reception.indices.tolist() == chunk.indices.tolist()
        assert reception.coded.tolist() == chunk.coded.tolist()
        assert (reception.bare == chunk.bare[reception.heard[~chunk.coded]]).all()
        assert Reception.from_bytes(reception.to_bytes()).to_bytes() == reception.to_bytes()


@pytest.mark.parametrize("fading", FADINGS)
@pytest.mark.parametrize(("share", "same"), [(True, "bit_exact"), (False, "abstract")])
def test_hybrid_is_bit_exact_where_all_blocks_are_coded_and_abstract_where_none_is(fading: str, share: bool, same: str) -> None:
    hybrid, alone = medium_of("hybrid", fading=fading), medium_of(same, fading=fading)
    ours = hear(hybrid, mixed([share] * 300, Fidelity.HYBRID), snr_db=5.15)
    theirs = hear(alone, mixed([share] * 300, Fidelity(same)), snr_db=5.15)
    for a, b in zip(ours, theirs, strict=True):
        assert (a.soft == b.soft).all()
        assert (a.heard == b.heard).all()
        assert (a.snr_db == b.snr_db).all()


def test_the_coded_blocks_of_a_hybrid_frame_are_numbered_among_themselves() -> None:
    flags = [k % 3 == 0 for k in range(600)]
    sample = hear(medium_of("hybrid"), mixed(flags, Fidelity.HYBRID))
    signs = sent_signs(mixed(flags, Fidelity.HYBRID), DESIGN)
    full = hear(medium_of("bit_exact"), mixed([True] * 200, Fidelity.BIT_EXACT))
    full_signs = sent_signs(mixed([True] * 200, Fidelity.BIT_EXACT), DESIGN)
    # Other bits, the same noise: where signs agree, the soft values do.
    agree = signs == full_signs
    assert (soft_of(sample)[agree] == soft_of(full)[agree]).all()


@pytest.mark.parametrize("listener", Listener)
@pytest.mark.parametrize("snr_db", [-5.0, 1.0])
def test_the_share_of_wrong_signs_is_that_of_gaussian_noise_at_the_listeners_snr(listener: Listener, snr_db: float) -> None:
    secrecy, blob = qpsk_design(), frame_bytes(random_update(30_000), qpsk_design(), fidelity=Fidelity.BIT_EXACT)
    gain = from_db(-3.0)  # the listener's own link
    soft = soft_of(
        hear(medium_of("bit_exact", codewords=4), blob, secrecy=secrecy, listener=listener, snr_db=snr_db + 3.0, gain=gain)
    )
    wrong = soft * sent_signs(blob, secrecy) < 0
    # A sign is wrong when the rounded value 3 * 2 * snr * (1 + noise / sqrt(snr)) is at most -1, thus below -1/2.
    snr = 10 ** (snr_db / 10)
    expected = float(norm.cdf((-0.5 / (6 * snr) - 1) * snr**0.5))
    assert abs(wrong.mean() - expected) < 4 * (expected * (1 - expected) / wrong.size) ** 0.5


@pytest.mark.parametrize("modulation", ["qam16", "qam64"])
def test_sign_bits_of_larger_constellations_fail_as_theory_says(modulation: str) -> None:
    secrecy = design(POINTS[f"{modulation}-0.825"], codewords=1, snr_tap_db=-5.0, log2_delta=-64.0)
    blob = frame_bytes(random_update(20_000), secrecy, fidelity=Fidelity.BIT_EXACT)
    snr = 10**1.5
    soft = soft_of(hear(medium_of("bit_exact"), blob, secrecy=secrecy, snr_db=15.0))
    bits, levels = {"qam16": (2, (1, 3)), "qam64": (3, (1, 3, 5, 7))}[modulation]
    unit = {"qam16": 5**-0.5, "qam64": 21**-0.5}[modulation]
    signs = slice(0, secrecy.code_bits // bits)  # the first bit of each dimension
    wrong = (soft * sent_signs(blob, secrecy) < 0)[:, :, signs]
    # Each amplitude is equally likely; the soft value of the sign is 3 * 2 * snr * unit * (z - ...), rounded to zero near zero.
    expected = np.mean([norm.cdf(-level * unit * snr**0.5) for level in levels])
    assert abs(wrong.mean() - expected) < 4 * (expected * (1 - expected) / wrong.size) ** 0.5 + _near_zero(unit, snr, levels)


def _near_zero(unit: float, snr: float, levels: tuple[int, ...]) -> float:
    """How many signs at most are lost to rounding: abs(z) below 1/2 of a step of 6 * snr * unit."""
    step = 0.5 / (6 * snr * unit)
    return float(np.mean([norm.cdf(-level * unit * snr**0.5) - norm.cdf((-step - level * unit) * snr**0.5) for level in levels]))


def test_rayleigh_blocks_have_exponential_gains_that_the_listener_is_told_truly() -> None:
    snr_db, medium = -12.0, medium_of("bit_exact", fading="rayleigh_block", subbands=1)
    blob = blob_of(900, "bit_exact")
    receptions = hear(medium, blob, snr_db=snr_db)
    gains = 10 ** ((np.concatenate([r.snr_db for r in receptions]) - snr_db) / 10)
    assert kstest(gains, "expon").pvalue > 1e-3
    # Unclipped, the mean of a soft value with its sign is 3 * 2 * snr * gain, times the receiver's own.
    step = 6 * 2 ** receptions[0].gain_log2 * 10 ** (snr_db / 10)
    means = (soft_of(receptions) * sent_signs(blob, DESIGN)).reshape(900, -1).mean(axis=1) / step
    assert np.polyfit(gains, means, 1) == pytest.approx([1.0, 0.0], abs=0.03)


def test_each_listener_and_each_codeword_fades_by_itself() -> None:
    blob, medium = blob_of(400, "bit_exact"), medium_of("bit_exact", fading="rayleigh_block")
    main, tap = (np.concatenate([r.snr_db for r in hear(medium, blob, listener=who)]) for who in Listener)
    assert abs(np.corrcoef(main, tap)[0, 1]) < 4.5 / 400**0.5
    assert abs(np.corrcoef(main[1:], main[:-1])[0, 1]) < 4.5 / 400**0.5
    assert np.unique(main).size > 390


@media
def test_a_frame_of_another_design_is_refused(fidelity: str, medium: Medium) -> None:
    other = qpsk_design(codewords=2)
    blob = frame_bytes(random_update(1000), other, fidelity=Fidelity(fidelity))
    chunk = reader(blob).chunk(0, design=other)
    with pytest.raises(MalformedUpdate, match="design carries"):
        medium.hear(chunk, listener=Listener.MAIN, transmission=transmission(blob, DESIGN), gain=ONE, seeds=SEEDS)
    with pytest.raises(MalformedUpdate, match="codewords"):
        hear(medium, blob, secrecy=other)


@media
def test_a_frame_of_another_fidelity_or_part_is_refused(fidelity: str, medium: Medium) -> None:
    for other in {*FIDELITIES} - {fidelity}:
        with pytest.raises(MalformedUpdate, match=f"the air runs {fidelity}"):
            hear(medium, blob_of(3, other))
    with pytest.raises(MalformedUpdate, match="part"):
        hear(medium, blob_of(3, fidelity), part=Part.KEY)


@media
def test_a_code_that_nobody_has_measured_is_refused(fidelity: str, medium: Medium) -> None:
    unknown = replace(DESIGN, code_bits=10_248)
    coded = np.full(2, fidelity == "bit_exact")
    size = 2 * unknown.payload_bytes
    layout = frame_layout(size, part=Part.PAYLOAD, design=unknown, fidelity=Fidelity(fidelity), coded=coded)
    rows = np.zeros((layout.coded_count, unknown.coded_bytes), dtype=np.uint8)
    bare = np.zeros((2 - layout.coded_count, layout.bare_row_bytes), dtype=np.uint8)
    blocks: dict[str, Any] = {"indices": layout.indices, "coded": coded, "rows": rows, "bare": bare}
    chunk = FrameChunk(number=0, start=0, coded_start=0, layout=layout, **blocks)
    with pytest.raises(MalformedUpdate, match="no coding point"):
        medium.hear(chunk, listener=Listener.MAIN, transmission=transmission(b"frame", unknown), gain=ONE, seeds=SEEDS)


@media
@pytest.mark.parametrize("gain", [0.0, 1e-200])
def test_what_cannot_be_heard_is_refused(fidelity: str, medium: Medium, gain: float) -> None:
    with pytest.raises(MalformedUpdate, match="nothing can be heard"):
        hear(medium, blob_of(2, fidelity), gain=PowerRatio(gain))


def test_gains_tell_the_two_links_apart() -> None:
    gains = Gains(main=PowerRatio(2.0), tap=PowerRatio(0.5))
    assert (gains.of(Listener.MAIN), gains.of(Listener.TAP)) == (2.0, 0.5)
    with pytest.raises(ValueError, match="positive"):
        Gains(main=PowerRatio(0.0), tap=PowerRatio(1.0))


def test_a_replay_needs_the_memory_of_a_chunk_and_is_no_more_once_the_file_is_closed(tmp_path: Path) -> None:
    update = random_update(12_000 * DESIGN.payload_bytes)
    blob = frame_bytes(update, DESIGN)  # 47 chunks
    (tmp_path / "frame").write_bytes(blob)
    sending = transmission(blob, DESIGN)
    medium = medium_of("abstract")
    with FrameFile(tmp_path / "frame") as file:
        replay = Replay(file.reader(), medium=medium, listener=Listener.MAIN, transmission=sending, gain=ONE, seeds=SEEDS)
        replay.chunk(0)
        tracemalloc.start()
        count, heard = replay.chunk(30)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 4 * count * (DESIGN.payload_bytes + 4) < len(blob) / 10
    assert heard == hear(medium, blob, snr_db=6.0, numbers=[30])[0].to_bytes()
    with pytest.raises(ValueError, match="closed"):
        replay.chunk(0)
    with pytest.raises(StaleRound):
        FrameFile(tmp_path / "gone")


@pytest.mark.slow
@pytest.mark.parametrize("fading", FADINGS)
def test_28_megabytes_take_less_than_a_second_of_processor_time(fading: str) -> None:
    blob = frame_bytes(random_update(28_000_000), DESIGN)
    medium = medium_of("abstract", fading=fading)
    start = time.process_time()
    hear(medium, blob)
    assert time.process_time() - start < 1.0
