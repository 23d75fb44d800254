"""Who wrote these bytes? Signatures by Ed25519 and ML-DSA-65 side by side, so that a forger has to break both.

Ed25519 (RFC 8032) is well worn; ML-DSA (FIPS 204) withstands the quantum computer that Ed25519 would not. Both sign the same
bytes: a label, the purpose, *all* public keys of the signer, and the message, each with its length. Nothing that was signed for
one purpose counts for another, and half of a pair cannot pass for the signature of somebody who has a single key. All randomness
comes from the operating system.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import cryptography
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from hushtune_common.errors import ConfigError, MalformedUpdate, UntrustedSigner
from hushtune_common.messages import Digest

try:
    from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA65PrivateKey, MLDSA65PublicKey
except ImportError as error:  # older wheels lack the module
    raise ConfigError(
        "cryptography",
        f"version {cryptography.__version__} has no ML-DSA-65; install the pinned one: pip install 'cryptography>=50'",
    ) from error

ED25519: Final = "ed25519"
ML_DSA_65: Final = "ml-dsa-65"
VERSION: Final = b"\x01"
ED25519_BYTES: Final = 32
ML_DSA_PUBLIC_BYTES: Final = 1952
ED25519_SIGNATURE_BYTES: Final = 64
ML_DSA_SIGNATURE_BYTES: Final = 3309
PURPOSE_MAX: Final = 64
_LABEL: Final = b"hushtune/signature/1"
_SEED_BYTES: Final = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Signature:
    """What one signer put under one message: 64 bytes of Ed25519, 3309 bytes of ML-DSA-65 where the signer has that key."""

    ed25519: bytes
    ml_dsa_65: bytes | None


class VerifyingKey:
    """The public keys of one signer, one or two of them. Safe to show and to publish."""

    __slots__ = ("_ed25519", "_ml_dsa_65")

    def __init__(self, *, ed25519: bytes, ml_dsa_65: bytes | None) -> None:
        """Take the raw keys; ``MalformedUpdate`` names the one of an impossible length."""
        if len(ed25519) != ED25519_BYTES:
            raise MalformedUpdate(f"{ED25519}: a key has {ED25519_BYTES} bytes, got {len(ed25519)}")
        if ml_dsa_65 is not None and len(ml_dsa_65) != ML_DSA_PUBLIC_BYTES:
            raise MalformedUpdate(f"{ML_DSA_65}: a key has {ML_DSA_PUBLIC_BYTES} bytes, got {len(ml_dsa_65)}")
        self._ed25519 = ed25519
        self._ml_dsa_65 = ml_dsa_65

    @property
    def ed25519(self) -> bytes:
        """The raw Ed25519 key, 32 bytes."""
        return self._ed25519

    @property
    def ml_dsa_65(self) -> bytes | None:
        """The raw ML-DSA-65 key, 1952 bytes, if the signer has one."""
        return self._ml_dsa_65

    @property
    def algorithms(self) -> tuple[str, ...]:
        """With which algorithms the signer signs: always with all of them."""
        return (ED25519,) if self._ml_dsa_65 is None else (ED25519, ML_DSA_65)

    @property
    def fingerprint(self) -> Digest:
        """What people compare."""
        return Digest.of(self.to_bytes())

    def to_bytes(self) -> bytes:
        """Return version and keys: 33 or 1985 bytes."""
        return VERSION + self._ed25519 + (self._ml_dsa_65 or b"")

    def verify(self, signature: Signature, message: bytes, *, purpose: str) -> None:
        """Return when ``message`` was signed for ``purpose`` with every key of this signer.

        Raises `UntrustedSigner` naming the algorithm that is missing, too many or does not hold, `ConfigError` when this machine
        cannot check one of them.
        """
        if (signature.ml_dsa_65 is None) != (self._ml_dsa_65 is None):
            problem = "missing; its signer has that key" if signature.ml_dsa_65 is None else "there; its signer has no such key"
            raise UntrustedSigner(f"signatures.{ML_DSA_65}: {problem}")
        signed = _framed(self, message, purpose=purpose)
        _require_holds(ED25519, lambda: Ed25519PublicKey.from_public_bytes(self._ed25519).verify(signature.ed25519, signed))
        if self._ml_dsa_65 is not None and signature.ml_dsa_65 is not None:
            key, found = self._ml_dsa_65, signature.ml_dsa_65
            _require_holds(ML_DSA_65, lambda: MLDSA65PublicKey.from_public_bytes(key).verify(found, signed, _LABEL))

    def __eq__(self, other: object) -> bool:
        """Compare by value."""
        return isinstance(other, VerifyingKey) and self.to_bytes() == other.to_bytes()

    def __hash__(self) -> int:
        """Hash by value."""
        return hash(self.to_bytes())


class SigningKey:
    """The private keys of one signer. Never logged, never sent; shows nothing in ``repr``."""

    __slots__ = ("_ed25519", "_ml_dsa_65", "_public")

    def __init__(self, *, ed25519: Ed25519PrivateKey, ml_dsa_65: MLDSA65PrivateKey | None) -> None:
        """Take the private keys."""
        self._ed25519 = ed25519
        self._ml_dsa_65 = ml_dsa_65
        self._public = VerifyingKey(
            ed25519=ed25519.public_key().public_bytes_raw(),
            ml_dsa_65=None if ml_dsa_65 is None else ml_dsa_65.public_key().public_bytes_raw(),
        )

    @staticmethod
    def generate(*, post_quantum: bool | None = None) -> "SigningKey":
        """Return fresh keys: both, or Ed25519 alone where this build of the library has no ML-DSA.

        With ``post_quantum`` it is both (`ConfigError` where that is impossible) or, with ``False``, Ed25519 alone.
        """
        wanted = ML_DSA_65 in checkable() if post_quantum is None else post_quantum
        try:
            ml_dsa_65 = MLDSA65PrivateKey.generate() if wanted else None
        except UnsupportedAlgorithm as error:
            raise _without_mldsa() from error
        return SigningKey(ed25519=Ed25519PrivateKey.generate(), ml_dsa_65=ml_dsa_65)

    @property
    def public(self) -> VerifyingKey:
        """The half that everyone may know."""
        return self._public

    def sign(self, message: bytes, *, purpose: str) -> Signature:
        """Return the signature of ``message`` for ``purpose`` (1 to 64 ASCII characters) with every key."""
        signed = _framed(self._public, message, purpose=purpose)
        ml_dsa_65 = None if self._ml_dsa_65 is None else self._ml_dsa_65.sign(signed, _LABEL)
        return Signature(ed25519=self._ed25519.sign(signed), ml_dsa_65=ml_dsa_65)

    def save(self, path: Path) -> None:
        """Write the keys, readable by their user only, replacing an older file as a whole."""
        partial = path.with_name(path.name + ".partial")
        partial.unlink(missing_ok=True)
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(VERSION + self._ed25519.private_bytes_raw())
            if self._ml_dsa_65 is not None:
                file.write(self._ml_dsa_65.private_bytes_raw())
        partial.replace(path)

    @staticmethod
    def load(path: Path) -> "SigningKey":
        """Read what `save` wrote; ``ConfigError`` names the file otherwise."""
        longest = 1 + 2 * _SEED_BYTES
        try:
            with path.open("rb") as file:
                data = file.read(longest + 1)
        except OSError as error:
            raise ConfigError(str(path), f"cannot read the signing key ({error.strerror})") from error
        if len(data) not in {1 + _SEED_BYTES, longest} or data[:1] != VERSION:
            raise ConfigError(str(path), "not a signing key; delete the file and a new one is made, to be pinned anew")
        second = data[1 + _SEED_BYTES :]
        try:
            return SigningKey(
                ed25519=Ed25519PrivateKey.from_private_bytes(data[1 : 1 + _SEED_BYTES]),
                ml_dsa_65=MLDSA65PrivateKey.from_seed_bytes(second) if second else None,
            )
        except UnsupportedAlgorithm as error:
            raise _without_mldsa() from error

    def __repr__(self) -> str:
        """Return a mask."""
        return "<SigningKey, masked>"


def checkable() -> tuple[str, ...]:
    """Return the algorithms that this machine's build of the library can make and check."""
    try:
        MLDSA65PrivateKey.from_seed_bytes(bytes(_SEED_BYTES))
    except UnsupportedAlgorithm:
        return (ED25519,)
    return (ED25519, ML_DSA_65)


def _framed(signer: VerifyingKey, message: bytes, *, purpose: str) -> bytes:
    """Return what is signed: no two triples of purpose, signer and message share it."""
    if not (purpose.isascii() and 0 < len(purpose) <= PURPOSE_MAX):
        raise ValueError(f"a purpose has 1 to {PURPOSE_MAX} ASCII characters, got {purpose!r}")
    parts = (purpose.encode(), signer.to_bytes(), message)
    return _LABEL + b"".join(len(part).to_bytes(8, "little") + part for part in parts)


def _require_holds(algorithm: str, check: Callable[[], None]) -> None:
    try:
        check()
    except UnsupportedAlgorithm as error:
        raise _without_mldsa() from error
    except (InvalidSignature, ValueError):  # a key that is no point, a signature of another length
        raise UntrustedSigner(f"signatures.{algorithm}: does not hold for these bytes and this signer") from None


def _without_mldsa() -> ConfigError:
    return ConfigError(
        "cryptography",
        "this build has no ML-DSA-65; install the wheel from the index: pip install --only-binary :all: 'cryptography>=50'",
    )
