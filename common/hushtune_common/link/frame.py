"""What a client hands to the air: a file of hash blocks, written front to back and read chunk by chunk.

A block is *coded* (a row of codewords) or *bare* (payload and CRC-32, whose fate the air draws). Little-endian layout::

    header      magic "HTFR", version, fidelity, part, update bytes (u64), payload and coded bytes per block, blocks, coded (u32)
    indices     u32 per block, rising: its place in the whole update
    bitmap      bit i % 8 of byte i // 8 says whether block i is coded; the last byte is filled with zeros
    checksum    CRC-32 of all that precedes
    coded rows  ``coded_bytes`` each, in order
    bare rows   ``block_bytes + 4`` each, in order, the checksum big-endian

Every size follows from the header and is compared with the size of the file before anything is allocated. Beyond the update and
its list of blocks, writer and reader hold one chunk.
"""

import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from hushtune_common.errors import MalformedUpdate
from hushtune_common.link.fidelity import Fidelity
from hushtune_common.link.randomness import SecretRng
from hushtune_common.messages import BLOCKS_MAX, Part, SecrecyDesign

Bytes = NDArray[np.uint8]
Indices = NDArray[np.uint32]
Flags = NDArray[np.bool_]

CRC_BYTES: Final = 4
PARTS: Final = (Part.PAYLOAD, Part.KEY)
"""A part's place here is its code in blobs; never reordered."""
CHUNK_SOFT_BYTES: Final = 5 * 2**19
"""Most soft values (one byte each) of a chunk of several blocks, so that what is heard of it fits one message."""

_HEADER: Final = struct.Struct("<4sBBBQIIII")
_MAGIC: Final = b"HTFR"
_VERSION: Final = 2


