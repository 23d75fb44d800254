"""What does the authority keep? Its key and certificate, the revocation list, and a register of what it has issued.

The register, ``issued.jsonl``, has a line per certificate: who, serial, until when, and the folder of the kit. There `revoke`
finds serials, and `publish` the folders to put a new list into. The list, ``ca.crl``, is of X.509 (RFC 5280).
"""

import fcntl
import json
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from hushtune_common.clock import Clock
from hushtune_common.errors import ConfigError
from hushtune_server.pki.certificates import Signer, authority_certificate
from hushtune_server.pki.files import PRIVATE, PUBLIC, load_certificate, load_key, pem_of, whole_seconds, write

LIST: Final = "ca.crl"
"""Name of the revocation list, beside the authority and in every kit."""
LIST_DAYS: Final = 90
SKEW: Final = timedelta(minutes=10)
REASONS: Final[Mapping[str, x509.ReasonFlags]] = {
    "key-compromise": x509.ReasonFlags.key_compromise,
    "superseded": x509.ReasonFlags.superseded,
    "left": x509.ReasonFlags.cessation_of_operation,
    "privilege-withdrawn": x509.ReasonFlags.privilege_withdrawn,
}
"""Why a certificate may be revoked, as a person says it and as the list does."""
_REGISTER: Final = "issued.jsonl"
_LOCK: Final = "lock"
_REMEDY: Final = "make an authority first: hushtune pki init"


@dataclass(frozen=True, slots=True, kw_only=True)
class Issued:
    """A line of the register; ``serial`` in hexadecimal, dates in ISO 8601 (UTC), ``folder`` absolute or empty."""

    identity: str
    serial: str
    not_before: str
    not_after: str
    folder: str


def init(directory: Path, *, clock: Clock) -> None:
    """Make an authority in ``directory``: ``ca.crt``, ``ca.key`` (0600) and an empty ``ca.crl``.

    ``ConfigError`` when there is one already.
    """
    if (directory / "ca.key").exists() or (directory / "ca.crt").exists():
        raise ConfigError(
            str(directory), "holds an authority already; take another directory, or delete it and issue every kit again"
        )
    directory.mkdir(parents=True, exist_ok=True)
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = authority_certificate(key, start=whole_seconds(clock.wall()) - SKEW)
    write(directory / "ca.key", pem_of(key), mode=PRIVATE)
    write(directory / "ca.crt", pem_of(certificate), mode=PUBLIC)
    Authority.load(directory).sign_list({}, clock=clock)


@contextmanager
def held(directory: Path) -> Generator["Authority"]:
    """Give the authority to one command at a time: of two that change the list at once, one would be forgotten."""
    found = Authority.load(directory)
    try:
        lock = (directory / _LOCK).open("a")
    except OSError as error:
        raise ConfigError(
            str(directory), f"cannot be written ({error.strerror}); run this where the authority is kept"
        ) from error
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # given back when the file is closed
        yield found


@dataclass(frozen=True, slots=True, kw_only=True)
class Authority:
    """An authority in its folder."""

    directory: Path
    signer: Signer

    @staticmethod
    def load(directory: Path) -> "Authority":
        """Read certificate and key; ``ConfigError`` names what is missing and how to make one."""
        certificate = load_certificate(directory / "ca.crt", remedy=_REMEDY)
        key = load_key(directory / "ca.key", certificate=certificate, remedy=_REMEDY)
        return Authority(directory=directory, signer=Signer(certificate=certificate, key=key))

    def register(self) -> list[Issued]:
        """Return what was issued, oldest first; empty for an authority that is older than registers are."""
        path = self.directory / _REGISTER
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
            return [Issued(**json.loads(line)) for line in lines]
        except FileNotFoundError:
            return []
        except (OSError, ValueError, TypeError) as error:
            raise ConfigError(str(path), f"is damaged ({error}); restore it, its lines are needed to revoke by name") from error

    def enter(self, line: Issued) -> None:
        """Add a line to the register."""
        path = self.directory / _REGISTER
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(line)) + "\n")

    def revoked(self) -> dict[int, x509.RevokedCertificate]:
        """Return the entries of the list by serial; ``ConfigError`` when the list is damaged or not this authority's."""
        found = self._list()
        return {} if found is None else {entry.serial_number: entry for entry in found}

    def sign_list(self, entries: Mapping[int, x509.RevokedCertificate], *, clock: Clock) -> bytes:
        """Sign a list of these entries, with the next number, write it, and return it in PEM. Holds for ``LIST_DAYS``."""
        start = whole_seconds(clock.wall())
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self.signer.certificate.subject)
            .last_update(start - SKEW)
            .next_update(start + timedelta(days=LIST_DAYS))
            .add_extension(x509.CRLNumber(self._number() + 1), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self.signer.key.public_key()), critical=False)
        )
        for _, entry in sorted(entries.items()):
            builder = builder.add_revoked_certificate(entry)
        content = pem_of(builder.sign(self.signer.key, hashes.SHA256()))
        write(self.directory / LIST, content, mode=PUBLIC)
        return content

    def _number(self) -> int:
        found = self._list()
        return 0 if found is None else found.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number

    def _list(self) -> x509.CertificateRevocationList | None:
        path = self.directory / LIST
        try:
            found = x509.load_pem_x509_crl(path.read_bytes())
        except FileNotFoundError:
            return None  # an authority that is older than lists are
        except (OSError, ValueError) as error:
            raise ConfigError(str(path), f"is damaged ({error}); restore it, or what was revoked would be forgotten") from error
        if not found.is_signature_valid(self.signer.key.public_key()):
            raise ConfigError(str(path), "is not this authority's; restore it, or what was revoked would be forgotten")
        return found


def entry(serial: int, *, reason: str, at: datetime) -> x509.RevokedCertificate:
    """Return a list's entry; ``reason`` is one of `REASONS`."""
    return (
        x509.RevokedCertificateBuilder()
        .serial_number(serial)
        .revocation_date(whole_seconds(at))
        .add_extension(x509.CRLReason(REASONS[reason]), critical=False)
        .build()
    )


def place(content: bytes, folders: Iterable[Path], *, of: x509.Certificate) -> tuple[list[Path], list[Path]]:
    """Write a list into the kit folders of its authority; return those that have it now and those that could not be reached.

    A folder that holds a kit of another authority, or none at all, is left alone and counts as not reached.
    """
    done: list[Path] = []
    missed: list[Path] = []
    for folder in dict.fromkeys(folders):
        try:
            if x509.load_pem_x509_certificate((folder / "ca.crt").read_bytes()) != of:
                raise ValueError("another authority")
            write(folder / LIST, content, mode=PUBLIC)
        except (OSError, ValueError):
            missed.append(folder)
        else:
            done.append(folder)
    return done, missed


def until(moment: datetime) -> str:
    """Return a date for the register."""
    return moment.astimezone(UTC).isoformat()
