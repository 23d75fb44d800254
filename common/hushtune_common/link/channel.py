"""What travels: a frame of hash blocks on its way to the air, a listener's reception of it, and the update put together again.

Layout of both blobs: a fixed little-endian header, block indices (u32), then for a reception the heard bitmap and one SNR
per block (f32, dB), then blocks of ``block_bytes`` payload and a big-endian CRC-32. Indices count blocks of the whole update, so
retransmissions carry the same numbers. Sizes follow from the header and are compared with the blob before anything is allocated.
"""

import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from hushtune_common.errors import MalformedUpdate
from hushtune_common.link.fidelity import Fidelity
from hushtune_common.messages import Listener, SecrecyDesign

Bytes = NDArray[np.uint8]
Indices = NDArray[np.uint32]
Flags = NDArray[np.bool_]
Decibels = NDArray[np.float32]

_FRAME: Final = struct.Struct("<4sBBQII")  # magic, version, fidelity, update bytes, block bytes, blocks
_RECEPTION: Final = struct.Struct("<4sBBBQIII")  # magic, version, fidelity, listener, update bytes, block bytes, blocks, heard
_FRAME_MAGIC: Final = b"HTFR"
_RECEPTION_MAGIC: Final = b"HTRX"
_VERSION: Final = 1
_CRC_BYTES: Final = 4
BLOCKS_MAX: Final = 2**20
"""Most hash blocks of one update: bounds receipts and bookkeeping whatever a header announces."""
_LISTENERS: Final = (Listener.MAIN, Listener.TAP)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Frame:
    """Hash blocks to be sent: ``blocks`` is (blocks, block_bytes + 4) with the checksum last; ``indices`` rise."""

    fidelity: Fidelity
    update_bytes: int
    block_bytes: int
    indices: Indices
    blocks: Bytes

    def __post_init__(self) -> None:
        """Check that indices and blocks belong together."""
        _check_layout(self.update_bytes, self.block_bytes, self.indices)
        if not self.indices.size or self.blocks.shape != (self.indices.size, self.block_bytes + _CRC_BYTES):
            raise ValueError(f"{self.indices.size} indices, but blocks of shape {self.blocks.shape}")

    @property
    def count(self) -> int:
        """Blocks in this frame."""
        return int(self.indices.size)

    def to_bytes(self) -> bytes:
        """Return the blob."""
        header = _FRAME.pack(_FRAME_MAGIC, _VERSION, self.fidelity.code, self.update_bytes, self.block_bytes, self.count)
        return b"".join((header, self.indices.astype("<u4").tobytes(), self.blocks.tobytes()))

    @staticmethod
    def from_bytes(blob: bytes) -> "Frame":
        """Parse a blob without copying its blocks; ``MalformedUpdate`` on anything else."""
        if len(blob) < _FRAME.size:
            raise MalformedUpdate(f"a frame has at least {_FRAME.size} bytes, got {len(blob)}")
        magic, version, code, update_bytes, block_bytes, count = _FRAME.unpack_from(blob)
        if (magic, version) != (_FRAME_MAGIC, _VERSION):
            raise MalformedUpdate(f"not a frame of version {_VERSION}")
        row = block_bytes + _CRC_BYTES
        if len(blob) != _FRAME.size + count * (4 + row):
            raise MalformedUpdate(f"{count} blocks of {block_bytes} bytes announced, but the frame has {len(blob)} bytes")
        indices = np.frombuffer(blob, dtype="<u4", count=count, offset=_FRAME.size).astype(np.uint32)
        blocks = np.frombuffer(blob, dtype=np.uint8, offset=_FRAME.size + 4 * count).reshape(count, row)
        try:
            return Frame(
                fidelity=Fidelity.from_code(code),
                update_bytes=update_bytes,
                block_bytes=block_bytes,
                indices=indices,
                blocks=blocks,
            )
        except ValueError as error:
            raise MalformedUpdate(f"frame: {error}") from error


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Reception:
    """What one listener heard of one frame.

    ``indices``, ``heard`` and ``snr_db`` have one entry per block sent; ``blocks`` holds only the heard ones, in order.
    ``snr_db`` is the listener's own mean SNR over the block's coherence blocks.
    """

    listener: Listener
    fidelity: Fidelity
    update_bytes: int
    block_bytes: int
    indices: Indices
    heard: Flags
    snr_db: Decibels
    blocks: Bytes

    def __post_init__(self) -> None:
        """Check that all parts belong together."""
        _check_layout(self.update_bytes, self.block_bytes, self.indices)
        if not self.indices.size or not self.indices.shape == self.heard.shape == self.snr_db.shape:
            raise ValueError("indices, heard flags and SNRs differ in number")
        if self.blocks.shape != (int(self.heard.sum()), self.block_bytes + _CRC_BYTES):
            raise ValueError(f"{int(self.heard.sum())} blocks heard, but blocks of shape {self.blocks.shape}")
        if np.isnan(self.snr_db).any():
            raise ValueError("an SNR is not a number")

    @staticmethod
    def of(frame: Frame, *, listener: Listener, heard: Flags, snr_db: Decibels) -> "Reception":
        """Return what ``listener`` holds after hearing the flagged blocks of ``frame``."""
        return Reception(
            listener=listener,
            fidelity=frame.fidelity,
            update_bytes=frame.update_bytes,
            block_bytes=frame.block_bytes,
            indices=frame.indices,
            heard=heard,
            snr_db=snr_db,
            blocks=frame.blocks[heard],
        )

    def to_bytes(self) -> bytes:
        """Return the blob."""
        listener = _LISTENERS.index(self.listener)
        sizes = (self.update_bytes, self.block_bytes, self.indices.size, len(self.blocks))
        header = _RECEPTION.pack(_RECEPTION_MAGIC, _VERSION, self.fidelity.code, listener, *sizes)
        flags = np.packbits(self.heard, bitorder="little").tobytes()
        parts = (header, self.indices.astype("<u4").tobytes(), flags, self.snr_db.astype("<f4").tobytes(), self.blocks.tobytes())
        return b"".join(parts)

    @staticmethod
    def from_bytes(blob: bytes) -> "Reception":
        """Parse a blob without copying its blocks; ``MalformedUpdate`` on anything else."""
        if len(blob) < _RECEPTION.size:
            raise MalformedUpdate(f"a reception has at least {_RECEPTION.size} bytes, got {len(blob)}")
        magic, version, code, who, update_bytes, block_bytes, count, heard_count = _RECEPTION.unpack_from(blob)
        if (magic, version) != (_RECEPTION_MAGIC, _VERSION) or who >= len(_LISTENERS):
            raise MalformedUpdate(f"not a reception of version {_VERSION}")
        row, flag_bytes = block_bytes + _CRC_BYTES, -(-count // 8)
        if len(blob) != _RECEPTION.size + 8 * count + flag_bytes + heard_count * row:
            raise MalformedUpdate(f"{heard_count} of {count} blocks announced, but the reception has {len(blob)} bytes")
        at = _RECEPTION.size
        indices = np.frombuffer(blob, dtype="<u4", count=count, offset=at).astype(np.uint32)
        flags = np.frombuffer(blob, dtype=np.uint8, count=flag_bytes, offset=at + 4 * count)
        snr_db = np.frombuffer(blob, dtype="<f4", count=count, offset=at + 4 * count + flag_bytes).astype(np.float32)
        blocks = np.frombuffer(blob, dtype=np.uint8, offset=at + 8 * count + flag_bytes).reshape(heard_count, row)
        try:
            return Reception(
                listener=_LISTENERS[who],
                fidelity=Fidelity.from_code(code),
                update_bytes=update_bytes,
                block_bytes=block_bytes,
                indices=indices,
                heard=np.unpackbits(flags, count=count, bitorder="little").astype(np.bool_),
                snr_db=snr_db,
                blocks=blocks,
            )
        except ValueError as error:
            raise MalformedUpdate(f"reception: {error}") from error


def cut(update: bytes, *, design: SecrecyDesign, only: Sequence[int] | None = None) -> Frame:
    """Cut an update into the hash blocks of ``design``, or into ``only`` these; the last block is padded with zeros.

    ``ValueError`` for an empty update or for indices outside it.
    """
    payload = design.payload_bytes
    total = -(-len(update) // payload)
    indices = np.arange(total, dtype=np.uint32) if only is None else np.unique(np.asarray(only, dtype=np.int64))
    if not indices.size or int(indices[0]) < 0 or int(indices[-1]) >= total:
        raise ValueError(f"cannot cut these blocks of an update of {total} blocks")
    padded = np.zeros(total * payload, dtype=np.uint8)
    padded[: len(update)] = np.frombuffer(update, dtype=np.uint8)
    blocks = np.empty((indices.size, payload + _CRC_BYTES), dtype=np.uint8)
    blocks[:, :payload] = padded.reshape(total, payload)[indices]
    blocks[:, payload:] = _checksums(blocks[:, :payload])
    return Frame(
        fidelity=Fidelity.ABSTRACT,
        update_bytes=len(update),
        block_bytes=payload,
        indices=indices.astype(np.uint32),
        blocks=blocks,
    )


class Assembly:
    """Puts an update of known size together from any number of receptions; repeated blocks change nothing."""

    def __init__(self, total_bytes: int, block_bytes: int) -> None:
        """Reserve room for ``total_bytes``; the caller has checked that this is not too much."""
        if total_bytes < 1 or block_bytes < 1:
            raise ValueError(f"impossible update of {total_bytes} bytes in blocks of {block_bytes}")
        self._total_bytes, self._block_bytes = total_bytes, block_bytes
        self._known = np.zeros(-(-total_bytes // block_bytes), dtype=np.bool_)
        self._data = np.zeros((self._known.size, block_bytes), dtype=np.uint8)

    def add(self, reception: Reception) -> int:
        """Take the blocks whose checksum holds and return their number; ``MalformedUpdate`` when of another update."""
        if (reception.update_bytes, reception.block_bytes) != (self._total_bytes, self._block_bytes):
            raise MalformedUpdate(
                f"a reception of {reception.update_bytes} bytes in blocks of {reception.block_bytes} does not belong to an "
                f"update of {self._total_bytes} bytes in blocks of {self._block_bytes}"
            )
        payload = reception.blocks[:, : self._block_bytes]
        sound = (reception.blocks[:, self._block_bytes :] == _checksums(payload)).all(axis=1)
        indices = reception.indices[reception.heard][sound]
        self._data[indices] = payload[sound]
        self._known[indices] = True
        return int(sound.sum())

    @property
    def known(self) -> Flags:
        """Which blocks are there, one flag per block of the update."""
        return self._known.copy()

    @property
    def missing(self) -> tuple[int, ...]:
        """Indices of the blocks still missing."""
        return tuple(int(i) for i in np.flatnonzero(~self._known))

    def data(self) -> bytes:
        """Return the update; ``ValueError`` while blocks are missing."""
        if not self._known.all():
            raise ValueError(f"{int((~self._known).sum())} of {self._known.size} blocks are missing")
        return self.partial()

    def partial(self) -> bytes:
        """Return the update with zeros where blocks are missing."""
        return self._data.reshape(-1)[: self._total_bytes].tobytes()


def _checksums(payload: Bytes) -> Bytes:
    """Return the CRC-32 of each row, big-endian, as (rows, 4)."""
    sums = np.fromiter((zlib.crc32(row.tobytes()) for row in payload), dtype=np.uint32, count=len(payload))
    return sums.astype(">u4").view(np.uint8).reshape(-1, _CRC_BYTES)


def _check_layout(update_bytes: int, block_bytes: int, indices: Indices) -> None:
    if update_bytes < 1 or block_bytes < 1:
        raise ValueError(f"impossible update of {update_bytes} bytes in blocks of {block_bytes}")
    total = -(-update_bytes // block_bytes)
    if total > BLOCKS_MAX:
        raise ValueError(f"{total} blocks of {block_bytes} bytes, at most {BLOCKS_MAX} are allowed")
    if indices.size and (int(indices[-1]) >= total or (indices[1:] <= indices[:-1]).any()):
        raise ValueError(f"block indices must rise and stay below {total}")
