"""How is a bundle laid out in a file? A short header, the statement, what stands behind it, the payload; nothing else.

::

    magic "HTBN"  4 bytes | version 1 byte | length of statement 4 | length of endorsement 4     little-endian
    statement     canonical JSON, at most 64 KiB
    endorsement   canonical JSON, at most 32 KiB
    payload       as many bytes as the statement says, to the end of the file

Reading the head allocates no more than its bounds, whatever the file says; a payload passes in pieces and is never in memory as a
whole.
"""

import hashlib
import os
import struct
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from hushtune_common.errors import ConfigError, DigestMismatch, MalformedUpdate
from hushtune_common.messages import Digest
from hushtune_common.release.identity import Endorsement, Signatory
from hushtune_common.release.statement import STATEMENT_MAX, Payload, Statement, canonical, parse_canonical, parse_statement

MAGIC: Final = b"HTBN"
VERSION: Final = 1
ENDORSEMENT_MAX: Final = 32_768
"""Most bytes of signatures and certificate."""
PIECE_BYTES: Final = 1 << 20
_HEADER: Final = struct.Struct("<4sBII")
_PARTIAL: Final = ".partial"

Progress = Callable[[int, int], None]
"""Told after each piece: bytes done, bytes in all."""


def silent(done: int, total: int) -> None:
    """Tell nobody."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Container:
    """A bundle whose head was read. Whether it may be believed is for `hushtune_common.release.trust` to say."""

    path: Path
    signed: bytes
    """The statement's bytes, as they were signed."""
    statement: Statement
    endorsement: Endorsement
    payload_at: int

    @property
    def digest(self) -> Digest:
        """Digest of the statement: what a return names its release by."""
        return Digest.of(self.signed)

    def pieces(self, *, progress: Progress = silent) -> Iterator[bytes]:
        """Yield the payload; after the last piece raises `DigestMismatch` if it was not what the statement says.

        So nothing may be done with a piece that could not be undone. ``ConfigError`` when the file cannot be read.
        """
        payload = self.statement.payload
        with _opened(self.path) as file:
            file.seek(self.payload_at)
            yield from _checked(_read_on(file.read, payload.size), payload, of="payload", progress=progress)

    def payload(self) -> bytes:
        """Return a payload as a whole, checked; for a return, whose size the caller has bounded."""
        return b"".join(self.pieces())

    def require_whole(self, *, progress: Progress = silent) -> None:
        """Read the payload once; `DigestMismatch` unless it is what the statement says."""
        for _ in self.pieces(progress=progress):
            pass

    def head(self) -> bytes:
        """Return everything before the payload: what a signer keeps of what was handed out."""
        return _head(self.signed, canonical(self.endorsement))


def read_container(path: Path) -> Container:
    """Read and check the head of a bundle; `MalformedUpdate` names what is wrong with it, ``ConfigError`` a file not readable."""
    with _opened(path) as file:
        container = _parsed(path, file.read)
        size = os.fstat(file.fileno()).st_size
    expected = container.payload_at + container.statement.payload.size
    if size != expected:
        raise MalformedUpdate(f"payload.size: the file has {size} bytes, its statement makes it {expected}")
    return container


def parse_head(data: bytes, *, path: Path) -> Container:
    """Read what `Container.head` returned; the payload is elsewhere. `MalformedUpdate` for anything else."""
    taken = 0

    def read(size: int) -> bytes:
        nonlocal taken
        piece = data[taken : taken + size]
        taken += len(piece)
        return piece

    container = _parsed(path, read)
    if taken != len(data):
        raise MalformedUpdate(f"head: {len(data)} bytes, {taken} belong to it")
    return container


def signed_container(statement: Statement, *, by: Signatory, path: Path) -> Container:
    """Return ``statement`` signed, for a file that is to be written at ``path``.

    ``ConfigError`` names the field that no reader would accept, such as the name of a run.
    """
    signed, endorsement = canonical(statement), by.endorse(statement)
    try:
        parse_statement(signed)
    except MalformedUpdate as error:
        field, _, problem = str(error).partition(": ")
        raise ConfigError(field, problem) from error
    size = len(_head(signed, canonical(endorsement)))
    return Container(path=path, signed=signed, statement=statement, endorsement=endorsement, payload_at=size)


