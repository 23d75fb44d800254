"""What decides, for the owner alone, which way each weight of a recipient's copy is pushed?"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from numpy.typing import NDArray

from hushtune_common.errors import ConfigError

KEY_BYTES: Final = 32
CHUNK: Final = 1 << 20
"""Weights that are worked on at once; a multiple of 8."""

_LABEL = b"hushtune/fingerprint/1"
_SIGNS, _PLACES = b"signs", b"places"


class MarkKey:
    """The owner's secret, 32 bytes. Masked in ``repr``; who has it can find marks and take them off.

    Every recipient and tensor has streams of its own: HKDF-SHA256 (RFC 5869) of the secret gives the key of AES-256 in counter
    mode, used once, from zero.
    """

    __slots__ = ("_value",)

    def __init__(self, value: bytes) -> None:
        """Take the secret; ``ValueError`` for another length."""
        if len(value) != KEY_BYTES:
            raise ValueError(f"a fingerprint key has {KEY_BYTES} bytes, got {len(value)}")
        self._value = value

    @staticmethod
    def generate() -> "MarkKey":
        """Return a fresh key from the operating system."""
        return MarkKey(os.urandom(KEY_BYTES))

    @staticmethod
    def load(path: Path) -> "MarkKey":
        """Read a key file; `ConfigError` when it is none."""
        try:
            return MarkKey(path.read_bytes())
        except (OSError, ValueError) as error:
            raise ConfigError(str(path), f"is no fingerprint key ({error}); restore it from a backup") from error

    def save(self, path: Path) -> None:
        """Write the key durably, readable by its user only."""
        partial = path.with_name(f"{path.name}.partial")
        with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(self._value)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def signs(self, recipient: str, tensor: str, *, count: int) -> Iterator[NDArray[np.uint8]]:
        """Yield one bit for each of ``count`` weights, `CHUNK` at a time: 1 pushes up, 0 down."""
        stream = self._stream(_SIGNS, recipient, tensor)
        for size in _chunks(count):
            yield np.unpackbits(np.frombuffer(stream(-(-size // 8)), dtype=np.uint8), count=size)

    def places(self, tensor: str, *, count: int) -> Iterator[NDArray[np.uint32]]:
        """Yield a number below 2**32 for each of ``count`` weights, the same for all recipients, `CHUNK` at a time."""
        stream = self._stream(_PLACES, tensor)
        for size in _chunks(count):
            yield np.frombuffer(stream(4 * size), dtype="<u4")

    def _stream(self, *about: bytes | str) -> "_Stream":
        parts = [part.encode() if isinstance(part, str) else part for part in about]
        info = _LABEL + b"".join(len(part).to_bytes(4, "big") + part for part in parts)
        return _Stream(HKDF(SHA256(), KEY_BYTES, salt=None, info=info).derive(self._value))

    def __repr__(self) -> str:
        """Return a mask."""
        return "<MarkKey, masked>"


class _Stream:
    """A stream of bytes that looks random to whoever lacks its key."""

    def __init__(self, key: bytes) -> None:
        self._encryptor = Cipher(AES(key), CTR(bytes(16))).encryptor()

    def __call__(self, count: int) -> bytes:
        """Return the next ``count`` bytes."""
        return self._encryptor.update(bytes(count))


def _chunks(count: int) -> Iterator[int]:
    for begin in range(0, count, CHUNK):
        yield min(CHUNK, count - begin)
