"""The owner's sealing key: X25519 and ML-KEM-768 side by side, so that either one alone keeps the secret.

ML-KEM (FIPS 203) protects recordings made today from a later quantum computer; X25519 (RFC 7748) protects them should the younger
scheme fall. All randomness comes from the operating system.
"""

import os
from pathlib import Path
from typing import Final

import cryptography
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from hushtune_common.errors import ConfigError, InvalidEnvelope, MalformedUpdate

try:
    from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey, MLKEM768PublicKey
except ImportError as error:  # wheels before 47 lack the module
    raise ConfigError(
        "cryptography",
        f"version {cryptography.__version__} has no ML-KEM-768; install the pinned one: pip install 'cryptography>=50'",
    ) from error

VERSION: Final = b"\x01"
X25519_BYTES: Final = 32
MLKEM_PUBLIC_BYTES: Final = 1184
MLKEM_CIPHERTEXT_BYTES: Final = 1088
MLKEM_SEED_BYTES: Final = 64
PUBLIC_BYTES: Final = 1 + X25519_BYTES + MLKEM_PUBLIC_BYTES
ENCAPSULATED_BYTES: Final = X25519_BYTES + MLKEM_CIPHERTEXT_BYTES
LINK_KEY_BYTES: Final = 32
REFUSED: Final = "the seal does not open"
"""The whole message of every `InvalidEnvelope`: a reason would help whoever forges."""
_PRIVATE_BYTES: Final = 1 + X25519_BYTES + MLKEM_SEED_BYTES


class SharedSecret:
    """What both sides know after one agreement: two secrets of 32 bytes.

    Masked in ``repr``; like the private key not a dataclass, so that no generic conversion to a log field can unfold it.
    """

    __slots__ = ("_mlkem", "_x25519")

    def __init__(self, *, x25519: bytes, mlkem: bytes) -> None:
        """Take both secrets."""
        self._x25519 = x25519
        self._mlkem = mlkem

    @property
    def material(self) -> bytes:
        """Input of the key derivation, 64 bytes: ML-KEM's secret, then X25519's."""
        return self._mlkem + self._x25519

    def __repr__(self) -> str:
        """Return a mask."""
        return "<SharedSecret, masked>"


class LinkKey:
    """What authenticates the public randomness of an update's transmissions, sender to owner: 32 bytes. Masked in ``repr``."""

    __slots__ = ("_value",)

    def __init__(self, value: bytes) -> None:
        """Take the key; ``ValueError`` for another length."""
        if len(value) != LINK_KEY_BYTES:
            raise ValueError(f"a link key has {LINK_KEY_BYTES} bytes, got {len(value)}")
        self._value = value

    @property
    def material(self) -> bytes:
        """The key itself, for the authenticator alone."""
        return self._value

    def __repr__(self) -> str:
        """Return a mask."""
        return "<LinkKey, masked>"


class HybridPublicKey:
    """The key that updates are sealed to. Safe to show and to publish."""

    __slots__ = ("_mlkem", "_x25519")

    def __init__(self, *, x25519: X25519PublicKey, mlkem: MLKEM768PublicKey) -> None:
        """Take both public keys."""
        self._x25519 = x25519
        self._mlkem = mlkem

    def to_bytes(self) -> bytes:
        """Return version, X25519 key, ML-KEM key: 1217 bytes."""
        return VERSION + self._x25519.public_bytes_raw() + self._mlkem.public_bytes_raw()

    @staticmethod
    def from_bytes(data: bytes) -> "HybridPublicKey":
        """Parse `to_bytes`; ``MalformedUpdate`` for anything else."""
        if len(data) != PUBLIC_BYTES or data[:1] != VERSION:
            raise MalformedUpdate(f"a sealing key has {PUBLIC_BYTES} bytes and version {VERSION[0]}, got {len(data)} bytes")
        try:
            return HybridPublicKey(
                x25519=X25519PublicKey.from_public_bytes(data[1 : 1 + X25519_BYTES]),
                mlkem=MLKEM768PublicKey.from_public_bytes(data[1 + X25519_BYTES :]),
            )
        except ValueError as error:
            raise MalformedUpdate("not a sealing key") from error
        except UnsupportedAlgorithm as error:
            raise _without_mlkem() from error

    def encapsulate(self) -> tuple[bytes, SharedSecret]:
        """Return fresh public parameters (1120 bytes) and the secret that only the private key can find from them."""
        mlkem_secret, ciphertext = self._mlkem.encapsulate()
        return self.encapsulate_from_parts(X25519PrivateKey.generate(), mlkem_secret=mlkem_secret, ciphertext=ciphertext)

    def encapsulate_from_parts(
        self, ephemeral: X25519PrivateKey, *, mlkem_secret: bytes, ciphertext: bytes
    ) -> tuple[bytes, SharedSecret]:
        """Do the deterministic part of `encapsulate`; called directly for test vectors only."""
        try:
            x25519_secret = ephemeral.exchange(self._x25519)
        except ValueError as error:  # a point of small order, which would make the secret known to everyone
            raise MalformedUpdate("not a sealing key") from error
        encapsulated = ephemeral.public_key().public_bytes_raw() + ciphertext
        return encapsulated, SharedSecret(x25519=x25519_secret, mlkem=mlkem_secret)

    def __eq__(self, other: object) -> bool:
        """Compare by value."""
        return isinstance(other, HybridPublicKey) and self.to_bytes() == other.to_bytes()

    def __hash__(self) -> int:
        """Hash by value."""
        return hash(self.to_bytes())


