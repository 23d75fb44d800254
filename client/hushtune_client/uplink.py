"""How does a trained adapter become frames for the air? Codec, envelope, blocks; and again for refused blocks."""

from collections.abc import Sequence
from dataclasses import dataclass

from hushtune_common.adapter import AdapterState
from hushtune_common.codec.codec import AdapterCodec
from hushtune_common.crypto import envelope
from hushtune_common.crypto.keys import HybridPublicKey
from hushtune_common.errors import LimitExceeded, MalformedUpdate
from hushtune_common.link import channel
from hushtune_common.messages import Digest, EmulatorManifest, SecrecyDesign, UpdateKey


@dataclass(frozen=True, slots=True, kw_only=True)
class Sealed:
    """A sealed update with its sizes on the way: raw float32, encoded, sealed."""

    bytes_raw: int
    bytes_encoded: int
    data: bytes

    @property
    def digest(self) -> Digest:
        """Digest of the sealed bytes."""
        return Digest.of(self.data)


@dataclass(frozen=True, slots=True, kw_only=True)
class Uplink:
    """Seals updates to the owner and cuts them into frames.

    Laws: the frame of all blocks carries exactly the sealed bytes; a frame of some blocks carries exactly those, unchanged, so
    that an update is sealed once and every attempt is a part of the same bytes.
    """

    manifest: EmulatorManifest
    codec: AdapterCodec
    update_bytes_max: int

    def seal(self, state: AdapterState, *, key: UpdateKey) -> Sealed:
        """Encode ``state`` and seal it to the owner's key; ``key`` must be of attempt 1, since attempts count retransmissions.

        Raises `LimitExceeded` when the sealed update is larger than the scenario allows.
        """
        if key.attempt != 1:
            raise ValueError(f"an update is sealed once, as attempt 1, got {key.attempt}")
        encoded = self.codec.encode(state)
        sealed = envelope.seal(
            encoded,
            recipient=HybridPublicKey.from_bytes(self.manifest.sealing_key),
            key=key,
            emulator=self.manifest.emulator,
            codec=self.manifest.codec,
        )
        data = envelope.to_bytes(sealed)
        if len(data) > self.update_bytes_max:
            raise LimitExceeded(f"the sealed update has {len(data)} bytes, limits.update_bytes_max is {self.update_bytes_max}")
        return Sealed(bytes_raw=state.bytes_raw, bytes_encoded=len(encoded), data=data)


def frame_of(sealed: bytes, *, design: SecrecyDesign, only: Sequence[int] | None) -> bytes:
    """Return the frame of the blocks ``only`` (all with ``None``) of a sealed update, as the air takes it.

    Raises `MalformedUpdate` when ``only`` names blocks that the update does not have: the list came from a peer.
    """
    total = block_count(len(sealed), design=design, only=None)
    if only is not None and not (only and min(only) >= 0 and max(only) < total):
        raise MalformedUpdate(f"the receipt names blocks that an update of {total} blocks does not have")
    return channel.cut(sealed, design=design, only=only).to_bytes()


def block_count(sealed_bytes: int, *, design: SecrecyDesign, only: Sequence[int] | None) -> int:
    """Return how many blocks that frame has."""
    return -(-sealed_bytes // design.payload_bytes) if only is None else len(only)
