"""The envelope: an encoded adapter sealed to the owner and bound to its run, round, client, emulator and codec.

Hybrid KEM and AEAD: the secrets of ML-KEM-768 and X25519 go through HKDF-SHA256 together with the whole transcript (recipient's
key, public parameters, context), which gives a key and a nonce for one single AES-256-GCM. Context and public parameters are also
the associated data. What does not open gives `InvalidEnvelope` and no reason.

Known limits: the length of the payload shows; the sender is authenticated by its certificate, not by the envelope.
"""

import struct
from dataclasses import replace
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from hushtune_common.crypto.keys import ENCAPSULATED_BYTES, REFUSED, HybridPrivateKey, HybridPublicKey, SharedSecret
from hushtune_common.errors import InvalidEnvelope
from hushtune_common.messages import ClientId, Digest, RunId, SealedUpdate, UpdateKey

MAGIC: Final = b"HTSU"
VERSION: Final = b"\x01"
_LABEL: Final = b"hushtune/envelope/1"
_TAG_BYTES: Final = 16
_NAME_MAX: Final = 63
_PUBLIC_BYTES: Final = 1 + ENCAPSULATED_BYTES
_FIXED: Final = struct.Struct("<Q32sQ")
"""Round, emulator digest, length of the body."""

OVERHEAD_MAX: Final = len(MAGIC) + 1 + 2 * (1 + _NAME_MAX) + _FIXED.size + _PUBLIC_BYTES + _TAG_BYTES
"""Most bytes that sealing adds to a payload."""
PAYLOAD_MAX: Final = 2**31 - 1 - _TAG_BYTES
"""What one call of the AEAD takes."""


def seal(payload: bytes, *, recipient: HybridPublicKey, key: UpdateKey, emulator: Digest, codec: str) -> SealedUpdate:
    """Return ``payload`` sealed to ``recipient``; every call draws fresh randomness, so no two results are equal.

    ``key.attempt`` counts transmissions of one sealed update and is not bound: the result carries attempt 1. ``ValueError`` for
    a payload beyond `PAYLOAD_MAX`.
    """
    return _seal_from_parts(
        payload, recipient=recipient, agreement=recipient.encapsulate(), key=key, emulator=emulator, codec=codec
    )


def open_sealed(update: SealedUpdate, *, private: HybridPrivateKey, codec: str) -> bytes:
    """Return the payload; ``InvalidEnvelope`` on any doubt, always the same one."""
    if len(update.public) != _PUBLIC_BYTES or update.public[:1] != VERSION:
        raise InvalidEnvelope(REFUSED)
    context = _context(update.key, emulator=update.emulator, codec=codec)
    secret = private.decapsulate(update.public[1:])
    aead_key, nonce = _derive(secret, recipient=private.public, public=update.public, context=context)
    try:
        return AESGCM(aead_key).decrypt(nonce, update.body, context + update.public)
    except (InvalidTag, OverflowError):
        raise InvalidEnvelope(REFUSED) from None


def to_bytes(update: SealedUpdate) -> bytes:
    """Return the sealed update as one blob: magic, version, context, public parameters, body."""
    return b"".join(
        [
            MAGIC + VERSION,
            _named(update.key.run),
            _named(update.key.client),
            _FIXED.pack(update.key.round_id, update.emulator.value, len(update.body)),
            update.public,
            update.body,
        ]
    )


def from_bytes(blob: bytes) -> SealedUpdate:
    """Parse `to_bytes`; ``InvalidEnvelope``, without a reason, for anything else. Allocates no more than the blob's size."""
    try:
        offset = len(MAGIC) + 1
        if blob[:offset] != MAGIC + VERSION:
            raise InvalidEnvelope(REFUSED)
        run, offset = _read_name(blob, offset)
        client, offset = _read_name(blob, offset)
        round_id, emulator, body_bytes = _FIXED.unpack_from(blob, offset)
        offset += _FIXED.size
        if len(blob) - offset != _PUBLIC_BYTES + body_bytes:
            raise InvalidEnvelope(REFUSED)
        return SealedUpdate(
            key=UpdateKey(run=RunId(run), round_id=round_id, client=ClientId(client), attempt=1),
            emulator=Digest(emulator),
            public=blob[offset : offset + _PUBLIC_BYTES],
            body=blob[offset + _PUBLIC_BYTES :],
        )
    except (ValueError, IndexError, struct.error):
        raise InvalidEnvelope(REFUSED) from None


def _seal_from_parts(
    payload: bytes,
    *,
    recipient: HybridPublicKey,
    agreement: tuple[bytes, SharedSecret],
    key: UpdateKey,
    emulator: Digest,
    codec: str,
) -> SealedUpdate:
    """Seal with a given agreement: deterministic, hence for test vectors only. Using one agreement twice breaks the AEAD."""
    if len(payload) > PAYLOAD_MAX:
        raise ValueError(f"a payload has at most {PAYLOAD_MAX} bytes, got {len(payload)}")
    encapsulated, secret = agreement
    public = VERSION + encapsulated
    context = _context(key, emulator=emulator, codec=codec)
    aead_key, nonce = _derive(secret, recipient=recipient, public=public, context=context)
    body = AESGCM(aead_key).encrypt(nonce, payload, context + public)
    return SealedUpdate(key=replace(key, attempt=1), emulator=emulator, public=public, body=body)


def _context(key: UpdateKey, *, emulator: Digest, codec: str) -> bytes:
    """Return what an envelope is bound to, each part with its length, so that no two contexts share their bytes."""
    parts = [key.run.encode(), key.round_id.to_bytes(8, "little"), key.client.encode(), emulator.value, codec.encode()]
    return _LABEL + b"".join(struct.pack("<I", len(part)) + part for part in parts)


def _derive(secret: SharedSecret, *, recipient: HybridPublicKey, public: bytes, context: bytes) -> tuple[bytes, bytes]:
    """Return a 256-bit key and a 96-bit nonce, good for exactly one message because ``public`` is fresh for every one.

    HKDF (RFC 5869) as a combiner: the key is secret while either of the two inputs is. The transcript in ``info`` is needed
    because X25519 does not bind the public keys it was computed from.
    """
    info = _LABEL + recipient.to_bytes() + public + context
    okm = HKDF(algorithm=SHA256(), length=44, salt=_LABEL, info=info).derive(secret.material)
    return okm[:32], okm[32:]


def _named(name: str) -> bytes:
    data = name.encode()
    return bytes([len(data)]) + data


def _read_name(blob: bytes, offset: int) -> tuple[str, int]:
    end = offset + 1 + blob[offset]
    return blob[offset + 1 : end].decode("ascii"), end
