"""What a codec is: adapter tensors to bytes and back, within a stated error."""

from typing import Protocol

from hushtune_common.adapter import AdapterState
from hushtune_common.messages import TensorSpec

__all__ = ["AdapterCodec", "AdapterState"]


class AdapterCodec(Protocol):
    """Turns an adapter into bytes and back.

    Every blob says how many bits per weight it spends, 2 to ``bits_max``, so one codec encodes and decodes them all.

    Laws: equal states and bits give equal bytes; names, shapes and the order of ``expected`` survive; each element comes back
    within ``bound(state, bits=bits)``; a blob is never longer than ``bytes_max``; any other bytes, and more bits than
    ``bits_max``, raise ``MalformedUpdate`` and nothing else, and no size is taken from them; what is decoded is finite.
    """

    @property
    def id(self) -> str:
        """Name and version of the byte format, such as ``delta-b64-zstd/2``; bound into every envelope."""
        ...

    @property
    def bits_max(self) -> int:
        """Most bits per weight that a blob may spend."""
        ...

    @property
    def bytes_max(self) -> int:
        """Largest blob that ``encode`` can make with any bits, in bytes."""
        ...

    def encode(self, state: AdapterState, *, bits: int) -> bytes:
        """Return the blob with codes of ``bits`` bits; ``ValueError`` names a tensor that is not finite or not of this adapter.

        ``ValueError`` also for bits below 2 or above ``bits_max``.
        """
        ...

    def decode(self, blob: bytes, expected: tuple[TensorSpec, ...]) -> AdapterState:
        """Return the tensors of ``expected``; ``MalformedUpdate`` for bytes that ``encode`` does not make."""
        ...

    def bound(self, state: AdapterState, *, bits: int) -> AdapterState:
        """Return the largest error of each element of ``decode(encode(state, bits=bits))``, in the shapes of ``state``."""
        ...
