"""How does a trained adapter become frames for the air? Codec, envelope, public seeds, coded blocks; refused blocks once more."""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event as Flag
from typing import Literal

from hushtune_client.state import write_durably
from hushtune_common.config import Scenario
from hushtune_common.crypto import envelope
from hushtune_common.crypto.keys import HybridPublicKey, LinkKey
from hushtune_common.errors import LimitExceeded, MalformedUpdate, StaleRound
from hushtune_common.link.fidelity import Fidelity, coded_blocks
from hushtune_common.link.frame import FrameLayout, FrameReader, frame_layout, frame_parts
from hushtune_common.link.mcs import point_of
from hushtune_common.link.modular import BlockCode, draw_public
from hushtune_common.link.randomness import OsRandomness, SecretRng, secret_rng
from hushtune_common.messages import (
    BLOCKS_MAX,
    Assignment,
    Digest,
    EmulatorManifest,
    LinkSeed,
    Part,
    Protection,
    SecrecyDesign,
    UpdateKey,
)
from hushtune_common.seeding import SeedTree


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkRandomness:
    """Where an update's hash seeds, dithers and hiding bits come from, each purpose a stream of its own.

    The operating system, unless the scenario asks for repeatable bits, which then hide nothing. The key that a key part carries
    is never among them.
    """

    kind: Literal["os", "seeded"]
    seeds: SeedTree

    def public(self, key: UpdateKey, part: Part) -> SecretRng:
        """Return the source of hash seed and dither of ``part``."""
        return self._stream(key, part, "public")

    def hiding(self, key: UpdateKey, part: Part) -> SecretRng:
        """Return the source of the random bits of the frame of ``key``'s attempt."""
        return self._stream(key, part, str(key.attempt))

    def _stream(self, key: UpdateKey, part: Part, purpose: str) -> SecretRng:
        node = self.seeds.child("link-randomness", key.client, str(key.round_id), part, purpose)
        return secret_rng(self.kind, seeds=node)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sealed:
    """A sealed update with its sizes on the way: raw float32, encoded, sealed.

    ``secret`` is what the seal needs besides the owner's key (empty without a key part); ``links`` has the public randomness of
    every part.
    """

    bytes_raw: int
    encoded: bytes = field(repr=False)
    data: bytes = field(repr=False)
    secret: bytes = field(repr=False)
    links: Mapping[Part, LinkSeed]

    @property
    def bytes_encoded(self) -> int:
        """Size of the encoded adapter."""
        return len(self.encoded)

    @property
    def digest(self) -> Digest:
        """Digest of the sealed bytes."""
        return Digest.of(self.data)


