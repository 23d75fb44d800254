"""What an emulator method is asked, what it may look at, and what it answers."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol, Self

from hushtune_common.adapter import Float32
from hushtune_common.errors import ConfigError
from hushtune_common.messages import Digest
from hushtune_common.methods import EmulatorOptions
from hushtune_common.model.layout import BlockLayout
from hushtune_common.model.plan import Plan
from hushtune_common.model.slots import Drop, Keep, Slot
from hushtune_common.seeding import SeedTree


class Statistic(StrEnum):
    """What can be measured before planning, on public text or on the weights."""

    ABLATION_LOSS = "ablation_loss"
    GREEDY_ORDER = "greedy_order"
    INFLUENCE = "influence"
    SIMILARITY = "similarity"
    NEURON_NORMS = "neuron_norms"
    GRADIENT_SCORES = "gradient_scores"
    REPLACEMENT_SCORES = "replacement_scores"


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """GradOT's two scores of every part: what removing it costs the adapter's gradients, and by how much it raises the loss."""

    preserve: Float32
    private: Float32

    def __post_init__(self) -> None:
        """Both are of the same parts."""
        if self.preserve.ndim != 1 or self.preserve.shape != self.private.shape:
            raise ValueError(f"two scores of the same parts, got {self.preserve.shape} and {self.private.shape}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """Statistics of the full model on public text; empty for methods that need none.

    ``base`` is the model that was measured and ``loss`` its loss in nats per token (0 where nothing asked for it). By original
    index of the middle blocks: ``ablation_losses``, the loss with one block left out; ``influences``, one minus the mean cosine
    of a block's input and output; ``neuron_norms`` (F,); ``channel_scores`` (F,) and, by module path too, ``component_scores``
    (rank,) of GradOT; ``replacement_scores``, learned. ``greedy_order`` are middle blocks in the order in which they go, as many
    as were asked for, and ``greedy_losses`` the loss after each. ``similarity`` (L, L) is the CKA of the blocks' outputs.
    ``trained`` are tensors that profiling trained (harmonizers). ``corpus`` and ``tokens`` say on what was measured, ``cpu_s``
    how much processor time it took; no plan depends on the latter, and it plays no part when profiles are compared.

    ``adapter`` and ``settings`` are the blocks and the options of the method that it was measured for; none where that is not
    known. Arrays are float32, so that a profile comes back from a file as it was.
    """

    base: Digest | None = None
    corpus: Digest | None = None
    tokens: int = 0
    loss: float = 0.0
    cpu_s: float = field(default=0.0, compare=False)
    ablation_losses: Mapping[int, float] = field(default_factory=dict[int, float])
    influences: Mapping[int, float] = field(default_factory=dict[int, float])
    greedy_order: tuple[int, ...] = ()
    greedy_losses: tuple[float, ...] = ()
    similarity: Float32 | None = None
    neuron_norms: Mapping[int, Float32] = field(default_factory=dict[int, Float32])
    channel_scores: Mapping[int, Scores] = field(default_factory=dict[int, Scores])
    component_scores: Mapping[tuple[int, str], Scores] = field(default_factory=dict[tuple[int, str], Scores])
    replacement_scores: Mapping[int, float] = field(default_factory=dict[int, float])
    trained: Mapping[str, Float32] = field(default_factory=dict[str, Float32])
    adapter: tuple[int, ...] | None = None
    settings: Mapping[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True, slots=True, kw_only=True)
class EmulatorRequest:
    """The model's size and the blocks that clients train."""

    base: Digest
    block_count: int
    adapter: tuple[int, ...]
    layout: BlockLayout | None = None
    """What a block consists of; methods that cut blocks need it."""

    def __post_init__(self) -> None:
        """Refuse what no plan can meet; `ConfigError` names the setting."""
        if not self.adapter:
            raise ConfigError("model.adapter_bottom", "there must be at least one adapter block")
        if list(self.adapter) != sorted(set(self.adapter)):
            raise ConfigError("model.adapter_blocks", f"name each block once, in order; got {list(self.adapter)}")
        if self.adapter[-1] >= self.block_count:
            raise ConfigError(
                "model.adapter_blocks", f"block {self.adapter[-1]} does not exist; the model has {self.block_count} blocks"
            )

    @property
    def blocks(self) -> range:
        """All original indices."""
        return range(self.block_count)

    @property
    def middle(self) -> tuple[int, ...]:
        """Original indices of the blocks that clients do not train, in order."""
        return tuple(b for b in self.blocks if b not in self.adapter)

    def slots(self, *, dropped: frozenset[int]) -> tuple[Slot, ...]:
        """Return the slots in which exactly ``dropped`` are left out."""
        return tuple(Drop(b) if b in dropped else Keep(b) for b in self.blocks)

    def require_droppable(self, count: int, *, option: str) -> None:
        """Raise `ConfigError` naming the ``option`` when the middle has fewer than ``count`` blocks."""
        if count > len(self.middle):
            raise ConfigError(f"owner.emulator.{option}", f"{count} of {len(self.middle)} middle blocks cannot go")


def require_layout(request: EmulatorRequest) -> BlockLayout:
    """Return what a block consists of; ``ValueError`` when the request does not say."""
    if request.layout is None:
        raise ValueError("a method that cuts blocks needs their layout in the request")
    return request.layout


def both_ends(block_count: int, *, bottom: int, top: int) -> tuple[int, ...]:
    """Return adapter blocks at both ends of a model; `ConfigError` when they are more than it has."""
    if bottom + top > block_count:
        raise ConfigError("model.adapter_bottom", f"{bottom} + {top} adapter blocks, but the model has {block_count} blocks")
    return (*range(bottom), *range(block_count - top, block_count))


class EmulatorMethod(Protocol):
    """Chooses what stands in for the middle of the model.

    Laws: the adapter blocks are `Keep`; the plan depends on the arguments only, and its parameters hold the options and the
    statistics that decided; a method sees statistics of public text and nothing of any client. ``sizes`` are the same method at
    every size that it has, the largest emulator first; the first keeps everything that the method can keep.
    """

    @property
    def options(self) -> EmulatorOptions:
        """Its settings."""
        ...

    @property
    def needs(self) -> frozenset[Statistic]:
        """What the profile must hold."""
        ...

    def plan(self, profile: Profile, request: EmulatorRequest, *, seeds: SeedTree) -> Plan:
        """Return the plan; ``ValueError`` when the profile lacks a statistic, `ConfigError` when an option does not fit."""
        ...

    def sizes(self, request: EmulatorRequest) -> Iterator[Self]:
        """Yield the method at every size, the largest emulator first."""
        ...
