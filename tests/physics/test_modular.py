"""Does the wiretap code give its payload back, hide it behind fresh bits every time, and notice when it went wrong?"""

import zlib
from functools import cache

import numpy as np
import pytest
from numpy.typing import NDArray

from hushtune_common.link import ldpc
from hushtune_common.link.modem import Path, soft_values
from hushtune_common.link.modular import BlockCode, dither_rows, draw_public
from hushtune_common.link.noise import NoiseKey
from hushtune_common.link.randomness import OsRandomness, SeededRandomness
from hushtune_common.link.toeplitz import Toeplitz
from hushtune_common.link.wiretap import design, open_design
from hushtune_common.messages import SecrecyDesign
from hushtune_common.seeding import SeedTree
from tests.radio import POINTS, link_seed, qpsk_design

Bytes = NDArray[np.uint8]
SoftBits = NDArray[np.int8]

SEEDS = SeedTree(11).child("modular")
CASES = {  # name: (coding point, codewords, tap SNR in dB or None for an open design, main SNR in dB well above the waterfall)
    "qpsk, 1 word": ("qpsk-0.825", 1, -5.0, 6.2),
    "qpsk, 4 words": ("qpsk-0.825", 4, -5.0, 6.2),
    "qpsk, 16 words": ("qpsk-0.825", 16, -5.0, 6.2),
    "qpsk, half rate": ("qpsk-0.5", 4, -8.0, 2.6),
    "16-QAM": ("qam16-0.825", 4, 0.0, 12.5),
    "16-QAM, half rate": ("qam16-0.5", 2, -3.0, 8.0),
    "64-QAM": ("qam64-0.825", 4, 3.0, 18.5),
    "open": ("qpsk-0.825", 4, None, 6.2),
    "open, 16-QAM, 1 word": ("qam16-0.825", 1, None, 12.5),
}


@cache
def design_of(name: str) -> SecrecyDesign:
    point, codewords, tap, _ = CASES[name]
    if tap is None:
        return open_design(POINTS[point], codewords=codewords)
    return design(POINTS[point], codewords=codewords, snr_tap_db=tap, log2_delta=-64.0)


def code_of(secrecy: SecrecyDesign) -> BlockCode:
    return BlockCode(secrecy, toeplitz=link_seed(secrecy).toeplitz)


def payloads_of(secrecy: SecrecyDesign, count: int, *, seed: int = 0) -> Bytes:
    return np.random.default_rng(seed).integers(0, 256, (count, secrecy.payload_bytes), dtype=np.uint8)


def certain(rows: Bytes, secrecy: SecrecyDesign) -> SoftBits:
    """Soft values without a doubt: 127 for a 0, -127 for a 1."""
    bits = np.unpackbits(rows, axis=1, bitorder="little").astype(np.int8)
    return (127 - 2 * 127 * bits.astype(np.int16)).astype(np.int8).reshape(len(rows), secrecy.codewords, secrecy.code_bits)


def heard(rows: Bytes, secrecy: SecrecyDesign, *, snr_db: float, key: str = "noise") -> SoftBits:
    """Soft values after modulation, noise and demapping."""
    coded = rows.reshape(-1, secrecy.code_bits // 8)
    path = Path(snr=10 ** (snr_db / 10), gains=None, key=NoiseKey.of(SEEDS.child(key)), first=0)
    dither = dither_rows(secrecy, link_seed(secrecy).dither)
    return soft_values(coded, dither=dither, modulation=secrecy.modulation, path=path).reshape(
        len(rows), secrecy.codewords, secrecy.code_bits
    )


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("threads", [1, 2])
def test_what_was_encoded_is_decoded(name: str, threads: int) -> None:
    secrecy = design_of(name)
    payloads, code = payloads_of(secrecy, 3), code_of(secrecy)
    rows = code.encode(payloads, randomness=OsRandomness(), threads=threads)
    assert rows.shape == (3, secrecy.coded_bytes)
    decoded = code.decode(certain(rows, secrecy), iterations=5, threads=threads)
    assert np.array_equal(decoded.payloads, payloads)
    assert decoded.sound.all()
    assert decoded.converged.all()
    assert decoded.iterations.shape == (3, secrecy.codewords)


@pytest.mark.parametrize("name", CASES)
def test_what_was_heard_above_the_waterfall_is_decoded(name: str) -> None:
    secrecy, code = design_of(name), code_of(design_of(name))
    payloads = payloads_of(secrecy, 5)
    rows = code.encode(payloads, randomness=OsRandomness())
    decoded = code.decode(heard(rows, secrecy, snr_db=CASES[name][3]), iterations=25)
    assert np.array_equal(decoded.payloads, payloads)
    assert decoded.sound.all()
    assert decoded.converged.all()
    assert decoded.iterations.min() > 0


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case[2] is not None])
def test_the_tap_at_its_design_gets_no_block_whole(name: str) -> None:
    secrecy, code = design_of(name), code_of(design_of(name))
    rows = code.encode(payloads_of(secrecy, 2), randomness=OsRandomness())
    decoded = code.decode(heard(rows, secrecy, snr_db=float(secrecy.snr_tap_design_db), key="tap"), iterations=5)
    assert not decoded.sound.any()
    assert not decoded.converged.any()
    assert (decoded.iterations == -5).all()


