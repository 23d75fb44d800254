"""What has the owner published, and who may fetch it?"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from hushtune_common.errors import ConfigError
from hushtune_common.messages import Caller, EmulatorManifest, Revision, Role
from hushtune_common.model.bundle import Bundle, read_bundle
from hushtune_common.store.blobs import BlobName, BlobStore
from hushtune_server.owner.ports import Press, Renewal

PREFIX = "emulators"
REVISIONS = "revisions"


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """One emulator on offer: its manifest, and the blob that clients read."""

    manifest: EmulatorManifest
    blob: BlobName
    path: Path


class Catalog:
    """The emulators of this owner, one for every round.

    Laws: the manifest's digest and size are those of the blob; publishing the same file twice gives the same manifest; what is
    not published cannot be read. The first emulator stays, and the newest two that differ: who is further behind fetches the
    whole.
    """

    def __init__(self, store: BlobStore, *, size_max: int) -> None:
        """Keep blobs in ``store``; ``size_max`` bounds one of them in bytes."""
        self._store = store
        self._size_max = size_max
        self._rounds: list[Published] = []
        self._readable: frozenset[str] = frozenset()

    @property
    def first(self) -> Published:
        """What the run began with."""
        return self._rounds[0]

    @property
    def newest(self) -> Published:
        """What was published last."""
        return self._rounds[-1]

    async def publish(self, bundle: Path, *, sealing_key: bytes, codec: str) -> Published:
        """Move a bundle file into the store and put it on offer. `MalformedUpdate` if it is none, `ConfigError` if too large.

        It is the emulator of the first round. Hashing takes a thread of its own.
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
        return self._offer(manifest)

    async def revise(self, bundle: Path, *, revision: Path, round_id: int) -> Published:
        """Put the emulator of another round on offer, and the way to it from the newest one; errors as `publish`."""
        base = self.newest.manifest
        await asyncio.to_thread(self._inspect, bundle)
        blob = await asyncio.to_thread(self._store.adopt, PREFIX, bundle)
        way = await asyncio.to_thread(self._store.adopt, REVISIONS, revision)
        manifest = replace(
            base,
            emulator=blob.digest,
            size_bytes=blob.size,
            round_id=round_id,
            revision=Revision(base=base.emulator, base_bytes=base.size_bytes, blob=way.digest, size_bytes=way.size),
        )
        return self._offer(manifest)

    def repeat(self, *, round_id: int) -> Published:
        """Let the newest emulator be that of another round, too."""
        return self._offer(replace(self.newest.manifest, round_id=round_id))

    def restore(self, manifests: Sequence[EmulatorManifest]) -> bool:
        """Put on offer again what an earlier life of this process published, round by round, the first one included.

        Returns whether that is possible: false, with nothing changed, when the first or the newest emulator is gone.
        """
        if not manifests or not all(self._store.complete(_blob(m)) for m in (manifests[0], manifests[-1])):
            return False
        self._rounds = [self._held(m) for m in manifests if self._store.complete(_blob(m))]
        self._prune()
        return True

    def path(self, manifest: EmulatorManifest) -> Path:
        """Return where an emulator on offer lies; `StaleRound` when it is none any more."""
        return self._store.path(_blob(manifest))

    def may_read(self, caller: Caller, name: BlobName) -> bool:
        """Return whether ``caller`` may fetch ``name``: clients, what is on offer, nothing else."""
        return caller.role is Role.CLIENT and name.text in self._readable

    def _inspect(self, bundle: Path) -> Bundle:
        size = bundle.stat().st_size
        if size > self._size_max:
            raise ConfigError("limits.emulator_bytes_max", f"the emulator has {size} bytes, allowed are {self._size_max}")
        return read_bundle(bundle)

    def _offer(self, manifest: EmulatorManifest) -> Published:
        self._rounds.append(self._held(manifest))
        self._prune()
        return self.newest

    def _held(self, manifest: EmulatorManifest) -> Published:
        blob = _blob(manifest)
        return Published(manifest=manifest, blob=blob, path=self._store.path(blob))

    def _prune(self) -> None:
        """Offer what is kept, and nothing else."""
        emulators, ways = self._kept(), [] if (way := _way(self.newest.manifest)) is None else [way]
        self._store.retain(PREFIX, emulators)
        self._store.retain(REVISIONS, ways)
        self._rounds = [p for p in self._rounds if p.blob in emulators]
        self._readable = frozenset(name.text for name in (*emulators, *ways))

    def _kept(self) -> Sequence[BlobName]:
        """Return the first emulator and the newest two that differ."""
        distinct = list(dict.fromkeys(p.blob for p in self._rounds))
        return list(dict.fromkeys([distinct[0], *distinct[-2:]]))


class RoundPress:
    """Puts the emulators of later rounds into a catalog."""

    def __init__(self, catalog: Catalog) -> None:
        """Take the catalog, which has the first emulator."""
        self._catalog = catalog

    async def publish(self, round_id: int, renewal: Renewal | None) -> EmulatorManifest:
        """Offer the emulator of a round, and return its manifest."""
        if renewal is None:
            return self._catalog.repeat(round_id=round_id).manifest
        published = await self._catalog.revise(renewal.bundle, revision=renewal.revision, round_id=round_id)
        return published.manifest

    def path(self, manifest: EmulatorManifest) -> Path:
        """Return where the emulator lies."""
        return self._catalog.path(manifest)


_prints: type[Press] = RoundPress


def _blob(manifest: EmulatorManifest) -> BlobName:
    return BlobName(prefix=PREFIX, digest=manifest.emulator, size=manifest.size_bytes)


def _way(manifest: EmulatorManifest) -> BlobName | None:
    way = manifest.revision
    return None if way is None else BlobName(prefix=REVISIONS, digest=way.blob, size=way.size_bytes)
