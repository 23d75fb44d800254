"""Whose certificate was withdrawn before its time? The authority's list, read again whenever its file changes.

gRPC checks chains and dates but no lists, so the list is consulted after the handshake, at each call. That it is of our authority
is OpenSSL's word: our own certificate is verified against it, in memory, and a list that another key signed makes that fail.
"""

import logging
import ssl
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, timedelta
from pathlib import Path
from typing import Any, Final

from hushtune_common.clock import Clock
from hushtune_common.errors import CertificateRevoked, ConfigError, NotYours
from hushtune_common.logs import log_event
from hushtune_common.messages import Caller
from hushtune_common.wire import der
from hushtune_common.wire.kit import Kit, mark_of

__all__ = ["LIST", "RevocationList", "Revocations", "Withdrawn", "load", "peer_serial", "require_not_revoked"]

LIST: Final = "ca.crl"
"""Name of the file in a kit."""
_LIST_BYTES_MAX: Final = 4 << 20
_SOON: Final = timedelta(days=7)
_SKEW: Final = timedelta(minutes=10)
_NO_CHECK_TIME: Final = 0x200000
"""OpenSSL's X509_V_FLAG_NO_CHECK_TIME: dates are held against our own clock, which can be another one in tests."""
_REVOKED: Final = 23
_NOT_OURS: Final = {
    3: "is of another authority",
    8: "carries a signature that does not hold",
    **dict.fromkeys((18, 19, 20, 21), "cannot be checked, since tls.crt in this kit is not of its ca.crt: get the kit again"),
}
_REMEDY: Final = "take the newest one from the authority: `hushtune pki publish AUTHORITY --into KIT`"

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class RevocationList:
    """A list that was checked, and whether it names the certificate of the kit that it was checked with."""

    body: der.ListBody
    own: der.Revoked | None

    def problem_of(self, serial: int) -> str | None:
        """Return what to say of a certificate, or ``None`` when it was not revoked."""
        entry = self.body.revoked.get(serial)
        return None if entry is None else f"serial {serial:x} was revoked on {entry.at:%Y-%m-%d %H:%M} UTC ({entry.reason})"


def load(kit: Kit, *, clock: Clock) -> RevocationList:
    """Read and check ``ca.crl`` of a kit; ``ConfigError`` with the remedy when it is missing, not the authority's, or expired."""
    path = kit.directory / LIST
    content = _read(path)
    try:
        body = der.read_list(der.unwrap(content, label="X509 CRL"))
    except ValueError as error:
        raise ConfigError(str(path), f"is not a revocation list ({error}); {_REMEDY}") from None
    code = _verdict(kit, path)
    if code not in (0, _REVOKED):
        raise ConfigError(str(path), f"{_NOT_OURS.get(code, f'does not hold (OpenSSL says {code})')}; {_REMEDY}")
    if _read(path) != content:
        raise ConfigError(str(path), "changed while it was read; try again")
    now = clock.wall().astimezone(UTC)
    if now >= body.next_update:
        raise ConfigError(str(path), f"expired on {body.next_update:%Y-%m-%d %H:%M} UTC; {_REMEDY}")
    if now < body.this_update - _SKEW:
        begins = f"{body.this_update:%Y-%m-%d %H:%M} UTC"
        raise ConfigError(str(path), f"is not valid before {begins}; set this machine's clock")
    own = body.revoked.get(der.serial_of(der.unwrap(kit.certificate, label="CERTIFICATE")))
    return RevocationList(body=body, own=own)


def require_not_revoked(kit: Kit, *, clock: Clock, needed: bool = True) -> RevocationList | None:
    """Return the checked list of a kit; ``CertificateRevoked`` when it names the kit's own certificate.

    A client's kit may be older than lists are: with ``needed`` false a missing list is no fault.
    """
    if not needed and not (kit.directory / LIST).exists():
        return None
    found = load(kit, clock=clock)
    if found.own is not None:
        raise CertificateRevoked(
            f"{kit.directory / 'tls.crt'}: the certificate of {kit.caller.uri} was revoked on {found.own.at:%Y-%m-%d %H:%M} UTC "
            f"({found.own.reason}); ask whoever keeps the authority for a new kit"
        )
    return found


def peer_serial(context: Any) -> int:
    """Return the serial of the certificate that a caller showed; ``NotYours`` when it cannot be read."""
    shown = [bytes(pem) for pem in context.auth_context().get("x509_pem_cert", ())]
    if len(shown) != 1:
        raise NotYours(f"a caller shows exactly one certificate, this one {len(shown)}")
    try:
        return der.serial_of(der.unwrap(shown[0], label="CERTIFICATE"))
    except ValueError as error:
        raise NotYours(f"the certificate cannot be read: {error}") from None


