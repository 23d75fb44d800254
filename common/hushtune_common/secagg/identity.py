"""Who says so? Proofs by the key of a process's certificate, and how they are checked against the run's authority.

A proof is the certificate and a signature (ECDSA on P-256 with SHA-256). What is signed begins with a label, and what TLS 1.3
signs with the same key begins with 64 spaces, so neither can pass for the other.
"""

import struct
from collections.abc import Callable
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key

from hushtune_common.clock import Clock
from hushtune_common.errors import ConfigError
from hushtune_common.messages import Caller, ClientId, Role

_LABEL: Final = b"hushtune/proof/1\0"
_LENGTH: Final = struct.Struct("<H")
_ECDSA: Final = ec.ECDSA(SHA256())


class Identity:
    """A process's own name, as its certificate has it, and the key that proves it. Shows nothing of the key in ``repr``."""

    __slots__ = ("_certificate", "_key")

    def __init__(self, *, certificate: bytes, key: bytes) -> None:
        """Take both in PEM; ``ConfigError`` when they are not a certificate and its key on P-256."""
        try:
            found, private = x509.load_pem_x509_certificate(certificate), load_pem_private_key(key, password=None)
        except (ValueError, TypeError) as error:
            raise ConfigError("kit", f"cannot read tls.crt and tls.key ({error}); make them with 'hushtune pki issue'") from error
        if not isinstance(private, ec.EllipticCurvePrivateKey) or private.public_key() != found.public_key():
            raise ConfigError("kit", "tls.key does not belong to tls.crt; make both with 'hushtune pki issue'")
        self._certificate = found.public_bytes(Encoding.DER)
        self._key = private

    def sign(self, message: bytes) -> bytes:
        """Return the proof that this process says ``message``; a fresh one each time."""
        return _LENGTH.pack(len(self._certificate)) + self._certificate + self._key.sign(_LABEL + message, _ECDSA)

    def __repr__(self) -> str:
        """Return a mask."""
        return "<Identity, masked>"


class Verifier:
    """Checks proofs of clients whose certificates one authority has issued, and not withdrawn."""

    def __init__(self, *, authority: bytes, clock: Clock, withdrawn: Callable[[int], bool] = lambda serial: False) -> None:
        """Take the authority's certificate in PEM, and what says which serial numbers it has withdrawn.

        ``ConfigError`` when it is no certificate.
        """
        try:
            self._authority = x509.load_pem_x509_certificate(authority)
        except ValueError as error:
            raise ConfigError("kit", f"cannot read ca.crt ({error}); make it with 'hushtune pki init'") from error
        self._clock = clock
        self._withdrawn = withdrawn

    def verify(self, client: ClientId, message: bytes, proof: bytes) -> bool:
        """Return whether ``client``, by a certificate that is valid now, says ``message``."""
        try:
            (length,) = _LENGTH.unpack_from(proof)
            certificate = x509.load_der_x509_certificate(proof[_LENGTH.size : _LENGTH.size + length])
            # First of all: what the authority did not issue may hold anything.
            certificate.verify_directly_issued_by(self._authority)
            key = certificate.public_key()
            if not isinstance(key, ec.EllipticCurvePublicKey) or not self._is_of(certificate, client):
                return False
            key.verify(proof[_LENGTH.size + length :], _LABEL + message, _ECDSA)
        except (InvalidSignature, UnsupportedAlgorithm, ValueError, TypeError, struct.error, x509.ExtensionNotFound):
            return False
        return True

    def _is_of(self, certificate: x509.Certificate, client: ClientId) -> bool:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        wanted = Caller(role=Role.CLIENT, name=client).uri
        valid = certificate.not_valid_before_utc <= self._clock.wall() <= certificate.not_valid_after_utc
        good = valid and not self._withdrawn(certificate.serial_number)
        return good and names.get_values_for_type(x509.UniformResourceIdentifier) == [wanted]
