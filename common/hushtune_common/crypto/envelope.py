"""The envelope: an encoded adapter sealed to the owner and bound to its run, round, client, emulator and codec.

Hybrid KEM and AEAD: the secrets of ML-KEM-768 and X25519, and a third one that travelled over the wiretap code where there is
one, go through HKDF-SHA256 together with the whole transcript (recipient's key, public parameters, context), which gives a key
and a nonce for one single AES-256-GCM. Context and public parameters are also the associated data; one byte of the latter says
whether the third secret is needed. What does not open gives `InvalidEnvelope` and no reason.

The same agreement gives a *link key*. With it the sender authenticates, end to end, what it announces about a transmission:
design, hash seed, dither. The envelope itself cannot cover these: the dither has to be drawn after the sealed bytes are fixed.

Known limits: the length of the payload shows; the sender is authenticated by its certificate, not by the envelope. The link key
rests on the two KEMs alone, so that the owner can check a tag before the secret of the wiretap code has arrived.
"""

import hashlib
import hmac
import struct
from dataclasses import dataclass, field, replace
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from hushtune_common.crypto.keys import (
    ENCAPSULATED_BYTES,
    LINK_KEY_BYTES,
    REFUSED,
    HybridPrivateKey,
    HybridPublicKey,
    LinkKey,
    SharedSecret,
)
from hushtune_common.errors import InvalidEnvelope
from hushtune_common.messages import ClientId, Digest, LinkSeed, Part, RunId, SealedUpdate, SecrecyDesign, UpdateKey

MAGIC: Final = b"HTSU"
VERSION: Final = b"\x02"
SECRET_BYTES: Final = 32
"""Length of the secret that may travel over the wiretap code."""
_LABEL: Final = b"hushtune/envelope/2"
_LINK_KEY_LABEL: Final = b"hushtune/link-key/2"
_LINK_TAG_LABEL: Final = b"hushtune/link-tag/2"
_WITHOUT_SECRET: Final = b"\x00"
_WITH_SECRET: Final = b"\x01"
_TAG_BYTES: Final = 16
_NAME_MAX: Final = 63
_PUBLIC_BYTES: Final = 2 + ENCAPSULATED_BYTES
_FIXED: Final = struct.Struct("<Q32sQ")
"""Round, emulator digest, length of the body."""