class Withdrawn:
    """Says of certificates that others show us whether the authority has withdrawn them, by the list in our kit.

    Laws: the newest list that was good counts; a kit without one, as a client's may be, withdraws nothing.
    """

    def __init__(self, kit: Kit, *, clock: Clock) -> None:
        """Look into the folder of ``kit``, at each question anew."""
        self._kit = kit
        self._clock = clock
        self._known: RevocationList | None = None

    def __call__(self, serial: int) -> bool:
        """Return whether the certificate of that serial number was withdrawn."""
        if (self._kit.directory / LIST).exists():
            with suppress(ConfigError):  # a server tells of a bad list where it serves
                self._known = load(self._kit, clock=self._clock)
        return self._known is not None and self._known.problem_of(serial) is not None


class Revocations:
    """The list that a server goes by.

    Laws: it is the newest list that was good; a file that is damaged, foreign, expired, older or gone changes only the log.
    """

    def __init__(self, kit: Kit, *, clock: Clock) -> None:
        """Read the list of ``kit``; raises what `require_not_revoked` raises."""
        self._kit = kit
        self._clock = clock
        self._path = kit.directory / LIST
        self._seen = mark_of(self._path)
        found = require_not_revoked(kit, clock=clock)
        if found is None:
            raise RuntimeError("a list that is needed is there")
        self._list = found
        self._tell("revocation_list_read")

    def refresh(self) -> bool:
        """Look at the file; return whether another list is in force now."""
        mark = mark_of(self._path)
        if mark == self._seen:
            return False
        self._seen = mark
        try:
            found = load(self._kit, clock=self._clock)
            if found.body.number < self._list.body.number:
                raise ConfigError(str(self._path), f"is number {found.body.number}, older than what is in force; {_REMEDY}")
        except ConfigError as error:
            in_force = self._list.body.number
            log_event(_logger, "revocation_list_refused", level=logging.ERROR, problem=str(error), in_force=in_force)
            return False
        self._list = found
        self._tell("revocation_list_changed")
        if found.own is not None:
            remedy = "stop this process and give it a new kit: hushtune pki issue"
            log_event(_logger, "own_certificate_withdrawn", level=logging.ERROR, problem=found.own.reason, remedy=remedy)
        return True

    def require_good(self, caller: Caller, serial: int) -> None:
        """Raise ``CertificateRevoked`` when the caller's certificate is on the list; the list is looked at first."""
        self.refresh()
        problem = self._list.problem_of(serial)
        if problem is not None:
            raise CertificateRevoked(
                f"the certificate of {caller.uri} was withdrawn: {problem}; ask whoever keeps the authority for a new kit"
            )

    def is_revoked(self, serial: int) -> bool:
        """Return whether a certificate is on the list in force."""
        return self._list.problem_of(serial) is not None

    def _tell(self, event: str) -> None:
        body = self._list.body
        soon = body.next_update - self._clock.wall() < _SOON
        log_event(
            _logger,
            event,
            level=logging.WARNING if soon else logging.INFO,
            number=body.number,
            revoked=len(body.revoked),
            valid_until=f"{body.next_update:%Y-%m-%d %H:%M} UTC",
            **({"remedy": "sign it anew: `hushtune pki publish AUTHORITY`"} if soon else {}),
        )


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(_LIST_BYTES_MAX + 1)
    except FileNotFoundError:
        raise ConfigError(str(path), f"the revocation list of the kit is missing; {_REMEDY}") from None
    except OSError as error:
        raise ConfigError(str(path), f"cannot be read ({error.strerror}); {_REMEDY}") from None
    if len(content) > _LIST_BYTES_MAX:
        raise ConfigError(str(path), f"is larger than {_LIST_BYTES_MAX} bytes; {_REMEDY}")
    return content


def _verdict(kit: Kit, path: Path) -> int:
    """Return OpenSSL's code for our own certificate under the list at ``path``: 0 is good, see ``openssl verify`` for others."""
    shows, checks = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    checks.check_hostname = False
    checks.verify_flags |= ssl.VERIFY_CRL_CHECK_LEAF | ssl.VerifyFlags(_NO_CHECK_TIME)
    try:
        shows.load_cert_chain(kit.directory / "tls.crt", kit.directory / "tls.key")
        checks.load_verify_locations(cadata=kit.ca.decode("ascii"))
        checks.load_verify_locations(cafile=path)
        _shake_hands(shows, checks)
    except ssl.SSLCertVerificationError as error:
        return error.verify_code
    except (OSError, ValueError) as error:  # an SSLError is an OSError
        raise ConfigError(str(path), f"cannot be checked with this kit ({error}); {_REMEDY}") from None
    return 0


def _shake_hands(shows: ssl.SSLContext, checks: ssl.SSLContext) -> None:
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    asking, answering = checks.wrap_bio(down, up), shows.wrap_bio(up, down, server_side=True)
    for _ in range(3):  # two flights each
        for end in (asking, answering):
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
