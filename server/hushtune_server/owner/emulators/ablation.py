"""Ablation-ranked layer drop: leaves out the middle blocks that public text misses least, each by itself."""

from collections.abc import Iterator
from dataclasses import dataclass

import msgspec

from hushtune_common.methods import AblationOptions
from hushtune_common.model.plan import Plan
from hushtune_common.seeding import SeedTree
from hushtune_server.owner.emulators.method import EmulatorMethod, EmulatorRequest, Profile, Statistic
from hushtune_server.owner.emulators.ranking import evidence, needs_of, ranked


@dataclass(frozen=True, slots=True)
class Ablation:
    """Drops the blocks with the smallest rise in loss when left out alone; equal rises drop the lower index. Draws nothing.

    The blocks of small deep models are very unequal, and evenly spaced ones hit indispensable blocks by accident. The ranking is
    of single blocks and does not see how they interact.
    """

    options: AblationOptions

    @property
    def needs(self) -> frozenset[Statistic]:
        """The loss without each block."""
        return needs_of("ablation")

    def plan(self, profile: Profile, request: EmulatorRequest, *, seeds: SeedTree) -> Plan:
        """Return the plan, with the measured rises in its parameters so that a person can see why; ``seeds`` are not used."""
        drop = self.options.drop
        return Plan(
            base=request.base,
            adapter=request.adapter,
            slots=request.slots(dropped=ranked("ablation", profile, request, drop)),
            method="ablation",
            parameters={"drop": drop, **evidence("ablation", profile, request, drop)},
            corpus=profile.corpus,
        )

    def sizes(self, request: EmulatorRequest) -> Iterator["Ablation"]:
        """Drop nothing, then one block more each time."""
        return (Ablation(msgspec.structs.replace(self.options, drop=drop)) for drop in range(len(request.middle) + 1))


_conforms: type[EmulatorMethod] = Ablation
