"""Which bytes of a certificate or of a revocation list say what? A strict reader of the little DER that we need.

Nothing here decides whom to trust: certificates come out of a TLS handshake, lists are checked by OpenSSL first (`revocation`).
Processes that must not hold keys have no library for them either, so this reads serial numbers and dates by itself.
"""

import base64
import binascii
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

_INTEGER: Final = 0x02
_OID: Final = 0x06
_ENUMERATED: Final = 0x0A
_OCTETS: Final = 0x04
_SEQUENCE: Final = 0x30
_UTC_TIME: Final = 0x17
_LONG_TIME: Final = 0x18
_VERSION: Final = 0xA0
_EXTENSIONS: Final = 0xA0
_LEAF_EXTENSIONS: Final = 0xA3
_URI: Final = 0x86
_DNS: Final = 0x82
_OTHER_NAMES: Final = bytes.fromhex("551d11")
_CRL_NUMBER: Final = bytes.fromhex("551d14")
_CRL_REASON: Final = bytes.fromhex("551d15")
_SERIAL_BYTES_MAX: Final = 21
_REASONS: Final = {
    1: "key compromise",
    2: "authority compromise",
    3: "affiliation changed",
    4: "superseded",
    5: "cessation of operation",
    6: "on hold",
    9: "privilege withdrawn",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Revoked:
    """When a certificate was revoked (UTC), and why, in words."""

    at: datetime
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ListBody:
    """What a revocation list says: its number, from when to when it holds (UTC), and the serials that it revokes."""

    number: int
    this_update: datetime
    next_update: datetime
    revoked: Mapping[int, Revoked]


@dataclass(frozen=True, slots=True, kw_only=True)
class Leaf:
    """What a certificate says: its serial, from when to when it holds (UTC), and the URIs and host names that it is for."""

    serial: int
    not_before: datetime
    not_after: datetime
    uris: tuple[str, ...]
    hosts: tuple[str, ...]


def unwrap(pem: bytes, *, label: str) -> bytes:
    """Return the DER of the one PEM block of that ``label``; ``ValueError`` when there is not exactly one."""
    head, tail = f"-----BEGIN {label}-----".encode(), f"-----END {label}-----".encode()
    if pem.count(b"-----BEGIN ") != 1:
        raise ValueError("not exactly one PEM block")
    _, found, rest = pem.partition(head)
    body, ended, _ = rest.partition(tail)
    if not (found and ended):
        raise ValueError(f"no PEM block {label!r}")
    try:
        return base64.b64decode(b"".join(body.split()), validate=True)
    except binascii.Error as error:
        raise ValueError(f"not base64 ({error})") from error


def serial_of(certificate: bytes) -> int:
    """Return the serial number in a certificate (DER); ``ValueError`` when it is none."""
    items = _children(_first(_children(_only(certificate, _SEQUENCE))))
    return _serial(items[1:] if items and items[0][0] == _VERSION else items)


def read_certificate(certificate: bytes) -> Leaf:
    """Return what a certificate (DER, RFC 5280, version 3) says; ``ValueError`` when it is none."""
    items = _children(_first(_children(_only(certificate, _SEQUENCE))))
    if len(items) < 7 or items[0][0] != _VERSION:
        raise ValueError("not a certificate of version 3")
    begins, ends = _children(items[4])[:2]
    wrapped = [content for tag, content in items if tag == _LEAF_EXTENSIONS]
    extensions = _pairs(_only(wrapped[0], _SEQUENCE)) if wrapped else []
    names = [name for oid, value in extensions if oid == _OTHER_NAMES for name in _children(_only(value, _SEQUENCE))]
    return Leaf(
        serial=_serial(items[1:]),
        not_before=_time(begins),
        not_after=_time(ends),
        uris=tuple(content.decode("ascii") for tag, content in names if tag == _URI),
        hosts=tuple(content.decode("ascii") for tag, content in names if tag == _DNS),
    )


def read_list(der: bytes) -> ListBody:
    """Return what a certificate revocation list (RFC 5280, version 2) says; ``ValueError`` when it is none."""
    fields = _children(_first(_children(_only(der, _SEQUENCE))))
    if len(fields) < 5 or fields[0] != (_INTEGER, b"\x01"):
        raise ValueError("not a list of version 2")
    this_update, next_update, rest = _time(fields[3]), _time(fields[4]), fields[5:]
    revoked = dict(_entry(entry) for entry in _children(rest[0])) if rest and rest[0][0] == _SEQUENCE else {}
    number = next((_positive(_only(v, _INTEGER)[1]) for oid, v in _extensions(rest) if oid == _CRL_NUMBER), None)
    if number is None:
        raise ValueError("the list has no number")
    return ListBody(number=number, this_update=this_update, next_update=next_update, revoked=revoked)


_Item = tuple[int, bytes]


def _items(data: bytes) -> Iterator[_Item]:
    """Yield tag and content of the elements that follow each other in ``data``."""
    at = 0
    while at < len(data):
        if at + 2 > len(data):
            raise ValueError("ends in the middle of an element")
        tag, length, at = data[at], data[at + 1], at + 2
        if tag & 0x1F == 0x1F:
            raise ValueError("an element of a kind that we do not have")
        if length >= 0x80:
            width = length & 0x7F
            if not 1 <= width <= 4 or at + width > len(data):
                raise ValueError("a length that cannot be")
            length, at = int.from_bytes(data[at : at + width]), at + width
            if length < 0x80 or length < 1 << (8 * (width - 1)):
                raise ValueError("a length that is not written in the shortest way")
        if at + length > len(data):
            raise ValueError("ends in the middle of an element")
        yield tag, data[at : at + length]
        at += length


def _only(data: bytes, tag: int) -> _Item:
    found = list(_items(data))
    if len(found) != 1 or found[0][0] != tag:
        raise ValueError("not the one element that was expected")
    return found[0]


def _first(items: list[_Item]) -> _Item:
    if not items:
        raise ValueError("an empty sequence")
    return items[0]


def _children(item: _Item) -> list[_Item]:
    if item[0] != _SEQUENCE:
        raise ValueError("not a sequence")
    return list(_items(item[1]))


def _positive(content: bytes) -> int:
    if not 1 <= len(content) <= _SERIAL_BYTES_MAX or content[0] & 0x80:
        raise ValueError("not a number of ours")
    return int.from_bytes(content)


def _serial(items: list[_Item]) -> int:
    if not items or items[0][0] != _INTEGER:
        raise ValueError("no serial number")
    return _positive(items[0][1])


def _time(item: _Item) -> datetime:
    tag, content = item
    try:
        text = content.decode("ascii")
    except UnicodeDecodeError as error:
        raise ValueError("not a date") from error
    if tag not in (_UTC_TIME, _LONG_TIME) or len(text) != (13 if tag == _UTC_TIME else 15) or not text.endswith("Z"):
        raise ValueError("not a date")
    if not text[:-1].isdigit():
        raise ValueError("not a date")
    if tag == _UTC_TIME:  # RFC 5280, 4.1.2.5.1: two digits stand for 1950 to 2049
        text = ("19" if text[:2] >= "50" else "20") + text
    return datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC)


def _entry(item: _Item) -> tuple[int, Revoked]:
    fields = _children(item)
    if len(fields) < 2:
        raise ValueError("an entry without a date")
    reason = "no reason given"
    for oid, value in _pairs(fields[2]) if len(fields) > 2 else ():
        if oid == _CRL_REASON:
            reason = _REASONS.get(int.from_bytes(_only(value, _ENUMERATED)[1][:1]), reason)
    return _serial(fields), Revoked(at=_time(fields[1]), reason=reason)


def _extensions(rest: list[_Item]) -> list[tuple[bytes, bytes]]:
    wrapped = [content for tag, content in rest if tag == _EXTENSIONS]
    return _pairs(_only(wrapped[0], _SEQUENCE)) if wrapped else []


def _pairs(item: _Item) -> list[tuple[bytes, bytes]]:
    """Return identifier and value of the extensions in a sequence."""
    found: list[tuple[bytes, bytes]] = []
    for extension in _children(item):
        fields = _children(extension)
        if len(fields) < 2 or fields[0][0] != _OID or fields[-1][0] != _OCTETS:
            raise ValueError("not an extension")
        found.append((fields[0][1], fields[-1][1]))
    return found
