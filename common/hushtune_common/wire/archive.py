"""What is in a kit that travels as one file, and which files are refused?

A zip file of at most six members, stored as they are, in one order, without dates: the same members make the same bytes. A reader
takes the members out, lays the archive out anew and wants the very same bytes, so nothing unpacks into more than it is, and there
is no second directory, no path, nothing between or behind the members.
"""

import hashlib
import os
import re
import shutil
import struct
import tomllib
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

from hushtune_common import config
from hushtune_common.config import Scenario
from hushtune_common.errors import ConfigError, HushtuneError
from hushtune_common.messages import Caller, Digest, Role
from hushtune_common.store.disk import full_disk_is_typed
from hushtune_common.wire import der
from hushtune_common.wire.about import PROTOCOL

FORMAT: Final = "hushtune-kit/1"
BYTES_MAX: Final = 8 << 20
"""Largest archive."""
ABOUT, CA, LIST, CERTIFICATE, KEY, SCENARIO = "kit.toml", "ca.crt", "ca.crl", "tls.crt", "tls.key", "scenario.toml"
_SIZES_MAX: Final[Mapping[str, int]] = {
    ABOUT: 65_536,
    CA: 65_536,
    LIST: 4 << 20,
    CERTIFICATE: 65_536,
    KEY: 65_536,
    SCENARIO: 1 << 20,
}
"""Every member that there may be, in their order, and its largest size in bytes."""
_ADDRESS = re.compile(r"(\[[0-9a-fA-F:]{2,45}\]|[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?):([0-9]{1,5})")
_REMEDY: Final = "ask for the file again, and use it as it came"
_LOCAL: Final = struct.Struct("<4s5H3I2H")
_CENTRAL: Final = struct.Struct("<4s6H3I5H2I")
_END: Final = struct.Struct("<4s4H2IH")
_LOCAL_MARK, _CENTRAL_MARK, _END_MARK = b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06"
_NO_DATE: Final = 0x21  # 1980-01-01, the first day of zip files
_ON_UNIX: Final = 3 << 8 | 20
_PRIVATE: Final = 0o100600 << 16

_Text = Annotated[str, Meta(max_length=200)]
_Hex = Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]