@dataclass(frozen=True, slots=True, kw_only=True)
class Uplink:
    """Seals updates to the owner."""

    manifest: EmulatorManifest
    update_bytes_max: int
    randomness: LinkRandomness

    def seal(self, payload: bytes, *, bytes_raw: int, key: UpdateKey, assignment: Assignment) -> Sealed:
        """Seal a payload to the owner's key, then draw and authenticate what is public about its transmission.

        The payload is an encoded adapter of ``bytes_raw``, or its words under masks. ``key`` must be of attempt 1, since attempts
        count transmissions. Raises `LimitExceeded` when the sealed update is larger than the scenario allows.
        """
        if key.attempt != 1:
            raise ValueError(f"an update is sealed once, as attempt 1, got {key.attempt}")
        secret = OsRandomness().draw(envelope.SECRET_BYTES) if assignment.protection is Protection.KEY else b""
        sealing = envelope.seal(
            payload,
            recipient=HybridPublicKey.from_bytes(self.manifest.sealing_key),
            key=key,
            emulator=self.manifest.emulator,
            codec=self.manifest.codec,
            secret=secret,
        )
        data = envelope.to_bytes(sealing.update)
        if len(data) > self.update_bytes_max:
            raise LimitExceeded(f"the sealed update has {len(data)} bytes, limits.update_bytes_max is {self.update_bytes_max}")
        # Only now, with the messages fixed: the leakage bound says nothing of a message that depends on the dither.
        links = {part: self._announce(sealing.link_key, key, part, assignment.design_of(part)) for part in assignment.parts}
        return Sealed(bytes_raw=bytes_raw, encoded=payload, data=data, secret=secret, links=links)

    def _announce(self, link_key: LinkKey, key: UpdateKey, part: Part, design: SecrecyDesign) -> LinkSeed:
        toeplitz, dither = draw_public(design, randomness=self.randomness.public(key, part))
        tag = envelope.link_tag(link_key, part=part, design=design, toeplitz=toeplitz, dither=dither)
        return LinkSeed(toeplitz=toeplitz, dither=dither, tag=tag)


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """A frame on disk. ``reused`` says that it was coded in an earlier life of this process."""

    path: Path
    layout: FrameLayout
    reused: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Framer:
    """Codes the frames of updates into files.

    Laws: the frame of all blocks carries exactly the message; a frame of some blocks carries exactly those, of the same message;
    an attempt is coded once, whatever happens to the process, and every attempt with random bits of its own. Beyond the message,
    memory holds one chunk of the frame.
    """

    fidelity: Fidelity
    share: float
    threads: int
    frame_bytes_max: int
    randomness: LinkRandomness
    seeds: SeedTree

    @staticmethod
    def of(scenario: Scenario, *, seeds: SeedTree) -> "Framer":
        """Return the framer of a scenario; ``seeds`` is its root."""
        return Framer(
            fidelity=Fidelity(scenario.air.fidelity),
            share=scenario.air.hybrid_share,
            threads=scenario.compute.link_threads,
            frame_bytes_max=scenario.limits.frame_bytes_max,
            randomness=LinkRandomness(kind=scenario.secrecy.randomness, seeds=seeds),
            seeds=seeds,
        )

    def frame(
        self,
        message: bytes,
        *,
        path: Path,
        key: UpdateKey,
        part: Part,
        design: SecrecyDesign,
        toeplitz: bytes,
        only: Sequence[int] | None,
        stopped: Flag,
    ) -> Frame:
        """Return the frame of the blocks ``only`` (all with ``None``) of ``message``, coded to ``path`` unless it lies there.

        Raises `MalformedUpdate` for blocks that the message does not have (the list came from a peer) and for a file at ``path``
        that is not this frame, `LimitExceeded` naming the setting, ``StorageFull``, and `StaleRound` soon after ``stopped`` was
        set; nothing is left at ``path`` then.
        """
        layout = self._layout(message, key=key, part=part, design=design, only=only)
        if path.exists():
            return Frame(path=path, layout=_require_same(path, layout), reused=True)
        pieces = frame_parts(
            message,
            part=part,
            design=design,
            code=BlockCode(design, toeplitz=toeplitz),
            fidelity=self.fidelity,
            coded=layout.coded,
            only=only,
            randomness=self.randomness.hiding(key, part),
            threads=self.threads,
        )
        write_durably(path, _until(stopped, pieces))
        return Frame(path=path, layout=layout, reused=False)

    def _layout(
        self, message: bytes, *, key: UpdateKey, part: Part, design: SecrecyDesign, only: Sequence[int] | None
    ) -> FrameLayout:
        total = block_count(len(message), design=design)
        if total > BLOCKS_MAX:
            raise LimitExceeded(f"the {part} needs {total} hash blocks, a part has at most {BLOCKS_MAX}")
        if only is not None and not (only and min(only) >= 0 and max(only) < total):
            raise MalformedUpdate(f"the receipt names blocks that a {part} of {total} blocks does not have")
        sent = total if only is None else len(set(only))
        node = self.seeds.child("hybrid", key.client, str(key.round_id), part, str(key.attempt))
        layout = frame_layout(
            len(message),
            part=part,
            design=design,
            fidelity=self.fidelity,
            coded=coded_blocks(self.fidelity, count=sent, share=self.share, seeds=node),
            only=only,
        )
        if layout.size > self.frame_bytes_max:
            raise LimitExceeded(f"the frame has {layout.size} bytes, limits.frame_bytes_max is {self.frame_bytes_max}")
        return layout


def require_sendable(assignment: Assignment) -> None:
    """Raise `MalformedUpdate` when a granted assignment names a design that no coding point can carry."""
    try:
        for part in assignment.parts:
            point_of(assignment.design_of(part))
    except ValueError as error:
        raise MalformedUpdate(f"the assignment cannot be sent: {error}") from error


def block_count(message_bytes: int, *, design: SecrecyDesign) -> int:
    """Return into how many hash blocks a message falls."""
    return -(-message_bytes // design.payload_bytes)


def _require_same(path: Path, layout: FrameLayout) -> FrameLayout:
    """Return the layout of the file at ``path``; `MalformedUpdate` unless it is ``layout``."""
    with path.open("rb", buffering=0) as file:
        descriptor = file.fileno()
        found = FrameReader(lambda offset, size: os.pread(descriptor, size, offset), os.fstat(descriptor).st_size).layout
    if found.head() != layout.head():
        raise MalformedUpdate(f"{path}: not the frame of this attempt")
    return found


def _until(stopped: Flag, pieces: Iterator[bytes]) -> Iterator[bytes]:
    for piece in pieces:
        if stopped.is_set():
            raise StaleRound("given up while the frame was coded")
        yield piece
