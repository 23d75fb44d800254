"""How is a certificate withdrawn before its time, and how do the servers hear of it?"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from hushtune_common.clock import Clock
from hushtune_common.errors import ConfigError
from hushtune_common.messages import Caller
from hushtune_server.pki.authority import REASONS, Authority, entry, held, place


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """A list that was signed: the serials that are new on it, and the kit folders that have it or could not be reached."""

    added: tuple[int, ...]
    placed: tuple[Path, ...]
    missed: tuple[Path, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A line of the table: an identity's certificate, until when it holds, and whether it was revoked (when and why)."""

    identity: str
    serial: str
    valid_until: str
    state: str


def revoke(
    authority: Path,
    *,
    clock: Clock,
    caller: Caller | None = None,
    serial: str | None = None,
    reason: str = "privilege-withdrawn",
    into: Sequence[Path] = (),
) -> Published:
    """Revoke every certificate of ``caller`` that still holds, or the one of ``serial`` (hexadecimal), and publish the list.

    ``ConfigError`` when there is nothing to revoke, or ``reason`` is none of `REASONS`.
    """
    if reason not in REASONS:
        raise ConfigError("--reason", f"is one of {', '.join(REASONS)}, got {reason!r}")
    with held(authority) as keeper:
        known = keeper.revoked()
        added = [number for number in _serials(keeper, clock=clock, caller=caller, serial=serial) if number not in known]
        if not added:
            raise ConfigError("pki revoke", "everything that this names is revoked already; see `hushtune pki show AUTHORITY`")
        for number in added:
            known[number] = entry(number, reason=reason, at=clock.wall())
        return _published(keeper, keeper.sign_list(known, clock=clock), into=into, added=tuple(added))


def publish(authority: Path, *, clock: Clock, into: Sequence[Path] = ()) -> Published:
    """Sign the list for another 90 days, and put it into every kit folder of the register and the folders ``into``."""
    with held(authority) as keeper:
        return _published(keeper, keeper.sign_list(keeper.revoked(), clock=clock), into=into, added=())


def table(authority: Path, *, clock: Clock) -> list[Row]:
    """Return every certificate in the register, oldest first, and what is revoked without standing there."""
    keeper = Authority.load(authority)
    revoked, now = keeper.revoked(), clock.wall().isoformat()
    rows: list[Row] = []
    for line in keeper.register():
        mark = revoked.pop(int(line.serial, 16), None)
        state = f"revoked {mark.revocation_date_utc:%Y-%m-%d}" if mark else "expired" if line.not_after <= now else "good"
        rows.append(Row(identity=line.identity, serial=line.serial, valid_until=line.not_after[:16], state=state))
    for number, mark in revoked.items():
        state = f"revoked {mark.revocation_date_utc:%Y-%m-%d}"
        rows.append(Row(identity="(not in the register)", serial=f"{number:x}", valid_until="-", state=state))
    return rows


def _published(keeper: Authority, content: bytes, *, into: Iterable[Path], added: tuple[int, ...]) -> Published:
    known = (Path(line.folder) for line in keeper.register() if line.folder)
    placed, missed = place(content, [*known, *(folder.resolve() for folder in into)], of=keeper.signer.certificate)
    return Published(added=added, placed=tuple(placed), missed=tuple(missed))


def _serials(keeper: Authority, *, clock: Clock, caller: Caller | None, serial: str | None) -> list[int]:
    if (caller is None) == (serial is None):
        raise ConfigError("pki revoke", "name a process (--role and --name) or a certificate (--serial), not both")
    if serial is not None:
        try:
            number = int(serial.replace(":", ""), 16)
        except ValueError:
            number = 0
        if not 0 < number < 1 << 160:
            raise ConfigError("--serial", f"is a hexadecimal number, as `hushtune pki show` prints it; got {serial!r}")
        return [number]
    uri, now = caller.uri if caller else "", clock.wall().isoformat()
    found = [int(line.serial, 16) for line in keeper.register() if line.identity == uri and line.not_after > now]
    if not found:
        raise ConfigError("pki revoke", f"the register has no certificate of {uri} that still holds; see `hushtune pki show`")
    return found
