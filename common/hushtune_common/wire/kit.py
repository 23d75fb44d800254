"""Which certificate do we show, and is it still good?"""

import tomllib
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from hushtune_common.clock import Clock
from hushtune_common.errors import ConfigError
from hushtune_common.messages import Caller, Role

_REMEDY = "make one with `hushtune pki issue`"
_FILE_BYTES_MAX = 65_536


@dataclass(frozen=True, slots=True, kw_only=True)
class Kit:
    """What one process needs to speak to the others: the authority's certificate, its own, and its private key.

    All three are PEM. ``caller`` is the identity in the certificate; ``not_before`` and ``not_after`` its validity, in UTC.
    """

    ca: bytes
    certificate: bytes
    key: bytes = field(repr=False)
    caller: Caller
    not_before: datetime
    not_after: datetime
    directory: Path

    @staticmethod
    def load(directory: Path) -> "Kit":
        """Read ``ca.crt``, ``tls.crt``, ``tls.key`` and ``kit.toml``; ``ConfigError`` names what is missing or wrong."""
        about = _about(directory / "kit.toml")
        return Kit(
            ca=_pem(directory / "ca.crt"),
            certificate=_pem(directory / "tls.crt"),
            key=_pem(directory / "tls.key"),
            caller=_caller(directory / "kit.toml", about),
            not_before=_date(directory / "kit.toml", about, "not_before"),
            not_after=_date(directory / "kit.toml", about, "not_after"),
            directory=directory,
        )


def require_valid(kit: Kit, *, clock: Clock) -> None:
    """Raise ``ConfigError`` unless the kit's certificate is valid now.

    Checked before dialling, because a peer that refuses a certificate looks like a peer that is down.
    """
    now = clock.wall()
    field_name = str(kit.directory / "tls.crt")
    if now >= kit.not_after:
        raise ConfigError(field_name, f"expired on {kit.not_after:%Y-%m-%d %H:%M} UTC; {_remedy(kit.caller)}")
    if now < kit.not_before:
        begins = f"{kit.not_before:%Y-%m-%d %H:%M} UTC"
        raise ConfigError(field_name, f"is not valid before {begins}; set this machine's clock, or {_remedy(kit.caller)}")


def remaining_s(kit: Kit, *, clock: Clock) -> float:
    """Return for how many seconds the kit's certificate is valid; negative when it has ended."""
    return (kit.not_after - clock.wall()).total_seconds()


def server_name(role: Role) -> str:
    """Return the DNS name in every certificate of a server of that role, and in no other."""
    return f"{role}.hushtune.internal"


def _remedy(caller: Caller) -> str:
    return f"make a new one with `hushtune pki issue --role {caller.role} --name {caller.name}`"


def _read(path: Path) -> bytes:
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        if not path.parent.exists():
            problem = (
                f"there is no such file or folder; give the folder of a kit (or a kit file where one is asked for), or {_REMEDY}"
            )
            raise ConfigError(str(path.parent), problem) from None
        raise ConfigError(str(path), f"this file of the kit is missing; {_REMEDY}") from None
    except OSError as error:
        raise ConfigError(str(path), f"cannot be read ({error.strerror}); {_REMEDY}") from None
    if len(content) > _FILE_BYTES_MAX:
        raise ConfigError(str(path), f"is larger than {_FILE_BYTES_MAX} bytes; {_REMEDY}")
    return content


def _pem(path: Path) -> bytes:
    content = _read(path)
    if b"-----BEGIN " not in content:
        raise ConfigError(str(path), f"is not a PEM file; {_REMEDY}")
    return content


def _about(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(_read(path).decode())
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(str(path), f"is not TOML ({error}); {_REMEDY}") from None


def _caller(path: Path, about: dict[str, Any]) -> Caller:
    try:
        return Caller.from_uri(str(about.get("identity", "")))
    except ValueError as error:
        raise ConfigError(f"{path}: identity", f"{error}; {_REMEDY}") from None


def _date(path: Path, about: dict[str, Any], name: str) -> datetime:
    value = about.get(name)
    try:
        date = value if isinstance(value, datetime) else datetime.fromisoformat(str(value))
    except ValueError:
        raise ConfigError(f"{path}: {name}", f"is not a date, got {value!r}; {_REMEDY}") from None
    return date.replace(tzinfo=UTC) if date.tzinfo is None else date.astimezone(UTC)


def mark_of(file: Path) -> tuple[int, int, int] | None:
    """Return what changes when a kit's file is written or replaced: time, size and place; none when it cannot be looked at."""
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
