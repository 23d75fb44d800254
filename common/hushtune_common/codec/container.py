"""The container of an encoded adapter: a versioned header, one section per frame, a digest over everything.

Little endian: magic ``HTAD``, u16 version, u8 length and ASCII codec id, 32 bytes digest of the shipped adapter, u32 section
count, u8 form, u64 length per section; then the sections; then the SHA-256 of all of it. The form is the codec's to read; of
blockwise integers it is their width.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from hushtune_common.errors import MalformedUpdate
from hushtune_common.messages import Digest

MAGIC: Final = b"HTAD"
VERSION: Final = 2
_TRAILER: Final = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Label:
    """What every container of one codec says about itself; a reader knows all of it beforehand and accepts nothing else."""

    codec: str
    shipped: Digest
    sections: int

    def to_bytes(self) -> bytes:
        """Return the fixed part of the header."""
        name = self.codec.encode("ascii")
        return struct.pack(f"<4sHB{len(name)}s32sI", MAGIC, VERSION, len(name), name, self.shipped.value, self.sections)

    @property
    def overhead(self) -> int:
        """Bytes of a container beside its sections."""
        return len(self.to_bytes()) + 1 + 8 * self.sections + _TRAILER


@dataclass(frozen=True, slots=True, kw_only=True)
class Contents:
    """What differs from one container of a codec to the next: the form of its sections, a byte, and the sections."""

    form: int
    sections: Sequence[bytes | memoryview]


def write(label: Label, contents: Contents) -> bytes:
    """Return the container of ``contents``."""
    sections = contents.sections
    varying = struct.pack(f"<B{len(sections)}Q", contents.form, *(len(s) for s in sections))
    body = b"".join([label.to_bytes(), varying, *sections])
    return body + Digest.of(body).value


def read(blob: bytes, *, label: Label, bytes_max: int) -> Contents:
    """Return the contents of a container with exactly this ``label``; ``MalformedUpdate`` for anything else. Copies nothing.

    Which forms are welcome is for the caller to say.
    """
    if not label.overhead <= len(blob) <= bytes_max:
        raise MalformedUpdate(f"{len(blob)} bytes, expected {label.overhead} to {bytes_max}")
    view = memoryview(blob)
    if Digest.of(view[:-_TRAILER]).value != blob[-_TRAILER:]:
        raise MalformedUpdate("the digest at the end does not match")
    head = label.to_bytes()
    if not blob.startswith(head):
        raise MalformedUpdate(f"not a {label.codec} container, version {VERSION}, made against {label.shipped.short}")
    form, *lengths = struct.unpack_from(f"<B{label.sections}Q", view, len(head))
    if sum(lengths) != len(blob) - label.overhead:
        raise MalformedUpdate("the sections do not fill the container")
    sections: list[memoryview] = []
    start = len(head) + 1 + 8 * label.sections
    for length in lengths:
        sections.append(view[start : start + length])
        start += length
    return Contents(form=form, sections=sections)
