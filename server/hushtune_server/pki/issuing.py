"""How does a process get its kit, and a new certificate before the old one ends?

Certificates of processes live 90 days and start 10 minutes in the past, for clocks that differ.
"""

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from hushtune_common.clock import Clock
from hushtune_common.errors import ConfigError
from hushtune_common.messages import Caller, Role
from hushtune_server.pki.authority import LIST, SKEW, Authority, Issued, held, until
from hushtune_server.pki.certificates import caller_of, hosts_of, leaf_certificate
from hushtune_server.pki.files import PRIVATE, PUBLIC, load_certificate, load_key, pem_of, whole_seconds, write

LEAF_DAYS: Final = 90
LOOPBACK: Final = ("localhost", "127.0.0.1")
_NO_KIT: Final = "give the directory of a kit, as made by 'hushtune pki issue'"


@dataclass(frozen=True, slots=True, kw_only=True)
class Leaf:
    """A fresh certificate and its key, with what goes beside them into a kit; all in PEM."""

    caller: Caller
    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey = field(repr=False)
    ca: bytes
    revoked: bytes

    @property
    def not_before(self) -> datetime:
        """When it begins to hold, UTC."""
        return self.certificate.not_valid_before_utc

    @property
    def not_after(self) -> datetime:
        """When it ends, UTC."""
        return self.certificate.not_valid_after_utc

    def write(self, out: Path) -> None:
        """Write the kit's files to ``out``; the certificate last but one, which is what a running server looks at."""
        out.mkdir(parents=True, exist_ok=True)
        lines = [
            f'identity = "{self.caller.uri}"',
            f'not_before = "{until(self.not_before)}"',
            f'not_after = "{until(self.not_after)}"',
        ]
        write(out / "ca.crt", self.ca, mode=PUBLIC)
        write(out / LIST, self.revoked, mode=PUBLIC)
        write(out / "tls.key", pem_of(self.key), mode=PRIVATE)
        write(out / "kit.toml", "\n".join([*lines, ""]).encode(), mode=PUBLIC)
        write(out / "tls.crt", pem_of(self.certificate), mode=PUBLIC)


def issue(
    authority: Path,
    *,
    role: Role,
    name: str,
    out: Path,
    clock: Clock,
    hosts: Sequence[str] = LOOPBACK,
    not_before: datetime | None = None,
    days: int = LEAF_DAYS,
) -> None:
    """Write the kit of one process to ``out``, replacing an older one.

    It has ``ca.crt``, ``ca.crl``, ``tls.crt``, ``tls.key`` (0600) and ``kit.toml``. ``hosts`` are DNS names and IP addresses of
    the process; servers also get ``ROLE.hushtune.internal``, by which clients tell the roles apart. Valid for ``days`` from
    ``not_before`` (default: 10 minutes ago), never beyond the authority. Raises ``ConfigError`` for a name or host that cannot be
    certified and for an authority that cannot be read.
    """
    leaf(authority, caller_of(role, name), hosts=hosts, clock=clock, not_before=not_before, days=days, folder=out).write(out)


def leaf(
    authority: Path,
    caller: Caller,
    *,
    hosts: Sequence[str],
    clock: Clock,
    not_before: datetime | None = None,
    days: int = LEAF_DAYS,
    key: ec.EllipticCurvePrivateKey | None = None,
    folder: Path | None = None,
) -> Leaf:
    """Return a certificate of ``caller``, for a ``key`` or for a fresh one, and enter it in the register."""
    with held(authority) as keeper:
        start = whole_seconds(not_before or clock.wall() - SKEW)
        end = min(start + timedelta(days=days), keeper.signer.certificate.not_valid_after_utc)
        if end <= start:
            raise ConfigError("pki issue", f"nothing would be valid between {start.isoformat()} and {end.isoformat()}")
        private = ec.generate_private_key(ec.SECP256R1()) if key is None else key
        certificate = leaf_certificate(keeper.signer, caller, key=private.public_key(), hosts=hosts, start=start, end=end)
        # The list is signed anew, so that a kit's list does not end before its certificate.
        revoked = keeper.sign_list(keeper.revoked(), clock=clock)
        keeper.enter(_line(caller, certificate, folder=folder))
    return Leaf(caller=caller, certificate=certificate, key=private, ca=pem_of(keeper.signer.certificate), revoked=revoked)


def _line(caller: Caller, certificate: x509.Certificate, *, folder: Path | None) -> Issued:
    return Issued(
        identity=caller.uri,
        serial=f"{certificate.serial_number:x}",
        not_before=until(certificate.not_valid_before_utc),
        not_after=until(certificate.not_valid_after_utc),
        folder="" if folder is None else str(folder.resolve()),
    )


def renew(authority: Path, kit: Path, *, clock: Clock, keep_key: bool = False, hosts: Sequence[str] = ()) -> Leaf:
    """Give a kit folder a new certificate of the same identity and hosts (and more ``hosts``), and the newest list.

    The key is a new one, unless ``keep_key``. The old certificate stays good until its end. ``ConfigError`` when the kit is not
    of this authority, or its certificate was revoked: whom to trust again is decided by issuing, not by renewing.
    """
    old = load_certificate(kit / "tls.crt", remedy=_NO_KIT)
    keeper = Authority.load(authority)
    try:
        old.verify_directly_issued_by(keeper.signer.certificate)
    except Exception as error:  # the library raises ValueError, TypeError and InvalidSignature
        raise ConfigError(str(kit), f"is not a kit of the authority in {authority}; issue one: hushtune pki issue") from error
    if old.serial_number in keeper.revoked():
        raise ConfigError(
            str(kit), "its certificate was revoked, so it is not renewed; to trust it again, issue a kit: hushtune pki issue"
        )
    key = load_key(kit / "tls.key", certificate=old, remedy="renew without --keep-key") if keep_key else None
    chosen = tuple(dict.fromkeys((*hosts_of(old), *hosts)))
    made = leaf(authority, identity_of(old), hosts=chosen, clock=clock, key=key, folder=kit)
    made.write(kit)
    return made


def identity_of(certificate: x509.Certificate) -> Caller:
    """Return who a certificate of ours is for; ``ConfigError`` when it names nobody, or several."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        (uri,) = names.get_values_for_type(x509.UniformResourceIdentifier)
        return Caller.from_uri(uri)
    except (ValueError, x509.ExtensionNotFound) as error:
        raise ConfigError("tls.crt", f"names no identity of ours ({error}); {_NO_KIT}") from error


def show(kit: Path) -> dict[str, str]:
    """Return what a kit says, for people: identity, serial, validity, names, issuer, list. ``ConfigError`` when it is none."""
    certificate = load_certificate(kit / "tls.crt", remedy=_NO_KIT)
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
        "serial": f"{certificate.serial_number:x}",
        "valid_from": certificate.not_valid_before_utc.isoformat(),
        "valid_until": certificate.not_valid_after_utc.isoformat(),
        "names": ", ".join(shown),
        "fingerprint_sha256": certificate.fingerprint(hashes.SHA256()).hex(":"),
        "issuer": certificate.issuer.rfc4514_string(),
        "revocation_list": _list_of(kit),
    }


def _list_of(kit: Path) -> str:
    try:
        found = x509.load_pem_x509_crl((kit / LIST).read_bytes())
        number = found.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
    except (OSError, ValueError, x509.ExtensionNotFound):
        return "none"
    end = found.next_update_utc
    return f"number {number}, {len(found)} revoked, valid until {'-' if end is None else end.isoformat()}"