@pytest.mark.parametrize("codewords", [1, 4])
def test_two_encodings_of_one_payload_differ_in_half_of_all_bits(codewords: int) -> None:
    secrecy = qpsk_design(codewords=codewords)
    rows = code_of(secrecy).encode(np.repeat(payloads_of(secrecy, 1), 20, axis=0), randomness=OsRandomness())
    pairs = np.unpackbits(rows[:10] ^ rows[10:], axis=1).sum(axis=1)
    bits = 8 * secrecy.coded_bytes
    assert (abs(pairs - bits / 2) < 6 * np.sqrt(bits) / 2).all()  # coded bits are pairwise independent


def test_an_open_block_is_the_same_every_time() -> None:
    secrecy = design_of("open")
    payloads, code = payloads_of(secrecy, 2), code_of(secrecy)
    assert np.array_equal(code.encode(payloads, randomness=OsRandomness()), code.encode(payloads, randomness=OsRandomness()))


def test_the_word_is_the_masked_message_with_its_checksum_and_then_the_random_bits() -> None:
    secrecy = qpsk_design(codewords=1)
    payloads, drawn = payloads_of(secrecy, 3), SeededRandomness(SEEDS).draw(3 * secrecy.random_bits // 8)
    rows = code_of(secrecy).encode(payloads, randomness=SeededRandomness(SEEDS))
    x2 = np.frombuffer(drawn, dtype=np.uint8).reshape(3, -1)
    matrix = Toeplitz(link_seed(secrecy).toeplitz, message_bits=secrecy.message_bits, random_bits=secrecy.random_bits)
    sums = [zlib.crc32(row.tobytes()).to_bytes(4, "big") for row in payloads]
    message = np.hstack([payloads, np.frombuffer(b"".join(sums), dtype=np.uint8).reshape(3, 4)])
    words = np.hstack([message ^ matrix.multiply(x2), x2])
    unsent = 2 * 384 // 8  # the code is systematic without its first two columns (TS 38.212, 5.3.2)
    assert np.array_equal(rows[:, : ldpc.INFO_BYTES - unsent], words[:, unsent:])


def test_an_open_word_is_the_payload_with_its_checksum() -> None:
    secrecy = open_design(POINTS["qpsk-0.825"], codewords=1)
    payloads = payloads_of(secrecy, 2)
    rows = code_of(secrecy).encode(payloads, randomness=OsRandomness())
    assert np.array_equal(rows[:, : secrecy.payload_bytes - 96], payloads[:, 96:])
    found = [row[ldpc.INFO_BYTES - 100 : ldpc.INFO_BYTES - 96].tobytes() for row in rows]
    assert found == [zlib.crc32(row.tobytes()).to_bytes(4, "big") for row in payloads]


def test_codewords_of_another_message_converge_and_fail_the_checksum() -> None:
    secrecy, code = qpsk_design(codewords=1), code_of(qpsk_design(codewords=1))
    words = np.random.default_rng(4).integers(0, 256, (400, ldpc.INFO_BYTES), dtype=np.uint8)
    decoded = code.decode(certain(ldpc.encode(words, code_bits=secrecy.code_bits), secrecy), iterations=2)
    assert decoded.converged.all()
    assert not decoded.sound.any()


def test_another_hash_seed_gives_another_message_and_fails_the_checksum() -> None:
    secrecy = qpsk_design()
    payloads = payloads_of(secrecy, 4)
    rows = code_of(secrecy).encode(payloads, randomness=OsRandomness())
    wrong = BlockCode(secrecy, toeplitz=link_seed(secrecy, seed=1).toeplitz)
    decoded = wrong.decode(certain(rows, secrecy), iterations=5)
    assert decoded.converged.all()
    assert not decoded.sound.any()
    assert 0.48 < float(np.unpackbits(decoded.payloads ^ payloads).mean()) < 0.52


def test_one_lost_codeword_voids_its_block_and_no_other() -> None:
    secrecy, code = qpsk_design(), code_of(qpsk_design())
    payloads = payloads_of(secrecy, 3)
    soft = certain(code.encode(payloads, randomness=OsRandomness()), secrecy)
    soft[1, 2] = np.random.default_rng(5).integers(-127, 128, secrecy.code_bits)
    decoded = code.decode(soft, iterations=5)
    assert decoded.sound.tolist() == decoded.converged.tolist() == [True, False, True]
    assert np.array_equal(decoded.payloads[[0, 2]], payloads[[0, 2]])


def test_no_blocks_are_nothing_to_do() -> None:
    secrecy, code = qpsk_design(), code_of(qpsk_design())
    rows = code.encode(payloads_of(secrecy, 0), randomness=OsRandomness())
    decoded = code.decode(np.empty((0, secrecy.codewords, secrecy.code_bits), dtype=np.int8), iterations=5)
    assert rows.shape == (0, secrecy.coded_bytes)
    assert decoded.payloads.shape == (0, secrecy.payload_bytes)


def test_payloads_soft_values_and_dithers_of_other_sizes_are_refused() -> None:
    secrecy, code = qpsk_design(), code_of(qpsk_design())
    with pytest.raises(ValueError, match="payloads"):
        code.encode(np.zeros((2, secrecy.payload_bytes + 1), dtype=np.uint8), randomness=OsRandomness())
    with pytest.raises(ValueError, match="soft values"):
        code.decode(np.zeros((2, secrecy.codewords + 1, secrecy.code_bits), dtype=np.int8), iterations=5)
    with pytest.raises(ValueError, match="dither"):
        dither_rows(secrecy, bytes(secrecy.coded_bytes - 1))
    with pytest.raises(ValueError, match="hash seed"):
        BlockCode(secrecy, toeplitz=b"")


@pytest.mark.parametrize("name", CASES)
def test_public_randomness_has_the_lengths_of_its_design_and_is_drawn_anew(name: str) -> None:
    secrecy = design_of(name)
    one, two = (draw_public(secrecy, randomness=OsRandomness()) for _ in range(2))
    assert [len(part) for part in one] == [secrecy.toeplitz_bytes, secrecy.coded_bytes]
    assert one[1] != two[1]
    assert one[0] != two[0] or not secrecy.secret
    assert dither_rows(secrecy, one[1]).tobytes() == one[1]


@pytest.mark.parametrize("modulation", ["qpsk", "qam16"])
def test_whitened_symbols_are_uniform_whatever_the_payload(modulation: str) -> None:
    secrecy = open_design(POINTS[f"{modulation}-0.825"], codewords=4)
    rows = code_of(secrecy).encode(np.zeros((1, secrecy.payload_bytes), dtype=np.uint8), randomness=OsRandomness())
    sent = rows.reshape(secrecy.codewords, -1) ^ dither_rows(secrecy, link_seed(secrecy).dither)
    bits = np.unpackbits(sent, axis=1)
    assert (abs(bits.sum(axis=1) - secrecy.code_bits / 2) < 5 * np.sqrt(secrecy.code_bits) / 2).all()
    agreements = [(bits[i] == bits[k]).sum() for i in range(4) for k in range(i)]
    assert all(abs(int(a) - secrecy.code_bits / 2) < 5 * np.sqrt(secrecy.code_bits) / 2 for a in agreements)
