"""Who signs a bundle, and what ties the signing keys to that name? The certificate of a kit, whose key signs the signing keys.

A kit's key is on P-256, because that is what TLS speaks. Bundles are signed with keys of their own, ``signing.key`` in the kit,
which outlive a renewed certificate and can be pinned. The tie is a *binding*: a signature of the certificate's key (ECDSA,
SHA-256) over a label and the signer's name and public keys. The label keeps it apart from everything that TLS signs.
"""

from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from hushtune_common.clock import Clock
from hushtune_common.crypto.signing import Signature, SigningKey
from hushtune_common.errors import ConfigError, UntrustedSigner
from hushtune_common.messages import Caller
from hushtune_common.release.statement import Part, Signer, Statement, canonical

SIGNING_KEY: Final = "signing.key"
"""Name of the file in a kit."""
UNREADABLE: Final = (
    ValueError,
    UnsupportedAlgorithm,
    x509.InvalidVersion,
    x509.DuplicateExtension,
    x509.UnsupportedGeneralNameType,
)
"""What the library raises for certificates that are none."""
_LABEL: Final = b"hushtune/signer/1"
_FILE_MAX: Final = 65_536
_REMEDY: Final = "give the folder of a kit, as made by 'hushtune pki issue'"


class Credential(Part, frozen=True):
    """What ties signing keys to a name: a certificate (DER), and its key's signature over the signer."""

    certificate: bytes
    binding: bytes


class Endorsement(Part, frozen=True):
    """What stands behind a statement: its signatures, and who they are of."""

    ed25519: bytes
    ml_dsa_65: bytes | None
    credential: Credential

    @property
    def signature(self) -> Signature:
        """The signatures as one."""
        return Signature(ed25519=self.ed25519, ml_dsa_65=self.ml_dsa_65)


@dataclass(frozen=True, slots=True, kw_only=True)
class Signatory:
    """Somebody who can sign: made of a kit."""

    signer: Signer
    credential: Credential
    key: SigningKey = field(repr=False)

    @property
    def caller(self) -> Caller:
        """The name in the certificate."""
        return self.signer.caller

    def endorse(self, statement: Statement) -> Endorsement:
        """Return the signatures under ``statement``; ``ValueError`` when it names another signer."""
        if statement.signer != self.signer:
            raise ValueError(f"the statement is of {statement.signer.identity}, not of {self.signer.identity}")
        signature = self.key.sign(canonical(statement), purpose=purpose_of(statement))
        return Endorsement(ed25519=signature.ed25519, ml_dsa_65=signature.ml_dsa_65, credential=self.credential)


def purpose_of(statement: Statement) -> str:
    """Return what a statement is signed for: one kind can never pass for the other."""
    return f"{statement.format}/{type(statement).__struct_config__.tag}"


def signatory(kit: Path, *, clock: Clock) -> Signatory:
    """Return who signs with ``kit``, a folder with ``tls.crt`` and ``tls.key``; its signing keys are made when there are none.

    ``ConfigError`` names the file that is missing, wrong or expired.
    """
    certificate = load_certificate(kit / "tls.crt")
    _require_current(kit / "tls.crt", certificate, now=clock.wall())
    try:
        caller = identity_of(certificate)
    except UntrustedSigner as error:
        raise ConfigError(str(kit / "tls.crt"), f"{error}; {_REMEDY}") from error
    private = _private_key(kit / "tls.key", certificate)
    key = _signing_key(kit / SIGNING_KEY)
    signer = Signer.of(caller, key.public)
    binding = private.sign(_bound(signer), ec.ECDSA(hashes.SHA256()))
    der = certificate.public_bytes(serialization.Encoding.DER)
    return Signatory(signer=signer, credential=Credential(certificate=der, binding=binding), key=key)


def require_bound(signer: Signer, *, binding: bytes, certificate: x509.Certificate) -> None:
    """Raise `UntrustedSigner` unless the key of ``certificate`` signed these keys for this name, and the name is its own."""
    caller = identity_of(certificate)
    if signer.caller != caller:
        raise UntrustedSigner(f"signer.identity: says {signer.identity}, the certificate is of {caller.uri}")
    try:
        key = certificate.public_key()
        if not isinstance(key, ec.EllipticCurvePublicKey):
            raise UntrustedSigner("signer.certificate: its key is not on an elliptic curve")
        key.verify(binding, _bound(signer), ec.ECDSA(hashes.SHA256()))
    except (InvalidSignature, UnsupportedAlgorithm, ValueError):
        raise UntrustedSigner("signer.binding: the certificate's key did not sign these signing keys") from None


def identity_of(certificate: x509.Certificate) -> Caller:
    """Return the one identity in a certificate; `UntrustedSigner` when there is none, or more than one."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    except (*UNREADABLE, x509.ExtensionNotFound) as error:
        raise UntrustedSigner(f"signer.certificate: names nobody ({error})") from error
    found: list[Caller] = []
    for uri in uris:
        with suppress(ValueError):
            found.append(Caller.from_uri(uri))
    if len(found) != 1:
        raise UntrustedSigner(f"signer.certificate: holds {len(found)} identities of ours, expected one")
    return found[0]


def load_certificate(path: Path) -> x509.Certificate:
    """Read a PEM certificate; ``ConfigError`` names the file."""
    try:
        return x509.load_pem_x509_certificate(_read(path))
    except UNREADABLE as error:
        raise ConfigError(str(path), f"is not a certificate ({error}); {_REMEDY}") from error


def _bound(signer: Signer) -> bytes:
    return _LABEL + canonical(signer)


def _require_current(path: Path, certificate: x509.Certificate, *, now: datetime) -> None:
    begins, ends = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if not begins <= now <= ends:
        raise ConfigError(
            str(path),
            f"valid from {begins:%Y-%m-%d %H:%M} to {ends:%Y-%m-%d %H:%M} UTC; set this machine's clock, or issue the kit again",
        )


def _private_key(path: Path, certificate: x509.Certificate) -> ec.EllipticCurvePrivateKey:
    try:
        key = serialization.load_pem_private_key(_read(path), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ConfigError(str(path), f"is not a private key ({error}); {_REMEDY}") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
        raise ConfigError(str(path), "does not belong to tls.crt beside it; issue the kit again")
    return key


def _signing_key(path: Path) -> SigningKey:
    if path.exists():
        return SigningKey.load(path)
    key = SigningKey.generate()
    try:
        key.save(path)
    except OSError as error:
        raise ConfigError(
            str(path), f"the signing key cannot be kept there ({error.strerror}); use a kit that can be written"
        ) from error
    return key


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_FILE_MAX)
    except OSError as error:
        raise ConfigError(str(path), f"cannot be read ({error.strerror}); {_REMEDY}") from error
