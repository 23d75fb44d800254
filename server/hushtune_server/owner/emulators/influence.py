"""Influence-ranked layer drop: leaves out the middle blocks that turn the hidden state least."""

from collections.abc import Iterator
from dataclasses import dataclass

import msgspec

from hushtune_common.methods import InfluenceOptions
from hushtune_common.model.plan import Plan
from hushtune_common.seeding import SeedTree
from hushtune_server.owner.emulators.method import EmulatorMethod, EmulatorRequest, Profile, Statistic
from hushtune_server.owner.emulators.ranking import evidence, influences, least_turning, most_apart, needs_of


@dataclass(frozen=True, slots=True)
class Influence:
    """Drops the blocks of least total influence, never more than ``adjacent_max`` neighbours. Draws nothing.

    A block's influence is one minus the mean cosine between its input and its output (ShortGPT, arXiv 2403.03853). One pass
    measures them all, but it does not see what the later blocks make of the change, and less so the more blocks go; the bound on
    neighbours keeps the ranking from emptying a whole stretch.
    """

    options: InfluenceOptions

    @property
    def needs(self) -> frozenset[Statistic]:
        """The influences."""
        return needs_of("influence")

    def plan(self, profile: Profile, request: EmulatorRequest, *, seeds: SeedTree) -> Plan:
        """Return the plan, with the measured influences in its parameters; ``seeds`` are not used."""
        drop, adjacent_max = self.options.drop, self.options.adjacent_max
        request.require_droppable(drop, option="drop")
        dropped = least_turning(influences(profile, request), drop=drop, adjacent_max=adjacent_max)
        return Plan(
            base=request.base,
            adapter=request.adapter,
            slots=request.slots(dropped=dropped),
            method="influence",
            parameters={"drop": drop, "adjacent_max": adjacent_max, **evidence("influence", profile, request, drop)},
            corpus=profile.corpus,
        )

    def sizes(self, request: EmulatorRequest) -> Iterator["Influence"]:
        """Drop nothing, then one block more each time, as far as the bound on neighbours allows."""
        most = most_apart(request.middle, adjacent_max=self.options.adjacent_max)
        return (Influence(msgspec.structs.replace(self.options, drop=drop)) for drop in range(most + 1))


_conforms: type[EmulatorMethod] = Influence
