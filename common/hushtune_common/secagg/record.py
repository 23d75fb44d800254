"""How does a role's state survive a restart? As bytes that give an equal state; secrets show only there."""

import hmac
from typing import Any, Final, TypeVar, cast

import msgspec

from hushtune_common.errors import MalformedUpdate
from hushtune_common.secagg.shamir import SECRET_BYTES

MAGIC: Final = b"HTSR\x01"
State = TypeVar("State")


class Secret:
    """32 bytes that nobody else may know. Masked in ``repr``; not a dataclass, so that no log field can unfold it."""

    __slots__ = ("_value",)

    def __init__(self, value: bytes) -> None:
        """Take the bytes; ``ValueError`` for another length."""
        if len(value) != SECRET_BYTES:
            raise ValueError(f"a secret has {SECRET_BYTES} bytes, got {len(value)}")
        self._value = value

    @property
    def material(self) -> bytes:
        """The bytes themselves, for key derivation and sharing alone."""
        return self._value

    def __eq__(self, other: object) -> bool:
        """Compare in constant time."""
        return isinstance(other, Secret) and hmac.compare_digest(self._value, other.material)

    def __hash__(self) -> int:
        """Refuse: a secret is no key of a table."""
        raise TypeError("secrets are not hashed")

    def __repr__(self) -> str:
        """Return a mask."""
        return "<Secret, masked>"


def to_bytes(state: object) -> bytes:
    """Return a role's state as bytes. A member's hold its secrets: the file they go to is for its user's eyes only."""
    return MAGIC + msgspec.msgpack.encode(state, enc_hook=_bare)


def from_bytes(data: bytes, kind: type[State]) -> State:
    """Undo `to_bytes`; ``MalformedUpdate`` for anything else."""
    if not data.startswith(MAGIC):
        raise MalformedUpdate("not a state of secure aggregation")
    try:
        return msgspec.msgpack.decode(data[len(MAGIC) :], type=kind, dec_hook=_dressed)
    except (msgspec.DecodeError, ValueError) as error:
        raise MalformedUpdate("not a state of secure aggregation") from error


def _bare(value: object) -> object:
    if isinstance(value, Secret):
        return value.material
    # msgspec asks a hook to say so of what it does not know, and names the field.
    raise NotImplementedError(f"{type(value).__name__} has no place in a state")


def _dressed(kind: type[Any], value: object) -> object:
    if kind is Secret:
        return Secret(cast(bytes, value))
    # As in `_bare`.
    raise NotImplementedError(f"{kind.__name__} has no place in a state")
