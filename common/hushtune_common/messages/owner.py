"""What the owner says of its model: the emulator's manifest, the way from an older one, and verdicts."""

from dataclasses import dataclass

from hushtune_common.messages.identity import Digest, UpdateKey


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSpec:
    """One tensor of the adapter blocks; ``name`` and ``block`` use original block indices."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    block: int

    def __post_init__(self) -> None:
        """Check the form before anything is allocated from it."""
        if self.dtype not in {"F32", "F16", "BF16"}:
            raise ValueError(f"{self.name}: dtype {self.dtype!r} is not F32, F16 or BF16")
        if not self.shape or any(d < 1 for d in self.shape) or self.block < 0:
            raise ValueError(f"{self.name}: impossible shape {self.shape} or block {self.block}")

    @property
    def count(self) -> int:
        """Number of elements."""
        total = 1
        for d in self.shape:
            total *= d
        return total


@dataclass(frozen=True, slots=True, kw_only=True)
class Revision:
    """The way from an emulator that was published before, ``base``, to another: a blob that holds what changed."""

    base: Digest
    base_bytes: int
    blob: Digest
    size_bytes: int

    def __post_init__(self) -> None:
        """Check the form."""
        if self.base_bytes < 1 or self.size_bytes < 1:
            raise ValueError("a revision is a blob, and leads from an emulator")


@dataclass(frozen=True, slots=True, kw_only=True)
class EmulatorManifest:
    """What the owner publishes about the emulator of a round.

    ``emulator`` is the digest of the bundle blob; ``base``, ``plan`` and ``tokenizer`` identify what it was made from;
    ``sealing_key`` is the owner's public hybrid key that updates are sealed to. ``round_id`` is the round that it is for;
    ``revision`` leads to it from the emulator of an earlier round.
    """

    emulator: Digest
    size_bytes: int
    base: Digest
    plan: Digest
    tokenizer: Digest
    adapter: tuple[TensorSpec, ...]
    sealing_key: bytes
    codec: str
    round_id: int = 1
    revision: Revision | None = None

    def __post_init__(self) -> None:
        """Check the form."""
        if self.size_bytes < 1 or not self.adapter:
            raise ValueError("a manifest names a bundle and at least one adapter tensor")
        if self.round_id < 1:
            raise ValueError(f"rounds count from 1, got {self.round_id}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The owner's word to the client. ``score`` is the plug-in perplexity on public text; ``kept`` whether the model keeps it."""

    key: UpdateKey
    accepted: bool
    kept: bool
    reason: str
    score: float | None