class HybridPrivateKey:
    """The owner's secret half. Never logged, never sent; shows nothing in ``repr``."""

    __slots__ = ("_mlkem", "_public", "_x25519")

    def __init__(self, *, x25519: X25519PrivateKey, mlkem: MLKEM768PrivateKey) -> None:
        """Take both private keys."""
        self._x25519 = x25519
        self._mlkem = mlkem
        self._public = HybridPublicKey(x25519=x25519.public_key(), mlkem=mlkem.public_key())

    @staticmethod
    def generate() -> "HybridPrivateKey":
        """Return a fresh key; ``ConfigError`` when this build of the library lacks ML-KEM."""
        try:
            return HybridPrivateKey(x25519=X25519PrivateKey.generate(), mlkem=MLKEM768PrivateKey.generate())
        except UnsupportedAlgorithm as error:
            raise _without_mlkem() from error

    @property
    def public(self) -> HybridPublicKey:
        """The half that everyone may know."""
        return self._public

    def decapsulate(self, encapsulated: bytes) -> SharedSecret:
        """Return the secret behind public parameters; ``InvalidEnvelope``, without a reason, when there is none.

        ML-KEM answers a forged ciphertext with an unrelated secret; the seal then does not open.
        """
        if len(encapsulated) != ENCAPSULATED_BYTES:
            raise InvalidEnvelope(REFUSED)
        try:
            return SharedSecret(
                x25519=self._x25519.exchange(X25519PublicKey.from_public_bytes(encapsulated[:X25519_BYTES])),
                mlkem=self._mlkem.decapsulate(encapsulated[X25519_BYTES:]),
            )
        except ValueError:
            raise InvalidEnvelope(REFUSED) from None

    def save(self, path: Path) -> None:
        """Write the key, readable by its user only, replacing an older file as a whole."""
        partial = path.with_name(path.name + ".partial")
        partial.unlink(missing_ok=True)
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(VERSION + self._x25519.private_bytes_raw() + self._mlkem.private_bytes_raw())
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # what is sealed to a key that a loss of power took could never be opened
        finally:
            os.close(folder)

    @staticmethod
    def load(path: Path) -> "HybridPrivateKey":
        """Read what `save` wrote; ``ConfigError`` names the file otherwise."""
        try:
            with path.open("rb") as file:
                data = file.read(_PRIVATE_BYTES + 1)
        except OSError as error:
            raise ConfigError(str(path), f"cannot read the sealing key ({error.strerror})") from error
        if len(data) != _PRIVATE_BYTES or data[:1] != VERSION:
            raise ConfigError(str(path), "not a sealing key; delete the file and a new one is made")
        try:
            return HybridPrivateKey(
                x25519=X25519PrivateKey.from_private_bytes(data[1 : 1 + X25519_BYTES]),
                mlkem=MLKEM768PrivateKey.from_seed_bytes(data[1 + X25519_BYTES :]),
            )
        except UnsupportedAlgorithm as error:
            raise _without_mlkem() from error

    def __repr__(self) -> str:
        """Return a mask."""
        return "<HybridPrivateKey, masked>"


def _without_mlkem() -> ConfigError:
    return ConfigError(
        "cryptography",
        "this build has no ML-KEM-768; install the wheel from the index: pip install --only-binary :all: 'cryptography>=50'",
    )
