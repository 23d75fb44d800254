"""What must hold of a delivery, seen by somebody who sees all machines and outlives them."""

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

from hushtune_common.link.frame import FrameChunk
from hushtune_common.link.reception import Reception
from hushtune_common.messages import (
    Digest,
    Listener,
    Transmission,
    UpdateKey,
)
from hushtune_common.seeding import SeedTree
from hushtune_common.store.blobs import BlobName, BlobStore
from hushtune_common.units import PowerRatio
from hushtune_server.air.medium import Medium
from hushtune_server.air.service import AirBlobs
from hushtune_server.air.sky import Sky

if TYPE_CHECKING:
    from tests.simulation.delivery import World


class Laws:
    """What the world has seen, and no machine remembers as a whole."""

    def __init__(self, world: "World") -> None:
        self._world = world
        self._rows: dict[UpdateKey, dict[int, bytes]] = {}
        self._heard: dict[tuple[UpdateKey, Listener, int], bytes] = {}
        self._held: dict[str, bytes] = {}
        self.hearings = 0

    def on_air(self, transmission: Transmission, chunk: FrameChunk) -> None:
        """Look at coded blocks that a listener is about to hear."""
        fresh = {int(i): row.tobytes() for i, row in zip(chunk.indices[chunk.coded], chunk.rows, strict=True)}
        known = self._rows.setdefault(transmission.key, {})
        for index, row in fresh.items():
            if known.setdefault(index, row) != row:
                raise self._world.broken(f"{transmission.key.text} is on air with two codings of block {index}")
        for key, rows in self._rows.items():
            if key != transmission.key and any(rows.get(index) == row for index, row in fresh.items()):
                raise self._world.broken(f"{transmission.key.text} repeats a coded block of {key.text}: its bits are not fresh")

    def heard(self, transmission: Transmission, listener: Listener, reception: Reception) -> None:
        """Look at what a listener hears."""
        self.hearings += 1
        blob, place = reception.to_bytes(), (transmission.key, listener, reception.chunk)
        if self._heard.setdefault(place, blob) != blob:
            raise self._world.broken(f"{listener} hears {transmission.key.text} with other noise than before")

    def acknowledged(self, name: BlobName, content: bytes) -> None:
        """Take note that somebody was, or may have been, told that a blob is held."""
        if Digest.of(content) != name.digest:
            raise self._world.broken(f"{name.text} was taken for complete with other bytes")
        self._held[name.text] = content

    def let_go(self, prefix: str) -> None:
        """Take note that blobs below a prefix are no longer needed."""
        self._held = {text: c for text, c in self._held.items() if not text.startswith(f"{prefix}/")}

    def restarted(self, store: BlobStore) -> None:
        """Look at what a restarted air holds."""
        for text, content in self._held.items():
            name = BlobName.parse(text)
            if not store.complete(name):
                raise self._world.broken(f"{text} was acknowledged and is gone after a restart")
            if store.path(name).read_bytes() != content:
                raise self._world.broken(f"{text} was acknowledged and has other bytes after a restart")


class WatchedStore(BlobStore):
    """The production's store, with a witness of what it lets go."""

    laws: Laws

    def discard(self, prefix: str) -> None:
        self.laws.let_go(prefix)
        super().discard(prefix)


class WatchedMedium:
    """The production's medium, with a witness of what it carries."""

    def __init__(self, inner: Medium, laws: Laws) -> None:
        self._inner = inner
        self._laws = laws

    def hear(
        self, chunk: FrameChunk, *, listener: Listener, transmission: Transmission, gain: PowerRatio, seeds: SeedTree
    ) -> Reception:
        self._laws.on_air(transmission, chunk)
        heard = self._inner.hear(chunk, listener=listener, transmission=transmission, gain=gain, seeds=seeds)
        self._laws.heard(transmission, listener, heard)
        return heard


class WitnessedBlobs(AirBlobs):
    """The production's blobs, with a witness of what they call complete."""

    def __init__(self, sky: Sky, store: BlobStore, laws: Laws) -> None:
        super().__init__(sky, store)
        self._blobs = store
        self._laws = laws

    async def Write(self, request_iterator: Any, context: Any) -> Any:  # noqa: N802 - a gRPC method
        names: list[BlobName] = []

        async def watched_parts() -> AsyncIterator[Any]:
            async for part in request_iterator:
                if part.resource_name:
                    names.append(BlobName.parse(part.resource_name))
                yield part

        answer = await super().Write(watched_parts(), context)
        if answer.complete:
            self._laws.acknowledged(names[0], self._blobs.path(names[0]).read_bytes())
        return answer
