"""Do stored envelopes still open, are they made again bit for bit, and are their damaged copies still refused?

Provenance of ``vectors/envelope.json``: made by this file with ``--update-golden`` from a fresh key and a fresh encapsulation of
cryptography 50 (OpenSSL's ML-KEM-768); the sealed bytes are confirmed by the construction test in ``contracts/test_envelope.py``.
"""

import json
from pathlib import Path
from typing import TypedDict

import pytest
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from hushtune_common.crypto import envelope
from hushtune_common.crypto.envelope import _seal_from_parts  # pyright: ignore[reportPrivateUsage]  # exists for this test
from hushtune_common.crypto.keys import HybridPrivateKey
from hushtune_common.errors import InvalidEnvelope
from hushtune_common.messages import ClientId, Digest, RunId, UpdateKey

PATH = Path(__file__).parent / "vectors" / "envelope.json"
KEY = UpdateKey(run=RunId("golden"), round_id=3, client=ClientId("c1"), attempt=1)
EMULATOR = Digest.of(b"golden emulator")
CODEC = "delta-int8-b64-zstd/1"
PAYLOAD = b"an encoded adapter, short enough to read"

Vector = TypedDict(
    "Vector",
    {
        "recipient x25519": str,
        "recipient mlkem seed": str,
        "ephemeral x25519": str,
        "mlkem ciphertext": str,
        "sealed": str,
    },
)


def recipient(vector: Vector) -> HybridPrivateKey:
    return HybridPrivateKey(
        x25519=X25519PrivateKey.from_private_bytes(bytes.fromhex(vector["recipient x25519"])),
        mlkem=MLKEM768PrivateKey.from_seed_bytes(bytes.fromhex(vector["recipient mlkem seed"])),
    )


def sealed_again(vector: Vector) -> bytes:
    """Seal from the stored parts; the ML-KEM secret is found from the ciphertext, as encapsulating draws its own randomness."""
    ciphertext = bytes.fromhex(vector["mlkem ciphertext"])
    secret = MLKEM768PrivateKey.from_seed_bytes(bytes.fromhex(vector["recipient mlkem seed"])).decapsulate(ciphertext)
    public = recipient(vector).public
    ephemeral = X25519PrivateKey.from_private_bytes(bytes.fromhex(vector["ephemeral x25519"]))
    agreement = public.encapsulate_from_parts(ephemeral, mlkem_secret=secret, ciphertext=ciphertext)
    update = _seal_from_parts(PAYLOAD, recipient=public, agreement=agreement, key=KEY, emulator=EMULATOR, codec=CODEC)
    return envelope.to_bytes(update)


def fresh() -> Vector:
    x25519, mlkem = X25519PrivateKey.generate(), MLKEM768PrivateKey.generate()
    _, ciphertext = mlkem.public_key().encapsulate()
    vector: Vector = {
        "recipient x25519": x25519.private_bytes_raw().hex(),
        "recipient mlkem seed": mlkem.private_bytes_raw().hex(),
        "ephemeral x25519": X25519PrivateKey.generate().private_bytes_raw().hex(),
        "mlkem ciphertext": ciphertext.hex(),
        "sealed": "",
    }
    vector["sealed"] = sealed_again(vector).hex()
    return vector


@pytest.fixture
def vector(request: pytest.FixtureRequest) -> Vector:
    if request.config.getoption("--update-golden", default=False):
        PATH.write_text(json.dumps(fresh(), indent=1) + "\n")
    return json.loads(PATH.read_text())


def test_the_stored_envelope_opens(vector: Vector):
    update = envelope.from_bytes(bytes.fromhex(vector["sealed"]))
    assert (update.key, update.emulator) == (KEY, EMULATOR)
    assert envelope.open_sealed(update, private=recipient(vector), codec=CODEC) == PAYLOAD


def test_the_same_parts_give_the_stored_envelope(vector: Vector):
    assert sealed_again(vector).hex() == vector["sealed"]


REFUSED = {
    "another magic": (0, 0x20),
    "another version": (4, 0x03),
    "another run": (6, 0x01),
    "another client": (14, 0x02),
    "another round": (15, 0x01),
    "another emulator": (23, 0x80),
    "another length": (55, 0x01),
    "another version of the public parameters": (63, 0x03),
    "another ephemeral key": (64, 0x01),
    "another ML-KEM ciphertext": (96, 0x01),
    "another ciphertext": (1184, 0x01),
    "another tag": (-1, 0x01),
}


@pytest.mark.parametrize("damage", REFUSED.values(), ids=REFUSED.keys())
def test_a_damaged_copy_is_refused(vector: Vector, damage: tuple[int, int]):
    blob = bytearray.fromhex(vector["sealed"])
    at, flip = damage
    blob[at] ^= flip
    with pytest.raises(InvalidEnvelope):
        envelope.open_sealed(envelope.from_bytes(bytes(blob)), private=recipient(vector), codec=CODEC)
