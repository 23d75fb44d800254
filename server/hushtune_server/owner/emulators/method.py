"""What an emulator method is asked, what it may look at, and what it answers."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import ClassVar, Protocol

from hushtune_common.errors import ConfigError
from hushtune_common.messages import Digest
from hushtune_common.model.plan import Drop, Keep, Plan, Slot
from hushtune_common.seeding import SeedTree


class Statistic(StrEnum):
    """What can be measured on public text before planning."""

    ABLATION_LOSS = "ablation_loss"


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """Statistics of the full model on public text; empty for methods that need none.

    ``loss`` is the full model's loss in nats per token; ``ablation_losses`` are its losses with one middle block left out, by
    original index. ``corpus`` and ``tokens`` say on what they were measured.
    """

    corpus: Digest | None = None
    tokens: int = 0
    loss: float = 0.0
    ablation_losses: Mapping[int, float] = field(default_factory=dict[int, float])


@dataclass(frozen=True, slots=True, kw_only=True)
class EmulatorRequest:
    """The model's size, the blocks that clients train, and how many of the others to leave out."""

    base: Digest
    block_count: int
    adapter_bottom: int
    adapter_top: int
    drop: int

    def __post_init__(self) -> None:
        """Refuse what no plan can meet; `ConfigError` names the setting."""
        if self.adapter_bottom < 0 or self.adapter_top < 0 or self.adapter_bottom + self.adapter_top < 1:
            raise ConfigError("model.adapter_bottom", "there must be at least one adapter block")
        if self.adapter_bottom + self.adapter_top > self.block_count:
            raise ConfigError(
                "model.adapter_bottom",
                f"{self.adapter_bottom} + {self.adapter_top} adapter blocks, but the model has {self.block_count} blocks",
            )
        if not 0 <= self.drop <= len(self.middle):
            raise ConfigError("owner.emulator.drop", f"{self.drop} of {len(self.middle)} middle blocks cannot be dropped")

    @property
    def blocks(self) -> range:
        """All original indices."""
        return range(self.block_count)

    @property
    def middle(self) -> range:
        """Original indices between the adapter blocks."""
        return range(self.adapter_bottom, self.block_count - self.adapter_top)

    @property
    def adapter(self) -> tuple[int, ...]:
        """Original indices of the blocks that clients train, bottom and top."""
        return tuple(b for b in self.blocks if b not in self.middle)

    def slots(self, *, dropped: frozenset[int]) -> tuple[Slot, ...]:
        """Return the slots in which exactly ``dropped`` are left out."""
        return tuple(Drop(b) if b in dropped else Keep(b) for b in self.blocks)


class EmulatorMethod(Protocol):
    """Chooses what stands in for the middle of the model.

    Laws: the adapter blocks are `Keep`; a request to drop nothing keeps everything; exactly ``request.drop`` blocks are dropped;
    the plan depends on the arguments only. A method sees statistics of public text and nothing of any client.
    """

    name: ClassVar[str]
    needs: ClassVar[frozenset[Statistic]]

    def plan(self, profile: Profile, request: EmulatorRequest, *, seeds: SeedTree) -> Plan:
        """Return the plan; ``ValueError`` when the profile lacks a statistic that the method needs."""
        ...
