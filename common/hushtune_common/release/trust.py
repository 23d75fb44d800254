"""May these bytes be believed, and on whose word? Signatures checked against an authority's certificates, or against pinned keys.

An *authority* vouches for names: whoever holds a certificate of an owner may sign releases, whoever holds the one of client c1
may sign returns of c1. Its certificates are on P-256, so the *name* rests on classical cryptography, however many algorithms the
signature has. Only *pinned* keys, which somebody carried over by hand, make the whole of it withstand a quantum computer.
"""

import warnings
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final, Literal

from cryptography import x509
from cryptography.utils import CryptographyDeprecationWarning
from cryptography.x509 import verification

from hushtune_common.clock import Clock
from hushtune_common.crypto.signing import ML_DSA_65
from hushtune_common.errors import ConfigError, MalformedUpdate, UntrustedSigner
from hushtune_common.messages import Caller, Role
from hushtune_common.release.container import Container, writable
from hushtune_common.release.identity import UNREADABLE, Credential, load_certificate, purpose_of, require_bound
from hushtune_common.release.statement import Part, ReturnStatement, Signer, Statement, canonical, parse_canonical

_PIN_MAX: Final = 16_384
_PINS: Final = "make a file of pinned keys with 'hushtune bundle key'"


@dataclass(frozen=True, slots=True)
class Authority:
    """Trust in everybody whom this authority issued a certificate to, as what the certificate says."""

    certificate: x509.Certificate


@dataclass(frozen=True, slots=True)
class Pinned:
    """Trust in one signer, by name and keys, whatever its certificate says and until when."""

    signer: Signer


Anchor = Authority | Pinned


@dataclass(frozen=True, slots=True, kw_only=True)
class Verified:
    """A statement that may be believed, and why."""

    statement: Statement
    signer: Caller
    algorithms: tuple[str, ...]
    by: Literal["authority", "pinned keys"]

    @property
    def post_quantum(self) -> bool:
        """Whether a forger who has a quantum computer would still have failed."""
        return self.by == "pinned keys" and ML_DSA_65 in self.algorithms


class _Pin(Part, frozen=True):
    format: Literal["hushtune-signer/1"]
    signer: Signer


def write_pin(path: Path, signer: Signer) -> None:
    """Write the public keys of ``signer`` for somebody to pin: one line of JSON."""
    with writable(path):
        path.write_bytes(canonical(_Pin(format="hushtune-signer/1", signer=signer)) + b"\n")


def load_anchor(path: Path) -> Anchor:
    """Return what ``path`` stands for: a folder with ``ca.crt`` (a kit, an authority), that file itself, or pinned keys.

    ``ConfigError`` names what is wrong.
    """
    if path.is_dir():
        return Authority(load_certificate(path / "ca.crt"))
    try:
        with path.open("rb") as file:
            data = file.read(_PIN_MAX + 1)
    except OSError as error:
        raise ConfigError(str(path), f"cannot be read ({error.strerror}); give a kit, a ca.crt, or pinned keys") from error
    if data.startswith(b"-----BEGIN CERTIFICATE"):
        return Authority(load_certificate(path))
    try:
        return Pinned(parse_canonical(data.removesuffix(b"\n"), _Pin, of="pinned keys").signer)
    except MalformedUpdate as error:
        raise ConfigError(str(path), f"is neither a certificate nor pinned keys ({error}); {_PINS}") from error


def verify(container: Container, *, anchor: Anchor, clock: Clock, require_post_quantum: bool = False) -> Verified:
    """Return the statement of ``container`` if its signer may say it and its signatures hold. Does not look at the payload.

    Raises `UntrustedSigner` naming the field: ``signatures`` that do not hold or were taken away, a ``signer.certificate`` of
    another authority or outside its time, keys not bound to it, an ``identity`` that may not sign this kind of statement or not
    for this client, other keys than the pinned ones. With ``require_post_quantum`` also whatever a quantum computer could forge;
    ``ConfigError`` where the anchor itself is no better.
    """
    statement, endorsement = container.statement, container.endorsement
    if require_post_quantum:
        _require_post_quantum(statement, anchor)
    match anchor:
        case Authority():
            _require_certified(statement, endorsement.credential, authority=anchor.certificate, now=clock.wall())
        case Pinned():
            _require_pinned(statement.signer, anchor.signer)
    _require_entitled(statement)
    statement.signer.key.verify(endorsement.signature, container.signed, purpose=purpose_of(statement))
    return Verified(
        statement=statement,
        signer=statement.signer.caller,
        algorithms=statement.signer.algorithms,
        by="authority" if isinstance(anchor, Authority) else "pinned keys",
    )


