"""Do our codewords equal Sionna's, and does Sionna's decoder read them? Only where Sionna is installed."""

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from hushtune_common.link.ldpc import INFO_BITS, INFO_BYTES, encode

ldpc: Any = pytest.importorskip("sionna.phy.fec.ldpc", reason="the package sionna-no-rt is not installed")


def packed(bits: torch.Tensor) -> NDArray[np.uint8]:
    return np.packbits(bits.numpy().astype(np.uint8), axis=1, bitorder="little")


def words_and_bits(count: int) -> tuple[NDArray[np.uint8], torch.Tensor]:
    words = np.random.default_rng(6).integers(0, 256, (count, INFO_BYTES), dtype=np.uint8)
    return words, torch.from_numpy(np.unpackbits(words, axis=1, bitorder="little").astype(np.float32))


@pytest.mark.slow
@pytest.mark.parametrize("code_bits", [9128, 9600, 10240, 10376, 12672, 16896, 25344])
def test_codewords_are_identical(code_bits: int) -> None:
    words, bits = words_and_bits(4)
    theirs = ldpc.LDPC5GEncoder(INFO_BITS, code_bits)(bits)
    assert np.array_equal(encode(words, code_bits=code_bits), packed(theirs))


@pytest.mark.slow
def test_their_decoder_reads_our_codewords() -> None:
    words, bits = words_and_bits(2)
    encoder = ldpc.LDPC5GEncoder(INFO_BITS, 10240)
    encoder(bits)
    code = np.unpackbits(encode(words, code_bits=10240), axis=1, bitorder="little").astype(np.float32)
    noise = np.random.default_rng(7).standard_normal(code.shape).astype(np.float32)
    ratios = 8.0 * ((2.0 * code - 1.0) + 0.5 * noise)  # theirs are positive where 1 is likelier
    decoded = ldpc.LDPC5GDecoder(encoder, num_iter=20)(torch.from_numpy(ratios))
    assert np.array_equal(packed(decoded), words)
