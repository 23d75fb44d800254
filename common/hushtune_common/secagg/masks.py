"""How are payloads masked, added and unmasked? Streams of AES-256-CTR, added to words of 64 bits modulo 2^64.

All that happens in stretches that fit the second-level cache: every stream is run over a stretch before the next one is touched.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR

from hushtune_common.secagg.grid import Words

_STRETCH: Final = 1 << 14
_COUNTER: Final = bytes(16)
_BLOCK_BYTES: Final = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Mask:
    """One stream, by its key, and whether it is taken away instead of added."""

    key: bytes = field(repr=False)
    negative: bool

    def __post_init__(self) -> None:
        """Check the form."""
        if len(self.key) != 32:
            raise ValueError(f"a stream has a key of 32 bytes, got {len(self.key)}")


def apply(words: Words, masks: Sequence[Mask]) -> None:
    """Add every mask to ``words`` in place."""
    if words.dtype != np.dtype("<u8") or words.ndim != 1:
        raise ValueError(f"a payload is one row of little-endian words, got {words.dtype} {words.shape}")
    streams = [(_stream(mask.key), np.subtract if mask.negative else np.add) for mask in masks]
    zeros = bytes(8 * _STRETCH)
    # The cipher wants room for one more block than it is given.
    room = bytearray(len(zeros) + _BLOCK_BYTES - 1)
    drawn = np.frombuffer(room, dtype="<u8", count=_STRETCH)
    for start in range(0, words.size, _STRETCH):
        stretch = words[start : start + _STRETCH]
        source = zeros if stretch.size == _STRETCH else zeros[: 8 * stretch.size]
        for stream, join in streams:
            stream.update_into(source, room)
            join(stretch, drawn[: stretch.size], out=stretch)


def _stream(key: bytes) -> CipherContext:
    return Cipher(AES(key), CTR(_COUNTER)).encryptor()
