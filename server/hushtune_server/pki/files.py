"""How do keys, certificates and lists get to disk, whole and with the mode that they need?"""

import os
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from hushtune_common.errors import ConfigError

PRIVATE = 0o600
PUBLIC = 0o644


def pem_of(item: ec.EllipticCurvePrivateKey | x509.Certificate | x509.CertificateRevocationList) -> bytes:
    """Return PEM; of a key, PKCS #8 without a password."""
    if isinstance(item, ec.EllipticCurvePrivateKey):
        return item.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return item.public_bytes(serialization.Encoding.PEM)


def write(path: Path, data: bytes, *, mode: int) -> None:
    """Write a whole file with its final mode from the first byte on, replacing an older one."""
    partial = path.with_name(path.name + ".partial")
    partial.unlink(missing_ok=True)
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
    partial.replace(path)


def load_certificate(path: Path, *, remedy: str) -> x509.Certificate:
    """Read a PEM certificate; ``ConfigError`` names the file and the ``remedy``."""
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ConfigError(str(path), f"cannot read the certificate ({error}); {remedy}") from error


def load_key(path: Path, *, certificate: x509.Certificate, remedy: str) -> ec.EllipticCurvePrivateKey:
    """Read the private key of ``certificate``; ``ConfigError`` names the file and the ``remedy``."""
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), password=None)
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(str(path), f"cannot read the key ({error}); {remedy}") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
        raise ConfigError(str(path), f"does not belong to the certificate beside it; {remedy}")
    return key


def whole_seconds(moment: datetime) -> datetime:
    """Return UTC without fractions, which certificates do not carry."""
    if moment.tzinfo is None:
        raise ValueError("a moment needs its time zone")
    return moment.astimezone(UTC).replace(microsecond=0)
