"""What stands in a certificate? The authority's own, and that of a process: names, usages, dates.

An identity is a URI in the certificate, ``hushtune://ROLE/NAME``; the common name is for people only. Keys are on P-256.
"""

import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from hushtune_common.errors import ConfigError
from hushtune_common.messages import Caller, Role

AUTHORITY_DAYS: Final = 1825
SERVERS: Final = frozenset({Role.OWNER, Role.COORDINATOR, Role.AIR, Role.EAVESDROPPER})
_INTERNAL: Final = ".hushtune.internal"
_HOST = re.compile(r"(?=.{1,253}$)[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)*", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Signer:
    """The authority's certificate and its key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey = field(repr=False)


def authority_certificate(key: ec.EllipticCurvePrivateKey, *, start: datetime) -> x509.Certificate:
    """Return the self-signed certificate of an authority that may sign processes' certificates, but no other authority's."""
    name = _name("Hushtune authority")
    return (
        _builder(subject=name, issuer=name, key=key.public_key(), start=start, end=start + timedelta(days=AUTHORITY_DAYS))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(authority=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )


def leaf_certificate(
    signer: Signer,
    caller: Caller,
    *,
    key: ec.EllipticCurvePublicKey,
    hosts: Sequence[str],
    start: datetime,
    end: datetime,
) -> x509.Certificate:
    """Return the certificate of a process; ``hosts`` are DNS names and IP addresses, ``ConfigError`` for what is neither."""
    # The common name has at most 64 characters and nobody reads it, so a long name is cut.
    subject = _name(f"{caller.role} {caller.name}"[:64])
    authority_key = signer.certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    usages = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH])
    return (
        _builder(subject=subject, issuer=signer.certificate.subject, key=key, start=start, end=end)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(authority=False), critical=True)
        .add_extension(usages, critical=False)
        .add_extension(_alternative_names(caller, hosts), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(authority_key), critical=False)
        .sign(signer.key, hashes.SHA256())
    )


def hosts_of(certificate: x509.Certificate) -> tuple[str, ...]:
    """Return the DNS names and IP addresses in a certificate, without the name that stands for its role."""
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    shown = [*names.get_values_for_type(x509.DNSName), *(str(a) for a in names.get_values_for_type(x509.IPAddress))]
    return tuple(name for name in shown if not name.endswith(_INTERNAL))


def caller_of(role: Role, name: str) -> Caller:
    """Return the identity; ``ConfigError`` when the name cannot be one."""
    try:
        return Caller(role=role, name=name)
    except ValueError as error:
        raise ConfigError("name", str(error)) from error


def _alternative_names(caller: Caller, hosts: Sequence[str]) -> x509.SubjectAlternativeName:
    names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(caller.uri)]
    if caller.role in SERVERS:
        names.append(x509.DNSName(f"{caller.role}{_INTERNAL}"))
    return x509.SubjectAlternativeName([*names, *(_host_name(host) for host in dict.fromkeys(hosts))])


def _host_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        pass
    if not _HOST.fullmatch(host) or host.lower().endswith(_INTERNAL):
        raise ConfigError("hosts", f"{host!r} is neither an IP address nor a host name that a process may have")
    return x509.DNSName(host)


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


def _name(common_name: str) -> x509.Name:
    return x509.Name(
        [x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Hushtune"), x509.NameAttribute(NameOID.COMMON_NAME, common_name)]
    )
