"""Layer drop by what public text misses: which middle blocks are left out, and how many at most?"""

from collections.abc import Iterator
from dataclasses import dataclass

import msgspec

from hushtune_common.methods import AblationOptions, GreedyOptions, Ranking, method_of
from hushtune_common.model.plan import Plan
from hushtune_common.seeding import SeedTree
from hushtune_server.owner.emulators.method import EmulatorMethod, EmulatorRequest, Profile, Statistic
from hushtune_server.owner.emulators.ranking import evidence, needs_of, ranked


@dataclass(frozen=True, slots=True)
class RankedDrop:
    """Drops the blocks whose absence raises the loss least; equal rises drop the lower index. Draws nothing.

    The blocks of small deep models are very unequal, and evenly spaced ones hit indispensable blocks by accident. ``ablation``
    ranks single blocks and does not see how they interact; ``greedy`` measures again after every block that goes, at about
    ``drop`` times the cost.
    """

    options: AblationOptions | GreedyOptions

    @property
    def ranking(self) -> Ranking:
        """By which losses it ranks; the method has the same name."""
        return "greedy" if isinstance(self.options, GreedyOptions) else "ablation"

    @property
    def needs(self) -> frozenset[Statistic]:
        """The loss without each block, or the order in which blocks go."""
        return needs_of(self.ranking)

    def plan(self, profile: Profile, request: EmulatorRequest, *, seeds: SeedTree) -> Plan:
        """Return the plan, with what was measured in its parameters so that a person can see why; ``seeds`` are not used."""
        drop = self.options.drop
        return Plan(
            base=request.base,
            adapter=request.adapter,
            slots=request.slots(dropped=ranked(self.ranking, profile, request, drop)),
            method=method_of(self.options),
            parameters={"drop": drop, **evidence(self.ranking, profile, request, drop)},
            corpus=profile.corpus,
        )

    def sizes(self, request: EmulatorRequest) -> Iterator["RankedDrop"]:
        """Drop nothing, then one block more each time."""
        return (RankedDrop(msgspec.structs.replace(self.options, drop=drop)) for drop in range(len(request.middle) + 1))


_conforms: type[EmulatorMethod] = RankedDrop
