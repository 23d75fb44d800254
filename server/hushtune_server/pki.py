"""Who is who: a tiny certificate authority, and one kit of files per process.

An identity is a URI in the certificate, ``hushtune://ROLE/NAME``; the common name is for people only. Keys are on P-256. There is
no revocation: certificates of processes live 90 days and start 10 minutes in the past, for clocks that differ.
"""

import ipaddress
import os
import re
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from hushtune_common.clock import Clock
from hushtune_common.errors import ConfigError
from hushtune_common.messages import Caller, Role

SKEW: Final = timedelta(minutes=10)
AUTHORITY_DAYS: Final = 1825
LEAF_DAYS: Final = 90
_HOST = re.compile(r"(?=.{1,253}$)[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)*", re.IGNORECASE)
_SERVERS: Final = frozenset({Role.OWNER, Role.COORDINATOR, Role.AIR, Role.EAVESDROPPER})


@dataclass(frozen=True, slots=True, kw_only=True)
class _Authority:
    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey


def init(directory: Path, *, clock: Clock) -> None:
    """Make an authority in ``directory``: ``ca.crt`` and ``ca.key`` (0600). ``ConfigError`` when there is one already."""
    if (directory / "ca.key").exists() or (directory / "ca.crt").exists():
        raise ConfigError(
            str(directory), "holds an authority already; take another directory, or delete it and issue every kit again"
        )
    directory.mkdir(parents=True, exist_ok=True)
    key = ec.generate_private_key(ec.SECP256R1())
    name = _name("Hushtune authority")
    start = _whole_seconds(clock.wall()) - SKEW
    certificate = (
        _builder(subject=name, issuer=name, key=key.public_key(), start=start, end=start + timedelta(days=AUTHORITY_DAYS))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(authority=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    _write(directory / "ca.key", _pem(key), mode=0o600)
    _write(directory / "ca.crt", certificate.public_bytes(serialization.Encoding.PEM), mode=0o644)


def issue(
    authority: Path,
    *,
    role: Role,
    name: str,
    out: Path,
    clock: Clock,
    hosts: Sequence[str] = ("localhost", "127.0.0.1"),
    not_before: datetime | None = None,
    days: int = LEAF_DAYS,
) -> None:
    """Write the kit of one process to ``out``, replacing an older one: ``ca.crt``, ``tls.crt``, ``tls.key`` (0600), ``kit.toml``.

    ``hosts`` are further DNS names and IP addresses of the process; servers also get ``ROLE.hushtune.internal``, by which clients
    tell the roles apart. Valid for ``days`` from ``not_before`` (default: 10 minutes ago), never beyond the authority. Raises
    ``ConfigError`` for a name or host that cannot be certified and for an authority that cannot be read.
    """
    caller = _caller(role, name)
    signer = _load_authority(authority)
    start = _whole_seconds(not_before or clock.wall() - SKEW)
    end = min(start + timedelta(days=days), signer.certificate.not_valid_after_utc)
    if end <= start:
        raise ConfigError("pki issue", f"nothing would be valid between {start.isoformat()} and {end.isoformat()}")
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = _leaf(signer, caller, key=key.public_key(), names=_alternative_names(caller, hosts), start=start, end=end)
    out.mkdir(parents=True, exist_ok=True)
    _write(out / "tls.key", _pem(key), mode=0o600)
    _write(out / "tls.crt", certificate.public_bytes(serialization.Encoding.PEM), mode=0o644)
    _write(out / "ca.crt", signer.certificate.public_bytes(serialization.Encoding.PEM), mode=0o644)
    lines = [f'identity = "{caller.uri}"', f'not_before = "{start.isoformat()}"', f'not_after = "{end.isoformat()}"', ""]
    _write(out / "kit.toml", "\n".join(lines).encode(), mode=0o644)


def show(kit: Path) -> dict[str, str]:
    """Return what a kit says, for people: identity, validity, names, fingerprint, issuer. ``ConfigError`` when it is not one."""
    certificate = _load_certificate(kit / "tls.crt", remedy="give the directory of a kit, as made by 'hushtune pki issue'")
    try:
        identity = tomllib.loads((kit / "kit.toml").read_text(encoding="utf-8"))["identity"]
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (OSError, KeyError, tomllib.TOMLDecodeError, UnicodeDecodeError, x509.ExtensionNotFound) as error:
        raise ConfigError(str(kit), f"not a kit ({error}); make one with 'hushtune pki issue'") from error
    if identity not in names.get_values_for_type(x509.UniformResourceIdentifier):
        raise ConfigError(str(kit / "kit.toml"), f"the certificate does not name {identity}; issue the kit again")
    shown = [*names.get_values_for_type(x509.DNSName), *(str(a) for a in names.get_values_for_type(x509.IPAddress))]
    return {
        "identity": str(identity),
        "valid_from": certificate.not_valid_before_utc.isoformat(),
        "valid_until": certificate.not_valid_after_utc.isoformat(),
        "names": ", ".join(shown),
        "fingerprint_sha256": certificate.fingerprint(hashes.SHA256()).hex(":"),
        "issuer": certificate.issuer.rfc4514_string(),
    }


def _caller(role: Role, name: str) -> Caller:
    try:
        return Caller(role=role, name=name)
    except ValueError as error:
        raise ConfigError("name", str(error)) from error


def _alternative_names(caller: Caller, hosts: Sequence[str]) -> x509.SubjectAlternativeName:
    names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(caller.uri)]
    if caller.role in _SERVERS:
        names.append(x509.DNSName(f"{caller.role}.hushtune.internal"))
    return x509.SubjectAlternativeName([*names, *(_host_name(host) for host in dict.fromkeys(hosts))])


def _host_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        pass
    if not _HOST.fullmatch(host) or host.lower().endswith(".hushtune.internal"):
        raise ConfigError("hosts", f"{host!r} is neither an IP address nor a host name that a process may have")
    return x509.DNSName(host)


def _leaf(
    signer: _Authority,
    caller: Caller,
    *,
    key: ec.EllipticCurvePublicKey,
    names: x509.SubjectAlternativeName,
    start: datetime,
    end: datetime,
) -> x509.Certificate:
    # The common name has at most 64 characters and nobody reads it, so a long name is cut.
    subject = _name(f"{caller.role} {caller.name}"[:64])
    authority_key = signer.certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    usages = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH])
    return (
        _builder(subject=subject, issuer=signer.certificate.subject, key=key, start=start, end=end)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(authority=False), critical=True)
        .add_extension(usages, critical=False)
        .add_extension(names, critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(authority_key), critical=False)
        .sign(signer.key, hashes.SHA256())
    )


