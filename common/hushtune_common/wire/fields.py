"""Which single values of a message are refused? Each check returns the value or raises ``MalformedUpdate`` naming the field."""

from collections.abc import Generator, Iterable, Mapping, Sized
from contextlib import contextmanager
from math import inf, isfinite, isnan
from typing import TypeVar

from hushtune_common.errors import MalformedUpdate
from hushtune_common.messages import BLOCKS_MAX, ClientId, Digest, RunId, UpdateKey, require_name
from hushtune_common.units import Decibel

TEXT_CHARS_MAX = 1000

K = TypeVar("K")


@contextmanager
def within(field: str) -> Generator[None]:
    """Turn the ``ValueError`` of a value's own checks into ``MalformedUpdate`` naming ``field``."""
    try:
        yield
    except ValueError as error:
        raise MalformedUpdate(f"{field}: {error}") from None


def update_key(run: str, round_id: int, client: str, attempt: int) -> UpdateKey:
    """Return the key of an update."""
    with within("key"):
        return UpdateKey(run=RunId(run), round_id=round_id, client=ClientId(client), attempt=attempt)


def client_id(field: str, value: str) -> ClientId:
    """Return a client's name."""
    with within(field):
        require_name(value, of="client")
    return ClientId(value)


def digest(field: str, value: bytes) -> Digest:
    """Return a SHA-256 digest of exactly 32 bytes."""
    with within(field):
        return Digest(value)


def text(field: str, value: str, *, required: bool = False) -> str:
    """Return a text of at most 1000 characters; not empty when ``required``."""
    if len(value) > TEXT_CHARS_MAX or (required and not value):
        raise MalformedUpdate(f"{field}: has {len(value)} characters, expected {int(required)} to {TEXT_CHARS_MAX}")
    return value


def finite(field: str, value: float) -> float:
    """Return a number that is neither infinite nor NaN."""
    if not isfinite(value):
        raise MalformedUpdate(f"{field}: must be finite, got {value}")
    return value


def not_negative(field: str, value: float) -> float:
    """Return a finite number of at least zero."""
    if finite(field, value) < 0.0:
        raise MalformedUpdate(f"{field}: must not be negative, got {value}")
    return value


def share(field: str, value: float) -> float:
    """Return a number from 0 to 1."""
    if not 0.0 <= value <= 1.0:
        raise MalformedUpdate(f"{field}: must be from 0 to 1, got {value}")
    return value


def level(field: str, value: float) -> Decibel:
    """Return a level in decibels; minus infinity stands for no power at all."""
    if isnan(value) or value == inf:
        raise MalformedUpdate(f"{field}: must be a level, got {value}")
    return Decibel(value)


def count(field: str, value: int, *, least: int = 0) -> int:
    """Return an integer of at least ``least``."""
    if value < least:
        raise MalformedUpdate(f"{field}: must be at least {least}, got {value}")
    return value


def bounded(field: str, values: Sized, most: int) -> None:
    """Refuse a list longer than ``most``."""
    if len(values) > most:
        raise MalformedUpdate(f"{field}: has {len(values)} entries, at most {most}")


def member(field: str, value: int, table: Mapping[K, int]) -> K:
    """Return the key whose wire value is ``value``; an enum's zero value is in no table."""
    for key, number in table.items():
        if number == value:
            return key
    raise MalformedUpdate(f"{field}: {value} is none of {', '.join(str(key) for key in table)}")


def block_indices(field: str, values: Iterable[int]) -> tuple[int, ...]:
    """Return indices of blocks: not negative, strictly increasing, within the largest update."""
    indices = tuple(values)
    if any(b <= a for a, b in zip((-1, *indices), indices, strict=False)) or (indices and indices[-1] >= BLOCKS_MAX):
        raise MalformedUpdate(f"{field}: block indices must increase from 0 on and stay below {BLOCKS_MAX}")
    return indices
