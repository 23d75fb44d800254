"""Whether an update that came out of the air may touch the model: everything is hostile until this says otherwise."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

from hushtune_common.adapter import AdapterState, require_matches
from hushtune_common.codec.codec import AdapterCodec
from hushtune_common.crypto import envelope
from hushtune_common.crypto.keys import REFUSED, HybridPrivateKey, LinkKey
from hushtune_common.errors import ConfigError, DigestMismatch, InvalidEnvelope, LimitExceeded, NotYours, Replayed
from hushtune_common.messages import ClientId, Digest, EmulatorManifest, Part, SealedUpdate, UpdateKey
from hushtune_server.owner.gatekeeper.measure import changes, relative, whole
from hushtune_server.owner.incoming import Link

T = TypeVar("T")
Screen = Callable[[AdapterState], None]
"""Raises a `ProtocolFault` for an adapter that is not to be taken."""


class Seals:
    """Opens sealed updates that were made with one published emulator.

    Laws: what is refused changes nothing; the same bytes under the same key give an equal payload again; other bytes under a key
    that was accepted are refused. Only digests are kept, so memory does not grow with the size of adapters.
    """

    def __init__(
        self,
        *,
        manifest: EmulatorManifest,
        private: HybridPrivateKey,
        payload_id: str,
        payload_bytes_max: int,
        accepted: Mapping[UpdateKey, Digest] | None = None,
        emulators: Mapping[ClientId, Digest] | None = None,
    ) -> None:
        """Take what updates are checked against; ``accepted`` restores the state after a restart (see `accepted`).

        ``payload_id`` names the byte format of what is sealed. ``emulators`` are those of clients that have a copy of their own,
        which differs from the manifest's in frozen tensors only. ``ConfigError`` when the parts do not belong together.
        """
        if manifest.sealing_key != private.public.to_bytes():
            raise ConfigError("manifest.sealing_key", "is not the public half of this owner's key; publish the emulator again")
        if manifest.codec != payload_id:
            raise ConfigError(
                "codec", f"the manifest says {manifest.codec}, the scenario {payload_id}; publish the emulator again"
            )
        self._manifest = manifest
        self._private = private
        self._payload_id = payload_id
        self._payload_bytes_max = payload_bytes_max
        self._accepted = dict(accepted or {})
        self._emulators = dict(emulators or {})

    @property
    def bytes_max(self) -> int:
        """Largest sealed update that can be genuine, known from the shapes alone."""
        return self._payload_bytes_max + envelope.OVERHEAD_MAX

    @property
    def accepted(self) -> Mapping[UpdateKey, Digest]:
        """Digests of the accepted blobs, by key with attempt 1: what a journal needs to restore this object."""
        return dict(self._accepted)

    def take(
        self, blob: bytes, *, key: UpdateKey, links: Mapping[Part, Link], use: Callable[[bytes], T], secret: bytes = b""
    ) -> T:
        """Return what ``use`` makes of the payload of a sealed update that arrived under the authenticated ``key``.

        ``links`` say how its parts travelled, ``secret`` is what the key part brought; ``use`` has the last word. Raises, with
        nothing changed: ``LimitExceeded`` (too long), ``InvalidEnvelope`` (without a reason: the seal does not open with this
        secret, or its sender did not announce these designs and public seeds), ``Replayed``, ``NotYours`` (sealed for another
        client, round or run), ``DigestMismatch`` (another emulator), and what ``use`` raises.
        """
        if len(blob) > self.bytes_max:
            raise LimitExceeded(f"the sealed update has {len(blob)} bytes, at most {self.bytes_max} are possible")
        update = envelope.from_bytes(blob)
        slot = replace(key, attempt=1)
        digest = Digest.of(blob)
        self._require_fresh(slot, digest)
        self._require_context(update, slot)
        taken = use(self._open(update, links=links, secret=secret))
        self._accepted[slot] = digest
        return taken

    def _open(self, update: SealedUpdate, *, links: Mapping[Part, Link], secret: bytes) -> bytes:
        needed = envelope.needs_secret(update)
        opening = envelope.open_sealed(update, private=self._private, codec=self._payload_id, secret=secret if needed else b"")
        _require_authentic(opening.link_key, links=links, parts=(Part.KEY, Part.PAYLOAD) if needed else (Part.PAYLOAD,))
        return opening.payload

    def _require_fresh(self, slot: UpdateKey, digest: Digest) -> None:
        known = self._accepted.get(slot)
        if known is not None and known != digest:
            raise Replayed(f"{slot.text}: update {known.short} was accepted, now {digest.short} came")

    def _require_context(self, update: SealedUpdate, slot: UpdateKey) -> None:
        if update.key != slot:
            raise NotYours(f"an update sealed as {update.key.text} arrived as {slot.text}")
        published = self._emulators.get(slot.client, self._manifest.emulator)
        if update.emulator != published:
            raise DigestMismatch(f"made with emulator {update.emulator.short}, published is {published.short}")


class Intake(Seals):
    """Takes sealed updates that the owner looks at one by one: decodes their adapters, and has them screened."""

    def __init__(
        self,
        *,
        manifest: EmulatorManifest,
        private: HybridPrivateKey,
        codec: AdapterCodec,
        accepted: Mapping[UpdateKey, Digest] | None = None,
        emulators: Mapping[ClientId, Digest] | None = None,
    ) -> None:
        """Take what updates are decoded with; the rest as for `Seals`."""
        super().__init__(
            manifest=manifest,
            private=private,
            payload_id=codec.id,
            payload_bytes_max=codec.bytes_max,
            accepted=accepted,
            emulators=emulators,
        )
        self._codec = codec

    def accept(
        self, blob: bytes, *, key: UpdateKey, links: Mapping[Part, Link], screen: Screen, secret: bytes = b""
    ) -> AdapterState:
        """Return the adapter of a sealed update; ``screen`` has the last word on what came out.

        Raises, beside what `take` does: ``MalformedUpdate`` (does not decode, or is not finite), and what ``screen`` raises.
        """
        return self.take(blob, key=key, links=links, secret=secret, use=lambda payload: self._read(payload, screen))

    def _read(self, payload: bytes, screen: Screen) -> AdapterState:
        state = self._codec.decode(payload, self._manifest.adapter)
        require_matches(state, self._manifest.adapter)
        screen(state)
        return state


def relative_change(state: AdapterState, *, shipped: AdapterState) -> float:
    """Return |returned - shipped| / |shipped| over all tensors together (Euclidean); infinite for a change from zero."""
    return relative(whole(changes(state, shipped=shipped)))


def _require_authentic(link_key: LinkKey, *, links: Mapping[Part, Link], parts: Sequence[Part]) -> None:
    """Refuse an update unless whoever sealed it announced how each of ``parts`` travelled; all are looked at, whatever is found.

    Design, hash seed and dither are public, but what the wiretap code promises holds only for those that the sender drew.
    """
    found = [(part, links[part]) for part in parts if part in links]
    holds = [envelope.link_holds(link_key, part=part, design=link.design, seed=link.seed) for part, link in found]
    if len(holds) < len(parts) or not all(holds):
        raise InvalidEnvelope(REFUSED)
