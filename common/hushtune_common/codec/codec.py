"""What a codec is: adapter tensors to at most so many bytes and back, within an error that the bytes state."""

from collections.abc import Mapping
from typing import Protocol

from hushtune_common.adapter import AdapterState
from hushtune_common.messages import TensorSpec

__all__ = ["AdapterCodec", "AdapterState"]


class AdapterCodec(Protocol):
    """Turns an adapter into bytes, as few as asked for, and back.

    Laws: a blob is never longer than the budget it was made for, and ``bytes_max`` is a budget that always suffices; equal states
    and budgets give equal bytes, unless the codec adds privacy noise; names, shapes and the order of ``expected`` survive; every
    element comes back within ``bound(blob)`` of its tensor, or of what a codec makes of that which clips for privacy or keeps to
    a largest change; nothing that is decoded lies further from the shipped adapter than such a largest change; any other bytes
    raise ``MalformedUpdate`` and nothing else, and no size is taken from them; what is decoded is finite.
    """

    @property
    def id(self) -> str:
        """Name and version of the byte format; bound into every envelope and manifest."""
        ...

    @property
    def bytes_max(self) -> int:
        """Largest blob that is made or read, in bytes: what a full share of the budget grants."""
        ...

    def encode(self, state: AdapterState, *, budget_bytes: int) -> bytes:
        """Return a blob of at most ``budget_bytes`` (more than ``bytes_max`` counts as ``bytes_max``).

        ``BudgetTooSmall`` when no blob is so short; ``ValueError`` names a tensor that is not finite or not of this adapter.
        """
        ...

    def decode(self, blob: bytes, expected: tuple[TensorSpec, ...]) -> AdapterState:
        """Return the tensors of ``expected``; ``MalformedUpdate`` for bytes that ``encode`` does not make."""
        ...

    def bound(self, blob: bytes) -> Mapping[str, float]:
        """Return per tensor the largest absolute error of any element, rounding included; ``MalformedUpdate`` as `decode`."""
        ...
