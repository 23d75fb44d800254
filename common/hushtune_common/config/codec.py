"""What a scenario says of how the adapter's change becomes bytes."""

from typing import Annotated, Final, Literal

from msgspec import Meta

from hushtune_common.noise import Promise
from hushtune_common.schema import Positive, Section


class NoiseConfig(Section, frozen=True):
    """Noise that a client adds to its update itself: local differential privacy, with no trust in the owner."""

    epsilon: Positive = 4.0
    """What one update may tell of one block of its numbers: with any two blocks, no update is more than exp(epsilon) times as
    likely. Epsilons of blocks and rounds add up; that of a whole update is said in log and report, and is large."""
    clip: Annotated[float, Meta(gt=0.0, le=1e6)] = 5e-3
    """What the magnitudes of a block's changes may add up to; what exceeds it is scaled down. Say it without looking at data."""
    block: Annotated[int, Meta(ge=1, le=4096)] = 1
    """Numbers of a block."""

    def __post_init__(self) -> None:
        """Refuse noise that no table is made for."""
        self.promise  # noqa: B018  # it checks the three together

    @property
    def promise(self) -> Promise:
        """What is promised."""
        return Promise(epsilon=self.epsilon, clip=self.clip, block=self.block)


_INTEGERS_LEAST: Final = 2.0


class CodecConfig(Section, frozen=True):
    """How the adapter delta becomes bytes."""

    kind: Literal["rate_distortion", "blockwise", "lossless", "jopeq"] = "rate_distortion"
    """``rate_distortion`` spends bits where the plug-in's loss minds errors, to the byte granted; ``blockwise`` takes the widest
    integers with a scale per block that fit; ``lossless`` returns every bit, in as many bytes as that takes; ``jopeq`` (after
    Lang et al. 2022, reconstructed) hides every number in noise of its own, of which rounding is a part, see ``noise``."""
    noise: NoiseConfig | None = None
    """What ``jopeq`` promises; it takes part with no other kind."""
    bits: Annotated[float, Meta(ge=0.01, le=32.0)] = 2.0
    """Most bits per weight of an update. Its assignment says how many bytes it may spend."""
    block_size: Annotated[int, Meta(ge=16, le=4096)] = 64
    """Numbers that share one scale, with ``blockwise``."""
    level: Annotated[int, Meta(ge=1, le=19)] = 3
    """Zstandard level of the entropy coder."""
    rank: Annotated[int, Meta(ge=0, le=1024)] = 0
    """Most components of a matrix that ``rate_distortion`` and ``blockwise`` may send in place of all its numbers, as factors of
    low rank, where that harms less in the same bytes; 0: never. It pays where training was of low rank, and takes time."""

    def __post_init__(self) -> None:
        """Refuse settings that no codec of this kind has a use for, and bytes that no noise of this kind fits."""
        if (self.kind == "jopeq") != (self.noise is not None):
            problem = (
                "needs a table [codec.noise]: epsilon, clip, block" if self.noise is None else f"is for jopeq, not {self.kind}"
            )
            raise ValueError(f"noise: {problem}")
        if self.rank and self.kind not in ("rate_distortion", "blockwise"):
            raise ValueError(f"rank: is for rate_distortion and blockwise; {self.kind} has no use for factors")
        if self.kind == "blockwise" and self.bits < _INTEGERS_LEAST:
            raise ValueError(f"bits: blockwise integers have at least {_INTEGERS_LEAST:g} bits, got {self.bits:g}")
        if self.noise is not None and self.bits < (least := self.noise.promise.bits_least):
            raise ValueError(f"bits: at least {least:.3f} per weight for epsilon {self.noise.epsilon:g}, got {self.bits:g}")
