"""Do stored envelopes still open, are they made again bit for bit, and are their damaged copies still refused?

Provenance of ``vectors/envelope.json``: made by this file with ``--update-golden`` from a fresh key and a fresh encapsulation of
cryptography 50 (OpenSSL's ML-KEM-768), without and with a secret of the wiretap code; sealed bytes, link key and tag are
confirmed by the construction tests in ``contracts/test_envelope.py``.
"""

import json
from pathlib import Path
from typing import TypedDict

import pytest
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from hushtune_common.crypto import envelope
from hushtune_common.crypto.envelope import (
    Opening,
    Sealing,
    _seal_from_parts,  # pyright: ignore[reportPrivateUsage]  # exists for this test
)
from hushtune_common.crypto.keys import HybridPrivateKey
from hushtune_common.errors import InvalidEnvelope
from hushtune_common.messages import ClientId, Digest, LinkSeed, Part, RunId, SecrecyDesign, UpdateKey
from hushtune_common.units import Decibel

PATH = Path(__file__).parent / "vectors" / "envelope.json"
KEY = UpdateKey(run=RunId("golden"), round_id=3, client=ClientId("c1"), attempt=1)
EMULATOR = Digest.of(b"golden emulator")
CODEC = "delta-int8-b64-zstd/1"
PAYLOAD = b"an encoded adapter, short enough to read"
DESIGN = SecrecyDesign(
    modulation="qpsk",
    code_bits=10_240,
    info_bits=8_448,
    codewords=1,
    message_bits=5_744,
    random_bits=2_704,
    snr_tap_design_db=Decibel(-5.0),
    log2_delta=-64.0,
    rho=0.216,
    rate=1.121875,
)
TOEPLITZ, DITHER = bytes(range(256)) * 4 + bytes(32), bytes(range(255, -1, -1)) * 5

Vector = TypedDict(
    "Vector",
    {
        "recipient x25519": str,
        "recipient mlkem seed": str,
        "ephemeral x25519": str,
        "mlkem ciphertext": str,
        "secret": str,
        "sealed": str,
        "link key": str,
        "link tag": str,
    },
)


def recipient(vector: Vector) -> HybridPrivateKey:
    return HybridPrivateKey(
        x25519=X25519PrivateKey.from_private_bytes(bytes.fromhex(vector["recipient x25519"])),
        mlkem=MLKEM768PrivateKey.from_seed_bytes(bytes.fromhex(vector["recipient mlkem seed"])),
    )


def sealed_again(vector: Vector) -> Sealing:
    """Seal from the stored parts; the ML-KEM secret is found from the ciphertext, as encapsulating draws its own randomness."""
    ciphertext = bytes.fromhex(vector["mlkem ciphertext"])
    agreed = MLKEM768PrivateKey.from_seed_bytes(bytes.fromhex(vector["recipient mlkem seed"])).decapsulate(ciphertext)
    public = recipient(vector).public
    ephemeral = X25519PrivateKey.from_private_bytes(bytes.fromhex(vector["ephemeral x25519"]))
    agreement = public.encapsulate_from_parts(ephemeral, mlkem_secret=agreed, ciphertext=ciphertext)
    secret = bytes.fromhex(vector["secret"])
    return _seal_from_parts(
        PAYLOAD, recipient=public, agreement=agreement, key=KEY, emulator=EMULATOR, codec=CODEC, secret=secret
    )


def tag_of(sealing: Sealing) -> bytes:
    return envelope.link_tag(sealing.link_key, part=Part.PAYLOAD, design=DESIGN, toeplitz=TOEPLITZ, dither=DITHER)