class About(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What ``kit.toml`` says; dates in ISO 8601, ``scenario`` a digest in hexadecimal or empty, ``files`` digests by member."""

    format: _Text
    identity: _Text
    not_before: _Text
    not_after: _Text
    made_by: _Text
    protocol: _Text
    scenario: Annotated[str, Meta(pattern="^([0-9a-f]{64})?$")]
    addresses: dict[_Text, Annotated[str, Meta(max_length=320)]]
    files: dict[_Text, _Hex]


@dataclass(frozen=True, slots=True, kw_only=True)
class Archive:
    """A kit in one file: ``members`` by name, and what they say."""

    members: Mapping[str, bytes] = field(repr=False)
    caller: Caller
    not_before: datetime
    not_after: datetime
    made_by: str
    protocol: str
    addresses: Mapping[Role, str]
    scenario: Digest | None


def compose(
    members: Mapping[str, bytes],
    *,
    caller: Caller,
    not_before: datetime,
    not_after: datetime,
    made_by: str,
    addresses: Mapping[Role, str],
    scenario: Digest | None,
) -> bytes:
    """Return the archive of these members (all but ``kit.toml``, which is made here); it is one that `parse` takes.

    ``ConfigError`` for what `parse` would refuse.
    """
    lines = [
        f'format = "{FORMAT}"',
        f'identity = "{caller.uri}"',
        f'not_before = "{_iso(not_before)}"',
        f'not_after = "{_iso(not_after)}"',
        f'made_by = "{made_by}"',
        f'protocol = "{PROTOCOL}"',
        f'scenario = "{"" if scenario is None else scenario.hex}"',
        "[addresses]",
        *(f'{role} = "{require_address(addresses[role], of=f"--addresses {role}")}"' for role in sorted(addresses)),
        "[files]",
        *(f'"{name}" = "{hashlib.sha256(members[name]).hexdigest()}"' for name in sorted(members)),
    ]
    content = lay_out({ABOUT: ("\n".join(lines) + "\n").encode(), **members})
    parse(content, name="--out")
    return content


def read(path: Path) -> Archive:
    """Read and check a kit file; ``ConfigError`` says what is wrong with it and what to do."""
    try:
        with path.open("rb") as file:
            content = file.read(BYTES_MAX + 1)
    except OSError as error:
        raise ConfigError(
            str(path), f"cannot be read ({error.strerror}); give the kit file, as `hushtune kit create` made it"
        ) from None
    return parse(content, name=str(path))


def parse(content: bytes, *, name: str) -> Archive:
    """Check the bytes of a kit file called ``name``; ``ConfigError``, and nothing else, for whatever is not one."""

    def refuse(problem: str) -> ConfigError:
        return ConfigError(name, f"{problem}; {_REMEDY}")

    members = _members(content, refuse)
    about = _about(members[ABOUT], refuse)
    found = {member: hashlib.sha256(data).hexdigest() for member, data in members.items() if member != ABOUT}
    if found != about.files:
        wrong = sorted(member for member in {*found, *about.files} if found.get(member) != about.files.get(member))
        raise refuse(f"{wrong[0]} is not what kit.toml says it is")
    caller, begins, ends = _certified(about, members[CERTIFICATE], refuse)
    digest = Digest(bytes.fromhex(about.scenario)) if about.scenario else None
    if (SCENARIO in members) != (digest is not None):
        raise refuse("kit.toml and the members do not agree whether there is a scenario")
    if digest is not None:
        _check_scenario(members[SCENARIO], digest=digest, caller=caller, refuse=refuse)
    return Archive(
        members=members,
        caller=caller,
        not_before=begins,
        not_after=ends,
        made_by=about.made_by,
        protocol=about.protocol,
        addresses=_addresses(about.addresses, refuse),
        scenario=digest,
    )


def scenario_of(text: bytes) -> Scenario:
    """Return the scenario in a member; ``ConfigError`` when it is none."""
    try:
        return config.parse(tomllib.loads(text.decode("utf-8")))
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        raise ConfigError(SCENARIO, f"is not TOML ({error})") from None


def require_address(address: str, *, of: str) -> str:
    """Return ``address`` when it is HOST:PORT; ``ConfigError`` names the setting ``of`` else."""
    match = _ADDRESS.fullmatch(address)
    if match is None or not 0 < int(match[3]) < 65_536:
        raise ConfigError(of, f"is HOST:PORT, such as air.example.org:7002 or [::1]:7002; got {address[:80]!r}")
    return address


def unpack(archive: Archive, folder: Path) -> None:
    """Write the members into ``folder``, for its user's eyes only; the folder is there once all of them are.

    ``ConfigError`` when it cannot be written, or is there already.
    """
    partial = folder.with_name(folder.name + ".partial")
    try:
        with full_disk_is_typed():
            if folder.exists():
                raise ConfigError(str(folder), "is there already; take another folder, or delete it")
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(mode=0o700, parents=True)
            for member, data in archive.members.items():
                descriptor = os.open(partial / member, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
                with os.fdopen(descriptor, "wb") as file:
                    file.write(data)
            partial.rename(folder)
    except OSError as error:
        raise ConfigError(str(folder), f"cannot be written ({error.strerror}); choose another folder") from error


def settle(archive: Archive, folder: Path) -> Literal["new", "same", "renewed"]:
    """Make ``folder`` the kit of ``archive``, and say what that took.

    A kit that lies there already stays as it is when it is the same one, newer lists included; it gives way to a newer
    certificate of the same process, authority and scenario. ``ConfigError`` for any other kit.
    """
    if not folder.exists():
        unpack(archive, folder)
        return "new"
    if _held(folder, CERTIFICATE) == archive.members[CERTIFICATE]:
        return "same"
    for what, mine in (("process", CERTIFICATE), ("authority", CA), ("scenario", SCENARIO)):
        if not _agree(folder, archive, mine):
            raise ConfigError(str(folder), f"holds a kit of another {what}; take another --state folder for {archive.caller.uri}")
    if archive.not_before <= _leaf_of(_held(folder, CERTIFICATE), folder).not_before:
        raise ConfigError(str(folder), "holds a newer kit of the same process; give that one")
    _replace(archive, folder)
    return "renewed"


def _agree(folder: Path, archive: Archive, member: str) -> bool:
    if member != CERTIFICATE:
        return _held(folder, member) == archive.members.get(member)
    return _leaf_of(_held(folder, member), folder).uris == (archive.caller.uri,)


def _held(folder: Path, member: str) -> bytes | None:
    try:
        return (folder / member).read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConfigError(str(folder / member), f"cannot be read ({error.strerror}); take another --state folder") from error


def _leaf_of(certificate: bytes | None, folder: Path) -> der.Leaf:
    try:
        return der.read_certificate(der.unwrap(certificate or b"", label="CERTIFICATE"))
    except ValueError as error:
        raise ConfigError(str(folder), f"holds no kit ({error}); take another --state folder") from None


def _replace(archive: Archive, folder: Path) -> None:
    """Exchange the files of a kit one by one; ``tls.crt`` comes last and decides, so an exchange that was cut is begun again."""
    try:
        with full_disk_is_typed():
            for member in sorted(archive.members, key=lambda name: name == CERTIFICATE):
                partial = folder / f"{member}.partial"
                partial.unlink(missing_ok=True)
                descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
                with os.fdopen(descriptor, "wb") as file:
                    file.write(archive.members[member])
                partial.replace(folder / member)
    except OSError as error:
        raise ConfigError(str(folder), f"cannot be written ({error.strerror})") from error


_Refuse = Callable[[str], ConfigError]


def _members(content: bytes, refuse: _Refuse) -> dict[str, bytes]:
    if len(content) > BYTES_MAX:
        raise refuse(f"is larger than the {BYTES_MAX} bytes that a kit may have")
    members: dict[str, bytes] = {}
    at = 0
    while content[at : at + 4] == _LOCAL_MARK:
        if len(content) - at < _LOCAL.size:
            raise refuse("ends too early")
        *_, size, name_bytes, _ = _LOCAL.unpack_from(content, at)
        start = at + _LOCAL.size + name_bytes
        name = content[at + _LOCAL.size : start].decode("ascii", errors="replace")
        if name not in _SIZES_MAX or name in members:
            raise refuse(f"holds {name[:80]!r}, which is no file of a kit, or holds it twice")
        if size > _SIZES_MAX[name]:
            raise refuse(f"{name} is larger than {_SIZES_MAX[name]} bytes")
        members[name] = content[start : start + size]
        at = start + size
    if not members:
        raise refuse("is not a kit file")
    missing = sorted(_SIZES_MAX.keys() - members.keys() - {SCENARIO})
    if missing and content[at : at + 4] == _CENTRAL_MARK:
        raise refuse(f"lacks {missing[0]}")
    if missing or lay_out(members) != content:
        raise refuse("was damaged, or packed by something else than `hushtune kit create`")
    return members


def lay_out(members: Mapping[str, bytes]) -> bytes:
    """Return the one archive that these members have (PKWARE's APPNOTE, method 0)."""
    local, central = bytearray(), bytearray()
    names = [name for name in _SIZES_MAX if name in members]
    for name in names:
        data, label, offset = members[name], name.encode("ascii"), len(local)
        sizes = zlib.crc32(data), len(data), len(data)
        local += _LOCAL.pack(_LOCAL_MARK, 20, 0, 0, 0, _NO_DATE, *sizes, len(label), 0) + label + data
        central += _CENTRAL.pack(_CENTRAL_MARK, _ON_UNIX, 20, 0, 0, 0, _NO_DATE, *sizes, len(label), 0, 0, 0, 0, _PRIVATE, offset)
        central += label
    end = _END.pack(_END_MARK, 0, 0, len(names), len(names), len(central), len(local), 0)
    return bytes(local + central + end)


def _about(text: bytes, refuse: _Refuse) -> About:
    try:
        about = msgspec.convert(tomllib.loads(text.decode("utf-8")), About)
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError, msgspec.ValidationError) as error:
        raise refuse(f"kit.toml: {error}") from None
    if about.format != FORMAT:
        raise refuse(f"kit.toml: format is {about.format!r}, this program reads {FORMAT!r}")
    return about


def _certified(about: About, certificate: bytes, refuse: _Refuse) -> tuple[Caller, datetime, datetime]:
    """Return who the kit is for and its dates, when kit.toml and certificate agree on them."""
    try:
        caller = Caller.from_uri(about.identity)
        begins, ends = datetime.fromisoformat(about.not_before), datetime.fromisoformat(about.not_after)
        leaf = der.read_certificate(der.unwrap(certificate, label="CERTIFICATE"))
        agree = (leaf.uris, leaf.not_before, leaf.not_after) == ((caller.uri,), begins, ends)
    except (ValueError, TypeError) as error:
        raise refuse(f"kit.toml or tls.crt: {error}") from None
    if not agree:
        raise refuse(f"kit.toml says {about.identity}, the certificate is another one")
    return caller, begins, ends


def _check_scenario(text: bytes, *, digest: Digest, caller: Caller, refuse: _Refuse) -> None:
    try:
        scenario = scenario_of(text)
        if caller.role is Role.CLIENT:
            scenario.client(caller.name)
    except HushtuneError as error:
        raise refuse(f"{SCENARIO}: {error}") from None
    if scenario.digest != digest:
        raise refuse(
            f"{SCENARIO}: has digest {scenario.digest.short}, kit.toml says {digest.short}; another version may have made it"
        )


def _addresses(told: Mapping[str, str], refuse: _Refuse) -> dict[Role, str]:
    try:
        return {Role(role): require_address(address, of=f"addresses.{role[:20]}") for role, address in told.items()}
    except ValueError:
        raise refuse("kit.toml: addresses are of roles") from None
    except ConfigError as error:
        raise refuse(f"kit.toml: {error}") from None


def _iso(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat()
