"""A member's secrets of one round: what they say to others, which keys come of them, how shares travel.

X25519 (RFC 7748), HKDF-SHA256 (RFC 5869), AES-256-GCM, SHAKE256. Each key is derived for one purpose, one ordered pair of members
and one view of the round, and encrypts one message or one stream, so nonces and counters start at zero. Secrets come from the
operating system and live for one round.
"""

import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from hushtune_common.errors import InvalidEnvelope, MalformedUpdate
from hushtune_common.messages import ClientId, Digest
from hushtune_common.secagg import shamir
from hushtune_common.secagg.messages import Advertisement, Sign, Terms, joined
from hushtune_common.secagg.record import Secret

_LABEL: Final = b"hushtune/secagg/1"
_NONCE: Final = bytes(12)
_COEFFICIENT_BYTES: Final = 48
"""128 bits more than the field's elements, so that the remainders are uniform."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Secrets:
    """What a member knows alone: two private keys, the seed of the mask of its own, and what its polynomials are made of."""

    channel: Secret
    mask: Secret
    seed: Secret
    dealing: Secret

    @staticmethod
    def generate() -> "Secrets":
        """Draw fresh secrets, for one round and no other."""
        channel, mask, seed, dealing = (Secret(os.urandom(shamir.SECRET_BYTES)) for _ in range(4))
        return Secrets(channel=channel, mask=mask, seed=seed, dealing=dealing)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shares:
    """One holder's shares of one dealer's secrets."""

    seed: bytes
    key: bytes


def advertisement(secrets: Secrets, *, member: ClientId, terms: Terms, sign: Sign) -> Advertisement:
    """Return what ``member`` says of its ``secrets`` to everybody."""
    unsigned = Advertisement(
        member=member,
        channel_key=public_of(secrets.channel.material),
        mask_key=public_of(secrets.mask.material),
        commitment=commitment(secrets.seed.material, member=member, terms=terms),
        proof=b"\0",
    )
    return Advertisement(
        member=member,
        channel_key=unsigned.channel_key,
        mask_key=unsigned.mask_key,
        commitment=unsigned.commitment,
        proof=sign(unsigned.statement(terms)),
    )


def public_of(private: bytes) -> bytes:
    """Return the X25519 public key of 32 private bytes."""
    return X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()


def commitment(seed: bytes, *, member: ClientId, terms: Terms) -> Digest:
    """Return what binds ``member`` to its seed; says nothing of it, since the seed is uniform."""
    return Digest.of(joined(_LABEL + b"/commitment", terms.digest.value, member.encode(), seed))


def shares_of(secrets: Secrets, *, roster: Digest, threshold: int, at: Iterable[int]) -> dict[int, Shares]:
    """Return the shares for each place; the same ones whenever they are asked for, so that a repeated deal is the same deal."""
    places = tuple(at)
    seeds = shamir.split(secrets.seed.material, coefficients=_coefficients(secrets, b"seed", roster, threshold), at=places)
    keys = shamir.split(secrets.mask.material, coefficients=_coefficients(secrets, b"key", roster, threshold), at=places)
    return {place: Shares(seed=seeds[place], key=keys[place]) for place in places}


def pair_key(private: Secret, *, own: ClientId, other: ClientId, public: bytes, view: Digest) -> bytes:
    """Return the key of the stream that ``own`` and ``other`` share: both sides find the same one."""
    first, second = sorted((own, other))
    return _derived(_agreed(private, public, of=other), b"pair", view.value, first.encode(), second.encode())


def self_key(seed: bytes, *, member: ClientId, view: Digest) -> bytes:
    """Return the key of the stream that only ``member`` knows until a quorum opens its seed."""
    return _derived(seed, b"self", view.value, member.encode())


def sealed_parcel(shares: Shares, *, private: Secret, dealer: ClientId, holder: ClientId, public: bytes, roster: Digest) -> bytes:
    """Return the shares for ``holder``, which has the ``public`` channel key: 82 bytes, the same whenever asked for."""
    key = _derived(_agreed(private, public, of=holder), b"parcel", roster.value, dealer.encode(), holder.encode())
    return AESGCM(key).encrypt(_NONCE, shares.seed + shares.key, None)


def opened_parcel(parcel: bytes, *, private: Secret, dealer: ClientId, holder: ClientId, public: bytes, roster: Digest) -> Shares:
    """Return what ``dealer``, with the ``public`` channel key, sealed for ``holder``; ``InvalidEnvelope`` for anything else."""
    key = _derived(_agreed(private, public, of=dealer), b"parcel", roster.value, dealer.encode(), holder.encode())
    try:
        opened = AESGCM(key).decrypt(_NONCE, parcel, None)
    except InvalidTag:
        raise InvalidEnvelope(f"the parcel of {dealer} does not open") from None
    return Shares(seed=opened[: shamir.SHARE_BYTES], key=opened[shamir.SHARE_BYTES :])


def _agreed(private: Secret, public: bytes, *, of: ClientId) -> bytes:
    """Return the shared secret; ``MalformedUpdate`` for a point of small order, which would make it known to everybody."""
    try:
        return X25519PrivateKey.from_private_bytes(private.material).exchange(X25519PublicKey.from_public_bytes(public))
    except ValueError as error:
        raise MalformedUpdate(f"{of}: not a public key") from error


def _derived(material: bytes, purpose: bytes, *context: bytes) -> bytes:
    # The context names the roster, and with it both public keys, which X25519 alone does not bind.
    return HKDF(algorithm=SHA256(), length=32, salt=_LABEL, info=joined(_LABEL, purpose, *context)).derive(material)


def _coefficients(secrets: Secrets, purpose: bytes, roster: Digest, threshold: int) -> list[int]:
    stream = hashlib.shake_256(joined(_LABEL, b"polynomial", purpose, roster.value, secrets.dealing.material))
    drawn = stream.digest(_COEFFICIENT_BYTES * (threshold - 1))
    pieces = (drawn[k : k + _COEFFICIENT_BYTES] for k in range(0, len(drawn), _COEFFICIENT_BYTES))
    return [int.from_bytes(piece, "little") % shamir.PRIME for piece in pieces]