def write_container(container: Container, *, payload: Iterable[bytes], progress: Progress = silent) -> None:
    """Write a signed statement and its ``payload``; the file appears when it is complete and durable, for its user only.

    `DigestMismatch` when the payload is not what the statement says: it changed meanwhile, and nothing is left behind.
    ``ConfigError`` when nothing can be written there.
    """
    path = container.path
    partial = path.with_name(path.name + _PARTIAL)
    try:
        with writable(path):
            partial.unlink(missing_ok=True)
            descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(container.head())
            for piece in _checked(payload, container.statement.payload, of="payload", progress=progress):
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
        with writable(path):
            partial.replace(path)
    except BaseException:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        raise


@contextmanager
def writable(path: Path) -> Generator[None]:
    """Make the folder of ``path``, and name the path in a ``ConfigError`` when it is no place to write to."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield
    except (FileNotFoundError, FileExistsError, NotADirectoryError, IsADirectoryError, PermissionError) as error:
        raise ConfigError(str(path), f"cannot be written ({error.strerror})") from error


def payload_of(path: Path, *, progress: Progress = silent) -> Payload:
    """Return digest and size of a file that is to become a payload; reads it once."""
    digest, done, total = hashlib.sha256(), 0, path.stat().st_size
    for piece in file_pieces(path):
        digest.update(piece)
        done += len(piece)
        progress(done, total)
    return Payload(digest=digest.hexdigest(), size=done)


def file_pieces(path: Path) -> Iterator[bytes]:
    """Yield a file piece by piece."""
    with path.open("rb") as file:
        while piece := file.read(PIECE_BYTES):
            yield piece


def _head(signed: bytes, endorsement: bytes) -> bytes:
    return _HEADER.pack(MAGIC, VERSION, len(signed), len(endorsement)) + signed + endorsement


def _parsed(path: Path, read: Callable[[int], bytes]) -> Container:
    header = read(_HEADER.size)
    if len(header) < _HEADER.size or header[: len(MAGIC)] != MAGIC:
        raise MalformedUpdate(f"magic: {path.name} is not a signed bundle")
    _, version, signed_bytes, endorsement_bytes = _HEADER.unpack(header)
    if version != VERSION:
        raise MalformedUpdate(f"version: {version}, this program reads {VERSION}")
    if signed_bytes > STATEMENT_MAX or endorsement_bytes > ENDORSEMENT_MAX:
        raise MalformedUpdate(f"header: announces {signed_bytes} and {endorsement_bytes} bytes, more than any bundle has")
    signed, endorsement = read(signed_bytes), read(endorsement_bytes)
    if len(signed) + len(endorsement) != signed_bytes + endorsement_bytes:
        raise MalformedUpdate("header: announces more bytes than there are")
    return Container(
        path=path,
        signed=signed,
        statement=parse_statement(signed),
        endorsement=parse_canonical(endorsement, Endorsement, of="endorsement"),
        payload_at=_HEADER.size + signed_bytes + endorsement_bytes,
    )


def _checked(pieces: Iterable[bytes], payload: Payload, *, of: str, progress: Progress) -> Iterator[bytes]:
    """Pass on ``pieces``, and raise `DigestMismatch` where they are not ``payload``; never more bytes than it has."""
    digest, done = hashlib.sha256(), 0
    for piece in pieces:
        digest.update(piece)
        done += len(piece)
        if done > payload.size:
            break
        progress(done, payload.size)
        yield piece
    if (digest.hexdigest(), done) != (payload.digest, payload.size):
        raise DigestMismatch(f"{of}.digest: the statement says {payload.digest[:12]}, the bytes are {digest.hexdigest()[:12]}")


def _read_on(read: Callable[[int], bytes], size: int) -> Iterator[bytes]:
    while size > 0 and (piece := read(min(size, PIECE_BYTES))):
        size -= len(piece)
        yield piece


def _opened(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except OSError as error:
        raise ConfigError(str(path), f"cannot be read ({error.strerror})") from error
