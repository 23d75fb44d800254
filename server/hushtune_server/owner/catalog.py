"""What has the owner published, and who may fetch it?"""

import asyncio
from dataclasses import dataclass
from pathlib import Path

from hushtune_common.errors import ConfigError
from hushtune_common.messages import Caller, EmulatorManifest, Role
from hushtune_common.model.bundle import Bundle, read_bundle
from hushtune_common.store.blobs import BlobName, BlobStore

PREFIX = "emulators"


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """One emulator on offer: its manifest, and the blob that clients read."""

    manifest: EmulatorManifest
    blob: BlobName
    path: Path


class Catalog:
    """The emulators of this owner.

    Laws: the manifest's digest and size are those of the blob; publishing the same file twice gives the same manifest; what is
    not published cannot be read.
    """

    def __init__(self, store: BlobStore, *, size_max: int) -> None:
        """Keep blobs in ``store``; ``size_max`` bounds one of them in bytes."""
        self._store = store
        self._size_max = size_max
        self._published: dict[str, Published] = {}

    async def publish(self, bundle: Path, *, sealing_key: bytes, codec: str) -> Published:
        """Move a bundle file into the store and put it on offer. `MalformedUpdate` if it is none, `ConfigError` if too large.

        Hashing takes a thread of its own. Called before anything is served, so nobody else uses the store meanwhile.
        """
        about = await asyncio.to_thread(self._inspect, bundle)
        blob = await asyncio.to_thread(self._store.adopt, PREFIX, bundle)
        manifest = EmulatorManifest(
            emulator=blob.digest,
            size_bytes=blob.size,
            base=about.base_digest,
            plan=about.plan.digest,
            tokenizer=about.tokens.digest,
            adapter=about.schema,
            sealing_key=sealing_key,
            codec=codec,
        )
        published = Published(manifest=manifest, blob=blob, path=self._store.path(blob))
        self._published[blob.text] = published
        return published

    def _inspect(self, bundle: Path) -> Bundle:
        size = bundle.stat().st_size
        if size > self._size_max:
            raise ConfigError("limits.emulator_bytes_max", f"the emulator has {size} bytes, allowed are {self._size_max}")
        return read_bundle(bundle)

    def may_read(self, caller: Caller, name: BlobName) -> bool:
        """Return whether ``caller`` may fetch ``name``: clients, what is on offer, nothing else."""
        return caller.role is Role.CLIENT and name.text in self._published
