"""What do the bytes look like that the eavesdropper holds: like an update in the clear, or like noise?"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import numpy as np
from scipy.special import chdtrc

MARKERS: Final = {
    "zstandard frame": b"\x28\xb5\x2f\xfd",
    "safetensors header": b'{"__metadata__"',
    "tensor name": b"self_attn",
    "tensor offsets": b'"data_offsets"',
}
"""Byte strings that an update in the clear would contain."""

_OVERLAP: Final = max(len(marker) for marker in MARKERS.values()) - 1
_BYTES_LEAST: Final = 1280


@dataclass(frozen=True, slots=True, kw_only=True)
class Looks:
    """``markers`` of plain text that were found, and the p-value of a test that the bytes are uniform.

    Sealed bytes look uniform; a value near 0 means structure, for a tap an invitation. None below 1280 bytes.
    """

    markers: tuple[str, ...]
    uniformity_p: float | None


def look_at(pieces: Iterable[bytes]) -> Looks:
    """Return how the bytes look that ``pieces`` make up together; one piece is held at a time."""
    found: set[str] = set()
    counts = np.zeros(256, dtype=np.int64)
    tail = b""
    for piece in pieces:
        joined = tail + piece
        found |= {name for name, marker in MARKERS.items() if marker in joined}
        tail = joined[-_OVERLAP:]
        counts += np.bincount(np.frombuffer(piece, dtype=np.uint8), minlength=256)
    return Looks(markers=tuple(name for name in MARKERS if name in found), uniformity_p=_uniformity(counts))


def _uniformity(counts: np.ndarray[tuple[int], np.dtype[np.int64]]) -> float | None:
    total = int(counts.sum())
    if total < _BYTES_LEAST:
        return None
    expected = total / 256.0
    return float(chdtrc(255.0, float(((counts - expected) ** 2 / expected).sum())))
