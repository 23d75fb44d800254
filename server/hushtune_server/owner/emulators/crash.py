"""CRaSh (EMNLP 2023): neighbours that do alike are one cluster, of which one stays and stands in for the rest.

The paper chooses the blocks to train among those that stay; here they are given. So a cluster holds at most one block of them,
which represents it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import msgspec

from hushtune_common.methods import CrashOptions
from hushtune_common.model.plan import Plan
from hushtune_common.model.slots import Drop, Keep, Share, Slot
from hushtune_common.seeding import SeedTree
from hushtune_server.owner.emulators.method import EmulatorMethod, EmulatorRequest, Profile, Statistic

DIGITS = 5
"""Decimals of similarities that decide."""


@dataclass(frozen=True, slots=True)
class Crash:
    """Merges neighbouring clusters by the similarity of their blocks' outputs until enough can go. Draws nothing.

    The middle of a cluster stays; at the ends of the model it is the outermost block, and an adapter block always. With ``share``
    every other block is replaced by the nearest one that stays: depth and computing remain, only unique weights become fewer. A
    block that shares an adapter block is a frozen copy of it as shipped.
    """

    options: CrashOptions

    @property
    def needs(self) -> frozenset[Statistic]:
        """How alike the blocks' outputs are."""
        return frozenset({Statistic.SIMILARITY})

    def plan(self, profile: Profile, request: EmulatorRequest, *, seeds: SeedTree) -> Plan:
        """Return the plan, with the similarity of neighbours in its parameters; ``seeds`` are not used."""
        options = self.options
        request.require_droppable(options.drop, option="drop")
        alike = neighbours_alike(profile, request)
        groups = clusters(alike, adapter=request.adapter, count=request.block_count - options.drop)
        kept = {representative(group, request) for group in groups}
        return Plan(
            base=request.base,
            adapter=request.adapter,
            slots=tuple(self._slot(block, kept=kept, request=request) for block in request.blocks),
            method="crash",
            parameters={
                "drop": options.drop,
                "share": options.share,
                "prefer_frozen": options.prefer_frozen,
                "profile_tokens": profile.tokens,
                "similarity_to_next": {str(block): value for block, value in enumerate(alike)},
            },
            corpus=profile.corpus,
        )

    def sizes(self, request: EmulatorRequest) -> Iterator["Crash"]:
        """Remove nothing, then one block more each time."""
        return (Crash(msgspec.structs.replace(self.options, drop=drop)) for drop in range(len(request.middle) + 1))

    def _slot(self, block: int, *, kept: set[int], request: EmulatorRequest) -> Slot:
        if block in kept:
            return Keep(block)
        if not self.options.share:
            return Drop(block)
        trained = request.adapter if self.options.prefer_frozen else ()
        # The nearest; at equal distance a frozen one, if that is preferred, and then the one further up.
        return Share(block, min(kept, key=lambda other: (abs(other - block), other in trained, -other)))


def neighbours_alike(profile: Profile, request: EmulatorRequest) -> list[float]:
    """Return how alike the outputs of each block and the next one are; ``ValueError`` when that was not measured."""
    found, count = profile.similarity, request.block_count
    if found is None or found.shape != (count, count):
        raise ValueError(f"the profile has no similarity of {count} blocks")
    return [round(float(found[block, block + 1]), DIGITS) for block in range(count - 1)]


def clusters(alike: Sequence[float], *, adapter: Sequence[int], count: int) -> list[list[int]]:
    """Return ``count`` clusters of consecutive blocks: the most alike neighbours are merged first, the lower ones among equals.

    Two clusters that both hold an adapter block are never merged. As similarity is asked of the last block of one cluster and the
    first of the next, every step looks at the same numbers.
    """
    groups = [[block] for block in range(len(alike) + 1)]
    for block in sorted(range(len(alike)), key=lambda b: (-alike[b], b)):
        if len(groups) == count:
            break
        at = next(k for k, group in enumerate(groups) if group[-1] >= block)
        if len(set(adapter) & {*groups[at], *groups[at + 1]}) <= 1:
            groups[at : at + 2] = [groups[at] + groups[at + 1]]
    return groups


def representative(group: Sequence[int], request: EmulatorRequest) -> int:
    """Return the block of a cluster that stays."""
    trained = [block for block in group if block in request.adapter]
    if trained:
        return trained[0]
    if group[0] == 0:
        return 0
    last = request.block_count - 1
    return last if group[-1] == last else group[len(group) // 2]


_conforms: type[EmulatorMethod] = Crash