OVERHEAD_MAX: Final = len(MAGIC) + 1 + 2 * (1 + _NAME_MAX) + _FIXED.size + _PUBLIC_BYTES + _TAG_BYTES
"""Most bytes that sealing adds to a payload."""
PAYLOAD_MAX: Final = 2**31 - 1 - _TAG_BYTES
"""What one call of the AEAD takes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sealing:
    """A fresh seal, and the key that authenticates how it is sent."""

    update: SealedUpdate
    link_key: LinkKey


@dataclass(frozen=True, slots=True, kw_only=True)
class Opening:
    """What an envelope held, and the key that its sender authenticated the transmissions with."""

    payload: bytes = field(repr=False)
    link_key: LinkKey


def seal(
    payload: bytes, *, recipient: HybridPublicKey, key: UpdateKey, emulator: Digest, codec: str, secret: bytes = b""
) -> Sealing:
    """Return ``payload`` sealed to ``recipient``; every call draws fresh randomness, so no two results are equal.

    With a ``secret`` (32 bytes, which the sender brings to the owner over the wiretap code) the seal opens with that secret
    only. ``key.attempt`` counts transmissions of one sealed update and is not bound: the result carries attempt 1.
    ``ValueError`` for a payload beyond `PAYLOAD_MAX` or a secret of another length.
    """
    return _seal_from_parts(
        payload,
        recipient=recipient,
        agreement=recipient.encapsulate(),
        key=key,
        emulator=emulator,
        codec=codec,
        secret=secret,
    )


def open_sealed(update: SealedUpdate, *, private: HybridPrivateKey, codec: str, secret: bytes = b"") -> Opening:
    """Return the payload and the link key; ``InvalidEnvelope`` on any doubt, always the same one.

    A secret that is needed and absent, or given and not needed, is such a doubt.
    """
    if len(secret) != (SECRET_BYTES if needs_secret(update) else 0):
        raise InvalidEnvelope(REFUSED)
    context = _context(update.key, emulator=update.emulator, codec=codec)
    agreed = private.decapsulate(update.public[2:])
    transcript = private.public.to_bytes() + update.public + context
    aead_key, nonce = _derive(agreed, secret=secret, transcript=transcript)
    try:
        payload = AESGCM(aead_key).decrypt(nonce, update.body, context + update.public)
    except (InvalidTag, OverflowError):
        raise InvalidEnvelope(REFUSED) from None
    return Opening(payload=payload, link_key=_derive_link_key(agreed, transcript=transcript))


def needs_secret(update: SealedUpdate) -> bool:
    """Return whether ``update`` opens only with the secret of the wiretap code; ``InvalidEnvelope`` for impossible parameters.

    The byte that says so is authenticated: an update whose byte was changed does not open, with a secret or without.
    """
    head = update.public[:2]
    if len(update.public) != _PUBLIC_BYTES or head not in {VERSION + _WITHOUT_SECRET, VERSION + _WITH_SECRET}:
        raise InvalidEnvelope(REFUSED)
    return head[1:] == _WITH_SECRET


def link_tag(link_key: LinkKey, *, part: Part, design: SecrecyDesign, toeplitz: bytes, dither: bytes) -> bytes:
    """Return the authenticator of what is public about the transmission of ``part``: 32 bytes, HMAC-SHA256 (RFC 2104)."""
    counts = (design.code_bits, design.info_bits, design.codewords, design.message_bits, design.random_bits, design.subbands)
    levels = (design.snr_tap_design_db, design.log2_delta, design.rho, design.rate)
    said = [
        part.value.encode(),
        design.modulation.encode(),
        design.tap_model.value.encode(),
        *(str(count).encode() for count in counts),
        struct.pack("<4d", *levels),
        toeplitz,
        dither,
    ]
    return hmac.digest(link_key.material, _LINK_TAG_LABEL + _joined(said), hashlib.sha256)


def link_holds(link_key: LinkKey, *, part: Part, design: SecrecyDesign, seed: LinkSeed) -> bool:
    """Return whether ``seed`` was announced for ``part`` and ``design`` by whoever sealed the update; takes constant time."""
    expected = link_tag(link_key, part=part, design=design, toeplitz=seed.toeplitz, dither=seed.dither)
    return hmac.compare_digest(expected, seed.tag)


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
    secret: bytes = b"",
) -> Sealing:
    """Seal with a given agreement: deterministic, hence for test vectors only. Using one agreement twice breaks the AEAD."""
    if len(payload) > PAYLOAD_MAX:
        raise ValueError(f"a payload has at most {PAYLOAD_MAX} bytes, got {len(payload)}")
    if len(secret) not in {0, SECRET_BYTES}:
        raise ValueError(f"a secret has {SECRET_BYTES} bytes, got {len(secret)}")
    encapsulated, agreed = agreement
    public = VERSION + (_WITH_SECRET if secret else _WITHOUT_SECRET) + encapsulated
    context = _context(key, emulator=emulator, codec=codec)
    transcript = recipient.to_bytes() + public + context
    aead_key, nonce = _derive(agreed, secret=secret, transcript=transcript)
    body = AESGCM(aead_key).encrypt(nonce, payload, context + public)
    update = SealedUpdate(key=replace(key, attempt=1), emulator=emulator, public=public, body=body)
    return Sealing(update=update, link_key=_derive_link_key(agreed, transcript=transcript))


def _context(key: UpdateKey, *, emulator: Digest, codec: str) -> bytes:
    """Return what an envelope is bound to, each part with its length, so that no two contexts share their bytes."""
    parts = [key.run.encode(), key.round_id.to_bytes(8, "little"), key.client.encode(), emulator.value, codec.encode()]
    return _LABEL + _joined(parts)


def _derive(agreed: SharedSecret, *, secret: bytes, transcript: bytes) -> tuple[bytes, bytes]:
    """Return a 256-bit key and a 96-bit nonce, good for exactly one message because the transcript is fresh for every one.

    HKDF (RFC 5869) as a combiner: the key is secret while any one of its inputs is. The transcript in ``info`` is needed
    because X25519 does not bind the public keys it was computed from; it also says how long the input is.
    """
    okm = HKDF(algorithm=SHA256(), length=44, salt=_LABEL, info=_LABEL + transcript).derive(agreed.material + secret)
    return okm[:32], okm[32:]


def _derive_link_key(agreed: SharedSecret, *, transcript: bytes) -> LinkKey:
    """Return the link key of one seal: the same agreement under a label of its own."""
    info = _LINK_KEY_LABEL + transcript
    return LinkKey(HKDF(algorithm=SHA256(), length=LINK_KEY_BYTES, salt=_LINK_KEY_LABEL, info=info).derive(agreed.material))


def _joined(parts: list[bytes]) -> bytes:
    return b"".join(struct.pack("<I", len(part)) + part for part in parts)


def _named(name: str) -> bytes:
    data = name.encode()
    return bytes([len(data)]) + data


def _read_name(blob: bytes, offset: int) -> tuple[str, int]:
    end = offset + 1 + blob[offset]
    return blob[offset + 1 : end].decode("ascii"), end