def _builder(
    *, subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, start: datetime, end: datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(end)
    )


def _key_usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority,
        key_cert_sign=authority,
        crl_sign=authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _load_authority(directory: Path) -> _Authority:
    remedy = "make an authority first: hushtune pki init"
    certificate = _load_certificate(directory / "ca.crt", remedy=remedy)
    path = directory / "ca.key"
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), password=None)
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(str(path), f"cannot read the authority's key ({error}); {remedy}") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
        raise ConfigError(str(path), f"does not belong to ca.crt beside it; {remedy}")
    return _Authority(certificate=certificate, key=key)


def _load_certificate(path: Path, *, remedy: str) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ConfigError(str(path), f"cannot read the certificate ({error}); {remedy}") from error


def _name(common_name: str) -> x509.Name:
    return x509.Name(
        [x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Hushtune"), x509.NameAttribute(NameOID.COMMON_NAME, common_name)]
    )


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())


def _write(path: Path, data: bytes, *, mode: int) -> None:
    """Write a whole file with its final mode from the first byte on, replacing an older one."""
    partial = path.with_name(path.name + ".partial")
    partial.unlink(missing_ok=True)
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
    partial.replace(path)


def _whole_seconds(moment: datetime) -> datetime:
    """Return UTC without fractions, which certificates do not carry."""
    if moment.tzinfo is None:
        raise ValueError("a moment needs its time zone")
    return moment.astimezone(UTC).replace(microsecond=0)
