"""Are codewords still, bit for bit, those that an independent encoder of the same standard made?

Provenance of ``vectors/ldpc-sionna.json``: codewords of Sionna's ``LDPC5GEncoder(8448, n)`` (version in the file), for the words
SHAKE-256 draws from each label. Its bits were packed with the least significant first, and their SHA-256 noted. The file is never
rewritten by our own encoder; ``differential/test_ldpc_against_sionna.py`` compares again, and on any word, where Sionna is.
"""

import json
from hashlib import sha256, shake_256
from pathlib import Path

import numpy as np
import pytest

from hushtune_common.link.ldpc import INFO_BYTES, encode

PATH = Path(__file__).parent / "vectors" / "ldpc-sionna.json"
DIGESTS: dict[str, dict[str, str]] = json.loads(PATH.read_text("utf-8"))["sha256 of the codeword by code bits and label"]


@pytest.mark.parametrize("code_bits", DIGESTS)
def test_codewords_are_those_of_the_reference_encoder(code_bits: str) -> None:
    expected = DIGESTS[code_bits]
    words = np.array([np.frombuffer(shake_256(label.encode()).digest(INFO_BYTES), dtype=np.uint8) for label in expected])
    codewords = encode(words, code_bits=int(code_bits))
    assert [sha256(codeword.tobytes()).hexdigest() for codeword in codewords] == list(expected.values())
