"""What one listener heard of one chunk of a frame: soft values of the coded blocks, and those bare blocks whose fate let them by.

Little-endian layout of the blob::

    header      magic "HTRX", version, listener, fidelity, part, gain (its logarithm to base 2, u8), update bytes (u64), then u32:
                payload bytes per block, chunk, blocks, coded ones, bare ones heard, codewords per block, coded bits per codeword
    indices     u32 per block sent, rising: its place in the whole update
    snr_db      f32 per block sent
    bitmaps     coded, then heard: bit i % 8 of byte i // 8 is block i's; the last byte of each is filled with zeros
    checksum    CRC-32 of all that precedes
    bare rows   payload and CRC-32 (big-endian) of the bare blocks heard, in order
    soft        i8 per coded bit of the coded blocks, in order: log-likelihood ratios times ``LLR_SCALE`` and the gain

Every size follows from the header and is compared with the blob before anything is allocated; rows are views into the blob.
"""

import struct
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hushtune_common.errors import MalformedUpdate
from hushtune_common.link.fidelity import Fidelity
from hushtune_common.link.frame import (
    CRC_BYTES,
    PARTS,
    Bytes,
    Flags,
    FrameChunk,
    Indices,
    bitmap,
    check_blocks,
    check_forms,
    checksums,
    closed,
    flags_of,
    opened,
)
from hushtune_common.messages import BLOCKS_MAX, Listener, Part, SecrecyDesign

Decibels = NDArray[np.float32]
SoftBits = NDArray[np.int8]

_HEADER: Final = struct.Struct("<4sBBBBBQIIIIIII")
_MAGIC: Final = b"HTRX"
_VERSION: Final = 3
_GAIN_LOG2_MAX: Final = 63
_LISTENERS: Final = (Listener.MAIN, Listener.TAP)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Reception:
    """One chunk as one listener heard it.

    ``indices``, ``coded``, ``heard`` and ``snr_db`` have one entry per block sent, (count,). Of a coded block the listener has
    ``soft`` values, (coded, codewords, code_bits), positive where 0 is likelier: it always counts as heard. Whoever reads them as
    log-likelihood ratios divides by ``LLR_SCALE * 2**gain_log2``. Of the bare blocks, ``bare`` (heard bare, block_bytes + 4)
    holds those heard. ``snr_db`` is the listener's own mean SNR over the block's coherence blocks. ``chunk`` is the chunk's
    number in its frame.
    """

    listener: Listener
    fidelity: Fidelity
    part: Part
    update_bytes: int
    block_bytes: int
    chunk: int
    indices: Indices
    coded: Flags
    heard: Flags
    snr_db: Decibels
    gain_log2: int
    soft: SoftBits
    bare: Bytes

    def __post_init__(self) -> None:
        """Check that all parts belong together."""
        check_blocks(self.update_bytes, self.block_bytes, self.indices)
        if not self.indices.shape == self.coded.shape == self.heard.shape == self.snr_db.shape:
            raise ValueError("indices, forms, fates and SNRs differ in number")
        check_forms(self.fidelity, self.coded)
        if not self.heard[self.coded].all():
            raise ValueError("a coded block is always heard, in soft values")
        coded = int(np.count_nonzero(self.coded))
        bare = int(np.count_nonzero(self.heard)) - coded
        if self.soft.ndim != 3 or len(self.soft) != coded or not self.soft.shape[1] or not self.soft.shape[2]:
            raise ValueError(f"{coded} coded blocks, but soft values of shape {self.soft.shape}")
        if self.bare.shape != (bare, self.block_bytes + CRC_BYTES):
            raise ValueError(f"{bare} bare blocks heard, but rows of shape {self.bare.shape}")
        if self.chunk < 0 or np.isnan(self.snr_db).any():
            raise ValueError("a chunk counts from 0, and every SNR is a number")
        if not 0 <= self.gain_log2 <= _GAIN_LOG2_MAX:
            raise ValueError(f"a receiver's gain is 2 to the power of 0 to {_GAIN_LOG2_MAX}, not {self.gain_log2}")

    @property
    def count(self) -> int:
        """Blocks sent."""
        return int(self.indices.size)

    @property
    def coded_indices(self) -> Indices:
        """The blocks of ``soft``, in order."""
        return self.indices[self.coded]

    @property
    def bare_indices(self) -> Indices:
        """The blocks of ``bare``, in order."""
        return self.indices[self.heard & ~self.coded]

    def require_design(self, design: SecrecyDesign) -> None:
        """Raise ``MalformedUpdate`` unless blocks and soft values have the sizes of ``design``."""
        found = self.block_bytes, *self.soft.shape[1:]
        if found != (design.payload_bytes, design.codewords, design.code_bits):
            raise MalformedUpdate(
                f"blocks of {found[0]} bytes in {found[1]} words of {found[2]} bits are not of a design with "
                f"{design.payload_bytes} bytes in {design.codewords} of {design.code_bits}"
            )

    @staticmethod
    def of(
        chunk: FrameChunk, *, listener: Listener, heard: Flags, snr_db: Decibels, gain_log2: int, soft: SoftBits
    ) -> "Reception":
        """Return what ``listener`` holds of ``chunk``; ``heard`` (count,) has its say on bare blocks and is true for coded ones.

        ``soft`` (coded, codewords, code_bits), made with a gain of 2 to the ``gain_log2``, has its last two sizes also where no
        block is coded. ``ValueError`` when the parts do not fit.
        """
        if heard.shape != chunk.coded.shape:
            raise ValueError(f"{heard.size} fates for {chunk.count} blocks")
        return Reception(
            listener=listener,
            fidelity=chunk.layout.fidelity,
            part=chunk.layout.part,
            update_bytes=chunk.layout.update_bytes,
            block_bytes=chunk.layout.block_bytes,
            chunk=chunk.number,
            indices=chunk.indices,
            coded=chunk.coded,
            heard=heard,
            snr_db=snr_db,
            gain_log2=gain_log2,
            soft=soft,
            bare=chunk.bare[heard[~chunk.coded]],
        )

    def to_bytes(self) -> bytes:
        """Return the blob."""
        codes = _MAGIC, _VERSION, _LISTENERS.index(self.listener), self.fidelity.code, PARTS.index(self.part), self.gain_log2
        counts = self.block_bytes, self.chunk, self.count, len(self.soft), len(self.bare), *self.soft.shape[1:]
        head = closed(
            _HEADER.pack(*codes, self.update_bytes, *counts),
            self.indices.astype("<u4").tobytes(),
            self.snr_db.astype("<f4").tobytes(),
            bitmap(self.coded),
            bitmap(self.heard),
        )
        return b"".join((head, np.ascontiguousarray(self.bare).data, np.ascontiguousarray(self.soft).data))

    @staticmethod
    def from_bytes(blob: bytes) -> "Reception":
        """Parse a blob without copying its rows; ``MalformedUpdate`` on anything else."""
        if len(blob) < _HEADER.size:
            raise MalformedUpdate(f"a reception has at least {_HEADER.size} bytes, got {len(blob)}")
        header = _Header(*_HEADER.unpack_from(blob))
        if (header.magic, header.version) != (_MAGIC, _VERSION):
            raise MalformedUpdate(f"not a reception of version {_VERSION}")
        if header.blocks > BLOCKS_MAX or header.size != len(blob):
            raise MalformedUpdate(f"{header.blocks} blocks announced, {header.coded} of them coded, but {len(blob)} bytes came")
        try:
            return header.parse(blob)
        except ValueError as error:
            raise MalformedUpdate(f"reception: {error}") from error


