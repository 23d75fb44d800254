"""Uniform layer drop: an emulator of evenly spaced middle blocks."""

from collections.abc import Iterator
from dataclasses import dataclass

import msgspec

from hushtune_common.methods import UniformOptions
from hushtune_common.model.plan import Plan
from hushtune_common.seeding import SeedTree
from hushtune_server.owner.emulators.method import EmulatorMethod, EmulatorRequest, Profile, Statistic
from hushtune_server.owner.emulators.ranking import all_but_evenly_spaced


@dataclass(frozen=True, slots=True)
class Uniform:
    """Keeps evenly spaced middle blocks and drops the rest. Measures nothing, draws nothing."""

    options: UniformOptions

    @property
    def needs(self) -> frozenset[Statistic]:
        """Nothing."""
        return frozenset()

    def plan(self, profile: Profile, request: EmulatorRequest, *, seeds: SeedTree) -> Plan:
        """Return the plan; ``profile`` and ``seeds`` are not looked at."""
        drop, rounding = self.options.drop, self.options.rounding
        request.require_droppable(drop, option="drop")
        return Plan(
            base=request.base,
            adapter=request.adapter,
            slots=request.slots(dropped=all_but_evenly_spaced(request, drop=drop, rounding=rounding)),
            method="uniform",
            parameters={"drop": drop, "rounding": rounding},
        )

    def sizes(self, request: EmulatorRequest) -> Iterator["Uniform"]:
        """Drop nothing, then one block more each time."""
        return (Uniform(msgspec.structs.replace(self.options, drop=drop)) for drop in range(len(request.middle) + 1))


_conforms: type[EmulatorMethod] = Uniform
