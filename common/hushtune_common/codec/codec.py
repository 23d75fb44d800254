"""What a codec is: adapter tensors to bytes and back, within a stated error."""

from typing import Protocol

from hushtune_common.adapter import AdapterState
from hushtune_common.messages import TensorSpec

__all__ = ["AdapterCodec", "AdapterState"]


class AdapterCodec(Protocol):
    """Turns an adapter into bytes and back.

    Laws: equal states give equal bytes; names, shapes and the order of ``expected`` survive; each element comes back within
    ``bound(state)``; a blob is never longer than ``bytes_max``; any other bytes raise ``MalformedUpdate`` and nothing else, and
    no size is taken from them; what is decoded is finite.
    """

    @property
    def id(self) -> str:
        """Name and version of the byte format, such as ``delta-int8-b64-zstd/1``; bound into every envelope."""
        ...

    @property
    def bytes_max(self) -> int:
        """Largest blob that ``encode`` can make, in bytes."""
        ...

    def encode(self, state: AdapterState) -> bytes:
        """Return the blob; ``ValueError`` names a tensor that is not finite or not of this adapter."""
        ...

    def decode(self, blob: bytes, expected: tuple[TensorSpec, ...]) -> AdapterState:
        """Return the tensors of ``expected``; ``MalformedUpdate`` for bytes that ``encode`` does not make."""
        ...

    def bound(self, state: AdapterState) -> AdapterState:
        """Return the largest error of each element of ``decode(encode(state))``, in the shapes of ``state``."""
        ...