def fresh(secret: bytes) -> Vector:
    x25519, mlkem = X25519PrivateKey.generate(), MLKEM768PrivateKey.generate()
    _, ciphertext = mlkem.public_key().encapsulate()
    vector: Vector = {
        "recipient x25519": x25519.private_bytes_raw().hex(),
        "recipient mlkem seed": mlkem.private_bytes_raw().hex(),
        "ephemeral x25519": X25519PrivateKey.generate().private_bytes_raw().hex(),
        "mlkem ciphertext": ciphertext.hex(),
        "secret": secret.hex(),
        "sealed": "",
        "link key": "",
        "link tag": "",
    }
    sealing = sealed_again(vector)
    vector["sealed"] = envelope.to_bytes(sealing.update).hex()
    vector["link key"] = sealing.link_key.material.hex()
    vector["link tag"] = tag_of(sealing).hex()
    return vector


@pytest.fixture(params=["two secrets", "three secrets"])
def vector(request: pytest.FixtureRequest) -> Vector:
    kind: str = request.param
    stored: dict[str, Vector] = json.loads(PATH.read_text())
    if request.config.getoption("--update-golden", default=False) and kind not in _UPDATED:
        _UPDATED.add(kind)
        stored[kind] = fresh(bytes(range(32)) if kind == "three secrets" else b"")
        PATH.write_text(json.dumps(stored, indent=1) + "\n")
    return stored[kind]


_UPDATED: set[str] = set()


def opened(vector: Vector, *, blob: bytes, secret: bytes) -> Opening:
    return envelope.open_sealed(envelope.from_bytes(blob), private=recipient(vector), codec=CODEC, secret=secret)


def test_the_stored_envelope_opens(vector: Vector):
    blob = bytes.fromhex(vector["sealed"])
    update = envelope.from_bytes(blob)
    opening = opened(vector, blob=blob, secret=bytes.fromhex(vector["secret"]))
    assert (update.key, update.emulator, opening.payload) == (KEY, EMULATOR, PAYLOAD)
    seed = LinkSeed(toeplitz=TOEPLITZ, dither=DITHER, tag=bytes.fromhex(vector["link tag"]))
    assert envelope.link_holds(opening.link_key, part=Part.PAYLOAD, design=DESIGN, seed=seed)


def test_the_same_parts_give_the_stored_envelope(vector: Vector):
    sealing = sealed_again(vector)
    assert envelope.to_bytes(sealing.update).hex() == vector["sealed"]
    assert sealing.link_key.material.hex() == vector["link key"]
    assert tag_of(sealing).hex() == vector["link tag"]


def test_the_stored_envelope_is_refused_without_its_secret_and_with_one_that_it_does_not_need(vector: Vector):
    blob = bytes.fromhex(vector["sealed"])
    for secret in {b"", bytes(range(32)), bytes(range(32, 64))} - {bytes.fromhex(vector["secret"])}:
        with pytest.raises(InvalidEnvelope):
            opened(vector, blob=blob, secret=secret)


REFUSED = {
    "another magic": (0, 0x20),
    "another version": (4, 0x03),
    "another run": (6, 0x01),
    "another client": (14, 0x02),
    "another round": (15, 0x01),
    "another emulator": (23, 0x80),
    "another length": (55, 0x01),
    "another version of the public parameters": (63, 0x03),
    "another need of a secret": (64, 0x01),
    "an unknown need of a secret": (64, 0x02),
    "another ephemeral key": (65, 0x01),
    "another ML-KEM ciphertext": (97, 0x01),
    "another ciphertext": (1185, 0x01),
    "another tag": (-1, 0x01),
}


@pytest.mark.parametrize("damage", REFUSED.values(), ids=REFUSED.keys())
def test_a_damaged_copy_is_refused(vector: Vector, damage: tuple[int, int]):
    blob = bytearray.fromhex(vector["sealed"])
    at, flip = damage
    blob[at] ^= flip
    for secret in (b"", bytes(range(32))):
        with pytest.raises(InvalidEnvelope):
            opened(vector, blob=bytes(blob), secret=secret)


def test_an_envelope_of_the_first_version_is_refused(vector: Vector):
    blob = bytes.fromhex(vector["sealed"])
    older = blob[:4] + b"\x01" + blob[5:63] + b"\x01" + blob[65:]
    with pytest.raises(InvalidEnvelope):
        opened(vector, blob=older, secret=bytes.fromhex(vector["secret"]))
