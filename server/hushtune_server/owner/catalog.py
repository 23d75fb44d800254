"""What has the owner published, and who may fetch it?"""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from hushtune_common.errors import ConfigError
from hushtune_common.logs import log_event
from hushtune_common.messages import Caller, ClientId, EmulatorManifest, Revision, Role
from hushtune_common.model.bundle import Bundle, read_bundle
from hushtune_common.model.revision import write_revision
from hushtune_common.store.blobs import BlobName, BlobStore
from hushtune_server.owner.book import Copy, Publication
from hushtune_server.owner.copies import NO_COPIES, Copies, manifest_for
from hushtune_server.owner.ports import Press, Renewal

_log = logging.getLogger(__name__)
PREFIX = "emulators"
REVISIONS = "revisions"


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """One emulator on offer: its manifest, the blob that clients read, and the copies of those that have one of their own."""

    manifest: EmulatorManifest
    blob: BlobName
    path: Path
    copies: Mapping[ClientId, Copy]


class Catalog:
    """The emulators of this owner, one for every round.

    Laws: the manifest's digest and size are those of the blob; publishing the same file twice gives the same manifest; what is
    not published cannot be read. The first emulator stays, and the newest two that differ: who is further behind fetches the
    whole. Where clients have copies of their own, each may read its own and nobody the emulator without a mark.
    """

    def __init__(self, store: BlobStore, *, size_max: int, copies: Copies | None = None) -> None:
        """Keep blobs in ``store``; ``size_max`` bounds one of them in bytes. ``copies`` makes those of single clients."""
        self._store = store
        self._size_max = size_max
        self._copies = copies
        self._rounds: list[Published] = []
        self._readable: Mapping[ClientId | None, frozenset[str]] = {}

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
        return self._offer(manifest, copies=await self._first_copies(blob))

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
        return self._offer(manifest, copies=await self._later_copies(blob))

    def repeat(self, *, round_id: int) -> Published:
        """Let the newest emulator be that of another round, too."""
        return self._offer(replace(self.newest.manifest, round_id=round_id), copies=self.newest.copies)

    def restore(self, publications: Sequence[Publication]) -> bool:
        """Put on offer again what an earlier life of this process published, round by round, the first one included.

        Returns whether that is possible: false, with nothing changed, when the first or the newest emulator is gone, or a
        client's copy of the newest one.
        """
        if not publications:
            return False
        first, newest = publications[0].manifest, publications[-1]
        needed = [first, newest.manifest, *(manifest_for(newest.manifest, copy) for copy in newest.copies.values())]
        if not all(self._store.complete(_blob(manifest)) for manifest in needed):
            return False
        self._rounds = [self._held(p.manifest, p.copies) for p in publications if self._store.complete(_blob(p.manifest))]
        self._prune()
        return True

    def path(self, manifest: EmulatorManifest) -> Path:
        """Return where an emulator on offer lies; `StaleRound` when it is none any more."""
        return self._store.path(_blob(manifest))

    def may_read(self, caller: Caller, name: BlobName) -> bool:
        """Return whether ``caller`` may fetch ``name``: clients, what is on offer to them, nothing else."""
        if caller.role is not Role.CLIENT:
            return False
        whose = None if self._copies is None else ClientId(caller.name)
        return name.text in self._readable.get(whose, frozenset())

    def _inspect(self, bundle: Path) -> Bundle:
        size = bundle.stat().st_size
        if size > self._size_max:
            raise ConfigError("limits.emulator_bytes_max", f"the emulator has {size} bytes, allowed are {self._size_max}")
        return read_bundle(bundle)

    async def _first_copies(self, blob: BlobName) -> Mapping[ClientId, Copy]:
        """Have every client's copy of an emulator in the store, and each of them traceable."""
        if (copies := self._copies) is None:
            return NO_COPIES
        made: dict[ClientId, Copy] = {}
        for client in copies.clients:
            target = await self._marked(copies, blob, client)
            await asyncio.to_thread(copies.require_traceable, target, client=client)
            made[client] = await self._taken(target, client, way=None)
        return made

    async def _later_copies(self, blob: BlobName) -> Mapping[ClientId, Copy]:
        """Have every client's copy of a later emulator in the store, and the way to it from the client's newest one."""
        if (copies := self._copies) is None:
            return NO_COPIES
        made: dict[ClientId, Copy] = {}
        for client in copies.clients:
            base = _blob(manifest_for(self.newest.manifest, self.newest.copies[client]))
            target, way = await self._marked(copies, blob, client), self._store.scratch("way")
            await asyncio.to_thread(write_revision, way, base=self._store.path(base), result=target)
            adopted = await asyncio.to_thread(self._store.adopt, REVISIONS, way)
            revision = Revision(base=base.digest, base_bytes=base.size, blob=adopted.digest, size_bytes=adopted.size)
            made[client] = await self._taken(target, client, way=revision)
        return made

    async def _marked(self, copies: Copies, blob: BlobName, client: ClientId) -> Path:
        target = self._store.scratch("copy")
        await asyncio.to_thread(copies.write, target, bundle=self._store.path(blob), client=client)
        return target

    async def _taken(self, copy: Path, client: ClientId, *, way: Revision | None) -> Copy:
        blob = await asyncio.to_thread(self._store.adopt, PREFIX, copy)
        log_event(_log, "emulator_marked", client=client, digest=blob.digest, bytes_total=blob.size)
        return Copy(emulator=blob.digest, size_bytes=blob.size, revision=way)

    def _offer(self, manifest: EmulatorManifest, *, copies: Mapping[ClientId, Copy]) -> Published:
        self._rounds.append(self._held(manifest, copies))
        self._prune()
        return self.newest

    def _held(self, manifest: EmulatorManifest, copies: Mapping[ClientId, Copy]) -> Published:
        blob = _blob(manifest)
        return Published(manifest=manifest, blob=blob, path=self._store.path(blob), copies=copies)

    def _prune(self) -> None:
        """Offer what is kept, and nothing else."""
        emulators, newest = self._kept(), self.newest
        offers: dict[ClientId | None, list[BlobName]] = {None: [*emulators, *_ways(newest.manifest)]}
        for client, copy in newest.copies.items():
            offers[client] = [*self._own(client), *_ways(manifest_for(newest.manifest, copy))]
        named = {name for names in offers.values() for name in names}
        for prefix in (PREFIX, REVISIONS):
            self._store.retain(prefix, [name for name in named if name.prefix == prefix])
        self._rounds = [p for p in self._rounds if p.blob in emulators]
        self._readable = {whose: frozenset(name.text for name in names) for whose, names in offers.items()}

    def _own(self, client: ClientId) -> Sequence[BlobName]:
        """Return a client's copies of the newest two emulators that differ."""
        copies = [manifest_for(p.manifest, p.copies[client]) for p in self._rounds if client in p.copies]
        return list(dict.fromkeys(map(_blob, copies)))[-2:]

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

    def copies(self, manifest: EmulatorManifest) -> Mapping[ClientId, Copy]:
        """Return which clients have a copy of their own of the newest emulator, and which."""
        newest = self._catalog.newest
        return newest.copies if newest.manifest == manifest else NO_COPIES


_prints: type[Press] = RoundPress


def _blob(manifest: EmulatorManifest) -> BlobName:
    return BlobName(prefix=PREFIX, digest=manifest.emulator, size=manifest.size_bytes)


def _ways(manifest: EmulatorManifest) -> Sequence[BlobName]:
    way = manifest.revision
    return [] if way is None else [BlobName(prefix=REVISIONS, digest=way.blob, size=way.size_bytes)]