def signatures_hold(container: Container) -> bool:
    """Return whether the signatures are of the keys in the file itself, which says nothing about whose keys those are."""
    try:
        container.statement.signer.key.verify(
            container.endorsement.signature, container.signed, purpose=purpose_of(container.statement)
        )
    except UntrustedSigner:
        return False
    return True


def _require_post_quantum(statement: Statement, anchor: Anchor) -> None:
    if ML_DSA_65 not in statement.signer.algorithms:
        raise UntrustedSigner(f"signer.algorithms: {ML_DSA_65} is required, signed with {', '.join(statement.signer.algorithms)}")
    if isinstance(anchor, Authority):
        raise ConfigError(
            "require-post-quantum",
            f"certificates prove a name with P-256 only, which a quantum computer breaks; trust pinned keys instead: {_PINS}",
        )


def _require_certified(statement: Statement, credential: Credential, *, authority: x509.Certificate, now: datetime) -> None:
    certificate = _parsed(credential.certificate)
    _require_issued(certificate, authority=authority, now=now)
    require_bound(statement.signer, binding=credential.binding, certificate=certificate)
    if not certificate.not_valid_before_utc <= statement.created_at <= certificate.not_valid_after_utc:
        raise UntrustedSigner(f"created: {statement.created} lies outside the time of the signer's certificate")


def _parsed(der: bytes) -> x509.Certificate:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", CryptographyDeprecationWarning)  # what the library still reads, but should not
            return x509.load_der_x509_certificate(der)
    except (*UNREADABLE, CryptographyDeprecationWarning) as error:
        raise UntrustedSigner("signer.certificate: not a certificate") from error


def _require_issued(certificate: x509.Certificate, *, authority: x509.Certificate, now: datetime) -> None:
    policy = verification.PolicyBuilder().store(verification.Store([authority])).time(now)
    try:
        policy.build_client_verifier().verify(certificate, [])
    except (verification.VerificationError, *UNREADABLE) as error:
        begins, ends = certificate.not_valid_before_utc, certificate.not_valid_after_utc
        if not begins <= now <= ends:
            text = f"valid from {begins:%Y-%m-%d %H:%M} to {ends:%Y-%m-%d %H:%M} UTC, now it is {now:%Y-%m-%d %H:%M}"
            raise UntrustedSigner(f"signer.certificate: {text}") from error
        raise UntrustedSigner(f"signer.certificate: not issued by the trusted authority ({error})") from error


def _require_pinned(signer: Signer, pinned: Signer) -> None:
    if signer.identity != pinned.identity:
        raise UntrustedSigner(f"signer.identity: {signer.identity} signed, pinned is {pinned.identity}")
    if signer != pinned:
        raise UntrustedSigner(
            f"signer.keys: signed with {signer.key.fingerprint.short} ({', '.join(signer.algorithms)}), pinned is "
            f"{pinned.key.fingerprint.short} ({', '.join(pinned.algorithms)})"
        )


def _require_entitled(statement: Statement) -> None:
    caller = statement.signer.caller
    wanted = Caller(role=Role.CLIENT, name=statement.client) if isinstance(statement, ReturnStatement) else None
    if wanted is None and caller.role is not Role.OWNER:
        raise UntrustedSigner(f"signer.identity: {caller.uri} may not sign a release; only an owner may")
    if wanted is not None and caller != wanted:
        raise UntrustedSigner(f"signer.identity: {caller.uri} may not sign a return of client {wanted.name}")
