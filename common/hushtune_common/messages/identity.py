"""Who and what is meant: names, roles, digests, and the key of an update."""

import hashlib
import re
from dataclasses import dataclass
from enum import StrEnum
from typing import NewType

RunId = NewType("RunId", str)
ClientId = NewType("ClientId", str)
_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")


class Role(StrEnum):
    """Who a process is, as its certificate says."""

    OWNER = "owner"
    COORDINATOR = "coordinator"
    AIR = "air"
    EAVESDROPPER = "eavesdropper"
    CLIENT = "client"
    OPERATOR = "operator"


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """The identity in a peer's certificate, ``hushtune://ROLE/NAME``."""

    role: Role
    name: str

    def __post_init__(self) -> None:
        """Refuse names that could not stand in a path or a URI."""
        require_name(self.name, of="caller name")

    @property
    def uri(self) -> str:
        """The subject alternative name."""
        return f"hushtune://{self.role}/{self.name}"

    @staticmethod
    def from_uri(uri: str) -> "Caller":
        """Parse a subject alternative name; ``ValueError`` when it is not one of ours."""
        scheme, _, rest = uri.partition("://")
        role, _, name = rest.partition("/")
        if scheme != "hushtune" or role not in {*Role}:  # Python 3.11: ``str in StrEnum`` raises
            raise ValueError(f"not a Hushtune identity: {uri!r}")
        return Caller(role=Role(role), name=name)


def require_name(name: str, *, of: str) -> None:
    """Raise ``ValueError`` unless ``name`` is 1 to 63 of a-z, 0-9 and '-', not starting with '-'."""
    if not _NAME.fullmatch(name):
        raise ValueError(f"{of}: use 1 to 63 of a-z, 0-9 and '-', got {name!r}")


@dataclass(frozen=True, slots=True)
class Digest:
    """A SHA-256 digest."""

    value: bytes

    def __post_init__(self) -> None:
        """Refuse other lengths."""
        if len(self.value) != 32:
            raise ValueError(f"a SHA-256 digest has 32 bytes, got {len(self.value)}")

    @property
    def hex(self) -> str:
        """Lower-case hexadecimal, 64 characters."""
        return self.value.hex()

    @property
    def short(self) -> str:
        """The first 12 hexadecimal characters, for people."""
        return self.value.hex()[:12]

    @staticmethod
    def of(data: bytes | bytearray | memoryview) -> "Digest":
        """Return the digest of ``data``."""
        return Digest(hashlib.sha256(data).digest())

    @staticmethod
    def from_hex(text: str) -> "Digest":
        """Parse 64 hexadecimal characters."""
        return Digest(bytes.fromhex(text))


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateKey:
    """The idempotency key of everything about one client's update. ``attempt`` counts from 1."""

    run: RunId
    round_id: int
    client: ClientId
    attempt: int

    def __post_init__(self) -> None:
        """Check names and ranges."""
        require_name(self.run, of="run")
        require_name(self.client, of="client")
        if self.round_id < 1 or self.attempt < 1:
            raise ValueError(f"rounds and attempts count from 1, got {self.round_id} and {self.attempt}")

    @property
    def text(self) -> str:
        """``run/round/client/attempt``: the form used in blob names and logs."""
        return f"{self.run}/{self.round_id}/{self.client}/{self.attempt}"
