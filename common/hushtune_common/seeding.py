"""Simulation randomness: one root, independent named streams.

Keys, nonces and secrecy bits never come from here; they come from the operating system.
"""

import hashlib
from dataclasses import dataclass
from typing import NewType

import numpy as np

NoiseRng = NewType("NoiseRng", np.random.Generator)
"""A reproducible generator for noise, fading and data order. Never a source of secrets."""


@dataclass(frozen=True, slots=True)
class SeedTree:
    """A tree of seeds; a stream depends on the root and its path only, never on the order of calls."""

    root: int
    path: tuple[str, ...] = ()

    def child(self, *names: str) -> "SeedTree":
        """Return the subtree below ``names``."""
        return SeedTree(self.root, (*self.path, *names))

    def generator(self) -> NoiseRng:
        """Return a fresh generator (Philox keyed by this node); equal nodes give equal streams."""
        return NoiseRng(np.random.Generator(np.random.Philox(key=int.from_bytes(self._hash()[:16], "big"))))

    def integer(self) -> int:
        """Return a derived seed below 2**63, for libraries that take an integer."""
        return int.from_bytes(self._hash()[16:24], "big") >> 1

    def _hash(self) -> bytes:
        parts = b"".join(len(p.encode()).to_bytes(4, "big") + p.encode() for p in self.path)
        return hashlib.sha256(b"hushtune/seed/1" + self.root.to_bytes(16, "big", signed=True) + parts).digest()