class _Header(NamedTuple):
    """The header's fields, in order."""

    magic: bytes
    version: int
    listener: int
    fidelity: int
    part: int
    gain_log2: int
    update_bytes: int
    block_bytes: int
    chunk: int
    blocks: int
    coded: int
    bare: int
    codewords: int
    code_bits: int

    @property
    def flag_bytes(self) -> int:
        """Bytes of one bitmap."""
        return -(-self.blocks // 8)

    @property
    def head_bytes(self) -> int:
        """Bytes up to the first row."""
        return _HEADER.size + 8 * self.blocks + 2 * self.flag_bytes + CRC_BYTES

    @property
    def bare_bytes(self) -> int:
        """Bytes of the bare rows."""
        return self.bare * (self.block_bytes + CRC_BYTES)

    @property
    def size(self) -> int:
        """Bytes of the whole blob."""
        return self.head_bytes + self.bare_bytes + self.coded * self.codewords * self.code_bits

    def parse(self, blob: bytes) -> Reception:
        """Return the reception in a blob of the right size; ``ValueError`` when its parts contradict each other."""
        if self.listener >= len(_LISTENERS) or self.part >= len(PARTS):
            raise ValueError("unknown listener or part")
        lists = opened(memoryview(blob)[: self.head_bytes])[_HEADER.size :]
        flags = lists[8 * self.blocks :]
        bare_end = self.head_bytes + self.bare_bytes
        bare = np.frombuffer(blob, dtype=np.uint8, count=self.bare_bytes, offset=self.head_bytes)
        soft = np.frombuffer(blob, dtype=np.int8, count=len(blob) - bare_end, offset=bare_end)
        return Reception(
            listener=_LISTENERS[self.listener],
            fidelity=Fidelity.from_code(self.fidelity),
            part=PARTS[self.part],
            update_bytes=self.update_bytes,
            block_bytes=self.block_bytes,
            chunk=self.chunk,
            indices=np.frombuffer(lists, dtype="<u4", count=self.blocks).astype(np.uint32),
            coded=flags_of(flags[: self.flag_bytes], count=self.blocks),
            heard=flags_of(flags[self.flag_bytes :], count=self.blocks),
            snr_db=np.frombuffer(lists, dtype="<f4", count=self.blocks, offset=4 * self.blocks).astype(np.float32),
            gain_log2=self.gain_log2,
            soft=soft.reshape(self.coded, self.codewords, self.code_bits),
            bare=bare.reshape(self.bare, self.block_bytes + CRC_BYTES),
        )


def bare_payloads(reception: Reception) -> tuple[Indices, Bytes]:
    """Return the bare blocks whose checksum holds: their indices (n,) and payloads (n, block_bytes)."""
    payloads = reception.bare[:, : reception.block_bytes]
    sound = (reception.bare[:, reception.block_bytes :] == checksums(payloads)).all(axis=1)
    return reception.bare_indices[sound], payloads[sound]