class BlockEncoder(Protocol):
    """Turns payloads into rows of coded bits.

    Laws: rows keep the order of the payloads; a repeated payload gives another row (its random bits are fresh).
    """

    def encode(self, payloads: Bytes, *, randomness: SecretRng, threads: int = 1) -> Bytes:
        """Return (N, coded_bytes) for payloads (N, payload_bytes)."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FrameLayout:
    """Which blocks of an update of ``update_bytes`` a frame holds, and in which form each.

    ``indices`` (count,) rise; ``coded`` (count,) says whether the block is a row of ``coded_bytes`` or bare. ``block_bytes`` is
    the payload of one block.
    """

    fidelity: Fidelity
    part: Part
    update_bytes: int
    block_bytes: int
    coded_bytes: int
    indices: Indices
    coded: Flags

    def __post_init__(self) -> None:
        """Check that sizes, indices and forms are possible together."""
        check_blocks(self.update_bytes, self.block_bytes, self.indices)
        if self.coded_bytes < 1 or self.coded.shape != self.indices.shape:
            raise ValueError(f"{self.indices.size} blocks of {self.coded_bytes} coded bytes, but {self.coded.size} forms")
        check_forms(self.fidelity, self.coded)

    @property
    def count(self) -> int:
        """Blocks in the frame."""
        return int(self.indices.size)

    @property
    def coded_count(self) -> int:
        """Coded blocks in the frame."""
        return int(np.count_nonzero(self.coded))

    @property
    def bare_row_bytes(self) -> int:
        """Payload and checksum of one block."""
        return self.block_bytes + CRC_BYTES

    @property
    def rows_offset(self) -> int:
        """Where the coded rows begin: after header, indices, bitmap and their checksum."""
        return _HEADER.size + _index_bytes(self.count)

    @property
    def size(self) -> int:
        """Bytes of the whole frame."""
        coded = self.coded_count
        return self.rows_offset + coded * self.coded_bytes + (self.count - coded) * self.bare_row_bytes

    def head(self) -> bytes:
        """Return what precedes the rows."""
        codes = _MAGIC, _VERSION, self.fidelity.code, PARTS.index(self.part)
        sizes = self.update_bytes, self.block_bytes, self.coded_bytes, self.count, self.coded_count
        return closed(_HEADER.pack(*codes, *sizes), self.indices.astype("<u4").tobytes(), bitmap(self.coded))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FrameChunk:
    """A run of consecutive blocks of a frame.

    ``start`` is the place of its first block in the frame and ``coded_start`` the number of coded blocks before it. ``rows``
    (coded, coded_bytes) and ``bare`` (others, block_bytes + 4) keep the order of ``indices`` (blocks,) and ``coded`` (blocks,).
    """

    number: int
    start: int
    coded_start: int
    layout: FrameLayout
    indices: Indices
    coded: Flags
    rows: Bytes
    bare: Bytes

    def __post_init__(self) -> None:
        """Check that the rows are those of the blocks."""
        coded = int(np.count_nonzero(self.coded))
        if self.rows.shape != (coded, self.layout.coded_bytes):
            raise ValueError(f"{coded} coded blocks, but rows of shape {self.rows.shape}")
        if self.bare.shape != (self.indices.size - coded, self.layout.bare_row_bytes):
            raise ValueError(f"{self.indices.size - coded} bare blocks, but rows of shape {self.bare.shape}")

    @property
    def count(self) -> int:
        """Blocks in the chunk."""
        return int(self.indices.size)


def chunk_blocks(design: SecrecyDesign) -> int:
    """Return how many hash blocks a chunk has: as many as keep its soft values within ``CHUNK_SOFT_BYTES``, at least one."""
    return max(1, CHUNK_SOFT_BYTES // (design.codewords * design.code_bits))


def blocks_of(update_bytes: int, *, design: SecrecyDesign, only: Sequence[int] | None = None) -> Indices:
    """Return the indices, rising, of all hash blocks of an update, or of ``only`` these.

    ``ValueError`` for an empty update, no blocks, or blocks outside the update.
    """
    total = -(-update_bytes // design.payload_bytes)
    chosen = np.arange(total) if only is None else np.unique(np.asarray(only, dtype=np.int64))
    if not chosen.size or int(chosen[0]) < 0 or int(chosen[-1]) >= total:
        raise ValueError(f"cannot send these blocks of an update of {total} blocks")
    return chosen.astype(np.uint32)


def frame_layout(
    update_bytes: int,
    *,
    part: Part,
    design: SecrecyDesign,
    fidelity: Fidelity,
    coded: Flags,
    only: Sequence[int] | None = None,
) -> FrameLayout:
    """Return the layout of a frame, of which ``size`` tells how large the file will be; errors as for ``frame_parts``."""
    return FrameLayout(
        fidelity=fidelity,
        part=part,
        update_bytes=update_bytes,
        block_bytes=design.payload_bytes,
        coded_bytes=design.coded_bytes,
        indices=blocks_of(update_bytes, design=design, only=only),
        coded=np.asarray(coded, dtype=np.bool_),
    )


def frame_parts(
    update: bytes,
    *,
    part: Part,
    design: SecrecyDesign,
    code: BlockEncoder,
    fidelity: Fidelity,
    coded: Flags,
    only: Sequence[int] | None = None,
    randomness: SecretRng,
    threads: int = 1,
) -> Iterator[bytes]:
    """Return the frame of an update, or of ``only`` some of its blocks, as pieces to be written one after the other.

    ``coded`` has one flag per block sent. Coded rows get fresh random bits from ``randomness`` while the pieces are drawn, so a
    second frame of the same update differs from the first. The last block is padded with zeros. ``ValueError``, before the first
    piece, for blocks outside the update or flags that do not fit the blocks or the fidelity.
    """
    layout = frame_layout(len(update), part=part, design=design, fidelity=fidelity, coded=coded, only=only)
    step = chunk_blocks(design)

    def pieces() -> Iterator[bytes]:
        yield layout.head()
        for payloads in _payloads(update, layout.indices[layout.coded], size=layout.block_bytes, step=step):
            yield code.encode(payloads, randomness=randomness, threads=threads).tobytes()
        for payloads in _payloads(update, layout.indices[~layout.coded], size=layout.block_bytes, step=step):
            yield np.concatenate((payloads, checksums(payloads)), axis=1).tobytes()

    return pieces()


class FrameReader:
    """Reads a frame chunk by chunk, in any order. Nothing but layout and chunk is ever read."""

    def __init__(self, read: Callable[[int, int], bytes], size: int) -> None:
        """Read the layout through ``read(offset, size)`` from a file of ``size`` bytes.

        Raises:
            MalformedUpdate: this is no frame, or not the whole of it.
        """
        self._read = read
        self.layout: Final = _read_layout(self._exactly, size)

    def require_design(self, design: SecrecyDesign) -> None:
        """Raise ``MalformedUpdate`` unless the blocks have the sizes of ``design``."""
        found = self.layout.block_bytes, self.layout.coded_bytes
        if found != (design.payload_bytes, design.coded_bytes):
            raise MalformedUpdate(
                f"a frame with blocks of {found[0]} bytes, {found[1]} when coded, is not of a design with "
                f"{design.payload_bytes} and {design.coded_bytes}"
            )

    def chunk_count(self, design: SecrecyDesign) -> int:
        """Return into how many chunks the frame falls."""
        return -(-self.layout.count // chunk_blocks(design))

    def chunk(self, number: int, *, design: SecrecyDesign) -> FrameChunk:
        """Return the chunk ``number``, from 0 on.

        Raises:
            MalformedUpdate: the frame is not of this design, or the file has become shorter.
            IndexError: there is no such chunk.
        """
        self.require_design(design)
        if not 0 <= number < self.chunk_count(design):
            raise IndexError(f"a frame of {self.chunk_count(design)} chunks has no chunk {number}")
        layout, step = self.layout, chunk_blocks(design)
        start = number * step
        coded = layout.coded[start : start + step]
        coded_start = int(np.count_nonzero(layout.coded[:start]))
        bare_offset = layout.rows_offset + layout.coded_count * layout.coded_bytes
        count = int(np.count_nonzero(coded))
        return FrameChunk(
            number=number,
            start=start,
            coded_start=coded_start,
            layout=layout,
            indices=layout.indices[start : start + step],
            coded=coded,
            rows=self._rows(layout.rows_offset, first=coded_start, count=count, width=layout.coded_bytes),
            bare=self._rows(bare_offset, first=start - coded_start, count=coded.size - count, width=layout.bare_row_bytes),
        )

    def _rows(self, offset: int, *, first: int, count: int, width: int) -> Bytes:
        if not count:
            return np.empty((0, width), dtype=np.uint8)
        return np.frombuffer(self._exactly(offset + first * width, count * width), dtype=np.uint8).reshape(count, width)

    def _exactly(self, offset: int, size: int) -> bytes:
        data = self._read(offset, size)
        if len(data) != size:
            raise MalformedUpdate(f"a frame ends within the {size} bytes at {offset}")
        return data


def checksums(payloads: Bytes) -> Bytes:
    """Return the CRC-32 of each row (that of zlib and IEEE 802.3), big-endian, as (rows, 4)."""
    rows = np.ascontiguousarray(payloads) if payloads.strides[-1:] != (1,) else payloads
    sums = np.fromiter((zlib.crc32(row.data) for row in rows), dtype=np.uint32, count=len(rows))
    return sums.astype(">u4").view(np.uint8).reshape(-1, CRC_BYTES)


def closed(*pieces: bytes) -> bytes:
    """Return the pieces joined and followed by their CRC-32, little-endian."""
    joined = b"".join(pieces)
    return joined + zlib.crc32(joined).to_bytes(CRC_BYTES, "little")


def opened(joined: bytes | memoryview) -> memoryview:
    """Return what ``closed`` was given, joined; ``ValueError`` when the checksum says otherwise."""
    view = memoryview(joined)
    content, checksum = view[:-CRC_BYTES], view[-CRC_BYTES:]
    if zlib.crc32(content) != int.from_bytes(checksum, "little"):
        raise ValueError("the checksum of header and lists does not hold")
    return content


def bitmap(flags: Flags) -> bytes:
    """Return flags as bits, the first the least significant of the first byte."""
    return np.packbits(flags, bitorder="little").tobytes()


def flags_of(packed: bytes | memoryview, *, count: int) -> Flags:
    """Return the ``count`` flags of a bitmap; ``ValueError`` when bits beyond them are set."""
    flags = np.unpackbits(np.frombuffer(packed, dtype=np.uint8), bitorder="little").astype(np.bool_)
    if flags[count:].any():
        raise ValueError(f"a bitmap of {count} flags has more bits set")
    return flags[:count]


def check_blocks(update_bytes: int, block_bytes: int, indices: Indices) -> None:
    """Raise ``ValueError`` unless these are blocks of an update of this size, rising, at least one."""
    if update_bytes < 1 or block_bytes < 1:
        raise ValueError(f"impossible update of {update_bytes} bytes in blocks of {block_bytes}")
    total = -(-update_bytes // block_bytes)
    if total > BLOCKS_MAX:
        raise ValueError(f"{total} blocks of {block_bytes} bytes, at most {BLOCKS_MAX} are allowed")
    if not indices.size or int(indices[-1]) >= total or (indices[1:] <= indices[:-1]).any():
        raise ValueError(f"block indices must rise and stay below {total}, and there must be some")


def check_forms(fidelity: Fidelity, coded: Flags) -> None:
    """Raise ``ValueError`` when blocks travel in a form that contradicts the label of the result."""
    contradicts = {Fidelity.BIT_EXACT: not coded.all(), Fidelity.ABSTRACT: bool(coded.any()), Fidelity.HYBRID: False}
    if contradicts[fidelity]:
        raise ValueError(f"{int(np.count_nonzero(coded))} of {coded.size} blocks are coded: that is not {fidelity}")


def _payloads(update: bytes, indices: Indices, *, size: int, step: int) -> Iterator[Bytes]:
    """Yield the payloads of blocks, ``step`` at a time; the last of the update is filled up with zeros."""
    whole, tail = divmod(len(update), size)
    data = np.frombuffer(update, dtype=np.uint8)
    table = data[: whole * size].reshape(whole, size)
    for at in range(0, indices.size, step):
        chosen = indices[at : at + step]
        rows = np.zeros((chosen.size, size), dtype=np.uint8)
        full = int(np.count_nonzero(chosen < whole))
        rows[:full] = table[chosen[:full]]
        if full < chosen.size:
            rows[full, :tail] = data[whole * size :]
        yield rows


def _index_bytes(count: int) -> int:
    """Return the size of indices, bitmap and checksum."""
    return 4 * count + -(-count // 8) + CRC_BYTES


def _read_layout(exactly: Callable[[int, int], bytes], size: int) -> FrameLayout:
    if size < _HEADER.size:
        raise MalformedUpdate(f"a frame has at least {_HEADER.size} bytes, got {size}")
    magic, version, code, part, update_bytes, block_bytes, coded_bytes, count, coded_count = _HEADER.unpack(
        exactly(0, _HEADER.size)
    )
    if (magic, version) != (_MAGIC, _VERSION) or part >= len(PARTS) or count > BLOCKS_MAX:
        raise MalformedUpdate(f"not a frame of version {_VERSION}")
    rows = coded_count * coded_bytes + (count - coded_count) * (block_bytes + CRC_BYTES)
    if size != _HEADER.size + _index_bytes(count) + rows:
        raise MalformedUpdate(f"{count} blocks announced, {coded_count} of them coded, but the frame has {size} bytes")
    head = exactly(0, _HEADER.size + _index_bytes(count))
    try:
        listed = opened(head)[_HEADER.size :]
        layout = FrameLayout(
            fidelity=Fidelity.from_code(code),
            part=PARTS[part],
            update_bytes=update_bytes,
            block_bytes=block_bytes,
            coded_bytes=coded_bytes,
            indices=np.frombuffer(listed, dtype="<u4", count=count).astype(np.uint32),
            coded=flags_of(listed[4 * count :], count=count),
        )
    except ValueError as error:
        raise MalformedUpdate(f"frame: {error}") from error
    if layout.coded_count != coded_count:
        raise MalformedUpdate(f"{coded_count} coded blocks announced, {layout.coded_count} marked")
    return layout
