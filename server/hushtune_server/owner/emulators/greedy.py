"""Greedy layer drop: ablation, measured again after every block that goes."""

from collections.abc import Iterator
from dataclasses import dataclass

import msgspec

from hushtune_common.methods import GreedyOptions
from hushtune_common.model.plan import Plan
from hushtune_common.seeding import SeedTree
from hushtune_server.owner.emulators.method import EmulatorMethod, EmulatorRequest, Profile, Statistic
from hushtune_server.owner.emulators.ranking import evidence, needs_of, ranked


@dataclass(frozen=True, slots=True)
class Greedy:
    """Drops one block after the other, each time the one that what is left misses least. Draws nothing.

    Sees how blocks interact, as `Ablation` does not, at about ``drop`` times its cost.
    """

    options: GreedyOptions

    @property
    def needs(self) -> frozenset[Statistic]:
        """The order in which blocks go."""
        return needs_of("greedy")

    def plan(self, profile: Profile, request: EmulatorRequest, *, seeds: SeedTree) -> Plan:
        """Return the plan, with the order and the rise in loss after every step in its parameters; ``seeds`` are not used."""
        drop = self.options.drop
        return Plan(
            base=request.base,
            adapter=request.adapter,
            slots=request.slots(dropped=ranked("greedy", profile, request, drop)),
            method="greedy",
            parameters={"drop": drop, **evidence("greedy", profile, request, drop)},
            corpus=profile.corpus,
        )

    def sizes(self, request: EmulatorRequest) -> Iterator["Greedy"]:
        """Drop nothing, then one block more each time."""
        return (Greedy(msgspec.structs.replace(self.options, drop=drop)) for drop in range(len(request.middle) + 1))


_conforms: type[EmulatorMethod] = Greedy
